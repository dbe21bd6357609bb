//! What kind of file some bytes are, from their first few.

use std::fmt;

/// A kind of image file that is accepted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Kind {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
    Pnm,
}

impl Kind {
    /// The accepted kinds, for people.
    pub const ACCEPTED: &'static str = "JPEG, PNG, WebP, GIF, BMP, TIFF or PNM";

    /// The kind of file that starts with these bytes; `None` if it is none of the accepted ones.
    pub fn of(data: &[u8]) -> Option<Self> {
        match data {
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [
                b'R',
                b'I',
                b'F',
                b'F',
                _,
                _,
                _,
                _,
                b'W',
                b'E',
                b'B',
                b'P',
                ..,
            ] => Some(Self::WebP),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            [b'P', b'1'..=b'7', b' ' | b'\t' | b'\r' | b'\n' | b'#', ..] => Some(Self::Pnm),
            // Two letters alone could begin any text; the length of the second header settles it.
            [b'B', b'M', rest @ ..] => match rest.get(12..16) {
                Some(&[12..=124, 0, 0, 0]) => Some(Self::Bmp),
                _ => None,
            },
            _ => None,
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Pnm => "PNM",
        })
    }
}

/// What bytes look like that are none of the accepted kinds, for the message that refuses them.
pub(super) fn looks_like(data: &[u8]) -> Option<&'static str> {
    const MAGIC: &[(&[u8], &str)] = &[
        (b"\xff\x0a", "JPEG XL"),
        (b"\x00\x00\x00\x0cJXL ", "JPEG XL"),
        (b"\x00\x00\x00\x0cjP  ", "JPEG 2000"),
        (b"\xff\x4f\xff\x51", "JPEG 2000"),
        (b"\xff\xd8", "a JPEG that ends after its first bytes"),
        (
            b"\x89PNG",
            "a PNG whose first bytes are damaged, as by a transfer in text mode",
        ),
        (b"%PDF", "PDF"),
        (b"%!PS", "PostScript"),
        (b"8BPS", "a Photoshop document"),
        (b"\x00\x00\x01\x00", "an icon (ICO)"),
        (b"qoif", "QOI"),
        (b"DDS ", "DDS"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"#?RADIANCE", "Radiance HDR"),
        (b"farbfeld", "farbfeld"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x1f\x8b", "gzip"),
        (b"PK\x03\x04", "ZIP"),
        (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
        (b"RIFF", "a RIFF file that is no WebP"),
        (b"OggS", "Ogg"),
        (b"ID3", "MP3"),
    ];
    if let Some((_, name)) = MAGIC.iter().find(|(magic, _)| data.starts_with(magic)) {
        return Some(name);
    }
    if data.get(4..8) == Some(b"ftyp") {
        return Some(match data.get(8..12) {
            Some(b"avif" | b"avis") => "AVIF",
            Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx" | b"mif1" | b"msf1") => {
                "HEIC"
            }
            Some(b"crx ") => "a camera's raw file (CR3)",
            _ => "an MP4 or QuickTime video",
        });
    }
    looks_like_text(data)
}

fn looks_like_text(data: &[u8]) -> Option<&'static str> {
    const EXAMINED: usize = 512;
    let start = &data[..data.len().min(EXAMINED)];
    let text = match std::str::from_utf8(start) {
        Ok(text) => text,
        // The cut may have split a character.
        Err(error) if error.error_len().is_none() => {
            std::str::from_utf8(&start[..error.valid_up_to()]).ok()?
        }
        Err(_) => return None,
    };
    if text.chars().any(|c| c.is_control() && !c.is_whitespace()) {
        return None;
    }
    let text = text
        .trim_start_matches('\u{feff}')
        .trim_start()
        .to_ascii_lowercase();
    Some(
        if text.starts_with("<!doctype html") || text.starts_with("<html") {
            "an HTML page"
        } else if text.contains("<svg") {
            "SVG"
        } else if text.starts_with("<?xml") {
            "XML"
        } else if text.starts_with("data:") {
            "a data: URL, where the image's bytes themselves are expected"
        } else if ["/9j/", "ivborw0kggo", "uklgr", "r0lgod"]
            .iter()
            .any(|prefix| text.starts_with(prefix))
        {
            "base64 text, where the image's bytes themselves are expected"
        } else if text.starts_with("http://")
            || text.starts_with("https://")
            || text.starts_with("file://")
        {
            "a URL, where the image's bytes themselves are expected"
        } else if text.starts_with('{') || text.starts_with('[') {
            "JSON"
        } else {
            "plain text"
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_kinds_are_told_by_their_first_bytes() {
        assert_eq!(Kind::of(b"\xff\xd8\xff\xe0"), Some(Kind::Jpeg));
        assert_eq!(Kind::of(b"\x89PNG\r\n\x1a\n"), Some(Kind::Png));
        assert_eq!(Kind::of(b"RIFF\0\0\0\0WEBPVP8 "), Some(Kind::WebP));
        assert_eq!(Kind::of(b"GIF89a"), Some(Kind::Gif));
        assert_eq!(
            Kind::of(b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"),
            Some(Kind::Bmp)
        );
        assert_eq!(Kind::of(b"MM\0\x2a"), Some(Kind::Tiff));
        assert_eq!(Kind::of(b"P6\n2 2 255\n"), Some(Kind::Pnm));
        assert_eq!(Kind::of(b"BMI is the body mass index."), None);
        assert_eq!(Kind::of(b""), None);
    }

    #[test]
    fn common_mistakes_are_named() {
        assert_eq!(looks_like(b"\0\0\0\x18ftypheic"), Some("HEIC"));
        assert_eq!(looks_like(b"\0\0\0\x18ftypavif"), Some("AVIF"));
        assert_eq!(looks_like(b"<?xml version=\"1.0\"?><svg/>"), Some("SVG"));
        assert_eq!(looks_like(b"<!DOCTYPE html>"), Some("an HTML page"));
        assert_eq!(looks_like(b"%PDF-1.7"), Some("PDF"));
        assert!(looks_like(b"/9j/4AAQSkZJRg").unwrap().starts_with("base64"));
        assert_eq!(looks_like("Grüße".as_bytes()), Some("plain text"));
        assert_eq!(looks_like(b"\x01\x02\x03\x04"), None);
    }
}
