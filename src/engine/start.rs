//! Choosing an engine, loading it, checking its answers and warming it up.

use std::time::Instant;

use super::{
    Engine, EngineConfig, EngineError, EngineKind, Lanes, Precision, embedded, openvino,
    self_check::{self, OnDisagreement},
    tensorrt,
};
use crate::model::Model;

/// Starts an engine for `model`, checks its answers and warms it up.
///
/// If no engine is requested, the preferred ones are tried in turn, and each failure is logged.
///
/// # Errors
/// If the requested engine can't start, or none can; if no engine is requested and two disagree in
/// fp32.
pub fn start(config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    if config.precision == Some(Precision::Int8) && !model.graph.quantized {
        return Err(EngineError::NotQuantized);
    }

    let candidates = candidates(config);
    for (i, &kind) in candidates.iter().enumerate() {
        match (start_one(kind, config, model), candidates.get(i + 1)) {
            (Ok(lanes), _) => return Ok(lanes),
            (
                Err(EngineError::SelfCheck {
                    kind,
                    precision: Precision::Fp32,
                    reason,
                }),
                _,
            ) if config.kind.is_none() => return Err(EngineError::Disagreement { kind, reason }),
            (Err(error), Some(next)) => tracing::warn!("{error}; trying the {next} engine"),
            (Err(error), None) => return Err(error),
        }
    }
    unreachable!("there is at least one candidate, and the last one returns")
}

/// The engines to try, best first.
fn candidates(config: &EngineConfig) -> Vec<EngineKind> {
    if let Some(kind) = config.kind {
        return vec![kind];
    }

    let mut candidates = vec![EngineKind::OpenVino, EngineKind::Embedded];
    if tensorrt::COMPILED_IN {
        candidates.insert(0, EngineKind::TensorRt);
    }
    candidates
}

fn start_one(kind: EngineKind, config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    let started = Instant::now();
    let mut lanes = match kind {
        EngineKind::Embedded => load_embedded(config, model)?,
        EngineKind::OpenVino => load_openvino(config, model)?,
        EngineKind::TensorRt => {
            let prepared = tensorrt::prepare(config)?;
            self_check::load_checked(
                || prepared.load(config, model),
                model,
                on_disagreement(config),
            )?
        }
    };
    let loaded = started.elapsed();

    warm_up(&mut lanes, model)?;
    tracing::debug!(
        engine = %kind,
        version = lanes.info.version,
        precision = %lanes.info.precision,
        device = lanes.info.device,
        lanes = lanes.narrow.len(),
        "engine loaded and checked in {:.0?}, warmed up in {:.0?}",
        loaded,
        started.elapsed() - loaded,
    );
    Ok(lanes)
}

fn load_embedded(config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    if model.graph.quantized {
        tracing::warn!(
            "the embedded engine computes this int8 model in fp32: its answers are right, but it \
             is slower than the float model; OpenVINO and TensorRT are fast with it"
        );
    }
    let mut lanes = embedded::load(config, model)?;
    self_check::check_finite(&mut lanes, model)?;
    Ok(lanes)
}

/// An engine that was chosen by hand serves even if another one disagrees.
fn on_disagreement(config: &EngineConfig) -> OnDisagreement {
    match config.kind {
        Some(_) => OnDisagreement::Warn,
        None => OnDisagreement::Refuse,
    }
}

/// Loads and checks OpenVINO; falls back to fp32 if a low precision that nobody requested fails the
/// self-check.
fn load_openvino(config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    let checked = |config: &EngineConfig| {
        self_check::load_checked(
            || openvino::load(config, model),
            model,
            on_disagreement(config),
        )
    };
    let error = match checked(config) {
        Ok(lanes) => return Ok(lanes),
        Err(error) => error,
    };

    let EngineError::SelfCheck { precision, .. } = error else {
        return Err(error);
    };
    if config.precision.is_some() || model.graph.quantized || precision == Precision::Fp32 {
        return Err(error);
    }

    tracing::warn!("{error}; continuing in fp32");
    let config = EngineConfig {
        precision: Some(Precision::Fp32),
        ..config.clone()
    };
    checked(&config)
}

/// Runs every batch size once on every lane, so that no request pays for lazy initialization.
fn warm_up(lanes: &mut Lanes, model: &Model) -> Result<(), EngineError> {
    let max_batch = lanes.info.max_batch;
    let sizes = if lanes.info.fixed_batch {
        max_batch..=max_batch
    } else {
        1..=max_batch
    };
    let image_len = model.geometry.bytes();
    let classes = model.graph.classes;
    let images = vec![0; max_batch * image_len];

    let run_all_sizes = |engine: &mut dyn Engine| -> Result<(), EngineError> {
        let mut logits = vec![0.0; max_batch * classes];
        for n in sizes.clone() {
            engine.infer(&images[..n * image_len], n, &mut logits[..n * classes])?;
        }
        Ok(())
    };

    if let Some(wide) = &mut lanes.wide {
        run_all_sizes(&mut **wide)?;
    }
    // Narrow lanes run side by side when they serve, so they are warmed up that way.
    std::thread::scope(|scope| {
        let threads: Vec<_> = lanes
            .narrow
            .iter_mut()
            .map(|lane| scope.spawn(|| run_all_sizes(&mut **lane)))
            .collect();
        threads.into_iter().try_for_each(|thread| {
            thread
                .join()
                .expect("an engine reports errors instead of panicking")
        })
    })
}
