//! Finding shared libraries that `make` fetched, and the newest of several versions.

use std::{
    env, fs,
    path::{Path, PathBuf},
};

/// Folders that may hold a library which `make` fetched, in order of preference.
///
/// `fetched` is its folder relative to a checkout, such as `.runtime/openvino/openvino/libs`. It is
/// looked for beside the program and in all folders above it, so that `target/release/resnet18`
/// finds that of its checkout, and then in the working folder.
pub(super) fn fetched_folders(fetched: &str) -> Vec<PathBuf> {
    let program = env::current_exe().unwrap_or_default();
    let working_folder = env::current_dir().ok();
    folders_for(&program, working_folder.as_deref(), fetched)
}

fn folders_for(program: &Path, working_folder: Option<&Path>, fetched: &str) -> Vec<PathBuf> {
    let mut folders: Vec<PathBuf> = program
        .ancestors()
        .skip(1)
        .map(|folder| folder.join(fetched))
        .collect();

    if let Some(working_folder) = working_folder {
        let folder = working_folder.join(fetched);
        if others_can_write(&folder) {
            tracing::warn!(
                "ignoring {}: other users can write to it, and a library is code that runs in \
                 this program",
                folder.display()
            );
        } else if !folders.contains(&folder) {
            folders.push(folder);
        }
    }
    folders
}

/// Whether users other than this one and root can put files into `folder`.
///
/// A server may be started in a folder that anybody can write to, such as `/tmp`; a library found
/// there would be loaded with the server's permissions.
#[cfg(unix)]
fn others_can_write(folder: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    const WRITABLE_BY_OTHERS: u32 = 0o002;

    let Ok(metadata) = fs::metadata(folder) else {
        // There is nothing to load.
        return false;
    };
    let user = rustix::process::geteuid().as_raw();
    let owner_is_trusted = metadata.uid() == user || metadata.uid() == 0;
    !owner_is_trusted || metadata.mode() & WRITABLE_BY_OTHERS != 0
}

#[cfg(not(unix))]
fn others_can_write(_: &Path) -> bool {
    false
}

/// The library's path with its size and time and those of its folder, where a library may lie that it
/// loads itself.
pub(super) fn stamp_of(library: &Path) -> String {
    let of = |path: &Path| {
        let metadata = fs::metadata(path).ok();
        metadata.map(|found| (found.len(), found.modified().ok()))
    };
    let folder = library.parent().map(of);
    format!("{} {:?} {folder:?}", library.display(), of(library))
}

/// The newest library at `path`, which is the file or its folder. `is_library` tells it by the file's
/// name, which contains a version in a form that differs between operating systems.
pub(super) fn library_at(path: &Path, is_library: impl Fn(&Path) -> bool) -> Option<PathBuf> {
    if path.is_file() {
        return is_library(path).then(|| path.to_owned());
    }
    newest(files_in(path).filter(|file| is_library(file)))
}

/// The files in `folder`; none if it can't be read.
pub(super) fn files_in(folder: &Path) -> impl Iterator<Item = PathBuf> {
    fs::read_dir(folder)
        .into_iter()
        .flatten()
        .filter_map(|entry| Some(entry.ok()?.path()))
}

/// The file whose name contains the newest version: 1.10 is newer than 1.7.
pub(super) fn newest(files: impl Iterator<Item = PathBuf>) -> Option<PathBuf> {
    files.max_by_key(|path| (version_numbers(path), path.clone()))
}

/// All numbers in the file's name, in their order.
fn version_numbers(path: &Path) -> Vec<u64> {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    name.split(|c: char| !c.is_ascii_digit())
        .filter_map(|number| number.parse().ok())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_newest_of_several_libraries_is_found_by_its_version() {
        let newest_of = |names: &[&str]| newest(names.iter().map(PathBuf::from)).unwrap();
        assert_eq!(
            newest_of(&["a/lib.so.1.7.1", "a/lib.so.1.10.0", "a/lib.so.1.9"]),
            PathBuf::from("a/lib.so.1.10.0")
        );
        assert_eq!(
            newest_of(&["lib.so", "lib.so.2640"]),
            PathBuf::from("lib.so.2640")
        );
        assert_eq!(newest(std::iter::empty()), None);
    }

    #[test]
    fn folders_above_the_program_come_before_the_working_folder() {
        let found = folders_for(
            Path::new("/checkout/target/resnet18"),
            Some(Path::new("/elsewhere")),
            ".runtime/a",
        );
        let expected = [
            "/checkout/target/.runtime/a",
            "/checkout/.runtime/a",
            "/.runtime/a",
            "/elsewhere/.runtime/a",
        ];
        assert_eq!(found, expected.map(PathBuf::from));
    }

    #[cfg(unix)]
    #[test]
    fn a_working_folder_that_others_can_write_to_is_ignored() {
        use std::os::unix::fs::PermissionsExt;

        let working = tempfile::tempdir().unwrap();
        let libraries = working.path().join(".runtime");
        fs::create_dir(&libraries).unwrap();
        for (mode, expected) in [(0o755, 1), (0o777, 0)] {
            fs::set_permissions(&libraries, fs::Permissions::from_mode(mode)).unwrap();
            let found = folders_for(Path::new(""), Some(working.path()), ".runtime");
            assert_eq!(found.len(), expected, "mode {mode:o}");
        }
    }
}
