//! Raw frames of every pixel format.

use super::*;

/// A test picture with smooth and sharp parts.
fn pixel(x: u32, y: u32) -> [u8; 3] {
    let stripes = if (x / 9 + y / 5).is_multiple_of(2) {
        60
    } else {
        0
    };
    [
        (x * 2 % 190) as u8 + stripes,
        (y * 3 % 190) as u8 + stripes,
        ((x + y) % 190) as u8 + stripes,
    ]
}

fn frame(format: PixelFormat, width: u32, height: u32, stride: u32, data: Vec<u8>) -> RawFrame {
    RawFrame {
        format,
        width,
        height,
        stride,
        data: data.into(),
    }
}

/// Concatenates rows, `stride` bytes apart, with arbitrary padding between them but none after the
/// last.
fn padded(rows: impl Iterator<Item = Vec<u8>>, stride: usize) -> Vec<u8> {
    let mut data = Vec::new();
    for (index, row) in rows.enumerate() {
        data.resize(index * stride, 0xab);
        data.extend(row);
    }
    data
}

#[test]
fn interleaved_formats_agree_with_rgb_whatever_the_stride() {
    for (width, height) in [(320, 240), (241, 333), (1, 1), (1000, 3)] {
        let rgb = padded(
            (0..height).map(|y| (0..width).flat_map(|x| pixel(x, y)).collect()),
            3 * width as usize,
        );
        let expected = crop(
            Source::Raw(frame(PixelFormat::Rgb8, width, height, 0, rgb.clone())),
            &IMAGENET,
        )
        .unwrap();
        let pixels = Pixels {
            width,
            height,
            layout: PixelLayout::Rgb,
            orientation: Orientation::default(),
            data: rgb,
        };
        let mut direct = vec![0; CROP_BYTES];
        Resizer::default()
            .crop(&pixels, &IMAGENET, &mut direct)
            .unwrap();
        assert_eq!(expected, direct);
        for (format, channels) in [
            (PixelFormat::Rgb8, 3),
            (PixelFormat::Bgr8, 3),
            (PixelFormat::Rgba8, 4),
            (PixelFormat::Bgra8, 4),
        ] {
            for padding in [0, 1, 12, 64] {
                let stride = channels * width + padding;
                let row = |y| -> Vec<u8> {
                    let bytes = (0..width).flat_map(|x| {
                        let [r, g, b] = pixel(x, y);
                        match format {
                            PixelFormat::Rgb8 => vec![r, g, b],
                            PixelFormat::Bgr8 => vec![b, g, r],
                            PixelFormat::Rgba8 => vec![r, g, b, x as u8],
                            _ => vec![b, g, r, x as u8],
                        }
                    });
                    bytes.collect()
                };
                let data = padded((0..height).map(row), stride as usize);
                let got = crop(
                    Source::Raw(frame(format, width, height, stride, data)),
                    &IMAGENET,
                )
                .unwrap();
                let (max, _) = difference(&got, &expected);
                assert!(
                    max <= 1,
                    "{format} {width}x{height} stride {stride} differs by {max}"
                );
            }
        }
    }
}

#[test]
fn gray_frames_are_gray_rgb() {
    let (width, height) = (301, 257);
    let gray = |x, y| pixel(x, y)[0];
    let rgb = (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| [gray(x, y); 3]))
        .collect();
    let expected = crop(
        Source::Raw(frame(PixelFormat::Rgb8, width, height, 0, rgb)),
        &IMAGENET,
    )
    .unwrap();
    for stride in [0, 301, 320] {
        let data = padded(
            (0..height).map(|y| (0..width).map(|x| gray(x, y)).collect()),
            stride.max(width) as usize,
        );
        let got = crop(
            Source::Raw(frame(PixelFormat::Gray8, width, height, stride, data)),
            &IMAGENET,
        )
        .unwrap();
        assert!(difference(&got, &expected).0 <= 1, "stride {stride}");
    }
}

#[test]
fn video_formats_agree_with_rgb_at_even_and_odd_sizes_whatever_the_stride() {
    let luma = |x: u32, y: u32| 16 + (pixel(x, y)[0] as u32 * 219 / 255) as u8;
    let chroma =
        |x: u32, y: u32| -> [u8; 2] { [(40 + x * 2 % 180) as u8, (220 - y * 3 % 190) as u8] };
    let rgb_of = |x: u32, y: u32| -> [u8; 3] {
        let [cb, cr] = chroma(x / 2, y / 2).map(|sample| f64::from(sample) - 128.0);
        let luma = (f64::from(luma(x, y)) - 16.0) * 255.0 / 219.0;
        let scale = 255.0 / 224.0;
        [
            luma + 1.402 * scale * cr,
            luma - (0.114 * 1.772 * cb + 0.299 * 1.402 * cr) / 0.587 * scale,
            luma + 1.772 * scale * cb,
        ]
        .map(|channel| channel.round().clamp(0.0, 255.0) as u8)
    };
    for (width, height) in [
        (320, 240),
        (321, 241),
        (241, 320),
        (1, 1),
        (3, 500),
        (1280, 720),
    ] {
        let rgb = (0..height)
            .flat_map(|y| (0..width).flat_map(move |x| rgb_of(x, y)))
            .collect();
        let expected = crop(
            Source::Raw(frame(PixelFormat::Rgb8, width, height, 0, rgb)),
            &IMAGENET,
        )
        .unwrap();
        let (chroma_width, chroma_height) = (width.div_ceil(2), height.div_ceil(2));
        for padding in [None, Some(0), Some(1), Some(30)] {
            let stride = width + padding.unwrap_or(0);
            let mut luma_plane = padded(
                (0..height).map(|y| (0..width).map(|x| luma(x, y)).collect()),
                stride as usize,
            );
            luma_plane.resize((stride * height) as usize, 0xcd);

            let nv12_stride = stride.next_multiple_of(2) as usize;
            let row = |y| (0..chroma_width).flat_map(|x| chroma(x, y)).collect();
            let nv12 = [
                luma_plane.clone(),
                padded((0..chroma_height).map(row), nv12_stride),
            ]
            .concat();

            let i420_stride = stride.div_ceil(2) as usize;
            let plane = |channel: usize| {
                let row = move |y| (0..chroma_width).map(|x| chroma(x, y)[channel]).collect();
                padded((0..chroma_height).map(row), i420_stride)
            };
            let mut cb = plane(0);
            cb.resize(i420_stride * chroma_height as usize, 0xef);
            let i420 = [luma_plane, cb, plane(1)].concat();

            let sent = padding.map_or(0, |_| stride);
            for (format, data) in [(PixelFormat::Nv12, nv12), (PixelFormat::I420, i420)] {
                let got = crop(
                    Source::Raw(frame(format, width, height, sent, data)),
                    &IMAGENET,
                )
                .unwrap();
                let (max, mean) = difference(&got, &expected);
                assert!(
                    max <= 2 && mean < 0.3,
                    "{format} {width}x{height} stride {sent}: {max}, {mean}"
                );
            }
        }
    }
}

#[test]
fn inconsistent_frames_are_rejected() {
    use PixelFormat::*;
    let rejected = |format, width, height, stride, bytes| {
        crop(
            Source::Raw(frame(format, width, height, stride, vec![0; bytes])),
            &IMAGENET,
        )
        .unwrap_err()
    };
    assert_eq!(
        rejected(Rgb8, 0, 5, 0, 0),
        ImageError::ZeroSize {
            width: 0,
            height: 5
        }
    );
    assert_eq!(
        rejected(Nv12, 5, 0, 0, 0),
        ImageError::ZeroSize {
            width: 5,
            height: 0
        }
    );
    assert!(matches!(
        rejected(Gray8, 8001, 8000, 0, 1),
        ImageError::TooManyPixels { .. }
    ));
    assert!(matches!(
        rejected(Rgba8, u32::MAX, u32::MAX, 0, 1),
        ImageError::TooManyPixels { .. }
    ));
    for (format, row) in [
        (Rgb8, 30),
        (Bgr8, 30),
        (Rgba8, 40),
        (Bgra8, 40),
        (Gray8, 10),
        (Nv12, 10),
        (I420, 10),
    ] {
        let error = rejected(format, 10, 10, row as u32 - 1, 10_000);
        assert_eq!(
            error,
            ImageError::Stride {
                format,
                width: 10,
                stride: row as u32 - 1,
                minimum: row
            }
        );
    }
    for (format, expected) in [
        (Rgb8, 99),
        (Bgr8, 99),
        (Rgba8, 132),
        (Bgra8, 132),
        (Gray8, 33),
        (Nv12, 33 + 24),
        (I420, 33 + 24),
    ] {
        match rejected(format, 11, 3, 0, expected as usize - 1) {
            ImageError::DataTooShort {
                expected: e, got, ..
            } => assert_eq!((e, got), (expected, expected - 1)),
            other => panic!("{format}: {other}"),
        }
        match rejected(format, 11, 3, 0, expected as usize + 1) {
            ImageError::DataTooLong {
                expected: e, got, ..
            } => assert_eq!((e, got), (expected, expected + 1)),
            other => panic!("{format}: {other}"),
        }
    }
    let message = rejected(Nv12, 1280, 720, 0, 1000).to_string();
    assert_eq!(
        message,
        "the NV12 frame of 1280x720 pixels with a stride of 1280 bytes needs at least 1382400 \
         bytes of data, but 1000 were sent; check format, width, height and stride"
    );
    let unlimited = PreprocessConfig {
        max_pixels: u64::MAX,
        ..Default::default()
    };
    for format in [Rgb8, Rgba8, Gray8, Nv12, I420] {
        // The largest sides and the longest rows, whose product must not overflow.
        let side = 1_000_000;
        let source = Source::Raw(frame(format, side, side, u32::MAX, vec![0; 100]));
        let error = Preprocessor::new(unlimited)
            .crop(&source, &IMAGENET, &mut [0; CROP_BYTES])
            .unwrap_err();
        assert!(
            matches!(error, ImageError::DataTooShort { .. }),
            "{format}: {error}"
        );
    }
}
