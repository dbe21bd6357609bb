//! Flags for quantization, shared by `quantize` and `serve`.

use std::num::NonZeroUsize;

use clap::{Args, builder::NonEmptyStringValueParser};

use crate::{
    cli::values,
    quantization::{Estimator, QuantizationConfig},
};

/// All flags that the result of quantization depends on, except for the folder of photos.
#[derive(Debug, Args)]
#[command(next_help_heading = "Quantization")]
pub struct QuantizationFlags {
    /// Number of photos for calibration. The same number of other photos checks the result, or a
    /// fifth of all if there are few.
    #[arg(long, env = "RESNET18_CALIBRATION_PHOTOS", value_name = "N", default_value = "100",
          value_parser = clap::value_parser!(u16).range(8..=500))]
    calibration_photos: u16,
    /// How the range of a layer's values is chosen: all values that were seen, 99.99 % of them, or
    /// the range with the smallest mean squared error.
    #[arg(long, env = "RESNET18_RANGE", default_value = "min-max",
          value_parser = values::one_of::<Estimator>())]
    range: Estimator,
    /// A layer to keep in floating point; may be repeated.
    #[arg(long, env = "RESNET18_KEEP_FLOAT", value_name = "LAYER", value_delimiter = ',',
          value_parser = NonEmptyStringValueParser::new())]
    keep_float: Vec<String>,
    /// Number of further layers to keep in floating point: those that lose the most accuracy.
    #[arg(long, env = "RESNET18_AUTO_KEEP", value_name = "N", default_value = "0",
          value_parser = clap::value_parser!(u16).range(0..=1000))]
    auto_keep: u16,
    /// Minimum share of the photos whose most probable class is the same as in floating point, or
    /// practically tied with it there. A result below this is refused.
    #[arg(long, env = "RESNET18_MIN_AGREEMENT", value_name = "SHARE", default_value = "0.97",
          value_parser = values::probability)]
    min_agreement: f32,
}

impl QuantizationFlags {
    /// The configuration that these flags describe, for this number of CPU threads.
    pub fn config(&self, threads: NonZeroUsize) -> QuantizationConfig {
        QuantizationConfig {
            photos: self.calibration_photos.into(),
            range: self.range,
            keep_float: self.keep_float.clone(),
            auto_keep: self.auto_keep.into(),
            judge_layers: true,
            min_agreement: f64::from(self.min_agreement),
            threads: threads.get(),
        }
    }
}
