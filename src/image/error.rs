//! Why an image was refused.

use super::{Kind, PixelFormat};

/// Why an image was refused. Every message says what was wrong and what would be right.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ImageError {
    /// There are no bytes at all.
    #[error("the image is empty; send {}", Kind::ACCEPTED)]
    Empty,
    /// The bytes are no image of an accepted kind.
    #[error("unsupported kind of image: {}; send {}", describe(*.looks_like), Kind::ACCEPTED)]
    Unrecognised {
        /// What the bytes look like instead, where that is known.
        looks_like: Option<&'static str>,
    },
    /// The kind is accepted, but not this variety of it.
    #[error(
        "unsupported variety of {kind}: {reason}; save it as an ordinary 8-bit {kind} or as PNG"
    )]
    UnsupportedVariety {
        /// The file's kind.
        kind: Kind,
        /// What makes it unsupported.
        reason: String,
    },
    /// The file ends before its image does.
    #[error(
        "truncated {kind}: its {bytes} bytes hold only a part of the image; send the whole file"
    )]
    Truncated {
        /// The file's kind.
        kind: Kind,
        /// How many bytes there are.
        bytes: usize,
    },
    /// The file's content contradicts its format.
    #[error("damaged {kind}: {reason}; send the file as it was first saved")]
    Damaged {
        /// The file's kind.
        kind: Kind,
        /// What the decoder stumbled on.
        reason: String,
    },
    /// The decoder gave up in a way that it shouldn't.
    #[error(
        "the image can't be decoded: its content brought the decoder to a halt; save it anew, for example as PNG"
    )]
    DecoderPanic,
    /// The image has no pixels.
    #[error("the image is {width}x{height} pixels; both sides must be at least 1")]
    ZeroSize {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
    },
    /// The image has too many pixels.
    #[error(
        "the image is {width}x{height} pixels, more than the {max_pixels} allowed in all; scale it down first"
    )]
    TooManyPixels {
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// Width times height may be this much.
        max_pixels: u64,
    },
    /// Decoding would take too much memory.
    #[error(
        "decoding this {kind} would take more than the {max_bytes} bytes of memory allowed; scale it down first"
    )]
    TooMuchMemory {
        /// The file's kind.
        kind: Kind,
        /// The memory allowed, in bytes.
        max_bytes: u64,
    },
    /// A raw frame's rows would overlap.
    #[error(
        "the stride is {stride} bytes, but a row of {width} {format} pixels takes {minimum}; send at least that, or 0 for \
         packed rows"
    )]
    Stride {
        /// How the pixels lie in memory.
        format: PixelFormat,
        /// In pixels.
        width: u32,
        /// As sent, in bytes.
        stride: u32,
        /// The smallest right value, in bytes.
        minimum: u64,
    },
    /// A raw frame's data ends too early.
    #[error(
        "a {format} frame of {width}x{height} pixels with {stride} bytes a row takes {expected} bytes of data, but there are \
         {got}; check format, width, height and stride"
    )]
    DataTooShort {
        /// How the pixels lie in memory.
        format: PixelFormat,
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// The effective stride, in bytes.
        stride: u64,
        /// The fewest bytes that are right.
        expected: u64,
        /// The bytes that there are.
        got: u64,
    },
    /// A raw frame's data goes on after the last row and its padding, so its description can't be
    /// right.
    #[error(
        "a {format} frame of {width}x{height} pixels with {stride} bytes a row takes at most {expected} bytes of data, but \
         there are {got}; check format, width, height and stride"
    )]
    DataTooLong {
        /// How the pixels lie in memory.
        format: PixelFormat,
        /// In pixels.
        width: u32,
        /// In pixels.
        height: u32,
        /// The effective stride, in bytes.
        stride: u64,
        /// The most bytes that are right.
        expected: u64,
        /// The bytes that there are.
        got: u64,
    },
    /// A crop that the caller made has the wrong size.
    #[error("the crop has {got} bytes, but one of the model's input size has {expected}")]
    ReadyCropLength {
        /// The right number.
        expected: u64,
        /// The bytes that there are.
        got: u64,
    },
    /// A normalised value is beyond black and white.
    #[error(
        "the value {value} of {channel} at x {x}, y {y} is that of no pixel: black is {black} and white {white}; send \
         (pixel / 255 - mean) / std with the model's mean and std"
    )]
    NoPixel {
        /// As sent.
        value: String,
        /// The channel's name.
        channel: &'static str,
        /// The column.
        x: usize,
        /// The row.
        y: usize,
        /// The smallest right value.
        black: String,
        /// The largest right value.
        white: String,
    },
    /// The model's geometry has a zero in it.
    #[error(
        "a crop of {width}x{height} pixels out of images scaled to {resize_shorter_side} is impossible; all three must be at \
         least 1"
    )]
    Geometry {
        /// The crop's width, in pixels.
        width: u32,
        /// The crop's height, in pixels.
        height: u32,
        /// The shorter side after scaling, in pixels.
        resize_shorter_side: u32,
    },
    /// The buffer for the crop has the wrong length.
    #[error("the buffer for the crop has {got} bytes; height x width x 3 are {expected}")]
    CropLength {
        /// Height x width x 3.
        expected: u64,
        /// The buffer's length.
        got: u64,
    },
    /// The resampler refused its input; a defect of this crate.
    #[error("the image could not be resized: {0}")]
    Resize(String),
}

fn describe(looks_like: Option<&str>) -> String {
    match looks_like {
        Some(name) => format!("looks like {name}"),
        None => "these bytes are no known kind of file".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_say_what_was_wrong_and_what_is_right() {
        assert_eq!(
            ImageError::Unrecognised {
                looks_like: Some("HEIC")
            }
            .to_string(),
            "unsupported kind of image: looks like HEIC; send JPEG, PNG, WebP, GIF, BMP, TIFF or PNM"
        );
        assert_eq!(
            ImageError::Stride {
                format: PixelFormat::Rgb8,
                width: 10,
                stride: 29,
                minimum: 30
            }
            .to_string(),
            "the stride is 29 bytes, but a row of 10 RGB8 pixels takes 30; send at least that, or 0 for packed rows"
        );
    }
}
