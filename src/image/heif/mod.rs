//! HEIC and AVIF files, as phones take photos: one coded picture, or a grid of them, turned as the
//! container says. A row of tiles at a time is in memory.

pub(super) mod av1;
mod colours;
mod errors;
mod hevc;
mod layout;
mod tables;

use std::borrow::Cow;

use heifer::{
    heifer_hevc_dec::recon::Frame,
    heifer_isobmff::{HeifFile, ItemId},
};

use self::{
    errors::Named,
    layout::{Coding, Layout},
};
use super::{
    Geometry, ImageError, ImageFormat, PreprocessConfig,
    budget::Budget,
    outline::{Outline, area},
    pixels::{PixelLayout, Pixels, resize_buffer},
    resize::Resizer,
    rows::{Decoded, Rows},
};

/// The time that each picture of a grid takes beside its pixels, in nanoseconds.
const NANOSECONDS_PER_TILE: u64 = 300_000;

/// A file whose container has been read.
struct File<'a> {
    container: HeifFile<'a>,
    named: Named,
    layout: Layout,
}

impl<'a> File<'a> {
    /// Reads the container, and rejects pictures that are too large.
    fn read(
        format: ImageFormat,
        encoded: &'a [u8],
        config: &PreprocessConfig,
    ) -> Result<Self, ImageError> {
        let named = Named {
            format,
            bytes: encoded.len(),
        };
        tables::check(encoded, named)?;
        let container = HeifFile::parse(encoded).map_err(|error| named.end(error))?;
        let layout = Layout::of(&container, named)?;
        config.check_size(layout.width, layout.height)?;
        config.check_size(layout.tile_width, layout.tile_height)?;
        Ok(Self {
            container,
            named,
            layout,
        })
    }

    /// The data of a coded picture, as its decoder takes it.
    fn stream(&self, tile: ItemId) -> Result<Cow<'a, [u8]>, ImageError> {
        let stream = match self.layout.coding {
            Coding::Hevc => self.container.hevc_bitstream(tile).map(Cow::Owned),
            Coding::Av1 => self.container.item_data(tile),
        };
        stream.map_err(|error| self.named.end(error))
    }

    /// Decodes a coded picture, which has at least the size of a tile.
    fn decode_tile(&self, stream: &[u8], budget: &Budget) -> Result<Frame, ImageError> {
        let size = (self.layout.tile_width, self.layout.tile_height);
        let frame = match self.layout.coding {
            Coding::Hevc => hevc::decode(stream, size, self.named)?,
            Coding::Av1 => av1::decode(stream, size, self.named, budget)?,
        };
        if frame.widths[0] < size.0 || frame.heights[0] < size.1 {
            return Err(self
                .named
                .damaged("its picture is smaller than the container says"));
        }
        Ok(frame)
    }

    /// Writes a tile as RGBA to its place in the strip of its row.
    fn place(
        &self,
        tile: ItemId,
        frame: Frame,
        column: usize,
        strip: &mut [u8],
    ) -> Result<(), ImageError> {
        let colours = colours::of(&self.container, tile, &frame, self.named)?;
        let channels = PixelLayout::Rgba.channels();
        let whole = self.layout.width as usize;
        let left = column * self.layout.tile_width as usize;
        let width = (self.layout.tile_width as usize).min(whole - left);
        let mut lines: Vec<&mut [u8]> = strip
            .chunks_exact_mut(whole * channels)
            .map(|line| &mut line[left * channels..][..width * channels])
            .collect();
        colours::write(frame, colours, width, &mut lines);
        Ok(())
    }
}

/// Decodes the file into `pixels`, or gives its rows to the `resizer`.
pub(super) fn decode(
    pixels: &mut Pixels,
    (format, encoded): (ImageFormat, &[u8]),
    budget: &Budget,
    crop: Option<&Geometry>,
    resizer: Option<&mut Resizer>,
) -> Result<Decoded, ImageError> {
    let file = File::read(format, encoded, budget.config())?;
    let layout = &file.layout;
    let shown = layout.shown;
    pixels.width = shown.width;
    pixels.height = shown.height;
    pixels.layout = PixelLayout::Rgba;
    pixels.orientation = shown.orientation;
    let (mut rows, decoded) = Rows::of(pixels, crop, resizer)?;
    let shown_lines = shown.top as usize..(shown.top + shown.height) as usize;
    let is_needed = |rows: &Rows<'_>, line: usize| {
        shown_lines.contains(&line) && rows.needs(line - shown_lines.start)
    };

    let channels = PixelLayout::Rgba.channels();
    let row_bytes = layout.width as usize * channels;
    let shown_bytes =
        shown.left as usize * channels..(shown.left + shown.width) as usize * channels;
    let mut strip = Vec::new();
    let mut top = 0;
    let mut kind = None;
    for tiles in layout.tiles.chunks(layout.columns) {
        let height = layout.tile_height.min(layout.height - top) as usize;
        let lines = top as usize..top as usize + height;
        resize_buffer(&mut strip, row_bytes * height);
        for (column, &tile) in tiles.iter().enumerate() {
            let stream = file.stream(tile)?;
            budget.spend(stream.len())?;
            budget.check()?;
            if layout.coding == Coding::Av1 {
                // The first one's memory and time were estimated.
                let header = av1::Header::of(&stream, file.named)?;
                if *kind.get_or_insert(header) != header {
                    return Err(file.named.damaged("its tiles are of different kinds"));
                }
            }
            if lines.clone().any(|line| is_needed(&rows, line)) {
                let frame = file.decode_tile(&stream, budget)?;
                file.place(tile, frame, column, &mut strip)?;
            }
        }
        for (line, row) in lines.zip(strip.chunks_exact(row_bytes)) {
            if is_needed(&rows, line) {
                let target = rows.row(line - shown_lines.start);
                target.copy_from_slice(&row[shown_bytes.clone()]);
            }
        }
        top += height as u32;
    }
    budget.check()?;
    rows.finish(budget)?;
    Ok(decoded)
}

/// Reads the size of the picture; `None` if the file will be rejected.
pub(super) fn outline(
    format: ImageFormat,
    encoded: &[u8],
    config: &PreprocessConfig,
) -> Option<Outline> {
    let file = File::read(format, encoded, config).ok()?;
    let layout = &file.layout;
    let tile = area(layout.tile_width, layout.tile_height);
    let whole = tile * layout.tiles.len() as u64;
    let (memory, nanoseconds) = match layout.coding {
        Coding::Hevc => (
            hevc::BYTES_PER_PIXEL * tile,
            hevc::NANOSECONDS_PER_PIXEL * whole,
        ),
        Coding::Av1 => {
            let stream = file.stream(*layout.tiles.first()?).ok()?;
            let header = av1::Header::of(&stream, file.named).ok()?;
            (
                av1::memory(&header, tile),
                av1::nanoseconds(&header, whole, encoded.len()),
            )
        }
    };
    let strip = area(layout.width, layout.tile_height.min(layout.height));
    Some(Outline {
        width: layout.shown.width,
        height: layout.shown.height,
        bytes_per_pixel: 4,
        working_bytes: memory + 4 * strip + 2 * encoded.len() as u64,
        nanoseconds: nanoseconds + NANOSECONDS_PER_TILE * (layout.tiles.len() as u64 - 1),
        by_rows: !layout.shown.orientation.swapped,
    })
}
