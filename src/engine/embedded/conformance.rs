//! Runs any rewritten model on `rten`, for ONNX's own tests of the operators.

use rten::Value;
use rten_tensor::{AsView, Layout, Tensor};

use super::limits::LIMITS;
use crate::{
    engine::conformance::Numbers,
    model::{
        first_beyond,
        onnx::{ModelProto, tensor_proto::DataType},
    },
};

/// Runs `onnx`, which is `model` as a file, on one set of inputs.
///
/// # Errors
/// Why the engine refuses it.
pub(in crate::engine) fn run(
    model: &ModelProto,
    onnx: Vec<u8>,
    inputs: &[(String, Numbers)],
    outputs: &[&str],
) -> Result<Vec<Numbers>, String> {
    if let Some(reason) = first_beyond(model, LIMITS) {
        return Err(reason);
    }
    let network = rten::Model::load(onnx).map_err(|error| error.to_string())?;
    let id = |name: &str| network.node_id(name).map_err(|error| error.to_string());
    let inputs = inputs
        .iter()
        .map(|(name, numbers)| Ok((id(name)?, value(numbers).into())))
        .collect::<Result<_, String>>()?;
    let ids: Vec<_> = outputs
        .iter()
        .map(|name| id(name))
        .collect::<Result<_, _>>()?;
    let found = network
        .run(inputs, &ids, None)
        .map_err(|error| error.to_string())?;
    Ok(found.into_iter().map(numbers).collect())
}

/// The engine has float32, int32, int8 and uint8; other types become the nearest of them, as they
/// do when it loads a file.
fn value(numbers: &Numbers) -> Value {
    let shape = &numbers.shape[..];
    let values = numbers.values();
    match numbers.elem {
        DataType::Float | DataType::Double => {
            let values: Vec<f32> = values.into_iter().map(|value| value as f32).collect();
            Tensor::from_data(shape, values).into()
        }
        DataType::Int8 => {
            let values: Vec<i8> = values.into_iter().map(|value| value as i8).collect();
            Tensor::from_data(shape, values).into()
        }
        DataType::Uint8 => {
            let values: Vec<u8> = values.into_iter().map(|value| value as u8).collect();
            Tensor::from_data(shape, values).into()
        }
        _ => {
            let values: Vec<i32> = values.into_iter().map(|value| value as i32).collect();
            Tensor::from_data(shape, values).into()
        }
    }
}

fn numbers(value: Value) -> Numbers {
    fn of<T: Copy, const N: usize>(
        elem: DataType,
        tensor: &Tensor<T>,
        bytes: impl Fn(T) -> [u8; N],
    ) -> Numbers {
        Numbers {
            elem,
            shape: tensor.shape().to_vec(),
            raw: tensor.to_vec().into_iter().flat_map(bytes).collect(),
        }
    }
    match value {
        Value::FloatTensor(tensor) => of(DataType::Float, &tensor, f32::to_le_bytes),
        Value::Int32Tensor(tensor) => of(DataType::Int32, &tensor, i32::to_le_bytes),
        Value::Int8Tensor(tensor) => of(DataType::Int8, &tensor, i8::to_le_bytes),
        Value::UInt8Tensor(tensor) => of(DataType::Uint8, &tensor, u8::to_le_bytes),
        other => panic!("{other:?} has no numbers"),
    }
}
