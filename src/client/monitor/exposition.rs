//! A strict parser of Prometheus' text format, version 0.0.4: one scrape → its series.
//!
//! The format: <https://prometheus.io/docs/instrumenting/exposition_formats/>.

use std::collections::HashMap;

use thiserror::Error;

/// The longest text that is parsed, in bytes.
pub const MAX_BYTES: usize = 8 << 20;
/// The most series in one text.
const MAX_SERIES: usize = 100_000;
const MAX_LABELS: usize = 64;

/// One value with its labels.
#[derive(Clone, Debug, PartialEq)]
pub struct Series {
    /// Names and values, in the order of the text.
    pub labels: Labels,
    /// The value; NaN and the infinities are allowed.
    pub value: f64,
}

impl Series {
    /// The value of a label, empty when there is none of that name.
    pub fn label(&self, name: &str) -> &str {
        self.labels
            .iter()
            .find(|(label, _)| label == name)
            .map_or("", |(_, value)| value)
    }

    /// Whether it has all these labels.
    pub fn has(&self, labels: &[(&str, &str)]) -> bool {
        labels
            .iter()
            .all(|(name, value)| self.label(name) == *value)
    }
}

/// Names and values of labels.
pub type Labels = Vec<(String, String)>;

/// All series by the name of their metric.
pub type Families = HashMap<String, Vec<Series>>;

/// Why a text is not in the format.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
pub enum ExpositionError {
    /// More than is parsed.
    #[error("it is longer than {MAX_BYTES} bytes")]
    TooLong,
    /// More than is kept.
    #[error("it has more than {MAX_SERIES} series")]
    TooManySeries,
    /// The end is missing.
    #[error("it ends in the middle of a line")]
    CutOff,
    /// One line is wrong.
    #[error("line {line}: {problem}")]
    Line {
        /// Its number, from 1.
        line: usize,
        /// What is wrong.
        problem: Problem,
    },
}

/// What is wrong with a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Error)]
pub enum Problem {
    /// Names begin with a letter or `_`, then come digits too; a metric's may have colons.
    #[error("expected a name")]
    Name,
    /// `NAME="VALUE"`.
    #[error("expected = and a value in quotes after a label's name")]
    LabelValue,
    /// A value that does not end.
    #[error("a label's value has no closing quote")]
    Quote,
    /// Only `\\`, `\"` and `\n` are known.
    #[error("an unknown escape in a label's value")]
    Escape,
    /// After a label.
    #[error("expected , or }} after a label")]
    LabelEnd,
    /// The same label twice.
    #[error("a label is there twice")]
    DuplicateLabel,
    /// More labels than a series may have.
    #[error("more than {MAX_LABELS} labels")]
    TooManyLabels,
    /// No number.
    #[error("expected a number")]
    Number,
    /// A timestamp is whole milliseconds.
    #[error("expected a timestamp in milliseconds, or nothing, after the value")]
    Timestamp,
    /// A kind that does not exist.
    #[error("expected counter, gauge, histogram, summary or untyped after # TYPE and a name")]
    Kind,
}

/// Parses a whole scrape.
///
/// # Errors
/// Text that is too long, cut off, or not in the format; the number of the line is told.
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
        let at = |problem| ExpositionError::Line {
            line: number + 1,
            problem,
        };
        let line = blank(line).trim_end();
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

/// `# TYPE` and `# HELP` have to be well formed; any other comment is free.
fn check_comment(comment: &str) -> Result<(), Problem> {
    let mut words = comment.split_ascii_whitespace();
    let keyword = words.next();
    if !matches!(keyword, Some("TYPE" | "HELP")) {
        return Ok(());
    }
    let (_, rest) = name(words.next().unwrap_or_default(), true)?;
    if !rest.is_empty() {
        return Err(Problem::Name);
    }
    if keyword == Some("TYPE") {
        let kind = (words.next(), words.next());
        if !matches!(
            kind,
            (
                Some("counter" | "gauge" | "histogram" | "summary" | "untyped"),
                None
            )
        ) {
            return Err(Problem::Kind);
        }
    }
    Ok(())
}

/// `NAME{LABEL="VALUE",…} NUMBER [TIMESTAMP]`
fn sample(line: &str) -> Result<(&str, Series), Problem> {
    let (name, rest) = name(line, true)?;
    let (labels, rest) = match blank(rest).strip_prefix('{') {
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
        return Err(Problem::Timestamp);
    }
    Ok((name, Series { labels, value }))
}

/// What follows `{`, up to `}`; also returns what comes after that.
fn labels(mut rest: &str) -> Result<(Labels, &str), Problem> {
    let mut labels = Labels::new();
    loop {
        rest = blank(rest);
        if let Some(rest) = rest.strip_prefix('}') {
            return Ok((labels, rest));
        }
        let (label, after) = name(rest, false)?;
        let value = blank(after)
            .strip_prefix('=')
            .and_then(|after| blank(after).strip_prefix('"'));
        let (value, after) = quoted(value.ok_or(Problem::LabelValue)?)?;
        if labels.iter().any(|(other, _)| other == label) {
            return Err(Problem::DuplicateLabel);
        }
        if labels.len() == MAX_LABELS {
            return Err(Problem::TooManyLabels);
        }
        labels.push((label.to_owned(), value));
        rest = blank(after);
        match rest.strip_prefix(',') {
            Some(after) => rest = after,
            None if rest.starts_with('}') => {}
            None => return Err(Problem::LabelEnd),
        }
    }
}

/// What follows a quote, without its escapes, up to the closing quote; also returns what comes
/// after that.
fn quoted(text: &str) -> Result<(String, &str), Problem> {
    let mut value = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '"' => return Ok((value, &text[at + 1..])),
            '\\' => value.push(match characters.next().ok_or(Problem::Quote)?.1 {
                '\\' => '\\',
                '"' => '"',
                'n' => '\n',
                _ => return Err(Problem::Escape),
            }),
            other => value.push(other),
        }
    }
    Err(Problem::Quote)
}

/// The name that the text begins with, and the rest.
fn name(text: &str, colons: bool) -> Result<(&str, &str), Problem> {
    let part = |c: char| c.is_ascii_alphanumeric() || c == '_' || (colons && c == ':');
    let (name, rest) = text.split_at(text.find(|c| !part(c)).unwrap_or(text.len()));
    match name.starts_with(|c: char| !c.is_ascii_digit()) {
        true => Ok((name, rest)),
        false => Err(Problem::Name),
    }
}

fn number(text: &str) -> Result<f64, Problem> {
    match text {
        "NaN" => Ok(f64::NAN),
        "+Inf" | "Inf" => Ok(f64::INFINITY),
        "-Inf" => Ok(f64::NEG_INFINITY),
        // Rust would also take `infinity` and other spellings.
        _ if text.contains(|c: char| c.is_ascii_alphabetic() && !matches!(c, 'e' | 'E')) => {
            Err(Problem::Number)
        }
        _ => text.parse().map_err(|_| Problem::Number),
    }
}

fn blank(text: &str) -> &str {
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
        let text = "# HELP m \"anything\" goes {\n# TYPE m counter\n\n# a remark\n#\nm 1\nm{a=\"b\"} 2\n# EOF\n";
        assert_eq!(parse(text).unwrap()["m"].len(), 2);
        assert!(parse("").unwrap().is_empty());
    }

    #[test]
    fn what_is_not_in_the_format_is_refused_with_its_line() {
        for (line, problem) in [
            ("1m 1", Problem::Name),
            ("{a=\"b\"} 1", Problem::Name),
            ("<html>", Problem::Name),
            ("m", Problem::Number),
            ("m one", Problem::Number),
            ("m infinity", Problem::Number),
            ("m 0x10", Problem::Number),
            ("m 1 2.5", Problem::Timestamp),
            ("m 1 2 3", Problem::Timestamp),
            ("m{a} 1", Problem::LabelValue),
            ("m{a=b} 1", Problem::LabelValue),
            ("m{a:b=\"c\"} 1", Problem::LabelValue),
            ("m{,} 1", Problem::Name),
            ("m{a=\"b} 1", Problem::Quote),
            ("m{a=\"b\\", Problem::Quote),
            (r#"m{a="\t"} 1"#, Problem::Escape),
            (r#"m{a="b" c="d"} 1"#, Problem::LabelEnd),
            (r#"m{a="b",a="c"} 1"#, Problem::DuplicateLabel),
            ("# TYPE m number", Problem::Kind),
            ("# TYPE m-n gauge", Problem::Name),
            ("# HELP", Problem::Name),
        ] {
            let error = parse(&format!("ok 1\n{line}\n")).unwrap_err();
            assert_eq!(error, ExpositionError::Line { line: 2, problem }, "{line}");
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
                writeln!(line, "}} {}Inf", if value > 0.0 { "+" } else { "-" }).unwrap()
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
            let labels = values.into_iter().enumerate().map(|(i, value)| (format!("l{i}"), value)).collect();
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
