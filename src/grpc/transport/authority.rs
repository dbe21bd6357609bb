//! Makes the `:authority` of calls over a Unix socket one that HTTP/2 accepts.
//!
//! Some gRPC libraries put the socket's path there: `/run/resnet18.sock`, or `%2Frun%2Fresnet18.sock`.
//! Neither is an authority, and h2 resets such calls before anyone sees them. The server has no use
//! for it, so in the headers of such a connection each `/` and `%` of an authority becomes `-` before
//! h2 reads them. In HPACK's Huffman code all three have 6 bits, so that nothing changes its length,
//! and what refers to an earlier header refers to what it has become.

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
/// The index of `:authority` in HPACK's static table (RFC 7541, Appendix A).
const AUTHORITY: usize = 1;

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
        if mend(&mut block).is_some() {
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

/// Replaces what is no part of an authority in a header block (RFC 7541, 6). `None` if the block is
/// not valid; it may have changed up to there.
fn mend(block: &mut [u8]) -> Option<()> {
    let mut at = 0;
    while at < block.len() {
        let first = block[at];
        let prefix = match first {
            // An indexed header, or a new size of the table: nothing follows.
            0x80.. => {
                integer(block, &mut at, 7)?;
                continue;
            }
            0x20..=0x3f => {
                integer(block, &mut at, 5)?;
                continue;
            }
            0x40..=0x7f => 6,
            _ => 4,
        };
        let index = integer(block, &mut at, prefix)?;
        let mut is_authority = index == AUTHORITY;
        if index == 0 {
            let name = string(block, &mut at)?;
            is_authority = !name.huffman && block[name.bytes] == *b":authority";
        }
        let value = string(block, &mut at)?;
        if is_authority {
            let bytes = &mut block[value.bytes];
            if value.huffman {
                mend_huffman(bytes);
            } else {
                mend_plain(bytes);
            }
        }
    }
    Some(())
}

/// A string of a header block.
struct Text {
    huffman: bool,
    bytes: Range<usize>,
}

fn string(block: &[u8], at: &mut usize) -> Option<Text> {
    let huffman = block.get(*at)? & 0x80 != 0;
    let length = integer(block, at, 7)?;
    let end = at.checked_add(length).filter(|end| *end <= block.len())?;
    let bytes = *at..end;
    *at = end;
    Some(Text { huffman, bytes })
}

/// An integer whose first byte has a `prefix` of so many bits (RFC 7541, 5.1).
fn integer(block: &[u8], at: &mut usize, prefix: u32) -> Option<usize> {
    let limit = (1 << prefix) - 1;
    let mut value = usize::from(*block.get(*at)?) & limit;
    *at += 1;
    if value < limit {
        return Some(value);
    }
    for shift in [0, 7, 14, 21] {
        let byte = *block.get(*at)?;
        *at += 1;
        value += usize::from(byte & 0x7f) << shift;
        if byte & 0x80 == 0 {
            return Some(value);
        }
    }
    None
}

fn mend_plain(authority: &mut [u8]) {
    for byte in authority {
        if matches!(byte, b'%' | b'/') {
            *byte = b'-';
        }
    }
}

/// The lengths of HPACK's Huffman codes in bits, each with the first code that is longer, at 8 bits.
/// Codes grow with their length (RFC 7541, Appendix B); an authority has none beyond 8 bits.
const CODES: [(usize, u8); 4] = [(5, 0x50), (6, 0xb8), (7, 0xf8), (8, 0xfe)];
const PERCENT: u8 = 0x15;
const SLASH: u8 = 0x18;
const HYPHEN: u8 = 0x16;

/// The same for a string in Huffman code. Stops at a character that no path to a socket needs.
fn mend_huffman(authority: &mut [u8]) {
    let mut bit = 0;
    while bit < authority.len() * 8 {
        let next = eight_bits(authority, bit);
        let Some((length, _)) = CODES.into_iter().find(|(_, longer)| next < *longer) else {
            return;
        };
        if length == 6 && matches!(next >> 2, PERCENT | SLASH) && bit + 6 <= authority.len() * 8 {
            for i in 0..6 {
                let (byte, mask) = ((bit + i) / 8, 0x80 >> ((bit + i) % 8));
                if HYPHEN >> (5 - i) & 1 == 1 {
                    authority[byte] |= mask;
                } else {
                    authority[byte] &= !mask;
                }
            }
        }
        bit += length;
    }
}

/// Eight bits from this one on; behind the end there are ones.
fn eight_bits(bytes: &[u8], bit: usize) -> u8 {
    let byte = |i: usize| u16::from(bytes.get(i).copied().unwrap_or(u8::MAX));
    let both = byte(bit / 8) << 8 | byte(bit / 8 + 1);
    (both >> (8 - bit % 8)) as u8
}

#[cfg(test)]
mod tests {
    use super::*;

    const SETTINGS: [u8; 9] = [0, 0, 0, 4, 0, 0, 0, 0, 0];

    fn frame(kind: u8, flags: u8, payload: &[u8]) -> Vec<u8> {
        let length = payload.len() as u32;
        [
            &length.to_be_bytes()[1..],
            &[kind, flags, 0, 0, 0, 1],
            payload,
        ]
        .concat()
    }

    /// What is passed on of these frames, which arrive in pieces of `size` bytes.
    fn passed(frames: &[u8], size: usize) -> Vec<u8> {
        let bytes = [&[b'P'; PREFACE][..], &SETTINGS, frames].concat();
        let (mut authorities, mut out) = (Authorities::new(), Vec::new());
        for piece in bytes.chunks(size) {
            authorities.receive(piece, &mut out);
        }
        assert!(authorities.held.is_empty(), "something is still held");
        out.split_off(PREFACE + SETTINGS.len())
    }

    fn plain(authority: &str) -> Vec<u8> {
        [&[0x41, authority.len() as u8], authority.as_bytes()].concat()
    }

    /// `:path` with a slash and a percent sign, which stay.
    const PATH: &[u8] = b"\x44\x04/a%b";

    #[test]
    fn a_path_is_no_authority() {
        let before = [&plain("%2Frun%2Fa.sock"), PATH, &plain("/run/a.sock")].concat();
        let after = [&plain("-2Frun-2Fa.sock"), PATH, &plain("-run-a.sock")].concat();
        let before = [
            frame(HEADERS, END_HEADERS, &before),
            frame(0, 1, &plain("/in/data")),
        ]
        .concat();
        let after = [
            frame(HEADERS, END_HEADERS, &after),
            frame(0, 1, &plain("/in/data")),
        ]
        .concat();
        for size in [1, 2, 7, 1000] {
            assert_eq!(passed(&before, size), after, "in pieces of {size}");
        }
    }

    #[test]
    fn an_authority_may_be_in_huffman_code() {
        // "%2Ft/a" and "-2Ft-a": 6, 5, 7, 5, 6 and 5 bits, and 6 of padding.
        let bits = |text: &str| -> Vec<u8> {
            let bits: Vec<u8> = text.bytes().filter(|bit| *bit != b' ').collect();
            bits.chunks(8)
                .map(|byte| byte.iter().fold(0, |value, bit| value << 1 | (bit - b'0')))
                .collect()
        };
        let before = bits("010101 00010 1100001 01001 011000 00011 111111");
        let after = bits("010110 00010 1100001 01001 010110 00011 111111");
        let header = |text: &[u8]| [&[0x41, 0x80 | text.len() as u8], text].concat();
        let frames = |text: &[u8]| frame(HEADERS, END_HEADERS, &header(text));
        assert_eq!(passed(&frames(&before), 3), frames(&after));
    }

    #[test]
    fn headers_may_be_in_several_frames_with_padding_and_priority() {
        let frames = |authority: &str| {
            let block = plain(authority);
            let (first, rest) = block.split_at(5);
            let first = [&[3, 0, 0, 0, 0, 9][..], first, b"///"].concat();
            [
                frame(HEADERS, PADDED | PRIORITY, &first),
                frame(CONTINUATION, 0, &rest[..2]),
                frame(CONTINUATION, END_HEADERS, &rest[2..]),
                frame(HEADERS, END_HEADERS, b"\xbe"),
            ]
            .concat()
        };
        for size in [1, 5, 1000] {
            assert_eq!(passed(&frames("/a/b/c/d"), size), frames("-a-b-c-d"));
        }
    }

    #[test]
    fn a_name_may_be_written_out() {
        let header = |value: &str| {
            let value = [&[value.len() as u8], value.as_bytes()].concat();
            [b"\x00\x0a:authority", &value[..]].concat()
        };
        let frames = |value| frame(HEADERS, END_HEADERS, &header(value));
        assert_eq!(passed(&frames("/a"), 4), frames("-a"));
    }

    #[test]
    fn what_is_not_valid_passes_as_it_is() {
        for frames in [
            frame(HEADERS, END_HEADERS, b"\x41\x7f/"),
            frame(HEADERS, END_HEADERS, b"\x41\xff\xff\xff\xff\xff\xff/"),
            frame(HEADERS, END_HEADERS | PADDED, b"\xff\x41\x01/"),
            frame(CONTINUATION, END_HEADERS, &plain("/a")),
            [frame(HEADERS, 0, b"\x41"), frame(0, 0, b"/")].concat(),
            frame(HEADERS, END_HEADERS, b""),
        ] {
            assert_eq!(passed(&frames, 3), frames);
        }
        let endless = [
            frame(HEADERS, 0, &[0x41; MAX_HELD]),
            frame(CONTINUATION, END_HEADERS, &plain("/a")),
        ]
        .concat();
        assert_eq!(passed(&endless, 1000), endless, "too long to be held");
    }

    mod properties {
        use proptest::prelude::*;

        use super::*;

        proptest! {
            /// Whatever arrives, nothing is lost, added or moved, however it is cut.
            #[test]
            fn bytes_are_neither_lost_nor_added(
                bytes in prop::collection::vec(any::<u8>(), 0..2000),
                size in 1..600usize,
            ) {
                let (mut authorities, mut out) = (Authorities::new(), Vec::new());
                let mut whole = Vec::new();
                for piece in bytes.chunks(size) {
                    authorities.receive(piece, &mut out);
                }
                Authorities::new().receive(&bytes, &mut whole);
                prop_assert_eq!(out.len() + authorities.held.len(), bytes.len());
                prop_assert_eq!(out, whole);
            }
        }
    }
}
