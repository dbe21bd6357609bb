//! The chunks of PNG files: metadata that is skipped, and the orientation wherever it is.

use std::borrow::Cow;

use super::estimate::{Outline, area};

/// A chunk, with its length before it and its checksum after it.
struct Chunk<'a> {
    kind: [u8; 4],
    data: &'a [u8],
    /// The whole chunk as it is in the file.
    whole: &'a [u8],
}

const SIGNATURE: usize = 8;

/// The chunks that are looked at for the header.
const MAX_CHUNKS: usize = 4096;
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

/// The file without its profile and texts, which a decoder would decompress.
pub(super) fn without_metadata(encoded: &[u8]) -> Cow<'_, [u8]> {
    let is_metadata =
        |chunk: &Chunk<'_>| matches!(&chunk.kind, b"iCCP" | b"iTXt" | b"tEXt" | b"zTXt");
    if !chunks(encoded).any(|chunk| is_metadata(&chunk)) {
        return Cow::Borrowed(encoded);
    }
    let mut file = encoded[..SIGNATURE].to_vec();
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

/// Reads the header, and whether the pixels are transparent.
pub(super) fn outline(encoded: &[u8]) -> Option<Outline> {
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
    Some(Outline {
        width,
        height,
        bytes_per_pixel,
        // The window of what has been inflated, and rows before their filters are undone; and the
        // file again where metadata is left out.
        working_bytes: 4 * row + encoded.len() as u64 + (512 << 10),
        nanoseconds: (5 * passes * bytes.min(MAX_EXPANSION * encoded.len() as u64))
            .saturating_add(5 * encoded.len() as u64),
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
        let kept = [0, 1, 3, 5, 6].map(|index| parts[index].clone()).concat();
        assert_eq!(without_metadata(&parts.concat()), kept);
        assert!(matches!(without_metadata(&kept), Cow::Borrowed(_)));
        assert_eq!(exif(&kept), Some(&b"MM"[..]));
        assert_eq!(exif(&kept[..60]), None);
        assert_eq!(exif(b"\x89PNG"), None);
    }
}
