//! The frame header, which describes the picture and its colour components (ITU-T T.81, B.2.2).

use super::{damaged, marker, unsupported};
use crate::image::ImageError;

/// What the frame header says.
pub(super) struct Frame {
    pub width: u32,
    pub height: u32,
    pub progressive: bool,
    /// Whether the coefficients are coded arithmetically, not by Huffman codes.
    pub arithmetic: bool,
    pub components: Vec<Component>,
    /// The largest sampling factors of all components.
    pub h_max: usize,
    pub v_max: usize,
}

/// One colour component. Its sampling factors tell how many samples it has for each `h_max` x
/// `v_max` pixels.
pub(super) struct Component {
    pub id: u8,
    /// Horizontal and vertical sampling factors, from 1 to 4.
    pub horizontal: usize,
    pub vertical: usize,
    /// The destination of its quantization table.
    pub quantization: usize,
    /// The size in samples.
    pub width: usize,
    pub height: usize,
    /// The size in blocks of 8 x 8 samples.
    pub blocks_wide: usize,
    pub blocks_high: usize,
}

impl Frame {
    /// Reads a frame header that began with this marker code.
    pub fn read(code: u8, body: &[u8]) -> Result<Self, ImageError> {
        let (progressive, arithmetic) = match code {
            marker::SOF0 | marker::SOF1 => (false, false),
            marker::SOF2 => (true, false),
            marker::SOF9 => (false, true),
            marker::SOF10 => (true, true),
            marker::SOF3 => return Err(unsupported("it is losslessly compressed")),
            _ => return Err(unsupported("it is hierarchical or losslessly compressed")),
        };

        let &[precision, h1, h0, w1, w0, count, ref entries @ ..] = body else {
            return Err(damaged("its frame header is too short"));
        };
        if precision != 8 {
            return Err(unsupported(&format!("it has {precision} bits per channel")));
        }
        if entries.len() != 3 * usize::from(count) {
            return Err(damaged("its frame header has the wrong length"));
        }
        if !matches!(count, 1 | 3 | 4) {
            return Err(unsupported(&format!(
                "it has {count} channels, not 1, 3 or 4"
            )));
        }

        let width = u16::from_be_bytes([w1, w0]);
        let height = u16::from_be_bytes([h1, h0]);
        let entries: Vec<_> = entries
            .chunks_exact(3)
            .map(|entry| {
                let [h, v] = [entry[1] >> 4, entry[1] & 15].map(usize::from);
                (entry[0], h, v, usize::from(entry[2]))
            })
            .collect();

        let valid = 1..=4;
        if !entries
            .iter()
            .all(|(_, h, v, _)| valid.contains(h) && valid.contains(v))
        {
            return Err(damaged(
                "the sampling factor of a channel is not from 1 to 4",
            ));
        }

        // The blocks of a single component follow each other whatever its factors (A.2.2). In
        // progressive files the factors have an effect on what is estimated of missing scans.
        let single = entries.len() == 1 && !progressive;
        let h_max = entries.iter().map(|entry| entry.1).max().unwrap_or(1);
        let v_max = entries.iter().map(|entry| entry.2).max().unwrap_or(1);
        let (h_max, v_max) = if single { (1, 1) } else { (h_max, v_max) };
        let mut components = Vec::with_capacity(entries.len());
        for (id, horizontal, vertical, quantization) in entries {
            let (horizontal, vertical) = if single {
                (1, 1)
            } else {
                (horizontal, vertical)
            };
            if h_max % horizontal != 0 || v_max % vertical != 0 {
                return Err(unsupported(
                    "the resolutions of its channels are no multiples of each other",
                ));
            }
            let width = (usize::from(width) * horizontal).div_ceil(h_max);
            let height = (usize::from(height) * vertical).div_ceil(v_max);
            components.push(Component {
                id,
                horizontal,
                vertical,
                quantization,
                width,
                height,
                blocks_wide: width.div_ceil(8),
                blocks_high: height.div_ceil(8),
            });
        }

        Ok(Self {
            width: width.into(),
            height: height.into(),
            progressive,
            arithmetic,
            components,
            h_max,
            v_max,
        })
    }

    /// MCUs of all components in a row of them. Such a row is called a strip.
    pub fn mcus_per_strip(&self) -> usize {
        (self.width as usize).div_ceil(8 * self.h_max)
    }

    /// Rows of MCUs of all components.
    pub fn strips(&self) -> usize {
        (self.height as usize).div_ceil(8 * self.v_max)
    }

    /// The blocks of all components that the picture covers.
    pub fn blocks(&self) -> u64 {
        self.components
            .iter()
            .map(|component| component.blocks_wide as u64 * component.blocks_high as u64)
            .sum()
    }
}
