//! Conversions between the contract's messages and the types of the rest of the program.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    grpc::call::status::{CallError, shorten},
    image::{PixelFormat, RawFrame, Region, RegionUnit, Source},
    metrics::statistics::Stages,
    proto,
    registry::Entry,
};

/// The most regions of an image.
const MAX_REGIONS: usize = 64;

/// The regions of an image; none mean the whole image.
pub(in crate::grpc) fn regions(regions: &[proto::Region]) -> Result<Arc<[Region]>, CallError> {
    if regions.len() > MAX_REGIONS {
        return Err(CallError::Invalid(format!(
            "there are {} regions, more than the {MAX_REGIONS} that an image may have",
            regions.len()
        )));
    }
    let regions = regions
        .iter()
        .enumerate()
        .map(|(index, region)| {
            Ok(Region {
                left: region.left,
                top: region.top,
                width: region.width,
                height: region.height,
                unit: region_unit(region.unit, index + 1)?,
            })
        })
        .collect::<Result<Arc<[Region]>, CallError>>()?;
    Region::check_all(&regions).map_err(|error| CallError::Invalid(error.to_string()))?;
    Ok(regions)
}

fn region_unit(value: i32, number: usize) -> Result<RegionUnit, CallError> {
    use proto::RegionUnit as Wire;
    match Wire::try_from(value) {
        Ok(Wire::Unspecified | Wire::Pixels) => Ok(RegionUnit::Pixels),
        Ok(Wire::Fractions) => Ok(RegionUnit::Fractions),
        Err(_) => Err(CallError::Invalid(format!(
            "the unit {value} of region {number} is unknown; send PIXELS or FRACTIONS"
        ))),
    }
}

pub(in crate::grpc) fn source(image: Option<proto::Image>) -> Result<Source, CallError> {
    use proto::image::Source as Wire;
    match image.and_then(|image| image.source) {
        None => Err(CallError::Invalid(
            "the request has no image; set image.encoded to a file's content, or image.raw to a \
             frame"
                .into(),
        )),
        Some(Wire::Encoded(bytes)) => Ok(Source::Encoded(bytes)),
        Some(Wire::Raw(frame)) => Ok(Source::Raw(RawFrame {
            format: pixel_format(frame.format)?,
            width: frame.width,
            height: frame.height,
            stride: frame.stride,
            data: frame.data,
        })),
    }
}

fn pixel_format(value: i32) -> Result<PixelFormat, CallError> {
    use proto::PixelFormat as Wire;
    let accepted = "send RGB8, BGR8, RGBA8, BGRA8, GRAY8, NV12 or I420";
    match Wire::try_from(value) {
        Ok(Wire::Rgb8) => Ok(PixelFormat::Rgb8),
        Ok(Wire::Bgr8) => Ok(PixelFormat::Bgr8),
        Ok(Wire::Rgba8) => Ok(PixelFormat::Rgba8),
        Ok(Wire::Bgra8) => Ok(PixelFormat::Bgra8),
        Ok(Wire::Gray8) => Ok(PixelFormat::Gray8),
        Ok(Wire::Nv12) => Ok(PixelFormat::Nv12),
        Ok(Wire::I420) => Ok(PixelFormat::I420),
        Ok(Wire::Unspecified) => Err(CallError::Invalid(format!(
            "the raw frame's format is not set; {accepted}"
        ))),
        Err(_) => Err(CallError::Invalid(format!(
            "the raw frame's format {value} is unknown; {accepted}"
        ))),
    }
}

pub(in crate::grpc) fn timing(stages: Stages, arrived: Instant) -> proto::Timing {
    proto::Timing {
        decode: duration(stages.decode),
        queue: duration(stages.queue),
        inference: duration(stages.inference),
        total: duration(arrived.elapsed()),
    }
}

fn duration(duration: Duration) -> Option<prost_types::Duration> {
    duration.try_into().ok()
}

/// A half-life in seconds; 0 or absent means off.
pub(in crate::grpc) fn half_life(
    duration: Option<prost_types::Duration>,
) -> Result<f64, CallError> {
    let seconds = duration.map_or(0.0, |d| d.seconds as f64 + f64::from(d.nanos) * 1e-9);
    if seconds < 0.0 {
        return Err(CallError::Invalid(format!(
            "smoothing is {seconds} s; it must be 0 (off) or more"
        )));
    }
    Ok(seconds)
}

/// When a frame was captured, in seconds since 1970.
pub(in crate::grpc) fn captured_at(timestamp: Option<prost_types::Timestamp>) -> Option<f64> {
    timestamp.map(|t| t.seconds as f64 + f64::from(t.nanos) * 1e-9)
}

pub(in crate::grpc) fn model(entry: &Entry) -> proto::Model {
    let state = if entry.served.is_some() {
        proto::ModelState::Ready
    } else if entry.problem.is_some() {
        proto::ModelState::Failed
    } else if entry.unloaded {
        proto::ModelState::Unloaded
    } else {
        proto::ModelState::Loading
    };
    let known = proto::Model {
        name: entry.name.clone(),
        state: state.into(),
        problem: entry.problem.as_deref().map(shorten).unwrap_or_default(),
        ..Default::default()
    };
    let Some(served) = &entry.served else {
        return known;
    };
    proto::Model {
        version: served.version.clone(),
        warnings: served.engine.warnings.clone(),
        labels: served.labels.to_vec(),
        input_width: served.geometry.width,
        input_height: served.geometry.height,
        resize_shorter_side: served.geometry.resize_shorter_side,
        engine: served.engine.kind.to_string(),
        precision: served.engine.precision.to_string(),
        device: served.engine.device.clone(),
        unknown_class: served.unknown_class.map(|class| class as u32),
        embedding_size: served.embedding.clone().unwrap_or(0) as u32,
        ..known
    }
}
