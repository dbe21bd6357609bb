//! JPEG files, read by a decoder whose pixels are those of libjpeg-turbo, and so of Pillow, to the
//! bit. It reads sequential and progressive files of 8 bits, with one scan or several, coded by
//! Huffman codes or arithmetically.
//!
//! A file is read in four steps:
//!
//! - `header` reads the segments before the first scan: the frame, the tables and the colours;
//! - `scan` and the entropy decoders (`sequential`, `progressive`, `arithmetic`) turn the data into
//!   blocks of coefficients, and `picture` passes them on, either at once (`strips`) or, where
//!   several scans hold parts of the same block, by way of all `coefficients` (`scans`);
//! - `full` or [`scaled`] turn the blocks of a strip into samples, by an inverse cosine transform;
//! - they enlarge subsampled components (`upsample`) and convert `colour`.
//!
//! Where other threads are idle, a picture is cut into `bands` that they help with: they get the
//! blocks of a band on a `tape`, or read those of its restart `intervals` themselves.
//!
//! With the feature `turbojpeg`, libjpeg-turbo decodes first, and this decoder only what that
//! rejects.
//!
//! # Terms (ITU-T T.81)
//!
//! - **Block**: 8 x 8 samples of one component, the unit of the cosine transform (A.3.3).
//! - **MCU**, minimum coded unit: the smallest group of blocks that is coded together. With several
//!   components it holds, of each component, as many blocks as its sampling factors multiply to, so
//!   that all of them cover the same area of the picture; with one component it is a single block
//!   (A.2).
//! - **Strip**: a row of MCUs of all components across the width of the picture.
//! - **Scan**: one pass over the data of some or all components. Most sequential files have a single
//!   scan with all components interleaved MCU by MCU, row by row (A.2.3, B.2.3).
//! - **Restart interval**: a number of MCUs after which the entropy coder starts afresh: the codes
//!   are padded to a whole byte, a restart marker RST0 to RST7 follows, and the predictions of the
//!   DC coefficients are 0 again (B.2.4.4, E.2.4).
//! - **Coefficient order**: a block's coefficients are coded in zigzag order, from low to high
//!   frequencies in both directions, so that those which are mostly 0 form long runs at the end
//!   (A.3.6, figure A.6). The first is the DC coefficient, all others are AC coefficients.

mod ac_table;
mod arithmetic;
mod bands;
mod bits;
mod coefficients;
mod colour;
mod dc_table;
mod embedded;
mod frame;
mod full;
mod header;
mod huffman;
mod intervals;
mod marker;
mod outline;
mod output;
mod picture;
mod progressive;
mod recompress;
mod scaled;
mod scaled_transform;
mod scan;
mod scans;
mod segment;
mod sequential;
mod smoothing;
mod standard;
mod strips;
mod tables;
mod tape;
#[cfg(test)]
mod tests;
mod transform;
#[cfg(feature = "turbojpeg")]
mod turbo;
mod upsample;
mod work;
mod zigzag;

pub(super) use self::recompress::recompress;
use self::{
    colour::Colours,
    full::FullSize,
    header::Header,
    output::{Picture, Region, Request},
    scaled::{Scale, Scaled},
};
pub(super) use self::{
    embedded::{ExpectedFrame, decode_embedded},
    outline::outline,
};
use super::{
    Exif, Geometry, ImageError, ImageFormat,
    budget::Budget,
    crop_plan::CropPlan,
    orientation::Orientation,
    pixels::Pixels,
    resize::Resizer,
    rows::{Decoded, Rows},
    task_group::Help,
};

/// What is needed of a picture, and who may help with it.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Needed<'a> {
    /// The picture may be decoded at reduced scale if its shorter side then still has at least this
    /// many pixels. `None` decodes at full size.
    pub min_shorter_side: Option<u32>,
    /// Only the pixels that this crop depends on are needed; all others are unspecified. `None`
    /// decodes all pixels.
    pub crop: Option<&'a Geometry>,
    /// Who may help.
    pub help: Option<Help<'a>>,
}

/// Decodes a JPEG file into `pixels`, or for `resizer`.
pub(super) fn decode(
    pixels: &mut Pixels,
    encoded: &[u8],
    budget: &Budget,
    needed: Needed<'_>,
    resizer: Option<&mut Resizer>,
) -> Result<Decoded, ImageError> {
    let config = budget.config();
    let header = Header::read(encoded)?;
    config.check_size(header.frame.width, header.frame.height)?;
    header.check_length(encoded)?;

    pixels.orientation = match (config.exif, header.exif) {
        (Exif::Apply, Some(block)) => Orientation::from_exif_block(block),
        _ => Orientation::default(),
    };
    let colours = header.colours();
    let scale = needed
        .min_shorter_side
        .and_then(|min| Scale::choose(&header.frame, min));
    let size = scale.map_or([header.frame.width, header.frame.height], |scale| {
        scale.size(&header.frame)
    });
    describe(pixels, &header, colours, size);
    let region = region(pixels, needed.crop)?;

    // An error of libjpeg-turbo is not reported, so that builds with and without it reject the same
    // files with the same messages.
    #[cfg(feature = "turbojpeg")]
    if scale.is_none() && header.frame.components.len() < 4 {
        // It has no limit of its own, and can't be interrupted.
        work::check_work(encoded, &header)?;
        let row = pixels.width as usize * pixels.layout.channels();
        super::pixels::resize_buffer(&mut pixels.data, row * pixels.height as usize);
        if turbo::decode(pixels, encoded).is_ok() {
            budget.check()?;
            return Ok(Decoded::Pixels);
        }
    }

    let (mut rows, decoded) = Rows::of(pixels, needed.crop, resizer)?;
    let request = Request {
        encoded,
        budget,
        region,
        help: needed.help,
    };
    match scale {
        Some(scale) => picture::decode(
            header,
            &request,
            &mut rows,
            move |picture: &Picture, region| Scaled::new(picture, colours, scale, region),
        ),
        None => picture::decode(
            header,
            &request,
            &mut rows,
            move |picture: &Picture, region| FullSize::new(picture, colours, region),
        ),
    }?;
    rows.finish(budget)?;
    Ok(decoded)
}

/// The part of `pixels`, whose size and orientation are known, that the crop depends on.
fn region(pixels: &Pixels, crop: Option<&Geometry>) -> Result<Region, ImageError> {
    let &Pixels {
        width,
        height,
        orientation,
        ..
    } = pixels;
    let whole = Region::whole(width, height);
    let Some(geometry) = crop else {
        return Ok(whole);
    };
    let (columns, rows) = CropPlan::new(width, height, orientation, geometry)?.region();
    let region = Region {
        columns: columns.start as usize..columns.end as usize,
        rows: rows.start as usize..rows.end as usize,
    };
    let is_empty = region.columns.is_empty() || region.rows.is_empty();
    Ok(if is_empty { whole } else { region })
}

/// Sets the size and the layout of `pixels`.
fn describe(pixels: &mut Pixels, header: &Header<'_>, colours: Colours, size: [u32; 2]) {
    [pixels.width, pixels.height] = size;
    pixels.layout = colours.layout(header.frame.components.len());
}

fn truncated(encoded: &[u8]) -> ImageError {
    ImageError::Truncated {
        format: ImageFormat::Jpeg,
        bytes: encoded.len(),
    }
}

fn damaged(reason: &str) -> ImageError {
    ImageError::Damaged {
        format: ImageFormat::Jpeg,
        reason: reason.to_owned(),
    }
}

fn unsupported(reason: &str) -> ImageError {
    ImageError::UnsupportedVariant {
        format: ImageFormat::Jpeg,
        reason: reason.to_owned(),
    }
}
