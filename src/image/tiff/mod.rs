//! TIFF files (TIFF 6.0, its technical notes, and BigTIFF): the first image of a file, as gray or
//! RGB of 8 bits per channel.
//!
//! What has to be known is read from the directory and checked before memory is reserved: the size,
//! the number of strips or tiles, and the bytes that they decompress to. Then each part is
//! decompressed row by row, and every byte of the file is decompressed at most once. Profiles and
//! other metadata are not looked at.

mod ccitt;
mod chunks;
mod colour;
mod compression;
mod directory;
mod outline;
mod predictor;
mod samples;
#[cfg(test)]
mod tests;
mod ycbcr;

use std::{
    io::{self, Read},
    ops::Range,
};

pub(super) use self::outline::outline;
use self::{
    chunks::{Chunk, Grid},
    colour::Colour,
    compression::{Compression, Decompressor},
    directory::{Directory, tag},
    predictor::Predictor,
    samples::SampleType,
    ycbcr::Subsampling,
};
use super::{
    Exif, ImageError, ImageFormat, PreprocessConfig,
    budget::Budget,
    jpeg::{self, ExpectedFrame},
    orientation::Orientation,
    pixels::{Pixels, resize_buffer},
};

/// The most samples of a pixel. Pillow, too, reads no more than six.
const MAX_SAMPLES: u64 = 64;
/// The longest tables for JPEG data, in bytes. They are read again for each strip or tile.
const MAX_JPEG_TABLES: usize = 8 << 10;

/// What a strip or a tile costs, however small it is, in bytes.
const WORK_PER_PART: usize = 1 << 12;

/// Decodes the first image of a TIFF file into `pixels`.
pub(super) fn decode(
    pixels: &mut Pixels,
    encoded: &[u8],
    budget: &Budget,
) -> Result<(), ImageError> {
    let config = budget.config();
    let directory = Directory::read(encoded)?;
    let image = Image::read(&directory, config)?;
    pixels.width = image.width;
    pixels.height = image.height;
    pixels.layout = image.colour.layout();
    pixels.orientation = match config.exif {
        Exif::Apply => {
            let value = directory.number(tag::ORIENTATION).ok().flatten();
            Orientation::from_exif(value.and_then(|value| value.try_into().ok()).unwrap_or(1))
        }
        Exif::Ignore => Orientation::default(),
    };
    Reader::new(image, budget, pixels).read()
}

/// An image as its directory describes it, checked.
struct Image<'a> {
    encoded: &'a [u8],
    width: u32,
    height: u32,
    order: directory::ByteOrder,
    /// The samples of a pixel, including those that are not needed.
    samples: usize,
    kind: SampleType,
    colour: Colour,
    compression: Compression,
    predictor: Predictor,
    /// Whether the first pixel of a byte is in its lowest bit.
    reversed_bits: bool,
    /// Whether each channel is stored for itself.
    planar: bool,
    /// Whether JPEG data is YCbCr, which is converted when it is decoded.
    jpeg_is_ycbcr: bool,
    /// For the blocks of subsampled YCbCr.
    subsampling: Option<Subsampling>,
    jpeg_tables: &'a [u8],
    grid: Grid<'a>,
}

impl<'a> Image<'a> {
    fn read(directory: &Directory<'a>, config: &PreprocessConfig) -> Result<Self, ImageError> {
        let side = |tag| match directory.number(tag)? {
            Some(side) => Ok(u32::try_from(side).unwrap_or(u32::MAX)),
            None => Err(damaged("it does not say how large its image is")),
        };
        let (width, height) = (side(tag::IMAGE_WIDTH)?, side(tag::IMAGE_LENGTH)?);
        config.check_size(width, height)?;

        let compression = Compression::of(directory)?;
        let samples = match directory.number(tag::SAMPLES_PER_PIXEL)?.unwrap_or(1) {
            0 => return Err(damaged("its pixels have no channels")),
            samples @ 1..=MAX_SAMPLES => samples as usize,
            samples => {
                return Err(unsupported(&format!(
                    "its pixels have {samples} channels; accepted are up to {MAX_SAMPLES}"
                )));
            }
        };
        let kind = SampleType::of(directory, samples as u16)?;
        let planar = samples > 1 && directory.number(tag::PLANAR_CONFIGURATION)? == Some(2);
        let colour = Colour::of(directory, kind, samples, planar, compression)?;
        let predictor = if compression.has_predictor() {
            Predictor::of(directory, kind.bits())?
        } else {
            Predictor::None
        };
        let planes = if planar { samples } else { 1 };

        let mut image = Self {
            encoded: directory.encoded,
            width,
            height,
            order: directory.order,
            samples,
            kind,
            compression,
            predictor,
            reversed_bits: compression != Compression::Jpeg
                && directory.number(tag::FILL_ORDER)? == Some(2),
            planar,
            jpeg_is_ycbcr: directory.number(tag::PHOTOMETRIC_INTERPRETATION)? == Some(6),
            subsampling: None,
            jpeg_tables: directory
                .values(tag::JPEG_TABLES)?
                .map_or(&[], |values| values.bytes),
            grid: Grid::read(directory, width, height, planes)?,
            colour,
        };
        if matches!(image.colour, Colour::YCbCr(_)) {
            image.subsampling = image.read_subsampling(directory)?;
        }
        image.check_compression()?;
        image.check_work(config)?;
        Ok(image)
    }

    fn read_subsampling(
        &self,
        directory: &Directory<'_>,
    ) -> Result<Option<Subsampling>, ImageError> {
        let stated = Subsampling::of(directory)?;
        if self.planar {
            return match stated {
                None | Some(Subsampling::NONE) => Ok(None),
                Some(_) => Err(unsupported(
                    "its subsampled YCbCr is stored in a plane for each channel",
                )),
            };
        }
        // Pillow ignores the tag of uncompressed data, which may have been written without
        // subsampling in spite of it.
        let default = Subsampling { across: 2, down: 2 };
        let subsampling = stated.unwrap_or(default);
        if stated.is_none() && self.compression == Compression::None {
            return Ok(None);
        }
        if subsampling != Subsampling::NONE && self.samples != 3 {
            return Err(unsupported("its subsampled YCbCr has extra channels"));
        }
        if subsampling != Subsampling::NONE && self.predictor != Predictor::None {
            return Err(unsupported("its subsampled YCbCr uses a predictor"));
        }
        Ok((subsampling != Subsampling::NONE).then_some(subsampling))
    }

    fn check_compression(&self) -> Result<(), ImageError> {
        match self.compression {
            Compression::Jpeg if self.kind != SampleType::Unsigned(8) => {
                Err(unsupported(&format!(
                    "its JPEG data has {} bits per channel; accepted are 8",
                    self.kind.bits()
                )))
            }
            Compression::Jpeg if self.jpeg_tables.len() > MAX_JPEG_TABLES => {
                Err(damaged(&format!(
                    "its JPEG tables have {} bytes, more than the {MAX_JPEG_TABLES} allowed",
                    self.jpeg_tables.len()
                )))
            }
            Compression::Ccitt(_)
                if self.kind != SampleType::Unsigned(1) || (self.samples > 1 && !self.planar) =>
            {
                Err(damaged("its compression is CCITT's, but it is not bilevel"))
            }
            _ => Ok(()),
        }
    }

    /// Checks the bytes that all parts decompress to, and that they don't share compressed bytes.
    fn check_work(&self, config: &PreprocessConfig) -> Result<(), ImageError> {
        let max_bytes = config.max_decoded_bytes();
        // The last strip or the lowest tiles are only decompressed as far as needed, unless they
        // are images of their own.
        let height = match self.compression {
            Compression::Jpeg => self
                .grid
                .down()
                .saturating_mul(self.max_part_height().into()),
            _ => u64::from(self.height) + u64::from(self.rows_at_once()) - 1,
        };
        let bytes = (self.row_bytes() / u64::from(self.rows_at_once()) + 1)
            .saturating_mul(self.grid.across())
            .saturating_mul(height)
            .saturating_mul(self.planes() as u64);
        if bytes > max_bytes {
            return Err(ImageError::TooMuchMemory {
                format: ImageFormat::Tiff,
                max_bytes,
            });
        }

        // Channels that are not needed have to be there all the same.
        let planes = if self.planar { self.samples } else { 1 };
        let mut compressed = 0;
        for chunk in self.grid.chunks(planes) {
            compressed += self.range(chunk)?.len();
            if compressed > self.encoded.len() {
                return Err(damaged(&format!("its {}s overlap", self.grid.kind)));
            }
        }
        Ok(())
    }

    /// The planes that are read.
    fn planes(&self) -> usize {
        if self.planar {
            self.colour.samples()
        } else {
            1
        }
    }

    /// The samples of a pixel within a plane.
    fn samples_per_plane(&self) -> usize {
        if self.planar { 1 } else { self.samples }
    }

    /// Whether a pixel is put together from several planes.
    fn has_split_pixels(&self) -> bool {
        self.planes() > 1
    }

    /// How many rows of pixels are stored together.
    fn rows_at_once(&self) -> u32 {
        self.subsampling.map_or(1, |subsampling| subsampling.down)
    }

    /// The bytes of a row of a part, or of the rows that are stored together.
    fn row_bytes(&self) -> u64 {
        match self.subsampling {
            Some(subsampling) => subsampling.row_bytes(self.grid.width),
            None => {
                let bits = self.samples_per_plane() as u64 * u64::from(self.kind.bits());
                (u64::from(self.grid.width) * bits).div_ceil(8)
            }
        }
    }

    /// The height that a part may have which is an image of its own. Some programs complete the
    /// last one.
    fn max_part_height(&self) -> u32 {
        self.grid
            .stated_height
            .min(self.height.checked_next_multiple_of(16).unwrap_or(u32::MAX))
    }

    fn range(&self, chunk: Chunk) -> Result<Range<usize>, ImageError> {
        let exact = (self.compression == Compression::None).then(|| {
            let rows = self.grid.stored_rows(chunk).div_ceil(self.rows_at_once());
            self.row_bytes().saturating_mul(rows.into())
        });
        self.grid.range(self.encoded, chunk, exact)
    }
}

/// Reads the parts of an image, and keeps the buffers for that.
struct Reader<'a> {
    image: Image<'a>,
    budget: &'a Budget,
    pixels: &'a mut Pixels,
    /// The bytes of each pixel in `pixels` while parts are read.
    bytes_per_pixel: usize,
    /// Stored bytes of a row.
    row: Vec<u8>,
    /// Samples of a row, one byte each.
    samples: Vec<u8>,
    scratch: Vec<u8>,
}

impl<'a> Reader<'a> {
    fn new(image: Image<'a>, budget: &'a Budget, pixels: &'a mut Pixels) -> Self {
        let bytes_per_pixel = if image.has_split_pixels() {
            image.colour.samples()
        } else {
            image.colour.layout().channels()
        };
        Self {
            row: vec![0; image.row_bytes() as usize],
            samples: vec![0; image.width as usize * image.colour.samples()],
            scratch: Vec::new(),
            image,
            budget,
            pixels,
            bytes_per_pixel,
        }
    }

    fn read(mut self) -> Result<(), ImageError> {
        let pixels = self.image.width as usize * self.image.height as usize;
        resize_buffer(&mut self.pixels.data, pixels * self.bytes_per_pixel);

        let mut decompressor = Decompressor::default();
        let mut reversed = Vec::new();
        for chunk in self.image.grid.chunks(self.image.planes()) {
            let mut data = &self.image.encoded[self.image.range(chunk)?];
            self.budget.spend(WORK_PER_PART + data.len())?;
            if self.image.reversed_bits {
                reversed.clear();
                reversed.extend(data.iter().map(|byte| byte.reverse_bits()));
                data = &reversed;
            }
            match self.image.compression {
                Compression::Jpeg => {
                    let bytes = self.decode_jpeg(data, chunk)?;
                    self.read_chunk(&mut &bytes[..], chunk)?;
                }
                compression => {
                    let mut reader = decompressor
                        .open(compression, data, self.image.grid.width, self.budget)
                        .map_err(|error| self.explain(&error))?;
                    self.read_chunk(&mut reader, chunk)?;
                }
            }
        }
        if self.image.has_split_pixels() && !self.image.colour.is_direct() {
            self.convert_planes();
        }
        Ok(())
    }

    /// Reads the rows of a part.
    fn read_chunk(&mut self, reader: &mut impl Read, chunk: Chunk) -> Result<(), ImageError> {
        let samples = self.image.samples_per_plane();
        for y in (0..chunk.rows).step_by(self.image.rows_at_once() as usize) {
            self.budget.spend(self.row.len() + self.samples.len())?;
            reader
                .read_exact(&mut self.row)
                .map_err(|error| self.explain(&error))?;
            let Some(subsampling) = self.image.subsampling else {
                let order = self.image.predictor.restore(
                    &mut self.row,
                    self.image.kind.bits(),
                    samples,
                    self.image.order,
                    &mut self.scratch,
                );
                self.store_row(chunk, chunk.y + y, order);
                continue;
            };
            for line in 0..subsampling.down.min(chunk.rows - y) {
                let start = self.position(chunk.x, chunk.y + y + line);
                let row = &mut self.samples[..3 * chunk.columns as usize];
                subsampling.expand(&self.row, line, row);
                let target = &mut self.pixels.data[start..start + row.len()];
                self.image.colour.convert(row, target);
            }
        }
        Ok(())
    }

    /// Where in the buffer a pixel is.
    fn position(&self, x: u32, y: u32) -> usize {
        (y as usize * self.image.width as usize + x as usize) * self.bytes_per_pixel
    }

    /// Converts the current row to pixels.
    fn store_row(&mut self, chunk: Chunk, y: u32, order: directory::ByteOrder) {
        let image = &self.image;
        let columns = chunk.columns as usize;
        let start = self.position(chunk.x, y);
        let target = &mut self.pixels.data[start..][..columns * self.bytes_per_pixel];
        let scaled = !matches!(image.colour, Colour::Palette(_));
        let taken = if image.planar {
            1
        } else {
            image.colour.samples()
        };
        let read = |target: &mut [u8]| {
            let samples = image.samples_per_plane();
            image
                .kind
                .read(&self.row, order, samples, taken, scaled, target);
        };

        let samples = &mut self.samples[..columns * taken];
        if image.has_split_pixels() {
            read(samples);
            let pixels = target.chunks_exact_mut(self.bytes_per_pixel);
            for (pixel, sample) in pixels.zip(samples) {
                pixel[chunk.plane] = *sample;
            }
        } else if image.colour.is_direct() {
            read(target);
        } else {
            read(samples);
            image.colour.convert(samples, target);
        }
    }

    /// Converts the collected samples of all planes to pixels, which are not larger, in place.
    fn convert_planes(&mut self) {
        let (from, to) = (self.bytes_per_pixel, self.pixels.layout.channels());
        let data = &mut self.pixels.data;
        let pixels = data.len() / from;
        let row = self.image.width as usize;
        for start in (0..pixels).step_by(row) {
            self.samples
                .copy_from_slice(&data[start * from..][..row * from]);
            self.image
                .colour
                .convert(&self.samples, &mut data[start * to..][..row * to]);
        }
        data.truncate(pixels * to);
    }

    /// Decodes a part that is a JPEG image.
    fn decode_jpeg(&self, data: &[u8], chunk: Chunk) -> Result<Vec<u8>, ImageError> {
        let image = &self.image;
        let expected = ExpectedFrame {
            width: image.grid.width,
            heights: chunk.rows..=image.max_part_height(),
            components: image.samples_per_plane(),
            converted: image.jpeg_is_ycbcr && !image.planar && image.samples == 3,
        };
        jpeg::decode_embedded(data, image.jpeg_tables, &expected, self.budget).map_err(explain_jpeg)
    }

    /// Translates an error of decompression.
    fn explain(&self, error: &io::Error) -> ImageError {
        if let Err(too_late) = self.budget.check() {
            return too_late;
        }
        if error.kind() == io::ErrorKind::UnexpectedEof {
            damaged(&format!(
                "the data of a {} ends before its last row",
                self.image.grid.kind
            ))
        } else {
            damaged(&format!("the data of a {}: {error}", self.image.grid.kind))
        }
    }
}

fn truncated(encoded: &[u8]) -> ImageError {
    ImageError::Truncated {
        format: ImageFormat::Tiff,
        bytes: encoded.len(),
    }
}

fn damaged(reason: &str) -> ImageError {
    ImageError::Damaged {
        format: ImageFormat::Tiff,
        reason: reason.to_owned(),
    }
}

fn unsupported(reason: &str) -> ImageError {
    ImageError::UnsupportedVariant {
        format: ImageFormat::Tiff,
        reason: reason.to_owned(),
    }
}

/// Translates an error of JPEG data within the file.
fn explain_jpeg(error: ImageError) -> ImageError {
    match error {
        ImageError::Damaged { reason, .. } => damaged(&format!("its JPEG data: {reason}")),
        ImageError::Truncated { .. } => damaged("its JPEG data is incomplete"),
        ImageError::UnsupportedVariant { reason, .. } => {
            unsupported(&format!("its JPEG data: {reason}"))
        }
        other => other,
    }
}
