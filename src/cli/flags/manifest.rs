//! Flags that complete or override what a model's file says about itself.

use std::{
    ffi::OsString,
    fmt,
    path::{Path, PathBuf},
    str::FromStr,
};

use clap::{Args, ValueEnum};

use crate::{
    answer::Activation,
    cli::{CliError, output},
    image::Fit,
    model::{self, ChannelOrder, Interpolation, Model, ModelError, Overrides, Preset, Scale},
};

/// Flags for the labels and the preprocessing of a model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ManifestFlags {
    /// A file with the names of the classes, one per line [default: those in the model's file; for
    /// 1000 classes, ImageNet-1k's].
    #[arg(long, env = "RESNET18_LABELS", value_name = "FILE")]
    labels: Option<PathBuf>,
    /// How scores become probabilities: softmax for one class an image, sigmoid for any number of
    /// them [default: that in the model's file].
    #[arg(long, env = "RESNET18_ACTIVATION", value_name = "NAME")]
    activation: Option<Activation>,
    #[command(flatten)]
    pixels: PixelFlags,
}

/// Flags for the preprocessing of a model, without its labels.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct PixelFlags {
    /// Feed the network as this project or framework does; further flags override parts of it
    /// [default: what the model's file and those beside it say, else torchvision].
    #[arg(long, env = "RESNET18_PRESET", value_name = "NAME")]
    preset: Option<Preset>,
    /// Mean of the pixels for red, green and blue, in this order whatever --channels says, from 0 to
    /// the value of --scale; one number for gray images [default: those in the model's file, else
    /// 0.485,0.456,0.406; 0 for gray images and with --scale 255].
    #[arg(long, env = "RESNET18_MEAN", value_name = "R,G,B")]
    mean: Option<Colours>,
    /// Standard deviation of the pixels, likewise [default: those in the model's file, else
    /// 0.229,0.224,0.225; 1 for gray images and with --scale 255].
    #[arg(long, env = "RESNET18_STD", value_name = "R,G,B")]
    std: Option<Colours>,
    /// The value of white that the network takes, before mean and deviation [default: 1].
    #[arg(long, env = "RESNET18_SCALE", value_name = "WHITE")]
    scale: Option<Scale>,
    /// The colours that the network takes, in their order; gray is known by the network's shape
    /// [default: rgb].
    #[arg(long, env = "RESNET18_CHANNELS", value_name = "ORDER")]
    channels: Option<ChannelOrder>,
    /// Scale the shorter side to this many pixels before cropping [default: the value in the
    /// model's file, else 256 for an input of 224].
    #[arg(long, env = "RESNET18_RESIZE", value_name = "PIXELS")]
    resize: Option<u32>,
    /// The size of the images, for a network that leaves height and width open, such as 224x224.
    #[arg(long, env = "RESNET18_INPUT_SIZE", value_name = "WxH")]
    input_size: Option<ImageSize>,
    /// How images of other proportions are fitted: crop the centre (crop-rounded rounds as PaddleClas
    /// does), squash each side by itself, letterbox, which pads with a colour: letterbox:RRGGBB, or
    /// line, which fits the height and pads on the right: line:RRGGBB [default: crop].
    #[arg(long, env = "RESNET18_FIT", value_name = "FIT")]
    fit: Option<Fit>,
    /// The filter that scales images: Pillow's bilinear, bicubic, lanczos or nearest, or OpenCV's
    /// area [default: bilinear].
    #[arg(long, env = "RESNET18_INTERPOLATION", value_name = "FILTER")]
    interpolation: Option<Interpolation>,
    /// Whether the filter covers all pixels of an image that is scaled down, as Pillow's do; false
    /// with bilinear, bicubic and lanczos is OpenCV's INTER_LINEAR, INTER_CUBIC and INTER_LANCZOS4
    /// [default: true].
    #[arg(long, env = "RESNET18_ANTIALIAS", value_name = "BOOL")]
    antialias: Option<bool>,
    /// Compress every crop as JPEG of this quality, 1 to 100, and decompress it, for a network whose
    /// authors feed it so [default: not].
    #[arg(long, env = "RESNET18_RECOMPRESS", value_name = "QUALITY",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    recompress: Option<u8>,
    /// The output with the scores, of a network that has several.
    #[arg(long, env = "RESNET18_OUTPUT_NAME", value_name = "NAME")]
    output_name: Option<String>,
}

impl ManifestFlags {
    /// Whether none of the flags is set.
    pub fn is_empty(&self) -> bool {
        self.arguments().is_empty()
    }

    /// The file of labels, if one is given.
    pub fn labels_file(&self) -> Option<&Path> {
        self.labels.as_deref()
    }

    /// The flags as arguments, for the same program in another process.
    pub fn arguments(&self) -> Vec<OsString> {
        let mut arguments = Vec::new();
        if let Some(labels) = &self.labels {
            arguments.extend(["--labels".into(), labels.clone().into()]);
        }
        if let Some(activation) = &self.activation {
            arguments.extend(["--activation".into(), value_name(activation).into()]);
        }
        arguments.extend(self.pixels.arguments());
        arguments
    }

    /// The overrides that these flags describe, and `name` as the model's name.
    ///
    /// # Errors
    /// If the file of labels cannot be read.
    pub fn overrides(&self, name: Option<String>) -> Result<Overrides, ModelError> {
        let labels = self.labels.as_deref().map(model::read_labels).transpose()?;
        Ok(Overrides {
            name,
            labels,
            activation: self.activation,
            ..self.pixels.overrides()
        })
    }

    /// Reads the model in the file at `path`, or else the bundled model, with these overrides.
    ///
    /// # Errors
    /// If the file of labels or the model cannot be read.
    pub fn read_model(&self, path: Option<&Path>) -> Result<Model, CliError> {
        let overrides = self.overrides(None).map_err(CliError::failed)?;
        let model = match path {
            Some(path) => Model::from_file(path, &overrides),
            None => Model::bundled(&overrides),
        };
        let model = model.map_err(CliError::failed)?;
        output::print_sources(&model.sources);
        Ok(model)
    }
}

impl PixelFlags {
    /// The flags as arguments.
    fn arguments(&self) -> Vec<OsString> {
        let Self {
            preset,
            mean,
            std,
            scale,
            channels,
            resize,
            input_size,
            fit,
            interpolation,
            antialias,
            recompress,
            output_name,
        } = self;
        let given = [
            ("--preset", preset.as_ref().map(value_name)),
            ("--mean", mean.map(|mean| mean.to_string())),
            ("--std", std.map(|std| std.to_string())),
            ("--scale", scale.as_ref().map(value_name)),
            ("--channels", channels.as_ref().map(value_name)),
            ("--resize", resize.map(|resize| resize.to_string())),
            ("--input-size", input_size.map(|size| size.to_string())),
            ("--fit", fit.map(|fit| fit.to_string())),
            ("--interpolation", interpolation.as_ref().map(value_name)),
            ("--antialias", antialias.map(|value| value.to_string())),
            ("--recompress", recompress.map(|value| value.to_string())),
            ("--output-name", output_name.clone()),
        ];
        given
            .into_iter()
            .filter_map(|(flag, value)| Some([flag.into(), value?.into()]))
            .flatten()
            .collect()
    }

    /// The overrides that these flags describe.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            mean: self.mean.map(|mean| mean.0),
            std: self.std.map(|std| std.0),
            resize_shorter_side: self.resize,
            input_size: self.input_size.map(|size| size.0),
            channels: self.channels,
            scale: self.scale,
            fit: self.fit,
            interpolation: self.interpolation,
            antialias: self.antialias,
            recompress: self.recompress,
            preset: self.preset,
            output: self.output_name.clone(),
            ..Default::default()
        }
    }
}

/// The name of a flag's value.
fn value_name(value: &impl ValueEnum) -> String {
    value
        .to_possible_value()
        .map_or_else(String::new, |value| value.get_name().to_owned())
}

/// Width and height, in pixels.
#[derive(Clone, Copy, Debug)]
struct ImageSize([u32; 2]);

impl fmt::Display for ImageSize {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [width, height] = self.0;
        write!(f, "{width}x{height}")
    }
}

impl FromStr for ImageSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let pixels = |side: &str| side.trim().parse().ok().filter(|side| *side > 0_u32);
        let size = match text.split_once(['x', 'X', '×']) {
            Some((width, height)) => pixels(width).zip(pixels(height)),
            None => pixels(text).map(|side| (side, side)),
        };
        let (width, height) = size.ok_or("expected width and height such as 224x224")?;
        Ok(Self([width, height]))
    }
}

/// A number for each colour: red, green and blue.
#[derive(Clone, Copy, Debug)]
struct Colours([f32; 3]);

impl fmt::Display for Colours {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [red, green, blue] = self.0;
        write!(f, "{red},{green},{blue}")
    }
}

impl FromStr for Colours {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<f32>, _> = text
            .split(',')
            .map(|number| number.trim().parse())
            .collect();
        let numbers = match numbers.as_deref() {
            Ok(&[one]) => [one; 3],
            Ok(&[red, green, blue]) => [red, green, blue],
            _ => return Err("expected three numbers such as 0.485,0.456,0.406, or one".into()),
        };
        if numbers.iter().any(|number| !(0.0..=255.0).contains(number)) {
            return Err("expected numbers from 0 to 1, or to 255 with --scale 255".into());
        }
        Ok(Self(numbers))
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[test]
    fn colours_are_three_numbers_or_one() {
        let parse = |text: &str| text.parse::<Colours>().map(|colours| colours.0);
        assert_eq!(parse("0.485, 0.456,0.406"), Ok([0.485, 0.456, 0.406]));
        assert_eq!(parse("124,116,104"), Ok([124.0, 116.0, 104.0]));
        assert_eq!(parse("0.1307"), Ok([0.1307; 3]));
        for wrong in [
            "0.5,0.5", "0,0,0,0", "a,b,c", "", "-1,0,0", "256", "0,0,NaN",
        ] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn sizes_are_a_width_and_a_height() {
        let parse = |text: &str| text.parse::<ImageSize>().map(|size| size.0);
        assert_eq!(parse("256x192"), Ok([256, 192]));
        assert_eq!(parse("224"), Ok([224, 224]));
        for wrong in ["", "0x4", "4x", "x", "4x4x4", "-4x4", "4.5x4"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }

    #[test]
    fn the_child_process_gets_every_flag() {
        #[derive(Debug, clap::Parser)]
        struct Program {
            #[command(flatten)]
            flags: ManifestFlags,
        }
        let arguments = [
            "--labels",
            "labels.txt",
            "--preset",
            "keras-caffe",
            "--mean",
            "0.5,0.25,0.125",
            "--std",
            "1,1,1",
            "--scale",
            "255",
            "--channels",
            "bgr",
            "--resize",
            "256",
            "--input-size",
            "224x192",
            "--fit",
            "letterbox:7f0080",
            "--interpolation",
            "area",
            "--antialias",
            "false",
            "--recompress",
            "75",
        ];
        let program = Program::parse_from(["program"].iter().chain(&arguments));
        assert_eq!(program.flags.arguments(), arguments);
        assert!(!program.flags.is_empty());
        assert!(Program::parse_from(["program"]).flags.is_empty());
    }
}
