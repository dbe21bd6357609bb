//! What is said between the server and the process that decodes AV1 pictures: a request, then an
//! answer, again and again. Numbers are little-endian.

use std::io::{self, Read, Write};

/// A picture to decode. Its data follows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Request {
    /// The length of the data, in bytes.
    pub length: u32,
    /// The most pixels of a frame.
    pub max_pixels: u32,
    /// The memory that decoding may take, in bytes.
    pub memory: u64,
}

/// What came of a picture. Its planes follow where it was decoded: packed rows, samples of 8 bits
/// in a byte each and deeper ones in two.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    pub outcome: Outcome,
    /// The CPU time of decoding, in nanoseconds.
    pub nanoseconds: u64,
    pub width: u32,
    pub height: u32,
    pub depth: u8,
    pub monochrome: bool,
    /// Whether chroma has half the columns, and half the rows.
    pub subsampled: [bool; 2],
}

/// Whether a picture was decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    Decoded,
    /// The data has no picture that is shown.
    Nothing,
    Unsupported,
    Damaged,
}

impl Request {
    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.max_pixels.to_le_bytes());
        bytes[8..].copy_from_slice(&self.memory.to_le_bytes());
        to.write_all(&bytes)
    }

    /// `None` if there is nothing more to read.
    pub fn read(from: &mut impl Read) -> io::Result<Option<Self>> {
        let mut length = [0; 4];
        match from.read_exact(&mut length) {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => return Ok(None),
            result => result?,
        }
        Ok(Some(Self {
            length: u32::from_le_bytes(length),
            max_pixels: u32::from_le_bytes(array(from)?),
            memory: u64::from_le_bytes(array(from)?),
        }))
    }
}

impl Answer {
    /// An answer without a picture.
    pub fn without(outcome: Outcome) -> Self {
        Self {
            outcome,
            nanoseconds: 0,
            width: 0,
            height: 0,
            depth: 8,
            monochrome: false,
            subsampled: [false; 2],
        }
    }

    /// The width and height of each plane.
    pub fn planes(&self) -> Vec<[u32; 2]> {
        let whole = [self.width, self.height];
        if self.monochrome {
            return vec![whole];
        }
        let half = |side: u32, halved: bool| if halved { side.div_ceil(2) } else { side };
        let chroma = [
            half(self.width, self.subsampled[0]),
            half(self.height, self.subsampled[1]),
        ];
        vec![whole, chroma, chroma]
    }

    pub fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let outcome = match self.outcome {
            Outcome::Decoded => 0,
            Outcome::Nothing => 1,
            Outcome::Unsupported => 2,
            Outcome::Damaged => 3,
        };
        let [columns, rows] = self.subsampled.map(u8::from);
        to.write_all(&[
            outcome,
            self.depth,
            self.monochrome.into(),
            columns | (rows << 1),
        ])?;
        to.write_all(&self.width.to_le_bytes())?;
        to.write_all(&self.height.to_le_bytes())?;
        to.write_all(&self.nanoseconds.to_le_bytes())
    }

    pub fn read(from: &mut impl Read) -> io::Result<Self> {
        let [outcome, depth, monochrome, subsampled] = array(from)?;
        let outcome = match outcome {
            0 => Outcome::Decoded,
            1 => Outcome::Nothing,
            2 => Outcome::Unsupported,
            3 => Outcome::Damaged,
            _ => return Err(io::ErrorKind::InvalidData.into()),
        };
        if !matches!(depth, 8 | 10 | 12) {
            return Err(io::ErrorKind::InvalidData.into());
        }
        Ok(Self {
            outcome,
            depth,
            monochrome: monochrome != 0,
            subsampled: [subsampled & 1 != 0, subsampled & 2 != 0],
            width: u32::from_le_bytes(array(from)?),
            height: u32::from_le_bytes(array(from)?),
            nanoseconds: u64::from_le_bytes(array(from)?),
        })
    }
}

fn array<const N: usize>(from: &mut impl Read) -> io::Result<[u8; N]> {
    let mut bytes = [0; N];
    from.read_exact(&mut bytes)?;
    Ok(bytes)
}
