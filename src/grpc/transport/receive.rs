//! The time limit on receiving a message: a request body that ends the call of a slow sender.

use std::{
    future::Future,
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use bytes::Bytes;
use http_body::{Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};

use crate::grpc::call::status::CallError;

/// A body whose messages must arrive within a time limit.
///
/// Without it a caller that sends a byte now and then would count against the limit of calls for
/// ever.
pub(in crate::grpc) struct Receiving {
    body: Body,
    limit: Duration,
    /// Runs while the rest of a message is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// The position of a stream within its messages; `None` if the whole body is one message.
    stream: Option<Framing>,
}

impl Receiving {
    /// The body of a call with one message, which must arrive within `limit` of the headers.
    pub fn message(body: Body, limit: Duration) -> Body {
        Body::new(Self {
            body,
            limit,
            timer: Some(Box::pin(sleep(limit))),
            stream: None,
        })
    }

    /// The body of a stream, each of whose messages must arrive within `limit` of its first byte.
    /// The time between messages is not limited.
    pub fn stream(body: Body, limit: Duration) -> Body {
        Body::new(Self {
            body,
            limit,
            timer: None,
            stream: Some(Framing::default()),
        })
    }

    /// Starts and stops the timer after the body has been polled.
    fn update_timer(&mut self, polled: &Poll<Option<Result<Frame<Bytes>, Status>>>) {
        let Some(framing) = &mut self.stream else {
            return;
        };
        match polled {
            Poll::Ready(Some(Ok(frame)))
                if frame.data_ref().is_some_and(|data| framing.advance(data)) =>
            {
                self.timer = None;
            }
            // The timer runs only while the body is pending, so that a slow server does not count
            // against the sender.
            Poll::Pending if framing.within_message() => {
                self.timer
                    .get_or_insert_with(|| Box::pin(sleep(self.limit)));
            }
            _ => {}
        }
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
        if let Some(timer) = &mut self.timer
            && !matches!(polled, Poll::Ready(None))
            && timer.as_mut().poll(cx).is_ready()
        {
            return Poll::Ready(Some(Err(
                CallError::SlowMessage { limit: self.limit }.into()
            )));
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
        }
    }
}
