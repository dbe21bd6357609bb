//! Puts the bytes of files of weights into the tensors of a decoded model.

use std::{collections::HashMap, num::ParseIntError};

use bytes::Bytes;

use crate::model::{
    ModelError, error,
    onnx::{
        AttributeProto, GraphProto, ModelProto, NodeProto, SparseTensorProto, TensorProto,
        tensor_proto::{DataLocation, DataType},
    },
    tensor,
};

/// Gives the model's tensors the values that are in its files of weights, which `contents` has by
/// their names. Nothing is copied.
///
/// # Errors
/// A tensor whose values are not in these files or don't fit it, and tensors of more than `limit`
/// bytes altogether.
pub(super) fn fill(
    model: &mut ModelProto,
    contents: &HashMap<String, Bytes>,
    limit: u64,
) -> Result<(), ModelError> {
    let mut filling = Filling {
        contents,
        limit,
        bytes: 0,
    };
    for function in &mut model.functions {
        for attribute in &mut function.attribute_proto {
            filling.attribute(attribute)?;
        }
        filling.nodes(&mut function.node)?;
    }
    match &mut model.graph {
        Some(graph) => filling.graph(graph),
        None => Ok(()),
    }
}

/// Visits all tensors of a model.
struct Filling<'a> {
    contents: &'a HashMap<String, Bytes>,
    /// The most bytes that all tensors together may have.
    limit: u64,
    /// The bytes of the tensors so far.
    bytes: u64,
}

impl Filling<'_> {
    fn graph(&mut self, graph: &mut GraphProto) -> Result<(), ModelError> {
        for tensor in &mut graph.initializer {
            self.tensor(tensor)?;
        }
        for sparse in &mut graph.sparse_initializer {
            self.sparse(sparse)?;
        }
        self.nodes(&mut graph.node)
    }

    fn nodes(&mut self, nodes: &mut [NodeProto]) -> Result<(), ModelError> {
        for attribute in nodes.iter_mut().flat_map(|node| &mut node.attribute) {
            self.attribute(attribute)?;
        }
        Ok(())
    }

    fn attribute(&mut self, attribute: &mut AttributeProto) -> Result<(), ModelError> {
        for tensor in attribute.t.iter_mut().chain(&mut attribute.tensors) {
            self.tensor(tensor)?;
        }
        let sparse = attribute.sparse_tensor.iter_mut();
        for sparse in sparse.chain(&mut attribute.sparse_tensors) {
            self.sparse(sparse)?;
        }
        for graph in attribute.g.iter_mut().chain(&mut attribute.graphs) {
            self.graph(graph)?;
        }
        Ok(())
    }

    fn sparse(&mut self, sparse: &mut SparseTensorProto) -> Result<(), ModelError> {
        for tensor in sparse.values.iter_mut().chain(&mut sparse.indices) {
            self.tensor(tensor)?;
        }
        Ok(())
    }

    fn tensor(&mut self, tensor: &mut TensorProto) -> Result<(), ModelError> {
        if tensor.data_location() != DataLocation::External {
            return Ok(());
        }
        let wrong = |reason: String| Err(error::tensor(tensor.name(), reason));
        let Some(location) = entry(tensor, "location") else {
            return wrong("is stored in another file and does not name it".into());
        };
        let Some(content) = self.contents.get(location) else {
            return wrong(format!(
                "names its file `{location}` in a form that is not supported; save the model again with \
                 Python's `onnx.save`"
            ));
        };
        let (Ok(offset), Ok(length)) = (number(tensor, "offset"), number(tensor, "length")) else {
            return wrong(format!(
                "its offset or its length in `{location}` is not a number of bytes"
            ));
        };

        let size = size(tensor)?;
        if let Some(length) = length.filter(|&length| length != size) {
            let elem = tensor::elem(tensor).as_str_name().to_ascii_lowercase();
            return wrong(format!(
                "has {length} bytes in `{location}`, but its shape {:?} of {elem} takes {size}",
                tensor.dims
            ));
        }
        let offset = offset.unwrap_or(0);
        let end = offset.checked_add(size);
        let Some(end) = end.filter(|&end| end <= content.len() as u64) else {
            return wrong(format!(
                "needs {size} bytes from byte {offset} of `{location}` on, but the file has {}",
                content.len()
            ));
        };
        // Tensors may share their bytes, and each is written on its own for an engine.
        self.bytes = self.bytes.saturating_add(size);
        if self.bytes > self.limit {
            return Err(ModelError::Bounds(format!(
                "has tensors that overlap in their files and together take more than {} bytes, \
                 the most that is read",
                self.limit
            )));
        }

        // Both are at most the length of a vector.
        let values = content.slice(offset as usize..end as usize);
        *tensor = TensorProto {
            dims: std::mem::take(&mut tensor.dims),
            data_type: tensor.data_type,
            name: tensor.name.take(),
            doc_string: tensor.doc_string.take(),
            metadata_props: std::mem::take(&mut tensor.metadata_props),
            raw_data: Some(values),
            ..Default::default()
        };
        Ok(())
    }
}

fn entry<'a>(tensor: &'a TensorProto, key: &str) -> Option<&'a str> {
    let mut entries = tensor.external_data.iter();
    entries
        .find(|entry| entry.key() == key)
        .map(|entry| entry.value())
}

/// The number under `key` in the tensor's entries; `None` if the entry is absent.
fn number(tensor: &TensorProto, key: &str) -> Result<Option<u64>, ParseIntError> {
    entry(tensor, key)
        .map(|text| text.trim().parse())
        .transpose()
}

/// The bytes that the tensor's values take by its shape and type.
fn size(tensor: &TensorProto) -> Result<u64, ModelError> {
    let values = tensor::len(tensor)? as u64;
    let bits = match tensor::elem(tensor) {
        DataType::Uint2 | DataType::Int2 => 2,
        DataType::Uint4 | DataType::Int4 | DataType::Float4e2m1 => 4,
        DataType::Uint8
        | DataType::Int8
        | DataType::Bool
        | DataType::Float8e4m3fn
        | DataType::Float8e4m3fnuz
        | DataType::Float8e5m2
        | DataType::Float8e5m2fnuz
        | DataType::Float8e8m0 => 8,
        DataType::Uint16 | DataType::Int16 | DataType::Float16 | DataType::Bfloat16 => 16,
        DataType::Uint32 | DataType::Int32 | DataType::Float => 32,
        DataType::Uint64 | DataType::Int64 | DataType::Double | DataType::Complex64 => 64,
        DataType::Complex128 => 128,
        elem => {
            let elem = elem.as_str_name().to_ascii_lowercase();
            let reason = format!("has the type {elem}, which can't be stored in another file");
            return Err(error::tensor(tensor.name(), reason));
        }
    };
    values
        .checked_mul(bits)
        .map(|bits| bits.div_ceil(8))
        .ok_or_else(|| {
            let reason = format!("the shape {:?} is impossible", tensor.dims);
            error::tensor(tensor.name(), reason)
        })
}
