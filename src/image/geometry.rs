//! How a picture becomes the crop that a model takes: the size, the fit and the filter.

use std::{fmt, str::FromStr};

/// The crop that a model takes, and how pictures are scaled to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Geometry {
    /// The width of the crop, in pixels.
    pub width: u32,
    /// The height of the crop, in pixels.
    pub height: u32,
    /// With [`Fit::Crop`] and [`Fit::CropRounded`], the shorter side of the image after scaling, in pixels. With
    /// [`Fit::Squash`], the same for an image of the crop's proportions. Not used by
    /// [`Fit::Letterbox`] and [`Fit::Line`].
    pub resize_shorter_side: u32,
    /// How an image of other proportions is fitted.
    pub fit: Fit,
    /// The filter that scales.
    pub filter: Filter,
    /// The crop is compressed as JPEG of this quality, 1 to 100, and decompressed.
    pub recompress: Option<u8>,
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
            recompress: None,
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
            Fit::Crop | Fit::CropRounded => self.resize_shorter_side,
            Fit::Squash | Fit::Letterbox(_) | Fit::Line(_) => {
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
    /// The same, with sizes rounded to the nearest pixel and the offset of the crop rounded down, as
    /// PaddleClas has it.
    CropRounded,
    /// Each side is scaled by itself, whatever the proportions.
    Squash,
    /// The longer side fits, and the rest is padded evenly with this colour, red, green and blue.
    /// Sizes and offsets are rounded as by Pillow's `ImageOps.pad`.
    Letterbox([u8; 3]),
    /// The height fits. What is narrower then is padded on the right with this colour, and what is
    /// wider is squashed, as PaddleOCR does with lines of text.
    Line([u8; 3]),
}

impl Fit {
    /// The colour beside the image.
    pub(super) fn padding(self) -> [u8; 3] {
        match self {
            Self::Crop | Self::CropRounded | Self::Squash => [0; 3],
            Self::Letterbox(colour) | Self::Line(colour) => colour,
        }
    }
}

impl fmt::Display for Fit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (name, colour) = match self {
            Self::Crop => ("crop", [0; 3]),
            Self::CropRounded => ("crop-rounded", [0; 3]),
            Self::Squash => ("squash", [0; 3]),
            Self::Letterbox(colour) => ("letterbox", *colour),
            Self::Line(colour) => ("line", *colour),
        };
        f.write_str(name)?;
        match colour {
            [0, 0, 0] => Ok(()),
            [red, green, blue] => write!(f, ":{red:02x}{green:02x}{blue:02x}"),
        }
    }
}

impl FromStr for Fit {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "crop" => return Ok(Self::Crop),
            "crop-rounded" => return Ok(Self::CropRounded),
            "squash" => return Ok(Self::Squash),
            _ => {}
        }
        let (name, colour) = text.split_once(':').unwrap_or((text, "000000"));
        let colour = Some(colour.strip_prefix('#').unwrap_or(colour))
            .filter(|colour| {
                colour.len() == 6 && colour.bytes().all(|digit| digit.is_ascii_hexdigit())
            })
            .and_then(|colour| u32::from_str_radix(colour, 16).ok());
        let fit = colour.and_then(|colour| {
            let [_, red, green, blue] = colour.to_be_bytes();
            match name {
                "letterbox" => Some(Self::Letterbox([red, green, blue])),
                "line" => Some(Self::Line([red, green, blue])),
                _ => None,
            }
        });
        fit.ok_or_else(|| {
            "expected crop, crop-rounded, squash, letterbox, line, letterbox:RRGGBB or \
             line:RRGGBB, such as letterbox:808080"
                .into()
        })
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
    /// The 4 × 4 pixels around the middle of each scaled one, without antialiasing, by a cubic with
    /// a = -0.75, as OpenCV's `INTER_CUBIC`.
    Cubic,
    /// The 8 × 8 pixels around the middle of each scaled one, without antialiasing, by a windowed
    /// sinc of four lobes, as OpenCV's `INTER_LANCZOS4`.
    Lanczos4,
    /// The mean of what a scaled pixel covers, as OpenCV's `INTER_AREA`. Where a side is scaled up,
    /// it is OpenCV's interpolation between the covered pixels.
    Area,
}

impl Filter {
    /// How far the filter reaches from its middle, in pixels of the coarser side.
    pub(super) fn support(self) -> f64 {
        match self {
            Self::Nearest | Self::Bilinear | Self::Linear | Self::Area => 1.0,
            Self::Bicubic | Self::Cubic => 2.0,
            Self::Lanczos => 3.0,
            Self::Lanczos4 => 4.0,
        }
    }

    /// The bytes of a value of a pixel that is scaled by rows and not yet by columns: OpenCV's filters
    /// around a middle don't round it to a byte.
    pub(super) fn bytes_between_passes(self) -> usize {
        match self {
            Self::Linear | Self::Cubic | Self::Lanczos4 => 2,
            _ => 1,
        }
    }

    /// Whether the filter would cover more pixels with antialiasing.
    pub(crate) fn is_without_antialiasing(self) -> bool {
        matches!(self, Self::Linear | Self::Cubic | Self::Lanczos4)
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
            Self::Cubic => "bicubic without antialiasing",
            Self::Lanczos4 => "lanczos without antialiasing",
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
            ("crop-rounded", Fit::CropRounded),
            ("line", Fit::Line([0; 3])),
            ("line:808080", Fit::Line([128; 3])),
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
            "squash:808080",
            "line:",
            "pad",
        ] {
            let error = wrong.parse::<Fit>().unwrap_err();
            assert!(error.contains("letterbox:RRGGBB"), "{wrong}: {error}");
        }
    }
}
