//! Icons: files of several pictures, of which the largest is used, as Pillow does.

use super::{
    Exif, ImageError, ImageFormat,
    outline::{Outline, area},
    png,
};

const HEADER: usize = 6;
const ENTRY: usize = 16;

/// The picture of a file that is used.
pub(super) struct Picture<'a> {
    entry: &'a [u8; ENTRY],
    data: &'a [u8],
}

impl<'a> Picture<'a> {
    /// Finds the largest picture, and among those of its size the one with the most colours.
    ///
    /// # Errors
    /// A file without pictures, or one that ends before this picture does.
    pub fn largest(encoded: &'a [u8]) -> Result<Self, ImageError> {
        let truncated = || ImageError::Truncated {
            format: ImageFormat::Ico,
            bytes: encoded.len(),
        };
        let count: [u8; 2] = *encoded
            .get(4..)
            .and_then(<[u8]>::first_chunk)
            .ok_or_else(truncated)?;
        let count = usize::from(u16::from_le_bytes(count));
        let entries = encoded
            .get(HEADER..HEADER + ENTRY * count)
            .ok_or_else(truncated)?;
        let entries = entries.as_chunks::<ENTRY>().0;
        let largest = entries.iter().rev().max_by_key(|entry| {
            let [width, height] = sides(entry);
            (width * height, entry[6])
        });
        let entry = largest.ok_or_else(|| ImageError::Damaged {
            format: ImageFormat::Ico,
            reason: "it has no picture".to_owned(),
        })?;
        let number = |at: usize| {
            u32::from_le_bytes([entry[at], entry[at + 1], entry[at + 2], entry[at + 3]]) as usize
        };
        let data = encoded.get(number(12)..).unwrap_or_default();
        let data = data.get(..number(8)).ok_or_else(truncated)?;
        Ok(Self { entry, data })
    }

    /// The picture's file, if it is a PNG.
    pub fn png(&self) -> Option<&'a [u8]> {
        (ImageFormat::of(self.data) == Some(ImageFormat::Png)).then_some(self.data)
    }

    /// An icon of this picture alone.
    pub fn alone(&self) -> Vec<u8> {
        let mut file = b"\0\0\x01\0\x01\0".to_vec();
        file.extend(&self.entry[..12]);
        file.extend(((HEADER + ENTRY) as u32).to_le_bytes());
        file.extend(self.data);
        file
    }
}

/// The width and height of a picture, where 0 stands for 256.
fn sides(entry: &[u8; ENTRY]) -> [u32; 2] {
    [entry[0], entry[1]].map(|side| if side == 0 { 256 } else { side.into() })
}

/// Reads the size of the picture.
pub(super) fn outline(encoded: &[u8], exif: Exif) -> Option<Outline> {
    let picture = Picture::largest(encoded).ok()?;
    if let Some(file) = picture.png() {
        return png::outline(file, exif);
    }
    let [width, height] = sides(picture.entry);
    let pixels = area(width, height);
    Some(Outline {
        width,
        height,
        bytes_per_pixel: 4,
        working_bytes: picture.data.len() as u64 + 4096,
        nanoseconds: 8 * pixels + 4 * picture.data.len() as u64,
        ..Outline::default()
    })
}
