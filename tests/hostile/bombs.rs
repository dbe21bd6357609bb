//! Image bombs: small files that claim huge images or decompress to much data.

use std::io::Cursor;

use image::{ExtendedColorType, ImageEncoder, codecs::png::PngEncoder};

/// The longest side that JPEG and GIF headers can state.
const SIDE: u16 = 65_535;

/// A file of every format whose header states sides as long as possible.
pub fn headers() -> Vec<(&'static str, Vec<u8>)> {
    let side = u32::from(SIDE);
    let strip: &[u8] = &[0; 64];
    vec![
        ("JPEG", jpeg(SIDE, SIDE)),
        ("PNG", png(side, side, 0)),
        (
            "PNG with the longest sides",
            png(i32::MAX as u32, i32::MAX as u32, 6),
        ),
        ("GIF", gif(SIDE, SIDE)),
        ("BMP", bmp(i32::from(SIDE), i32::from(SIDE))),
        ("BMP from top to bottom", bmp(i32::MAX, i32::MIN)),
        ("TIFF", tiff(side, side, strip)),
        (
            "TIFF with the longest sides",
            tiff(u32::MAX, u32::MAX, strip),
        ),
        ("TIFF whose strip is everything", tiff(60, u32::MAX, strip)),
        (
            "WebP, extended",
            webp(b"VP8X", &[&[0; 4], &[0xff; 6][..]].concat()),
        ),
        (
            "WebP, lossless",
            webp(b"VP8L", &[0x2f, 0xff, 0xff, 0xff, 0x0f]),
        ),
        (
            "WebP, lossy",
            webp(b"VP8 ", b"\x30\x01\x00\x9d\x01\x2a\xff\x3f\xff\x3f"),
        ),
        ("PNM", format!("P6\n{side} {side}\n255\n").into_bytes()),
        (
            "PNM with the longest sides",
            format!("P5\n{0} {0}\n65535\n", u32::MAX).into_bytes(),
        ),
        (
            "PAM",
            format!(
                "P7\nWIDTH {side}\nHEIGHT {side}\nDEPTH 4\nMAXVAL 255\nTUPLTYPE RGB_ALPHA\nENDHDR\n"
            )
            .into_bytes(),
        ),
    ]
}

/// Files with just fewer pixels than the limit, or with few pixels and large metadata.
pub fn within_the_limit() -> Vec<(&'static str, Vec<u8>)> {
    let (width, height) = (8000, 7990);
    let zeros = vec![0; width as usize * height as usize];
    let mut large = Vec::new();
    PngEncoder::new(Cursor::new(&mut large))
        .write_image(&zeros, width, height, ExtendedColorType::L8)
        .unwrap();

    // The compressed rows of the large PNG serve as metadata of a small one.
    let inflating = idat(&large);
    let profile = [b"profile\0\0", &inflating[..]].concat();
    let text = [b"Comment\0\0", &inflating[..]].concat();
    let hiding = |kind, data: &[u8]| {
        let mut file = png(1, 1, 0);
        file.splice(33..33, chunk(kind, data));
        file
    };
    vec![
        ("a PNG of 8000x7990 zeros", large),
        ("a profile of 64 MB", hiding(b"iCCP", &profile)),
        ("a text of 64 MB", hiding(b"zTXt", &text)),
        ("a JPEG of 8000x7990", jpeg(8000, 7990)),
        ("a GIF of 8000x7990", gif(8000, 7990)),
        ("a TIFF of 8000x7990", tiff(8000, 7990, &[0; 64])),
        (
            "a WebP of 8000x7990",
            webp(
                b"VP8X",
                &[&[0; 4], &[0x3f, 0x1f, 0, 0x35, 0x1f, 0][..]].concat(),
            ),
        ),
    ]
}

/// A chunk of a PNG file.
fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let body = [kind, data].concat();
    [
        &(data.len() as u32).to_be_bytes(),
        &body[..],
        &crc32fast::hash(&body).to_be_bytes(),
    ]
    .concat()
}

fn png(width: u32, height: u32, colour: u8) -> Vec<u8> {
    let header = [
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &[8, colour, 0, 0, 0],
    ]
    .concat();
    // One empty row, compressed with deflate.
    let data = b"\x78\x9c\x63\x60\x00\x00\x00\x02\x00\x01";
    [
        b"\x89PNG\r\n\x1a\n".to_vec(),
        chunk(b"IHDR", &header),
        chunk(b"IDAT", data),
        chunk(b"IEND", b""),
    ]
    .concat()
}

/// The concatenated content of a PNG's IDAT chunks.
fn idat(mut png: &[u8]) -> Vec<u8> {
    let mut data = Vec::new();
    png = &png[8..];
    while let [a, b, c, d, rest @ ..] = png {
        let length = u32::from_be_bytes([*a, *b, *c, *d]) as usize;
        if rest.starts_with(b"IDAT") {
            data.extend(&rest[4..4 + length]);
        }
        png = &rest[4 + length + 4..];
    }
    data
}

/// A photo whose frame header states this size.
fn jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut file = std::fs::read(super::data("cat.jpg")).unwrap();
    let frame = file
        .windows(2)
        .position(|pair| pair[0] == 0xff && matches!(pair[1], 0xc0..=0xc2))
        .unwrap();
    file[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    file[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    file
}

fn gif(width: u16, height: u16) -> Vec<u8> {
    let size = [width.to_le_bytes(), height.to_le_bytes()].concat();
    [
        b"GIF89a",
        &size[..],
        b"\x80\0\0\0\0\0\xff\xff\xff\x2c\0\0\0\0",
        &size,
        b"\0\x02\x02\x44\x01\0\x3b",
    ]
    .concat()
}

fn bmp(width: i32, height: i32) -> Vec<u8> {
    let head = [
        &b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0"[..],
        &width.to_le_bytes(),
        &height.to_le_bytes(),
    ]
    .concat();
    [&head[..], b"\x01\0\x18\0\0\0\0\0", &[0; 16], &[0; 64]].concat()
}

/// An uncompressed grey image in one strip.
fn tiff(width: u32, height: u32, strip: &[u8]) -> Vec<u8> {
    let entries: [(u16, u32); 8] = [
        (256, width),
        (257, height),
        (258, 8),
        (259, 1),
        (262, 1),
        (273, 8 + 2 + 8 * 12 + 4),
        (278, height),
        (279, width.saturating_mul(height)),
    ];
    let mut file = b"II\x2a\0\x08\0\0\0\x08\0".to_vec();
    for (tag, value) in entries {
        file.extend(
            [
                &tag.to_le_bytes()[..],
                b"\x04\0\x01\0\0\0",
                &value.to_le_bytes(),
            ]
            .concat(),
        );
    }
    [&file[..], &[0; 4], strip].concat()
}

fn webp(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
    let padded = [data, &vec![0; data.len() % 2][..]].concat();
    let body = [
        b"WEBP",
        &kind[..],
        &(data.len() as u32).to_le_bytes(),
        &padded,
        &[0; 32],
    ]
    .concat();
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}
