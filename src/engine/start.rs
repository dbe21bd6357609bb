//! Choosing an engine, loading it, checking its answers and warming it up.

use std::time::Instant;

use super::{
    EngineConfig, EngineError, EngineInfo, EngineKind, Lanes, Precision, embedded, onnxruntime,
    openvino, processor, reference,
    self_check::{self, OnDisagreement},
    tensorrt,
    warm_up::warm_up,
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

    start_first(&candidates(config), config, model)
}

/// Starts the first of the `candidates` that can be started.
fn start_first(
    candidates: &[EngineKind],
    config: &EngineConfig,
    model: &Model,
) -> Result<Lanes, EngineError> {
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
            ) if config.kind.is_none() => {
                let third_opinion = (kind == EngineKind::OpenVino)
                    .then(|| settle(config, model, &reason))
                    .flatten();
                return third_opinion.ok_or(EngineError::Disagreement { kind, reason });
            }
            (Err(error), Some(next)) => tracing::warn!("{error}; trying the {next} engine"),
            (Err(error), None) => return Err(error),
        }
    }
    unreachable!("there is at least one candidate, and the last one returns")
}

/// Where OpenVINO and the embedded engine disagree because of this `reason`: the engine that ONNX
/// Runtime agrees with, or itself; `None` if it is not there or agrees with neither.
fn settle(config: &EngineConfig, model: &Model, reason: &str) -> Option<Lanes> {
    if !onnxruntime::is_installed(config) {
        return None;
    }
    let with_warning = |mut lanes: Lanes, wrong: EngineKind, right: EngineKind| {
        let warning = format!(
            "the {wrong} engine is not used: it disagrees with the {right} and the onnxruntime \
             engine, which agree ({reason})"
        );
        tracing::warn!(model = model.name, "{warning}");
        lanes.info.warnings.push(warning);
        Some(lanes)
    };
    if let Ok(lanes) = start_one(EngineKind::OnnxRuntime, config, model) {
        return with_warning(lanes, EngineKind::OpenVino, EngineKind::Embedded);
    }
    let lanes = load_openvino(config, &[EngineKind::OnnxRuntime], model).ok()?;
    with_warning(lanes, EngineKind::Embedded, EngineKind::OpenVino)
}

/// Starts an engine for `model` as [`start`] does, to see whether it survives that, and ends it.
///
/// Nothing is computed on a GPU, where the server that is running may need the memory. Where
/// TensorRT or CUDA is asked for, or may be chosen, the model is run on the engines that do without
/// one: the rewriting and the reference of the self-check are tried, and the GPU itself is not. Errors
/// of those engines are warnings then, since the GPU's may do better.
///
/// # Errors
/// As for [`start`].
pub fn try_out(config: &EngineConfig, model: &Model) -> Result<EngineInfo, EngineError> {
    let (gpu, chosen) = match (config.kind, on_gpu(config).first()) {
        (Some(kind @ EngineKind::TensorRt), _) => (kind, vec![EngineKind::Embedded]),
        (Some(kind @ EngineKind::Cuda), _) => {
            (kind, vec![EngineKind::OnnxRuntime, EngineKind::Embedded])
        }
        (None, Some(kind)) => (*kind, on_cpu(config)),
        _ => return start(config, model).map(|lanes| lanes.info),
    };
    let without_gpu = EngineConfig {
        kind: None,
        precision: None,
        max_batch: None,
        ..config.clone()
    };
    let info = start_first(&chosen, &without_gpu, model).map(|lanes| lanes.info);
    Ok(info.unwrap_or_else(|error| EngineInfo {
        kind: gpu,
        version: "not tried".into(),
        precision: Precision::Fp32,
        device: "GPU".into(),
        max_batch: 1,
        fixed_batch: false,
        batch_sizes: Vec::new(),
        offloaded: true,
        embedding: None,
        warnings: vec![error.to_string()],
    }))
}

/// What the answers of the engine depend on besides its configuration: its library and the
/// processor.
pub fn identity(config: &EngineConfig) -> String {
    let libraries = match config.kind {
        Some(EngineKind::Embedded) => String::new(),
        _ => format!(
            "{} {}",
            openvino::library_stamp(config),
            onnxruntime::library_stamp(config)
        ),
    };
    format!("{} {libraries} on {}", embedded::VERSION, processor::name())
}

/// The engines to try, best first.
fn candidates(config: &EngineConfig) -> Vec<EngineKind> {
    if let Some(kind) = config.kind {
        return vec![kind];
    }

    let mut candidates = on_gpu(config);
    candidates.extend(on_cpu(config));
    candidates
}

/// The engines to try on a GPU, best first.
fn on_gpu(config: &EngineConfig) -> Vec<EngineKind> {
    let tensorrt = tensorrt::COMPILED_IN.then_some(EngineKind::TensorRt);
    let cuda = onnxruntime::cuda_is_likely(config).then_some(EngineKind::Cuda);
    tensorrt.into_iter().chain(cuda).collect()
}

/// The engines to try on a CPU, best first. ONNX Runtime is an addition that few have: it is only
/// tried where it is there, or should be.
fn on_cpu(config: &EngineConfig) -> Vec<EngineKind> {
    let mut candidates = vec![EngineKind::OpenVino, EngineKind::Embedded];
    if config.onnxruntime.library.is_some() || onnxruntime::is_installed(config) {
        candidates.insert(1, EngineKind::OnnxRuntime);
    }
    candidates
}

fn start_one(kind: EngineKind, config: &EngineConfig, model: &Model) -> Result<Lanes, EngineError> {
    let started = Instant::now();
    let lanes = match kind {
        EngineKind::Embedded => load_embedded(config, model)?,
        EngineKind::OpenVino => {
            let config = openvino::tuned(config, model);
            load_openvino(&config, &reference::references(&config), model)?
        }
        EngineKind::Cuda | EngineKind::CoreMl => load_in_low_precision(
            &|config| onnxruntime::load(kind, config, model),
            config,
            &reference::references(config),
            model,
        )?,
        EngineKind::OnnxRuntime => self_check::load_checked(
            || onnxruntime::load(kind, config, model),
            config,
            &[EngineKind::Embedded],
            model,
            on_disagreement(config),
        )?,
        EngineKind::TensorRt => {
            let prepared = tensorrt::prepare(config)?;
            self_check::load_checked(
                || prepared.load(config, model),
                config,
                &reference::references(config),
                model,
                on_disagreement(config),
            )?
        }
    };
    tracing::debug!(
        engine = %kind,
        version = lanes.info.version,
        precision = %lanes.info.precision,
        device = lanes.info.device,
        lanes = lanes.narrow.len(),
        "engine loaded, checked and warmed up in {:.0?}",
        started.elapsed(),
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
    warm_up(&mut lanes, model, &[])?;
    Ok(lanes)
}

/// An engine that was chosen by hand serves even if another one disagrees.
fn on_disagreement(config: &EngineConfig) -> OnDisagreement {
    match config.kind {
        Some(_) => OnDisagreement::Warn,
        None => OnDisagreement::Refuse,
    }
}

fn load_openvino(
    config: &EngineConfig,
    references: &[EngineKind],
    model: &Model,
) -> Result<Lanes, EngineError> {
    let load = |config: &EngineConfig| openvino::load(config, model);
    load_in_low_precision(&load, config, references, model)
}

/// Loads and checks an engine; falls back to fp32 if a low precision that nobody requested fails the
/// self-check.
fn load_in_low_precision(
    load: &(dyn Fn(&EngineConfig) -> Result<Lanes, EngineError> + Sync),
    config: &EngineConfig,
    references: &[EngineKind],
    model: &Model,
) -> Result<Lanes, EngineError> {
    let checked = |config: &EngineConfig| {
        let on_disagreement = on_disagreement(config);
        self_check::load_checked(|| load(config), config, references, model, on_disagreement)
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

#[cfg(test)]
mod tests {
    use std::num::NonZeroUsize;

    use super::*;
    use crate::{
        model::{
            Overrides,
            testing::{CLASSES, bytes, tiny},
        },
        testing::skipped,
    };

    fn tiny_model() -> Model {
        let labels = Some((0..CLASSES).map(|class| class.to_string()).collect());
        let overrides = Overrides {
            labels,
            ..Default::default()
        };
        Model::from_bytes(bytes(&tiny()), &overrides).unwrap()
    }

    #[test]
    fn onnx_runtime_settles_which_of_two_engines_is_right() {
        let config = EngineConfig::new(NonZeroUsize::MIN);
        if !onnxruntime::is_installed(&config) {
            skipped("there is no ONNX Runtime; `make onnxruntime` fetches it");
            return;
        }
        // It agrees with the embedded engine, so OpenVINO is wrong.
        let lanes = settle(&config, &tiny_model(), "class 1 instead of 2").unwrap();
        assert_eq!(lanes.info.kind, EngineKind::OnnxRuntime);
        let [warning] = &lanes.info.warnings[..] else {
            panic!("{:?}", lanes.info.warnings);
        };
        assert!(
            warning.contains("the openvino engine is not used") && warning.contains("class 1"),
            "{warning}"
        );
    }

    #[test]
    fn a_model_for_a_gpu_is_tried_without_one() {
        let model = tiny_model();
        let on_cpu = [EngineKind::OnnxRuntime, EngineKind::Embedded];
        for (kind, instead) in [
            (EngineKind::TensorRt, &on_cpu[1..]),
            (EngineKind::Cuda, &on_cpu[..]),
        ] {
            let config = EngineConfig {
                kind: Some(kind),
                precision: Some(Precision::Fp16),
                max_batch: NonZeroUsize::new(8),
                ..EngineConfig::new(NonZeroUsize::MIN)
            };
            let info = try_out(&config, &model).unwrap();
            assert!(instead.contains(&info.kind), "{}", info.kind);
            assert_eq!(info.precision, Precision::Fp32);
        }
    }
}
