//! PNG files: what is read of their chunks, what is skipped, and the types of their pixels.

use std::{
    borrow::Cow,
    io::{BufRead, Seek},
};

use png::{BitDepth, ColorType, Decoder, DecodingError, Limits, Reader, Transformations};

use super::{
    Exif, ImageError, ImageFormat,
    orientation::Orientation,
    outline::{Outline, area},
    pixels::PixelLayout,
};

/// A chunk, with its length before it and its checksum after it.
struct Chunk<'a> {
    kind: [u8; 4],
    data: &'a [u8],
    /// The whole chunk as it is in the file.
    whole: &'a [u8],
}

const SIGNATURE: usize = 8;

/// The most chunks of a file.
const MAX_CHUNKS: usize = 1 << 16;
/// The most bytes that a byte can be inflated to.
const MAX_EXPANSION: u64 = 1040;

/// Iterates over the complete chunks of a file.
fn chunks(encoded: &[u8]) -> impl Iterator<Item = Chunk<'_>> {
    let mut rest = encoded.get(SIGNATURE..).unwrap_or_default();
    std::iter::from_fn(move || {
        let (&[a, b, c, d, ref kind @ ..], _) = rest.split_first_chunk::<8>()?;
        let length = u32::from_be_bytes([a, b, c, d]) as usize;
        let (whole, after) = rest.split_at_checked(length.checked_add(12)?)?;
        rest = after;
        Some(Chunk {
            kind: *kind,
            data: &whole[8..8 + length],
            whole,
        })
    })
}

/// The EXIF block of a file, which some programs write after the pixels.
pub(super) fn exif(encoded: &[u8]) -> Option<&[u8]> {
    chunks(encoded)
        .find(|chunk| &chunk.kind == b"eXIf")
        .map(|chunk| chunk.data)
}

/// Whether a chunk has no effect on the pixels of the first image: profiles and texts, which a
/// decoder would decompress, further frames of an animation, and everything else that may be
/// ignored (PNG, third edition, 5.4), but for transparency.
fn is_metadata(chunk: &Chunk<'_>) -> bool {
    chunk.kind[0].is_ascii_lowercase() && &chunk.kind != b"tRNS"
}

/// Rejects a file of very many chunks. Each costs some time, however small it is.
pub(super) fn check(encoded: &[u8]) -> Result<(), ImageError> {
    if chunks(encoded).nth(MAX_CHUNKS).is_some() {
        return Err(ImageError::Damaged {
            format: ImageFormat::Png,
            reason: format!("it has more than {MAX_CHUNKS} chunks"),
        });
    }
    Ok(())
}

/// The file without its metadata.
pub(super) fn without_metadata(encoded: &[u8]) -> Cow<'_, [u8]> {
    if !chunks(encoded).any(|chunk| is_metadata(&chunk)) {
        return Cow::Borrowed(encoded);
    }
    let mut file = Vec::with_capacity(encoded.len());
    file.extend_from_slice(&encoded[..SIGNATURE]);
    let mut read = SIGNATURE;
    for chunk in chunks(encoded) {
        read += chunk.whole.len();
        if !is_metadata(&chunk) {
            file.extend_from_slice(chunk.whole);
        }
    }
    // What follows the last complete chunk shows that the file is truncated.
    file.extend_from_slice(&encoded[read..]);
    Cow::Owned(file)
}

/// Opens a file whose pixels are to have 8 or 16 bits per channel.
pub(super) fn open<R: BufRead + Seek>(
    reader: R,
    max_bytes: u64,
) -> Result<Reader<R>, DecodingError> {
    let bytes = usize::try_from(max_bytes).unwrap_or(usize::MAX);
    let mut decoder = Decoder::new_with_limits(reader, Limits { bytes });
    decoder.set_transformations(Transformations::EXPAND);
    decoder.read_info()
}

/// The layout of a decoded pixel, and whether its channels have 16 bits; `None` if it is none that
/// the decoder is asked for.
pub(super) fn layout<R: BufRead + Seek>(reader: &Reader<R>) -> Option<(PixelLayout, bool)> {
    let (colour, depth) = reader.output_color_type();
    let layout = match colour {
        ColorType::Grayscale => PixelLayout::Gray,
        ColorType::GrayscaleAlpha => PixelLayout::GrayAlpha,
        ColorType::Rgb => PixelLayout::Rgb,
        ColorType::Rgba => PixelLayout::Rgba,
        ColorType::Indexed => return None,
    };
    match depth {
        BitDepth::Eight => Some((layout, false)),
        BitDepth::Sixteen => Some((layout, true)),
        _ => None,
    }
}

/// Scales samples of 16 bits to 8, rounding to the nearest value.
pub(super) fn reduce_row(row: &[u8], target: &mut [u8]) {
    for (target, sample) in target.iter_mut().zip(row.as_chunks().0) {
        *target = reduce(*sample);
    }
}

/// Like [`reduce_row`], in place.
pub(super) fn reduce_to_8_bits(data: &mut Vec<u8>) {
    let samples = data.len() / 2;
    for index in 0..samples {
        data[index] = reduce([data[2 * index], data[2 * index + 1]]);
    }
    data.truncate(samples);
}

fn reduce(sample: [u8; 2]) -> u8 {
    ((u32::from(u16::from_be_bytes(sample)) * 255 + 32_767) / 65_535) as u8
}

/// Reads the header, and whether the pixels are transparent.
pub(super) fn outline(encoded: &[u8], settings: Exif) -> Option<Outline> {
    let mut before_pixels = chunks(encoded)
        .take(MAX_CHUNKS)
        .take_while(|chunk| &chunk.kind != b"IDAT");
    let header = before_pixels
        .next()
        .filter(|chunk| &chunk.kind == b"IHDR")?;
    let &[
        w0,
        w1,
        w2,
        w3,
        h0,
        h1,
        h2,
        h3,
        bits,
        colour,
        _,
        _,
        interlaced,
    ] = header.data.first_chunk::<13>()?;
    let is_transparent = before_pixels.any(|chunk| &chunk.kind == b"tRNS");
    let channels = match (colour, is_transparent) {
        (0, false) => 1,
        (0, true) | (4, _) => 2,
        (2 | 3, false) => 3,
        _ => 4,
    };

    let (width, height) = (
        u32::from_be_bytes([w0, w1, w2, w3]),
        u32::from_be_bytes([h0, h1, h2, h3]),
    );
    let bytes_per_pixel = if bits == 16 { 2 * channels } else { channels };
    let row = u64::from(width) * bytes_per_pixel;
    let bytes = area(width, height) * bytes_per_pixel;
    let passes = if interlaced == 0 { 1 } else { 2 };
    let turned = settings == Exif::Apply
        && exif(encoded).is_some_and(|block| Orientation::from_exif_block(block).swapped);
    Some(Outline {
        width,
        height,
        // Only interlaced pictures of 16 bits are kept in them.
        bytes_per_pixel: if interlaced == 0 {
            channels
        } else {
            bytes_per_pixel
        },
        // The window of what has been inflated, and rows before their filters are undone; and the
        // file again where metadata is left out.
        working_bytes: 4 * row + encoded.len() as u64 + (512 << 10),
        nanoseconds: (3 * passes * bytes.min(MAX_EXPANSION * encoded.len() as u64))
            .saturating_add(20 * encoded.len() as u64),
        by_rows: interlaced == 0 && !turned,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chunk(kind: &[u8; 4], data: &[u8]) -> Vec<u8> {
        [&(data.len() as u32).to_be_bytes()[..], kind, data, b"CRC!"].concat()
    }

    #[test]
    fn metadata_is_left_out_and_exif_found_after_the_pixels() {
        let parts = [
            b"signatur".to_vec(),
            chunk(b"IHDR", &[1; 13]),
            chunk(b"iCCP", &[2; 40]),
            chunk(b"IDAT", &[3; 9]),
            chunk(b"tEXt", b""),
            chunk(b"eXIf", b"MM"),
            b"\0\0\0\x09IEN".to_vec(),
        ];
        let kept = [0, 1, 3, 6].map(|index| parts[index].clone()).concat();
        let whole = parts.concat();
        assert_eq!(without_metadata(&whole), kept);
        assert!(matches!(without_metadata(&kept), Cow::Borrowed(_)));
        assert_eq!(exif(&whole), Some(&b"MM"[..]));
        assert_eq!(exif(&whole[..60]), None);
        assert_eq!(exif(b"\x89PNG"), None);
    }
}
