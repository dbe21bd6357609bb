//! Why an engine can't start, or failed.

use super::{EngineKind, Precision};

/// Why an engine can't be used.
#[derive(Debug, thiserror::Error)]
pub enum EngineError {
    /// A library, driver, processor feature or device that the engine needs is missing.
    #[error("the {kind} engine can't start: {reason}; {advice}")]
    Unavailable {
        kind: EngineKind,
        /// What is missing.
        reason: String,
        /// How the user can fix it.
        advice: String,
    },

    /// The engine does not support this network. `reason` is the engine's own message.
    #[error("the {kind} engine can't run this model: {reason}")]
    UnsupportedModel { kind: EngineKind, reason: String },

    /// int8 was requested for a float model.
    #[error(
        "--precision int8 needs a quantized model, and this one is in float: make one with \
         `resnet18 quantize`, or let `resnet18 serve` do it with --calibration DIR, a folder of \
         photos"
    )]
    NotQuantized,

    /// The engine's answers differ from the embedded fp32 engine's. `reason` has the figures.
    #[error(
        "the {kind} engine in {precision} failed its self-check: {reason}; --precision fp32 or \
         another --engine may pass it"
    )]
    SelfCheck {
        kind: EngineKind,
        precision: Precision,
        reason: String,
    },

    /// Two engines answer differently in fp32. `reason` has the figures of both.
    #[error(
        "the {kind} engine and the embedded engine disagree on this model in fp32: {reason}; which \
         one is right can't be told here, so neither serves it unless it is chosen by hand: compare \
         with the framework that the model comes from, then give --engine {kind} or --engine \
         embedded"
    )]
    Disagreement { kind: EngineKind, reason: String },

    /// The logits are NaN or infinite for ordinary photos.
    #[error(
        "the {kind} engine computes logits that are not finite numbers with this model: its weights \
         may be damaged"
    )]
    NotFinite { kind: EngineKind },

    /// This call failed; later ones may succeed.
    #[error("the {kind} engine failed: {reason}")]
    Inference { kind: EngineKind, reason: String },

    /// This call failed, and so will all later ones in this process.
    #[error("the {kind} engine is lost: {reason}; the server has to be restarted")]
    Lost { kind: EngineKind, reason: String },
}
