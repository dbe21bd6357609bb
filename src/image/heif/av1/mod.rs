//! AV1 pictures, as in AVIF files, decoded in a process of its own.

#[cfg(unix)]
mod child;
mod header;
#[cfg(unix)]
mod process;
#[cfg(all(test, unix))]
pub(in crate::image) mod tests;
#[cfg(unix)]
mod wire;

use heifer::heifer_hevc_dec::recon::Frame;

pub(super) use self::header::Header;
#[cfg(unix)]
pub use self::{child::decode_av1, process::decode_av1_with};
use super::{
    super::{ImageError, budget::Budget},
    errors::Named,
};

/// The time of decoding one pixel of a frame, and one byte, in nanoseconds.
const NANOSECONDS_PER_PIXEL: u64 = 60;
const NANOSECONDS_PER_BYTE: u64 = 120;

impl Header {
    /// Reads the headers of a picture's data.
    pub(super) fn of(data: &[u8], named: Named) -> Result<Self, ImageError> {
        Self::read(data).map_err(|error| named.damaged(error.reason()))
    }
}

/// The bytes that decoding such a picture of `pixels` takes, in this process and in the other one.
pub(super) fn memory(header: &Header, pixels: u64) -> u64 {
    header.decoder_bytes(pixels) + 2 * header.sequence.samples(pixels)
}

/// The time of decoding such pictures, which have so many pixels and bytes in all.
pub(super) fn nanoseconds(header: &Header, pixels: u64, bytes: usize) -> u64 {
    NANOSECONDS_PER_PIXEL * pixels * header.frames as u64 + NANOSECONDS_PER_BYTE * bytes as u64
}

/// Decodes a picture that is to have `size`.
#[cfg(unix)]
pub(super) fn decode(
    data: &[u8],
    size: (u32, u32),
    named: Named,
    budget: &Budget,
) -> Result<Frame, ImageError> {
    use self::{
        process::Failure,
        wire::{Outcome, Request},
    };
    use crate::{
        image::{guard::is_new, outline::area},
        metrics,
    };

    /// What the process has beside the picture: its program, stacks, and what is not freed.
    const BESIDE: u64 = 64 << 20;

    let header = Header::of(data, named)?;
    let pixels = area(size.0, size.1);
    if header.sequence.max_pixels() < pixels {
        return Err(named.damaged("its picture is smaller than the container says"));
    }
    let too_large = || named.damaged("its picture has too many bytes");
    let request = Request {
        length: u32::try_from(data.len()).map_err(|_| too_large())?,
        max_pixels: u32::try_from(pixels).map_err(|_| too_large())?,
        memory: 2 * header.decoder_bytes(pixels) + 2 * data.len() as u64 + BESIDE,
    };
    // The budget is CPU time, and the process may have to share its core: it gets twice that.
    let timeout = budget.left().saturating_mul(2);
    let decoded = process::decode(data, request, timeout);
    let decoded = decoded.map_err(|failure| match failure {
        Failure::NoProgram => ImageError::NoDecoder {
            format: named.format,
            reason: "this program is not configured to start one".to_owned(),
        },
        Failure::NotStarted(error) => ImageError::NoDecoder {
            format: named.format,
            reason: format!("it can't be started: {error}"),
        },
        Failure::Crashed => {
            metrics::decoder_panicked();
            if is_new(Some(named.format), "av1") {
                tracing::warn!(
                    "a process that decodes AV1 crashed and its image was rejected; further \
                     crashes are only counted"
                );
            }
            ImageError::DecoderPanic
        }
        Failure::TookTooLong => budget.timeout_error(),
        Failure::Refused(Outcome::Unsupported) => {
            named.unsupported("its picture uses an AV1 feature that the decoder does not support")
        }
        Failure::Refused(Outcome::Nothing) => named.damaged("it shows no picture"),
        Failure::Refused(Outcome::Damaged | Outcome::Decoded) => {
            named.damaged("the data of its picture is damaged")
        }
    })?;
    budget.charge(decoded.took);
    budget.check()?;
    Ok(Frame {
        full_range: header.sequence.full_range,
        matrix_coeffs: header.sequence.matrix,
        ..decoded.frame
    })
}

/// There is no such process on this system.
#[cfg(not(unix))]
pub(super) fn decode(
    _: &[u8],
    _: (u32, u32),
    named: Named,
    _: &Budget,
) -> Result<Frame, ImageError> {
    Err(ImageError::NoDecoder {
        format: named.format,
        reason: "this operating system is not supported".to_owned(),
    })
}
