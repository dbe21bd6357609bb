//! The safetensors format: the length of a header, a JSON header, the values.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{
    Checkpoint, CheckpointError,
    error::{self, damaged},
    tensor::{Elem, Layout, Tensor},
};

/// A ResNet152's header has 0.1 MB.
const LONGEST_HEADER: usize = 16 << 20;

#[derive(Deserialize)]
struct Entry {
    dtype: String,
    shape: Vec<usize>,
    data_offsets: [usize; 2],
}

pub(super) fn read(content: &Bytes) -> Result<Checkpoint, CheckpointError> {
    let (length, rest) = content
        .split_first_chunk()
        .ok_or_else(|| damaged("it ends within the header's length"))?;
    let length = usize::try_from(u64::from_le_bytes(*length)).unwrap_or(usize::MAX);
    if length > LONGEST_HEADER || length > rest.len() {
        return Err(damaged(format!(
            "the header should have {length} bytes, the whole file has {}",
            content.len()
        )));
    }
    let header: Map<String, Value> = serde_json::from_slice(&rest[..length])
        .map_err(|error| damaged(format!("the header is no JSON: {error}")))?;
    let body = content.slice(8 + length..);
    let mut tensors = BTreeMap::new();
    for (name, entry) in header
        .into_iter()
        .filter(|(name, _)| name != "__metadata__")
    {
        let entry: Entry = serde_json::from_value(entry).map_err(|error| {
            damaged(format!(
                "what the header says about the tensor `{name}` is wrong: {error}"
            ))
        })?;
        let tensor = tensor(&name, entry, &body)?;
        tensors.insert(name, tensor);
    }
    Ok(Checkpoint {
        tensors,
        others: BTreeMap::new(),
    })
}

fn tensor(name: &str, entry: Entry, body: &Bytes) -> Result<Tensor, CheckpointError> {
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
                format!("has the type {other}, which is not known here"),
            ));
        }
    };
    let [start, end] = entry.data_offsets;
    if start > end || end > body.len() {
        return Err(damaged(format!(
            "the values of tensor `{name}` should be at {start} to {end}, but there are {} bytes of values",
            body.len()
        )));
    }
    let impossible = || error::tensor(name, "has an impossible shape");
    let layout = Layout::contiguous(entry.shape).ok_or_else(impossible)?;
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
