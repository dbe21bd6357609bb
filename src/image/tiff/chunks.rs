//! Strips and tiles: how an image is cut, and where in the file the parts are.

use std::ops::Range;

use super::{
    damaged,
    directory::{Directory, Values, tag},
    truncated,
};
use crate::image::ImageError;

/// The most strips or tiles that are read. Each costs some time, however small it is.
const MAX_CHUNKS: u64 = 1 << 17;

/// How an image is cut into parts, strips or tiles, each of which is compressed on its own.
pub(super) struct Grid<'a> {
    pub kind: &'static str,
    /// The width of a part. Tiles may reach over the image's edges.
    pub width: u32,
    /// The height of a part as the file states it, which may be more than the image's. The last
    /// strip may be lower.
    pub stated_height: u32,
    across: u64,
    down: u64,
    image: [u32; 2],
    offsets: Values<'a>,
    byte_counts: Option<Values<'a>>,
}

/// One part of an image.
#[derive(Clone, Copy, Debug)]
pub(super) struct Chunk {
    pub index: usize,
    /// Which channel it has, if they are stored separately.
    pub plane: usize,
    pub x: u32,
    pub y: u32,
    /// The part's size within the image.
    pub columns: u32,
    pub rows: u32,
}

impl<'a> Grid<'a> {
    /// Reads how an image of this size is cut, which has `planes` separately stored channels.
    pub fn read(
        directory: &Directory<'a>,
        width: u32,
        height: u32,
        planes: usize,
    ) -> Result<Self, ImageError> {
        let side = |tag| -> Result<Option<u32>, ImageError> {
            match directory.number(tag)? {
                Some(0) => Err(damaged("its strips or tiles have a side of 0")),
                side => Ok(side.map(|side| u32::try_from(side).unwrap_or(u32::MAX))),
            }
        };
        let tile = side(tag::TILE_WIDTH)?.zip(side(tag::TILE_LENGTH)?);
        let (kind, chunk_width, stated_height, tags) = match tile {
            Some((width, height)) => (
                "tile",
                width,
                height,
                [tag::TILE_OFFSETS, tag::TILE_BYTE_COUNTS],
            ),
            None => (
                "strip",
                width,
                side(tag::ROWS_PER_STRIP)?.unwrap_or(u32::MAX),
                [tag::STRIP_OFFSETS, tag::STRIP_BYTE_COUNTS],
            ),
        };
        let [offsets, byte_counts] = [
            values(directory, tags[0], tag::STRIP_OFFSETS)?,
            values(directory, tags[1], tag::STRIP_BYTE_COUNTS)?,
        ];
        let Some(offsets) = offsets else {
            return Err(damaged("it does not say where its pixels are"));
        };

        let grid = Self {
            kind,
            width: chunk_width,
            stated_height,
            across: u64::from(width.div_ceil(chunk_width)),
            down: u64::from(height.div_ceil(stated_height)),
            image: [width, height],
            offsets,
            byte_counts,
        };
        let parts = grid
            .across
            .saturating_mul(grid.down)
            .saturating_mul(planes as u64);
        if parts > MAX_CHUNKS {
            return Err(damaged(&format!(
                "it is cut into {parts} {kind}s, more than the {MAX_CHUNKS} allowed"
            )));
        }
        if (grid.offsets.len() as u64) < parts {
            return Err(damaged(&format!(
                "it has {parts} {kind}s, but the offsets of only {}",
                grid.offsets.len()
            )));
        }
        Ok(grid)
    }

    /// How many parts a plane has from left to right, each with the grid's width.
    pub fn across(&self) -> u64 {
        self.across
    }

    /// How many parts a plane has from top to bottom.
    pub fn down(&self) -> u64 {
        self.down
    }

    /// The rows of a part in the file: tiles are complete, and the last strip ends with the image.
    pub fn stored_rows(&self, chunk: Chunk) -> u32 {
        if self.kind == "tile" {
            self.stated_height
        } else {
            chunk.rows
        }
    }

    /// All parts of the first `planes` planes.
    pub fn chunks(&self, planes: usize) -> impl Iterator<Item = Chunk> + use<> {
        let (across, per_plane) = (self.across, self.across * self.down);
        let [image_width, image_height] = self.image;
        let (width, height) = (self.width, self.stated_height);
        (0..per_plane * planes as u64).map(move |index| {
            let within = index % per_plane;
            // Both products are less than the image's size.
            let x = (within % across) as u32 * width;
            let y = (within / across) as u32 * height;
            Chunk {
                index: index as usize,
                plane: (index / per_plane) as usize,
                x,
                y,
                columns: width.min(image_width - x),
                rows: height.min(image_height - y),
            }
        })
    }

    /// Where the data of a part is. `exact` is its length, if that is known: uncompressed data
    /// needs no length in the file, and some programs write a wrong one.
    pub fn range(
        &self,
        encoded: &[u8],
        chunk: Chunk,
        exact: Option<u64>,
    ) -> Result<Range<usize>, ImageError> {
        let offset = self.offsets.number(chunk.index);
        let stated = self
            .byte_counts
            .map(|byte_counts| byte_counts.number(chunk.index));
        let length = match (exact, stated) {
            (Some(exact), _) => Some(exact),
            (None, Some(stated)) => stated,
            // A single part may reach to the end of the file.
            (None, None) if self.across * self.down == 1 && chunk.index == 0 => {
                offset.map(|offset| (encoded.len() as u64).saturating_sub(offset))
            }
            (None, None) => None,
        };
        let Some((offset, length)) = offset.zip(length.filter(|length| *length > 0)) else {
            return Err(damaged(&format!("it has a {} without data", self.kind)));
        };
        let end = offset.saturating_add(length);
        if end > encoded.len() as u64 {
            return Err(truncated(encoded));
        }
        Ok(offset as usize..end as usize)
    }
}

/// The values of a tag, or else of another one.
fn values<'a>(
    directory: &Directory<'a>,
    tag: u16,
    other: u16,
) -> Result<Option<Values<'a>>, ImageError> {
    match directory.values(tag)? {
        None if tag != other => directory.values(other),
        values => Ok(values),
    }
}
