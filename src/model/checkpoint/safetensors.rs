//! Reads the safetensors format: the length of the header, a JSON header, the values.
//!
//! The crate `safetensors` (0.8) is not used, because it does less for hostile and damaged files:
//! its errors about shapes and types do not name the tensor, it accepts headers of up to 100 MB,
//! and its addition of offsets is unchecked, so that a crafted header panics where overflow checks
//! are on.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Checkpoint, CheckpointError,
    error::{self, damaged},
    tensor::{Elem, StridedLayout, Tensor},
    tensor_set::TensorSet,
};

/// The longest header that is accepted, in bytes. A ResNet152's has 0.1 MB.
const MAX_HEADER_LEN: usize = 16 << 20;

/// A tensor in the header.
#[derive(Deserialize)]
struct HeaderEntry {
    dtype: String,
    shape: Vec<usize>,
    /// First byte of the values and one past the last, counted from the end of the header.
    data_offsets: [usize; 2],
}

pub(super) fn read(content: &Bytes) -> Result<Checkpoint, CheckpointError> {
    let (length, rest) = content
        .split_first_chunk()
        .ok_or_else(|| damaged("it ends within the length of its header"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > MAX_HEADER_LEN || length > rest.len() {
        return Err(damaged(format!(
            "its header should have {length} bytes, but the whole file has {}",
            content.len()
        )));
    }
    let header: Map<String, Value> = serde_json::from_slice(&rest[..length])
        .map_err(|error| damaged(format!("its header is not JSON: {error}")))?;

    let body = content.slice(8 + length..);
    let mut tensors = BTreeMap::new();
    for (name, entry) in header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
    {
        let entry: HeaderEntry = serde_json::from_value(entry).map_err(|error| {
            damaged(format!(
                "its header has an invalid entry for the tensor `{name}`: {error}"
            ))
        })?;
        let tensor = tensor(&name, entry, &body)?;
        tensors.insert(name, tensor);
    }
    Ok(Checkpoint {
        sets: vec![TensorSet::new(tensors)],
    })
}

fn tensor(name: &str, entry: HeaderEntry, body: &Bytes) -> Result<Tensor, CheckpointError> {
    let elem = match entry.dtype.as_str() {
        "F16" => Elem::F16,
        "BF16" => Elem::Bf16,
        "F32" => Elem::F32,
        "F64" => Elem::F64,
        "I64" => Elem::Other("int64", 8),
        "U64" => Elem::Other("uint64", 8),
        "I32" => Elem::Other("int32", 4),
        "U32" => Elem::Other("uint32", 4),
        "I16" => Elem::Other("int16", 2),
        "U16" => Elem::Other("uint16", 2),
        "I8" => Elem::Other("int8", 1),
        "U8" => Elem::Other("uint8", 1),
        "BOOL" => Elem::Other("bool", 1),
        "F8_E4M3" | "F8_E5M2" | "F8_E8M0" => Elem::Other("float8", 1),
        other => {
            return Err(error::tensor(
                name,
                format!("has the type {other}, which is not supported"),
            ));
        }
    };

    let [start, end] = entry.data_offsets;
    if start > end || end > body.len() {
        return Err(damaged(format!(
            "the values of tensor `{name}` should be at {start} to {end}, \
             but there are {} bytes of values",
            body.len()
        )));
    }

    let impossible = || error::tensor(name, "has an impossible shape");
    let layout = StridedLayout::contiguous(entry.shape).ok_or_else(impossible)?;
    let bytes = layout.len().and_then(|len| len.checked_mul(elem.size()));
    if bytes != Some(end - start) {
        let reason = format!(
            "has the shape {:?} of {}, but {} bytes",
            layout.shape,
            entry.dtype,
            end - start
        );
        return Err(error::tensor(name, reason));
    }
    Tensor::new(name, elem, layout, body.slice(start..end))
}
