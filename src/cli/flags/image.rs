//! Flags for decoding images.

use clap::Args;

use crate::{
    cli::values::one_of,
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
}

impl ImageFlags {
    /// The configuration that these flags describe.
    pub fn config(&self) -> PreprocessConfig {
        PreprocessConfig {
            exif: self.exif,
            max_pixels: self.max_megapixels * 1_000_000,
            jpeg_scaling: self.jpeg_scaling,
        }
    }
}
