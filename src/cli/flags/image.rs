//! How images are decoded: flags → a [`PreprocessConfig`].

use clap::{Args, ValueEnum};

use crate::image::{Exif, JpegScaling, PreprocessConfig};

/// The flags for decoding.
#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub struct ImageFlags {
    /// Turn photos upright by their EXIF orientation, or take them as they are stored.
    #[arg(long, env = "RESNET18_EXIF", value_enum, default_value = "apply")]
    exif: ExifArg,
    /// The most pixels an image may have, in millions.
    #[arg(long, env = "RESNET18_MAX_MEGAPIXELS", value_name = "MP", default_value = "64",
          value_parser = clap::value_parser!(u64).range(1..=1024))]
    max_megapixels: u64,
    /// Decode JPEGs that are far larger than needed at a half, a quarter or an eighth of their
    /// size: faster, and the probabilities move a little.
    #[arg(long, env = "RESNET18_JPEG_SCALING", value_enum, default_value = "off")]
    jpeg_scaling: JpegScalingArg,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum ExifArg {
    Apply,
    Ignore,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum JpegScalingArg {
    Off,
    Auto,
}

impl ImageFlags {
    /// What was asked for.
    pub fn config(&self) -> PreprocessConfig {
        PreprocessConfig {
            exif: match self.exif {
                ExifArg::Apply => Exif::Apply,
                ExifArg::Ignore => Exif::Ignore,
            },
            max_pixels: self.max_megapixels * 1_000_000,
            jpeg_scaling: match self.jpeg_scaling {
                JpegScalingArg::Off => JpegScaling::Off,
                JpegScalingArg::Auto => JpegScaling::Auto,
            },
        }
    }
}
