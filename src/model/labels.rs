//! Class names: files of labels, and the names of ImageNet-1k.

use std::path::Path;

use super::ModelError;
use crate::files;

/// The name, in a dataset, of the class for images that belong to none of the other classes.
pub const UNKNOWN_LABEL: &str = "nothing of these";

/// The names of ImageNet-1k's 1000 classes, in the order of the published models' logits.
pub fn imagenet() -> Vec<String> {
    include_str!("../../models/imagenet_classes.txt")
        .lines()
        .map(str::to_owned)
        .collect()
}

/// Reads a file of labels: UTF-8 text with one label on each line, in the order of the classes.
///
/// White space around labels and blank lines at the end are ignored, and so is a byte order mark.
///
/// # Errors
/// A file that cannot be read, is not UTF-8 or contains no label; a blank line between labels.
pub fn read_labels(path: &Path) -> Result<Vec<String>, ModelError> {
    let wrong = |reason: String| ModelError::LabelFile {
        path: path.to_owned(),
        reason,
    };
    let content = files::read_limited(path, files::LARGEST_TEXT)
        .map_err(|error| wrong(format!("the labels cannot be read: {}", error.reason)))?;
    let text = str::from_utf8(&content).map_err(|error| {
        let line = content[..error.valid_up_to()]
            .iter()
            .filter(|&&byte| byte == b'\n')
            .count()
            + 1;
        wrong(format!(
            "line {line} is not UTF-8; labels are text, one label on each line"
        ))
    })?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text).trim_end();
    if text.is_empty() {
        return Err(wrong(
            "holds no labels; one label on each line is needed".into(),
        ));
    }
    let labels: Vec<String> = text.lines().map(|line| line.trim().to_owned()).collect();
    match labels.iter().position(String::is_empty) {
        Some(blank) => Err(wrong(format!(
            "line {} is blank; every line must hold one label",
            blank + 1
        ))),
        None => Ok(labels),
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn read(content: &[u8]) -> Result<Vec<String>, String> {
        let file = tempfile::NamedTempFile::new().unwrap();
        fs::write(file.path(), content).unwrap();
        read_labels(file.path()).map_err(|error| error.to_string())
    }

    #[test]
    fn one_label_a_line_is_trimmed() {
        assert_eq!(
            read(b"\xef\xbb\xbfcat\r\n  sea lion \r\ndog\r\n\r\n").unwrap(),
            ["cat", "sea lion", "dog"]
        );
    }

    #[test]
    fn blank_lines_in_the_middle_are_named() {
        assert!(
            read(b"cat\n\ndog\n")
                .unwrap_err()
                .contains("line 2 is blank")
        );
    }

    #[test]
    fn empty_foreign_and_missing_files_are_refused() {
        assert!(read(b" \n\n").unwrap_err().contains("holds no labels"));
        assert!(
            read(b"cat\ncaf\xe9\n")
                .unwrap_err()
                .contains("line 2 is not UTF-8")
        );
        assert!(
            read_labels(Path::new("/no/such/file"))
                .unwrap_err()
                .to_string()
                .contains("cannot be read")
        );
    }

    #[test]
    fn imagenet_has_a_thousand_names() {
        let names = imagenet();
        assert_eq!(names.len(), 1000);
        assert_eq!(
            (names[0].as_str(), names[285].as_str()),
            ("tench", "Egyptian cat")
        );
        assert!(names.iter().all(|name| !name.trim().is_empty()));
    }
}
