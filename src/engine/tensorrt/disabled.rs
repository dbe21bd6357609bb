//! Stands in for TensorRT in a program that was built without the feature `tensorrt`.

use std::convert::Infallible;

use super::{BuiltPlan, ComputeCapability, KIND, Progress};
use crate::{
    engine::{EngineConfig, EngineError, Lanes},
    model::Model,
};

/// Whether this program contains the engine.
pub(in crate::engine) const COMPILED_IN: bool = false;

/// What [`prepare`] would return; no value of this type exists.
pub(in crate::engine) struct Prepared(Infallible);

impl Prepared {
    pub(in crate::engine) fn load(self, _: &EngineConfig, _: &Model) -> Result<Lanes, EngineError> {
        match self.0 {}
    }
}

/// Looks for the library and the GPUs.
///
/// # Errors
/// Always.
pub(in crate::engine) fn prepare(_: &EngineConfig) -> Result<Prepared, EngineError> {
    Err(not_compiled_in())
}

/// Builds a plan for GPUs that need not be present.
///
/// # Errors
/// Always.
pub fn build_ahead(
    _: &EngineConfig,
    _: &Model,
    _: ComputeCapability,
    _: Progress,
) -> Result<BuiltPlan, EngineError> {
    Err(not_compiled_in())
}

fn not_compiled_in() -> EngineError {
    EngineError::Unavailable {
        kind: KIND,
        reason: "this program was built without it".into(),
        advice:
            "build it with `cargo build --release --features tensorrt` (GeForce and RTX cards) \
                 or `tensorrt-enterprise` (A100, H100, T4 and other servers)"
                .into(),
    }
}
