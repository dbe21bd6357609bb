//! Writing a model tensor by tensor, so that converted weights are never held twice.

use prost::{Message, encode_length_delimiter, length_delimiter_len};

use super::super::{
    ModelError,
    onnx::{ModelProto, TensorProto, tensor_proto::DataType},
    tensor,
};

/// Keys of length-delimited fields: the field's number, and 2 for the kind.
const MODEL_GRAPH: u8 = 7 << 3 | 2;
const GRAPH_INITIALIZER: u8 = 5 << 3 | 2;
const TENSOR_RAW_DATA: u8 = 9 << 3 | 2;

/// How an initializer is to be written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Storage {
    /// The element type; only floating-point tensors are ever changed.
    pub(super) elem: DataType,
    /// Whether values too large for it become infinite rather than an error.
    pub(super) overflow: bool,
}

/// `model` as bytes, each initializer with the storage that `storage` chooses.
///
/// # Errors
/// A value outside the range of its new type.
pub(super) fn encode(
    mut model: ModelProto,
    storage: impl Fn(&TensorProto) -> Storage,
) -> Result<Vec<u8>, ModelError> {
    let mut graph = model.graph.take().unwrap_or_default();
    let initializers: Vec<Piece> = std::mem::take(&mut graph.initializer)
        .into_iter()
        .map(|tensor| Piece::new(&storage(&tensor), tensor))
        .collect::<Result<_, _>>()?;
    let graph_len = graph.encoded_len()
        + initializers
            .iter()
            .map(|piece| 1 + delimited_len(piece.len()))
            .sum::<usize>();

    let mut out = Vec::with_capacity(model.encoded_len() + 1 + delimited_len(graph_len));
    model.encode_raw(&mut out);
    key(MODEL_GRAPH, graph_len, &mut out);
    graph.encode_raw(&mut out);
    for piece in initializers {
        key(GRAPH_INITIALIZER, piece.len(), &mut out);
        piece.write(&mut out)?;
    }
    Ok(out)
}

/// An initializer that waits to be written.
enum Piece {
    AsIs(TensorProto),
    Converted {
        source: TensorProto,
        head: Box<TensorProto>,
        raw_len: usize,
        storage: Storage,
    },
}

impl Piece {
    fn new(storage: &Storage, source: TensorProto) -> Result<Self, ModelError> {
        let Some(size) =
            tensor::float_size(storage.elem).filter(|_| storage.elem != tensor::elem(&source))
        else {
            return Ok(Self::AsIs(source));
        };
        let raw_len = tensor::len(&source)? * size;
        let head = Box::new(TensorProto {
            data_type: Some(storage.elem as i32),
            raw_data: None,
            ..source.clone()
        });
        Ok(Self::Converted {
            source,
            head,
            raw_len,
            storage: *storage,
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
                storage,
            } => {
                head.encode_raw(out);
                key(TENSOR_RAW_DATA, raw_len, out);
                tensor::write_floats(&source, storage.elem, storage.overflow, out)?;
            }
        }
        Ok(())
    }
}

fn key(key: u8, len: usize, out: &mut Vec<u8>) {
    out.push(key);
    encode_length_delimiter(len, out).expect("a vector grows");
}

fn delimited_len(len: usize) -> usize {
    length_delimiter_len(len) + len
}
