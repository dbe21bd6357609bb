//! Encodes a model tensor by tensor, so that converted weights are never held in memory twice.

use prost::{Message, encode_length_delimiter, length_delimiter_len};

use super::super::{
    ModelError,
    onnx::{ModelProto, TensorProto, tensor_proto::DataType},
    tensor,
};

// Keys of length-delimited protobuf fields: the field number, and 2 for the wire type.
const MODEL_GRAPH: u8 = 7 << 3 | 2;
const GRAPH_INITIALIZER: u8 = 5 << 3 | 2;
const TENSOR_RAW_DATA: u8 = 9 << 3 | 2;

/// The format in which an initializer is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct InitializerFormat {
    /// The element type. Only floating-point tensors are converted.
    pub(super) elem: DataType,
    /// Whether values too large for `elem` become infinite instead of being an error.
    pub(super) overflow: bool,
}

/// Encodes `model`, writing each initializer in the format that `format_of` chooses.
///
/// # Errors
/// A value outside the range of the chosen type.
pub(super) fn encode(
    mut model: ModelProto,
    format_of: impl Fn(&TensorProto) -> InitializerFormat,
) -> Result<Vec<u8>, ModelError> {
    // OpenVINO takes a file for ONNX by its first three different fields: the version, the producer
    // and one operator set. Without a producer, the second operator set would come too early.
    model.producer_name.get_or_insert_default();
    let mut graph = model.graph.take().unwrap_or_default();
    let initializers: Vec<PendingInitializer> = std::mem::take(&mut graph.initializer)
        .into_iter()
        .map(|tensor| PendingInitializer::new(format_of(&tensor), tensor))
        .collect::<Result<_, _>>()?;
    let graph_len = graph.encoded_len()
        + initializers
            .iter()
            .map(|initializer| 1 + delimited_len(initializer.len()))
            .sum::<usize>();

    let mut out = Vec::with_capacity(model.encoded_len() + 1 + delimited_len(graph_len));
    model.encode_raw(&mut out);
    write_key(MODEL_GRAPH, graph_len, &mut out);
    graph.encode_raw(&mut out);
    for initializer in initializers {
        write_key(GRAPH_INITIALIZER, initializer.len(), &mut out);
        initializer.write(&mut out)?;
    }
    Ok(out)
}

/// An initializer that is converted when it is written.
enum PendingInitializer {
    AsIs(TensorProto),
    Converted {
        source: TensorProto,
        /// The tensor without its values.
        head: Box<TensorProto>,
        raw_len: usize,
        format: InitializerFormat,
    },
}

impl PendingInitializer {
    fn new(format: InitializerFormat, source: TensorProto) -> Result<Self, ModelError> {
        let Some(size) =
            tensor::float_size(format.elem).filter(|_| format.elem != tensor::elem(&source))
        else {
            return Ok(Self::AsIs(source));
        };
        let raw_len = tensor::len(&source)? * size;
        let head = Box::new(TensorProto {
            data_type: Some(format.elem as i32),
            raw_data: None,
            ..source.clone()
        });
        Ok(Self::Converted {
            source,
            head,
            raw_len,
            format,
        })
    }

    fn len(&self) -> usize {
        match self {
            Self::AsIs(tensor) => tensor.encoded_len(),
            Self::Converted { head, raw_len, .. } => {
                head.encoded_len() + 1 + delimited_len(*raw_len)
            }
        }
    }

    fn write(self, out: &mut Vec<u8>) -> Result<(), ModelError> {
        match self {
            Self::AsIs(tensor) => tensor.encode_raw(out),
            Self::Converted {
                source,
                head,
                raw_len,
                format,
            } => {
                head.encode_raw(out);
                write_key(TENSOR_RAW_DATA, raw_len, out);
                tensor::write_floats(&source, format.elem, format.overflow, out)?;
            }
        }
        Ok(())
    }
}

fn write_key(key: u8, len: usize, out: &mut Vec<u8>) {
    out.push(key);
    encode_length_delimiter(len, out).expect("a vector grows as needed");
}

/// Encoded size of a field of `len` bytes together with its length.
fn delimited_len(len: usize) -> usize {
    length_delimiter_len(len) + len
}
