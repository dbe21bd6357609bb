//! Raw frames: any format, size, stride and length of data.
#![no_main]

use arbitrary::Arbitrary;
use libfuzzer_sys::fuzz_target;
use resnet18_server::image::{Geometry, ImageError, PixelFormat, PreprocessConfig, Preprocessor, RawFrame, Source};

const GEOMETRY: Geometry = Geometry { width: 24, height: 20, resize_shorter_side: 28 };
/// Larger frames are not made, in bytes: they would take most of the time.
const LARGEST: u64 = 1 << 20;

#[derive(Arbitrary, Debug)]
struct Frame {
    format: u8,
    width: Number,
    height: Number,
    stride: Number,
    data: Vec<u8>,
}

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
    Preprocessor::new(PreprocessConfig::default()).crop(&Source::Raw(frame.clone()), &GEOMETRY, &mut crop)
}

fuzz_target!(|input: Frame| {
    let Frame { format: number, width, height, stride, data } = input;
    let mut frame = RawFrame {
        format: format(number),
        width: width.into(),
        height: height.into(),
        stride: stride.into(),
        data: data.into(),
    };
    match crop(&frame) {
        // What the error asks for must be enough.
        Err(ImageError::DataTooShort { expected, .. } | ImageError::DataTooLong { expected, .. })
            if expected <= LARGEST =>
        {
            let expected = expected as usize;
            let pattern = if frame.data.is_empty() { &[7][..] } else { &frame.data };
            let mut data = pattern.repeat(expected / pattern.len() + 1);
            data.truncate(expected);
            frame.data = data.into();
            crop(&frame).expect("a frame of the length that was asked for is taken");
        }
        Err(error @ (ImageError::Geometry { .. } | ImageError::CropLength { .. } | ImageError::DecoderPanic)) => {
            panic!("no frame may cause this: {error}")
        }
        _ => {}
    }
});
