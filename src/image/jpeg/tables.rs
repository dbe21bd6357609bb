//! The tables that segments between the scans define.

use super::{damaged, huffman::HuffmanCodes, marker, standard, zigzag::ZIGZAG};
use crate::image::ImageError;

/// The values that a block's coefficients are multiplied by, row by row.
pub(super) type Quantization = [u16; 64];

/// Tables by destination: each segment says into which of four places its table goes, and the frame
/// and scan headers refer to these places.
#[derive(Clone, Default)]
pub(super) struct Tables {
    pub quantization: [Option<Quantization>; 4],
    pub dc: [Option<HuffmanCodes>; 4],
    pub ac: [Option<HuffmanCodes>; 4],
    pub conditioning: Conditioning,
    /// MCUs between restart markers; 0 means that there are none.
    pub restart_interval: usize,
}

/// What the arithmetic decoder's choice of statistics depends on (B.2.4.3), by destination.
#[derive(Clone)]
pub(super) struct Conditioning {
    /// The logarithms of the bounds of small differences between DC coefficients.
    pub dc: [(u8, u8); 4],
    /// The last AC coefficient, in zigzag order, that counts as one of low frequency.
    pub ac: [u8; 4],
}

impl Default for Conditioning {
    fn default() -> Self {
        Self {
            dc: [(0, 1); 4],
            ac: [5; 4],
        }
    }
}

impl Tables {
    /// Reads a segment, if it is one that defines tables.
    pub fn read(&mut self, code: u8, body: &[u8]) -> Result<(), ImageError> {
        let (name, read) = match code {
            marker::DHT => ("Huffman", self.read_huffman(body)),
            marker::DQT => ("quantization", self.read_quantization(body)),
            marker::DAC => ("conditioning", self.read_conditioning(body)),
            marker::DRI => ("restart interval", self.read_restart_interval(body)),
            _ => return Ok(()),
        };
        read.ok_or_else(|| damaged(&format!("its {name} table is malformed")))
    }

    /// Defines the codes that frames of Motion JPEG use without having them (K.3), where the file
    /// has none.
    pub fn add_standard_codes(&mut self) {
        for (destination, (dc, ac)) in standard::codes().into_iter().enumerate() {
            self.dc[destination].get_or_insert(dc);
            self.ac[destination].get_or_insert(ac);
        }
    }

    fn read_restart_interval(&mut self, body: &[u8]) -> Option<()> {
        self.restart_interval = u16::from_be_bytes(body.try_into().ok()?).into();
        Some(())
    }

    /// Reads a segment of quantization tables (B.2.4.1): each begins with its precision (8 or 16
    /// bits) and its destination, four bits each. Its values are in zigzag order.
    fn read_quantization(&mut self, mut body: &[u8]) -> Option<()> {
        while let [precision_and_destination, rest @ ..] = body {
            let destination = usize::from(precision_and_destination & 15);
            let entry = self.quantization.get_mut(destination)?;

            let mut table = [0; 64];
            let rest = match precision_and_destination >> 4 {
                0 => {
                    let (bytes, rest) = rest.split_first_chunk::<64>()?;
                    for (place, byte) in ZIGZAG.iter().zip(bytes) {
                        table[usize::from(*place)] = u16::from(*byte);
                    }
                    rest
                }
                1 => {
                    let (bytes, rest) = rest.split_first_chunk::<128>()?;
                    for (place, bytes) in ZIGZAG.iter().zip(bytes.as_chunks().0) {
                        table[usize::from(*place)] = u16::from_be_bytes(*bytes);
                    }
                    rest
                }
                _ => return None,
            };

            *entry = Some(table);
            body = rest;
        }
        Some(())
    }

    /// Reads a segment of Huffman tables (B.2.4.2): each begins with its class (0 for DC, 1 for AC)
    /// and its destination, four bits each.
    fn read_huffman(&mut self, mut body: &[u8]) -> Option<()> {
        while let [class_and_destination, rest @ ..] = body {
            let (counts, rest) = rest.split_first_chunk::<16>()?;
            let symbol_count = counts.iter().map(|count| usize::from(*count)).sum();
            let (symbols, rest) = rest.split_at_checked(symbol_count)?;
            let codes = HuffmanCodes::new(counts, symbols)?;

            let destination = usize::from(class_and_destination & 15);
            let class = match class_and_destination >> 4 {
                0 => &mut self.dc,
                1 => &mut self.ac,
                _ => return None,
            };
            *class.get_mut(destination)? = Some(codes);
            body = rest;
        }
        Some(())
    }

    /// Reads a segment of conditioning values (B.2.4.3): each has its class and destination, four
    /// bits each, and a byte.
    fn read_conditioning(&mut self, body: &[u8]) -> Option<()> {
        let (entries, []) = body.as_chunks::<2>() else {
            return None;
        };
        for [class_and_destination, value] in entries {
            let destination = usize::from(class_and_destination & 15);
            match class_and_destination >> 4 {
                0 => {
                    let (lower, upper) = (value & 15, value >> 4);
                    if lower > upper {
                        return None;
                    }
                    *self.conditioning.dc.get_mut(destination)? = (lower, upper);
                }
                1 => *self.conditioning.ac.get_mut(destination)? = *value,
                _ => return None,
            }
        }
        Some(())
    }
}
