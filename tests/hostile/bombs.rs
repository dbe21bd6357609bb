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
        ("QOI", qoi(side, side, b"")),
        ("HEIC", resized("cat.heic", side, side)),
        ("AVIF", resized("cat.avif", side, side)),
        (
            "AVIF with the longest sides",
            resized("cat.avif", u32::MAX, u32::MAX),
        ),
        ("AVIF of tiles", resized("avif/tiles.avif", side, side)),
    ]
}

/// A HEIC or AVIF file of the tests whose container states another size of its pictures.
fn resized(name: &str, width: u32, height: u32) -> Vec<u8> {
    let mut file = std::fs::read(super::data(name)).unwrap();
    let places: Vec<_> = file
        .windows(4)
        .enumerate()
        .filter(|(_, kind)| kind == b"ispe")
        .map(|(at, _)| at + 8)
        .collect();
    for at in places {
        file[at..at + 4].copy_from_slice(&width.to_be_bytes());
        file[at + 4..at + 8].copy_from_slice(&height.to_be_bytes());
    }
    file
}

/// A QOI file of three channels.
fn qoi(width: u32, height: u32, pixels: &[u8]) -> Vec<u8> {
    [
        b"qoif",
        &width.to_be_bytes()[..],
        &height.to_be_bytes(),
        &[3, 0],
        pixels,
        &[0, 0, 0, 0, 0, 0, 0, 1],
    ]
    .concat()
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
        ("a QOI of 8000x7990", qoi(8000, 7990, &[0; 64])),
        ("a HEIC of 8000x7990", resized("cat.heic", 8000, 7990)),
        ("an AVIF of 8000x7990", resized("cat.avif", 8000, 7990)),
        (
            "a WebP of 8000x7990",
            webp(
                b"VP8X",
                &[&[0; 4], &[0x3f, 0x1f, 0, 0x35, 0x1f, 0][..]].concat(),
            ),
        ),
    ]
}

/// Files of few pixels, or of very many parts, whose decoding would cost much; each with a part of
/// the reason for which it is rejected.
pub fn rejected_by_their_structure() -> Vec<(&'static str, Vec<u8>, &'static str)> {
    let mut many_chunks = png(1, 1, 0);
    many_chunks.splice(33..33, chunk(b"IDAT", b"").repeat(70_000));
    let mut many_segments = std::fs::read(super::data("cat.jpg")).unwrap();
    many_segments.splice(2..2, b"\xff\xfe\0\x02".repeat(5_000));
    let mut many_scans = progressive(2000, 2000, 1);
    many_scans.truncate(many_scans.len() - 2);
    let scan = many_scans[frame_header(&many_scans) + 2..]
        .windows(2)
        .position(|pair| pair == [0xff, 0xda])
        .unwrap();
    let scan = many_scans[frame_header(&many_scans) + 2 + scan..].to_vec();
    many_scans.extend(scan.repeat(999));
    many_scans.extend([0xff, 0xd9]);
    let large_lossy = b"\x30\x01\x00\x9d\x01\x2a\xff\x3f\xff\x3f";
    let canvas = [&[0; 4], &[9, 0, 0, 9, 0, 0][..]].concat();
    vec![
        ("a PNG of 70,000 empty chunks", many_chunks, "65536 chunks"),
        (
            "a GIF whose frame is larger than its screen",
            gif_with_frame([1, 1], [SIDE, SIDE], b""),
            "more than the 64000000 allowed",
        ),
        (
            "a GIF of 70,000 empty extensions",
            gif_with_frame([1, 1], [1, 1], &b"!\xfe\0".repeat(70_000)),
            "65536 blocks",
        ),
        (
            "a WebP whose image is larger than its canvas",
            webp_of(&[(b"VP8X", &canvas), (b"VP8 ", large_lossy)]),
            "where the file says 10x10",
        ),
        (
            "a WebP of 70,000 empty chunks",
            webp_of(&vec![(b"junk", &b""[..]); 70_000]),
            "65536 chunks",
        ),
        (
            "a JPEG of 5,000 empty comments",
            many_segments,
            "4096 segments",
        ),
        ("a JPEG of 1,000 scans", many_scans, "too much work"),
        (
            "an AVIF of 5,000 parts",
            with_more_units(&b"\x7a\0".repeat(5_000)),
            "4096 parts",
        ),
        (
            "an AVIF of 1,000 frames",
            with_more_units(&b"\x32\0".repeat(1_000)),
            "8 frames",
        ),
        (
            "a TIFF whose strips are the same",
            shared_strips(1000),
            "overlap",
        ),
    ]
}

/// An AVIF file with these units at the end of its picture's data, which is the end of the file.
fn with_more_units(units: &[u8]) -> Vec<u8> {
    let mut file = std::fs::read(super::data("avif/yuv420.avif")).unwrap();
    // The item's extent: its offset and its length, of four bytes each.
    let place = file.windows(4).position(|kind| kind == b"iloc").unwrap();
    let data = file.windows(4).position(|kind| kind == b"mdat").unwrap() + 4;
    let length = (file.len() - data) as u32;
    let extent = [(data as u32).to_be_bytes(), length.to_be_bytes()].concat();
    let entry = place
        + file[place..]
            .windows(8)
            .position(|bytes| bytes == extent)
            .unwrap();
    let length = length + units.len() as u32;
    file[entry + 4..entry + 8].copy_from_slice(&length.to_be_bytes());
    file[data - 8..data - 4].copy_from_slice(&(length + 8).to_be_bytes());
    file.extend(units);
    file
}

/// The sides of the pictures of [`flat`].
pub const FLAT: [u16; 2] = [3000, 2990];

/// Files of few bytes and many pixels, of every format that can do that.
pub fn flat() -> Vec<(&'static str, Vec<u8>)> {
    let [width, height] = FLAT;
    let mut png = Vec::new();
    PngEncoder::new(Cursor::new(&mut png))
        .write_image(
            &vec![7; 3 * usize::from(width) * usize::from(height)],
            width.into(),
            height.into(),
            ExtendedColorType::Rgb8,
        )
        .unwrap();
    // One symbol for each code, so that no pixel takes a bit.
    let size = u32::from(width - 1) | u32::from(height - 1) << 14;
    let codes = b"\x07\x10\x11\xfd\x0fDD\xff\x03";
    let lossless = [&[0x2f][..], &size.to_le_bytes(), codes].concat();
    // Runs of 62 pixels, of one byte each.
    let pixels = usize::from(width) * usize::from(height);
    let mut runs = vec![0xfd; pixels / 62];
    runs.push(0xc0 | (pixels % 62 - 1) as u8);
    // Runs of 128 pixels.
    let mut targa = [&[0, 0, 10][..], &[0; 9]].concat();
    targa.extend(width.to_le_bytes());
    targa.extend(height.to_le_bytes());
    targa.extend([24, 0x20]);
    targa.extend([0xff, 9, 9, 9].repeat(pixels / 128));
    targa.extend([0x80 | (pixels % 128 - 1) as u8, 9, 9, 9]);
    vec![
        (
            "an AVIF",
            std::fs::read(super::data("bombs/flat.avif")).unwrap(),
        ),
        ("a QOI", qoi(width.into(), height.into(), &runs)),
        ("a TGA", targa),
        ("a PNG", png),
        ("a WebP", webp_of(&[(b"VP8L", &lossless)])),
        ("a JPEG", flat_jpeg(width, height)),
        ("a progressive JPEG", progressive(width, height, 1)),
        (
            "a progressive JPEG of 9 scans",
            progressive(width, height, 9),
        ),
    ]
}

/// A gray JPEG file all of whose coefficients are 0: every code is a single bit.
fn flat_jpeg(width: u16, height: u16) -> Vec<u8> {
    let blocks = usize::from(width).div_ceil(8) * usize::from(height).div_ceil(8);
    // A bit for the DC coefficient of each block and one for the end of the others.
    let data = vec![0; (2 * blocks).div_ceil(8)];
    [
        jpeg_header(0xc0, width, height),
        b"\xff\xda\0\x08\x01\x01\0\0\x3f\0".to_vec(),
        data,
        vec![0xff, 0xd9],
    ]
    .concat()
}

/// A gray progressive JPEG file with this many scans, all of DC coefficients that are 0.
fn progressive(width: u16, height: u16, scans: usize) -> Vec<u8> {
    let blocks = usize::from(width).div_ceil(8) * usize::from(height).div_ceil(8);
    let scan = [
        &b"\xff\xda\0\x08\x01\x01\0\0\0\0"[..],
        &vec![0; blocks.div_ceil(8)],
    ]
    .concat();
    [
        jpeg_header(0xc2, width, height),
        scan.repeat(scans),
        vec![0xff, 0xd9],
    ]
    .concat()
}

/// What comes before the first scan of a gray file: tables, whose only codes are one bit for 0.
fn jpeg_header(frame: u8, width: u16, height: u16) -> Vec<u8> {
    let code = |class: u8| [&[0xff, 0xc4, 0, 0x14, class, 1], &[0; 16][..]].concat();
    [
        &b"\xff\xd8\xff\xdb\0\x43\0"[..],
        &[1; 64],
        &[0xff, frame, 0, 11, 8],
        &height.to_be_bytes(),
        &width.to_be_bytes(),
        &[1, 1, 0x11, 0],
        &code(0),
        &code(0x10),
    ]
    .concat()
}

/// A TIFF file whose strips all begin at the same bytes.
fn shared_strips(strips: u32) -> Vec<u8> {
    let arrays = 8 + 2 + 8 * 12 + 4;
    let data = arrays + 8 * strips;
    let mut file = b"II\x2a\0\x08\0\0\0\x08\0".to_vec();
    let mut entry = |tag: u16, count: u32, value: u32| {
        file.extend(tag.to_le_bytes());
        file.extend(b"\x04\0");
        file.extend(count.to_le_bytes());
        file.extend(value.to_le_bytes());
    };
    entry(256, 1, 16);
    entry(257, 1, strips);
    entry(258, 1, 8);
    entry(259, 1, 32773);
    entry(262, 1, 1);
    entry(273, strips, arrays);
    entry(278, 1, 1);
    entry(279, strips, arrays + 4 * strips);
    file.extend([0; 4]);
    file.extend(data.to_le_bytes().repeat(strips as usize));
    file.extend(8192u32.to_le_bytes().repeat(strips as usize));
    // Codes that do nothing, and a row.
    file.extend([0x80; 8190]);
    file.extend([0xf1, 7]);
    file
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

/// Where the frame header of a JPEG file is.
fn frame_header(file: &[u8]) -> usize {
    file.windows(2)
        .position(|pair| pair[0] == 0xff && matches!(pair[1], 0xc0..=0xc2))
        .unwrap()
}

/// A photo whose frame header states this size.
fn jpeg(width: u16, height: u16) -> Vec<u8> {
    let mut file = std::fs::read(super::data("cat.jpg")).unwrap();
    let frame = frame_header(&file);
    file[frame + 5..frame + 7].copy_from_slice(&height.to_be_bytes());
    file[frame + 7..frame + 9].copy_from_slice(&width.to_be_bytes());
    file
}

fn gif(width: u16, height: u16) -> Vec<u8> {
    gif_with_frame([width, height], [width, height], b"")
}

/// A file with a screen and a frame of these sizes, and with these extensions before the frame.
fn gif_with_frame(screen: [u16; 2], frame: [u16; 2], extensions: &[u8]) -> Vec<u8> {
    let [screen, frame] = [screen, frame].map(|sides| sides.map(u16::to_le_bytes).concat());
    [
        b"GIF89a",
        &screen[..],
        b"\x80\0\0\0\0\0\xff\xff\xff",
        extensions,
        b"\x2c\0\0\0\0",
        &frame,
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
    let mut file = webp_of(&[(kind, data)]);
    file.extend([0; 32]);
    file
}

/// A file of these chunks.
fn webp_of(chunks: &[(&[u8; 4], &[u8])]) -> Vec<u8> {
    let mut body = b"WEBP".to_vec();
    for (kind, data) in chunks {
        body.extend(*kind);
        body.extend((data.len() as u32).to_le_bytes());
        body.extend(*data);
        body.resize(body.len().next_multiple_of(2), 0);
    }
    [b"RIFF", &(body.len() as u32).to_le_bytes()[..], &body].concat()
}
