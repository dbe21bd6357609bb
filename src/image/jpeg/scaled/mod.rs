//! Large JPEGs at a half, a quarter or an eighth of their size, scaled within the inverse
//! transform.
//!
//! Most of a large photo's time goes into its Huffman codes. The higher frequencies, which a small
//! picture can't show, are passed over several codes at a time. Sequential files with the usual
//! sampling of colours can be read so.

mod bits;
mod huffman;
mod transform;

use bits::Bits;
use huffman::{AcTable, Codes, DcTable};
use transform::Transform;

use super::{Header, Layout, Pixels, resize_buffer, segments};

/// How much a JPEG is scaled down while it is decoded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Scale {
    Half,
    Quarter,
    Eighth,
}

impl Scale {
    const SMALLEST_FIRST: [Self; 3] = [Self::Eighth, Self::Quarter, Self::Half];

    fn divisor(self) -> u32 {
        match self {
            Self::Half => 2,
            Self::Quarter => 4,
            Self::Eighth => 8,
        }
    }

    /// The strongest that leaves the shorter side at least `least` pixels.
    pub fn choose(header: &Header, least: u32) -> Option<Self> {
        let shorter = header.width.min(header.height);
        Self::SMALLEST_FIRST
            .into_iter()
            .find(|scale| shorter / scale.divisor() >= least)
    }

    /// A side of the image after scaling.
    fn of(self, side: u32) -> u32 {
        side.div_ceil(self.divisor())
    }

    /// The side of a block of 8 x 8 pixels after scaling.
    fn block(self) -> usize {
        8 / self.divisor() as usize
    }
}

/// Decodes into `pixels`, whose layout and orientation have been set; sets size and data. Where it
/// can't, because the file is of another kind or damaged, `pixels` are unspecified and the exact
/// decoder is to judge the file.
pub(super) fn decode(
    pixels: &mut Pixels,
    encoded: &[u8],
    header: &Header,
    scale: Scale,
) -> Option<()> {
    if header.progressive {
        return None;
    }
    let tables = Tables::read(encoded, header)?;
    let mut scan = Scan::new(encoded, header, &tables, scale)?;
    (pixels.width, pixels.height) = (scale.of(header.width), scale.of(header.height));
    let (width, channels) = (pixels.width as usize, pixels.layout.channels());
    resize_buffer(&mut pixels.data, width * pixels.height as usize * channels);
    for rows in pixels.data.chunks_mut(width * channels * scan.rows) {
        scan.read_strip()?;
        for (y, row) in rows.chunks_exact_mut(width * channels).enumerate() {
            let plane = |channel: usize| &scan.channels[channel].plane[y * scan.stride..][..width];
            match pixels.layout {
                Layout::Gray => row
                    .iter_mut()
                    .zip(plane(0))
                    .for_each(|(pixel, gray)| *pixel = round(*gray)),
                _ if header.stores_rgb() => {
                    interleave(row, [plane(0), plane(1), plane(2)], |rgb| rgb)
                }
                _ => interleave(row, [plane(0), plane(1), plane(2)], rgb_of_ycbcr),
            }
        }
    }
    scan.ends().then_some(())
}

fn interleave(row: &mut [u8], [a, b, c]: [&[f32]; 3], rgb: impl Fn([f32; 3]) -> [f32; 3]) {
    for (((pixel, a), b), c) in row.as_chunks_mut::<3>().0.iter_mut().zip(a).zip(b).zip(c) {
        *pixel = rgb([*a, *b, *c]).map(round);
    }
}

/// ITU-T T.871, section 7.
fn rgb_of_ycbcr([y, cb, cr]: [f32; 3]) -> [f32; 3] {
    let (cb, cr) = (cb - 128.0, cr - 128.0);
    [
        y + 1.402 * cr,
        y - 0.344_136_3 * cb - 0.714_136_3 * cr,
        y + 1.772 * cb,
    ]
}

/// Rounds to what a byte holds, by an addition after which the last bits are the whole number:
/// compilers can't make vector code of the usual conversion.
fn round(value: f32) -> u8 {
    const WHOLE: f32 = (1 << 23) as f32;
    (value.clamp(0.0, 255.0) + WHOLE).to_bits() as u8
}

/// What the segments before the scan define.
#[derive(Default)]
struct Tables {
    quantization: [Option<[f32; 64]>; 4],
    dc: [Option<DcTable>; 4],
    ac: [Option<AcTable>; 4],
    restart_interval: usize,
    /// The header of the scan.
    scan: Vec<u8>,
}

impl Tables {
    fn read(encoded: &[u8], header: &Header) -> Option<Self> {
        let mut tables = Self::default();
        for segment in segments(&encoded[..header.scan]) {
            let segment = segment.ok()?;
            match segment.marker {
                0xc4 => tables.read_codes(segment.body)?,
                0xdb => tables.read_quantization(segment.body)?,
                0xdd => {
                    tables.restart_interval =
                        u16::from_be_bytes(segment.body.try_into().ok()?).into()
                }
                0xda => tables.scan = segment.body.to_vec(),
                _ => {}
            }
        }
        Some(tables)
    }

    fn read_quantization(&mut self, mut body: &[u8]) -> Option<()> {
        while let [kind, rest @ ..] = body {
            let entry = self.quantization.get_mut(usize::from(kind & 15))?;
            let bytes = match kind >> 4 {
                0 => 64,
                1 => 128,
                _ => return None,
            };
            let (table, rest) = rest.split_at_checked(bytes)?;
            *entry = Some(std::array::from_fn(|index| match bytes {
                64 => table[index].into(),
                _ => u16::from_be_bytes([table[2 * index], table[2 * index + 1]]).into(),
            }));
            body = rest;
        }
        Some(())
    }

    fn read_codes(&mut self, mut body: &[u8]) -> Option<()> {
        while let [kind, rest @ ..] = body {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let (symbols, rest) =
                rest.split_at_checked(counts.iter().map(|count| usize::from(*count)).sum())?;
            let codes = Codes::new(counts, symbols)?;
            let place = usize::from(kind & 15);
            match kind >> 4 {
                0 => *self.dc.get_mut(place)? = Some(DcTable::new(codes)?),
                1 => *self.ac.get_mut(place)? = Some(AcTable::new(codes)),
                _ => return None,
            }
            body = rest;
        }
        Some(())
    }
}

/// One colour of the picture, a strip of MCUs high.
struct Channel<'a> {
    /// Blocks in an MCU, in both directions.
    horizontal: usize,
    vertical: usize,
    quantization: &'a [f32; 64],
    dc: &'a DcTable,
    ac: &'a AcTable,
    transform: Transform,
    /// The DC coefficient of the block before, not yet dequantised.
    predictor: i32,
    plane: Vec<f32>,
}

/// The one scan of a sequential file. An MCU, minimum coded unit, is what some blocks of each
/// channel show together.
struct Scan<'a> {
    bits: Bits<'a>,
    channels: Vec<Channel<'a>>,
    /// MCUs in a row of the picture.
    mcus: usize,
    /// The rows of pixels that a strip of MCUs has after scaling, and the distance between them in
    /// the planes.
    rows: usize,
    stride: usize,
    restart_interval: usize,
    /// How many MCUs are to come before the next restart marker.
    until_restart: usize,
    restarts: u8,
}

impl<'a> Scan<'a> {
    fn new(encoded: &'a [u8], header: &Header, tables: &'a Tables, scale: Scale) -> Option<Self> {
        let (count, entries) = tables.scan.split_first()?;
        let (entries, selection) = entries.split_at_checked(2 * usize::from(*count))?;
        if usize::from(*count) != header.components.len() || selection != [0, 63, 0] {
            return None;
        }
        // The blocks of a single channel follow each other whatever its sampling factors.
        let single = header.components.len() == 1;
        let sampling = header.components.iter().map(|component| match single {
            true => (1, 1),
            false => (
                usize::from(component.horizontal),
                usize::from(component.vertical),
            ),
        });
        let sampling: Vec<_> = sampling.collect();
        let (columns, lines) = sampling.iter().fold((1, 1), |most, each| {
            (most.0.max(each.0), most.1.max(each.1))
        });
        let mcus = (header.width as usize).div_ceil(8 * columns);
        let (stride, rows) = (mcus * columns * scale.block(), lines * scale.block());
        let channels = header
            .components
            .iter()
            .zip(entries.as_chunks().0)
            .zip(sampling);
        let channels = channels.map(|((component, [id, codes]), (horizontal, vertical))| {
            if component.id != *id || columns % horizontal != 0 || lines % vertical != 0 {
                return None;
            }
            // Channels of fewer samples are scaled down less, so that all planes get the same size.
            let side = |most: usize, own: usize| scale.block() * most / own;
            Some(Channel {
                horizontal,
                vertical,
                quantization: tables
                    .quantization
                    .get(usize::from(component.quantization))?
                    .as_ref()?,
                dc: tables.dc.get(usize::from(codes >> 4))?.as_ref()?,
                ac: tables.ac.get(usize::from(codes & 15))?.as_ref()?,
                transform: Transform::new(side(columns, horizontal), side(lines, vertical))?,
                predictor: 0,
                plane: vec![0.0; stride * rows],
            })
        });
        Some(Self {
            bits: Bits::new(&encoded[header.scan..]),
            channels: channels.collect::<Option<_>>()?,
            mcus,
            rows,
            stride,
            restart_interval: tables.restart_interval,
            until_restart: tables.restart_interval,
            restarts: 0,
        })
    }

    /// Reads the next row of MCUs into the planes.
    fn read_strip(&mut self) -> Option<()> {
        let mut block = [0.0; 64];
        for mcu in 0..self.mcus {
            if self.restart_interval != 0 {
                if self.until_restart == 0 {
                    self.restart()?;
                }
                self.until_restart -= 1;
            }
            for channel in &mut self.channels {
                let Transform {
                    width,
                    height,
                    last,
                    ..
                } = channel.transform;
                for (row, column) in
                    (0..channel.vertical).flat_map(|y| (0..channel.horizontal).map(move |x| (y, x)))
                {
                    block[..=last].fill(0.0);
                    channel.predictor = channel
                        .predictor
                        .wrapping_add(channel.dc.difference(&mut self.bits)?);
                    let flat =
                        !channel
                            .ac
                            .read(&mut self.bits, channel.quantization, last, &mut block)?;
                    // 128 is what the standard takes from every pixel, 8 the DC coefficient's
                    // factor.
                    block[0] = channel.predictor as f32 * channel.quantization[0] + 128.0 * 8.0;
                    let place =
                        row * height * self.stride + (mcu * channel.horizontal + column) * width;
                    channel
                        .transform
                        .apply(&block, flat, &mut channel.plane[place..], self.stride);
                }
            }
        }
        (!self.bits.overrun()).then_some(())
    }

    fn restart(&mut self) -> Option<()> {
        if self.bits.marker()? != 0xd0 + self.restarts {
            return None;
        }
        self.restarts = (self.restarts + 1) % 8;
        self.until_restart = self.restart_interval;
        self.channels
            .iter_mut()
            .for_each(|channel| channel.predictor = 0);
        Some(())
    }

    /// Whether the picture ends where the last MCU does.
    fn ends(mut self) -> bool {
        self.bits.marker() == Some(0xd9)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_to_the_nearest_that_a_byte_holds() {
        for (value, byte) in [
            (-1e9, 0),
            (-0.6, 0),
            (0.49, 0),
            (0.51, 1),
            (1.0, 1),
            (254.4, 254),
            (254.6, 255),
            (1e9, 255),
        ] {
            assert_eq!(round(value), byte, "{value}");
        }
    }
}
