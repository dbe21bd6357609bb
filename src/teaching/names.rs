//! Names of datasets and classes: they become folders, and so must be safe as parts of a path.

/// The longest name, in bytes.
const MAX_BYTES: usize = 64;

/// A name that is not used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "the name of the {what} {}; it takes letters, digits, `-`, `_` and spaces inside, begins with a \
     letter or a digit, and has at most {MAX_BYTES} bytes",
    problem(name)
)]
pub struct BadName {
    what: &'static str,
    name: String,
}

fn problem(name: &str) -> String {
    match name {
        "" => "is empty".into(),
        name if name.len() > MAX_BYTES => format!("has {} bytes", name.len()),
        name => format!("is \"{}\"", name.escape_debug()),
    }
}

/// Whether the name may be that of a folder.
///
/// # Errors
/// The rules, if it may not.
pub fn check(what: &'static str, name: &str) -> Result<(), BadName> {
    let is_inside = |c: char| c.is_alphanumeric() || matches!(c, '-' | '_' | ' ');
    let is_good = name.len() <= MAX_BYTES
        && name.starts_with(char::is_alphanumeric)
        && name.chars().all(is_inside)
        && !name.ends_with(' ');
    if is_good {
        Ok(())
    } else {
        Err(BadName {
            what,
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_are_safe_as_paths_are_taken() {
        for good in ["cup", "my cup 2", "Tasse_grün", "1-2", &"x".repeat(64)] {
            assert_eq!(check("class", good), Ok(()), "{good}");
        }
        let long = "x".repeat(65);
        for bad in [
            "", " cup", "cup ", ".", "..", "../cup", "a/b", "a\\b", "a\0b", "a\nb", ".hidden",
            "-x", "_x", "a.onnx", "C:", "~", &long,
        ] {
            let error = check("class", bad).unwrap_err().to_string();
            assert!(error.starts_with("the name of the class"), "{error}");
            assert!(error.len() < 400 && !error.contains('\n'), "{error}");
        }
    }
}
