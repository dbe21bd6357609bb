//! How a picture becomes the crop that a model takes: the size, the fit and the filter.

use std::{fmt, str::FromStr};

/// The crop that a model takes, and how pictures are scaled to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The width of the crop, in pixels.
    pub width: u32,
    /// The height of the crop, in pixels.
    pub height: u32,
    /// With [`Fit::Crop`], the shorter side of the image after scaling, in pixels. With
    /// [`Fit::Squash`], the same for an image of the crop's proportions. Not used by
    /// [`Fit::Letterbox`].
    pub resize_shorter_side: u32,
    /// How an image of other proportions is fitted.
    pub fit: Fit,
    /// The filter that scales.
    pub filter: Filter,
}

impl Geometry {
    /// Scales the shorter side to `resize_shorter_side` with antialiased bilinear filtering, and
    /// crops the centre, as torchvision's transforms for ImageNet do.
    pub const fn cropped(width: u32, height: u32, resize_shorter_side: u32) -> Self {
        Self {
            width,
            height,
            resize_shorter_side,
            fit: Fit::Crop,
            filter: Filter::Bilinear,
        }
    }

    /// The size of a crop, in bytes: height · width · 3.
    pub fn bytes(&self) -> usize {
        self.height as usize * self.width as usize * 3
    }

    /// Swaps left and right in a crop of this size.
    pub fn mirror(&self, crop: &mut [u8]) {
        for row in crop.chunks_exact_mut(self.width as usize * 3) {
            row.as_chunks_mut::<3>().0.reverse();
        }
    }

    /// The shorter side that an image needs so that no side of it is scaled up, in pixels.
    pub(super) fn needed_shorter_side(&self) -> u32 {
        match self.fit {
            Fit::Crop => self.resize_shorter_side,
            Fit::Squash | Fit::Letterbox(_) => {
                self.resize_shorter_side.max(self.width).max(self.height)
            }
        }
    }
}

/// How an image whose proportions differ from the crop's is fitted into it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Fit {
    /// Its shorter side is scaled, and the centre is cropped.
    #[default]
    Crop,
    /// Each side is scaled by itself, whatever the proportions.
    Squash,
    /// The longer side fits, and the rest is padded evenly with this colour, red, green and blue.
    /// Sizes and offsets are rounded as by Pillow's `ImageOps.pad`.
    Letterbox([u8; 3]),
}

impl Fit {
    /// The colour beside the image.
    pub(super) fn padding(self) -> [u8; 3] {
        match self {
            Self::Crop | Self::Squash => [0; 3],
            Self::Letterbox(colour) => colour,
        }
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Crop => f.write_str("crop"),
            Self::Squash => f.write_str("squash"),
            Self::Letterbox([0, 0, 0]) => f.write_str("letterbox"),
            Self::Letterbox([red, green, blue]) => {
                write!(f, "letterbox:{red:02x}{green:02x}{blue:02x}")
            }
        }
    }
}

impl FromStr for Fit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "crop" => return Ok(Self::Crop),
            "squash" => return Ok(Self::Squash),
            "letterbox" => return Ok(Self::Letterbox([0; 3])),
            _ => {}
        }
        let colour = text
            .strip_prefix("letterbox:")
            .map(|colour| colour.strip_prefix('#').unwrap_or(colour))
            .filter(|colour| {
                colour.len() == 6 && colour.bytes().all(|digit| digit.is_ascii_hexdigit())
            })
            .and_then(|colour| u32::from_str_radix(colour, 16).ok())
            .ok_or(
                "expected crop, squash, letterbox or letterbox:RRGGBB, such as letterbox:808080",
            )?;
        let [_, red, green, blue] = colour.to_be_bytes();
        Ok(Self::Letterbox([red, green, blue]))
    }
}

/// The filter by which images are scaled.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Filter {
    /// The pixel at the middle of each scaled one, as Pillow's `NEAREST`.
    Nearest,
    /// A triangle over all pixels that a scaled one covers, as Pillow's `BILINEAR`.
    #[default]
    Bilinear,
    /// A cubic with a = -0.5 over all pixels that a scaled one covers, as Pillow's `BICUBIC`.
    Bicubic,
    /// A windowed sinc of three lobes over all pixels that a scaled one covers, as Pillow's
    /// `LANCZOS`.
    Lanczos,
    /// The four pixels around the middle of each scaled one, without antialiasing, as OpenCV's
    /// `INTER_LINEAR`.
    Linear,
    /// The mean of what a scaled pixel covers, as OpenCV's `INTER_AREA`. Where a side is scaled up,
    /// it is OpenCV's interpolation between the covered pixels.
    Area,
}

impl Filter {
    /// How far the filter reaches from its middle, in pixels of the coarser side.
    pub(super) fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Bilinear | Self::Linear | Self::Area => 1.0,
            Self::Bicubic => 2.0,
            Self::Lanczos => 3.0,
        }
    }
}

impl fmt::Display for Filter {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nearest => "nearest",
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Lanczos => "lanczos",
            Self::Linear => "bilinear without antialiasing",
            Self::Area => "area",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fits_are_read_as_they_are_written() {
        for (text, fit) in [
            ("crop", Fit::Crop),
            ("squash", Fit::Squash),
            ("letterbox", Fit::Letterbox([0; 3])),
            ("letterbox:7f0080", Fit::Letterbox([127, 0, 128])),
        ] {
            assert_eq!(text.parse::<Fit>().unwrap(), fit);
            assert_eq!(fit.to_string(), text);
        }
        assert_eq!(
            "letterbox:#FF0001".parse::<Fit>().unwrap(),
            Fit::Letterbox([255, 0, 1])
        );
        for wrong in [
            "",
            "Crop",
            "letterbox:",
            "letterbox:12345",
            "letterbox:+12345",
            "pad",
        ] {
            let error = wrong.parse::<Fit>().unwrap_err();
            assert!(error.contains("letterbox:RRGGBB"), "{wrong}: {error}");
        }
    }
}
