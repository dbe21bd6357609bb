//! The blocks of GIF files: where the first frame is, and how large.

use super::estimate::{Outline, area};

/// The blocks of extensions that may come before the first frame, each of up to 255 bytes. Every
/// block costs some time, however small it is.
const MAX_BLOCKS: usize = 1 << 16;

/// The size of the first frame, in pixels; `None` if the file has none or too many blocks before
/// it.
pub(super) fn first_frame(encoded: &[u8]) -> Option<[u16; 2]> {
    let number = |at: usize| {
        Some(u16::from_le_bytes([
            *encoded.get(at)?,
            *encoded.get(at + 1)?,
        ]))
    };
    let flags = *encoded.get(10)?;
    // A global palette follows the screen's description.
    let mut position = 13
        + if flags & 0x80 == 0 {
            0
        } else {
            3 << ((flags & 7) + 1)
        };
    let mut blocks = 0;
    loop {
        match *encoded.get(position)? {
            b',' => return Some([number(position + 5)?, number(position + 7)?]),
            b'!' => {
                position += 2;
                loop {
                    let length = usize::from(*encoded.get(position)?);
                    position += 1 + length;
                    blocks += 1;
                    if blocks > MAX_BLOCKS {
                        return None;
                    }
                    if length == 0 {
                        break;
                    }
                }
            }
            // Padding between blocks is skipped by decoders.
            0 if blocks < MAX_BLOCKS => {
                position += 1;
                blocks += 1;
            }
            _ => return None,
        }
    }
}

/// Reads the size of the screen and of the first frame.
pub(super) fn outline(encoded: &[u8]) -> Option<Outline> {
    let number = |at: usize| {
        Some(u16::from_le_bytes([
            *encoded.get(at)?,
            *encoded.get(at + 1)?,
        ]))
    };
    let (width, height) = (u32::from(number(6)?), u32::from(number(8)?));
    let frame = first_frame(encoded)?.map(u64::from);
    let frame_pixels = frame[0] * frame[1];
    let pixels = area(width, height);
    Some(Outline {
        width,
        height,
        bytes_per_pixel: 4,
        // A frame of another size than the screen is decoded for itself.
        working_bytes: 4 * frame_pixels + encoded.len() as u64 + (128 << 10),
        nanoseconds: 6 * (pixels + frame_pixels) + 10 * encoded.len() as u64,
    })
}
