//! Work on folders of photos, without clients: datasets, evaluation and training.

pub mod dataset;
pub mod evaluation;
mod run;
pub mod training;

pub use self::run::*;
