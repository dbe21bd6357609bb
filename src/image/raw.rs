//! Raw frames: validates what was sent, and converts YCbCr video formats to RGB, but only the
//! region that the crop depends on.

use std::{fmt, ops::Range};

use super::{
    Geometry, ImageError, PixelFormat, RawFrame,
    budget::Budget,
    crop_plan::CropPlan,
    orientation::Orientation,
    pixels::{PixelLayout, Pixels, resize_buffer},
    resize::Resizer,
    source_view::SourceView,
};

impl fmt::Display for PixelFormat {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Rgb8 => "RGB8",
            Self::Bgr8 => "BGR8",
            Self::Rgba8 => "RGBA8",
            Self::Bgra8 => "BGRA8",
            Self::Gray8 => "GRAY8",
            Self::Nv12 => "NV12",
            Self::I420 => "I420",
        })
    }
}

impl PixelFormat {
    /// The layout of a pixel in an interleaved format; `None` for planar formats.
    fn layout(self) -> Option<PixelLayout> {
        match self {
            Self::Rgb8 => Some(PixelLayout::Rgb),
            Self::Bgr8 => Some(PixelLayout::Bgr),
            Self::Rgba8 => Some(PixelLayout::Rgba),
            Self::Bgra8 => Some(PixelLayout::Bgra),
            Self::Gray8 => Some(PixelLayout::Gray),
            Self::Nv12 | Self::I420 => None,
        }
    }
}

/// Writes the crop of a frame as RGB8. The frame's size has been checked against the limits;
/// `scratch` is working memory.
pub(super) fn crop(
    frame: &RawFrame,
    geometry: &Geometry,
    budget: &Budget,
    scratch: &mut Vec<u8>,
    resizer: &mut Resizer,
    crop: &mut [u8],
) -> Result<(), ImageError> {
    let planes = Planes::locate(frame, budget)?;
    let plan = CropPlan::new(frame.width, frame.height, Orientation::default(), geometry)?;
    match frame.format.layout() {
        Some(layout) => {
            let pixels = SourceView::packed(frame.width, &frame.data, layout);
            resizer.crop_view(pixels.with_stride(planes.stride), &plan, crop)
        }
        None => crop_planar(&planes, &plan, scratch, resizer, crop),
    }
}

/// Writes all pixels of a frame, whose size has been checked against the limits.
pub(super) fn decode(
    frame: &RawFrame,
    budget: &Budget,
    pixels: &mut Pixels,
) -> Result<(), ImageError> {
    let planes = Planes::locate(frame, budget)?;
    pixels.width = frame.width;
    pixels.height = frame.height;
    pixels.orientation = Orientation::default();
    let Some(layout) = frame.format.layout() else {
        pixels.layout = PixelLayout::Rgba;
        return planes.convert_to_rgbx(0..frame.width, 0..frame.height, &mut pixels.data);
    };
    pixels.layout = layout;
    let row = frame.width as usize * layout.channels();
    resize_buffer(&mut pixels.data, row * frame.height as usize);
    for (y, target) in pixels.data.chunks_exact_mut(row).enumerate() {
        budget.spend(row)?;
        target.copy_from_slice(&frame.data[y * planes.stride..][..row]);
    }
    Ok(())
}

fn crop_planar(
    planes: &Planes<'_>,
    plan: &CropPlan,
    scratch: &mut Vec<u8>,
    resizer: &mut Resizer,
    crop: &mut [u8],
) -> Result<(), ImageError> {
    let (columns, rows) = plan.region();
    // Two neighbouring pixels share a chroma sample, so the region starts at an even column.
    let columns = columns.start & !1..columns.end;
    let origin = (columns.start, rows.start);
    let width = columns.len() as u32;

    planes.convert_to_rgbx(columns, rows, scratch)?;
    let source = SourceView::packed(width, scratch, PixelLayout::Rgba).at(origin);
    resizer.crop_view(source, plan, crop)
}

/// A frame whose data is known to be complete, and where its rows are.
struct Planes<'a> {
    frame: &'a RawFrame,
    budget: &'a Budget,
    /// Bytes from one row of the first plane (luma, or whole pixels) to the next.
    stride: usize,
    /// Bytes from one row of a chroma plane to the next. Only used for formats with chroma planes.
    chroma_stride: usize,
}

impl<'a> Planes<'a> {
    /// Checks the stride and the length of the data.
    fn locate(frame: &'a RawFrame, budget: &'a Budget) -> Result<Self, ImageError> {
        let &RawFrame {
            format,
            width,
            height,
            stride,
            ref data,
        } = frame;

        let bytes_per_sample = format.layout().map_or(1, PixelLayout::channels) as u64;
        let row = u64::from(width) * bytes_per_sample;
        if stride != 0 && u64::from(stride) < row {
            return Err(ImageError::Stride {
                format,
                width,
                stride,
                minimum: row,
            });
        }
        let stride = if stride == 0 { row } else { u64::from(stride) };

        let last_plane = LastPlane::of(format, width, height, row, stride);
        let at_least = last_plane.last_row_offset.saturating_add(last_plane.row);
        let at_most = last_plane.last_row_offset.saturating_add(last_plane.stride);

        let got = data.len() as u64;
        if got < at_least {
            return Err(ImageError::DataTooShort {
                format,
                width,
                height,
                stride,
                expected: at_least,
                got,
            });
        }
        if got > at_most {
            return Err(ImageError::DataTooLong {
                format,
                width,
                height,
                stride,
                expected: at_most,
                got,
            });
        }

        let to_usize = |stride: u64| usize::try_from(stride).unwrap_or(usize::MAX);
        Ok(Self {
            frame,
            budget,
            stride: to_usize(stride),
            chroma_stride: to_usize(last_plane.stride),
        })
    }

    /// Converts a region that starts at an even column to packed pixels of four bytes: red, green,
    /// blue, and an unused one.
    fn convert_to_rgbx(
        &self,
        columns: Range<u32>,
        rows: Range<u32>,
        target: &mut Vec<u8>,
    ) -> Result<(), ImageError> {
        let luma_columns = columns.start as usize..columns.end as usize;
        let width = luma_columns.len();
        let chroma_columns = luma_columns.start / 2..luma_columns.end.div_ceil(2);
        let mut chroma = ChromaRow::new(chroma_columns.len());
        let mut loaded_chroma_row = None;

        resize_buffer(target, 4 * width * rows.len());
        for (target, row) in target.chunks_exact_mut(4 * width).zip(rows) {
            self.budget.spend(target.len())?;
            let row = row as usize;
            if loaded_chroma_row != Some(row / 2) {
                loaded_chroma_row = Some(row / 2);
                self.read_chroma(row / 2, chroma_columns.clone(), &mut chroma);
            }
            let luma = &self.frame.data[row * self.stride..][luma_columns.clone()];
            chroma.write_rgbx(luma, target);
        }
        Ok(())
    }

    fn read_chroma(&self, row: usize, columns: Range<usize>, chroma: &mut ChromaRow) {
        let planes = &self.frame.data[self.stride * self.frame.height as usize..];
        if self.frame.format == PixelFormat::Nv12 {
            let samples = &planes[row * self.chroma_stride..][2 * columns.start..2 * columns.end];
            chroma.set(samples.as_chunks().0.iter().map(|&[cb, cr]| (cb, cr)));
        } else {
            let rows = self.frame.height.div_ceil(2) as usize;
            let cb = &planes[row * self.chroma_stride..][columns.clone()];
            let cr = &planes[(rows + row) * self.chroma_stride..][columns];
            chroma.set(cb.iter().copied().zip(cr.iter().copied()));
        }
    }
}

/// The plane at the end of a frame's data. The padding of its last row may be missing, so a frame
/// needs at least `last_row_offset + row` bytes of data, and at most `last_row_offset + stride`.
struct LastPlane {
    /// The bytes of a row, without padding.
    row: u64,
    /// Bytes from one row to the next.
    stride: u64,
    /// Where in the data the last row begins.
    last_row_offset: u64,
}

impl LastPlane {
    /// `row` and `stride` are those of the first plane, in bytes. The arithmetic saturates, because
    /// sizes are untrusted.
    fn of(format: PixelFormat, width: u32, height: u32, row: u64, stride: u64) -> Self {
        let rows = u64::from(height);
        let chroma_columns = u64::from(width.div_ceil(2));
        let chroma_rows = rows.div_ceil(2);
        match format {
            PixelFormat::Nv12 => {
                let chroma_stride = stride.next_multiple_of(2);
                Self {
                    row: 2 * chroma_columns,
                    stride: chroma_stride,
                    last_row_offset: plane_bytes(stride, rows)
                        .saturating_add(plane_bytes(chroma_stride, chroma_rows - 1)),
                }
            }
            PixelFormat::I420 => {
                let chroma_stride = stride.div_ceil(2);
                Self {
                    row: chroma_columns,
                    stride: chroma_stride,
                    last_row_offset: plane_bytes(stride, rows)
                        .saturating_add(plane_bytes(chroma_stride, 2 * chroma_rows - 1)),
                }
            }
            _ => Self {
                row,
                stride,
                last_row_offset: plane_bytes(stride, rows - 1),
            },
        }
    }
}

fn plane_bytes(stride: u64, rows: u64) -> u64 {
    stride.saturating_mul(rows)
}

/// What a row's chroma adds to red, green and blue, in 256ths: BT.601 at limited range, in fixed
/// point. Each sample is stored twice, once for either pixel that shares it.
struct ChromaRow {
    red: Vec<[i32; 2]>,
    green: Vec<[i32; 2]>,
    blue: Vec<[i32; 2]>,
}

impl ChromaRow {
    fn new(samples: usize) -> Self {
        let zeros = vec![[0; 2]; samples];
        Self {
            red: zeros.clone(),
            green: zeros.clone(),
            blue: zeros,
        }
    }

    /// Sets the row from pairs of Cb and Cr.
    fn set(&mut self, samples: impl Iterator<Item = (u8, u8)>) {
        let targets = self.red.iter_mut().zip(&mut self.green).zip(&mut self.blue);
        for (((red, green), blue), (cb, cr)) in targets.zip(samples) {
            let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
            *red = [409 * cr; 2];
            *green = [-100 * cb - 208 * cr; 2];
            *blue = [516 * cb; 2];
        }
    }

    /// Combines a row of luma with this chroma and writes four bytes per pixel.
    fn write_rgbx(&self, luma: &[u8], target: &mut [u8]) {
        let chroma = self
            .red
            .as_flattened()
            .iter()
            .zip(self.green.as_flattened())
            .zip(self.blue.as_flattened());
        let pixels = target.as_chunks_mut::<4>().0.iter_mut();
        for ((target, luma), ((red, green), blue)) in pixels.zip(luma).zip(chroma) {
            let luma = 298 * (i32::from(*luma) - 16) + 128;
            let channel = |chroma: &i32| ((luma + chroma) >> 8).clamp(0, 255) as u32;
            *target = (channel(red) | channel(green) << 8 | channel(blue) << 16).to_le_bytes();
        }
    }
}
