//! TGA files, which have no mark by which they are known: a header that makes sense as a whole, and
//! as much data as it tells of.

use super::outline::{Outline, area};

const HEADER: usize = 18;

/// The pixels that a run of equal ones may have.
const LONGEST_RUN: u64 = 128;

/// What a header says.
struct Header {
    width: u32,
    height: u32,
    /// The bytes of a pixel, or of its index.
    pixel_bytes: u64,
    has_runs: bool,
    /// The bytes before the pixels.
    start: usize,
}

impl Header {
    /// Reads a header; `None` if a part of it makes no sense.
    fn read(encoded: &[u8]) -> Option<Self> {
        let header: &[u8; HEADER] = encoded.first_chunk()?;
        let number = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let (map_kind, kind, depth, descriptor) = (header[1], header[2], header[16], header[17]);
        let (map_start, map_length, map_depth) = (number(3), number(5), header[7]);
        let (width, height) = (number(12), number(14));

        // The kinds from 9 on are those with runs.
        let is_indexed = match (kind & !8, depth) {
            (1, 8) => true,
            (2, 16 | 24 | 32) | (3, 8 | 16) => false,
            _ => return None,
        };
        let map_fits = if is_indexed {
            map_kind == 1 && map_length > 0 && matches!(map_depth, 15 | 16 | 24 | 32)
        } else {
            // Some programs leave numbers of a colour map that isn't there.
            map_kind == 0 && map_start == 0 && map_length == 0
        };
        // The lowest bits of the descriptor are those of alpha, the highest are not used.
        let alpha_fits = match depth {
            8 | 24 => matches!(descriptor & 15, 0 | 8),
            16 => matches!(descriptor & 15, 0 | 1 | 8),
            _ => matches!(descriptor & 15, 0 | 8),
        };
        if !map_fits || !alpha_fits || descriptor & 0xc0 != 0 || width == 0 || height == 0 {
            return None;
        }
        let map_bytes = if is_indexed {
            usize::from(map_length) * usize::from(map_depth.div_ceil(8))
        } else {
            0
        };
        Some(Self {
            width: width.into(),
            height: height.into(),
            pixel_bytes: u64::from(depth / 8),
            has_runs: kind >= 9,
            start: HEADER + usize::from(header[0]) + map_bytes,
        })
    }
}

/// Whether a file is likely to be a TGA: whole, as far as its length tells.
pub(super) fn is_likely(encoded: &[u8]) -> bool {
    let Some(header) = Header::read(encoded) else {
        return false;
    };
    let pixels = area(header.width, header.height);
    let least = if header.has_runs {
        pixels.div_ceil(LONGEST_RUN) * (1 + header.pixel_bytes)
    } else {
        pixels * header.pixel_bytes
    };
    encoded.len() as u64 >= header.start as u64 + least
}

/// Reads the header.
pub(super) fn outline(encoded: &[u8]) -> Option<Outline> {
    let header = Header::read(encoded)?;
    let pixels = area(header.width, header.height);
    Some(Outline {
        width: header.width,
        height: header.height,
        bytes_per_pixel: 4,
        // Indices are kept beside the pixels, and a colour map.
        working_bytes: 2 * pixels + (256 << 10),
        nanoseconds: 8 * pixels + 4 * encoded.len() as u64,
        ..Outline::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A file of 3 by 2 pixels.
    fn file(kind: u8, depth: u8, data: usize) -> Vec<u8> {
        let mut file = vec![
            0, 0, kind, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3, 0, 2, 0, depth, 0x20,
        ];
        file.resize(file.len() + data, 7);
        file
    }

    #[test]
    fn only_whole_files_with_a_sensible_header_are_taken_for_tga() {
        assert!(is_likely(&file(2, 24, 18)));
        assert!(is_likely(&file(10, 24, 4)));
        assert!(is_likely(&file(3, 8, 6)));
        assert!(!is_likely(&file(2, 24, 17)), "it ends early");
        assert!(!is_likely(&file(10, 24, 3)), "it ends early");
        assert!(!is_likely(&file(4, 24, 18)), "no such kind");
        assert!(!is_likely(&file(2, 8, 18)), "no such depth of colours");
        assert!(!is_likely(&file(1, 8, 18)), "indices without a colour map");

        let with = |at: usize, value: u8| {
            let mut file = file(2, 24, 300);
            file[at] = value;
            is_likely(&file)
        };
        assert!(!with(1, 1), "a colour map that isn't needed");
        assert!(!with(5, 1), "a colour map that isn't there");
        assert!(!with(12, 0), "no columns");
        assert!(!with(17, 0x40), "bits that aren't used");
        assert!(with(0, 200), "a text before the pixels");
    }

    #[test]
    fn other_files_are_not_taken_for_tga() {
        let zeros = [0; 4096];
        let ones = [1; 4096];
        let icon = [b"\0\0\x01\0\x01\0\x10\x10", &zeros[..]].concat();
        let cursor = [b"\0\0\x02\0\x01\0\x10\x10", &zeros[..]].concat();
        let video = [b"\0\0\x01\xba\x44\0\x04\0", &zeros[..]].concat();
        let font = [b"\0\x01\0\0\0\x0c\0\x80", &zeros[..]].concat();
        for other in [
            &zeros[..],
            &ones,
            &icon,
            &cursor,
            &video,
            &font,
            b"plain text",
            b"",
        ] {
            assert!(!is_likely(other), "{:?}", &other[..other.len().min(8)]);
        }
    }
}
