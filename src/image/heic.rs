//! HEIC files, as phones take them: one HEVC picture, or a grid of them, turned as the container
//! says. The decoder is `heifer`'s; a row of tiles at a time is in memory.

use heifer::{
    color::{ColorParams, frame_to_rgba_into},
    heifer_hevc_dec::{
        self as hevc,
        decoder::{DecodeOptions, decode_picture},
        recon::Frame,
    },
    heifer_isobmff::{
        self as container, HeifFile, ItemId,
        boxes::{ColorInfo, Property},
    },
};

use super::{
    Geometry, ImageError, ImageFormat, PreprocessConfig,
    budget::Budget,
    orientation::Orientation,
    outline::{Outline, area},
    pixels::{PixelLayout, Pixels, resize_buffer},
    resize::Resizer,
    rows::{Decoded, Rows},
};

/// The most bytes of each table of the container: enough for a thousand tiles. Reading them takes a
/// time that grows with the square of their length.
const LARGEST_TABLE: usize = 32 << 10;
/// A coded picture may be larger than what is shown of it, by less than the largest block on each
/// side.
const LARGEST_BLOCK: u64 = 64;
/// The bytes that the decoder takes for each pixel of a picture: samples of 16 bits, and what is
/// remembered of every block.
const BYTES_PER_CODED_PIXEL: u64 = 8;
/// The time of decoding one pixel, in nanoseconds.
const NANOSECONDS_PER_PIXEL: u64 = 160;

/// The pictures of a file and how they are put together.
struct Layout {
    /// The size of the whole, before it is cropped and turned.
    width: u32,
    height: u32,
    /// The coded pictures, row by row.
    tiles: Vec<ItemId>,
    columns: usize,
    tile_width: u32,
    tile_height: u32,
    shown: Shown,
}

/// The part of the whole that is shown, and how it is turned.
#[derive(Clone, Copy)]
struct Shown {
    left: u32,
    top: u32,
    width: u32,
    height: u32,
    orientation: Orientation,
}

impl Shown {
    /// Crops and turns it as a picture's properties say, in their order.
    fn apply(&mut self, file: &HeifFile<'_>, id: ItemId) -> Result<(), ImageError> {
        for property in file.item_properties(id).map_err(damaged_container)? {
            match *property {
                Property::Rotation(quarters) => {
                    for _ in 0..quarters % 4 {
                        self.orientation = self.orientation.then_quarter_left();
                    }
                }
                Property::Mirror(top_bottom) => {
                    self.orientation = self.orientation.then_mirrored(top_bottom);
                }
                Property::CleanAperture {
                    width,
                    height,
                    horiz_offset,
                    vert_offset,
                } => {
                    if self.orientation != Orientation::default() {
                        return Err(unsupported("its picture is turned before it is cropped"));
                    }
                    let (left, width) = aperture(self.width, width, horiz_offset)?;
                    let (top, height) = aperture(self.height, height, vert_offset)?;
                    *self = Self {
                        left: self.left + left,
                        top: self.top + top,
                        width,
                        height,
                        ..*self
                    };
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The start and the length of a clean aperture along one side: a length, and the distance of its
/// centre from that of the side, both fractions (ISO/IEC 14496-12).
fn aperture(side: u32, length: (u32, u32), offset: (i32, u32)) -> Result<(u32, u32), ImageError> {
    let wrong = || damaged("it is cropped to what is not part of its picture");
    if length.1 == 0 || offset.1 == 0 {
        return Err(wrong());
    }
    let length = (f64::from(length.0) / f64::from(length.1)).round();
    let centre = f64::from(offset.0) / f64::from(offset.1) + (f64::from(side) - 1.0) / 2.0;
    let start = (centre - (length - 1.0) / 2.0).round();
    if length < 1.0 || start < 0.0 || start + length > f64::from(side) {
        return Err(wrong());
    }
    Ok((start as u32, length as u32))
}

impl Layout {
    fn of(file: &HeifFile<'_>) -> Result<Self, ImageError> {
        let primary = file.primary_id;
        if item_type(file, primary)? != *b"iden" {
            return Self::of_picture(file, primary);
        }
        // Another picture, turned.
        let [source] = *file.referenced_items(primary, b"dimg") else {
            return Err(damaged("its picture is the same as several others"));
        };
        let mut layout = Self::of_picture(file, source)?;
        layout.shown.apply(file, primary)?;
        Ok(layout)
    }

    fn of_picture(file: &HeifFile<'_>, id: ItemId) -> Result<Self, ImageError> {
        let mut layout = match &item_type(file, id)? {
            b"grid" => {
                let grid = file.grid(id).map_err(damaged_container)?;
                let tiles = file.referenced_items(id, b"dimg").to_vec();
                let first = tiles.first().ok_or_else(|| damaged("its grid is empty"))?;
                let (tile_width, tile_height) = size(file, *first)?;
                let columns = usize::from(grid.columns);
                let fits = grid.output_width.div_ceil(tile_width) == u32::from(grid.columns)
                    && grid.output_height.div_ceil(tile_height) == u32::from(grid.rows)
                    && tiles.len() == columns * usize::from(grid.rows);
                if !fits {
                    return Err(damaged("its tiles don't make up its picture"));
                }
                for tile in &tiles {
                    check_is_hevc(&item_type(file, *tile)?)?;
                }
                Self {
                    width: grid.output_width,
                    height: grid.output_height,
                    tiles,
                    columns,
                    tile_width,
                    tile_height,
                    shown: whole(grid.output_width, grid.output_height),
                }
            }
            coded => {
                check_is_hevc(coded)?;
                let (width, height) = size(file, id)?;
                Self {
                    width,
                    height,
                    tiles: vec![id],
                    columns: 1,
                    tile_width: width,
                    tile_height: height,
                    shown: whole(width, height),
                }
            }
        };
        layout.shown.apply(file, id)?;
        Ok(layout)
    }
}

fn whole(width: u32, height: u32) -> Shown {
    Shown {
        left: 0,
        top: 0,
        width,
        height,
        orientation: Orientation::default(),
    }
}

/// Rejects pictures that are coded in another way.
fn check_is_hevc(kind: &[u8; 4]) -> Result<(), ImageError> {
    match kind {
        b"hvc1" => Ok(()),
        b"av01" => Err(unsupported("its picture is AV1 and not HEVC")),
        other => Err(unsupported(&format!(
            "its picture is of the type {}",
            other.escape_ascii()
        ))),
    }
}

/// Reads the container.
fn parse(encoded: &[u8]) -> Result<HeifFile<'_>, ImageError> {
    check_tables(encoded)?;
    HeifFile::parse(encoded).map_err(|error| match error {
        container::Error::UnexpectedEof => truncated(encoded),
        error => damaged_container(error),
    })
}

/// Rejects files whose tables are longer than any photo's.
fn check_tables(encoded: &[u8]) -> Result<(), ImageError> {
    let Some(meta) = boxes(encoded).find(|(kind, _)| kind == b"meta") else {
        return Ok(());
    };
    // The version and the flags come first.
    let children = boxes(meta.1.get(4..).unwrap_or_default());
    for (kind, content) in children {
        let longest = match &kind {
            b"iinf" | b"iloc" | b"iref" => content.len(),
            b"iprp" => boxes(content)
                .filter(|(kind, _)| kind == b"ipma")
                .map(|(_, content)| content.len())
                .sum(),
            _ => 0,
        };
        if longest > LARGEST_TABLE {
            return Err(damaged(&format!(
                "its tables of pictures have more than {LARGEST_TABLE} bytes"
            )));
        }
    }
    Ok(())
}

/// The boxes of a container, each with its type and content.
fn boxes(mut data: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (size, rest) = data.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (size, header, rest) = match u32::from_be_bytes(*size) {
            // To the end of the file.
            0 => (data.len() as u64, 8, rest),
            1 => {
                let (size, rest) = rest.split_first_chunk::<8>()?;
                (u64::from_be_bytes(*size), 16, rest)
            }
            size => (size.into(), 8, rest),
        };
        let content = usize::try_from(size.checked_sub(header)?).ok()?;
        let content = content.min(rest.len());
        let (content, after) = rest.split_at(content);
        data = after;
        Some((*kind, content))
    })
}

fn item_type(file: &HeifFile<'_>, id: ItemId) -> Result<[u8; 4], ImageError> {
    Ok(file.item(id).map_err(damaged_container)?.item_type.0)
}

/// The size of a picture, which is not zero.
fn size(file: &HeifFile<'_>, id: ItemId) -> Result<(u32, u32), ImageError> {
    match file.image_size(id).map_err(damaged_container)? {
        Some((width, height)) if width > 0 && height > 0 => Ok((width, height)),
        Some((width, height)) => Err(ImageError::ZeroSize { width, height }),
        None => Err(damaged("the size of its picture is missing")),
    }
}

/// Decodes the file into `pixels`, or gives its rows to the `resizer`.
pub(super) fn decode(
    pixels: &mut Pixels,
    encoded: &[u8],
    budget: &Budget,
    crop: Option<&Geometry>,
    resizer: Option<&mut Resizer>,
) -> Result<Decoded, ImageError> {
    let file = parse(encoded)?;
    let layout = Layout::of(&file)?;
    budget.config().check_size(layout.width, layout.height)?;
    budget
        .config()
        .check_size(layout.tile_width, layout.tile_height)?;

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
    for tiles in layout.tiles.chunks(layout.columns) {
        let height = layout.tile_height.min(layout.height - top) as usize;
        let lines = top as usize..top as usize + height;
        resize_buffer(&mut strip, row_bytes * height);
        for (column, &tile) in tiles.iter().enumerate() {
            let stream = file.hevc_bitstream(tile).map_err(|error| match error {
                container::Error::UnexpectedEof => truncated(encoded),
                error => damaged_container(error),
            })?;
            budget.spend(stream.len())?;
            budget.check()?;
            if lines.clone().any(|line| is_needed(&rows, line)) {
                let frame = decode_tile(&stream, &layout)?;
                let colours = colours(&file, tile, &frame)?;
                place(&frame, colours, &layout, column, &mut strip);
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

/// Decodes one HEVC picture, which has at least the size of a tile.
fn decode_tile(stream: &[u8], layout: &Layout) -> Result<Frame, ImageError> {
    let side = |length: u32| u64::from(length) + LARGEST_BLOCK;
    let options = DecodeOptions {
        max_pixels: side(layout.tile_width) * side(layout.tile_height),
        ..DecodeOptions::default()
    };
    let frame = decode_picture(stream, options).map_err(|error| match error {
        hevc::Error::Unimplemented(what) => unsupported(what),
        hevc::Error::UnexpectedEof => damaged("the data of its picture ends early"),
        error => damaged(&error.to_string()),
    })?;
    if frame.widths[0] < layout.tile_width || frame.heights[0] < layout.tile_height {
        return Err(damaged("its picture is smaller than the container says"));
    }
    Ok(frame)
}

/// Writes a tile as RGBA to its place in the strip of its row.
fn place(frame: &Frame, colours: ColorParams, layout: &Layout, column: usize, strip: &mut [u8]) {
    let channels = PixelLayout::Rgba.channels();
    let left = column * layout.tile_width as usize;
    let width = (layout.tile_width as usize).min(layout.width as usize - left);
    let mut lines: Vec<&mut [u8]> = strip
        .chunks_exact_mut(layout.width as usize * channels)
        .map(|line| &mut line[left * channels..][..width * channels])
        .collect();
    let height = lines.len();
    frame_to_rgba_into(frame, colours, &mut lines, width, height);
}

/// How the samples of a picture are colours: as its container says, else as its own header does.
fn colours(file: &HeifFile<'_>, id: ItemId, frame: &Frame) -> Result<ColorParams, ImageError> {
    let mut properties = file.item_properties(id).map_err(damaged_container)?;
    let told = properties.find_map(|property| match property {
        Property::Color(ColorInfo::Nclx {
            matrix, full_range, ..
        }) => Some(ColorParams {
            matrix: *matrix,
            full_range: *full_range,
        }),
        _ => None,
    });
    Ok(told.unwrap_or_else(|| ColorParams::from_frame(frame)))
}

/// Reads the size of the picture; `None` if the file will be rejected.
pub(super) fn outline(encoded: &[u8], config: &PreprocessConfig) -> Option<Outline> {
    let file = parse(encoded).ok()?;
    let layout = Layout::of(&file).ok()?;
    config.check_size(layout.width, layout.height).ok()?;
    config
        .check_size(layout.tile_width, layout.tile_height)
        .ok()?;
    let tile = area(layout.tile_width, layout.tile_height);
    let strip = area(layout.width, layout.tile_height.min(layout.height));
    Some(Outline {
        width: layout.shown.width,
        height: layout.shown.height,
        bytes_per_pixel: 4,
        working_bytes: BYTES_PER_CODED_PIXEL * tile + 4 * strip + 2 * encoded.len() as u64,
        nanoseconds: NANOSECONDS_PER_PIXEL * area(layout.width, layout.height),
        by_rows: !layout.shown.orientation.swapped,
    })
}

fn damaged_container(error: container::Error) -> ImageError {
    match error {
        container::Error::Unimplemented(what) => unsupported(what),
        error => damaged(&error.to_string()),
    }
}

fn damaged(reason: &str) -> ImageError {
    ImageError::Damaged {
        format: ImageFormat::Heic,
        reason: reason.to_owned(),
    }
}

fn unsupported(reason: &str) -> ImageError {
    ImageError::UnsupportedVariant {
        format: ImageFormat::Heic,
        reason: reason.to_owned(),
    }
}

fn truncated(encoded: &[u8]) -> ImageError {
    ImageError::Truncated {
        format: ImageFormat::Heic,
        bytes: encoded.len(),
    }
}
