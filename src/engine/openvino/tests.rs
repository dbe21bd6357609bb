//! OpenVINO itself: half-precision answers, and integer kernels for quantized layers.

use std::{ffi::CStr, fs, ptr::null_mut};

use openvino_sys as sys;

use super::*;
use crate::{
    answer,
    model::{ActivationRange, Overrides, Quantization, ServingGraph},
    testing::{shared, skipped},
};

/// Loads the library; `None`, with a note that the test is skipped, where there is none.
fn loaded() -> Option<()> {
    if library::load(None).is_err() {
        skipped("there is no OpenVINO; `make openvino` fetches it");
        return None;
    }
    Some(())
}

/// The probabilities for each crop, from a graph whose body is typed as `body` and computed in
/// fp32.
fn probabilities(
    core: &mut Core,
    model: &Model,
    body: Precision,
    crops: &[Vec<u8>],
) -> Vec<Vec<f32>> {
    let (network, _) = read_network(core, model, Some(1), body).unwrap();
    core.set_property(
        &DeviceType::CPU,
        &RwPropertyKey::Other("INFERENCE_PRECISION_HINT".into()),
        "f32",
    )
    .unwrap();
    let mut compiled = core.compile_model(&network, DeviceType::CPU).unwrap();
    let request = compiled.create_infer_request().unwrap();
    let image_shape = [model.geometry.height.into(), model.geometry.width.into(), 3];
    let mut engine = OpenVino::new(request, image_shape);

    let infer = |crop: &Vec<u8>| {
        let mut logits = vec![0.0; model.graph.classes];
        engine.infer(crop, 1, &mut logits).unwrap();
        answer::softmax(&logits)
    };
    crops.iter().map(infer).collect()
}

/// TensorRT gets the same typed graph; here it is computed on the CPU.
#[test]
fn a_body_in_fp16_answers_as_in_fp32() {
    let (Some(golden), Some(models)) = (shared("golden"), shared("models")) else {
        return;
    };
    if loaded().is_none() {
        return;
    }
    let mut core = Core::new().unwrap();
    let expected: serde_json::Value =
        serde_json::from_slice(&fs::read(golden.join("expected.json")).unwrap()).unwrap();
    let crop = |entry: &serde_json::Value| {
        image::open(golden.join(entry["crop"].as_str().unwrap()))
            .unwrap()
            .into_rgb8()
            .into_raw()
    };
    let crops: Vec<Vec<u8>> = expected.as_object().unwrap().values().map(crop).collect();

    let half = Overrides {
        mean: Some([0.498; 3]),
        std: Some([0.502; 3]),
        ..Default::default()
    };
    let efficientnet = Model::from_file(&models.join("efficientnet-lite0.onnx"), &half).unwrap();

    // EfficientNet-Lite0 is more sensitive: one golden image, the moon, moves by 0.0111 when its
    // weights are rounded.
    for (model, tolerance) in [
        (Model::bundled(&Overrides::default()).unwrap(), 0.01),
        (efficientnet, 0.015),
    ] {
        let [full, half] = [Precision::Fp32, Precision::Fp16]
            .map(|body| probabilities(&mut core, &model, body, &crops));
        let mut worst = 0.0_f32;
        for (full, half) in full.iter().zip(&half) {
            worst = full
                .iter()
                .zip(half)
                .map(|(a, b)| (a - b).abs())
                .fold(worst, f32::max);
            let best = |probabilities: &[f32]| answer::top_k(probabilities, 1, 0.0)[0].class_id;
            assert_eq!(best(full), best(half), "{}", model.name);
        }
        eprintln!(
            "{}: fp16 within {worst:.4} on {} golden images",
            model.name,
            crops.len()
        );
        assert!(worst < tolerance, "{}: {worst}", model.name);
    }
}

/// A node that OpenVINO executed.
struct ExecutedNode {
    /// Operator, such as `Convolution`.
    operator: String,
    /// Implementation, such as `brgconv_avx512_amx_I8`.
    kernel: String,
}

/// Runs an ONNX file on one image and returns the nodes that were executed for it.
#[allow(unsafe_code)]
fn executed(onnx: &[u8], image: &[u8], shape: [i64; 4]) -> Vec<ExecutedNode> {
    let check = |status: sys::ov_status_e| assert_eq!(status, sys::ov_status_e::OK);
    let text = |text| {
        // SAFETY: the strings of the profiling list are NUL-terminated, and the list is freed only
        // after they have been copied.
        let text = unsafe { CStr::from_ptr(text) };
        text.to_string_lossy().into_owned()
    };
    let mut core = null_mut();
    let mut model = null_mut();
    let mut compiled = null_mut();
    let mut request = null_mut();
    let mut tensor = null_mut();
    let mut tensor_shape = sys::ov_shape_t {
        rank: 0,
        dims: null_mut(),
    };
    let mut profile = sys::ov_profiling_info_list_t {
        profiling_infos: null_mut(),
        size: 0,
    };

    // SAFETY: each call gets what earlier calls created, all of which lives as long as this
    // function; the list is read before it is freed. Nothing else is freed, as a test ends soon.
    unsafe {
        check(sys::ov_core_create(&mut core));
        check(sys::ov_core_set_property(
            core,
            c"CPU".as_ptr(),
            c"PERF_COUNT".as_ptr(),
            c"YES".as_ptr(),
        ));
        let bytes = onnx.as_ptr().cast();
        check(sys::ov_core_read_model_from_memory_buffer(
            core,
            bytes,
            onnx.len(),
            null_mut(),
            &mut model,
        ));
        check(sys::ov_core_compile_model(
            core,
            model,
            c"CPU".as_ptr(),
            0,
            &mut compiled,
        ));
        check(sys::ov_compiled_model_create_infer_request(
            compiled,
            &mut request,
        ));
        check(sys::ov_shape_create(4, shape.as_ptr(), &mut tensor_shape));
        let bytes = image.as_ptr().cast_mut().cast();
        check(sys::ov_tensor_create_from_host_ptr(
            sys::ov_element_type_e::U8,
            tensor_shape,
            bytes,
            &mut tensor,
        ));
        check(sys::ov_infer_request_set_input_tensor(request, tensor));
        check(sys::ov_infer_request_infer(request));
        check(sys::ov_infer_request_get_profiling_info(
            request,
            &mut profile,
        ));
        let nodes = std::slice::from_raw_parts(profile.profiling_infos, profile.size);
        let executed = nodes
            .iter()
            .filter(|node| node.status == sys::ov_profiling_info_t_Status::EXECUTED);
        let kernels = executed
            .map(|node| ExecutedNode {
                operator: text(node.node_type),
                kernel: text(node.exec_type),
            })
            .collect();
        sys::ov_profiling_info_list_free(&mut profile);
        kernels
    }
}

/// Not only the file is in 8 bits: so are the kernels that OpenVINO chooses for its layers.
#[test]
fn quantized_layers_are_executed_in_integers() {
    if loaded().is_none() {
        return;
    }
    let float = Model::bundled(&Overrides::default())
        .unwrap()
        .graph
        .folded()
        .unwrap();
    let range = |name: String| {
        let signed = !name.contains("Relu");
        (name, ActivationRange { limit: 8.0, signed })
    };
    let ranges = float.ranged_tensors().into_iter().map(range).collect();
    let quantized = float
        .quantized(&Quantization {
            ranges,
            ..Default::default()
        })
        .unwrap();
    let count = |graph: &ServingGraph| {
        // As it is served: the output with the embeddings keeps no layer from it.
        let onnx = graph.to_serve(Some(1), BodyPrecision::Fp32).unwrap().onnx;
        let nodes = executed(&onnx, &[128; 224 * 224 * 3], [1, 224, 224, 3]);
        let layers = nodes.iter().filter(|node| {
            node.operator == "Convolution" || node.operator.starts_with("FullyConnected")
        });
        let integers = layers
            .clone()
            .filter(|node| node.kernel.to_ascii_uppercase().ends_with("I8"));
        (layers.count(), integers.count())
    };
    assert_eq!(count(&quantized), (21, 21));
    assert_eq!(count(&float), (21, 0));
}
