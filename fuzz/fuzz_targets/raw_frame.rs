//! Fuzzes raw frames: any format, size, stride and length of data.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use resnet18_server::image::{
    Geometry, ImageError, PixelFormat, PreprocessConfig, Preprocessor, RawFrame, Source,
};

const GEOMETRY: Geometry = Geometry::cropped(24, 20, 28);

/// Frames with more bytes than this are not generated, because they would take most of the time.
const MAX_FRAME_BYTES: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Input {
    format: u8,
    width: Number,
    height: Number,
    stride: Number,
    data: Vec<u8>,
}

/// Half of the numbers are small, so that many frames are of a plausible size.
#[derive(Arbitrary, Clone, Copy, Debug)]
enum Number {
    Small(u8),
    Any(u32),
}

impl From<Number> for u32 {
    fn from(number: Number) -> Self {
        match number {
            Number::Small(small) => small.into(),
            Number::Any(any) => any,
        }
    }
}

fn format(number: u8) -> PixelFormat {
    use PixelFormat::*;

    let formats = [Rgb8, Bgr8, Rgba8, Bgra8, Gray8, Nv12, I420];
    formats[usize::from(number) % formats.len()]
}

fn crop(frame: &RawFrame) -> Result<(), ImageError> {
    let mut crop = vec![0; GEOMETRY.bytes()];
    Preprocessor::new(PreprocessConfig::default()).crop(
        &Source::Raw(frame.clone()),
        &GEOMETRY,
        &mut crop,
    )
}

/// Fills `expected` bytes with repetitions of `data`.
fn repeat(data: &[u8], expected: usize) -> Vec<u8> {
    let pattern = if data.is_empty() { &[7][..] } else { data };
    let mut repeated = pattern.repeat(expected / pattern.len() + 1);
    repeated.truncate(expected);
    repeated
}

fuzz_target!(|input: Input| {
    let mut frame = RawFrame {
        format: format(input.format),
        width: input.width.into(),
        height: input.height.into(),
        stride: input.stride.into(),
        data: input.data.into(),
    };

    match crop(&frame) {
        // A frame with the length that the error message asks for must be accepted.
        Err(
            ImageError::DataTooShort { expected, .. } | ImageError::DataTooLong { expected, .. },
        ) if expected <= MAX_FRAME_BYTES => {
            frame.data = repeat(&frame.data, expected as usize).into();
            crop(&frame).expect("a frame of the requested length is accepted");
        }
        Err(
            error @ (ImageError::Geometry { .. }
            | ImageError::CropLength { .. }
            | ImageError::DecoderPanic),
        ) => panic!("no frame may cause this: {error}"),
        _ => {}
    }
});
