//! Finds the names of a model's files of weights without decoding the model.

use std::{
    collections::BTreeSet,
    io::{Read, Seek},
};

use prost::Message as _;

use crate::model::{
    onnx::{StringStringEntryProto, tensor_proto::DataLocation},
    wire::{MOST_FIELDS, MOST_MESSAGES, Message},
};

/// The most files of weights that a model may have. Names beyond the first one more are not looked for.
pub(super) const MOST_FILES: usize = 4096;
/// The most messages within each other that are looked into; decoding refuses as many.
const MOST_WITHIN: usize = 128;
/// The longest entry of a tensor's `external_data` that is read, in bytes.
const LONGEST_ENTRY: u64 = 8 << 10;

/// The names of the files of weights in the ONNX file of `length` bytes that `reader` reads, without
/// decoding it. A damaged file names what comes before the damage; decoding it says what is wrong.
pub(super) fn names(reader: impl Read + Seek, length: u64) -> BTreeSet<String> {
    let mut scan = Scan {
        reader,
        at: 0,
        found: BTreeSet::new(),
    };
    let _ = scan.run(length);
    scan.found
}

/// Goes through a model's file for the names of its files of weights, and skips everything else.
struct Scan<R> {
    reader: R,
    at: u64,
    found: BTreeSet<String>,
}

/// A message that has begun.
struct Open {
    message: Message,
    /// Where it ends.
    end: u64,
    /// Of a tensor: whether its values are stored in another file, and in which.
    external: bool,
    location: Option<String>,
}

impl Open {
    fn new(message: Message, end: u64) -> Self {
        Self {
            message,
            end,
            external: false,
            location: None,
        }
    }
}

impl<R: Read + Seek> Scan<R> {
    /// Goes on until the end, a damaged place or a limit. `None` means one of the latter two.
    fn run(&mut self, length: u64) -> Option<()> {
        let (mut messages, mut fields) = (0, 0);
        let mut open = vec![Open::new(Message::Model, length)];
        while let Some(last) = open.last_mut() {
            if self.at >= last.end {
                let closed = open.pop()?;
                if closed.external {
                    self.found.extend(closed.location);
                }
                if self.found.len() > MOST_FILES {
                    return None;
                }
                continue;
            }
            fields += 1;
            if messages > MOST_MESSAGES || fields > MOST_FIELDS {
                return None;
            }

            let key = self.varint()?;
            let is_tensor = last.message == Message::Tensor;
            match (key & 7, key >> 3) {
                (0, field) => {
                    let value = self.varint()?;
                    if is_tensor && field == 14 {
                        last.external = value == DataLocation::External as u64;
                    }
                }
                (1, _) => self.skip(8)?,
                (2, field) => {
                    let length = self.varint()?;
                    let end = self.at.checked_add(length)?;
                    if end > last.end {
                        return None;
                    }
                    let inner = last.message.inner(field);
                    messages += usize::from(inner.is_some());
                    match inner {
                        Some(_) if is_tensor && field == 13 => {
                            let entry = self.entry(length)?;
                            if last.location.is_none() {
                                last.location = entry;
                            }
                        }
                        Some(Message::Leaf) | None => self.skip(length)?,
                        Some(_) if open.len() >= MOST_WITHIN => return None,
                        Some(inner) => open.push(Open::new(inner, end)),
                    }
                }
                (5, _) => self.skip(4)?,
                _ => return None,
            }
        }
        Some(())
    }

    /// Reads an entry of `length` bytes: `Some(None)` if it is no location.
    fn entry(&mut self, length: u64) -> Option<Option<String>> {
        if length > LONGEST_ENTRY {
            self.skip(length)?;
            return Some(None);
        }
        let mut bytes = vec![0; length as usize];
        self.reader.read_exact(&mut bytes).ok()?;
        self.at += length;
        let entry = StringStringEntryProto::decode(&bytes[..]).ok()?;
        Some((entry.key() == "location").then(|| entry.value().to_owned()))
    }

    fn skip(&mut self, bytes: u64) -> Option<()> {
        self.reader.seek_relative(i64::try_from(bytes).ok()?).ok()?;
        self.at += bytes;
        Some(())
    }

    fn varint(&mut self) -> Option<u64> {
        let mut value = 0;
        for shift in (0..64).step_by(7) {
            let mut byte = [0];
            self.reader.read_exact(&mut byte).ok()?;
            self.at += 1;
            value |= u64::from(byte[0] & 0x7f) << shift;
            if byte[0] < 0x80 {
                return Some(value);
            }
        }
        None
    }
}
