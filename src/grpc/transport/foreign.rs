//! Bodies that become a message on their way to the service: an image as it is, JSON, a form.
//!
//! They are read within the limits of messages: charged to the caller's memory before they are
//! stored, decompressed and converted on threads of their own, a few at a time.

use std::sync::Arc;

use bytes::{BufMut, Bytes, BytesMut};
use futures_util::{StreamExt, TryStreamExt, stream};
use http_body::Frame;
use http_body_util::{BodyExt, StreamBody};
use tonic::{Status, body::Body};

use super::inflate::{Compressed, Encoding, Inflater};
use crate::{
    budget::Reservation,
    grpc::call::{memory::MessageMemory, status::CallError},
    metrics::Rejection,
    registry::Registry,
};

/// Builds the beginning of a message whose rest is a body of this length.
pub(crate) type Head = Arc<dyn Fn(usize) -> Bytes + Send + Sync>;
/// The pieces of the message that a body stands for, or what is wrong with it.
pub(crate) type Convert = Arc<dyn Fn(Bytes) -> Result<Vec<Bytes>, String> + Send + Sync>;

/// How a body becomes a message. Admission takes this from the request's extensions.
#[derive(Clone)]
pub(crate) struct ForeignBody {
    /// How the body is compressed.
    pub encoding: Option<Encoding>,
    /// Its length, if it was announced.
    pub length: Option<usize>,
    pub form: Form,
}

/// What a body is, once it is decompressed.
#[derive(Clone)]
pub(crate) enum Form {
    /// The end of the message. It is passed on as it arrives.
    Tail(Head),
    /// Something that is converted when it is complete.
    Whole(Convert),
}

/// What reading such a body needs of its call.
pub(in crate::grpc) struct Reading {
    pub memory: MessageMemory,
    pub inflater: Inflater,
    pub registry: Arc<Registry>,
    /// The most bytes of a body and of what it is decompressed to.
    pub limit: usize,
}

impl ForeignBody {
    /// The body in gRPC's framing.
    pub(in crate::grpc) fn framed(self, body: Body, with: Reading) -> Body {
        match self {
            Self {
                encoding: None,
                length: Some(length),
                form: Form::Tail(head),
            } if length <= with.limit => {
                let head = head(length);
                let first = Bytes::from([prefix(head.len() + length), head].concat());
                let first = stream::iter([Ok(Frame::data(first))]);
                Body::new(StreamBody::new(
                    first.chain(body.into_data_stream().map_ok(Frame::data)),
                ))
            }
            other => {
                let pieces = stream::once(other.read(body, with));
                let frames = pieces.map_ok(|pieces| {
                    let frames = pieces
                        .into_iter()
                        .map(|piece| Ok::<_, Status>(Frame::data(piece)));
                    stream::iter(frames)
                });
                Body::new(StreamBody::new(frames.try_flatten()))
            }
        }
    }

    /// Reads the whole body: the message's prefix and its pieces. Their memory is charged again
    /// when they are received as a message.
    async fn read(self, body: Body, with: Reading) -> Result<Vec<Bytes>, Status> {
        let Reading {
            memory,
            inflater,
            registry,
            limit,
        } = with;
        let counted = |error: CallError| {
            if matches!(error, CallError::Memory(_)) {
                registry.count_rejection(Rejection::Memory);
            }
            Status::from(error)
        };

        let (bytes, reservation) =
            collect(body, self.length, limit, &memory)
                .await
                .map_err(|error| match error {
                    Unread::Limit(error) => counted(error),
                    Unread::Body(status) => status,
                })?;
        let (pieces, mut reservation) = match self.encoding {
            None => (vec![bytes.freeze()], reservation),
            Some(encoding) => {
                let inflated = inflater.clone().inflate(Compressed {
                    encoding,
                    bytes,
                    limit,
                    reservation,
                });
                let inflated = inflated.await.map_err(counted)?;
                (inflated.pieces, inflated.reservation)
            }
        };

        let length = pieces.iter().map(Bytes::len).sum();
        let pieces = match self.form {
            Form::Tail(head) => [vec![head(length)], pieces].concat(),
            Form::Whole(convert) => {
                // For what the body is converted to.
                let grown = reservation.grow(length as u64);
                grown.map_err(|error| counted(error.into()))?;
                let converted = inflater.run(move || {
                    let _reservation = reservation;
                    convert(joined(pieces)).map_err(CallError::Invalid)
                });
                converted.await.map_err(counted)?
            }
        };
        let length = pieces.iter().map(Bytes::len).sum();
        Ok([vec![prefix(length)], pieces].concat())
    }
}

/// Why a body was not read.
enum Unread {
    Limit(CallError),
    /// It failed on its way.
    Body(Status),
}

impl<E: Into<CallError>> From<E> for Unread {
    fn from(error: E) -> Self {
        Self::Limit(error.into())
    }
}

/// Stores a body, whose memory is charged before it arrives, as far as its length is known.
async fn collect(
    mut body: Body,
    length: Option<usize>,
    limit: usize,
    memory: &MessageMemory,
) -> Result<(BytesMut, Reservation), Unread> {
    let announced = length.unwrap_or_default();
    if announced > limit {
        return Err(CallError::LargeMessage {
            bytes: announced,
            limit,
        }
        .into());
    }
    let mut reservation = memory.budget.reserve(memory.key, announced as u64)?;
    let mut bytes = BytesMut::with_capacity(announced);
    while let Some(frame) = body.frame().await {
        let Ok(data) = frame.map_err(Unread::Body)?.into_data() else {
            continue;
        };
        if bytes.len() + data.len() > limit {
            return Err(CallError::LongBody { limit }.into());
        }
        if length.is_none() {
            reservation.grow(data.len() as u64)?;
        }
        bytes.extend_from_slice(&data);
    }
    Ok((bytes, reservation))
}

fn joined(mut pieces: Vec<Bytes>) -> Bytes {
    if pieces.len() == 1 {
        return pieces.remove(0);
    }
    pieces.concat().into()
}

/// gRPC's prefix of a message that is not compressed. Lengths are within the limit on messages, or
/// little beyond it.
fn prefix(length: usize) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5);
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(length).unwrap_or(u32::MAX));
    bytes.freeze()
}
