//! What a model's file does not say about itself: flags → [`Overrides`].

use std::{path::PathBuf, str::FromStr};

use clap::Args;

use crate::model::{self, ModelError, Overrides};

/// The flags that say what a model's file does not, or says otherwise.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct ManifestFlags {
    /// The names of the classes, one a line [default: what the file has; for 1000 classes
    /// ImageNet-1k's].
    #[arg(long, env = "RESNET18_LABELS", value_name = "FILE")]
    labels: Option<PathBuf>,
    #[command(flatten)]
    pixels: PixelFlags,
}

/// The flags that say how images are prepared for a model.
#[derive(Debug, Args)]
#[command(next_help_heading = "Model")]
pub struct PixelFlags {
    /// Mean of the pixels, 0 to 1, for red, green and blue [default: what the file has, else
    /// 0.485,0.456,0.406].
    #[arg(long, env = "RESNET18_MEAN", value_name = "R,G,B")]
    mean: Option<Channels>,
    /// Standard deviation of the pixels [default: what the file has, else 0.229,0.224,0.225].
    #[arg(long, env = "RESNET18_STD", value_name = "R,G,B")]
    std: Option<Channels>,
    /// Scale the shorter side to this many pixels before cropping [default: what the file has, else
    /// 256 for 224].
    #[arg(long, env = "RESNET18_RESIZE", value_name = "PIXELS")]
    resize: Option<u32>,
}

impl ManifestFlags {
    /// Whether nothing was said.
    pub fn is_empty(&self) -> bool {
        let PixelFlags { mean, std, resize } = &self.pixels;
        self.labels.is_none() && mean.is_none() && std.is_none() && resize.is_none()
    }

    /// What was said, for a model that is to be called `name`.
    ///
    /// # Errors
    /// A file of labels that can't be read.
    pub fn overrides(&self, name: Option<String>) -> Result<Overrides, ModelError> {
        let labels = self.labels.as_deref().map(model::read_labels).transpose()?;
        Ok(Overrides {
            name,
            labels,
            ..self.pixels.overrides()
        })
    }
}

impl PixelFlags {
    /// What was said.
    pub fn overrides(&self) -> Overrides {
        Overrides {
            mean: self.mean.map(|mean| mean.0),
            std: self.std.map(|std| std.0),
            resize_shorter_side: self.resize,
            ..Default::default()
        }
    }
}

/// One number for each of red, green and blue.
#[derive(Clone, Copy, Debug)]
struct Channels([f32; 3]);

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
                "expected numbers from 0 to 1; divide those for pixels of 0 to 255 by 255".into(),
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
