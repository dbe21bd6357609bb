//! Messages of a bounded number of fields. Two bytes on the wire can become a tensor of some
//! hundred in memory, so they are counted before any of it is allocated.

use std::marker::PhantomData;

use bytes::{Buf, Bytes};
use prost::{
    DecodeError, Message, encoding::WireType, encoding::decode_key, encoding::decode_varint,
};
use tonic::{
    Status,
    codec::{BufferSettings, Codec, DecodeBuf, Decoder},
};
use tonic_prost::{ProstCodec, ProstDecoder};

use crate::inference::ModelInferRequest;

/// Enough for every image of the largest request to be an element of its own, with room for
/// parameters.
const MOST_FIELDS: usize = 1000;
/// A shape's dimensions where they are packed, in bytes.
const LONGEST_SHAPE: u64 = 100;

/// A message that no request needs to be like.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Tensors, parameters and elements.
    #[error("the message has more than {MOST_FIELDS} tensors, parameters and elements in all")]
    Fields,
    /// Of a shape.
    #[error("a tensor's shape has more dimensions than any image needs")]
    Dimensions,
    /// What is in them can't be counted.
    #[error("the message has groups, which this protocol has not")]
    Group,
}

/// Reads a request as the service does.
///
/// # Errors
/// Bytes that are no request, or one of too many fields.
pub fn read_request(message: Bytes) -> Result<ModelInferRequest, Status> {
    check(&message)?;
    ModelInferRequest::decode(message).map_err(|error| Status::invalid_argument(error.to_string()))
}

impl From<MessageError> for Status {
    fn from(error: MessageError) -> Self {
        Self::invalid_argument(error.to_string())
    }
}

/// Which message's fields are looked at. Messages other than requests for inference have none in
/// these places.
#[derive(Clone, Copy)]
enum Kind {
    Request,
    Input,
    Output,
    Contents,
}

impl Kind {
    /// The message that a field holds, where its fields are to be counted too.
    fn nested(self, field: u32) -> Option<Self> {
        match (self, field) {
            (Self::Request, 5) => Some(Self::Input),
            (Self::Request, 6) => Some(Self::Output),
            (Self::Input, 5) => Some(Self::Contents),
            _ => None,
        }
    }
}

/// Counts the fields of a message. What is no message at all is left to its decoder.
fn check(message: &[u8]) -> Result<(), MessageError> {
    let mut left = MOST_FIELDS;
    match count(message, Kind::Request, &mut left) {
        Ok(()) | Err(Stop::NoMessage) => Ok(()),
        Err(Stop::Refused(error)) => Err(error),
    }
}

enum Stop {
    Refused(MessageError),
    NoMessage,
}

impl From<DecodeError> for Stop {
    fn from(_: DecodeError) -> Self {
        Self::NoMessage
    }
}

fn count(mut message: &[u8], kind: Kind, left: &mut usize) -> Result<(), Stop> {
    while message.has_remaining() {
        let (field, wire_type) = decode_key(&mut message)?;
        *left = left
            .checked_sub(1)
            .ok_or(Stop::Refused(MessageError::Fields))?;
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut message)?;
                continue;
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => decode_varint(&mut message)?,
            WireType::StartGroup | WireType::EndGroup => {
                return Err(Stop::Refused(MessageError::Group));
            }
        };
        let length = usize::try_from(length).map_err(|_| Stop::NoMessage)?;
        let (content, rest) = message.split_at_checked(length).ok_or(Stop::NoMessage)?;
        if let (Kind::Input, 3) = (kind, field)
            && length as u64 > LONGEST_SHAPE
        {
            return Err(Stop::Refused(MessageError::Dimensions));
        }
        if let Some(nested) = kind.nested(field) {
            count(content, nested, left)?;
        }
        message = rest;
    }
    Ok(())
}

/// prost's codec, with the number of a message's fields bounded.
pub(crate) struct BoundedCodec<T, U>(PhantomData<(T, U)>);

impl<T, U> Default for BoundedCodec<T, U> {
    fn default() -> Self {
        Self(PhantomData)
    }
}

impl<T, U> Codec for BoundedCodec<T, U>
where
    T: Message + Send + 'static,
    U: Message + Default + Send + 'static,
{
    type Encode = T;
    type Decode = U;
    type Encoder = <ProstCodec<T, U> as Codec>::Encoder;
    type Decoder = BoundedDecoder<U>;

    fn encoder(&mut self) -> Self::Encoder {
        ProstCodec::<T, U>::default().encoder()
    }

    fn decoder(&mut self) -> Self::Decoder {
        BoundedDecoder(ProstCodec::<T, U>::default().decoder())
    }
}

/// Decodes what has few enough fields.
pub(crate) struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // tonic keeps a whole message in one piece.
        check(buf.chunk())?;
        self.0.decode(buf)
    }

    fn buffer_settings(&self) -> BufferSettings {
        self.0.buffer_settings()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::inference::{
        InferParameter, InferTensorContents,
        model_infer_request::{InferInputTensor, InferRequestedOutputTensor},
    };

    fn request(inputs: Vec<InferInputTensor>) -> ModelInferRequest {
        ModelInferRequest {
            model_name: "model".into(),
            inputs,
            ..Default::default()
        }
    }

    fn refused(request: &ModelInferRequest) -> Option<MessageError> {
        check(&request.encode_to_vec()).err()
    }

    #[test]
    fn large_requests_of_few_fields_pass() {
        let contents = |contents| {
            request(vec![InferInputTensor {
                contents: Some(contents),
                ..Default::default()
            }])
        };
        let bytes_contents = vec![Bytes::from(vec![0; 1000]); 64];
        for request in [
            contents(InferTensorContents {
                bytes_contents,
                ..Default::default()
            }),
            contents(InferTensorContents {
                uint_contents: vec![200; 1 << 20],
                ..Default::default()
            }),
            ModelInferRequest {
                raw_input_contents: vec![vec![0; 1 << 20].into()],
                ..request(Vec::new())
            },
        ] {
            assert_eq!(refused(&request), None);
            assert_eq!(
                read_request(request.encode_to_vec().into()).unwrap(),
                request
            );
        }
    }

    #[test]
    fn floods_of_small_fields_are_refused_wherever_they_are() {
        let parameters = || {
            (0..1001)
                .map(|i| (i.to_string(), InferParameter::default()))
                .collect()
        };
        let input = |input| request(vec![input]);
        let contents = InferTensorContents {
            bytes_contents: vec![Bytes::new(); 1001],
            ..Default::default()
        };
        for flood in [
            request(vec![InferInputTensor::default(); 1001]),
            input(InferInputTensor {
                contents: Some(contents),
                ..Default::default()
            }),
            input(InferInputTensor {
                parameters: parameters(),
                ..Default::default()
            }),
            ModelInferRequest {
                parameters: parameters(),
                ..request(Vec::new())
            },
            ModelInferRequest {
                raw_input_contents: vec![Bytes::new(); 1001],
                ..request(Vec::new())
            },
            ModelInferRequest {
                outputs: vec![InferRequestedOutputTensor {
                    parameters: parameters(),
                    ..Default::default()
                }],
                ..request(Vec::new())
            },
        ] {
            assert_eq!(refused(&flood), Some(MessageError::Fields));
        }
        let shape = input(InferInputTensor {
            shape: vec![1; 101],
            ..Default::default()
        });
        assert_eq!(refused(&shape), Some(MessageError::Dimensions));
    }

    #[test]
    fn groups_are_refused() {
        assert_eq!(check(&[0x0b, 0x0c]), Err(MessageError::Group));
    }

    #[test]
    fn what_is_no_message_is_left_to_the_decoder() {
        for bytes in [&[0xff; 20][..], &[0x2a, 0x7f, 0], &[0x2a]] {
            assert_eq!(check(bytes), Ok(()));
            assert!(read_request(Bytes::copy_from_slice(bytes)).is_err());
        }
    }
}
