//! The blocks of GIF files: where the first frame is, and how large. Later frames are not looked at.

use super::{
    ImageError, ImageFormat, PreprocessConfig,
    outline::{Outline, area},
};

/// The blocks of extensions that may come before the first frame, each of up to 255 bytes. Every
/// block costs some time, however small it is.
const MAX_BLOCKS: usize = 1 << 16;

/// What comes first in a file.
enum First {
    /// A frame of this width and height.
    Frame([u16; 2]),
    TooManyBlocks,
}

/// Finds the first frame; `None` if there is none.
fn first(encoded: &[u8]) -> Option<First> {
    let flags = *encoded.get(10)?;
    let palette = if flags & 0x80 == 0 {
        0
    } else {
        3 << ((flags & 7) + 1)
    };
    let mut position = 13 + palette;
    let mut blocks = 0;
    loop {
        match *encoded.get(position)? {
            b',' => {
                let side = |at: usize| u16_at(encoded, position + at);
                return Some(First::Frame([side(5)?, side(7)?]));
            }
            // An extension: its label, and blocks up to an empty one.
            b'!' => {
                position += 2;
                loop {
                    let length = usize::from(*encoded.get(position)?);
                    position += 1 + length;
                    blocks += 1;
                    if blocks > MAX_BLOCKS {
                        return Some(First::TooManyBlocks);
                    }
                    if length == 0 {
                        break;
                    }
                }
            }
            _ => return None,
        }
    }
}

fn u16_at(encoded: &[u8], at: usize) -> Option<u16> {
    Some(u16::from_le_bytes(*encoded.get(at..)?.first_chunk()?))
}

/// Rejects a first frame that is too large, whatever the size of the screen, and a file of very many
/// blocks before it.
pub(super) fn check(encoded: &[u8], config: &PreprocessConfig) -> Result<(), ImageError> {
    match first(encoded) {
        Some(First::Frame([width, height])) if width > 0 && height > 0 => {
            config.check_size(width.into(), height.into())
        }
        Some(First::TooManyBlocks) => Err(ImageError::Damaged {
            format: ImageFormat::Gif,
            reason: format!("it has more than {MAX_BLOCKS} blocks before its first frame"),
        }),
        _ => Ok(()),
    }
}

/// Reads the sizes of the screen and of the first frame; `None` if they are too large.
pub(super) fn outline(encoded: &[u8], config: &PreprocessConfig) -> Option<Outline> {
    check(encoded, config).ok()?;
    let (width, height) = (u16_at(encoded, 6)?.into(), u16_at(encoded, 8)?.into());
    let Some(First::Frame(frame)) = first(encoded) else {
        return None;
    };
    let [frame_width, frame_height] = frame.map(u32::from);
    let frame_pixels = area(frame_width, frame_height);
    Some(Outline {
        width,
        height,
        bytes_per_pixel: 4,
        // A frame of another size than the screen is decoded for itself.
        working_bytes: 4 * frame_pixels + encoded.len() as u64 + (128 << 10),
        nanoseconds: 8 * (area(width, height) + frame_pixels) + 10 * encoded.len() as u64,
        ..Outline::default()
    })
}
