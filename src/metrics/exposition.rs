//! Labels as they stand in the lines of Prometheus's text format.

/// The value of a label of a line, as it is written, with its escapes.
pub(super) fn label<'a>(line: &'a str, name: &str) -> Option<&'a str> {
    let (_, labels) = line.split_once('{')?;
    let start = format!("{name}=\"");
    let value = labels
        .strip_prefix(&start)
        .or_else(|| Some(labels.split_once(&format!(",{start}"))?.1))?;
    let mut is_escaped = false;
    let end = value.find(|character| {
        let ends = character == '"' && !is_escaped;
        is_escaped = character == '\\' && !is_escaped;
        ends
    })?;
    Some(&value[..end])
}

/// A label's value as it is written.
pub(super) fn escaped(value: &str) -> String {
    value
        .replace('\\', "\\\\")
        .replace('"', "\\\"")
        .replace('\n', "\\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn labels_are_found_by_name_with_their_escapes() {
        let line = "a_bucket{model=\"it\\\"s, le=\",method=\"x\",le=\"0.5\"} 1";
        assert_eq!(label(line, "model"), Some("it\\\"s, le="));
        assert_eq!(label(line, "method"), Some("x"));
        assert_eq!(label(line, "le"), Some("0.5"));
        assert_eq!(label(line, "od"), None);
        assert_eq!(label("a 1", "model"), None);
        assert_eq!(escaped("a\\b\"c\nd"), "a\\\\b\\\"c\\nd");
    }
}
