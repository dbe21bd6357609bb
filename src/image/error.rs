//! Why an image was rejected.

use std::time::Duration;

use super::{ImageFormat, PixelFormat, RegionError};

/// Why an image was rejected. Every message says what was wrong and what is accepted.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    #[error("the image is empty (0 bytes); send {}", ImageFormat::ACCEPTED)]
    Empty,

    /// The data is not in an accepted image format.
    #[error(
        "unsupported image format: {}; send {}",
        describe(*.looks_like),
        ImageFormat::ACCEPTED
    )]
    Unrecognized {
        /// What the data looks like instead, where that is known.
        looks_like: Option<&'static str>,
    },

    /// The format is accepted, but not this variant of it.
    #[error(
        "unsupported variant of {format}: {reason}; \
         save it as a standard 8-bit {format} or as PNG"
    )]
    UnsupportedVariant { format: ImageFormat, reason: String },

    /// The file ends before its image does.
    #[error(
        "truncated {format}: the {bytes} bytes received hold only part of the image; \
         send the whole file"
    )]
    Truncated {
        format: ImageFormat,
        /// The length of the file as received.
        bytes: usize,
    },

    /// The content of the file violates its format.
    #[error("damaged {format}: {reason}; send the original, unmodified file")]
    Damaged { format: ImageFormat, reason: String },

    /// The decoder panicked. The panic was caught, and only this image is affected.
    #[error(
        "the image cannot be decoded: its content made the decoder fail internally; \
         save it again, for example as PNG"
    )]
    DecoderPanic,

    /// The process that would decode it is not there.
    #[error(
        "{format} is decoded in a process of its own, and {reason}; send the image as JPEG or PNG"
    )]
    NoDecoder { format: ImageFormat, reason: String },

    #[error("the image is {width}x{height} pixels; width and height must be at least 1")]
    ZeroSize { width: u32, height: u32 },

    #[error(
        "the image is {width}x{height} pixels, more than the {max_pixels} allowed \
         (width times height); scale it down first"
    )]
    TooManyPixels {
        width: u32,
        height: u32,
        /// The limit on width times height.
        max_pixels: u64,
    },

    #[error(
        "the image is {width}x{height} pixels; neither side may have more than {max_side}; \
         scale it down first"
    )]
    SideTooLong {
        width: u32,
        height: u32,
        /// The limit on width and on height.
        max_side: u32,
    },

    /// Decoding would take too much memory.
    #[error(
        "decoding this {format} would take more than the {max_bytes} bytes of memory allowed; \
         scale it down first"
    )]
    TooMuchMemory { format: ImageFormat, max_bytes: u64 },

    /// Decoding was abandoned when its time was over.
    #[error(
        "decoding the image took longer than {max_time:?}, the limit of --max-decode-time; \
         scale it down, or save it as a standard JPEG or PNG"
    )]
    TookTooLong {
        /// The limit on the CPU time of decoding.
        max_time: Duration,
    },

    /// Decoding takes more memory than the server has for one image.
    #[error(
        "decoding the image takes about {} MiB of memory, and this server has {} for one image \
         (its flag --max-memory); scale it down, or save it as a sequential JPEG",
        bytes.div_ceil(1 << 20),
        limit >> 20
    )]
    AboveMemory {
        /// What decoding takes, in bytes.
        bytes: u64,
        /// What it may take, in bytes.
        limit: u64,
    },

    /// The stride of a raw frame is so small that its rows would overlap.
    #[error(
        "the stride is {stride} bytes, but a row of {width} {format} pixels takes {minimum}; \
         send a stride of at least {minimum}, or 0 for packed rows"
    )]
    Stride {
        format: PixelFormat,
        width: u32,
        /// The stride as sent, in bytes.
        stride: u32,
        /// The smallest valid stride, in bytes.
        minimum: u64,
    },

    /// A raw frame has less data than its format and size require.
    #[error(
        "the {format} frame of {width}x{height} pixels with a stride of {stride} bytes needs \
         at least {expected} bytes of data, but {got} were sent; \
         check format, width, height and stride"
    )]
    DataTooShort {
        format: PixelFormat,
        width: u32,
        height: u32,
        /// The effective stride, in bytes.
        stride: u64,
        /// The smallest valid length of the data, in bytes.
        expected: u64,
        /// The length of the data as sent, in bytes.
        got: u64,
    },

    /// A raw frame has data after the last row and its padding, so the description of the frame
    /// must be wrong.
    #[error(
        "the {format} frame of {width}x{height} pixels with a stride of {stride} bytes needs \
         at most {expected} bytes of data, but {got} were sent; \
         check format, width, height and stride"
    )]
    DataTooLong {
        format: PixelFormat,
        width: u32,
        height: u32,
        /// The effective stride, in bytes.
        stride: u64,
        /// The largest valid length of the data, in bytes.
        expected: u64,
        /// The length of the data as sent, in bytes.
        got: u64,
    },

    /// A crop that the caller prepared has the wrong size.
    #[error("the crop is {got} bytes long, but the model's input size takes exactly {expected}")]
    ReadyCropLength { expected: u64, got: u64 },

    /// A normalized value is below that of black or above that of white, or not a number.
    #[error(
        "the value {value} of {channel} at x {x}, y {y} is out of range: \
         black is {black} and white is {white}; \
         send (pixel / 255 - mean) / std with the model's mean and std"
    )]
    ValueOutOfRange {
        /// The value as sent.
        value: String,
        /// The channel's name: red, green or blue.
        channel: &'static str,
        /// The column in the crop.
        x: usize,
        /// The row in the crop.
        y: usize,
        /// The smallest valid value.
        black: String,
        /// The largest valid value.
        white: String,
    },

    /// A region is empty or not within the image.
    #[error(transparent)]
    Region(#[from] RegionError),

    /// Regions are asked for of a crop that the caller prepared.
    #[error("a crop has no regions; send the whole image, as a file or a raw frame")]
    RegionsOfCrop,

    /// The model's geometry has a zero in it.
    #[error(
        "cannot crop {width}x{height} pixels from an image scaled to a shorter side of \
         {resize_shorter_side}; all three must be at least 1"
    )]
    Geometry {
        width: u32,
        height: u32,
        resize_shorter_side: u32,
    },

    /// The buffer for the crop has the wrong length: a defect of this program.
    #[error("the buffer for the crop has {got} bytes, but height x width x 3 is {expected}")]
    CropLength { expected: u64, got: u64 },
}

fn describe(looks_like: Option<&str>) -> String {
    match looks_like {
        Some(name) => format!("the data looks like {name}"),
        None => "the data matches no known file type".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_was_wrong_and_what_is_accepted() {
        assert_eq!(
            ImageError::Unrecognized {
                looks_like: Some("SVG")
            }
            .to_string(),
            "unsupported image format: the data looks like SVG; \
             send JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, HEIC, AVIF, QOI, ICO or TGA"
        );
        assert_eq!(
            ImageError::Stride {
                format: PixelFormat::Rgb8,
                width: 10,
                stride: 29,
                minimum: 30
            }
            .to_string(),
            "the stride is 29 bytes, but a row of 10 RGB8 pixels takes 30; \
             send a stride of at least 30, or 0 for packed rows"
        );
    }
}
