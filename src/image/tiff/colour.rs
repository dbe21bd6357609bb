//! What the samples of a pixel mean, and their conversion to gray or RGB.

use super::{
    compression::Compression,
    damaged,
    directory::{Directory, tag},
    samples::SampleType,
    unsupported,
    ycbcr::YCbCr,
};
use crate::image::{ImageError, pixels::PixelLayout};

/// What the samples of a pixel mean. Samples beyond those named here are ignored, alpha as well.
pub(super) enum Colour {
    Gray,
    /// Gray whose zero is white.
    InvertedGray,
    /// Gray that was multiplied by the alpha which follows it.
    PremultipliedGray,
    /// An index to this table.
    Palette(Vec<[u8; 3]>),
    Rgb,
    /// Colours that were multiplied by the alpha which follows them.
    PremultipliedRgb,
    Cmyk,
    YCbCr(Box<YCbCr>),
    /// CIE L\*a\*b\* under D50, with signed a and b.
    Lab(Box<Lab>),
}

impl Colour {
    /// Reads how the colours of an image are stored whose pixels have `samples` samples.
    pub fn of(
        directory: &Directory<'_>,
        kind: SampleType,
        samples: usize,
        planar: bool,
        compression: Compression,
    ) -> Result<Self, ImageError> {
        const ASSOCIATED_ALPHA: Option<u64> = Some(1);
        // Pillow, too, takes an image that does not say it for one whose zero is white.
        let photometric = directory
            .number(tag::PHOTOMETRIC_INTERPRETATION)?
            .unwrap_or(0);
        let extra = directory
            .values(tag::EXTRA_SAMPLES)?
            .and_then(|values| values.number(0));
        let of_8_bits = |name: &str| {
            if kind == SampleType::Unsigned(8) {
                return Ok(());
            }
            Err(unsupported(&format!(
                "it is {name} of {} bits per channel; accepted are 8",
                kind.bits()
            )))
        };

        let colour = match photometric {
            // Pillow inverts no gray of more than 8 bits, and its pixels are the measure.
            0 if matches!(kind, SampleType::Unsigned(..16)) => Self::InvertedGray,
            0 | 1 if extra == ASSOCIATED_ALPHA && samples > 1 => Self::PremultipliedGray,
            0 | 1 => Self::Gray,
            2 if extra == ASSOCIATED_ALPHA && samples > 3 => Self::PremultipliedRgb,
            2 => Self::Rgb,
            3 => Self::Palette(read_palette(directory, kind)?),
            5 => Self::Cmyk,
            6 if samples == 1 => Self::Gray,
            6 => {
                of_8_bits("YCbCr")?;
                if compression != Compression::Jpeg || planar {
                    Self::YCbCr(YCbCr::of(directory)?.into())
                } else if samples == 3 {
                    // JPEG brings its own conversion.
                    Self::Rgb
                } else {
                    return Err(unsupported("its YCbCr in JPEG has extra channels"));
                }
            }
            8 => {
                of_8_bits("CIE L*a*b*")?;
                Self::Lab(Lab::new().into())
            }
            other => {
                let name = match other {
                    4 => "a transparency mask",
                    9 => "ICC L*a*b*",
                    10 => "ITU L*a*b*",
                    32803 => "a camera's raw colour filter array",
                    32844 | 32845 => "SGI LogLuv",
                    34892 => "a camera's linear raw data",
                    _ => "unknown",
                };
                return Err(unsupported(&format!(
                    "the meaning of its pixels is {name} (photometric interpretation {other}); \
                     accepted are bilevel, gray, palette, RGB, CMYK, YCbCr and CIE L*a*b*"
                )));
            }
        };
        if samples < colour.samples() {
            return Err(damaged(&format!(
                "its pixels have {samples} channels where its colours need {}",
                colour.samples()
            )));
        }
        Ok(colour)
    }

    /// How many samples of each pixel are needed.
    pub fn samples(&self) -> usize {
        match self {
            Self::Gray | Self::InvertedGray | Self::Palette(_) => 1,
            Self::PremultipliedGray => 2,
            Self::Rgb | Self::YCbCr(_) | Self::Lab(_) => 3,
            Self::PremultipliedRgb | Self::Cmyk => 4,
        }
    }

    /// The layout of converted pixels; they have at most as many bytes as samples were needed,
    /// unless there is a palette.
    pub fn layout(&self) -> PixelLayout {
        match self {
            Self::Gray | Self::InvertedGray | Self::PremultipliedGray => PixelLayout::Gray,
            _ => PixelLayout::Rgb,
        }
    }

    /// Whether samples are pixels as they are.
    pub fn is_direct(&self) -> bool {
        matches!(self, Self::Gray | Self::Rgb)
    }

    /// Converts pixels of [`Colour::samples`] bytes to pixels of [`Colour::layout`].
    pub fn convert(&self, samples: &[u8], target: &mut [u8]) {
        match self {
            Self::Gray | Self::Rgb => target.copy_from_slice(samples),
            Self::InvertedGray => {
                for (target, sample) in target.iter_mut().zip(samples) {
                    *target = !sample;
                }
            }
            Self::PremultipliedGray => {
                for (target, &[gray, alpha]) in target.iter_mut().zip(samples.as_chunks().0) {
                    *target = divide(gray, alpha);
                }
            }
            Self::Palette(colours) => {
                for (target, &index) in target.as_chunks_mut().0.iter_mut().zip(samples) {
                    *target = colours[usize::from(index)];
                }
            }
            Self::PremultipliedRgb => each(samples, target, |[r, g, b, alpha]| {
                [r, g, b].map(|channel| divide(channel, alpha))
            }),
            Self::Cmyk => each(samples, target, |[c, m, y, k]| {
                [c, m, y].map(|ink| without_ink(ink, k))
            }),
            Self::YCbCr(ycbcr) => each(samples, target, |pixel| ycbcr.to_rgb(pixel)),
            Self::Lab(lab) => each(samples, target, |pixel| lab.to_rgb(pixel)),
        }
    }
}

fn each<const N: usize>(samples: &[u8], target: &mut [u8], convert: impl Fn([u8; N]) -> [u8; 3]) {
    for (target, pixel) in target
        .as_chunks_mut()
        .0
        .iter_mut()
        .zip(samples.as_chunks().0)
    {
        *target = convert(*pixel);
    }
}

/// Undoes the multiplication of a channel by alpha.
fn divide(channel: u8, alpha: u8) -> u8 {
    let product = u32::from(channel) * 255;
    product
        .checked_div(alpha.into())
        .map_or(0, |quotient| quotient.min(255) as u8)
}

/// The light that is left by one ink and black, as Pillow computes it.
fn without_ink(ink: u8, black: u8) -> u8 {
    let paper = 255 - black;
    let product = u32::from(ink) * u32::from(paper) + 128;
    paper.saturating_sub((((product >> 8) + product) >> 8) as u8)
}

/// Reads the table of colours: all reds, then all greens, then all blues, of 16 bits each.
fn read_palette(directory: &Directory<'_>, kind: SampleType) -> Result<Vec<[u8; 3]>, ImageError> {
    let SampleType::Unsigned(bits @ ..=8) = kind else {
        return Err(unsupported(&format!(
            "the indices to its palette have {} bits; accepted are up to 8",
            kind.bits()
        )));
    };
    let Some(map) = directory.values(tag::COLOR_MAP)? else {
        return Err(damaged("it has no palette"));
    };
    let colours = 1usize << bits;
    if map.len() < 3 * colours {
        return Err(damaged(&format!(
            "its palette has {} values, not {}",
            map.len(),
            3 * colours
        )));
    }
    let value = |index| map.number(index).unwrap_or(0);
    // Some programs write values of 8 bits.
    let shift = if (0..3 * colours).all(|index| value(index) < 256) {
        0
    } else {
        8
    };
    Ok((0..colours)
        .map(|index| {
            [0, 1, 2].map(|channel| (value(channel * colours + index) >> shift).min(255) as u8)
        })
        .collect())
}

/// Converts CIE L\*a\*b\* under D50 to sRGB, by way of XYZ.
pub(super) struct Lab {
    /// sRGB's transfer function, in steps of the linear value.
    encoded: Vec<u8>,
}

impl Lab {
    const STEPS: usize = 1 << 14;

    fn new() -> Self {
        let encoded = (0..=Self::STEPS).map(|step| {
            let linear = step as f64 / Self::STEPS as f64;
            let value = if linear <= 0.003_130_8 {
                12.92 * linear
            } else {
                1.055 * linear.powf(1.0 / 2.4) - 0.055
            };
            (value * 255.0).round() as u8
        });
        Self {
            encoded: encoded.collect(),
        }
    }

    fn to_rgb(&self, [l, a, b]: [u8; 3]) -> [u8; 3] {
        /// The white point of D50.
        const WHITE: [f32; 3] = [0.9642, 1.0, 0.8249];
        /// From XYZ under D50 to linear sRGB, adapted to D65 by Bradford's method.
        const TO_RGB: [[f32; 3]; 3] = [
            [3.133_856, -1.616_867, -0.490_615],
            [-0.978_768, 1.916_142, 0.033_454],
            [0.071_945, -0.228_991, 1.405_243],
        ];
        let fy = (f32::from(l) * (100.0 / 255.0) + 16.0) / 116.0;
        let fx = fy + f32::from(a as i8) / 500.0;
        let fz = fy - f32::from(b as i8) / 200.0;
        let [x, y, z] = [fx, fy, fz].map(|f| {
            if f > 6.0 / 29.0 {
                f * f * f
            } else {
                (f - 4.0 / 29.0) * (108.0 / 841.0)
            }
        });
        let xyz = [x * WHITE[0], y * WHITE[1], z * WHITE[2]];
        TO_RGB.map(|row| {
            let linear = row[0] * xyz[0] + row[1] * xyz[1] + row[2] * xyz[2];
            let step = (linear.clamp(0.0, 1.0) * Self::STEPS as f32 + 0.5) as usize;
            self.encoded[step]
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn inks_and_alpha_are_undone_as_pillow_does() {
        let mut rgb = [0; 6];
        Colour::Cmyk.convert(&[0, 255, 100, 0, 0, 0, 0, 255], &mut rgb);
        assert_eq!(rgb, [255, 0, 155, 0, 0, 0]);
        Colour::PremultipliedRgb.convert(&[10, 20, 200, 100, 9, 9, 9, 0], &mut rgb);
        assert_eq!(rgb, [25, 51, 255, 0, 0, 0]);
    }

    #[test]
    fn lab_becomes_srgb() {
        let lab = Lab::new();
        assert_eq!(lab.to_rgb([255, 0, 0]), [255, 255, 255]);
        assert_eq!(lab.to_rgb([0, 0, 0]), [0, 0, 0]);
        // sRGB's red is L* 54.3, a* 80.8, b* 69.9 under D50.
        let [r, g, b] = lab.to_rgb([138, 81, 70]);
        assert!(r > 252 && g < 8 && b < 8, "{r} {g} {b}");
    }
}
