//! Tests of what becomes of authorities, by whole frames.

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
