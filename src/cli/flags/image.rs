//! Flags for decoding images.

use std::time::Duration;

use clap::Args;

use crate::{
    cli::values::{one_of, positive_duration},
    image::{Exif, JpegScaling, PreprocessConfig},
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Images")]
pub struct ImageFlags {
    /// Whether to rotate photos according to their EXIF orientation, or leave them as stored.
    #[arg(long, env = "RESNET18_EXIF", default_value = "apply", value_parser = one_of::<Exif>())]
    exif: Exif,
    /// Maximum size of an image, in millions of pixels.
    #[arg(long, env = "RESNET18_MAX_MEGAPIXELS", value_name = "MP", default_value = "64",
          value_parser = clap::value_parser!(u64).range(1..=1024))]
    max_megapixels: u64,
    /// Whether to decode JPEGs that are much larger than needed at a half, a quarter or an eighth
    /// of their size. This is faster, and changes the probabilities slightly.
    #[arg(long, env = "RESNET18_JPEG_SCALING", default_value = "off",
          value_parser = one_of::<JpegScaling>())]
    jpeg_scaling: JpegScaling,
    /// How much CPU time decoding an image may take before it is abandoned and the image rejected.
    #[arg(long, env = "RESNET18_MAX_DECODE_TIME", value_name = "DURATION", default_value = "10s",
          value_parser = positive_duration)]
    max_decode_time: Duration,
}

impl ImageFlags {
    /// The configuration that these flags describe.
    pub fn config(&self) -> PreprocessConfig {
        PreprocessConfig {
            exif: self.exif,
            max_pixels: self.max_megapixels * 1_000_000,
            max_memory: u64::MAX,
            jpeg_scaling: self.jpeg_scaling,
            max_decode_time: self.max_decode_time,
        }
    }
}
