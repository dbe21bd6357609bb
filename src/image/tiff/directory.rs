//! The first image file directory: the tags that describe an image and say where its data is.
//!
//! Everything is read through bounds checks, and nothing is allocated for a tag: its values stay
//! where they are in the file.

use super::{damaged, truncated};
use crate::image::ImageError;

/// The codes of the tags that are read (TIFF 6.0, and its technical notes).
pub(super) mod tag {
    pub const IMAGE_WIDTH: u16 = 256;
    pub const IMAGE_LENGTH: u16 = 257;
    pub const BITS_PER_SAMPLE: u16 = 258;
    pub const COMPRESSION: u16 = 259;
    pub const PHOTOMETRIC_INTERPRETATION: u16 = 262;
    pub const FILL_ORDER: u16 = 266;
    pub const STRIP_OFFSETS: u16 = 273;
    pub const ORIENTATION: u16 = 274;
    pub const SAMPLES_PER_PIXEL: u16 = 277;
    pub const ROWS_PER_STRIP: u16 = 278;
    pub const STRIP_BYTE_COUNTS: u16 = 279;
    pub const PLANAR_CONFIGURATION: u16 = 284;
    pub const T4_OPTIONS: u16 = 292;
    pub const PREDICTOR: u16 = 317;
    pub const COLOR_MAP: u16 = 320;
    pub const TILE_WIDTH: u16 = 322;
    pub const TILE_LENGTH: u16 = 323;
    pub const TILE_OFFSETS: u16 = 324;
    pub const TILE_BYTE_COUNTS: u16 = 325;
    pub const EXTRA_SAMPLES: u16 = 338;
    pub const SAMPLE_FORMAT: u16 = 339;
    pub const JPEG_TABLES: u16 = 347;
    pub const YCBCR_COEFFICIENTS: u16 = 529;
    pub const YCBCR_SUBSAMPLING: u16 = 530;
    pub const REFERENCE_BLACK_WHITE: u16 = 532;
}

const READ: [u16; 25] = [
    tag::IMAGE_WIDTH,
    tag::IMAGE_LENGTH,
    tag::BITS_PER_SAMPLE,
    tag::COMPRESSION,
    tag::PHOTOMETRIC_INTERPRETATION,
    tag::FILL_ORDER,
    tag::STRIP_OFFSETS,
    tag::ORIENTATION,
    tag::SAMPLES_PER_PIXEL,
    tag::ROWS_PER_STRIP,
    tag::STRIP_BYTE_COUNTS,
    tag::PLANAR_CONFIGURATION,
    tag::T4_OPTIONS,
    tag::PREDICTOR,
    tag::COLOR_MAP,
    tag::TILE_WIDTH,
    tag::TILE_LENGTH,
    tag::TILE_OFFSETS,
    tag::TILE_BYTE_COUNTS,
    tag::EXTRA_SAMPLES,
    tag::SAMPLE_FORMAT,
    tag::JPEG_TABLES,
    tag::YCBCR_COEFFICIENTS,
    tag::YCBCR_SUBSAMPLING,
    tag::REFERENCE_BLACK_WHITE,
];

/// The most tags of a directory. Each costs some time.
const MAX_TAGS: u64 = 4096;

/// The order of the bytes of a number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ByteOrder {
    Little,
    Big,
}

impl ByteOrder {
    pub fn u16(self, bytes: [u8; 2]) -> u16 {
        match self {
            Self::Little => u16::from_le_bytes(bytes),
            Self::Big => u16::from_be_bytes(bytes),
        }
    }

    pub fn u32(self, bytes: [u8; 4]) -> u32 {
        match self {
            Self::Little => u32::from_le_bytes(bytes),
            Self::Big => u32::from_be_bytes(bytes),
        }
    }

    fn u64(self, bytes: [u8; 8]) -> u64 {
        match self {
            Self::Little => u64::from_le_bytes(bytes),
            Self::Big => u64::from_be_bytes(bytes),
        }
    }
}

/// A field's type, as far as it is read.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Integers of 1, 2, 4 or 8 bytes.
    Unsigned,
    Signed,
    /// Two integers of four bytes each.
    Rational,
    SignedRational,
    Float,
}

/// The values of a tag.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    kind: Kind,
    /// The bytes of one value.
    width: usize,
    order: ByteOrder,
    pub bytes: &'a [u8],
}

impl Values<'_> {
    pub fn len(&self) -> usize {
        self.bytes.len() / self.width
    }

    fn value(&self, index: usize) -> Option<&[u8]> {
        self.bytes.chunks_exact(self.width).nth(index)
    }

    /// An integer that is not negative; `None` if there is none at this index.
    pub fn number(&self, index: usize) -> Option<u64> {
        let bytes = self.value(index)?;
        let number = match *bytes {
            [a] => u64::from(a),
            [a, b] => u64::from(self.order.u16([a, b])),
            [a, b, c, d] => u64::from(self.order.u32([a, b, c, d])),
            _ => self.order.u64(bytes.try_into().ok()?),
        };
        let negative = self.kind == Kind::Signed && number >> (8 * self.width - 1) != 0;
        (!negative && matches!(self.kind, Kind::Unsigned | Kind::Signed)).then_some(number)
    }

    /// A number of any type.
    pub fn real(&self, index: usize) -> Option<f64> {
        let bytes = self.value(index)?;
        match (self.kind, bytes) {
            (Kind::Float, &[a, b, c, d]) => {
                Some(f32::from_bits(self.order.u32([a, b, c, d])).into())
            }
            (Kind::Float, _) => Some(f64::from_bits(self.order.u64(bytes.try_into().ok()?))),
            (Kind::Rational | Kind::SignedRational, &[a, b, c, d, e, f, g, h]) => {
                let [above, below] = [[a, b, c, d], [e, f, g, h]].map(|half| self.order.u32(half));
                Some(if self.kind == Kind::Rational {
                    f64::from(above) / f64::from(below)
                } else {
                    f64::from(above as i32) / f64::from(below as i32)
                })
            }
            _ => Some(self.number(index)? as f64),
        }
    }
}

struct Entry {
    tag: u16,
    kind: Kind,
    width: usize,
    /// The bytes of all values.
    length: u64,
    /// Where in the file the values begin.
    position: u64,
}

/// The directory of a file's first image.
pub(super) struct Directory<'a> {
    pub encoded: &'a [u8],
    pub order: ByteOrder,
    /// The tags that are read, each once.
    entries: Vec<Entry>,
}

impl<'a> Directory<'a> {
    /// Reads the file's header and the first directory, of TIFF or of BigTIFF.
    pub fn read(encoded: &'a [u8]) -> Result<Self, ImageError> {
        let order = if encoded.starts_with(b"II") {
            ByteOrder::Little
        } else {
            ByteOrder::Big
        };
        let reader = Reader { encoded, order };
        let big = reader.u16(2)? == 43;
        let (offset, count, table, entry_size) = if big {
            let offset = reader.u64(8)?;
            (offset, reader.u64(offset)?, offset.saturating_add(8), 20)
        } else {
            let offset = u64::from(reader.u32(4)?);
            (offset, u64::from(reader.u16(offset)?), offset + 2, 12)
        };
        if count == 0 || offset == 0 {
            return Err(damaged("it describes no image"));
        }
        if count > MAX_TAGS {
            return Err(damaged(&format!(
                "it has {count} tags, more than the {MAX_TAGS} allowed"
            )));
        }
        // This also checks that the whole table is within the file.
        let table_bytes = reader.slice(table, count.saturating_mul(entry_size))?;

        let mut entries: Vec<Entry> = Vec::with_capacity(READ.len());
        for index in 0..table_bytes.len() as u64 / entry_size {
            let position = table + index * entry_size;
            let tag = reader.u16(position)?;
            // Of a tag that is repeated the first one counts, as with libtiff.
            if !READ.contains(&tag) || entries.iter().any(|entry| entry.tag == tag) {
                continue;
            }
            let (kind, width) = match reader.u16(position + 2)? {
                // BYTE and UNDEFINED, SHORT, LONG and IFD, LONG8 and IFD8.
                1 | 7 => (Kind::Unsigned, 1),
                3 => (Kind::Unsigned, 2),
                4 | 13 => (Kind::Unsigned, 4),
                16 | 18 => (Kind::Unsigned, 8),
                5 => (Kind::Rational, 8),
                6 => (Kind::Signed, 1),
                8 => (Kind::Signed, 2),
                9 => (Kind::Signed, 4),
                17 => (Kind::Signed, 8),
                10 => (Kind::SignedRational, 8),
                11 => (Kind::Float, 4),
                12 => (Kind::Float, 8),
                _ => continue,
            };
            let (count, field, inline) = if big {
                (reader.u64(position + 4)?, position + 12, 8)
            } else {
                (u64::from(reader.u32(position + 4)?), position + 8, 4)
            };
            let length = count.saturating_mul(width as u64);
            let position = if length <= inline {
                field
            } else if big {
                reader.u64(field)?
            } else {
                u64::from(reader.u32(field)?)
            };
            entries.push(Entry {
                tag,
                kind,
                width,
                length,
                position,
            });
        }
        Ok(Self {
            encoded,
            order,
            entries,
        })
    }

    /// The values of a tag; `None` if it is absent or empty.
    pub fn values(&self, tag: u16) -> Result<Option<Values<'a>>, ImageError> {
        let Some(entry) = self.entries.iter().find(|entry| entry.tag == tag) else {
            return Ok(None);
        };
        let reader = Reader {
            encoded: self.encoded,
            order: self.order,
        };
        let bytes = reader.slice(entry.position, entry.length)?;
        Ok((!bytes.is_empty()).then_some(Values {
            kind: entry.kind,
            width: entry.width,
            order: self.order,
            bytes,
        }))
    }

    /// The first value of a tag, which is an integer; `None` if the tag is absent.
    pub fn number(&self, tag: u16) -> Result<Option<u64>, ImageError> {
        match self.values(tag)? {
            Some(values) => match values.number(0) {
                Some(number) => Ok(Some(number)),
                None => Err(damaged(&format!("tag {tag} is not a non-negative integer"))),
            },
            None => Ok(None),
        }
    }
}

/// Reads numbers at any place of a file.
struct Reader<'a> {
    encoded: &'a [u8],
    order: ByteOrder,
}

impl<'a> Reader<'a> {
    fn slice(&self, position: u64, length: u64) -> Result<&'a [u8], ImageError> {
        let start = usize::try_from(position).ok();
        let end = usize::try_from(position.saturating_add(length)).ok();
        start
            .zip(end)
            .and_then(|(start, end)| self.encoded.get(start..end))
            .ok_or_else(|| truncated(self.encoded))
    }

    fn array<const N: usize>(&self, position: u64) -> Result<[u8; N], ImageError> {
        let mut array = [0; N];
        array.copy_from_slice(self.slice(position, N as u64)?);
        Ok(array)
    }

    fn u16(&self, position: u64) -> Result<u16, ImageError> {
        self.array(position).map(|bytes| self.order.u16(bytes))
    }

    fn u32(&self, position: u64) -> Result<u32, ImageError> {
        self.array(position).map(|bytes| self.order.u32(bytes))
    }

    fn u64(&self, position: u64) -> Result<u64, ImageError> {
        self.array(position).map(|bytes| self.order.u64(bytes))
    }
}
