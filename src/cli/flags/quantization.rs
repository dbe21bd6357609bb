//! How a model is quantised: flags → a [`QuantizationConfig`], the same for `quantize` and `serve`.

use std::num::NonZeroUsize;

use clap::{Args, ValueEnum, builder::NonEmptyStringValueParser};

use crate::{
    cli::values,
    quantization::{Estimator, QuantizationConfig},
};

/// The flags of quantisation that its result depends on, beside the photos' folder.
#[derive(Debug, Args)]
#[command(next_help_heading = "Quantization")]
pub struct QuantizationFlags {
    /// How many photos to calibrate with. As many others check the result, or a fifth of all where
    /// there are few.
    #[arg(long, env = "RESNET18_CALIBRATION_PHOTOS", value_name = "N", default_value = "100",
          value_parser = clap::value_parser!(u16).range(8..=500))]
    calibration_photos: u16,
    /// How ranges are chosen: all values that were seen, 99.99 % of them, or the range with the
    /// least squared error.
    #[arg(long, env = "RESNET18_RANGE", value_enum, default_value = "min-max")]
    range: RangeArg,
    /// A layer that stays in float; may be repeated.
    #[arg(long, env = "RESNET18_KEEP_FLOAT", value_name = "LAYER", value_delimiter = ',',
          value_parser = NonEmptyStringValueParser::new())]
    keep_float: Vec<String>,
    /// How many of the layers that lose most stay in float too.
    #[arg(long, env = "RESNET18_AUTO_KEEP", value_name = "N", default_value = "0",
          value_parser = clap::value_parser!(u16).range(0..=1000))]
    auto_keep: u16,
    /// The least part of the photos with the same most probable class as in float, or with another
    /// that is as good as tied with it there; a result below it is refused.
    #[arg(long, env = "RESNET18_MIN_AGREEMENT", value_name = "PART", default_value = "0.97",
          value_parser = values::probability)]
    min_agreement: f32,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum RangeArg {
    MinMax,
    Percentile,
    Mse,
}

impl QuantizationFlags {
    /// What was asked for, on so many CPU threads.
    pub fn config(&self, threads: NonZeroUsize) -> QuantizationConfig {
        QuantizationConfig {
            photos: self.calibration_photos.into(),
            range: match self.range {
                RangeArg::MinMax => Estimator::MinMax,
                RangeArg::Percentile => Estimator::Percentile,
                RangeArg::Mse => Estimator::Mse,
            },
            keep_float: self.keep_float.clone(),
            auto_keep: self.auto_keep.into(),
            judge_layers: true,
            min_agreement: f64::from(self.min_agreement),
            threads: threads.get(),
        }
    }
}
