//! Work on folders of photos without a server: datasets, running a model on files, evaluation and
//! training.

pub mod dataset;
pub mod evaluation;
mod run;
pub mod training;

pub use self::run::{
    OfflineConfig, OfflineError, OfflineModel, Photo, PhotoError, SkippedPhoto, TooManyUnreadable,
    UsableOutputs, separate_unusable,
};
