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
    cli::CliError,
    model::{self, Model, ModelError, Overrides},
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
    /// Mean of the pixels, 0 to 1, for red, green and blue [default: those in the model's file,
    /// else 0.485,0.456,0.406].
    #[arg(long, env = "RESNET18_MEAN", value_name = "R,G,B")]
    mean: Option<Channels>,
    /// Standard deviation of the pixels [default: those in the model's file, else
    /// 0.229,0.224,0.225].
    #[arg(long, env = "RESNET18_STD", value_name = "R,G,B")]
    std: Option<Channels>,
    /// Scale the shorter side to this many pixels before cropping [default: the value in the
    /// model's file, else 256 for an input of 224].
    #[arg(long, env = "RESNET18_RESIZE", value_name = "PIXELS")]
    resize: Option<u32>,
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
        let PixelFlags {
            mean,
            std,
            resize,
            output_name,
        } = &self.pixels;
        let activation = self.activation.and_then(|activation| {
            let value = activation.to_possible_value()?;
            Some(value.get_name().into())
        });
        let mut arguments = Vec::new();
        let mut add = |flag: &str, value: Option<OsString>| {
            arguments.extend(value.into_iter().flat_map(|value| [flag.into(), value]));
        };
        add("--labels", self.labels.clone().map(Into::into));
        add("--mean", mean.map(|mean| mean.to_string().into()));
        add("--std", std.map(|std| std.to_string().into()));
        add("--resize", resize.map(|resize| resize.to_string().into()));
        add("--output-name", output_name.clone().map(Into::into));
        add("--activation", activation);
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
        model.map_err(CliError::failed)
    }
}

impl PixelFlags {
    /// The overrides that these flags describe.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            mean: self.mean.map(|mean| mean.0),
            std: self.std.map(|std| std.0),
            resize_shorter_side: self.resize,
            output: self.output_name.clone(),
            ..Default::default()
        }
    }
}

/// A number per channel: red, green and blue.
#[derive(Clone, Copy, Debug)]
struct Channels([f32; 3]);

impl fmt::Display for Channels {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        let [red, green, blue] = self.0;
        write!(f, "{red},{green},{blue}")
    }
}

impl FromStr for Channels {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let numbers: Result<Vec<f32>, _> = text
            .split(',')
            .map(|number| number.trim().parse())
            .collect();
        let numbers: Option<[f32; 3]> = numbers.ok().and_then(|numbers| numbers.try_into().ok());
        let numbers = numbers.ok_or("expected three numbers such as 0.485,0.456,0.406")?;
        if numbers.iter().any(|number| !(0.0..=1.0).contains(number)) {
            return Err(
                "expected numbers from 0 to 1; divide values for pixels of 0 to 255 by 255".into(),
            );
        }
        Ok(Self(numbers))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn channels_are_three_numbers() {
        assert_eq!(
            "0.485, 0.456,0.406".parse::<Channels>().unwrap().0,
            [0.485, 0.456, 0.406]
        );
        for wrong in [
            "0.5",
            "0.5,0.5",
            "0,0,0,0",
            "a,b,c",
            "",
            "124,116,104",
            "0,0,NaN",
        ] {
            assert!(wrong.parse::<Channels>().is_err(), "{wrong}");
        }
    }
}
