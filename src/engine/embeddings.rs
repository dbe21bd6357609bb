//! Tests that every available engine returns correct embeddings, and that computing them does not
//! change the logits.

use std::num::NonZeroUsize;

use super::{
    Engine, EngineConfig, EngineKind, Lanes, Precision, Results, embedded, onnxruntime, openvino,
    start,
};
use crate::{
    model::{
        ActivationRange, Model, Overrides, Quantization,
        testing::{CLASSES, bytes, graph, node, tiny},
    },
    testing::{random_numbers, skipped},
};

const IMAGE: usize = 224 * 224 * 3;

fn bundled() -> Model {
    Model::bundled(&Overrides::default()).unwrap()
}

/// The bundled model with 8-bit layers.
fn quantized() -> Model {
    let mut model = bundled();
    let float = model.graph.folded().unwrap();
    let range = |name: String| {
        let signed = !name.contains("Relu");
        (name, ActivationRange { limit: 8.0, signed })
    };
    let ranges = float.ranged_tensors().into_iter().map(range).collect();
    let parameters = Quantization {
        ranges,
        ..Default::default()
    };
    model.graph = float.quantized(&parameters).unwrap();
    model
}

fn load(kind: EngineKind, precision: Option<Precision>, model: &Model) -> Option<Lanes> {
    let config = EngineConfig {
        kind: Some(kind),
        precision,
        ..EngineConfig::new(NonZeroUsize::new(2).unwrap())
    };
    let loaded = match kind {
        EngineKind::Embedded => embedded::load(&config, model),
        EngineKind::OpenVino => openvino::load(&config, model),
        _ => onnxruntime::load(kind, &config, model),
    };
    loaded.inspect_err(|error| skipped(&error.to_string())).ok()
}

/// A few images of noise at several scales.
fn images() -> Vec<Vec<u8>> {
    let mut random = random_numbers(0x1234_5678_9abc_def1);
    let mut image = |step: usize| -> Vec<u8> {
        let noise: Vec<u8> = (0..IMAGE).map(|_| random(256) as u8).collect();
        (0..IMAGE).map(|index| noise[index / step * step]).collect()
    };
    [1, 30, 672 * 16].map(&mut image).into()
}

fn logits(engine: &mut dyn Engine, image: &[u8], classes: usize) -> Vec<f32> {
    let mut logits = vec![0.0; classes];
    engine.infer(image, 1, &mut logits).unwrap();
    logits
}

fn both(engine: &mut dyn Engine, image: &[u8], sizes: (usize, usize)) -> (Vec<f32>, Vec<f32>) {
    let mut logits = vec![0.0; sizes.0];
    let mut embeddings = vec![0.0; sizes.1];
    let results = Results {
        logits: &mut logits,
        embeddings: &mut embeddings,
    };
    engine.infer_with_embeddings(image, 1, results).unwrap();
    (logits, embeddings)
}

fn bits(values: &[f32]) -> Vec<u32> {
    values.iter().map(|value| value.to_bits()).collect()
}

#[test]
fn no_engine_changes_a_bit_of_the_logits_for_embeddings() {
    let reference = load(EngineKind::Embedded, None, &bundled()).unwrap();
    let mut reference = reference.narrow.into_iter().next().unwrap();
    for (kind, precision, model) in [
        (EngineKind::Embedded, None, bundled()),
        (EngineKind::OpenVino, Some(Precision::Fp32), bundled()),
        (EngineKind::OpenVino, Some(Precision::Bf16), bundled()),
        (EngineKind::OpenVino, Some(Precision::Int8), quantized()),
        (EngineKind::OnnxRuntime, None, bundled()),
        (EngineKind::OnnxRuntime, None, quantized()),
    ] {
        let classes = model.graph.classes;
        let mut without = model.clone();
        without.graph = without.graph.without_embedding();
        let (Some(with), Some(without)) = (
            load(kind, precision, &model),
            load(kind, precision, &without),
        ) else {
            continue;
        };
        let name = format!("{kind} in {}", with.info.precision);
        assert_eq!(with.info.embedding, Some(512), "{name}");
        assert_eq!(without.info.embedding, None, "{name}");
        let is_exact = with.info.precision == Precision::Fp32;
        let lanes = |lanes: Lanes| lanes.wide.into_iter().chain(lanes.narrow).take(2);
        for (mut with, mut without) in lanes(with).zip(lanes(without)) {
            for image in images() {
                let plain = logits(&mut *without, &image, classes);
                assert_eq!(
                    bits(&logits(&mut *with, &image, classes)),
                    bits(&plain),
                    "{name}"
                );
                let (same, embedding) = both(&mut *with, &image, (classes, 512));
                assert_eq!(bits(&same), bits(&plain), "{name}");
                if is_exact {
                    let (_, expected) = both(&mut *reference, &image, (classes, 512));
                    let off = embedding
                        .iter()
                        .zip(&expected)
                        .map(|(a, b)| (a - b).abs())
                        .fold(0.0, f32::max);
                    assert!(off < 1e-3, "{name}: off by {off}");
                }
            }
            // `RESNET18_MEASURE=1 cargo test --lib no_engine_changes -- --nocapture` tells what the output
            // costs.
            if std::env::var_os("RESNET18_MEASURE").is_some() {
                let cpu = || {
                    let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
                    time.tv_sec as f64 * 1e3 + time.tv_nsec as f64 * 1e-6
                };
                let image = &images()[0];
                let mut sums = [f64::INFINITY; 2];
                for _ in 0..40 {
                    for (sum, engine) in sums.iter_mut().zip([&mut with, &mut without]) {
                        let started = cpu();
                        logits(&mut **engine, image, classes);
                        *sum = sum.min(cpu() - started);
                    }
                }
                let [with, without] = sums;
                eprintln!("{name}: {with:.3} CPU ms with the output, {without:.3} without it");
            }
        }
    }
}

#[test]
fn an_engine_starts_with_the_embeddings_that_its_model_has() {
    let start = |proto: &crate::model::onnx::ModelProto| {
        let overrides = Overrides {
            labels: Some((0..CLASSES).map(|class| class.to_string()).collect()),
            ..Default::default()
        };
        let model = Model::from_bytes(bytes(proto), &overrides).unwrap();
        let config = EngineConfig::new(NonZeroUsize::MIN);
        start(&config, &model).unwrap().info.embedding
    };
    assert_eq!(start(&tiny()), Some(3));
    let mut without = tiny();
    let nodes = &mut graph(&mut without).node;
    nodes.last_mut().unwrap().output = vec!["raw".into()];
    nodes.push(node("Relu", &["raw"], "scores"));
    assert_eq!(start(&without), None);
}
