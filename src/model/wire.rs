//! Counts the parts of an ONNX file before it is decoded.
//!
//! Decoding makes a structure of up to some hundred bytes of every message, and a message may take
//! two bytes in the file. So a small file could fill the memory; here nothing is allocated for it.

use super::ModelError;

/// The most messages of a file: graphs, nodes, attributes, tensors, types and dimensions.
pub(super) const MOST_MESSAGES: usize = 1_000_000;
/// The most fields of those messages, the elements of lists that are not packed included.
pub(super) const MOST_FIELDS: usize = 16_000_000;

/// The messages of `proto/onnx/onnx.proto`, as far as they hold others.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Message {
    Model,
    Graph,
    Node,
    Attribute,
    Tensor,
    SparseTensor,
    Value,
    Type,
    /// A `TypeProto.Tensor` or `TypeProto.SparseTensor`.
    TensorType,
    /// A `TypeProto.Sequence` or `TypeProto.Optional`.
    SequenceType,
    MapType,
    Shape,
    Function,
    Training,
    Annotation,
    /// Any message without others within it that take much memory.
    Leaf,
}

impl Message {
    /// The message in the field with this number; `None` if the field holds no message.
    pub(super) fn inner(self, field: u64) -> Option<Self> {
        Some(match (self, field) {
            (Self::Model, 7) => Self::Graph,
            (Self::Model, 20) => Self::Training,
            (Self::Model, 25) => Self::Function,
            (Self::Model, 8 | 14 | 26) => Self::Leaf,
            (Self::Training, 1 | 2) => Self::Graph,
            (Self::Training, 3 | 4) => Self::Leaf,
            (Self::Function, 7) => Self::Node,
            (Self::Function, 11) => Self::Attribute,
            (Self::Function, 12) => Self::Value,
            (Self::Function, 9 | 14) => Self::Leaf,
            (Self::Graph, 1) => Self::Node,
            (Self::Graph, 5) => Self::Tensor,
            (Self::Graph, 11..=13) => Self::Value,
            (Self::Graph, 14) => Self::Annotation,
            (Self::Graph, 15) => Self::SparseTensor,
            (Self::Graph, 16) => Self::Leaf,
            (Self::Node, 5) => Self::Attribute,
            (Self::Node, 9 | 10) => Self::Leaf,
            (Self::Attribute, 5 | 10) => Self::Tensor,
            (Self::Attribute, 6 | 11) => Self::Graph,
            (Self::Attribute, 14 | 15) => Self::Type,
            (Self::Attribute, 22 | 23) => Self::SparseTensor,
            (Self::Tensor, 3 | 13 | 16) => Self::Leaf,
            (Self::SparseTensor, 1 | 2) => Self::Tensor,
            (Self::Value, 2) => Self::Type,
            (Self::Value, 4) => Self::Leaf,
            (Self::Type, 1 | 8) => Self::TensorType,
            (Self::Type, 4 | 9) => Self::SequenceType,
            (Self::Type, 5) => Self::MapType,
            (Self::Type, 7) => Self::Leaf,
            (Self::TensorType, 2) => Self::Shape,
            (Self::SequenceType, 1) | (Self::MapType, 2) => Self::Type,
            (Self::Shape, 1) => Self::Leaf,
            (Self::Annotation, 2) => Self::Leaf,
            _ => return None,
        })
    }
}

/// Rejects a file with more parts than are read. A file that is damaged passes: decoding it says
/// so.
pub(super) fn check(file: &[u8]) -> Result<(), ModelError> {
    let mut reader = Reader {
        rest: file,
        messages: 0,
        fields: 0,
    };
    reader.count();
    for (found, limit, what) in [
        (reader.messages, MOST_MESSAGES, "messages"),
        (reader.fields, MOST_FIELDS, "fields"),
    ] {
        if found > limit {
            return Err(ModelError::Bounds(format!(
                "has more than {limit} protobuf {what}, the most that are read"
            )));
        }
    }
    Ok(())
}

struct Reader<'a> {
    rest: &'a [u8],
    messages: usize,
    fields: usize,
}

impl Reader<'_> {
    /// Counts until the end, a damaged place or a limit. `None` means one of the latter two.
    fn count(&mut self) -> Option<()> {
        // The messages that are open, each with what is left of the file after its end.
        let mut open = vec![(Message::Model, 0)];
        while let Some(&(message, after)) = open.last() {
            if self.rest.len() <= after {
                open.pop();
                continue;
            }
            self.fields += 1;
            if self.messages > MOST_MESSAGES || self.fields > MOST_FIELDS {
                return None;
            }
            let key = self.varint()?;
            match key & 7 {
                0 => {
                    self.varint()?;
                }
                1 => self.skip(8)?,
                2 => {
                    let length = usize::try_from(self.varint()?).ok()?;
                    match message.inner(key >> 3) {
                        Some(inner) => {
                            self.messages += 1;
                            open.push((inner, self.rest.len().checked_sub(length)?));
                        }
                        None => self.skip(length)?,
                    }
                }
                5 => self.skip(4)?,
                _ => return None,
            }
        }
        Some(())
    }

    fn skip(&mut self, bytes: usize) -> Option<()> {
        self.rest = self.rest.get(bytes..)?;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let (&byte, rest) = self.rest.split_first()?;
            self.rest = rest;
            value |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(value);
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use prost::Message as _;

    use super::*;
    use crate::model::{
        onnx::{GraphProto, ModelProto, NodeProto, TensorProto},
        testing::{bytes, tiny},
    };

    fn counted(file: &[u8]) -> (usize, usize) {
        let mut reader = Reader {
            rest: file,
            messages: 0,
            fields: 0,
        };
        reader.count().expect("the file is whole");
        (reader.messages, reader.fields)
    }

    #[test]
    fn messages_are_counted_wherever_they_are() {
        let (messages, fields) = counted(&bytes(&tiny()));
        // The graph, 3 nodes, 1 attribute, 2 tensors, 2 values with a type, a tensor's type, a shape
        // and their dimensions; and the version of the operators.
        assert_eq!(messages, 1 + 3 + 1 + 2 + 2 * 4 + 4 + 2 + 1);
        assert!(fields > messages, "{fields}");

        let nested = |inner: GraphProto| {
            let mut node = NodeProto::default();
            node.attribute.push(Default::default());
            node.attribute[0].g = Some(inner);
            GraphProto {
                node: vec![node],
                ..Default::default()
            }
        };
        let graph = nested(nested(GraphProto {
            initializer: vec![TensorProto::default(); 7],
            ..Default::default()
        }));
        let model = ModelProto {
            graph: Some(graph),
            ..Default::default()
        };
        assert_eq!(counted(&model.encode_to_vec()).0, 7 + 3 + 2 * 2);
    }

    #[test]
    fn a_file_of_many_empty_messages_is_refused_before_it_is_decoded() {
        let mut model = tiny();
        let graph = model.graph.as_mut().unwrap();
        graph.initializer = vec![TensorProto::default(); MOST_MESSAGES];
        let file = bytes(&model);
        assert!(file.len() < 3 << 20, "{}", file.len());
        let error = super::super::decode(&file).unwrap_err().to_string();
        assert!(error.contains("1000000 protobuf messages"), "{error}");
    }

    #[test]
    fn damaged_files_are_left_to_the_decoder() {
        let file = bytes(&tiny());
        for length in 0..file.len() {
            assert!(check(&file[..length]).is_ok());
        }
        assert!(check(&[0xff; 64]).is_ok());
        assert!(check(&[0x3a, 0xff, 0xff, 0xff, 0xff, 0x0f]).is_ok());
    }
}
