//! A codec that bounds the number of fields in a message. Two bytes on the wire can become a tensor
//! of hundreds of bytes in memory, so fields are counted before anything is allocated.

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

use crate::{grpc::call::status::CallError, inference::ModelInferRequest};

/// Enough for every image of the largest request to be its own element, with room for parameters.
const MAX_FIELDS: usize = 1000;
/// The longest shape whose dimensions are packed, in bytes.
const MAX_SHAPE_BYTES: u64 = 100;

/// A message that exceeds the codec's limits.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum MessageError {
    /// Too many tensors, parameters and elements.
    #[error("the message has more than {MAX_FIELDS} tensors, parameters and elements in all")]
    Fields,
    /// A shape with too many dimensions.
    #[error(
        "a tensor's shape takes more than {MAX_SHAPE_BYTES} bytes; no input of this server has more than \
         4 dimensions"
    )]
    Dimensions,
    /// Groups, whose content can't be counted.
    #[error("the message has groups, which this protocol does not use")]
    Group,
}

/// Reads a request as the service does.
///
/// # Errors
/// When the bytes are not a request, or it has too many fields.
pub fn read_request(message: Bytes) -> Result<ModelInferRequest, Status> {
    check(&message).map_err(CallError::from)?;
    let request = ModelInferRequest::decode(message);
    Ok(request.map_err(|error| CallError::Invalid(error.to_string()))?)
}

impl From<MessageError> for CallError {
    fn from(error: MessageError) -> Self {
        Self::Invalid(error.to_string())
    }
}

/// The message whose fields are being counted. Messages other than inference requests have none of
/// these fields.
#[derive(Clone, Copy)]
enum MessageKind {
    Request,
    Input,
    Output,
    Contents,
}

impl MessageKind {
    /// The message that a field holds, if its fields are to be counted too.
    fn nested(self, field: u32) -> Option<Self> {
        match (self, field) {
            (Self::Request, 5) => Some(Self::Input),
            (Self::Request, 6) => Some(Self::Output),
            (Self::Input, 5) => Some(Self::Contents),
            _ => None,
        }
    }
}

/// Counts the fields of a message. Bytes that are not a message are left to the decoder.
fn check(message: &[u8]) -> Result<(), MessageError> {
    let mut left = MAX_FIELDS;
    match count(message, MessageKind::Request, &mut left) {
        Ok(()) | Err(CountError::NotAMessage) => Ok(()),
        Err(CountError::Rejected(error)) => Err(error),
    }
}

/// Why counting ended early.
enum CountError {
    Rejected(MessageError),
    NotAMessage,
}

impl From<DecodeError> for CountError {
    fn from(_: DecodeError) -> Self {
        Self::NotAMessage
    }
}

fn count(mut message: &[u8], kind: MessageKind, left: &mut usize) -> Result<(), CountError> {
    while message.has_remaining() {
        let (field, wire_type) = decode_key(&mut message)?;
        *left = left
            .checked_sub(1)
            .ok_or(CountError::Rejected(MessageError::Fields))?;
        let length = match wire_type {
            WireType::Varint => {
                decode_varint(&mut message)?;
                continue;
            }
            WireType::ThirtyTwoBit => 4,
            WireType::SixtyFourBit => 8,
            WireType::LengthDelimited => decode_varint(&mut message)?,
            WireType::StartGroup | WireType::EndGroup => {
                return Err(CountError::Rejected(MessageError::Group));
            }
        };
        let length = usize::try_from(length).map_err(|_| CountError::NotAMessage)?;
        let (content, rest) = message
            .split_at_checked(length)
            .ok_or(CountError::NotAMessage)?;
        if let (MessageKind::Input, 3) = (kind, field)
            && length as u64 > MAX_SHAPE_BYTES
        {
            return Err(CountError::Rejected(MessageError::Dimensions));
        }
        if let Some(nested) = kind.nested(field) {
            count(content, nested, left)?;
        }
        message = rest;
    }
    Ok(())
}

/// prost's codec with a bound on the number of fields in a message.
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

/// Decodes messages that are within the bound.
pub(crate) struct BoundedDecoder<U>(ProstDecoder<U>);

impl<U: Message + Default> Decoder for BoundedDecoder<U> {
    type Item = U;
    type Error = Status;

    fn decode(&mut self, buf: &mut DecodeBuf<'_>) -> Result<Option<U>, Status> {
        // tonic buffers a whole message in one piece.
        check(buf.chunk()).map_err(CallError::from)?;
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
