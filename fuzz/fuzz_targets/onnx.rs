//! Fuzzes ONNX files: what `resnet18 check` does with one before an engine sees it. That is counting
//! its parts, decoding, checking the limits, finding the input and output, and every rewrite of the
//! graph. `make fuzz` limits the time and the memory of each file.
#![no_main]

use std::collections::HashMap;

use bytes::Bytes;
use libfuzzer_sys::fuzz_target;
use resnet18_server::model::{
    ActivationRange, Batch, BodyPrecision, Model, Overrides, Quantization, ServingGraph,
};

fuzz_target!(|file: &[u8]| {
    // Without the right number of labels, most networks would be rejected.
    for classes in [4, 10, 1000] {
        let labels = Some((0..classes).map(|class| format!("class {class}")).collect());
        let overrides = Overrides {
            labels,
            ..Overrides::default()
        };
        if let Ok(model) = Model::from_bytes(Bytes::copy_from_slice(file), &overrides) {
            assert_eq!(model.labels.len(), model.graph.classes);
            assert_bounded(&model.graph);
            rewrite(&model.graph);
            break;
        }
    }
});

/// What is accepted is not more than a process can be expected to hold.
fn assert_bounded(graph: &ServingGraph) {
    let images = match graph.batch {
        Batch::Any => 1,
        Batch::Fixed(batch) => batch,
    };
    let image = 3 * u64::from(graph.width) * u64::from(graph.height);
    assert!(images <= 1024 && image * images as u64 <= 1 << 30);
    assert!(graph.classes <= 1 << 20);
}

/// Applies every rewrite. Each may reject the graph but must not panic.
fn rewrite(graph: &ServingGraph) {
    let batch = match graph.batch {
        Batch::Any => None,
        Batch::Fixed(batch) => Some(batch),
    };
    for precision in [
        BodyPrecision::Fp32,
        BodyPrecision::Bf16,
        BodyPrecision::Fp16,
    ] {
        let _ = graph.to_onnx(batch, precision);
    }
    let tensors = graph.ranged_tensors();
    let _ = graph.tapped(batch, &tensors);
    let ranges: HashMap<_, _> = tensors
        .into_iter()
        .zip([true, false].into_iter().cycle())
        .map(|(name, signed)| (name, ActivationRange { limit: 1.5, signed }))
        .collect();
    let quantized = graph.folded().and_then(|folded| {
        let layers = folded.layers().into_iter().enumerate();
        let means = layers
            .map(|(index, layer)| (layer.input, vec![0.25; 3 + index % 2]))
            .collect();
        folded.quantized(&Quantization {
            ranges,
            means,
            ..Quantization::default()
        })
    });
    if let Ok(quantized) = quantized {
        let _ = quantized
            .with_signed_activations()
            .to_onnx(batch, BodyPrecision::Fp32);
    }
    let _ = graph.size();
}
