//! The path of the cards on ONNX Runtime's CPU provider, and what is said where there is none.

use std::num::NonZeroUsize;

use super::*;
use crate::{
    model::Overrides,
    testing::{random_numbers, skipped},
};

const IMAGE: usize = 224 * 224 * 3;

fn config(kind: EngineKind) -> EngineConfig {
    EngineConfig {
        kind: Some(kind),
        ..EngineConfig::new(NonZeroUsize::MIN)
    }
}

fn is_there(config: &EngineConfig) -> bool {
    let found = is_installed(config);
    if !found {
        skipped("there is no ONNX Runtime; `make onnxruntime` fetches it");
    }
    found
}

fn images(n: usize) -> Vec<u8> {
    let mut random = random_numbers(0x1234_5678_9abc_def1);
    (0..n * IMAGE).map(|_| random(256) as u8).collect()
}

#[test]
fn batches_are_padded_to_the_sizes_that_a_card_computes() {
    let config = config(EngineKind::OnnxRuntime);
    if !is_there(&config) {
        return;
    }
    let model = Model::bundled(&Overrides::default()).unwrap();
    let classes = model.graph.classes;
    let lanes = load(EngineKind::OnnxRuntime, &config, &model).unwrap();
    let mut plain = lanes.narrow.into_iter().next().unwrap();
    let images = images(3);
    let mut expected = vec![0.0; 3 * classes];
    plain.infer(&images, 3, &mut expected).unwrap();

    let environment = library::load(EngineKind::OnnxRuntime, None).unwrap();
    let serving = model.graph.to_serve(None, BodyPrecision::Fp32).unwrap();
    let session_config = SessionConfig {
        provider: Provider::Cpu,
        precision: Precision::Fp32,
        threads: 1,
    };
    let mut padding = OnnxRuntime {
        session: session::session(environment, &serving.onnx, session_config).unwrap(),
        provider: Provider::Cpu,
        shape: [224, 224, 3],
        sizes: batch_sizes(4, false),
        padded: Vec::new(),
    };
    let mut logits = vec![0.0; 3 * classes];
    padding.infer(&images, 3, &mut logits).unwrap();
    assert_eq!(padding.padded.len(), 4 * IMAGE);
    let off = expected.iter().zip(&logits).map(|(a, b)| (a - b).abs());
    assert!(off.fold(0.0, f32::max) < 1e-3);
    let mut first = vec![0.0; classes];
    padding.infer(&images[..IMAGE], 1, &mut first).unwrap();
    assert_eq!(padding.padded.len(), 4 * IMAGE, "one image needs none");
    let mut embeddings = vec![0.0; 3 * 512];
    let results = crate::engine::Results {
        logits: &mut logits,
        embeddings: &mut embeddings,
    };
    padding.infer_with_embeddings(&images, 3, results).unwrap();
    assert!(embeddings.iter().any(|value| *value > 0.0));
}

#[test]
fn the_graph_in_fp16_is_one_that_onnx_runtime_computes() {
    let config = config(EngineKind::OnnxRuntime);
    if !is_there(&config) {
        return;
    }
    let model = Model::bundled(&Overrides::default()).unwrap();
    library::load(EngineKind::OnnxRuntime, None).unwrap();
    let logits = |precision| {
        let mut lanes = load_on(&[Provider::Cpu], precision, &config, &model).unwrap();
        let mut logits = vec![0.0; model.graph.classes];
        lanes.narrow[0].infer(&images(1), 1, &mut logits).unwrap();
        logits
    };
    let exact = logits(Precision::Fp32);
    let half = logits(Precision::Fp16);
    assert_ne!(exact, half, "rounded to 11 bits");
    let off = exact.iter().zip(&half).map(|(a, b)| (a - b).abs());
    let off = off.fold(0.0, f32::max);
    assert!(off < 0.05, "off by {off}");
}

#[test]
fn a_library_without_a_provider_says_what_to_install() {
    let model = Model::bundled(&Overrides::default()).unwrap();
    for (kind, parts) in [
        (
            EngineKind::Cuda,
            ["was built without CUDA", "make onnxruntime-gpu"],
        ),
        (
            EngineKind::CoreMl,
            ["was built without CoreML", "libraries for Macs"],
        ),
    ] {
        let config = config(kind);
        if !is_there(&config) {
            return;
        }
        let Err(error) = load(kind, &config, &model) else {
            skipped("this machine has what the test says is missing");
            continue;
        };
        let error = error.to_string();
        if cuda_is_likely(&config) || error.contains("no NVIDIA driver") {
            skipped("ONNX Runtime with CUDA is installed here");
            continue;
        }
        for part in parts {
            assert!(error.contains(part), "{error}");
        }
    }
}

#[test]
fn bf16_is_refused_with_what_is_computed() {
    let model = Model::bundled(&Overrides::default()).unwrap();
    for (kind, precision, hint) in [
        (EngineKind::OnnxRuntime, Precision::Fp16, "--precision fp32"),
        (EngineKind::Cuda, Precision::Bf16, "--precision fp16"),
        (EngineKind::CoreMl, Precision::Bf16, "--precision fp16"),
    ] {
        let config = EngineConfig {
            precision: Some(precision),
            ..config(kind)
        };
        let error = super::precision(kind, &config, &model)
            .unwrap_err()
            .to_string();
        assert!(error.contains(hint), "{error}");
    }
    for kind in [EngineKind::Cuda, EngineKind::CoreMl] {
        assert_eq!(
            super::precision(kind, &config(kind), &model).unwrap(),
            Precision::Fp16
        );
    }
}
