//! Reads, converts and writes the values of ONNX tensors.

use bytes::Bytes;
use half::{f16, slice::HalfFloatSliceExt};

use super::{
    ModelError, error,
    onnx::{
        TensorProto,
        tensor_proto::{DataLocation, DataType},
    },
};

/// Values are converted in chunks of this many, so that they stay in the processor's cache.
const CHUNK: usize = 2048;

/// Size in bytes of one value; `None` for types that are not converted here.
pub(super) fn float_size(elem: DataType) -> Option<usize> {
    match elem {
        DataType::Float16 | DataType::Bfloat16 => Some(2),
        DataType::Float => Some(4),
        DataType::Double => Some(8),
        _ => None,
    }
}

/// The element type of `tensor`.
pub(super) fn elem(tensor: &TensorProto) -> DataType {
    DataType::try_from(tensor.data_type()).unwrap_or(DataType::Undefined)
}

/// Whether values of this type have 16 bits.
pub(super) fn is_half(elem: DataType) -> bool {
    matches!(elem, DataType::Float16 | DataType::Bfloat16)
}

/// Number of values according to the tensor's shape.
pub(super) fn len(tensor: &TensorProto) -> Result<usize, ModelError> {
    tensor
        .dims
        .iter()
        .try_fold(1_usize, |len, &dim| {
            len.checked_mul(usize::try_from(dim).ok()?)
        })
        .ok_or_else(|| {
            error::tensor(
                tensor.name(),
                format!("the shape {:?} is impossible", tensor.dims),
            )
        })
}

/// Rejects tensors whose values are stored in another file.
pub(super) fn refuse_external(tensor: &TensorProto) -> Result<(), ModelError> {
    if tensor.data_location() != DataLocation::External {
        return Ok(());
    }
    let location = tensor
        .external_data
        .iter()
        .find(|entry| entry.key() == "location");
    Err(ModelError::ExternalData {
        tensor: tensor.name().to_owned(),
        location: location
            .map_or("another file", |entry| entry.value())
            .to_owned(),
    })
}

/// Moves the values of a floating-point tensor into `raw_data`, where they can be shared, and
/// checks their number against the shape. Other tensors are not changed.
pub(super) fn make_raw(tensor: &mut TensorProto) -> Result<(), ModelError> {
    let Some(size) = float_size(elem(tensor)) else {
        return Ok(());
    };
    if tensor.raw_data.is_none() {
        let floats = std::mem::take(&mut tensor.float_data);
        let halves = std::mem::take(&mut tensor.int32_data);
        let doubles = std::mem::take(&mut tensor.double_data);
        let raw: Vec<u8> = match elem(tensor) {
            DataType::Float => floats.into_iter().flat_map(f32::to_le_bytes).collect(),
            DataType::Double => doubles.into_iter().flat_map(f64::to_le_bytes).collect(),
            // ONNX stores the 16 bits of a half in the lower part of an int32.
            _ => halves
                .into_iter()
                .flat_map(|value| (value as u16).to_le_bytes())
                .collect(),
        };
        tensor.raw_data = Some(raw.into());
    }

    let (values, bytes) = (len(tensor)?, tensor.raw_data().len());
    if values.checked_mul(size) != Some(bytes) {
        let reason = format!(
            "the shape {:?} means {values} values, but there are {}",
            tensor.dims,
            bytes / size
        );
        return Err(error::tensor(tensor.name(), reason));
    }
    Ok(())
}

/// Appends the values of a tensor that went through [`make_raw`] to `out`, little-endian, as type
/// `to`.
///
/// Values are rounded to nearest, ties to even. With `overflow`, values too large for `to` become
/// infinite.
///
/// # Errors
/// A type that is not a floating-point type; without `overflow`, a finite value outside the range
/// of `to`.
pub(super) fn write_floats(
    tensor: &TensorProto,
    to: DataType,
    overflow: bool,
    out: &mut Vec<u8>,
) -> Result<(), ModelError> {
    let from = elem(tensor);
    let raw = tensor.raw_data();
    if from == to {
        out.extend_from_slice(raw);
        return Ok(());
    }
    let size = float_size(from).ok_or_else(|| {
        error::tensor(
            tensor.name(),
            format!("{} is not a float type", from.as_str_name()),
        )
    })?;

    let mut values = [0_f32; CHUNK];
    for chunk in raw.chunks(CHUNK * size) {
        let values = &mut values[..chunk.len() / size];
        load(chunk, from, values);

        let start = out.len();
        store(values, to, out).ok_or_else(|| {
            error::tensor(
                tensor.name(),
                format!("cannot be written as {}", to.as_str_name()),
            )
        })?;
        if !overflow && let Some(value) = first_overflow(values, &out[start..], to) {
            let reason = format!(
                "its value {value} is outside the range of {}",
                to.as_str_name().to_ascii_lowercase()
            );
            return Err(error::tensor(tensor.name(), reason));
        }
    }
    Ok(())
}

/// `tensor` with its values as type `to`; see [`write_floats`].
pub(super) fn converted(
    tensor: &TensorProto,
    to: DataType,
    overflow: bool,
) -> Result<TensorProto, ModelError> {
    let mut tensor = tensor.clone();
    make_raw(&mut tensor)?;
    // Reserve by the bytes that exist rather than by the shape: for types that are not
    // floating-point, `make_raw` has not compared the two.
    let values = float_size(elem(&tensor)).map_or(0, |size| tensor.raw_data().len() / size);
    let mut raw = Vec::with_capacity(values * float_size(to).unwrap_or_default());
    write_floats(&tensor, to, overflow, &mut raw)?;
    Ok(TensorProto {
        data_type: Some(to as i32),
        raw_data: Some(raw.into()),
        ..tensor
    })
}

/// The values of a floating-point tensor.
pub(super) fn to_floats(tensor: &TensorProto) -> Result<Vec<f32>, ModelError> {
    let tensor = converted(tensor, DataType::Float, true)?;
    Ok(tensor
        .raw_data()
        .as_chunks::<4>()
        .0
        .iter()
        .map(|bytes| f32::from_le_bytes(*bytes))
        .collect())
}

/// A list of int64.
pub(super) fn int64s(name: &str, values: &[i64]) -> TensorProto {
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(DataType::Int64 as i32),
        dims: vec![values.len() as i64],
        int64_data: values.to_vec(),
        ..Default::default()
    }
}

/// A float32 tensor.
pub(super) fn floats(name: &str, dims: &[i64], values: &[f32]) -> TensorProto {
    let raw: Vec<u8> = values
        .iter()
        .flat_map(|value| value.to_le_bytes())
        .collect();
    TensorProto {
        name: Some(name.to_owned()),
        data_type: Some(DataType::Float as i32),
        dims: dims.to_vec(),
        raw_data: Some(Bytes::from(raw)),
        ..Default::default()
    }
}

/// Decodes little-endian values of type `from`, at most [`CHUNK`] of them.
fn load(raw: &[u8], from: DataType, values: &mut [f32]) {
    let halves = || {
        raw.as_chunks::<2>()
            .0
            .iter()
            .map(|bytes| u16::from_le_bytes(*bytes))
    };
    match from {
        DataType::Float16 => {
            let mut buffer = [f16::ZERO; CHUNK];
            let buffer = &mut buffer[..values.len()];
            buffer
                .iter_mut()
                .zip(halves())
                .for_each(|(value, bits)| *value = f16::from_bits(bits));
            buffer.convert_to_f32_slice(values);
        }
        DataType::Bfloat16 => {
            values
                .iter_mut()
                .zip(halves())
                .for_each(|(value, bits)| *value = f32::from_bits(u32::from(bits) << 16));
        }
        DataType::Double => {
            let doubles = raw
                .as_chunks::<8>()
                .0
                .iter()
                .map(|bytes| f64::from_le_bytes(*bytes));
            values
                .iter_mut()
                .zip(doubles)
                .for_each(|(value, double)| *value = double as f32);
        }
        _ => {
            let floats = raw
                .as_chunks::<4>()
                .0
                .iter()
                .map(|bytes| f32::from_le_bytes(*bytes));
            values
                .iter_mut()
                .zip(floats)
                .for_each(|(value, float)| *value = float);
        }
    }
}

/// Appends at most [`CHUNK`] values as type `to`; `None` for a type that is not written here.
fn store(values: &[f32], to: DataType, out: &mut Vec<u8>) -> Option<()> {
    let start = out.len();
    out.resize(start + values.len() * float_size(to)?, 0);
    let out = &mut out[start..];
    let halves = out.as_chunks_mut::<2>().0.iter_mut();
    match to {
        DataType::Float16 => {
            let mut buffer = [f16::ZERO; CHUNK];
            let buffer = &mut buffer[..values.len()];
            buffer.convert_from_f32_slice(values);
            halves
                .zip(buffer)
                .for_each(|(bytes, value)| *bytes = value.to_le_bytes());
        }
        DataType::Bfloat16 => {
            halves
                .zip(values)
                .for_each(|(bytes, &value)| *bytes = bfloat16(value).to_le_bytes());
        }
        DataType::Float => {
            out.as_chunks_mut::<4>()
                .0
                .iter_mut()
                .zip(values)
                .for_each(|(bytes, value)| *bytes = value.to_le_bytes());
        }
        _ => return None,
    }
    Some(())
}

/// The nearest bfloat16, ties to even. It has no branches, so that the compiler vectorises it.
fn bfloat16(value: f32) -> u16 {
    let bits = value.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1)) >> 16;
    // Rounding can carry a NaN's mantissa into the exponent; setting the quiet bit keeps it a NaN.
    let quiet = bits >> 16 | 0x40;
    (if value.is_nan() { quiet } else { rounded }) as u16
}

/// The first finite value that became infinite when it was stored.
fn first_overflow(values: &[f32], stored: &[u8], to: DataType) -> Option<f32> {
    let infinite = match to {
        DataType::Float16 => 0x7c00,
        DataType::Bfloat16 => 0x7f80,
        _ => return None,
    };
    let overflows = |(value, bytes): &(&f32, &[u8; 2])| {
        (u16::from_le_bytes(**bytes) & 0x7fff == infinite) & value.is_finite()
    };
    let mut pairs = values.iter().zip(stored.as_chunks::<2>().0);
    // A pass without early exit is vectorised and so much faster; overflow is rare.
    let any_overflow = pairs
        .clone()
        .fold(false, |any, pair| any | overflows(&pair));
    if !any_overflow {
        return None;
    }
    pairs.find(overflows).map(|(value, _)| *value)
}

#[cfg(test)]
mod tests {
    use half::bf16;

    use super::*;

    fn raw(tensor: &TensorProto) -> Vec<u8> {
        tensor.raw_data().to_vec()
    }

    #[test]
    fn halves_are_rounded_to_even_and_widened_exactly() {
        let values = [
            1.0,
            -2.5,
            1.0 + 1.0 / 2048.0,
            1.0 + 3.0 / 2048.0,
            65504.0,
            f32::NEG_INFINITY,
        ];
        let tensor = floats("w", &[6], &values);
        let half = converted(&tensor, DataType::Float16, false).unwrap();
        let expected = [
            1.0,
            -2.5,
            1.0,
            1.0 + 4.0 / 2048.0,
            65504.0,
            f32::NEG_INFINITY,
        ];
        assert_eq!(
            raw(&converted(&half, DataType::Float, false).unwrap()),
            raw(&floats("w", &[6], &expected))
        );

        let tensor = floats("w", &[2], &[1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0]);
        let brain = converted(&tensor, DataType::Bfloat16, false).unwrap();
        let widened = converted(&brain, DataType::Float, false).unwrap();
        assert_eq!(
            raw(&widened),
            raw(&floats("w", &[2], &[1.0, 1.0 + 4.0 / 256.0]))
        );
    }

    #[test]
    fn bfloat16_is_rounded_as_usual() {
        let hard = [
            0.0,
            -0.0,
            f32::MIN_POSITIVE,
            1e-45,
            f32::MAX,
            f32::MIN,
            f32::INFINITY,
            f32::NEG_INFINITY,
        ];
        let many = (0..100_000_u32).map(|index| f32::from_bits(index.wrapping_mul(2_654_435_761)));
        for value in hard
            .into_iter()
            .chain(many)
            .chain([f32::NAN, f32::from_bits(0x7f80_0001)])
        {
            assert_eq!(
                bfloat16(value),
                bf16::from_f32(value).to_bits(),
                "{value:e}"
            );
        }
    }

    #[test]
    fn values_outside_the_range_are_named() {
        let tensor = floats("fc.weight", &[2], &[1.0, 70000.0]);
        let error = converted(&tensor, DataType::Float16, false)
            .unwrap_err()
            .to_string();
        assert_eq!(
            error,
            "tensor `fc.weight`: its value 70000 is outside the range of float16"
        );
        assert_eq!(
            raw(&converted(&tensor, DataType::Float16, true).unwrap())[2..],
            f16::INFINITY.to_le_bytes()
        );
    }

    #[test]
    fn every_way_to_store_floats_is_read() {
        let expected = raw(&floats("w", &[2], &[0.5, -3.0]));
        let tensor = |elem: DataType| TensorProto {
            data_type: Some(elem as i32),
            dims: vec![2],
            ..Default::default()
        };
        let float = TensorProto {
            float_data: vec![0.5, -3.0],
            ..tensor(DataType::Float)
        };
        let double = TensorProto {
            double_data: vec![0.5, -3.0],
            ..tensor(DataType::Double)
        };
        let bits = |values: [u16; 2]| values.map(i32::from).to_vec();
        let half = [f16::from_f32(0.5).to_bits(), f16::from_f32(-3.0).to_bits()];
        let half = TensorProto {
            int32_data: bits(half),
            ..tensor(DataType::Float16)
        };
        let brain = [
            bf16::from_f32(0.5).to_bits(),
            bf16::from_f32(-3.0).to_bits(),
        ];
        let brain = TensorProto {
            int32_data: bits(brain),
            ..tensor(DataType::Bfloat16)
        };
        for stored in [float, double, half, brain] {
            assert_eq!(
                raw(&converted(&stored, DataType::Float, false).unwrap()),
                expected
            );
        }
    }

    #[test]
    fn shapes_that_do_not_fit_the_values_are_refused() {
        let mut tensor = floats("w", &[3], &[1.0, 2.0]);
        assert_eq!(
            make_raw(&mut tensor).unwrap_err().to_string(),
            "tensor `w`: the shape [3] means 3 values, but there are 2"
        );
        tensor.dims = vec![i64::MAX, 8];
        assert!(
            make_raw(&mut tensor)
                .unwrap_err()
                .to_string()
                .contains("impossible")
        );
        tensor.dims = vec![-1];
        assert!(make_raw(&mut tensor).is_err());
    }

    #[test]
    fn memory_is_reserved_for_values_that_are_there() {
        let promising = TensorProto {
            name: Some("w".into()),
            data_type: Some(DataType::Int64 as i32),
            dims: vec![1 << 50],
            ..Default::default()
        };
        let error = to_floats(&promising).unwrap_err().to_string();
        assert_eq!(error, "tensor `w`: INT64 is not a float type");
    }
}
