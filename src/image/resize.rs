//! Scales, crops and turns decoded pixels upright, and converts them to RGB. Only the region of the
//! image that the crop depends on is processed.
//!
//! Sizes, offsets and rounding follow torchvision's `Resize` and `CenterCrop` on Pillow images, and
//! Pillow's `ImageOps.pad`, so that crops are those that models are trained on.

use std::ops::Range;

use fast_image_resize::{
    self as fir, FilterType, IntoImageView, ResizeAlg, ResizeOptions, images::Image,
};

use super::{
    Filter, Fit, Geometry, ImageError,
    convolution::{self, Weights, is_convolution},
    orientation::Orientation,
    pixels::{PixelLayout, Pixels, resize_buffer},
    sampling::{self, Sampling, Stretch, Table},
    source_view::{SourceView, pixel_type, resize_error, view},
};

/// The most memory that the rows of a squashed picture may take between the two passes, in bytes,
/// unless the picture has few rows.
const MOST_NARROWED_BYTES: u64 = 16 << 20;

/// The rows that every picture may have.
const FEW_ROWS: u32 = 1 << 14;

/// One axis of a crop: the stretch of the source that is scaled, and where it goes.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Axis {
    /// The size of the source, in pixels.
    source: u32,
    /// The size of the source after scaling, in pixels.
    scaled: u64,
    /// Scaled pixels before the first one in the crop.
    offset: u64,
    /// Scaled pixels in the crop.
    length: u32,
    /// Pixels of padding in the crop before the first scaled one.
    padding: u32,
    /// Whether the source is read backwards.
    mirrored: bool,
}

impl Axis {
    /// Takes the middle of the scaled axis, as torchvision's `CenterCrop` does: halves are rounded
    /// to even, and an image smaller than the crop is padded.
    fn center(source: u32, scaled: u64, crop: u32) -> Self {
        match u32::try_from(scaled) {
            Ok(length) if length < crop => Self {
                source,
                scaled,
                offset: 0,
                length,
                padding: (crop - length) / 2,
                mirrored: false,
            },
            _ => {
                let offset = ((scaled - u64::from(crop)) as f64 / 2.0).round_ties_even() as u64;
                Self {
                    source,
                    scaled,
                    offset,
                    length: crop,
                    padding: 0,
                    mirrored: false,
                }
            }
        }
    }

    /// Takes the middle of the scaled axis as PaddleClas does: halves are rounded down.
    fn floored_center(source: u32, scaled: u64, crop: u32) -> Self {
        let center = Self::center(source, scaled, crop);
        Self {
            offset: scaled.saturating_sub(crop.into()) / 2,
            ..center
        }
    }

    /// Takes the whole scaled axis, and pads it behind.
    fn first(source: u32, scaled: u32) -> Self {
        Self {
            source,
            scaled: scaled.into(),
            offset: 0,
            length: scaled,
            padding: 0,
            mirrored: false,
        }
    }

    /// Takes the whole scaled axis, and pads it evenly, as Pillow's `ImageOps.pad` does: halves are
    /// rounded to even.
    fn padded(source: u32, scaled: u32, crop: u32) -> Self {
        Self {
            source,
            scaled: scaled.into(),
            offset: 0,
            length: scaled,
            padding: (f64::from(crop - scaled) / 2.0).round_ties_even() as u32,
            mirrored: false,
        }
    }

    /// The same stretch when the source is read backwards.
    fn mirrored(self) -> Self {
        Self {
            offset: self.scaled - self.offset - u64::from(self.length),
            mirrored: true,
            ..self
        }
    }

    fn to_sample(self) -> Stretch {
        Stretch {
            source: self.source,
            scaled: self.scaled,
            offset: self.offset,
            length: self.length,
            mirrored: self.mirrored,
        }
    }

    /// The start and the length of the stretch, in source pixels.
    fn stretch(&self) -> (f64, f64) {
        let to_source = |scaled: u64| {
            (u128::from(scaled) * u128::from(self.source)) as f64 / self.scaled as f64
        };
        let start = to_source(self.offset);
        let length = to_source(u64::from(self.length)).min(f64::from(self.source) - start);
        (start, length)
    }

    /// The source pixels that the stretch depends on, with a filter that reaches `support` pixels
    /// of the coarser side.
    fn region(&self, support: f64) -> Range<u32> {
        let (start, length) = self.stretch();
        // One pixel more covers any rounding.
        let reach = (f64::from(self.source) / self.scaled as f64).max(1.0) * support + 1.0;
        let first = (start - reach).floor().max(0.0) as u32;
        let last = (start + length + reach).ceil().min(f64::from(self.source)) as u32;
        first..last
    }
}

/// Which part of a stored image becomes a crop, and how.
#[derive(Clone, Copy, Debug)]
pub(super) struct CropPlan {
    orientation: Orientation,
    crop_width: u32,
    crop_height: u32,
    filter: Filter,
    /// The colour beside the scaled pixels.
    padding: [u8; 3],
    /// The horizontal axis of the upright image.
    x: Axis,
    /// The vertical axis of the upright image.
    y: Axis,
    /// The same part of the image, along the rows as stored.
    column: Axis,
    /// The same part of the image, along the columns as stored.
    row: Axis,
}

impl CropPlan {
    /// `width` and `height` are those of the stored image, and not zero.
    ///
    /// # Errors
    /// [`ImageError::Geometry`], or [`ImageError::SideTooLong`] for a picture that is too high to be
    /// squashed.
    pub(super) fn new(
        width: u32,
        height: u32,
        orientation: Orientation,
        geometry: &Geometry,
    ) -> Result<Self, ImageError> {
        let &Geometry {
            width: crop_width,
            height: crop_height,
            resize_shorter_side,
            fit,
            filter,
            recompress: _,
        } = geometry;
        if crop_width == 0 || crop_height == 0 || resize_shorter_side == 0 {
            return Err(ImageError::Geometry {
                width: crop_width,
                height: crop_height,
                resize_shorter_side,
            });
        }

        let (upright_width, upright_height) = if orientation.swapped {
            (height, width)
        } else {
            (width, height)
        };
        let (x, y) = match fit {
            Fit::Crop => {
                let shorter = upright_width.min(upright_height);
                let scale = |side: u32| {
                    // As in Python: the product is exact, and the quotient is rounded once.
                    let product = u64::from(resize_shorter_side) * u64::from(side);
                    (product as f64 / f64::from(shorter)) as u64
                };
                (
                    Axis::center(upright_width, scale(upright_width), crop_width),
                    Axis::center(upright_height, scale(upright_height), crop_height),
                )
            }
            Fit::CropRounded => {
                let shorter = upright_width.min(upright_height);
                let factor = f64::from(resize_shorter_side) / f64::from(shorter);
                let scale = |side: u32| (f64::from(side) * factor).round_ties_even() as u64;
                (
                    Axis::floored_center(upright_width, scale(upright_width), crop_width),
                    Axis::floored_center(upright_height, scale(upright_height), crop_height),
                )
            }
            Fit::Line(_) => {
                check_rows(upright_width, upright_height, crop_width)?;
                let proportion = f64::from(upright_width) / f64::from(upright_height);
                let scaled_width = (f64::from(crop_height) * proportion).ceil() as u32;
                (
                    Axis::first(upright_width, scaled_width.clamp(1, crop_width)),
                    Axis::first(upright_height, crop_height),
                )
            }
            Fit::Squash => {
                check_rows(upright_width, upright_height, crop_width)?;
                let shorter = u64::from(crop_width.min(crop_height));
                let scale = |side: u32| u64::from(side) * u64::from(resize_shorter_side) / shorter;
                (
                    Axis::center(upright_width, scale(crop_width), crop_width),
                    Axis::center(upright_height, scale(crop_height), crop_height),
                )
            }
            Fit::Letterbox(_) => {
                let (scaled_width, scaled_height) =
                    contained([upright_width, upright_height], [crop_width, crop_height]);
                (
                    Axis::padded(upright_width, scaled_width, crop_width),
                    Axis::padded(upright_height, scaled_height, crop_height),
                )
            }
        };

        let (mut column, mut row) = if orientation.swapped { (y, x) } else { (x, y) };
        if orientation.mirrored_x {
            column = column.mirrored();
        }
        if orientation.mirrored_y {
            row = row.mirrored();
        }

        Ok(Self {
            orientation,
            crop_width,
            crop_height,
            filter,
            padding: fit.padding(),
            x,
            y,
            column,
            row,
        })
    }

    /// The stored columns and rows that the crop depends on.
    pub(super) fn region(&self) -> (Range<u32>, Range<u32>) {
        (self.column.region(self.filter.support()), self.rows())
    }

    /// The stored rows that the crop depends on.
    fn rows(&self) -> Range<u32> {
        self.row.region(self.filter.support())
    }

    /// The bytes of a row that has been scaled horizontally but not yet vertically.
    fn narrowed_row_bytes(&self, layout: PixelLayout) -> usize {
        self.column.length as usize * layout.channels() * self.filter.bytes_between_passes()
    }

    /// How pixels are sampled, if not by the resampler.
    fn sampling(&self) -> Option<Sampling> {
        let enlarges = |axis: &Axis| axis.scaled > u64::from(axis.source);
        match self.filter {
            Filter::Nearest => Some(Sampling::Nearest),
            Filter::Area if enlarges(&self.x) || enlarges(&self.y) => Some(Sampling::EnlargedArea),
            Filter::Area => Some(Sampling::Area),
            Filter::Cubic => Some(Sampling::Cubic),
            Filter::Lanczos4 => Some(Sampling::Lanczos4),
            Filter::Bilinear | Filter::Bicubic | Filter::Lanczos | Filter::Linear => None,
        }
    }

    /// The options of the resampler.
    fn options(&self) -> ResizeOptions {
        let algorithm = match self.filter {
            Filter::Linear => ResizeAlg::Interpolation(FilterType::Bilinear),
            // Not scaled by the resampler: see `convolution` and `sampling`.
            _ => ResizeAlg::Nearest,
        };
        ResizeOptions::new().resize_alg(algorithm).use_alpha(false)
    }

    /// Fills the crop with the colour of the padding.
    fn fill(&self, crop: &mut [u8]) {
        if self.padding == [0; 3] {
            crop.fill(0);
        } else {
            crop.as_chunks_mut::<3>().0.fill(self.padding);
        }
    }

    fn check_length(&self, crop: &[u8]) -> Result<(), ImageError> {
        let expected = u64::from(self.crop_width) * u64::from(self.crop_height) * 3;
        if crop.len() as u64 != expected {
            return Err(ImageError::CropLength {
                expected,
                got: crop.len() as u64,
            });
        }
        Ok(())
    }

    /// Whether rows are scaled before columns, and there are some.
    pub(super) fn is_scaled_by_rows(&self) -> bool {
        let (columns, rows) = self.region();
        !self.orientation.swapped
            && self.column.length > 0
            && self.row.length > 0
            && !columns.is_empty()
            && !rows.is_empty()
    }

    /// Whether the scaled pixels are the crop, without turning or padding.
    fn needs_no_rearrangement(&self) -> bool {
        self.orientation == Orientation::default()
            && self.x.length == self.crop_width
            && self.y.length == self.crop_height
    }
}

/// Scales and crops images. Its buffers are kept for the next image.
#[derive(Debug, Default)]
pub struct Resizer {
    resizer: fir::Resizer,
    /// The scaled pixels, before they are turned upright and converted to RGB.
    scaled: Vec<u8>,
    /// The pixels scaled horizontally but not yet vertically.
    narrowed: Vec<u8>,
    /// The stored row that they begin with.
    first: u32,
    /// How columns and rows are sampled, where that is not done by the resampler.
    columns: Table,
    rows: Table,
    /// What scaled columns and rows are made of, where that is a convolution.
    column_weights: Weights,
    row_weights: Weights,
}

impl Resizer {
    /// Writes the upright crop as `geometry.height` x `geometry.width` x 3 bytes of RGB.
    ///
    /// # Errors
    /// [`ImageError::ZeroSize`], [`ImageError::Geometry`] or [`ImageError::CropLength`].
    pub fn crop(
        &mut self,
        pixels: &Pixels,
        geometry: &Geometry,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        let &Pixels {
            width,
            height,
            layout,
            orientation,
            ref data,
        } = pixels;
        if width == 0 || height == 0 {
            return Err(ImageError::ZeroSize { width, height });
        }

        let plan = CropPlan::new(width, height, orientation, geometry)?;
        let source = SourceView {
            view: &view(width, height, data, layout)?,
            origin: (0, 0),
            layout,
        };
        self.crop_view(&source, &plan, crop)
    }

    /// Like [`Resizer::crop`], for any view of the stored pixels.
    pub(super) fn crop_view<V: IntoImageView>(
        &mut self,
        source: &SourceView<'_, V>,
        plan: &CropPlan,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        plan.check_length(crop)?;
        if plan.column.length == 0 || plan.row.length == 0 {
            plan.fill(crop);
            return Ok(());
        }
        if plan.orientation.swapped && plan.sampling().is_none() {
            return self.write(plan, source.layout, crop, |resizer, target| {
                resizer.scale_columns_first(source, plan, target)
            });
        }
        self.begin(plan, source.layout);
        self.narrow(source, plan, plan.rows())?;
        self.finish(plan, source.layout, crop)
    }

    /// Makes room for the rows of a plan, which [`Resizer::narrow`] scales.
    pub(super) fn begin(&mut self, plan: &CropPlan, layout: PixelLayout) {
        resize_buffer(
            &mut self.narrowed,
            plan.narrowed_row_bytes(layout) * plan.rows().len(),
        );
        self.first = plan.rows().start;
        if let Some(sampling) = plan.sampling() {
            self.columns.fill(sampling, plan.column.to_sample());
            self.rows.fill(sampling, plan.row.to_sample());
        }
        self.weigh(plan);
    }

    /// What narrows some of the rows of the plan that this has begun with.
    pub(super) fn part(&self, plan: &CropPlan, layout: PixelLayout, rows: Range<u32>) -> Self {
        let row_bytes = plan.narrowed_row_bytes(layout);
        Self {
            narrowed: vec![0; row_bytes * rows.len()],
            first: rows.start,
            columns: self.columns.clone(),
            column_weights: self.column_weights.clone(),
            ..Self::default()
        }
    }

    /// Takes the rows that a part of this has narrowed.
    pub(super) fn put(&mut self, part: &Self, plan: &CropPlan, layout: PixelLayout) {
        let row_bytes = plan.narrowed_row_bytes(layout);
        let start = (part.first - self.first) as usize * row_bytes;
        self.narrowed[start..][..part.narrowed.len()].copy_from_slice(&part.narrowed);
    }

    fn weigh(&mut self, plan: &CropPlan) {
        if is_convolution(plan.filter) {
            self.column_weights
                .fill(plan.filter, plan.column.to_sample());
            self.row_weights.fill(plan.filter, plan.row.to_sample());
        }
    }

    /// Scales rows of the stored image horizontally, all of which the plan needs.
    ///
    /// Pillow scales the rows of the upright image before its columns, and rounds to bytes in
    /// between. The resampler scales columns first. That is the right order for images that are
    /// stored with their axes swapped; all others are scaled in two passes, of which this is the
    /// first.
    pub(super) fn narrow<V: IntoImageView>(
        &mut self,
        source: &SourceView<'_, V>,
        plan: &CropPlan,
        rows: Range<u32>,
    ) -> Result<(), ImageError> {
        let row_bytes = plan.narrowed_row_bytes(source.layout);
        let first = (rows.start - self.first) as usize;
        let target = &mut self.narrowed[first * row_bytes..][..rows.len() * row_bytes];
        let count = rows.len() as u32;
        if plan.sampling().is_some() {
            return sampling::scale_rows(source, rows, &self.columns, target);
        }
        if is_convolution(plan.filter) {
            return convolution::scale_rows(source, rows, &self.column_weights, target);
        }

        let pixel_type = pixel_type(source.layout);
        let mut target = Image::from_slice_u8(plan.column.length, count, target, pixel_type)
            .map_err(resize_error)?;

        let (left, width) = plan.column.stretch();
        let options = plan.options().crop(
            left - f64::from(source.origin.0),
            f64::from(rows.start - source.origin.1),
            width,
            f64::from(count),
        );
        self.resizer
            .resize(source.view, &mut target, &options)
            .map_err(resize_error)
    }

    /// Writes the crop of all rows that have been scaled horizontally.
    ///
    /// # Errors
    /// [`ImageError::CropLength`] or [`ImageError::Resize`].
    pub(super) fn finish(
        &mut self,
        plan: &CropPlan,
        layout: PixelLayout,
        crop: &mut [u8],
    ) -> Result<(), ImageError> {
        plan.check_length(crop)?;
        self.write(plan, layout, crop, |resizer, target| {
            resizer.scale_columns(plan, layout, target)
        })
    }

    /// Has the scaled pixels written to the crop, by way of a buffer if they have to be rearranged.
    fn write(
        &mut self,
        plan: &CropPlan,
        layout: PixelLayout,
        crop: &mut [u8],
        scale: impl FnOnce(&mut Self, &mut [u8]) -> Result<(), ImageError>,
    ) -> Result<(), ImageError> {
        if layout == PixelLayout::Rgb && plan.needs_no_rearrangement() {
            return scale(self, crop);
        }
        // Taken out of `self`, because scaling borrows the rest of it.
        let mut scaled = std::mem::take(&mut self.scaled);
        resize_buffer(
            &mut scaled,
            plan.column.length as usize * plan.row.length as usize * layout.channels(),
        );
        let result = scale(self, &mut scaled);
        if result.is_ok() {
            rearrange(&scaled, layout, plan, crop);
        }
        self.scaled = scaled;
        result
    }

    /// The second pass: scales the narrowed rows vertically.
    fn scale_columns(
        &mut self,
        plan: &CropPlan,
        layout: PixelLayout,
        target: &mut [u8],
    ) -> Result<(), ImageError> {
        let (columns, rows) = (plan.column.length, plan.row.length);
        let lines = plan.rows();
        if plan.sampling().is_some() {
            let first = lines.start;
            sampling::scale_columns(&self.narrowed, first, &self.rows, layout, columns, target);
            return Ok(());
        }
        if is_convolution(plan.filter) {
            let row_bytes = columns as usize * layout.channels();
            let packed: Vec<_> = self.narrowed.chunks_exact(row_bytes).collect();
            convolution::scale_columns(&packed, lines.start, &self.row_weights, target);
            return Ok(());
        }

        let pixel_type = pixel_type(layout);
        let mut target =
            Image::from_slice_u8(columns, rows, target, pixel_type).map_err(resize_error)?;
        let narrowed =
            Image::from_slice_u8(columns, lines.len() as u32, &mut self.narrowed, pixel_type)
                .map_err(resize_error)?;

        let (top, height) = plan.row.stretch();
        let options = plan.options().crop(
            0.0,
            top - f64::from(lines.start),
            f64::from(columns),
            height,
        );
        self.resizer
            .resize(&narrowed, &mut target, &options)
            .map_err(resize_error)
    }

    /// Scales the stored region to `plan.column.length` x `plan.row.length` pixels in one go.
    fn scale_columns_first<V: IntoImageView>(
        &mut self,
        source: &SourceView<'_, V>,
        plan: &CropPlan,
        target: &mut [u8],
    ) -> Result<(), ImageError> {
        let (columns, rows) = (plan.column.length, plan.row.length);
        if is_convolution(plan.filter) {
            return self.convolve_columns_first(source, plan, target);
        }
        let mut target = Image::from_slice_u8(columns, rows, target, pixel_type(source.layout))
            .map_err(resize_error)?;
        let (left, width) = plan.column.stretch();
        let (top, height) = plan.row.stretch();
        let options = plan.options().crop(
            left - f64::from(source.origin.0),
            top - f64::from(source.origin.1),
            width,
            height,
        );
        self.resizer
            .resize(source.view, &mut target, &options)
            .map_err(resize_error)
    }

    fn convolve_columns_first<V: IntoImageView>(
        &mut self,
        source: &SourceView<'_, V>,
        plan: &CropPlan,
        target: &mut [u8],
    ) -> Result<(), ImageError> {
        let layout = source.layout;
        let (columns, lines) = plan.region();
        self.weigh(plan);
        resize_buffer(
            &mut self.narrowed,
            columns.len() * plan.row.length as usize * layout.channels(),
        );
        let weights = &self.row_weights;
        let flattened = &mut self.narrowed;
        convolution::scale_columns_of(source, columns.clone(), lines, weights, flattened)?;

        let flattened = SourceView {
            view: &view(columns.len() as u32, plan.row.length, flattened, layout)?,
            origin: (columns.start, 0),
            layout,
        };
        convolution::scale_rows(&flattened, 0..plan.row.length, &self.column_weights, target)
    }

    /// The size of the buffers, in bytes.
    pub(super) fn memory(&self) -> usize {
        self.scaled.capacity()
            + self.narrowed.capacity()
            + self.resizer.size_of_internal_buffers()
            + self.columns.memory()
            + self.rows.memory()
            + self.column_weights.memory()
            + self.row_weights.memory()
    }
}

/// The size to which a picture is scaled so that it just fits, as Pillow's `ImageOps.contain`
/// rounds it; no side is scaled to less than a pixel.
fn contained(picture: [u32; 2], crop: [u32; 2]) -> (u32, u32) {
    let [width, height] = picture.map(f64::from);
    let [crop_width, crop_height] = crop;
    let scaled = |part: f64, most: u32| {
        let rounded = (part * f64::from(most)).round_ties_even() as u32;
        rounded.max(1)
    };
    let (ratio, wanted) = (
        width / height,
        f64::from(crop_width) / f64::from(crop_height),
    );
    if ratio > wanted {
        (
            crop_width,
            scaled(height / width, crop_width).min(crop_height),
        )
    } else if ratio < wanted {
        (
            scaled(width / height, crop_height).min(crop_width),
            crop_height,
        )
    } else {
        (crop_width, crop_height)
    }
}

/// Rejects pictures of so many rows that squashing them would take much memory: all of them are
/// kept at the width of the crop before the columns are scaled.
fn check_rows(width: u32, height: u32, crop_width: u32) -> Result<(), ImageError> {
    let most = MOST_NARROWED_BYTES / (4 * u64::from(crop_width));
    let max_side = u32::try_from(most).unwrap_or(u32::MAX).max(FEW_ROWS);
    if height > max_side {
        return Err(ImageError::SideTooLong {
            width,
            height,
            max_side,
        });
    }
    Ok(())
}

/// Turns scaled pixels upright, converts them to RGB, and writes them into the middle of the crop.
fn rearrange(scaled: &[u8], layout: PixelLayout, plan: &CropPlan, crop: &mut [u8]) {
    let (width, height) = (plan.x.length as usize, plan.y.length as usize);
    let crop_width = plan.crop_width as usize;
    if width < crop_width || height < plan.crop_height as usize {
        plan.fill(crop);
    }
    let rows = crop
        .chunks_exact_mut(3 * crop_width)
        .skip(plan.y.padding as usize)
        .take(height)
        .map(|row| &mut row[3 * plan.x.padding as usize..][..3 * width]);

    if plan.orientation == Orientation::default() {
        copy_rows_as_rgb(scaled, layout, width, rows);
    } else {
        copy_upright_as_rgb(scaled, layout, plan, rows);
    }
}

fn copy_rows_as_rgb<'a>(
    scaled: &[u8],
    layout: PixelLayout,
    width: usize,
    rows: impl Iterator<Item = &'a mut [u8]>,
) {
    let channels = layout.channels();
    let offsets = layout.rgb_offsets();
    for (row, source) in rows.zip(scaled.chunks_exact(width * channels)) {
        // The number of channels is a constant in each loop, so that each can be vectorised.
        match channels {
            1 => copy_row_as_rgb::<1>(source, row, offsets),
            2 => copy_row_as_rgb::<2>(source, row, offsets),
            3 => copy_row_as_rgb::<3>(source, row, offsets),
            _ => copy_row_as_rgb::<4>(source, row, offsets),
        }
    }
}

fn copy_row_as_rgb<const CHANNELS: usize>(source: &[u8], target: &mut [u8], offsets: [usize; 3]) {
    for (pixel, target) in source
        .chunks_exact(CHANNELS)
        .zip(target.chunks_exact_mut(3))
    {
        target.copy_from_slice(&offsets.map(|offset| pixel[offset]));
    }
}

fn copy_upright_as_rgb<'a>(
    scaled: &[u8],
    layout: PixelLayout,
    plan: &CropPlan,
    rows: impl Iterator<Item = &'a mut [u8]>,
) {
    let channels = layout.channels();
    let offsets = layout.rgb_offsets();
    let (stored_width, stored_height) = (plan.column.length as usize, plan.row.length as usize);

    for (y, row) in rows.enumerate() {
        for (x, pixel) in row.chunks_exact_mut(3).enumerate() {
            let (mut column, mut line) = if plan.orientation.swapped {
                (y, x)
            } else {
                (x, y)
            };
            if plan.orientation.mirrored_x {
                column = stored_width - 1 - column;
            }
            if plan.orientation.mirrored_y {
                line = stored_height - 1 - line;
            }
            let source = &scaled[(line * stored_width + column) * channels..][..channels];
            pixel.copy_from_slice(&offsets.map(|offset| source[offset]));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IMAGENET: Geometry = Geometry::cropped(224, 224, 256);

    fn plan(width: u32, height: u32, geometry: &Geometry) -> CropPlan {
        CropPlan::new(width, height, Orientation::default(), geometry).unwrap()
    }

    #[test]
    fn the_longer_side_is_truncated_to_whole_pixels() {
        let plan = plan(500, 333, &IMAGENET);
        assert_eq!((plan.x.scaled, plan.y.scaled), (384, 256));
        assert_eq!((plan.x.offset, plan.y.offset), (80, 16));
    }

    #[test]
    fn halves_of_offsets_are_rounded_to_even() {
        assert_eq!(Axis::center(257, 257, 224).offset, 16);
        assert_eq!(Axis::center(259, 259, 224).offset, 18);
        assert_eq!(Axis::center(260, 260, 224).offset, 18);
    }

    #[test]
    fn extreme_shapes_need_only_a_few_source_pixels() {
        for (width, height) in [(1, 100_000), (100_000, 1), (u32::MAX, 1)] {
            let (columns, rows) = plan(width, height, &IMAGENET).region();
            assert!(
                columns.len() <= 8 && rows.len() <= 8,
                "{columns:?} {rows:?}"
            );
            assert!(columns.end <= width && rows.end <= height);
        }
    }

    #[test]
    fn a_crop_larger_than_the_image_is_padded_with_black() {
        let geometry = Geometry::cropped(5, 4, 2);
        let pixels = Pixels {
            width: 2,
            height: 2,
            layout: PixelLayout::Gray,
            orientation: Orientation::default(),
            data: vec![9; 4],
        };
        let mut crop = vec![1; 5 * 4 * 3];
        Resizer::default()
            .crop(&pixels, &geometry, &mut crop)
            .unwrap();
        let gray: Vec<u8> = crop.chunks_exact(3).map(|pixel| pixel[0]).collect();
        assert_eq!(
            gray,
            [0, 0, 0, 0, 0, 0, 9, 9, 0, 0, 0, 9, 9, 0, 0, 0, 0, 0, 0, 0]
        );
    }

    #[test]
    fn a_wrong_geometry_or_buffer_is_an_error() {
        let pixels = Pixels {
            width: 2,
            height: 2,
            layout: PixelLayout::Gray,
            orientation: Orientation::default(),
            data: vec![9; 4],
        };
        let mut resizer = Resizer::default();
        let error = resizer.crop(&pixels, &IMAGENET, &mut [0; 7]).unwrap_err();
        assert_eq!(
            error,
            ImageError::CropLength {
                expected: 150_528,
                got: 7
            }
        );
        let error = resizer
            .crop(
                &pixels,
                &Geometry {
                    width: 0,
                    ..IMAGENET
                },
                &mut [],
            )
            .unwrap_err();
        assert!(matches!(error, ImageError::Geometry { width: 0, .. }));
        let error = resizer
            .crop(&Pixels::default(), &IMAGENET, &mut [])
            .unwrap_err();
        assert_eq!(
            error,
            ImageError::ZeroSize {
                width: 0,
                height: 0
            }
        );
    }

    #[test]
    fn channels_are_reordered_and_alpha_is_dropped() {
        let geometry = Geometry::cropped(1, 1, 1);
        for (layout, data, expected) in [
            (PixelLayout::Gray, vec![7], [7, 7, 7]),
            (PixelLayout::GrayAlpha, vec![7, 0], [7, 7, 7]),
            (PixelLayout::Rgb, vec![1, 2, 3], [1, 2, 3]),
            (PixelLayout::Bgr, vec![1, 2, 3], [3, 2, 1]),
            (PixelLayout::Rgba, vec![1, 2, 3, 0], [1, 2, 3]),
            (PixelLayout::Bgra, vec![1, 2, 3, 0], [3, 2, 1]),
        ] {
            let pixels = Pixels {
                width: 1,
                height: 1,
                layout,
                orientation: Orientation::default(),
                data,
            };
            let mut crop = [0; 3];
            Resizer::default()
                .crop(&pixels, &geometry, &mut crop)
                .unwrap();
            assert_eq!(crop, expected, "{layout:?}");
        }
    }

    #[test]
    fn every_orientation_agrees_with_manually_turned_pixels() {
        let (width, height) = (31u32, 47u32);
        let stored: Vec<u8> = (0..width * height)
            .flat_map(|i| [i as u8, (i / 7) as u8, (i * i / 11) as u8])
            .collect();
        let geometry = Geometry::cropped(20, 14, 24);
        let at = |x: u32, y: u32| -> [u8; 3] {
            stored[3 * (y * width + x) as usize..][..3]
                .try_into()
                .unwrap()
        };
        for value in 1..=8u8 {
            let turned = value > 4;
            let (upright_width, upright_height) = if turned {
                (height, width)
            } else {
                (width, height)
            };
            let mut upright = Vec::new();
            for y in 0..upright_height {
                for x in 0..upright_width {
                    // From the EXIF standard's table of where row 0 and column 0 are in the
                    // upright image.
                    upright.extend(match value {
                        1 => at(x, y),
                        2 => at(width - 1 - x, y),
                        3 => at(width - 1 - x, height - 1 - y),
                        4 => at(x, height - 1 - y),
                        5 => at(y, x),
                        6 => at(y, height - 1 - x),
                        7 => at(width - 1 - y, height - 1 - x),
                        _ => at(width - 1 - y, x),
                    });
                }
            }
            let crop_of = |width, height, orientation, data: &[u8]| {
                let pixels = Pixels {
                    width,
                    height,
                    layout: PixelLayout::Rgb,
                    orientation,
                    data: data.to_vec(),
                };
                let mut crop = vec![0; 20 * 14 * 3];
                Resizer::default()
                    .crop(&pixels, &geometry, &mut crop)
                    .unwrap();
                crop
            };
            let expected = crop_of(
                upright_width,
                upright_height,
                Orientation::default(),
                &upright,
            );
            let got = crop_of(width, height, Orientation::from_exif(value), &stored);
            let worst = got
                .iter()
                .zip(&expected)
                .map(|(a, b)| a.abs_diff(*b))
                .max()
                .unwrap();
            assert!(worst <= 1, "orientation {value} differs by {worst}");
        }
    }
}
