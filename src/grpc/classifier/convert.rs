//! Conversions between the contract's messages and the types of the rest of the program.

use std::time::{Duration, Instant};

use crate::{
    answer::top_k,
    grpc::call::status::{CallError, shorten},
    image::{PixelFormat, RawFrame, Source},
    metrics::statistics::Stages,
    proto,
    registry::{Entry, Served},
};

/// Which classes a caller asks for.
#[derive(Clone, Copy, Debug)]
pub(in crate::grpc) struct ClassFilter {
    top_k: usize,
    min_probability: f32,
}

const DEFAULT_TOP_K: usize = 5;

impl ClassFilter {
    /// From the fields of a request, where 0 means the default.
    pub fn new(top_k: u32, min_probability: f32) -> Result<Self, CallError> {
        // Written so that NaN fails.
        if !(0.0..=1.0).contains(&min_probability) {
            return Err(CallError::Invalid(format!(
                "min_probability is {min_probability}; it must be 0 to 1"
            )));
        }
        let top_k = if top_k == 0 {
            DEFAULT_TOP_K
        } else {
            top_k as usize
        };
        Ok(Self {
            top_k,
            min_probability,
        })
    }

    pub fn classifications(
        &self,
        probabilities: &[f32],
        model: &Served,
    ) -> Vec<proto::Classification> {
        top_k(probabilities, self.top_k, self.min_probability)
            .into_iter()
            .map(|class| proto::Classification {
                class_id: class.class_id as u32,
                label: model.label(class.class_id),
                probability: class.probability,
            })
            .collect()
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
        ..known
    }
}
