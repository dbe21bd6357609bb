//! The limits on receiving messages: a request body that rejects a slow sender, too large a message
//! and one for which there is no memory, and that decompresses messages.

use std::{
    collections::VecDeque,
    error::Error,
    future::Future,
    mem,
    pin::Pin,
    sync::Arc,
    task::{Context, Poll, ready},
    time::Duration,
};

use bytes::{BufMut, Bytes, BytesMut};
use http_body::{Body as _, Frame, SizeHint};
use tokio::time::{Sleep, sleep};
use tonic::{Status, body::Body};

use super::inflate::{Compressed, Encoding, Inflated, Inflater};
use crate::{
    budget::Reservation,
    grpc::call::{memory::MessageMemory, record::CallRecord, status::CallError},
    metrics::Rejection,
    registry::Registry,
};

/// What a message may take.
#[derive(Clone, Copy)]
pub(in crate::grpc) struct ReceiveLimits {
    pub time: Duration,
    /// In bytes.
    pub bytes: usize,
}

/// How the messages of a call are received.
pub(in crate::grpc) struct ReceiveConfig {
    pub limits: ReceiveLimits,
    pub is_stream: bool,
    /// The call of a classifying service, which is over when its body can't be read any further.
    /// The messages of other services are only limited in time here.
    pub call: Option<ReceivingCall>,
}

/// What receiving needs of a call.
pub(in crate::grpc) struct ReceivingCall {
    pub record: Arc<CallRecord>,
    /// How its compressed messages are compressed; others are left to tonic.
    pub encoding: Option<Encoding>,
    pub inflater: Inflater,
    pub memory: MessageMemory,
    pub registry: Arc<Registry>,
}

/// A body whose messages must be within the limits.
///
/// Without the one on time, a caller that sends a byte now and then would count against the limit
/// of calls for ever.
pub(in crate::grpc) struct Receiving {
    body: Body,
    config: ReceiveConfig,
    /// Runs while the rest of a message is waited for.
    timer: Option<Pin<Box<Sleep>>>,
    /// Data that has arrived and was not looked at yet.
    input: Bytes,
    position: Position,
    /// What a message waits for before it is passed on.
    waiting: Option<Waiting>,
    /// The rest of a decompressed message.
    output: VecDeque<Bytes>,
}

/// The position within gRPC's framing: before each message a flag of one byte and its length in
/// four.
enum Position {
    /// The first bytes of a prefix.
    Prefix(BytesMut),
    /// This many bytes of a message are still to come; they are passed on as they come.
    Passing(usize),
    /// This many bytes of a compressed message are still to come.
    Collecting {
        left: usize,
        compressed: BytesMut,
        encoding: Encoding,
        reservation: Reservation,
    },
}

/// Memory for a message whose prefix has arrived, or its decompression.
type Waiting = Pin<Box<dyn Future<Output = Result<Granted, CallError>> + Send>>;

enum Granted {
    /// There is memory for the message with this prefix.
    Memory(Prefix, Reservation),
    Inflated(Inflated),
}

#[derive(Clone, Copy)]
struct Prefix {
    flag: u8,
    length: usize,
}

impl Prefix {
    const BYTES: usize = 5;
    const COMPRESSED: u8 = 1;

    fn read(bytes: &[u8]) -> Option<Self> {
        let [flag, length @ ..] = *bytes.first_chunk::<{ Self::BYTES }>()?;
        Some(Self {
            flag,
            length: u32::from_be_bytes(length) as usize,
        })
    }

    fn bytes(self) -> Bytes {
        let mut bytes = BytesMut::with_capacity(Self::BYTES);
        bytes.put_u8(self.flag);
        // It came as such a number, or is within the limit on messages.
        bytes.put_u32(self.length as u32);
        bytes.freeze()
    }
}

impl Position {
    fn start() -> Self {
        Self::Prefix(BytesMut::new())
    }

    fn is_within_message(&self) -> bool {
        match self {
            Self::Prefix(prefix) => !prefix.is_empty(),
            Self::Passing(_) | Self::Collecting { .. } => true,
        }
    }

    /// Whether the first part of a message was not passed on yet.
    fn is_withheld(&self) -> bool {
        match self {
            Self::Prefix(prefix) => !prefix.is_empty(),
            Self::Passing(_) => false,
            Self::Collecting { .. } => true,
        }
    }
}

/// What comes from a body; `None` is its end.
type Next = Option<Result<Frame<Bytes>, Status>>;

/// What has come from the caller.
enum Input {
    /// Data, which is looked at next.
    Data,
    /// Trailers, an error or the end, which are passed on.
    Other(Next),
}

impl Receiving {
    /// The body of a call. A single message must arrive in time after the headers, each message of a
    /// stream after its first byte; the time between messages is not limited.
    pub fn body(body: Body, config: ReceiveConfig) -> Body {
        let timer = (!config.is_stream).then(|| Box::pin(sleep(config.limits.time)));
        Body::new(Self {
            body,
            config,
            timer,
            input: Bytes::new(),
            position: Position::start(),
            waiting: None,
            output: VecDeque::new(),
        })
    }

    /// Looks at the next part of the input: data to pass on, if there is any.
    fn advance(&mut self) -> Result<Option<Bytes>, CallError> {
        match &mut self.position {
            Position::Prefix(prefix) => {
                let missing = Prefix::BYTES - prefix.len();
                prefix.extend_from_slice(&self.input.split_to(missing.min(self.input.len())));
                let Some(prefix) = Prefix::read(prefix) else {
                    return Ok(None);
                };
                self.begin_message(prefix)
            }
            Position::Passing(left) => {
                let part = self.input.split_to(self.input.len().min(*left));
                *left -= part.len();
                if *left == 0 {
                    self.end_message();
                }
                Ok(Some(part))
            }
            Position::Collecting {
                left, compressed, ..
            } => {
                let part = self.input.split_to(self.input.len().min(*left));
                *left -= part.len();
                compressed.extend_from_slice(&part);
                if *left == 0 {
                    self.begin_inflating();
                }
                Ok(None)
            }
        }
    }

    /// Checks the length of a message and asks for its memory.
    fn begin_message(&mut self, prefix: Prefix) -> Result<Option<Bytes>, CallError> {
        let Some(call) = &self.config.call else {
            return Ok(self.pass_on(prefix));
        };
        let limit = self.config.limits.bytes;
        if prefix.length > limit {
            return Err(CallError::LargeMessage {
                bytes: prefix.length,
                limit,
            });
        }

        let MessageMemory { budget, key, .. } = call.memory.clone();
        let bytes = prefix.length as u64;
        match budget.reserve(key, bytes) {
            Ok(reservation) => Ok(self.continue_message(prefix, reservation)),
            // Flow control holds the sender of a stream back meanwhile.
            Err(_) if self.config.is_stream => {
                let registry = Arc::clone(&call.registry);
                self.waiting = Some(Box::pin(async move {
                    let reservation = budget.reserve_later(key, bytes).await;
                    let reservation =
                        reservation.inspect_err(|_| registry.count_rejection(Rejection::Memory))?;
                    Ok(Granted::Memory(prefix, reservation))
                }));
                Ok(None)
            }
            Err(error) => {
                call.registry.count_rejection(Rejection::Memory);
                Err(error.into())
            }
        }
    }

    /// Goes on with a message for which there is memory.
    fn continue_message(&mut self, prefix: Prefix, reservation: Reservation) -> Option<Bytes> {
        let call = self.config.call.as_ref()?;
        if let Some(encoding) = call.encoding.filter(|_| prefix.flag == Prefix::COMPRESSED) {
            self.position = Position::Collecting {
                left: prefix.length,
                compressed: BytesMut::with_capacity(prefix.length),
                encoding,
                reservation,
            };
            if prefix.length == 0 {
                self.begin_inflating();
            }
            return None;
        }

        call.memory.put(reservation);
        self.pass_on(prefix)
    }

    /// Passes a message on as it arrives.
    fn pass_on(&mut self, prefix: Prefix) -> Option<Bytes> {
        self.position = Position::Passing(prefix.length);
        if prefix.length == 0 {
            self.end_message();
        }
        Some(prefix.bytes())
    }

    fn begin_inflating(&mut self) {
        let position = mem::replace(&mut self.position, Position::start());
        self.end_message();
        if let Position::Collecting {
            compressed,
            encoding,
            reservation,
            ..
        } = position
            && let Some(call) = &self.config.call
        {
            let inflated = call.inflater.clone().inflate(Compressed {
                encoding,
                bytes: compressed,
                limit: self.config.limits.bytes,
                reservation,
            });
            self.waiting = Some(Box::pin(async { inflated.await.map(Granted::Inflated) }));
        }
    }

    fn end_message(&mut self) {
        self.position = Position::start();
        if self.config.is_stream {
            self.timer = None;
        }
    }

    /// Goes on with what was waited for.
    fn granted(&mut self, granted: Granted) -> Option<Bytes> {
        match granted {
            Granted::Memory(prefix, reservation) => self.continue_message(prefix, reservation),
            Granted::Inflated(message) => {
                if let Some(call) = &self.config.call {
                    call.memory.put(message.reservation);
                }
                self.output = message.pieces.into();
                let prefix = Prefix {
                    flag: 0,
                    length: message.length,
                };
                Some(prefix.bytes())
            }
        }
    }

    /// Polls the caller's side.
    fn poll_input(&mut self, cx: &mut Context<'_>) -> Poll<Input> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        match polled {
            Poll::Ready(Some(Ok(frame))) => match frame.into_data() {
                Ok(data) => {
                    self.input = data;
                    Poll::Ready(Input::Data)
                }
                Err(trailers) => Poll::Ready(Input::Other(Some(Ok(trailers)))),
            },
            Poll::Ready(Some(Err(error))) => {
                // An error with a source is the connection's: the caller has reset the call, or is
                // lost. tonic would go on, and report that the message is missing.
                if let Some(call) = &self.config.call
                    && error.source().is_some()
                {
                    call.record.abandoned();
                }
                Poll::Ready(Input::Other(Some(Err(error))))
            }
            // What tonic has not seen of a message it can't miss.
            Poll::Ready(None) if self.position.is_withheld() => {
                let error = CallError::Invalid("the call ended within a message".into());
                Poll::Ready(Input::Other(Some(Err(error.into()))))
            }
            Poll::Ready(None) => Poll::Ready(Input::Other(None)),
            Poll::Pending => {
                // The timer runs only while the body is pending, so that a slow server does not
                // count against the sender.
                let time = self.config.limits.time;
                if self.config.is_stream && self.position.is_within_message() {
                    self.timer.get_or_insert_with(|| Box::pin(sleep(time)));
                }
                if let Some(timer) = &mut self.timer
                    && timer.as_mut().poll(cx).is_ready()
                {
                    let error = CallError::SlowMessage { limit: time };
                    return Poll::Ready(Input::Other(Some(Err(error.into()))));
                }
                Poll::Pending
            }
        }
    }
}

impl http_body::Body for Receiving {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Next> {
        loop {
            if let Some(waiting) = &mut self.waiting {
                let granted = ready!(waiting.as_mut().poll(cx));
                self.waiting = None;
                let data = match granted {
                    Ok(granted) => self.granted(granted),
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                };
                if let Some(data) = data {
                    return Poll::Ready(Some(Ok(Frame::data(data))));
                }
                continue;
            }

            if let Some(data) = self.output.pop_front() {
                return Poll::Ready(Some(Ok(Frame::data(data))));
            }

            if !self.input.is_empty() {
                match self.advance() {
                    Ok(Some(data)) => return Poll::Ready(Some(Ok(Frame::data(data)))),
                    Ok(None) => continue,
                    Err(error) => return Poll::Ready(Some(Err(error.into()))),
                }
            }

            match ready!(self.poll_input(cx)) {
                Input::Data => {}
                Input::Other(frame) => return Poll::Ready(frame),
            }
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
            && self.input.is_empty()
            && self.waiting.is_none()
            && self.output.is_empty()
            && !self.position.is_withheld()
    }

    fn size_hint(&self) -> SizeHint {
        // Messages may be decompressed on the way.
        SizeHint::default()
    }
}
