//! The chunks of WebP files: how large the picture is, and the images that it is made of.

mod codes;

use self::codes::MAX_TABLE_BYTES;
use super::{
    ImageError, ImageFormat,
    budget::Budget,
    outline::{Outline, area},
};

/// A chunk of a RIFF file.
#[derive(Clone, Copy)]
struct Chunk<'a> {
    kind: [u8; 4],
    data: &'a [u8],
    /// Whether the file holds all of it.
    is_whole: bool,
}

/// The most chunks of a file. Each costs some time, however small it is.
const MAX_CHUNKS: usize = 1 << 16;

/// The header of the file, before its chunks.
const HEADER: usize = 12;

/// Iterates over the chunks of a file; the last one may be cut short.
fn chunks(mut rest: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    std::iter::from_fn(move || {
        let (&[a, b, c, d, ref length @ ..], after) = rest.split_first_chunk::<8>()?;
        let length = u32::from_le_bytes(*length) as usize;
        let data = &after[..length.min(after.len())];
        rest = after.get(length.next_multiple_of(2)..).unwrap_or_default();
        Some(Chunk {
            kind: [a, b, c, d],
            data,
            is_whole: data.len() == length,
        })
    })
}

/// What one coded image needs.
#[derive(Clone, Copy, Default)]
struct Coded<'a> {
    width: u32,
    height: u32,
    lossless: bool,
    alpha: bool,
    /// What begins with the prefix codes of lossless data: of the picture, or of its alpha.
    codes: Option<&'a [u8]>,
}

/// The size of a lossy image, from its frame header (RFC 6386, 9.1).
fn lossy(data: &[u8]) -> Option<Coded<'_>> {
    let [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1] = *data.first_chunk::<10>()? else {
        return None;
    };
    Some(Coded {
        width: (u16::from_le_bytes([w0, w1]) & 0x3fff).into(),
        height: (u16::from_le_bytes([h0, h1]) & 0x3fff).into(),
        ..Coded::default()
    })
}

/// The size of a lossless image, from its header (RFC 9649, 3.4).
fn lossless(data: &[u8]) -> Option<Coded<'_>> {
    let [0x2f, bits @ ..] = *data.first_chunk::<5>()? else {
        return None;
    };
    let bits = u32::from_le_bytes(bits);
    Some(Coded {
        width: (bits & 0x3fff) + 1,
        height: (bits >> 14 & 0x3fff) + 1,
        lossless: true,
        alpha: bits >> 28 & 1 != 0,
        codes: data.get(5..),
    })
}

/// The first coded image among chunks, and whether a plane of alpha comes with it.
fn coded(data: &[u8]) -> Option<Coded<'_>> {
    let mut alpha = false;
    let mut codes = None;
    for chunk in chunks(data) {
        match &chunk.kind {
            b"ALPH" => {
                alpha = true;
                // The lowest bits say how it is compressed.
                codes = match chunk.data {
                    [info, data @ ..] if info & 3 == 1 => Some(data),
                    _ => None,
                };
            }
            b"VP8 " => {
                return lossy(chunk.data).map(|coded| Coded {
                    alpha,
                    codes,
                    ..coded
                });
            }
            b"VP8L" => return lossless(chunk.data),
            _ => {}
        }
    }
    None
}

/// A file's picture, and the image that it is made of.
struct Picture<'a> {
    width: u32,
    height: u32,
    /// The coded image: of an animation, its first frame.
    image: Coded<'a>,
    animated: bool,
}

/// Reads the headers of a file; `None` if there is no image.
fn picture(encoded: &[u8]) -> Option<Picture<'_>> {
    let file = encoded.get(HEADER..)?;
    let first = chunks(file).next()?;
    if &first.kind != b"VP8X" {
        let image = coded(file)?;
        return Some(Picture {
            width: image.width,
            height: image.height,
            image,
            animated: false,
        });
    }

    let &[flags, _, _, _, w0, w1, w2, h0, h1, h2] = first.data.first_chunk::<10>()?;
    let side = |a, b, c| u32::from_le_bytes([a, b, c, 0]) + 1;
    let animated = flags & 2 != 0;
    let image = if animated {
        let frame = chunks(file).find(|chunk| &chunk.kind == b"ANMF")?;
        coded(frame.data.get(16..)?)?
    } else {
        coded(file)?
    };
    Some(Picture {
        width: side(w0, w1, w2),
        height: side(h0, h1, h2),
        image: Coded {
            alpha: image.alpha || flags & 0x10 != 0,
            ..image
        },
        animated,
    })
}

/// The EXIF block of a file.
pub(super) fn exif(encoded: &[u8]) -> Option<&[u8]> {
    let mut chunks = chunks(encoded.get(HEADER..)?);
    // Only the extended format has one.
    chunks.next().filter(|chunk| &chunk.kind == b"VP8X")?;
    let block = chunks.find(|chunk| &chunk.kind == b"EXIF")?;
    block.is_whole.then_some(block.data)
}

/// Rejects an image that is larger than the picture says, or has prefix codes for which a decoder
/// would reserve very much memory, and a file of very many chunks.
pub(super) fn check(encoded: &[u8], budget: &Budget) -> Result<(), ImageError> {
    let damaged = |reason| {
        Err(ImageError::Damaged {
            format: ImageFormat::WebP,
            reason,
        })
    };
    let file = encoded.get(HEADER..).unwrap_or_default();
    if chunks(file).nth(MAX_CHUNKS).is_some() {
        return damaged(format!("it has more than {MAX_CHUNKS} chunks"));
    }
    let Some(Picture {
        width,
        height,
        image,
        ..
    }) = picture(encoded)
    else {
        return Ok(());
    };
    if image.width > width || image.height > height {
        return damaged(format!(
            "its image is {}x{} pixels where the file says {width}x{height}",
            image.width, image.height
        ));
    }
    budget.config().check_size(width, height)?;
    if image
        .codes
        .is_some_and(|data| codes::exceed_memory(data, image.width, image.height, budget))
    {
        return damaged(format!(
            "the tables of its prefix codes take more than {MAX_TABLE_BYTES} bytes"
        ));
    }
    Ok(())
}

/// Reads the size of the picture, and what its coded image needs.
pub(super) fn outline(encoded: &[u8]) -> Option<Outline> {
    let Picture {
        width,
        height,
        image,
        animated,
    } = picture(encoded)?;
    let canvas = area(width, height);
    let coded_pixels = area(image.width, image.height);
    // Lossy images are decoded to planes first, and a plane of alpha from four bytes to one; the
    // transforms of a lossless one have up to a byte for each pixel.
    let (bytes, per_pixel, per_byte) = match (image.lossless, image.alpha) {
        (false, false) => (2, 50, 250),
        (false, true) => (8, 75, 250),
        (true, false) => (6, 20, 60),
        (true, true) => (2, 20, 60),
    };
    // A frame of an animation is decoded for itself and drawn onto a canvas.
    let drawn = if animated {
        4 * canvas + 4 * coded_pixels
    } else {
        0
    };
    Some(Outline {
        width,
        height,
        bytes_per_pixel: if image.alpha { 4 } else { 3 },
        working_bytes: bytes * coded_pixels
            + drawn
            + (32 * encoded.len() as u64).min(MAX_TABLE_BYTES)
            + (256 << 10),
        nanoseconds: per_pixel * coded_pixels + 4 * canvas + per_byte * encoded.len() as u64,
        ..Outline::default()
    })
}
