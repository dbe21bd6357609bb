//! Decompresses messages on threads of their own, within the limits on size and memory.

use std::{fmt::Display, io::Read, sync::Arc};

use bytes::{Bytes, BytesMut};
use flate2::read::{GzDecoder, ZlibDecoder};
use http::HeaderMap;
use ruzstd::decoding::StreamingDecoder;
use tokio::{sync::Semaphore, task::spawn_blocking};

use crate::{
    budget::Reservation,
    grpc::call::status::{CallError, shorten},
};

/// The size of the pieces in which messages are decompressed, in bytes. Between two pieces the
/// limits are checked.
const PIECE: usize = 256 << 10;
/// The window of a Zstandard frame that is accepted however small messages must be, in bytes: what
/// RFC 8878, 3.1.1.1.2, recommends to decoders.
const MIN_WINDOW: u64 = 8 << 20;

/// Decompresses the messages of all calls, a few at a time. Clones share the limit.
#[derive(Clone)]
pub(in crate::grpc) struct Inflater(Arc<Semaphore>);

/// How the compressed messages of a call are compressed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Encoding {
    /// In the format of zlib, as gRPC says.
    Deflate,
    Gzip,
    Zstd,
}

impl Encoding {
    /// The header that names the encoding.
    const HEADER: &str = "grpc-encoding";
    /// The names of all encodings, for the header `grpc-accept-encoding`.
    pub const ACCEPTED: &str = "gzip,deflate,zstd,identity";

    /// Takes the encoding out of a call's headers, so that nobody else decompresses.
    ///
    /// # Errors
    /// When the server does not know the encoding.
    pub(in crate::grpc) fn take(headers: &mut HeaderMap) -> Result<Option<Self>, CallError> {
        let Some(name) = headers.remove(Self::HEADER) else {
            return Ok(None);
        };
        Self::named(name.as_bytes()).ok_or_else(|| CallError::UnknownEncoding {
            name: name.as_bytes().escape_ascii().to_string(),
            accepted: Self::ACCEPTED,
        })
    }

    /// The encoding of this name, where `Some(None)` is none; `None` if it is unknown.
    pub fn named(name: &[u8]) -> Option<Option<Self>> {
        match name {
            b"identity" => Some(None),
            b"deflate" => Some(Some(Self::Deflate)),
            b"gzip" => Some(Some(Self::Gzip)),
            b"zstd" => Some(Some(Self::Zstd)),
            _ => None,
        }
    }
}

/// A message as it arrived.
pub(in crate::grpc) struct Compressed {
    pub encoding: Encoding,
    pub bytes: BytesMut,
    /// The most bytes that it may have when it is decompressed.
    pub limit: usize,
    /// What holds the message's memory; it grows with the decompressed bytes.
    pub reservation: Reservation,
}

/// A decompressed message. It has several pieces, so that each can be freed as soon as it was used.
pub(in crate::grpc) struct Inflated {
    pub pieces: Vec<Bytes>,
    pub length: usize,
    pub reservation: Reservation,
}

impl Inflater {
    /// Decompresses on half of the cores at most, so that the others go on with images.
    pub fn new(threads: usize) -> Self {
        Self(Arc::new(Semaphore::new((threads / 2).max(1))))
    }

    /// Decompresses a message as soon as a thread is free for it.
    ///
    /// # Errors
    /// When it is damaged, too large, or more than fits into memory now.
    pub async fn inflate(self, message: Compressed) -> Result<Inflated, CallError> {
        self.run(|| message.inflate()).await
    }

    /// Does other work on a message as soon as a thread is free for it.
    ///
    /// # Errors
    /// Those of the work.
    pub async fn run<T: Send + 'static>(
        self,
        work: impl FnOnce() -> Result<T, CallError> + Send + 'static,
    ) -> Result<T, CallError> {
        let permit = self.0.acquire_owned().await;
        let permit = permit.expect("the semaphore is never closed");
        let done = spawn_blocking(move || {
            let _permit = permit;
            work()
        });
        done.await.unwrap_or(Err(CallError::Panicked))
    }
}

impl Compressed {
    fn inflate(self) -> Result<Inflated, CallError> {
        let input = &self.bytes[..];
        match self.encoding {
            Encoding::Deflate => read_pieces(ZlibDecoder::new(input), self.limit, self.reservation),
            Encoding::Gzip => read_pieces(GzDecoder::new(input), self.limit, self.reservation),
            Encoding::Zstd => {
                let window = MIN_WINDOW.max(self.limit as u64);
                let decoder = StreamingDecoder::new_with_max_window_size(input, window);
                let decoder = decoder.map_err(damaged)?;
                read_pieces(decoder, self.limit, self.reservation)
            }
        }
    }
}

fn read_pieces(
    mut decoder: impl Read,
    limit: usize,
    mut reservation: Reservation,
) -> Result<Inflated, CallError> {
    let (mut pieces, mut length) = (Vec::new(), 0);
    loop {
        reservation.grow(PIECE as u64)?;
        let mut piece = Vec::with_capacity(PIECE);
        let read = (&mut decoder).take(PIECE as u64).read_to_end(&mut piece);
        length += read.map_err(damaged)?;
        if length > limit {
            return Err(CallError::LargeInflated { limit });
        }

        let is_last = piece.len() < PIECE;
        piece.shrink_to_fit();
        pieces.push(piece.into());
        if is_last {
            break;
        }
    }

    reservation.shrink_to(length as u64);
    Ok(Inflated {
        pieces,
        length,
        reservation,
    })
}

fn damaged(error: impl Display) -> CallError {
    let reason = shorten(&error.to_string());
    CallError::Invalid(format!("the message can't be decompressed: {reason}"))
}
