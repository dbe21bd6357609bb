//! Runs any rewritten model on ONNX Runtime, for ONNX's own tests of the operators.

use ort::value::{DynTensor, DynValue, Tensor};

use super::{
    library,
    limits::LIMITS,
    provider::Provider,
    session::{SessionConfig, session},
};
use crate::{
    engine::{EngineKind, Precision, conformance::Numbers},
    model::{
        first_beyond,
        onnx::{ModelProto, tensor_proto::DataType},
    },
};

/// Whether the library can be loaded.
pub(in crate::engine) fn available() -> bool {
    library::load(EngineKind::OnnxRuntime, None).is_ok()
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
    let environment =
        library::load(EngineKind::OnnxRuntime, None).map_err(|error| error.to_string())?;
    let config = SessionConfig {
        provider: Provider::Cpu,
        precision: Precision::Fp32,
        threads: 1,
    };
    let mut session = session(environment, onnx, config).map_err(|error| error.to_string())?;
    let inputs: Vec<(&str, DynTensor)> = inputs
        .iter()
        .map(|(name, numbers)| (name.as_str(), tensor(numbers)))
        .collect();
    let answers = session.run(inputs).map_err(|error| error.to_string())?;
    Ok(outputs
        .iter()
        .map(|name| numbers(&answers[*name]))
        .collect())
}

fn tensor(numbers: &Numbers) -> DynTensor {
    fn of<T, const N: usize>(numbers: &Numbers, read: fn([u8; N]) -> T) -> DynTensor
    where
        T: ort::value::PrimitiveTensorElementType + Clone + std::fmt::Debug + 'static,
    {
        let values: Vec<T> = numbers.raw.as_chunks().0.iter().map(|b| read(*b)).collect();
        Tensor::from_array((numbers.shape.clone(), values))
            .expect("the values fit the shape")
            .upcast()
    }
    match numbers.elem {
        DataType::Float => of(numbers, f32::from_le_bytes),
        DataType::Double => of(numbers, f64::from_le_bytes),
        DataType::Int32 => of(numbers, i32::from_le_bytes),
        DataType::Int64 => of(numbers, i64::from_le_bytes),
        DataType::Int8 => of(numbers, i8::from_le_bytes),
        DataType::Uint8 => of(numbers, u8::from_le_bytes),
        DataType::Bool => of(numbers, |[byte]: [u8; 1]| byte != 0),
        other => panic!("{} is not fed", other.as_str_name()),
    }
}

fn numbers(value: &DynValue) -> Numbers {
    fn of<T, const N: usize>(
        value: &DynValue,
        elem: DataType,
        bytes: fn(T) -> [u8; N],
    ) -> Option<Numbers>
    where
        T: ort::value::PrimitiveTensorElementType + Copy,
    {
        let (shape, values) = value.try_extract_tensor::<T>().ok()?;
        Some(Numbers {
            elem,
            shape: shape.iter().map(|&dim| dim as usize).collect(),
            raw: values.iter().flat_map(|&value| bytes(value)).collect(),
        })
    }
    of(value, DataType::Float, f32::to_le_bytes)
        .or_else(|| of(value, DataType::Double, f64::to_le_bytes))
        .or_else(|| of(value, DataType::Int32, i32::to_le_bytes))
        .or_else(|| of(value, DataType::Int64, i64::to_le_bytes))
        .or_else(|| of(value, DataType::Int8, i8::to_le_bytes))
        .or_else(|| of(value, DataType::Uint8, u8::to_le_bytes))
        .or_else(|| of(value, DataType::Bool, |truth: bool| [truth.into()]))
        .expect("an output of numbers")
}
