//! The compressions of strips and tiles, and readers that undo them.
//!
//! A reader is asked for exactly the bytes that the image needs and takes every byte of its input
//! once, so neither its output nor its work can exceed what the header and the file's length allow.

use std::io::{self, BufRead, Read};

use flate2::bufread::ZlibDecoder;
use ruzstd::decoding::StreamingDecoder;
use weezl::{BitOrder, LzwStatus, decode};

use super::{
    ccitt::{Ccitt, Coding},
    directory::{Directory, tag},
    unsupported,
};
use crate::image::{
    ImageError,
    budget::{Budget, Timed},
};

/// The largest window of a Zstandard frame, in bytes, which the decoder allocates. Encoders choose
/// no larger one below their highest levels.
pub(super) const MAX_WINDOW: u64 = 8 << 20;

/// A compression that can be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Compression {
    None,
    Ccitt(Coding),
    Lzw,
    Jpeg,
    Deflate,
    PackBits,
    Zstandard,
}

impl Compression {
    const ACCEPTED: &'static str =
        "uncompressed, PackBits, LZW, Deflate, Zstandard, JPEG and CCITT";

    pub fn of(directory: &Directory<'_>) -> Result<Self, ImageError> {
        let code = directory.number(tag::COMPRESSION)?.unwrap_or(1);
        let name = match code {
            1 => return Ok(Self::None),
            2 => return Ok(Self::Ccitt(Coding::Runs { align: 8 })),
            3 => {
                let options = directory.number(tag::T4_OPTIONS)?.unwrap_or(0);
                return Ok(Self::Ccitt(Coding::Group3 {
                    two_dimensional: options & 1 != 0,
                }));
            }
            4 => return Ok(Self::Ccitt(Coding::Group4)),
            5 => return Ok(Self::Lzw),
            7 => return Ok(Self::Jpeg),
            8 | 32946 => return Ok(Self::Deflate),
            32771 => return Ok(Self::Ccitt(Coding::Runs { align: 16 })),
            32773 => return Ok(Self::PackBits),
            50000 => return Ok(Self::Zstandard),
            6 => "old-style JPEG (compression 6)",
            9 | 10 | 34661 => "JBIG",
            32766 => "NeXT's",
            32809 => "ThunderScan",
            32908 | 32909 => "Pixar's",
            34676 | 34677 => "SGI LogLuv",
            34712 | 33003 | 33004 | 33005 => "JPEG 2000",
            34887 => "LERC",
            34892 => "lossy JPEG of DNG",
            34925 => "LZMA",
            50001 => "WebP",
            50002 | 52546 => "JPEG XL",
            _ => {
                return Err(unsupported(&format!(
                    "its compression has the unknown number {code}; accepted are {}",
                    Self::ACCEPTED
                )));
            }
        };
        Err(unsupported(&format!(
            "its compression is {name}; accepted are {}",
            Self::ACCEPTED
        )))
    }

    /// Whether differences between neighbours are compressed in place of the samples, where the
    /// file says so. Other compressions ignore the tag, as with libtiff.
    pub fn has_predictor(self) -> bool {
        matches!(self, Self::Lzw | Self::Deflate | Self::Zstandard)
    }
}

/// Opens compressed data; keeps what is worth using again for the next strip.
#[derive(Default)]
pub(super) struct Decompressor {
    lzw: Option<decode::Decoder>,
    old_lzw: Option<decode::Decoder>,
}

impl Decompressor {
    /// A reader of the decompressed bytes, within the time of `budget`. JPEG data is a whole image
    /// and not read this way. `width` is that of a row, in pixels.
    pub fn open<'a>(
        &'a mut self,
        compression: Compression,
        data: &'a [u8],
        width: u32,
        budget: &'a Budget,
    ) -> io::Result<Box<dyn Read + 'a>> {
        Ok(match compression {
            Compression::None | Compression::Jpeg => Box::new(data),
            Compression::Ccitt(coding) => Box::new(Ccitt::new(data, coding, width)),
            Compression::Lzw => {
                // Before TIFF 6.0 some programs wrote codes that begin in the lowest bit and get
                // longer one code later. The first code, 256, tells them apart.
                let decoder = if matches!(data, [0, second, ..] if second & 1 != 0) {
                    self.old_lzw.get_or_insert_with(|| {
                        decode::Configuration::new(BitOrder::Lsb, 8)
                            .with_yield_on_full_buffer(true)
                            .build()
                    })
                } else {
                    self.lzw.get_or_insert_with(|| {
                        decode::Configuration::with_tiff_size_switch(BitOrder::Msb, 8)
                            .with_yield_on_full_buffer(true)
                            .build()
                    })
                };
                decoder.reset();
                Box::new(Lzw { decoder, data })
            }
            Compression::Deflate => Box::new(ZlibDecoder::new(Timed::new(data, budget))),
            Compression::PackBits => Box::new(PackBits {
                data,
                literal: 0,
                repeated: 0,
            }),
            Compression::Zstandard => {
                let data = Timed::new(data, budget);
                let decoder = StreamingDecoder::new_with_max_window_size(data, MAX_WINDOW);
                Box::new(decoder.map_err(io::Error::other)?)
            }
        })
    }
}

struct Lzw<'a> {
    decoder: &'a mut decode::Decoder,
    data: &'a [u8],
}

impl Read for Lzw<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        /// The decoder keeps up to 64 bits of its input and up to one string of its output, so it
        /// can go on for a few codes without taking or giving a byte.
        const MAX_SILENT_STEPS: usize = 16;

        let mut silent_steps = 0;
        while silent_steps < MAX_SILENT_STEPS {
            let result = self.decoder.decode_bytes(self.data, buffer);
            self.data.consume(result.consumed_in);
            match result.status {
                _ if result.consumed_out > 0 => return Ok(result.consumed_out),
                Ok(LzwStatus::Ok) if result.consumed_in > 0 => silent_steps = 0,
                Ok(LzwStatus::Ok) => silent_steps += 1,
                Ok(LzwStatus::Done | LzwStatus::NoProgress) => break,
                Err(error) => return Err(io::Error::new(io::ErrorKind::InvalidData, error)),
            }
        }
        Ok(0)
    }
}

/// Runs of bytes (TIFF 6.0, section 9).
struct PackBits<'a> {
    data: &'a [u8],
    /// How many bytes are still to be copied.
    literal: usize,
    /// How many times the next byte is still to be repeated.
    repeated: usize,
}

impl Read for PackBits<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.literal == 0 && self.repeated == 0 {
            let Some((&head, rest)) = self.data.split_first() else {
                return Ok(0);
            };
            self.data = rest;
            match head {
                0..128 => self.literal = usize::from(head) + 1,
                128 => {}
                129.. => self.repeated = 257 - usize::from(head),
            }
        }

        if self.literal > 0 {
            let length = self.literal.min(buffer.len()).min(self.data.len());
            let (copied, rest) = self.data.split_at(length);
            buffer[..length].copy_from_slice(copied);
            self.data = rest;
            self.literal -= length;
            return Ok(length);
        }
        let Some(&byte) = self.data.first() else {
            return Ok(0);
        };
        let length = self.repeated.min(buffer.len());
        buffer[..length].fill(byte);
        self.repeated -= length;
        if self.repeated == 0 {
            self.data = &self.data[1..];
        }
        Ok(length)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::PreprocessConfig;

    fn unpack(data: &[u8], length: usize) -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; length];
        let budget = Budget::new(&PreprocessConfig::default());
        Decompressor::default()
            .open(Compression::PackBits, data, 1, &budget)?
            .read_exact(&mut bytes)?;
        Ok(bytes)
    }

    #[test]
    fn packbits_copies_repeats_and_does_nothing() {
        let data = b"\xfe\xaa\x02\x80\x00\x2a\x80\xfd\xaa\x00\x07";
        assert_eq!(
            unpack(data, 11).unwrap_or_default(),
            b"\xaa\xaa\xaa\x80\x00\x2a\xaa\xaa\xaa\xaa\x07"
        );
        for cut in 0..data.len() {
            assert!(unpack(&data[..cut], 11).is_err(), "cut after {cut} bytes");
        }
    }
}
