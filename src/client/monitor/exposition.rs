//! A strict parser of Prometheus' text format, version 0.0.4.
//!
//! The format is defined at <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::collections::HashMap;

use thiserror::Error;

/// The longest text that is parsed, 8 MiB, in bytes.
pub const MAX_BYTES: usize = 8 << 20;
/// The most series in one text.
const MAX_SERIES: usize = 100_000;
/// The most labels of one series.
const MAX_LABELS: usize = 64;

/// One time series at the moment of the scrape: labels and a value.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// The labels' names and values, in the order of the text.
    pub labels: Labels,
    /// The value; NaN and the infinities are allowed.
    pub value: f64,
}

impl Series {
    /// The value of the label `name`, or an empty string if there is no such label, which means the
    /// same in Prometheus.
    pub fn label(&self, name: &str) -> &str {
        self.labels
            .iter()
            .find(|(label, _)| label == name)
            .map_or("", |(_, value)| value)
    }

    /// Whether it has all of these labels with these values.
    pub fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels
            .iter()
            .all(|(name, value)| self.label(name) == *value)
    }
}

/// The names and values of a series' labels.
pub type Labels = Vec<(String, String)>;

/// All series of a scrape, by the name of their metric.
pub type Families = HashMap<String, Vec<Series>>;

/// Why a text could not be parsed.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExpositionError {
    /// The text is longer than [`MAX_BYTES`].
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// There are more than 100,000 series.
    #[error("it has more than {MAX_SERIES} series")]
    TooManySeries,
    /// The last line does not end with a line feed.
    #[error("it ends in the middle of a line")]
    CutOff,
    /// A line is malformed.
    #[error("line {line}: {error}")]
    Line {
        /// The line's number, from 1.
        line: usize,
        /// What is wrong with it.
        error: LineError,
    },
}

/// Why a line is malformed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum LineError {
    /// A name is missing. It begins with a letter or `_` and may continue with digits; the name of
    /// a metric may contain colons.
    #[error("expected a name")]
    Name,
    /// A label is not of the form `NAME="VALUE"`.
    #[error("expected = and a value in quotes after a label's name")]
    LabelValue,
    /// A label's value has no closing quote.
    #[error("a label's value has no closing quote")]
    Quote,
    /// An escape other than `\\`, `\"` and `\n`.
    #[error("an unknown escape in a label's value")]
    Escape,
    /// Something other than `,` or `}` follows a label.
    #[error("expected , or }} after a label")]
    LabelEnd,
    /// A label occurs twice.
    #[error("a label occurs twice")]
    DuplicateLabel,
    /// There are more than 64 labels.
    #[error("more than {MAX_LABELS} labels")]
    TooManyLabels,
    /// The value is not a number.
    #[error("expected a number")]
    Number,
    /// Something other than a timestamp, in whole milliseconds, follows the value.
    #[error("expected a timestamp in milliseconds, or nothing, after the value")]
    Timestamp,
    /// An unknown type of metric.
    #[error("expected counter, gauge, histogram, summary or untyped after # TYPE and a name")]
    MetricType,
}

/// Parses the whole text of a scrape.
///
/// # Errors
/// A text that is too long, cut off, or malformed; the error has the line's number.
pub fn parse(text: &str) -> Result<Families, ExpositionError> {
    if text.len() > MAX_BYTES {
        return Err(ExpositionError::TooLong);
    }
    if !text.is_empty() && !text.ends_with('\n') {
        return Err(ExpositionError::CutOff);
    }
    let mut families = Families::new();
    let mut count = 0;
    for (number, line) in text.lines().enumerate() {
        let at = |error| ExpositionError::Line {
            line: number + 1,
            error,
        };
        let line = skip_blanks(line).trim_end();
        if let Some(comment) = line.strip_prefix('#') {
            check_comment(comment).map_err(at)?;
        } else if !line.is_empty() {
            let (name, series) = sample(line).map_err(at)?;
            count += 1;
            if count > MAX_SERIES {
                return Err(ExpositionError::TooManySeries);
            }
            match families.get_mut(name) {
                Some(family) => family.push(series),
                None => {
                    families.insert(name.to_owned(), vec![series]);
                }
            }
        }
    }
    Ok(families)
}

/// Checks a comment: `# TYPE` and `# HELP` must be well formed, any other text is allowed.
fn check_comment(comment: &str) -> Result<(), LineError> {
    let mut words = comment.split_ascii_whitespace();
    let keyword = words.next();
    if !matches!(keyword, Some("TYPE" | "HELP")) {
        return Ok(());
    }
    let (_, rest) = name(words.next().unwrap_or_default(), true)?;
    if !rest.is_empty() {
        return Err(LineError::Name);
    }
    if keyword == Some("TYPE") {
        let types = ["counter", "gauge", "histogram", "summary", "untyped"];
        let known = words.next().is_some_and(|word| types.contains(&word));
        if !known || words.next().is_some() {
            return Err(LineError::MetricType);
        }
    }
    Ok(())
}

/// Parses a line `NAME{LABEL="VALUE",…} NUMBER [TIMESTAMP]`.
fn sample(line: &str) -> Result<(&str, Series), LineError> {
    let (name, rest) = name(line, true)?;
    let (labels, rest) = match skip_blanks(rest).strip_prefix('{') {
        Some(rest) => labels(rest)?,
        None => (Vec::new(), rest),
    };
    let mut words = rest.split_ascii_whitespace();
    let value = number(words.next().unwrap_or_default())?;
    if words
        .next()
        .is_some_and(|timestamp| timestamp.parse::<i64>().is_err())
        || words.next().is_some()
    {
        return Err(LineError::Timestamp);
    }
    Ok((name, Series { labels, value }))
}

/// Parses the labels that follow a `{`, up to the `}`, and returns the rest of the line too.
fn labels(mut rest: &str) -> Result<(Labels, &str), LineError> {
    let mut labels = Labels::new();
    loop {
        rest = skip_blanks(rest);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (label, after) = name(rest, false)?;
        let value = skip_blanks(after)
            .strip_prefix('=')
            .and_then(|after| skip_blanks(after).strip_prefix('"'));
        let (value, after) = quoted(value.ok_or(LineError::LabelValue)?)?;
        if labels.iter().any(|(other, _)| other == label) {
            return Err(LineError::DuplicateLabel);
        }
        if labels.len() == MAX_LABELS {
            return Err(LineError::TooManyLabels);
        }
        labels.push((label.to_owned(), value));
        rest = skip_blanks(after);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return Err(LineError::LabelEnd),
        }
    }
}

/// Parses the text that follows an opening quote, up to the closing one, and resolves its escapes.
/// Returns the rest of the line too.
fn quoted(text: &str) -> Result<(String, &str), LineError> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match characters.next().ok_or(LineError::Quote)?.1 {
                '\\' => '\\',
                '"' => '"',
                'n' => '\n',
                _ => return Err(LineError::Escape),
            }),
            other => value.push(other),
        }
    }
    Err(LineError::Quote)
}

/// Splits off the name that the text begins with.
fn name(text: &str, colons: bool) -> Result<(&str, &str), LineError> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    let (name, rest) = text.split_at(text.find(|c| !part(c)).unwrap_or(text.len()));
    if name.starts_with(|c: char| !c.is_ascii_digit()) {
        Ok((name, rest))
    } else {
        Err(LineError::Name)
    }
}

fn number(text: &str) -> Result<f64, LineError> {
    match text {
        "NaN" => Ok(f64::NAN),
        "+Inf" | "Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        // Rust's parser also accepts `infinity` and other spellings.
        _ if text.contains(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E')) => {
            Err(LineError::Number)
        }
        _ => text.parse().map_err(|_| LineError::Number),
    }
}

fn skip_blanks(text: &str) -> &str {
    text.trim_start_matches([' ', '\t'])
}

#[cfg(test)]
mod tests {
    use std::fmt::Write;

    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn one(line: &str) -> (String, Series) {
        let families =
            parse(&format!("{line}\n")).unwrap_or_else(|error| panic!("{line}: {error}"));
        let (name, mut series) = families.into_iter().next().unwrap();
        assert_eq!(series.len(), 1);
        (name, series.remove(0))
    }

    #[test]
    fn names_labels_values_and_timestamps_are_read() {
        let (name, series) = one(r#"classifier_requests_total{model="a b",code="OK"} 12"#);
        assert_eq!(
            (name.as_str(), series.value),
            ("classifier_requests_total", 12.0)
        );
        assert_eq!(
            (
                series.label("model"),
                series.label("code"),
                series.label("none")
            ),
            ("a b", "OK", "")
        );
        assert!(series.has(&[("code", "OK")]) && !series.has(&[("code", "OK"), ("model", "b")]));
        assert_eq!(one("up 1e-3 1700000000000").1.value, 0.001);
        assert_eq!(one(" job:rate5m\t{ a = \"1\" , } -2.5 ").1.label("a"), "1");
        assert_eq!(one("empty{} 0").1.labels, []);
    }

    #[test]
    fn quotes_backslashes_and_line_ends_are_unescaped() {
        let (_, series) = one(r#"m{path="C:\\dir",text="a \"b\"\nc",brace="},{"} 1"#);
        assert_eq!(series.label("path"), r"C:\dir");
        assert_eq!(series.label("text"), "a \"b\"\nc");
        assert_eq!(series.label("brace"), "},{");
    }

    #[test]
    fn values_that_are_no_numbers_have_their_own_names() {
        assert!(one("m NaN").1.value.is_nan());
        assert_eq!(one("m +Inf").1.value, f64::INFINITY);
        assert_eq!(one("m -Inf").1.value, f64::NEG_INFINITY);
        assert_eq!(one(r#"m_bucket{le="+Inf"} 3"#).1.label("le"), "+Inf");
    }

    #[test]
    fn comments_and_empty_lines_are_no_series() {
        let text = "# HELP m \"anything\" goes {\n# TYPE m counter\n\n# a remark\n#\n\
                    m 1\nm{a=\"b\"} 2\n# EOF\n";
        assert_eq!(parse(text).unwrap()["m"].len(), 2);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn malformed_lines_are_refused_with_their_number() {
        for (line, expected) in [
            ("1m 1", LineError::Name),
            ("{a=\"b\"} 1", LineError::Name),
            ("<html>", LineError::Name),
            ("m", LineError::Number),
            ("m one", LineError::Number),
            ("m infinity", LineError::Number),
            ("m 0x10", LineError::Number),
            ("m 1 2.5", LineError::Timestamp),
            ("m 1 2 3", LineError::Timestamp),
            ("m{a} 1", LineError::LabelValue),
            ("m{a=b} 1", LineError::LabelValue),
            ("m{a:b=\"c\"} 1", LineError::LabelValue),
            ("m{,} 1", LineError::Name),
            ("m{a=\"b} 1", LineError::Quote),
            ("m{a=\"b\\", LineError::Quote),
            (r#"m{a="\t"} 1"#, LineError::Escape),
            (r#"m{a="b" c="d"} 1"#, LineError::LabelEnd),
            (r#"m{a="b",a="c"} 1"#, LineError::DuplicateLabel),
            ("# TYPE m number", LineError::MetricType),
            ("# TYPE m-n gauge", LineError::Name),
            ("# HELP", LineError::Name),
        ] {
            let error = parse(&format!("ok 1\n{line}\n")).unwrap_err();
            let expected = ExpositionError::Line {
                line: 2,
                error: expected,
            };
            assert_eq!(error, expected, "{line}");
        }
    }

    #[test]
    fn a_text_that_is_cut_off_or_too_large_is_refused() {
        assert_eq!(parse("m 1\nm2 12"), Err(ExpositionError::CutOff));
        assert_eq!(
            parse(&"\n".repeat(MAX_BYTES + 1)),
            Err(ExpositionError::TooLong)
        );
        assert_eq!(
            parse(&"m 1\n".repeat(MAX_SERIES + 1)),
            Err(ExpositionError::TooManySeries)
        );
        let labels: String = (0..=MAX_LABELS).map(|i| format!("l{i}=\"\",")).collect();
        assert!(parse(&format!("m{{{labels}}} 1\n")).is_err());
    }

    fn render(metric: &str, series: &Series) -> String {
        let mut line = format!("{metric}{{");
        for (name, value) in &series.labels {
            let value = value
                .replace('\\', r"\\")
                .replace('"', "\\\"")
                .replace('\n', r"\n");
            write!(line, "{name}=\"{value}\",").unwrap();
        }
        match series.value {
            value if value.is_infinite() => {
                writeln!(line, "}} {}Inf", if value > 0.0 { "+" } else { "-" }).unwrap();
            }
            value => writeln!(line, "}} {value}").unwrap(),
        }
        line
    }

    proptest! {
        #[test]
        fn what_is_written_is_read_again(
            metric in "[a-zA-Z_:][a-zA-Z0-9_:]{0,20}",
            values in vec(any::<String>(), 0..8),
            value in any::<f64>(),
        ) {
            let labels = values
                .into_iter()
                .enumerate()
                .map(|(i, value)| (format!("l{i}"), value))
                .collect();
            let series = Series { labels, value };
            let families = parse(&render(&metric, &series)).unwrap();
            prop_assert_eq!(&families[&metric][0].labels, &series.labels);
            let read = families[&metric][0].value;
            prop_assert!(read == value || (read.is_nan() && value.is_nan()));
        }

        #[test]
        fn no_text_breaks_the_parser(text in any::<String>()) {
            let _ = parse(&text);
            let _ = parse(&format!("m{{{text}\n"));
        }
    }
}
