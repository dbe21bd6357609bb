//! Forms (`multipart/form-data`, RFC 7578): the files in them, and their fields.

use bytes::Bytes;
use memchr::memmem;

/// The most parts of a form: 64 files, and fields.
const MAX_PARTS: usize = 96;
/// The largest head of a part, in bytes.
const MAX_HEAD: usize = 4 << 10;
/// The longest value of a field that is no file, in bytes.
const MAX_FIELD: usize = 8 << 10;
/// The longest boundary (RFC 2046, 5.1.1).
const MAX_BOUNDARY: usize = 70;

/// What a form holds.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Form {
    pub files: Vec<Bytes>,
    /// Names and values.
    pub fields: Vec<(String, String)>,
}

/// The boundary that a content type names, if it is `multipart/form-data`.
///
/// # Errors
/// When there is none, or it can't be one.
pub(super) fn boundary(content_type: &str) -> Option<Result<String, &'static str>> {
    let (kind, parameters) = content_type.split_once(';').unwrap_or((content_type, ""));
    if !kind.trim().eq_ignore_ascii_case("multipart/form-data") {
        return None;
    }
    let found = parameter(parameters, "boundary");
    let is_valid = |boundary: &String| (1..=MAX_BOUNDARY).contains(&boundary.len());
    Some(
        found
            .filter(is_valid)
            .ok_or("the content type multipart/form-data needs a boundary of 1 to 70 characters"),
    )
}

/// The value of a parameter in `a=b; c="d"`.
fn parameter(mut text: &str, name: &str) -> Option<String> {
    while !text.is_empty() {
        let (key, rest) = text.split_once('=')?;
        let key = key.trim_matches([' ', '\t', ';']);
        let (value, rest) = match rest.strip_prefix('"') {
            None => {
                let (value, rest) = rest.split_once(';').unwrap_or((rest, ""));
                (value.trim().to_owned(), rest)
            }
            Some(quoted) => {
                let mut value = String::new();
                let mut characters = quoted.char_indices();
                let end = loop {
                    match characters.next()? {
                        (at, '"') => break at,
                        (_, '\\') => value.push(characters.next()?.1),
                        (_, character) => value.push(character),
                    }
                };
                (value, &quoted[end + 1..])
            }
        };
        if key.eq_ignore_ascii_case(name) {
            return Some(value);
        }
        text = rest;
    }
    None
}

/// Reads a form.
///
/// # Errors
/// What is wrong with it.
pub(super) fn read(body: &Bytes, boundary: &str) -> Result<Form, String> {
    let first = format!("--{boundary}");
    let next = format!("\r\n--{boundary}");
    let next = memmem::Finder::new(&next);
    let cut_off = || "the form ends before its last boundary".to_owned();

    // What stands before the first boundary is to be ignored.
    let start = if body.starts_with(first.as_bytes()) {
        first.len()
    } else {
        next.find(body).ok_or_else(cut_off)? + next.needle().len()
    };
    let mut form = Form::default();
    let mut rest = body.slice(start..);
    for _ in 0..=MAX_PARTS {
        if rest.starts_with(b"--") {
            return Ok(form);
        }
        let line = memmem::find(&rest[..rest.len().min(MAX_HEAD)], b"\r\n").ok_or_else(cut_off)?;
        if !rest[..line].trim_ascii().is_empty() {
            return Err("a boundary of the form is followed by something else".into());
        }
        let head_end = memmem::find(&rest[..rest.len().min(line + MAX_HEAD)], b"\r\n\r\n")
            .ok_or_else(|| {
                format!("a part of the form has no head, or one of over {MAX_HEAD} bytes")
            })?;
        let head = String::from_utf8_lossy(&rest[line..head_end]).into_owned();
        let content = rest.slice(head_end + 4..);
        let end = next.find(&content).ok_or_else(cut_off)?;
        form.add(&head, content.slice(..end))?;
        rest = content.slice(end + next.needle().len()..);
    }
    Err(format!("the form has more than {MAX_PARTS} parts"))
}

impl Form {
    /// Adds a part: a file, if it has a file's name or is called `image` or `images`, or else a field.
    fn add(&mut self, head: &str, content: Bytes) -> Result<(), String> {
        let disposition = head.lines().find_map(|line| {
            let (name, value) = line.split_once(':')?;
            name.trim()
                .eq_ignore_ascii_case("content-disposition")
                .then_some(value)
        });
        let (_, parameters) = disposition
            .and_then(|value| value.split_once(';'))
            .ok_or("a part of the form has no name (Content-Disposition)")?;
        let name = parameter(parameters, "name").ok_or("a part of the form has no name")?;
        let is_file =
            ["image", "images"].contains(&&name[..]) || parameter(parameters, "filename").is_some();
        if is_file {
            self.files.push(content);
            return Ok(());
        }
        if content.len() > MAX_FIELD {
            return Err(format!(
                "a field of the form has more than {MAX_FIELD} bytes"
            ));
        }
        let value = std::str::from_utf8(&content);
        let value = value.map_err(|_| "a field of the form is not UTF-8 text")?;
        self.fields.push((name, value.to_owned()));
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn form(parts: &[(&str, &str)]) -> Bytes {
        let mut text = String::new();
        for (head, content) in parts {
            text += &format!("--b\r\nContent-Disposition: form-data; {head}\r\n\r\n{content}\r\n");
        }
        (text + "--b--\r\n").into()
    }

    #[test]
    fn the_file_and_the_fields_of_a_form_are_found() {
        let body = form(&[
            ("name=\"top_k\"", "3"),
            (
                "name=\"photo\"; filename=\"a; b\\\".jpg\"",
                "\r\n--not the end\r\n",
            ),
        ]);
        let read = read(&body, "b").unwrap();
        assert_eq!(read.files, [&b"\r\n--not the end\r\n"[..]]);
        assert_eq!(read.fields, [("top_k".to_owned(), "3".to_owned())]);
        let with_preamble = Bytes::from([b"ignored\r\n", &body[..]].concat());
        assert_eq!(super::read(&with_preamble, "b").unwrap(), read);
    }

    #[test]
    fn boundaries_are_read_from_the_content_type() {
        let found = |kind| boundary(kind).map(|found| found.unwrap_or_default());
        assert_eq!(found("image/jpeg"), None);
        assert_eq!(
            found("Multipart/Form-Data; boundary=abc"),
            Some("abc".into())
        );
        assert_eq!(
            found("multipart/form-data; charset=utf-8; boundary=\"a;b\""),
            Some("a;b".into())
        );
        for none in [
            "multipart/form-data",
            "multipart/form-data; boundary=",
            "multipart/form-data; boundary=\"abc",
        ] {
            assert_eq!(found(none), Some(String::new()), "{none}");
        }
        let long = format!("multipart/form-data; boundary={}", "a".repeat(71));
        assert_eq!(found(&long), Some(String::new()));
    }

    #[test]
    fn broken_forms_are_refused_wherever_they_are_cut() {
        let body = form(&[("name=\"image\"", "x"), ("name=\"top_k\"", "3")]);
        for end in 0..body.len() - 4 {
            assert!(read(&body.slice(..end), "b").is_err(), "{end}");
        }
        for (parts, expected) in [
            (vec![("name=\"a\"", "x"); 100], "more than 96 parts"),
            (vec![("nothing", "x")], "no name"),
        ] {
            let error = read(&form(&parts), "b").unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
        let long = "x".repeat(9000);
        assert!(read(&form(&[("name=\"a\"", &long)]), "b").is_err());
    }
}
