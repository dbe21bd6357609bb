//! Identifies the format of a file by its first bytes.

use std::{fmt, fs::File, io::Read, path::Path};

use super::tga;
use crate::files::has_image_name;

/// An accepted image file format.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ImageFormat {
    Jpeg,
    Png,
    WebP,
    Gif,
    Bmp,
    Tiff,
    Pnm,
    /// As phones take photos: HEVC pictures in a HEIF container.
    Heic,
    /// AV1 pictures in the same container.
    Avif,
    Qoi,
    Ico,
    Tga,
}

impl ImageFormat {
    /// The names of the accepted formats, for messages.
    pub const ACCEPTED: &'static str =
        "JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, HEIC, AVIF, QOI, ICO or TGA";

    /// Identifies the format of a file by its first bytes; `None` if it is not an accepted one.
    pub fn of(data: &[u8]) -> Option<Self> {
        if data.starts_with(b"RIFF") && data.get(8..12) == Some(b"WEBP") {
            return Some(Self::WebP);
        }
        if data.get(4..8) == Some(b"ftyp") {
            // The first brand says what the file is, or else one of the others.
            return match data.get(8..12) {
                Some(b"heic" | b"heix" | b"heim" | b"heis" | b"hevc" | b"hevx") => Some(Self::Heic),
                Some(b"avif" | b"avis") => Some(Self::Avif),
                Some(b"mif1" | b"msf1") if has_brand(data, &[*b"avif", *b"avis"]) => {
                    Some(Self::Avif)
                }
                Some(b"mif1" | b"msf1") => Some(Self::Heic),
                _ => None,
            };
        }

        match data {
            [0xff, 0xd8, 0xff, ..] => Some(Self::Jpeg),
            [0x89, b'P', b'N', b'G', b'\r', b'\n', 0x1a, b'\n', ..] => Some(Self::Png),
            [b'G', b'I', b'F', b'8', b'7' | b'9', b'a', ..] => Some(Self::Gif),
            [b'I', b'I', 42 | 43, 0, ..] | [b'M', b'M', 0, 42 | 43, ..] => Some(Self::Tiff),
            [b'P', b'1'..=b'7', b' ' | b'\t' | b'\r' | b'\n' | b'#', ..] => Some(Self::Pnm),
            // Any text could begin with these two letters, so the length of the DIB header, which
            // follows the file header, is checked as well.
            [b'B', b'M', rest @ ..] => match rest.get(12..16) {
                Some(&[12..=124, 0, 0, 0]) => Some(Self::Bmp),
                _ => None,
            },
            [b'q', b'o', b'i', b'f', ..] => Some(Self::Qoi),
            // The number of pictures is not zero, and the fourth byte of the first one is.
            [0, 0, 1, 0, low, high, _, _, _, 0, ..] if *low > 0 || *high > 0 => Some(Self::Ico),
            // They have no mark, so all others are looked for first.
            _ if looks_like(data).is_none() && tga::is_likely(data) => Some(Self::Tga),
            _ => None,
        }
    }
}

impl fmt::Display for ImageFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::WebP => "WebP",
            Self::Gif => "GIF",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
            Self::Pnm => "PNM",
            Self::Heic => "HEIC",
            Self::Avif => "AVIF",
            Self::Qoi => "QOI",
            Self::Ico => "ICO",
            Self::Tga => "TGA",
        })
    }
}

/// Whether the first box of a file names one of these brands after its first one.
fn has_brand(data: &[u8], brands: &[[u8; 4]]) -> bool {
    let length = data
        .first_chunk()
        .map_or(0, |size| u32::from_be_bytes(*size));
    let end = data.len().min(length as usize);
    let others = data.get(16..end).unwrap_or_default();
    others
        .as_chunks()
        .0
        .iter()
        .any(|brand| brands.contains(brand))
}

/// Whether a file in a folder of photos is an image: by its name, or, if that has no extension, by
/// its first bytes. A file with the name of an image may still be damaged.
pub fn is_image_file(path: &Path) -> bool {
    if path.extension().is_some() {
        return has_image_name(path);
    }
    let mut start = [0; 32];
    let read = File::open(path).and_then(|mut file| file.read(&mut start));
    read.is_ok_and(|len| ImageFormat::of(&start[..len]).is_some())
}

/// Names what the data of a rejected file looks like, for the error message.
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
        (b"DDS ", "DDS"),
        (b"\x76\x2f\x31\x01", "OpenEXR"),
        (b"#?RADIANCE", "Radiance HDR"),
        (b"farbfeld", "farbfeld"),
        (b"\x93NUMPY", "a NumPy array"),
        (b"\x1f\x8b", "gzip"),
        (b"PK\x03\x04", "ZIP"),
        (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
        (b"RIFF", "a RIFF file, but not WebP"),
        (b"OggS", "Ogg"),
        (b"ID3", "MP3"),
    ];

    if let Some((_, name)) = MAGIC.iter().find(|(magic, _)| data.starts_with(magic)) {
        return Some(name);
    }

    // The ISO base media file format: the brand says what the file is.
    if data.get(4..8) == Some(b"ftyp") {
        let name = match data.get(8..12) {
            Some(b"crx ") => "a camera's raw file (CR3)",
            _ => "an MP4 or QuickTime video",
        };
        return Some(name);
    }

    looks_like_text(data)
}

/// Names the kind of text that the data is; `None` for binary data.
fn looks_like_text(data: &[u8]) -> Option<&'static str> {
    const EXAMINED_BYTES: usize = 512;
    /// The first characters of JPEG, PNG, WebP and GIF files in base64, in lower case.
    const BASE64_PREFIXES: [&str; 4] = ["/9j/", "ivborw0kggo", "uklgr", "r0lgod"];
    const URL_SCHEMES: [&str; 3] = ["http://", "https://", "file://"];

    let start = &data[..data.len().min(EXAMINED_BYTES)];
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
    let starts_with_any =
        |prefixes: &[&str]| prefixes.iter().any(|prefix| text.starts_with(prefix));

    let name = if starts_with_any(&["<!doctype html", "<html"]) {
        "an HTML page"
    } else if text.contains("<svg") {
        "SVG"
    } else if text.starts_with("<?xml") {
        "XML"
    } else if text.starts_with("data:") {
        "a data: URL, where the image's bytes themselves are expected"
    } else if starts_with_any(&BASE64_PREFIXES) {
        "base64 text, where the image's bytes themselves are expected"
    } else if starts_with_any(&URL_SCHEMES) {
        "a URL, where the image's bytes themselves are expected"
    } else if starts_with_any(&["{", "["]) {
        "JSON"
    } else {
        "plain text"
    };
    Some(name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepted_formats_are_identified_by_their_first_bytes() {
        assert_eq!(
            ImageFormat::of(b"\xff\xd8\xff\xe0"),
            Some(ImageFormat::Jpeg)
        );
        assert_eq!(
            ImageFormat::of(b"\x89PNG\r\n\x1a\n"),
            Some(ImageFormat::Png)
        );
        assert_eq!(
            ImageFormat::of(b"RIFF\0\0\0\0WEBPVP8 "),
            Some(ImageFormat::WebP)
        );
        assert_eq!(ImageFormat::of(b"GIF89a"), Some(ImageFormat::Gif));
        assert_eq!(
            ImageFormat::of(b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"),
            Some(ImageFormat::Bmp)
        );
        assert_eq!(ImageFormat::of(b"MM\0\x2a"), Some(ImageFormat::Tiff));
        assert_eq!(ImageFormat::of(b"P6\n2 2 255\n"), Some(ImageFormat::Pnm));
        assert_eq!(
            ImageFormat::of(b"\0\0\0\x18ftypavif"),
            Some(ImageFormat::Avif)
        );
        let general = b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf";
        assert_eq!(ImageFormat::of(general), Some(ImageFormat::Avif));
        assert_eq!(ImageFormat::of(&general[..20]), Some(ImageFormat::Heic));
        assert_eq!(ImageFormat::of(b"qoif\0\0\0\x01"), Some(ImageFormat::Qoi));
        let icon = b"\0\0\x01\0\x01\0\x10\x10\0\0\x01\0\x20\0";
        assert_eq!(ImageFormat::of(icon), Some(ImageFormat::Ico));
        assert_eq!(ImageFormat::of(b"\0\0\x01\0\0\0\x10\x10\0\0"), None);
        let targa = b"\0\0\x03\0\0\0\0\0\0\0\0\0\x01\0\x01\0\x08\0\xff";
        assert_eq!(ImageFormat::of(targa), Some(ImageFormat::Tga));
        assert_eq!(ImageFormat::of(b"BMI is the body mass index."), None);
        assert_eq!(ImageFormat::of(b""), None);
    }

    #[test]
    fn common_mistakes_are_named() {
        assert_eq!(
            looks_like(b"\0\0\0\x18ftypcrx "),
            Some("a camera's raw file (CR3)")
        );
        assert_eq!(looks_like(b"<?xml version=\"1.0\"?><svg/>"), Some("SVG"));
        assert_eq!(looks_like(b"<!DOCTYPE html>"), Some("an HTML page"));
        assert_eq!(looks_like(b"%PDF-1.7"), Some("PDF"));
        assert!(looks_like(b"/9j/4AAQSkZJRg").unwrap().starts_with("base64"));
        assert_eq!(looks_like("Grüße".as_bytes()), Some("plain text"));
        assert_eq!(looks_like(b"\x01\x02\x03\x04"), None);
    }
}
