//! Runs any rewritten model on OpenVINO, for ONNX's own tests of the operators.

use super::{limits::LIMITS, *};
use crate::{
    engine::conformance::Numbers,
    model::{
        first_beyond,
        onnx::{ModelProto, tensor_proto::DataType},
    },
};

/// Whether the library can be loaded.
pub(in crate::engine) fn available() -> bool {
    library::load(None).is_ok()
}

/// Runs `onnx`, which is `model` as a file, on one set of inputs.
///
/// # Errors
/// Why the engine refuses it.
pub(in crate::engine) fn run(
    model: &ModelProto,
    onnx: &[u8],
    inputs: &[(String, Numbers)],
    outputs: &[&str],
) -> Result<Vec<Numbers>, String> {
    if let Some(reason) = first_beyond(model, LIMITS) {
        return Err(reason);
    }
    library::load(None).map_err(|error| error.to_string())?;
    run_on_cpu(onnx, inputs, outputs).map_err(|error| error.to_string())
}

fn run_on_cpu(
    onnx: &[u8],
    inputs: &[(String, Numbers)],
    outputs: &[&str],
) -> Result<Vec<Numbers>, openvino::InferenceError> {
    let mut core = Core::new().expect("the library was loaded");
    for (key, value) in [
        ("INFERENCE_PRECISION_HINT", "f32"),
        ("INFERENCE_NUM_THREADS", "1"),
        ("NUM_STREAMS", "0"),
    ] {
        core.set_property(&DeviceType::CPU, &RwPropertyKey::Other(key.into()), value)?;
    }
    let network = core.read_model_from_buffer(onnx, None)?;
    let network_inputs = (0..network.get_inputs_len()?)
        .map(|index| network.get_input_by_index(index)?.get_name())
        .collect::<Result<Vec<String>, _>>()?;
    let mut compiled = core.compile_model(&network, DeviceType::CPU)?;
    let mut request = compiled.create_infer_request()?;
    for (name, numbers) in inputs {
        let elem = match numbers.elem {
            DataType::Float => ElementType::F32,
            DataType::Double => ElementType::F64,
            DataType::Int32 => ElementType::I32,
            DataType::Int64 => ElementType::I64,
            DataType::Int8 => ElementType::I8,
            DataType::Uint8 => ElementType::U8,
            DataType::Bool => ElementType::Boolean,
            other => panic!("{} is not fed", other.as_str_name()),
        };
        let shape: Vec<i64> = numbers.shape.iter().map(|&dim| dim as i64).collect();
        let mut tensor = Tensor::new(elem, &Shape::new(&shape)?)?;
        if !numbers.raw.is_empty() {
            tensor.get_raw_data_mut()?.copy_from_slice(&numbers.raw);
        }
        // OpenVINO drops inputs that nothing uses.
        if network_inputs.contains(name) {
            request.set_tensor(name, &tensor)?;
        }
    }
    request.infer()?;

    let answer = |name: &&str| {
        let tensor = request.get_tensor(name)?;
        let elem = match tensor.get_element_type()? {
            ElementType::F32 => DataType::Float,
            ElementType::F64 => DataType::Double,
            ElementType::I32 => DataType::Int32,
            ElementType::I64 => DataType::Int64,
            ElementType::I8 => DataType::Int8,
            ElementType::U8 => DataType::Uint8,
            ElementType::Boolean => DataType::Bool,
            other => panic!("an output of {other}"),
        };
        let shape = tensor.get_shape()?;
        let raw = match tensor.get_size()? {
            0 => Vec::new(),
            _ => tensor.get_raw_data()?.to_vec(),
        };
        Ok(Numbers {
            elem,
            shape: shape
                .get_dimensions()
                .iter()
                .map(|&dim| dim as usize)
                .collect(),
            raw,
        })
    };
    outputs.iter().map(answer).collect()
}
