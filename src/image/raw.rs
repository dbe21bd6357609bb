//! Raw frames: checking what was sent, and converting video's luma and chroma to RGB where the crop
//! needs it.

use std::fmt;
use std::ops::Range;

use fast_image_resize::images::CroppedImage;

use super::orientation::Orientation;
use super::pixels::{Layout, resize_buffer};
use super::resize::{Plan, Resizer, defect, view};
use super::{Geometry, ImageError, PixelFormat, PreprocessConfig, RawFrame};

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
    /// How a pixel's bytes lie beside each other; `None` for formats in several planes.
    fn layout(self) -> Option<Layout> {
        match self {
            Self::Rgb8 => Some(Layout::Rgb),
            Self::Bgr8 => Some(Layout::Bgr),
            Self::Rgba8 => Some(Layout::Rgba),
            Self::Bgra8 => Some(Layout::Bgra),
            Self::Gray8 => Some(Layout::Gray),
            Self::Nv12 | Self::I420 => None,
        }
    }
}

/// Writes the crop of a frame as RGB8; `scratch` is memory to work in.
pub(super) fn crop(
    frame: &RawFrame,
    config: &PreprocessConfig,
    geometry: &Geometry,
    scratch: &mut Vec<u8>,
    resizer: &mut Resizer,
    crop: &mut [u8],
) -> Result<(), ImageError> {
    let planes = Planes::of(frame, config)?;
    let plan = Plan::new(frame.width, frame.height, Orientation::default(), geometry)?;
    let Some(layout) = frame.format.layout() else {
        let (columns, rows) = plan.region();
        // Pixels that share a chroma sample stay together.
        let columns = columns.start & !1..columns.end;
        let origin = (columns.start, rows.start);
        let (width, height) = (columns.len() as u32, rows.len() as u32);
        planes.convert(columns, rows, scratch);
        let source = view(width, height, scratch, Layout::Rgba)?;
        return resizer.crop_view(&source, origin, Layout::Rgba, &plan, crop);
    };

    let channels = layout.channels();
    let whole = planes.stride.saturating_mul(frame.height as usize);
    if planes.stride.is_multiple_of(channels) && frame.data.len() >= whole {
        // The padding is a few pixels that are there but not looked at.
        let padded = view(
            (planes.stride / channels) as u32,
            frame.height,
            &frame.data[..whole],
            layout,
        )?;
        let source = CroppedImage::new(&padded, 0, 0, frame.width, frame.height).map_err(defect)?;
        return resizer.crop_view(&source, (0, 0), layout, &plan, crop);
    }
    let (columns, rows) = plan.region();
    let origin = (columns.start, rows.start);
    let (width, height) = (columns.len() as u32, rows.len() as u32);
    let bytes = columns.start as usize * channels..columns.end as usize * channels;
    resize_buffer(scratch, bytes.len() * rows.len());
    for (target, row) in scratch.chunks_exact_mut(bytes.len()).zip(rows) {
        target.copy_from_slice(&frame.data[row as usize * planes.stride..][bytes.clone()]);
    }
    let source = view(width, height, scratch, layout)?;
    resizer.crop_view(&source, origin, layout, &plan, crop)
}

/// Where the rows of a frame are; made only if they are all there.
struct Planes<'a> {
    frame: &'a RawFrame,
    /// Bytes from one row of luma, or of whole pixels, to the next.
    stride: usize,
    /// The same for chroma, where there is any.
    chroma_stride: usize,
}

impl<'a> Planes<'a> {
    fn of(frame: &'a RawFrame, config: &PreprocessConfig) -> Result<Self, ImageError> {
        let &RawFrame {
            format,
            width,
            height,
            stride,
            ref data,
        } = frame;
        config.check_size(width, height)?;
        let bytes_a_pixel = format.layout().map_or(1, Layout::channels) as u64;
        let row = u64::from(width) * bytes_a_pixel;
        if stride != 0 && u64::from(stride) < row {
            return Err(ImageError::Stride {
                format,
                width,
                stride,
                minimum: row,
            });
        }
        let stride = if stride == 0 { row } else { u64::from(stride) };
        let rows = u64::from(height);
        let (chroma_columns, chroma_rows) = (u64::from(width.div_ceil(2)), rows.div_ceil(2));
        // The last plane's row and stride, and the bytes before its last row.
        let (last_row, last_stride, before) = match format {
            PixelFormat::Nv12 => {
                let chroma_stride = stride.next_multiple_of(2);
                (
                    2 * chroma_columns,
                    chroma_stride,
                    bytes([(stride, rows), (chroma_stride, chroma_rows - 1)]),
                )
            }
            PixelFormat::I420 => {
                let chroma_stride = stride.div_ceil(2);
                (
                    chroma_columns,
                    chroma_stride,
                    bytes([(stride, rows), (chroma_stride, 2 * chroma_rows - 1)]),
                )
            }
            _ => (row, stride, bytes([(stride, rows - 1), (0, 0)])),
        };
        let (at_least, at_most) = (
            before.saturating_add(last_row),
            before.saturating_add(last_stride),
        );
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
        let in_memory = |stride: u64| usize::try_from(stride).unwrap_or(usize::MAX);
        Ok(Self {
            frame,
            stride: in_memory(stride),
            chroma_stride: in_memory(last_stride),
        })
    }

    /// Converts a region that starts at an even column to packed RGB with a fourth byte of no
    /// meaning.
    fn convert(&self, columns: Range<u32>, rows: Range<u32>, target: &mut Vec<u8>) {
        let luma_columns = columns.start as usize..columns.end as usize;
        let width = luma_columns.len();
        let chroma_columns = luma_columns.start / 2..luma_columns.end.div_ceil(2);
        let mut chroma = Chroma::new(chroma_columns.len());
        let mut chroma_row = None;
        resize_buffer(target, 4 * width * rows.len());
        for (target, row) in target.chunks_exact_mut(4 * width).zip(rows) {
            let row = row as usize;
            if chroma_row != Some(row / 2) {
                chroma_row = Some(row / 2);
                self.read_chroma(row / 2, chroma_columns.clone(), &mut chroma);
            }
            chroma.colour(
                &self.frame.data[row * self.stride..][luma_columns.clone()],
                target,
            );
        }
    }

    fn read_chroma(&self, row: usize, columns: Range<usize>, chroma: &mut Chroma) {
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

/// The bytes of planes, each given by its stride and its number of rows.
fn bytes(planes: [(u64, u64); 2]) -> u64 {
    planes.into_iter().fold(0, |sum, (stride, rows)| {
        stride.saturating_mul(rows).saturating_add(sum)
    })
}

/// BT.601's limited range in fixed point: what a row's chroma adds to red, green and blue, in
/// 256ths, for each pixel.
struct Chroma {
    red: Vec<[i32; 2]>,
    green: Vec<[i32; 2]>,
    blue: Vec<[i32; 2]>,
}

impl Chroma {
    fn new(samples: usize) -> Self {
        let zeros = vec![[0; 2]; samples];
        Self {
            red: zeros.clone(),
            green: zeros.clone(),
            blue: zeros,
        }
    }

    fn set(&mut self, samples: impl Iterator<Item = (u8, u8)>) {
        let targets = self.red.iter_mut().zip(&mut self.green).zip(&mut self.blue);
        for (((red, green), blue), (cb, cr)) in targets.zip(samples) {
            let (cb, cr) = (i32::from(cb) - 128, i32::from(cr) - 128);
            *red = [409 * cr; 2];
            *green = [-100 * cb - 208 * cr; 2];
            *blue = [516 * cb; 2];
        }
    }

    /// Writes four bytes a pixel.
    fn colour(&self, luma: &[u8], target: &mut [u8]) {
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
