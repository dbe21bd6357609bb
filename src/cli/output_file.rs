//! The file that a subcommand writes: checked before the work begins, and written whole or not at
//! all.

use std::{
    fs::{self, File},
    io::{self, Write},
    path::{Path, PathBuf},
    process,
};

use super::{CliError, output::escaped};
use crate::{
    files::{LARGEST_CHECKPOINT, LARGEST_MODEL, read_limited},
    model::{self, Manifest},
};

/// A model file that can be written when its content is known.
#[derive(Clone, Debug)]
pub struct OutputFile {
    /// The path on the command line.
    path: PathBuf,
    /// The same without links, so that a link stays one and the file that it leads to is replaced.
    target: PathBuf,
}

impl OutputFile {
    /// Checks that a model can be written at `path`. `inputs` are the files that it is made from.
    ///
    /// An existing model of this program is replaced; `force` also allows any other file, and the
    /// inputs themselves. The caller has to read all inputs before it writes.
    ///
    /// # Errors
    /// If the file can't be written, or would replace what nobody meant to replace.
    pub fn check(path: &Path, inputs: &[&Path], force: bool) -> Result<Self, CliError> {
        let refuse = |reason: &str| {
            let path = path.display().to_string();
            Err(CliError::Failed(format!("{} {reason}", escaped(&path))))
        };

        if let Ok(metadata) = fs::metadata(path) {
            if metadata.is_dir() {
                return refuse("is a directory; name the file to write");
            }
            if !metadata.is_file() {
                return refuse("is no plain file, such as a device; name the file to write");
            }
            if !force && inputs.iter().any(|input| is_same_file(input, path)) {
                return refuse(
                    "is the file to read from; name another one to write, or replace it with \
                     --force",
                );
            }
            if !force && metadata.len() > 0 && !is_own_model(path) {
                return refuse(
                    "exists and is no model that this program wrote; name another file to write, \
                     or replace it with --force",
                );
            }
        }

        let output = Self {
            path: path.to_owned(),
            target: fs::canonicalize(path).unwrap_or_else(|_| path.to_owned()),
        };
        let folder = output.folder();
        if !folder.is_dir() {
            return Err(CliError::Failed(format!(
                "there is no folder {} to write {} into",
                folder.display(),
                path.display()
            )));
        }
        output.try_folder().map_err(|error| output.failed(&error))?;
        Ok(output)
    }

    /// Writes the file atomically: to a temporary file in the same folder, which is then renamed.
    ///
    /// # Errors
    /// If it can't be written, or is larger than the largest model that is read; an existing file is
    /// then unchanged.
    pub fn write(&self, content: &[u8]) -> Result<(), CliError> {
        if content.len() as u64 > LARGEST_MODEL {
            return Err(CliError::Failed(format!(
                "{}: would have {} bytes; {} GiB is the most that an ONNX file can have",
                self.path.display(),
                content.len(),
                LARGEST_MODEL >> 30
            )));
        }
        let temporary = self.temporary();
        let written =
            write_and_sync(&temporary, content).and_then(|()| fs::rename(&temporary, &self.target));
        written.map_err(|error| {
            // The first error is the one to report.
            let _ = fs::remove_file(&temporary);
            self.failed(&error)
        })
    }

    fn failed(&self, error: &io::Error) -> CliError {
        CliError::Failed(format!(
            "{}: cannot be written: {error}",
            self.path.display()
        ))
    }

    /// The folder that contains the file.
    fn folder(&self) -> &Path {
        self.target
            .parent()
            .filter(|folder| !folder.as_os_str().is_empty())
            .unwrap_or(Path::new("."))
    }

    fn temporary(&self) -> PathBuf {
        let name = self.target.file_name().unwrap_or_default();
        let name = format!(".{}.{}.tmp", name.to_string_lossy(), process::id());
        self.folder().join(name)
    }

    /// Creates the temporary file and removes it again: permissions alone don't tell whether that
    /// works, for example in a file system that is mounted read-only.
    fn try_folder(&self) -> io::Result<()> {
        let temporary = self.temporary();
        File::create(&temporary)?;
        fs::remove_file(temporary)
    }
}

fn write_and_sync(path: &Path, content: &[u8]) -> io::Result<()> {
    let mut file = File::create(path)?;
    file.write_all(content)?;
    // Without this, a crash of the machine after the renaming could leave an empty file.
    file.sync_all()
}

/// Whether the paths lead to the same file, by links or in another spelling.
#[cfg(unix)]
fn is_same_file(one: &Path, other: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let identity = |path: &Path| {
        let metadata = fs::metadata(path).ok()?;
        Some((metadata.dev(), metadata.ino()))
    };
    let one = identity(one);
    one.is_some() && one == identity(other)
}

/// Whether the paths lead to the same file, by links or in another spelling.
#[cfg(not(unix))]
fn is_same_file(one: &Path, other: &Path) -> bool {
    let one = fs::canonicalize(one).ok();
    one.is_some() && one == fs::canonicalize(other).ok()
}

/// Whether the file is an ONNX model with the manifest that this program writes.
fn is_own_model(path: &Path) -> bool {
    let Ok(content) = read_limited(path, LARGEST_CHECKPOINT) else {
        return false;
    };
    model::decode(&content.into()).is_ok_and(|model| {
        model
            .metadata_props
            .iter()
            .any(|entry| entry.key() == Manifest::KEY)
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::testing;

    fn own_model() -> Vec<u8> {
        let mut model = testing::tiny();
        Manifest::default().write(&mut model);
        testing::bytes(&model).to_vec()
    }

    fn refusal(path: &Path, inputs: &[&Path]) -> String {
        OutputFile::check(path, inputs, false)
            .unwrap_err()
            .to_string()
    }

    #[test]
    fn a_file_is_replaced_whole_and_nothing_is_left_behind() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        fs::write(&path, own_model()).unwrap();
        let output = OutputFile::check(&path, &[], false).unwrap();
        output.write(b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_failed_write_leaves_the_old_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.onnx");
        let output = OutputFile::check(&path, &[], false).unwrap();
        // The name is taken by a folder after the check.
        fs::create_dir(&path).unwrap();
        assert!(output.write(b"new").is_err());
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn outputs_that_cannot_be_written_are_known_beforehand() {
        let folder = tempfile::tempdir().unwrap();
        assert!(OutputFile::check(&folder.path().join("new.onnx"), &[], false).is_ok());
        assert!(refusal(folder.path(), &[]).contains("is a directory"));
        assert!(refusal(&folder.path().join("a/b.onnx"), &[]).contains("there is no folder"));
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 0);
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn folders_without_room_for_files_and_devices_are_refused() {
        // Not even root can create files there.
        assert!(refusal(Path::new("/proc/new.onnx"), &[]).contains("cannot be written"));
        for force in [false, true] {
            let error = OutputFile::check(Path::new("/dev/null"), &[], force).unwrap_err();
            assert!(error.to_string().contains("no plain file"), "{error}");
        }
    }

    #[test]
    fn only_models_of_this_program_are_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        let foreign = testing::bytes(&testing::tiny()).to_vec();
        for (content, replaced) in [
            (own_model(), true),
            (Vec::new(), true),
            (foreign, false),
            (b"weights".to_vec(), false),
        ] {
            fs::write(&path, &content).unwrap();
            assert_eq!(OutputFile::check(&path, &[], false).is_ok(), replaced);
            assert!(OutputFile::check(&path, &[], true).is_ok());
            assert_eq!(fs::read(&path).unwrap(), content);
        }
    }

    #[cfg(unix)]
    #[test]
    fn an_input_is_recognized_through_links_and_other_spellings() {
        let folder = tempfile::tempdir().unwrap();
        let input = folder.path().join("model.onnx");
        fs::write(&input, own_model()).unwrap();
        let (soft, hard) = (folder.path().join("soft"), folder.path().join("hard"));
        std::os::unix::fs::symlink(&input, &soft).unwrap();
        fs::hard_link(&input, &hard).unwrap();
        let spelled = folder.path().join("./model.onnx");

        for output in [&input, &soft, &hard, &spelled] {
            let error = refusal(output, &[&input]);
            assert!(error.contains("the file to read from"), "{error}");
        }
        // A link stays a link.
        let output = OutputFile::check(&soft, &[&input], true).unwrap();
        output.write(b"new").unwrap();
        assert_eq!(fs::read(&input).unwrap(), b"new");
        assert!(fs::symlink_metadata(&soft).unwrap().is_symlink());
    }
}
