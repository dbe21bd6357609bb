//! Makes the `:authority` of calls over a Unix socket one that HTTP/2 accepts.
//!
//! Some gRPC libraries put the socket's path there: `/run/resnet18.sock`, or `%2Frun%2Fresnet18.sock`.
//! Neither is an authority, and h2 resets such calls before anyone sees them. The server has no use
//! for it, so in the headers of such a connection each `/` and `%` of an authority becomes `-` before
//! h2 reads them. In HPACK's Huffman code all three have 6 bits, so that nothing changes its length,
//! and what refers to an earlier header refers to what it has become.

mod header_block;
#[cfg(test)]
mod tests;

use std::{
    io,
    ops::Range,
    pin::Pin,
    task::{Context, Poll, ready},
};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// HTTP/2's preface, in bytes (RFC 9113, 3.4).
const PREFACE: usize = 24;
/// The head of a frame, in bytes (RFC 9113, 4.1).
const HEAD: usize = 9;
const HEADERS: u8 = 1;
const CONTINUATION: u8 = 9;
const END_HEADERS: u8 = 4;
const PADDED: u8 = 8;
const PRIORITY: u8 = 0x20;
/// The most bytes of a call's headers that are held until they are complete. Longer ones pass as
/// they are: a call over a socket has few.
const MAX_HELD: usize = 64 << 10;

/// How much is read at once where frames begin and end, in bytes.
const PIECE: usize = 4 << 10;

/// A connection whose calls have authorities that HTTP/2 accepts.
pub(super) struct Mended<S> {
    stream: S,
    authorities: Authorities,
    /// What may be read, from `given` on.
    ready: Vec<u8>,
    given: usize,
}

impl<S> Mended<S> {
    pub fn new(stream: S) -> Self {
        Self {
            stream,
            authorities: Authorities::new(),
            ready: Vec::new(),
            given: 0,
        }
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Mended<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let Self {
            stream,
            authorities,
            ready,
            given,
        } = &mut *self;
        let mut stream = Pin::new(stream);
        while *given == ready.len() {
            if let Some(passing) = authorities.passing() {
                // Most of what arrives: images.
                let length = passing.min(buf.remaining());
                let mut part = ReadBuf::new(buf.initialize_unfilled_to(length));
                ready!(stream.poll_read(cx, &mut part))?;
                let read = part.filled().len();
                buf.advance(read);
                authorities.passed(read);
                return Poll::Ready(Ok(()));
            }
            let mut piece = [0; PIECE];
            let mut piece = ReadBuf::new(&mut piece);
            ready!(stream.as_mut().poll_read(cx, &mut piece))?;
            if piece.filled().is_empty() {
                return Poll::Ready(Ok(()));
            }
            ready.clear();
            *given = 0;
            authorities.receive(piece.filled(), ready);
        }
        let rest = &ready[*given..];
        let part = &rest[..rest.len().min(buf.remaining())];
        buf.put_slice(part);
        *given += part.len();
        Poll::Ready(Ok(()))
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Mended<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(cx)
    }
}

/// Follows the frames that arrive on one connection.
#[derive(Debug)]
struct Authorities {
    at: At,
    /// The frames of a call's headers, until they are complete.
    held: Vec<u8>,
    /// Where the parts of the header block are in `held`.
    parts: Vec<Range<usize>>,
}

/// Where the next byte belongs.
#[derive(Debug)]
enum At {
    /// Within this many further bytes that pass as they are.
    Passing(usize),
    /// At the head of a frame, whose first bytes are in `held` behind `frame`.
    Head { frame: usize },
    /// Within the payload of a frame of headers that begins at `frame` in `held`.
    Payload { frame: usize },
    /// Headers were too long: everything passes from here on.
    GivenUp,
}

impl Authorities {
    fn new() -> Self {
        Self {
            at: At::Passing(PREFACE),
            held: Vec::new(),
            parts: Vec::new(),
        }
    }

    /// How many further bytes pass as they are, whatever they may be.
    fn passing(&self) -> Option<usize> {
        match self.at {
            At::Passing(left) => Some(left),
            At::GivenUp => Some(usize::MAX),
            At::Head { .. } | At::Payload { .. } => None,
        }
    }

    /// So many of them have passed.
    fn passed(&mut self, bytes: usize) {
        if let At::Passing(left) = self.at {
            self.at = match left - bytes {
                0 => At::Head { frame: 0 },
                left => At::Passing(left),
            };
        }
    }

    /// Takes bytes that have arrived, and appends to `out` what may be passed on now.
    fn receive(&mut self, mut bytes: &[u8], out: &mut Vec<u8>) {
        while !bytes.is_empty() {
            match self.at {
                At::GivenUp => {
                    out.extend_from_slice(bytes);
                    return;
                }
                At::Passing(left) => {
                    let (passing, rest) = bytes.split_at(left.min(bytes.len()));
                    out.extend_from_slice(passing);
                    bytes = rest;
                    self.passed(passing.len());
                }
                At::Head { frame } => {
                    bytes = self.hold(bytes, frame + HEAD);
                    if self.held.len() == frame + HEAD {
                        self.begin(frame, out);
                    }
                }
                At::Payload { frame } => {
                    let end = frame + HEAD + length(&self.held[frame..]);
                    bytes = self.hold(bytes, end);
                    if self.held.len() == end {
                        self.end(frame, out);
                    }
                }
            }
            if self.held.len() > MAX_HELD {
                out.append(&mut self.held);
                self.at = At::GivenUp;
            }
        }
    }

    /// Holds bytes until there are `end` of them; returns the others.
    fn hold<'a>(&mut self, bytes: &'a [u8], end: usize) -> &'a [u8] {
        let (held, rest) = bytes.split_at((end - self.held.len()).min(bytes.len()));
        self.held.extend_from_slice(held);
        rest
    }

    /// The head of a frame is complete.
    fn begin(&mut self, frame: usize, out: &mut Vec<u8>) {
        let (length, kind) = (length(&self.held[frame..]), self.held[frame + 3]);
        let is_expected = if frame == 0 {
            kind == HEADERS
        } else {
            kind == CONTINUATION
        };
        if is_expected && length > 0 {
            self.at = At::Payload { frame };
            return;
        }
        // Not headers, or a sequence of frames that h2 will refuse.
        self.pass(out);
        self.at = match length {
            0 => At::Head { frame: 0 },
            length => At::Passing(length),
        };
    }

    /// A frame of headers is complete.
    fn end(&mut self, frame: usize, out: &mut Vec<u8>) {
        let flags = self.held[frame + 4];
        self.parts.push(block(&self.held, frame));
        if flags & END_HEADERS == 0 {
            self.at = At::Head {
                frame: self.held.len(),
            };
            return;
        }
        let parts = std::mem::take(&mut self.parts);
        let mut block: Vec<u8> = parts
            .iter()
            .flat_map(|part| &self.held[part.clone()])
            .copied()
            .collect();
        if header_block::mend(&mut block).is_some() {
            let mut mended = block.into_iter();
            for (byte, mended) in parts.into_iter().flatten().zip(&mut mended) {
                self.held[byte] = mended;
            }
        }
        self.pass(out);
        self.at = At::Head { frame: 0 };
    }

    fn pass(&mut self, out: &mut Vec<u8>) {
        out.append(&mut self.held);
        self.parts.clear();
    }
}

/// The length of a frame's payload.
fn length(frame: &[u8]) -> usize {
    usize::from(frame[0]) << 16 | usize::from(frame[1]) << 8 | usize::from(frame[2])
}

/// Where the part of the header block is in the frame that begins at `frame`, which is whole.
fn block(held: &[u8], frame: usize) -> Range<usize> {
    let (mut start, mut end) = (frame + HEAD, frame + HEAD + length(&held[frame..]));
    let (kind, flags) = (held[frame + 3], held[frame + 4]);
    if kind == HEADERS && flags & PADDED != 0 {
        end = end.saturating_sub(usize::from(held[start]));
        start += 1;
    }
    if kind == HEADERS && flags & PRIORITY != 0 {
        start += 5;
    }
    start.min(end)..end
}
