//! Versions as the protocol's tools expect them: decimal numbers.

/// The version that names whatever is served: tools ask for the first one of a repository.
const FIRST: &str = "1";

/// A model's version as a decimal number: the hash of its content in other digits, so that it is
/// the same on every replica. It is positive and fits into 48 bits.
pub(super) fn number(hash: &str) -> String {
    let number = u64::from_str_radix(hash, 16).unwrap_or_default();
    number.max(1).to_string()
}

/// Whether `asked` means the version with this hash: its number, the hash itself, or any version.
pub(super) fn matches(asked: &str, hash: &str) -> bool {
    asked.is_empty() || asked == FIRST || asked == hash || asked == number(hash)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_the_hash_as_a_decimal_number() {
        assert_eq!(number("00000000000a"), "10");
        assert_eq!(number("ffffffffffff"), "281474976710655");
        assert!(number("ffffffffffff").parse::<i64>().is_ok());
        assert_eq!(number("000000000000"), "1", "0 is no version");
    }

    #[test]
    fn the_newest_version_has_several_names() {
        for asked in ["", "1", "10", "00000000000a"] {
            assert!(matches(asked, "00000000000a"), "{asked}");
        }
        for other in ["2", "0", "-1", "a", "010", "10 ", "+10"] {
            assert!(!matches(other, "00000000000a"), "{other}");
        }
    }
}
