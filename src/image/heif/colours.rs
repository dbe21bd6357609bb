//! Determines how a HEIF picture codes its colours, and converts its samples to RGBA.

use heifer::{
    color::{ColorParams, frame_to_rgba_into},
    heifer_hevc_dec::recon::Frame,
    heifer_isobmff::{
        HeifFile, ItemId,
        boxes::{ColorInfo, Property},
    },
};

use super::{super::ImageError, errors::Named};

/// How a picture's colours are coded: as its container says, else as its own header does.
///
/// # Errors
/// If that is a way in which hardly any photo is coded.
pub(super) fn of(
    file: &HeifFile<'_>,
    id: ItemId,
    frame: &Frame,
    named: Named,
) -> Result<ColorParams, ImageError> {
    let properties = file.item_properties(id);
    let mut properties = properties.map_err(|error| named.container(error))?;
    let told = properties.find_map(|property| match property {
        Property::Color(ColorInfo::Nclx {
            matrix, full_range, ..
        }) => Some(ColorParams {
            matrix: *matrix,
            full_range: *full_range,
        }),
        _ => None,
    });
    let colours = told.unwrap_or_else(|| ColorParams::from_frame(frame));
    // Those of ITU-T H.273 that are a matrix of red, green and blue as they are.
    match colours.matrix {
        0..=2 | 4..=7 | 9 | 10 => Ok(colours),
        other => Err(named.unsupported(format!(
            "its colours are coded by the matrix {other} of H.273"
        ))),
    }
}

/// Writes the beginning of a picture to `lines` of `width` pixels, as RGBA.
pub(super) fn write(mut frame: Frame, colours: ColorParams, width: usize, lines: &mut [&mut [u8]]) {
    // `heifer` takes samples of these for the full range.
    if !colours.full_range && (frame.widths[1] == 0 || colours.matrix == 0) {
        stretch(&mut frame);
    }
    let height = lines.len();
    frame_to_rgba_into(&frame, colours, lines, width, height);
}

/// Stretches samples of the limited range, 16 to 235 of 255, to the full range.
fn stretch(frame: &mut Frame) {
    let depth = frame.bit_depth[0];
    let (black, range) = (16 << (depth - 8), 219 << (depth - 8));
    let most = (1 << depth) - 1;
    for sample in frame.planes.iter_mut().flatten() {
        let above = u32::from(*sample).saturating_sub(black).min(range);
        *sample = ((above * most + range / 2) / range) as u16;
    }
}
