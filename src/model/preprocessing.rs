//! How a network wants its images: what flags, presets, a manifest and files beside the model say,
//! and how these are combined.

use std::str::FromStr;

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, Serialize, Serializer, de::Error};

use super::{ModelError, Normalization};
use crate::image::{Filter, Fit, Geometry};

/// The colours of a network's input, in their order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum ChannelOrder {
    /// Red, green and blue.
    #[default]
    Rgb,
    /// Blue, green and red, as OpenCV and Caffe have them.
    Bgr,
    /// One channel: the luma of ITU-R BT.601, rounded as by Pillow's `convert("L")`.
    Gray,
}

impl ChannelOrder {
    /// The number of channels.
    pub(super) fn count(self) -> usize {
        match self {
            Self::Rgb | Self::Bgr => 3,
            Self::Gray => 1,
        }
    }

    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Rgb => "rgb",
            Self::Bgr => "bgr",
            Self::Gray => "gray",
        }
    }
}

/// The values that a network takes for black and white, before mean and deviation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Scale {
    /// 0 to 1.
    #[default]
    #[value(name = "1")]
    Unit,
    /// 0 to 255.
    #[value(name = "255")]
    Byte,
}

impl Scale {
    /// The value of white.
    pub fn white(self) -> u32 {
        match self {
            Self::Unit => 1,
            Self::Byte => 255,
        }
    }
}

/// The name of a filter that scales images.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Interpolation {
    /// Pillow's `BILINEAR`; without antialiasing OpenCV's `INTER_LINEAR`.
    #[default]
    Bilinear,
    /// Pillow's `BICUBIC`; without antialiasing OpenCV's `INTER_CUBIC`.
    Bicubic,
    /// Pillow's `LANCZOS`; without antialiasing OpenCV's `INTER_LANCZOS4`.
    Lanczos,
    /// Pillow's `NEAREST`.
    Nearest,
    /// OpenCV's `INTER_AREA`.
    Area,
}

impl Interpolation {
    fn name(self) -> &'static str {
        match self {
            Self::Bilinear => "bilinear",
            Self::Bicubic => "bicubic",
            Self::Lanczos => "lanczos",
            Self::Nearest => "nearest",
            Self::Area => "area",
        }
    }

    /// The filter by one of Pillow's numbers.
    pub(super) fn by_pillows_number(number: u64) -> Option<Self> {
        match number {
            0 => Some(Self::Nearest),
            1 => Some(Self::Lanczos),
            2 => Some(Self::Bilinear),
            3 => Some(Self::Bicubic),
            _ => None,
        }
    }

    fn filter(self, antialias: bool) -> Filter {
        match (self, antialias) {
            (Self::Bilinear, true) => Filter::Bilinear,
            (Self::Bilinear, false) => Filter::Linear,
            (Self::Bicubic, true) => Filter::Bicubic,
            (Self::Bicubic, false) => Filter::Cubic,
            (Self::Lanczos, true) => Filter::Lanczos,
            (Self::Lanczos, false) => Filter::Lanczos4,
            (Self::Nearest, _) => Filter::Nearest,
            (Self::Area, _) => Filter::Area,
        }
    }
}

/// What a project or a framework feeds its networks with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Preset {
    /// The shorter side at 256 for 224, bilinear, ImageNet's mean and deviation.
    Torchvision,
    /// The same with bicubic filtering, timm's usual configuration.
    Timm,
    /// The mode `caffe` of Keras (ResNet, VGG): squashed, BGR from 0 to 255, less ImageNet's mean.
    KerasCaffe,
    /// The mode `tf` of Keras (MobileNet, Inception, Xception): squashed, RGB from -1 to 1.
    KerasTf,
    /// Classifiers of Ultralytics: the shorter side at the input's size, values from 0 to 1.
    YoloCls,
    /// PaddleClas: as torchvision, with OpenCV's bilinear filter and PaddleClas's rounding.
    Paddleclas,
    /// CLIP of OpenAI: the shorter side at the input's size, bicubic, its own mean and deviation.
    Clip,
}

impl Preset {
    pub(super) fn settings(self) -> Preprocessing {
        let imagenet = Preprocessing {
            channels: Some(ChannelOrder::Rgb),
            scale: Some(Scale::Unit),
            mean: Some(Normalization::IMAGENET.mean),
            std: Some(Normalization::IMAGENET.std),
            fit: Some(Fit::Crop),
            interpolation: Some(Interpolation::Bilinear),
            antialias: Some(true),
            resize: Some(Resize::Usual),
            input_size: None,
            recompress: None,
        };
        // Keras scales without regard to proportions, and without antialiasing.
        let keras = Preprocessing {
            scale: Some(Scale::Byte),
            fit: Some(Fit::Squash),
            antialias: Some(false),
            resize: Some(Resize::Fraction(1.0)),
            ..imagenet.clone()
        };
        match self {
            Self::Torchvision => imagenet,
            Self::Timm => Preprocessing {
                interpolation: Some(Interpolation::Bicubic),
                resize: Some(Resize::Fraction(0.875)),
                ..imagenet
            },
            Self::KerasCaffe => Preprocessing {
                channels: Some(ChannelOrder::Bgr),
                mean: Some([123.68, 116.779, 103.939]),
                std: Some([1.0; 3]),
                ..keras
            },
            Self::KerasTf => Preprocessing {
                mean: Some([127.5; 3]),
                std: Some([127.5; 3]),
                ..keras
            },
            Self::YoloCls => Preprocessing {
                mean: Some([0.0; 3]),
                std: Some([1.0; 3]),
                resize: Some(Resize::Fraction(1.0)),
                ..imagenet
            },
            Self::Paddleclas => Preprocessing {
                fit: Some(Fit::CropRounded),
                antialias: Some(false),
                ..imagenet
            },
            Self::Clip => Preprocessing {
                mean: Some([0.481_454_66, 0.457_827_5, 0.408_210_73]),
                std: Some([0.268_629_54, 0.261_302_6, 0.275_777_1]),
                interpolation: Some(Interpolation::Bicubic),
                resize: Some(Resize::Fraction(1.0)),
                ..imagenet
            },
        }
    }
}

/// To what size images are scaled before the crop.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Resize {
    /// The shorter side has this many pixels.
    Pixels(u32),
    /// The crop is this part of the scaled image.
    Fraction(f64),
    /// In the ratio that is usual for ImageNet: 256 for a crop of 224.
    Usual,
}

/// Settings of preprocessing, as far as they are given. Mean and deviation are those of red, green
/// and blue, in this order whatever the network's, on the scale.
#[derive(Clone, Debug, Default, PartialEq)]
pub(super) struct Preprocessing {
    /// Width and height.
    pub(super) input_size: Option<[u32; 2]>,
    pub(super) channels: Option<ChannelOrder>,
    pub(super) scale: Option<Scale>,
    pub(super) mean: Option<[f32; 3]>,
    pub(super) std: Option<[f32; 3]>,
    pub(super) fit: Option<Fit>,
    pub(super) interpolation: Option<Interpolation>,
    pub(super) antialias: Option<bool>,
    pub(super) resize: Option<Resize>,
    /// The quality of JPEG by which crops are compressed and decompressed.
    pub(super) recompress: Option<u8>,
}

impl From<Normalization> for Preprocessing {
    fn from(Normalization { mean, std }: Normalization) -> Self {
        Self {
            mean: Some(mean),
            std: Some(std),
            ..Self::default()
        }
    }
}

impl Preprocessing {
    /// Completes these settings by others that have less weight. What belongs together is taken
    /// together: a mean only on the scale that applies, a size before the crop only for the fit and
    /// the input that it was meant for.
    pub(super) fn or(self, other: &Self) -> Self {
        let fits = |own: bool, value| if own { value } else { None };
        let same_scale = self
            .scale
            .is_none_or(|scale| scale == other.scale.unwrap_or_default());
        let same_fit = self
            .fit
            .is_none_or(|fit| fit == other.fit.unwrap_or_default());
        let same_size = match (self.input_size, other.input_size) {
            (Some(own), Some(other)) => own == other,
            _ => true,
        };
        let same_filter = self
            .interpolation
            .is_none_or(|filter| filter == other.interpolation.unwrap_or_default());
        Self {
            input_size: self.input_size.or(other.input_size),
            channels: self.channels.or(other.channels),
            mean: self.mean.or(fits(same_scale, other.mean)),
            std: self.std.or(fits(same_scale, other.std)),
            scale: self.scale.or(other.scale),
            resize: self
                .resize
                .or(other.resize.filter(|_| same_fit && same_size)),
            fit: self.fit.or(other.fit),
            antialias: self.antialias.or(other.antialias.filter(|_| same_filter)),
            interpolation: self.interpolation.or(other.interpolation),
            recompress: self.recompress.or(other.recompress),
        }
    }

    /// The geometry for a network that sees `width` × `height` pixels.
    ///
    /// # Errors
    /// Settings that contradict each other.
    pub(super) fn geometry(&self, width: u32, height: u32) -> Result<Geometry, ModelError> {
        let (shorter, longer) = (width.min(height), width.max(height));
        let fit = self.fit.unwrap_or_default();
        let filter = self
            .interpolation
            .unwrap_or_default()
            .filter(self.antialias.unwrap_or(true));
        let resize = match (self.resize, fit) {
            (Some(Resize::Pixels(_)), Fit::Letterbox(_) | Fit::Line(_)) => {
                return Err(ModelError::Preprocessing(
                    "`--resize` has no meaning with `--fit letterbox` and `--fit line`, which scale \
                     images to just fit; leave it out"
                        .into(),
                ));
            }
            (_, Fit::Letterbox(_) | Fit::Line(_)) | (None, Fit::Squash) => Resize::Fraction(1.0),
            (resize, _) => resize.unwrap_or(Resize::Usual),
        };
        let resize_shorter_side = match resize {
            Resize::Pixels(pixels) => pixels,
            Resize::Fraction(fraction) => (f64::from(shorter) / fraction) as u32,
            Resize::Usual => {
                let usual = (f64::from(shorter) * 256.0 / 224.0).round() as u32;
                usual.max(longer)
            }
        };
        let least = match fit {
            Fit::Crop | Fit::CropRounded => longer,
            Fit::Squash | Fit::Letterbox(_) | Fit::Line(_) => shorter,
        };
        if resize_shorter_side < least {
            return Err(ModelError::Resize {
                resize_shorter_side,
                width,
                height,
                least,
            });
        }
        Ok(Geometry {
            width,
            height,
            resize_shorter_side,
            fit,
            filter,
            recompress: self.recompress.map(quality).transpose()?,
        })
    }

    /// The normalization of a network that takes these channels.
    ///
    /// # Errors
    /// A mean or a deviation that makes no sense for the scale or the channels.
    pub(super) fn normalization(&self, channels: ChannelOrder) -> Result<Values, ModelError> {
        let scale = self.scale.unwrap_or_default();
        let usual = match (scale, channels) {
            (Scale::Unit, ChannelOrder::Rgb | ChannelOrder::Bgr) => Normalization::IMAGENET,
            _ => Normalization {
                mean: [0.0; 3],
                std: [1.0; 3],
            },
        };
        let values = Values {
            scale,
            mean: self.mean.unwrap_or(usual.mean),
            std: self.std.unwrap_or(usual.std),
        };
        values.check(channels)?;
        Ok(values)
    }
}

/// A quality of JPEG.
fn quality(quality: u8) -> Result<u8, ModelError> {
    match quality {
        1..=100 => Ok(quality),
        _ => Err(ModelError::Preprocessing(format!(
            "`--recompress {quality}`: the JPEG quality must be from 1 to 100"
        ))),
    }
}

/// A mean and a deviation on their scale.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Values {
    pub(super) scale: Scale,
    pub(super) mean: [f32; 3],
    pub(super) std: [f32; 3],
}

impl Values {
    /// The same on the scale where white is 1.
    pub(super) fn on_unit_scale(&self) -> Normalization {
        let white = self.scale.white() as f32;
        Normalization {
            mean: self.mean.map(|mean| mean / white),
            std: self.std.map(|std| std / white),
        }
    }

    /// What a pixel from 0 to 255 is multiplied with, and what is added then, for each colour.
    pub(super) fn factors(&self) -> [(f32, f32); 3] {
        let step = 255.0 / f64::from(self.scale.white());
        std::array::from_fn(|colour| {
            let (mean, std) = (f64::from(self.mean[colour]), f64::from(self.std[colour]));
            ((1.0 / (step * std)) as f32, (-mean / std) as f32)
        })
    }

    fn check(&self, channels: ChannelOrder) -> Result<(), ModelError> {
        let Self { scale, mean, std } = self;
        let wrong = |reason: String| Err(ModelError::Normalization(reason));
        if mean.iter().any(|value| !value.is_finite()) {
            return wrong(format!("the mean {mean:?} must be three finite numbers"));
        }
        if std.iter().any(|value| !value.is_normal() || *value < 0.0) {
            return wrong(format!(
                "the standard deviation {std:?} must be three finite numbers above 0"
            ));
        }
        match scale {
            Scale::Unit if mean.iter().chain(std).all(|value| *value > 1.0) => {
                return wrong(format!(
                    "the mean {mean:?} and the standard deviation {std:?} are for pixels from 0 to \
                     255; give `--scale 255`, or divide them by 255"
                ));
            }
            Scale::Unit if mean.iter().any(|value| *value > 1.0) => {
                return wrong(format!(
                    "the mean {mean:?} is beyond white, which is 1; give `--scale 255` for a \
                     network that takes pixels from 0 to 255"
                ));
            }
            Scale::Byte
                if std.iter().all(|value| *value < 1.0)
                    || mean.iter().any(|value| *value != 0.0)
                        && mean.iter().all(|value| value.abs() <= 1.0) =>
            {
                return wrong(format!(
                    "the mean {mean:?} and the standard deviation {std:?} are for pixels from 0 to \
                     1, but the scale is 255; give `--scale 1`, or multiply them by 255"
                ));
            }
            Scale::Unit | Scale::Byte => {}
        }
        let differ = |values: &[f32; 3]| values.iter().any(|value| *value != values[0]);
        if channels == ChannelOrder::Gray && (differ(mean) || differ(std)) {
            return wrong(format!(
                "the network takes gray images, whose mean and standard deviation are one number \
                 each, not {mean:?} and {std:?}"
            ));
        }
        Ok(())
    }
}

/// Reads a name, or one of the numbers by which others write the same.
fn by_name<'de, D: Deserializer<'de>, T>(
    deserializer: D,
    known: &[(&str, T)],
    by_number: impl Fn(u64) -> Option<T>,
) -> Result<T, D::Error>
where
    T: Copy,
{
    let value = serde_json::Value::deserialize(deserializer)?;
    let found = match &value {
        serde_json::Value::String(name) => known
            .iter()
            .find(|(known, _)| known.eq_ignore_ascii_case(name))
            .map(|(_, value)| *value),
        other => other.as_u64().and_then(by_number),
    };
    found.ok_or_else(|| {
        let names: Vec<String> = known.iter().map(|(name, _)| format!("{name:?}")).collect();
        D::Error::custom(format!(
            "{value} is not supported; accepted is {}",
            names.join(" or ")
        ))
    })
}

impl<'de> Deserialize<'de> for ChannelOrder {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = [Self::Rgb, Self::Bgr, Self::Gray].map(|order| (order.name(), order));
        by_name(deserializer, &names, |number| match number {
            3 => Some(Self::Rgb),
            1 => Some(Self::Gray),
            _ => None,
        })
    }
}

impl Serialize for ChannelOrder {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

impl<'de> Deserialize<'de> for Scale {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        by_name(
            deserializer,
            &[("1", Self::Unit), ("255", Self::Byte)],
            |number| match number {
                1 => Some(Self::Unit),
                255 => Some(Self::Byte),
                _ => None,
            },
        )
    }
}

impl Serialize for Scale {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u32(self.white())
    }
}

impl<'de> Deserialize<'de> for Interpolation {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let names = [
            Self::Bilinear,
            Self::Bicubic,
            Self::Lanczos,
            Self::Nearest,
            Self::Area,
        ]
        .map(|interpolation| (interpolation.name(), interpolation));
        by_name(deserializer, &names, Self::by_pillows_number)
    }
}

impl Serialize for Interpolation {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.name())
    }
}

/// Reads and writes a [`Fit`] in a manifest.
pub(super) mod fit {
    use super::{Deserialize, Deserializer, Error, Fit, FromStr, Serializer};

    pub fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Option<Fit>, D::Error> {
        let value = serde_json::Value::deserialize(deserializer)?;
        let fit = match value.as_str() {
            // What others call a crop of the centre.
            Some("shorter_side" | "cover") => Ok(Fit::Crop),
            Some(text) => Fit::from_str(text),
            None => Err("expected a string such as \"crop\"".into()),
        };
        fit.map(Some)
            .map_err(|reason| D::Error::custom(format!("\"fit\" is {value}: {reason}")))
    }

    #[expect(clippy::ref_option, reason = "serde calls it so")]
    pub fn serialize<S: Serializer>(fit: &Option<Fit>, serializer: S) -> Result<S::Ok, S::Error> {
        match fit {
            Some(fit) => serializer.collect_str(fit),
            None => serializer.serialize_none(),
        }
    }
}

/// Reads a number for each colour, or one for all of them.
pub(super) fn colours<'de, D: Deserializer<'de>>(
    deserializer: D,
) -> Result<Option<[f32; 3]>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Numbers {
        One(f32),
        Several(Vec<f32>),
    }
    let numbers = match Numbers::deserialize(deserializer)? {
        Numbers::One(number) => vec![number],
        Numbers::Several(numbers) => numbers,
    };
    match numbers[..] {
        [one] => Ok(Some([one; 3])),
        [red, green, blue] => Ok(Some([red, green, blue])),
        _ => Err(D::Error::invalid_length(
            numbers.len(),
            &"one number, or three for red, green and blue",
        )),
    }
}
