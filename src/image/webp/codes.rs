//! The prefix codes of lossless WebP data (RFC 9649, 3.5 to 3.7), read ahead of the decoder to find
//! out how much memory they will take: a code of a few bytes can make a table of tens of kilobytes,
//! and a picture may have 65,536 groups of five codes.
//!
//! Everything before the last of the codes is read: the small images of the transforms and the image
//! that assigns groups to the parts of the picture. The pixels that follow are not.

use crate::image::budget::Budget;

/// The most memory that the tables may take, in bytes. Encoders write up to some thousand groups.
pub(super) const MAX_TABLE_BYTES: u64 = 128 << 20;

/// Whether the tables of all codes take more than [`MAX_TABLE_BYTES`] in the decoder. `data` begins
/// with the transforms, after the header.
pub(super) fn exceed_memory(data: &[u8], width: u32, height: u32, budget: &Budget) -> bool {
    let mut reader = CodeReader {
        bits: Bits { data, position: 0 },
        bytes: 0,
        budget,
    };
    // Where the data is damaged the decoder ends too.
    let _ = reader.read(width, height);
    reader.bytes > MAX_TABLE_BYTES
}

/// Literals of green, and the lengths of copies.
const GREEN_AND_LENGTHS: usize = 256 + 24;
/// The symbols of the five codes of a group: green, red, blue, alpha, distances.
const ALPHABETS: [usize; 5] = [GREEN_AND_LENGTHS, 256, 256, 256, 40];
/// The longest code.
const MAX_LENGTH: usize = 15;
/// What the decoder looks up at once; longer codes go through a tree of nodes.
const TABLE_BITS: usize = 10;

/// Reads bits from the lowest of each byte on.
struct Bits<'a> {
    data: &'a [u8],
    position: usize,
}

impl Bits<'_> {
    fn bit(&mut self) -> Option<usize> {
        let byte = *self.data.get(self.position / 8)?;
        let bit = byte >> (self.position % 8) & 1;
        self.position += 1;
        Some(bit.into())
    }

    fn take(&mut self, count: usize) -> Option<usize> {
        let mut value = 0;
        for place in 0..count {
            value |= self.bit()? << place;
        }
        Some(value)
    }
}

/// A prefix code: the symbols by the length of their codes, and then by their value.
#[derive(Default)]
struct Code {
    counts: [u16; MAX_LENGTH + 1],
    symbols: Vec<u16>,
}

impl Code {
    /// The code whose symbols have codes of these lengths, 0 for none; `None` unless every sequence
    /// of bits has a meaning.
    fn of(lengths: &[u8]) -> Option<Self> {
        let mut code = Self::default();
        for length in lengths.iter().filter(|length| **length > 0) {
            code.counts[usize::from(*length)] += 1;
        }
        // Where the symbols of each length begin.
        let mut next = [0; MAX_LENGTH + 2];
        for length in 1..=MAX_LENGTH {
            next[length + 1] = next[length] + usize::from(code.counts[length]);
        }
        code.symbols.resize(next[MAX_LENGTH + 1], 0);
        for (symbol, length) in lengths
            .iter()
            .enumerate()
            .filter(|(_, length)| **length > 0)
        {
            let place = &mut next[usize::from(*length)];
            code.symbols[*place] = symbol as u16;
            *place += 1;
        }
        let used = (1..=MAX_LENGTH)
            .map(|length| usize::from(code.counts[length]) << (MAX_LENGTH - length))
            .sum::<usize>();
        let is_complete = used == 1 << MAX_LENGTH;
        (is_complete || code.symbols.len() == 1).then_some(code)
    }

    /// Reads a symbol. A single one takes no bits.
    fn read(&self, bits: &mut Bits<'_>) -> Option<usize> {
        if let [only] = self.symbols[..] {
            return Some(only.into());
        }
        let (mut code, mut first, mut index) = (0usize, 0usize, 0usize);
        for count in &self.counts[1..] {
            let count = usize::from(*count);
            code |= bits.bit()?;
            if code < first + count {
                return self
                    .symbols
                    .get(index + code - first)
                    .copied()
                    .map(Into::into);
            }
            index += count;
            first = (first + count) << 1;
            code <<= 1;
        }
        None
    }

    /// What the decoder's table and tree for this code take, in bytes.
    fn table_bytes(&self) -> u64 {
        const ENTRY: u64 = 4;
        const NODE: u64 = 16;
        let longest = (1..=MAX_LENGTH).rfind(|length| self.counts[*length] > 0);
        let beyond: u64 = self.counts[TABLE_BITS + 1..]
            .iter()
            .map(|count| u64::from(*count))
            .sum();
        match longest {
            Some(longest) if self.symbols.len() > 1 => {
                (ENTRY << longest.min(TABLE_BITS)) + 2 * NODE * beyond
            }
            _ => 0,
        }
    }
}

struct CodeReader<'a> {
    bits: Bits<'a>,
    /// What the tables of the codes that have been read take.
    bytes: u64,
    budget: &'a Budget,
}

impl CodeReader<'_> {
    /// Reads everything up to the pixels of the picture.
    fn read(&mut self, mut width: u32, height: u32) -> Option<()> {
        let mut seen = [false; 4];
        while self.bits.bit()? == 1 {
            let transform = self.bits.take(2)?;
            if std::mem::replace(&mut seen[transform], true) {
                return None;
            }
            match transform {
                // Predictors and colours, by block.
                0 | 1 => {
                    let block = self.bits.take(3)? + 2;
                    self.image(blocks(width, block), blocks(height, block))?;
                }
                // Red and blue are stored less green.
                2 => {}
                // A palette, whose indices may share a byte.
                _ => {
                    let colours = self.bits.take(8)? as u32 + 1;
                    self.image(colours, 1)?;
                    let shared = match colours {
                        ..=2 => 3,
                        3..=4 => 2,
                        5..=16 => 1,
                        _ => 0,
                    };
                    width = blocks(width, shared);
                }
            }
        }

        let cache_bits = self.cache_bits()?;
        let groups = if self.bits.bit()? == 1 {
            let block = self.bits.take(3)? + 2;
            let image = self.image(blocks(width, block), blocks(height, block))?;
            // Red and green are the number of the group.
            let group = |pixel: &u32| (pixel >> 8 & 0xffff) as usize;
            image.iter().map(group).max().unwrap_or(0) + 1
        } else {
            1
        };
        for _ in 0..groups {
            self.group(cache_bits)?;
        }
        Some(())
    }

    fn cache_bits(&mut self) -> Option<usize> {
        if self.bits.bit()? == 0 {
            return Some(0);
        }
        self.bits.take(4).filter(|bits| (1..=11).contains(bits))
    }

    /// Reads a group of five codes; `None` also if there have been too many.
    fn group(&mut self, cache_bits: usize) -> Option<[Code; 5]> {
        const GROUP: u64 = 5 * 64;
        self.bytes += GROUP;
        let cached = if cache_bits > 0 { 1 << cache_bits } else { 0 };
        let mut codes: [Code; 5] = Default::default();
        for (index, (code, alphabet)) in codes.iter_mut().zip(ALPHABETS).enumerate() {
            let more = if index == 0 { cached } else { 0 };
            *code = self.code(alphabet + more)?;
            self.bytes += code.table_bytes();
        }
        (self.bytes <= MAX_TABLE_BYTES).then_some(codes)
    }

    fn code(&mut self, alphabet: usize) -> Option<Code> {
        if self.bits.bit()? == 1 {
            return self.simple_code(alphabet);
        }
        self.budget.spend(2 * alphabet).ok()?;
        /// In which order the lengths of the code for lengths are.
        const ORDER: [usize; 19] = [
            17, 18, 0, 1, 2, 3, 4, 5, 16, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15,
        ];
        let mut lengths = [0; ORDER.len()];
        let count = 4 + self.bits.take(4)?;
        for symbol in ORDER.get(..count)? {
            lengths[*symbol] = self.bits.take(3)? as u8;
        }
        let code = Code::of(&lengths)?;
        let mut left = if self.bits.bit()? == 1 {
            let size = 2 + 2 * self.bits.take(3)?;
            2 + self.bits.take(size)?
        } else {
            alphabet
        };
        if left > alphabet {
            return None;
        }

        let mut lengths = Vec::with_capacity(alphabet);
        let mut previous = 8;
        while lengths.len() < alphabet && left > 0 {
            left -= 1;
            let (length, repeated) = match code.read(&mut self.bits)? {
                length @ 0..16 => (length as u8, 1),
                16 => (previous, 3 + self.bits.take(2)?),
                17 => (0, 3 + self.bits.take(3)?),
                _ => (0, 11 + self.bits.take(7)?),
            };
            if length != 0 {
                previous = length;
            }
            lengths.resize(lengths.len() + repeated, length);
        }
        if lengths.len() > alphabet {
            return None;
        }
        Code::of(&lengths)
    }

    /// A code of one or two symbols, which are written as they are.
    fn simple_code(&mut self, alphabet: usize) -> Option<Code> {
        let has_two = self.bits.bit()? == 1;
        let size = if self.bits.bit()? == 1 { 8 } else { 1 };
        let mut code = Code::default();
        code.symbols.push(self.bits.take(size)? as u16);
        if has_two {
            code.symbols.push(self.bits.take(8)? as u16);
        }
        code.counts[1] = code.symbols.len() as u16;
        let is_valid = code
            .symbols
            .iter()
            .all(|symbol| usize::from(*symbol) < alphabet);
        is_valid.then_some(code)
    }

    /// Decodes a small image, which has a single group of codes, to pixels of alpha, red, green and
    /// blue.
    fn image(&mut self, width: u32, height: u32) -> Option<Vec<u32>> {
        let cache_bits = self.cache_bits()?;
        let codes = self.group(cache_bits)?;
        let mut cache = vec![0u32; if cache_bits > 0 { 1 << cache_bits } else { 0 }];
        let slot = |pixel: u32| (pixel.wrapping_mul(0x1e35_a7bd) >> (32 - cache_bits)) as usize;

        let count = width as usize * height as usize;
        let mut pixels = Vec::with_capacity(count);
        while pixels.len() < count {
            let start = pixels.len();
            self.budget.spend(16).ok()?;
            match codes[0].read(&mut self.bits)? {
                green @ 0..256 => {
                    let mut channel = |code: &Code| Some(code.read(&mut self.bits)? as u32);
                    let (red, blue) = (channel(&codes[1])?, channel(&codes[2])?);
                    let alpha = channel(&codes[3])?;
                    pixels.push(alpha << 24 | red << 16 | (green as u32) << 8 | blue);
                }
                symbol if symbol < GREEN_AND_LENGTHS => {
                    let length = self.number(symbol - 256)?;
                    let symbol = codes[4].read(&mut self.bits)?;
                    let distance = distance(self.number(symbol)?, width);
                    if distance > start || length > count - start {
                        return None;
                    }
                    for index in start..start + length {
                        pixels.push(pixels[index - distance]);
                    }
                }
                symbol => pixels.push(*cache.get(symbol - GREEN_AND_LENGTHS)?),
            }
            if cache_bits > 0 {
                for pixel in &pixels[start..] {
                    cache[slot(*pixel)] = *pixel;
                }
            }
        }
        Some(pixels)
    }

    /// A length or a distance, from the symbol of its range.
    fn number(&mut self, symbol: usize) -> Option<usize> {
        if symbol < 4 {
            return Some(symbol + 1);
        }
        let size = (symbol - 2) >> 1;
        Some(((2 + (symbol & 1)) << size) + self.bits.take(size)? + 1)
    }
}

/// The blocks of 2^`bits` pixels along a side.
fn blocks(side: u32, bits: usize) -> u32 {
    side.div_ceil(1 << bits)
}

/// How many pixels back a copy begins. The first 120 codes are places near the pixel: by rows up
/// and columns right, in order of their distance.
fn distance(code: usize, width: u32) -> usize {
    #[rustfmt::skip]
    const NEAR: [(i8, i8); 120] = [
        (0, 1), (1, 0), (1, 1), (-1, 1), (0, 2), (2, 0), (1, 2), (-1, 2),
        (2, 1), (-2, 1), (2, 2), (-2, 2), (0, 3), (3, 0), (1, 3), (-1, 3),
        (3, 1), (-3, 1), (2, 3), (-2, 3), (3, 2), (-3, 2), (0, 4), (4, 0),
        (1, 4), (-1, 4), (4, 1), (-4, 1), (3, 3), (-3, 3), (2, 4), (-2, 4),
        (4, 2), (-4, 2), (0, 5), (3, 4), (-3, 4), (4, 3), (-4, 3), (5, 0),
        (1, 5), (-1, 5), (5, 1), (-5, 1), (2, 5), (-2, 5), (5, 2), (-5, 2),
        (4, 4), (-4, 4), (3, 5), (-3, 5), (5, 3), (-5, 3), (0, 6), (6, 0),
        (1, 6), (-1, 6), (6, 1), (-6, 1), (2, 6), (-2, 6), (6, 2), (-6, 2),
        (4, 5), (-4, 5), (5, 4), (-5, 4), (3, 6), (-3, 6), (6, 3), (-6, 3),
        (0, 7), (7, 0), (1, 7), (-1, 7), (5, 5), (-5, 5), (7, 1), (-7, 1),
        (4, 6), (-4, 6), (6, 4), (-6, 4), (2, 7), (-2, 7), (7, 2), (-7, 2),
        (3, 7), (-3, 7), (7, 3), (-7, 3), (5, 6), (-5, 6), (6, 5), (-6, 5),
        (8, 0), (4, 7), (-4, 7), (7, 4), (-7, 4), (8, 1), (8, 2), (6, 6),
        (-6, 6), (8, 3), (5, 7), (-5, 7), (7, 5), (-7, 5), (8, 4), (6, 7),
        (-6, 7), (7, 6), (-7, 6), (8, 5), (7, 7), (-7, 7), (8, 6), (8, 7),
    ];
    match code.checked_sub(1 + NEAR.len()) {
        Some(beyond) => beyond + 1,
        None => {
            let (columns, rows) = NEAR[code - 1];
            (i64::from(columns) + i64::from(rows) * i64::from(width)).max(1) as usize
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{image::PreprocessConfig, testing::shared};

    /// Writes bits, the lowest first.
    #[derive(Default)]
    struct BitWriter {
        bytes: Vec<u8>,
        length: usize,
    }

    impl BitWriter {
        fn put(&mut self, value: usize, count: usize) {
            for place in 0..count {
                if self.length.is_multiple_of(8) {
                    self.bytes.push(0);
                }
                *self.bytes.last_mut().unwrap() |=
                    ((value >> place & 1) as u8) << (self.length % 8);
                self.length += 1;
            }
        }

        /// A code of one symbol.
        fn single(&mut self, symbol: usize) {
            self.put(0b101, 3);
            self.put(symbol, 8);
        }

        /// A code of 2048 symbols, all of eleven bits, which takes few itself.
        fn large(&mut self) {
            self.put(0, 1);
            // The lengths of lengths up to that of 11, which is the only one.
            self.put(15 - 4, 4);
            for index in 0..15 {
                self.put(usize::from(index == 14), 3);
            }
            // That many lengths follow, each of no bits.
            self.put(1, 1);
            self.put(5, 3);
            self.put(2048 - 2, 12);
        }
    }

    /// The codes of a picture of 4 x 4 pixels with this many groups, each with one large code.
    fn groups(count: usize) -> Vec<u8> {
        let mut bits = BitWriter::default();
        // No transforms; a cache of 2048 colours; groups for blocks of 4 x 4 pixels.
        bits.put(0, 1);
        bits.put(1, 1);
        bits.put(11, 4);
        bits.put(1, 1);
        bits.put(0, 3);
        // The image of the groups: a single pixel.
        bits.put(0, 1);
        bits.single((count - 1) & 255);
        bits.single((count - 1) >> 8);
        for _ in 0..3 {
            bits.single(0);
        }
        for _ in 0..count {
            bits.large();
            for _ in 0..4 {
                bits.single(0);
            }
        }
        bits.bytes
    }

    fn reader<'a>(data: &'a [u8], budget: &'a Budget) -> CodeReader<'a> {
        CodeReader {
            bits: Bits { data, position: 0 },
            bytes: 0,
            budget,
        }
    }

    #[test]
    fn the_tables_of_many_groups_are_counted_and_bounded() {
        let budget = Budget::new(&PreprocessConfig::default());
        let few = groups(10);
        let mut all = reader(&few, &budget);
        assert!(all.read(4, 4).is_some());
        // A table of 1024 entries, and two nodes for each symbol.
        assert_eq!(all.bytes, 320 + 10 * (320 + 4 * 1024 + 2 * 16 * 2048));
        assert!(!exceed_memory(&few, 4, 4, &budget));

        let many = groups(3000);
        assert!(many.len() < 60_000, "{} bytes", many.len());
        assert!(exceed_memory(&many, 4, 4, &budget));
    }

    #[test]
    fn the_codes_of_ordinary_files_are_read_to_their_end() {
        let budget = Budget::new(&PreprocessConfig::default());
        let photo = image::open(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/data/tiny_33x47.png"
        ))
        .unwrap()
        .to_rgba8();
        let mut file = Vec::new();
        image::codecs::webp::WebPEncoder::new_lossless(&mut file)
            .encode(
                &photo,
                photo.width(),
                photo.height(),
                image::ExtendedColorType::Rgba8,
            )
            .unwrap();
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/seeds/image");
        let seeds = ["lossless.webp", "lossless_small.webp", "lossy_alpha.webp"]
            .map(|name| std::fs::read(folder.join(name)).unwrap());
        let mut files = [vec![file], seeds.to_vec()].concat();
        // One with many groups.
        if let Some(folder) = shared("golden/images") {
            files.push(std::fs::read(folder.join("sunflower_lossless.webp")).unwrap());
        }
        for file in files {
            let picture = super::super::picture(&file).unwrap();
            let data = picture.image.codes.unwrap();
            let mut all = reader(data, &budget);
            assert!(all.read(picture.width, picture.height).is_some());
            assert!(
                all.bytes > 0 && all.bytes < (64 * file.len() as u64).max(1 << 20),
                "{} bytes of tables",
                all.bytes
            );
        }
    }
}
