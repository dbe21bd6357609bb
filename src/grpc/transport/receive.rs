//! The limits on receiving a message: a request body that ends the call of a slow sender, and of one
//! that announces too large a message.

use std::{
    error::Error,
    future::Future,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};

use crate::grpc::call::{record::CallRecord, status::CallError};

/// What a message may take.
#[derive(Clone, Copy)]
pub(in crate::grpc) struct ReceiveLimits {
    pub time: Duration,
    /// As it is sent, which may be compressed; `None` leaves the limit to the service.
    pub bytes: Option<usize>,
}

/// A body whose messages must be within the limits.
///
/// Without the one on time, a caller that sends a byte now and then would count against the limit
/// of calls for ever.
pub(in crate::grpc) struct Receiving {
    body: Body,
    limits: ReceiveLimits,
    /// The call, which is over when its body can't be read any further.
    record: Option<Arc<CallRecord>>,
    /// Runs while the rest of a message is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// The position within the messages.
    framing: Framing,
    is_stream: bool,
}

impl Receiving {
    /// The body of a call with one message, which must arrive in time after the headers.
    pub fn message(body: Body, limits: ReceiveLimits, record: Option<Arc<CallRecord>>) -> Body {
        Body::new(Self {
            body,
            limits,
            record,
            timer: Some(Box::pin(sleep(limits.time))),
            framing: Framing::default(),
            is_stream: false,
        })
    }

    /// The body of a stream, each of whose messages must arrive in time after its first byte. The
    /// time between messages is not limited.
    pub fn stream(body: Body, limits: ReceiveLimits, record: Option<Arc<CallRecord>>) -> Body {
        Body::new(Self {
            body,
            limits,
            record,
            timer: None,
            framing: Framing::default(),
            is_stream: true,
        })
    }

    /// Starts and stops the timer after the body has been polled.
    fn update_timer(&mut self, polled: &Poll<Option<Result<Frame<Bytes>, Status>>>) {
        match polled {
            Poll::Ready(Some(Ok(frame))) => {
                let ended = frame
                    .data_ref()
                    .is_some_and(|data| self.framing.advance(data));
                if ended && self.is_stream {
                    self.timer = None;
                }
            }
            // The timer runs only while the body is pending, so that a slow server does not count
            // against the sender.
            Poll::Pending if self.is_stream && self.framing.within_message() => {
                self.timer
                    .get_or_insert_with(|| Box::pin(sleep(self.limits.time)));
            }
            _ => {}
        }
    }

    /// The error of a message that is larger than accepted, as soon as its length is known.
    fn too_large(&self) -> Option<CallError> {
        let limit = self.limits.bytes?;
        let bytes = self.framing.longest;
        (bytes > limit).then_some(CallError::LargeMessage { bytes, limit })
    }
}

impl http_body::Body for Receiving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Status>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.update_timer(&polled);
        // An error with a source is the connection's: the caller has reset the call, or is lost.
        // tonic would go on, and report that the message is missing.
        if let (Poll::Ready(Some(Err(error))), Some(record)) = (&polled, &self.record)
            && error.source().is_some()
        {
            record.abandoned();
        }
        if let Some(error) = self.too_large() {
            return Poll::Ready(Some(Err(error.into())));
        }
        if let Some(timer) = &mut self.timer
            && !matches!(polled, Poll::Ready(None))
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(CallError::SlowMessage {
                limit: self.limits.time,
            }
            .into())));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// Follows gRPC's framing: before each message a flag of one byte and its length in four.
#[derive(Default)]
struct Framing {
    prefix: [u8; Self::PREFIX],
    /// Bytes of the prefix that have come.
    seen: usize,
    /// Bytes of the message that are still to come, once the prefix is complete.
    left: usize,
    /// The length of the longest message so far, by their prefixes.
    longest: usize,
}

impl Framing {
    const PREFIX: usize = 5;

    fn within_message(&self) -> bool {
        self.seen > 0
    }

    /// Consumes `data`, and returns whether a message ended within it.
    fn advance(&mut self, mut data: &[u8]) -> bool {
        let mut ended = false;
        while !data.is_empty() {
            if self.seen < Self::PREFIX {
                let (part, rest) = data.split_at(data.len().min(Self::PREFIX - self.seen));
                self.prefix[self.seen..][..part.len()].copy_from_slice(part);
                self.seen += part.len();
                data = rest;
                let [_, length @ ..] = self.prefix;
                self.left = u32::from_be_bytes(length) as usize;
                if self.seen == Self::PREFIX {
                    self.longest = self.longest.max(self.left);
                }
            } else {
                let part = data.len().min(self.left);
                self.left -= part;
                data = &data[part..];
            }
            if self.seen == Self::PREFIX && self.left == 0 {
                self.seen = 0;
                ended = true;
            }
        }
        ended
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn messages_are_told_apart_however_they_are_cut() {
        let bytes = b"\0\0\0\0\x03abc\0\0\0\0\0\x01\0\0\0\x01x";
        let ends = [8, 13, 19];
        for size in 1..=bytes.len() {
            let (mut framing, mut position) = (Framing::default(), 0);
            for part in bytes.chunks(size) {
                let ended = framing.advance(part);
                let range = position + 1..=position + part.len();
                position += part.len();
                assert_eq!(
                    ended,
                    ends.iter().any(|end| range.contains(end)),
                    "{size} bytes at a time, at {position}"
                );
                assert_eq!(framing.within_message(), !ends.contains(&position));
            }
            assert_eq!(framing.longest, 3, "{size} bytes at a time");
        }
    }
}
