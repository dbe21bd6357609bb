//! The tables that the segments before the scan define.

use super::huffman::{AcTable, DcTable, HuffmanCodes};
use crate::image::jpeg::{
    header::{Header, segments},
    marker,
};

/// Tables by destination: each segment says into which of four places its table goes, and the frame
/// and scan headers refer to these places.
#[derive(Default)]
pub(super) struct Tables {
    /// In zigzag order.
    pub quantization: [Option<[f32; 64]>; 4],
    pub dc: [Option<DcTable>; 4],
    pub ac: [Option<AcTable>; 4],
    /// MCUs between restart markers; 0 means that there are none.
    pub restart_interval: usize,
    /// The body of the scan header.
    pub scan_header: Vec<u8>,
}

impl Tables {
    /// `None` if a table is malformed.
    pub fn read(encoded: &[u8], header: &Header) -> Option<Self> {
        let mut tables = Self::default();
        for segment in segments(&encoded[..header.scan]) {
            let segment = segment.ok()?;
            match segment.marker {
                marker::DHT => tables.read_huffman(segment.body)?,
                marker::DQT => tables.read_quantization(segment.body)?,
                marker::DRI => {
                    let interval = segment.body.try_into().ok()?;
                    tables.restart_interval = u16::from_be_bytes(interval).into();
                }
                marker::SOS => tables.scan_header = segment.body.to_vec(),
                _ => {}
            }
        }
        Some(tables)
    }

    /// Reads a segment of quantization tables (B.2.4.1): each begins with its precision (8 or 16
    /// bits) and its destination, four bits each.
    fn read_quantization(&mut self, mut body: &[u8]) -> Option<()> {
        while let [precision_and_destination, rest @ ..] = body {
            let destination = usize::from(precision_and_destination & 15);
            let entry = self.quantization.get_mut(destination)?;

            let (table, rest) = match precision_and_destination >> 4 {
                0 => {
                    let (bytes, rest) = rest.split_first_chunk::<64>()?;
                    (bytes.map(f32::from), rest)
                }
                1 => {
                    let (bytes, rest) = rest.split_first_chunk::<128>()?;
                    let table = std::array::from_fn(|index| {
                        u16::from_be_bytes([bytes[2 * index], bytes[2 * index + 1]]).into()
                    });
                    (table, rest)
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
            match class_and_destination >> 4 {
                0 => *self.dc.get_mut(destination)? = Some(DcTable::new(codes)?),
                1 => *self.ac.get_mut(destination)? = Some(AcTable::new(codes)),
                _ => return None,
            }
            body = rest;
        }
        Some(())
    }
}
