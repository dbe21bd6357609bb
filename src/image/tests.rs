//! Preprocessing from end to end: image files and raw frames to crops.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use bytes::Bytes;
use image::{
    ExtendedColorType, ImageEncoder,
    codecs::{png::PngEncoder, webp::WebPEncoder},
};

use super::*;
use crate::testing::shared;

const IMAGENET: Geometry = Geometry {
    width: 224,
    height: 224,
    resize_shorter_side: 256,
};
const CROP_BYTES: usize = 224 * 224 * 3;

fn crop(source: Source, geometry: &Geometry) -> Result<Vec<u8>, ImageError> {
    let mut crop = vec![0; (geometry.width * geometry.height * 3) as usize];
    Preprocessor::new(PreprocessConfig::default()).crop(&source, geometry, &mut crop)?;
    Ok(crop)
}

fn crop_encoded(encoded: impl Into<Bytes>) -> Result<Vec<u8>, ImageError> {
    crop(Source::Encoded(encoded.into()), &IMAGENET)
}

fn rejection(encoded: impl Into<Bytes>) -> ImageError {
    crop_encoded(encoded).map(|_| "a crop").unwrap_err()
}

/// The largest and the mean difference between two crops.
fn difference(a: &[u8], b: &[u8]) -> (u8, f64) {
    assert_eq!(a.len(), b.len());
    let differences = a.iter().zip(b).map(|(a, b)| a.abs_diff(*b));
    let sum: u64 = differences.clone().map(u64::from).sum();
    (differences.max().unwrap_or(0), sum as f64 / a.len() as f64)
}

fn data() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data")
}

fn read(path: impl AsRef<Path>) -> Vec<u8> {
    let path = path.as_ref();
    std::fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

fn assert_as_torchvision(image: &Path, expected: &Path) -> (u8, f64) {
    let name = image.file_name().unwrap().to_str().unwrap();
    let whole = Geometry {
        width: 224,
        height: 224,
        resize_shorter_side: 224,
    };
    let expected = crop(Source::Encoded(read(expected).into()), &whole).unwrap();
    let got = crop_encoded(read(image)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (max, mean) = difference(&got, &expected);
    assert!(
        max <= 1 && mean < 0.01,
        "{name} differs by up to {max}, {mean:.3} in the mean"
    );
    (max, mean)
}

#[test]
fn crops_match_torchvision() {
    let mut images = 0;
    for entry in std::fs::read_dir(data()).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let expected = data()
            .join("crops")
            .join(format!("{}.png", name.replace('.', "_")));
        if expected.is_file() {
            assert_as_torchvision(&path, &expected);
            images += 1;
        }
    }
    assert!(images >= 8, "only {images} images have crops");
}

#[test]
fn golden_crops_match_torchvision() {
    let Some(folder) = shared("golden") else {
        return;
    };
    let expected: serde_json::Value =
        serde_json::from_slice(&read(folder.join("expected.json"))).unwrap();
    for (name, entry) in expected.as_object().unwrap() {
        let (max, mean) = assert_as_torchvision(
            &folder.join("images").join(name),
            &folder.join(entry["crop"].as_str().unwrap()),
        );
        println!("{name}: max {max}, mean {mean:.4}");
    }
}

#[test]
fn golden_bad_files_are_rejected_quickly() {
    let Some(folder) = shared("golden") else {
        return;
    };
    for entry in std::fs::read_dir(folder.join("bad")).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_str().unwrap();
        let start = Instant::now();
        let result = crop_encoded(read(&path)).map(|_| "answered");
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "{name} took {:?}",
            start.elapsed()
        );
        println!(
            "{name}: {:?} {}",
            start.elapsed(),
            result
                .as_ref()
                .map_or_else(ToString::to_string, ToString::to_string)
        );
        let expected = match name {
            // A decoder cannot always detect this damage.
            "corrupt_scan.jpg" => continue,
            "avif_stub.avif" => "looks like AVIF; send JPEG, PNG, WebP, GIF, BMP, TIFF or PNM",
            "bad_crc.png" => "damaged PNG: a checksum does not match",
            "bomb_50000x50000.png" => "50000x50000 pixels, more than the 64000000 allowed",
            "bomb_65500x65500.jpg" => "65500x65500 pixels, more than the 64000000 allowed",
            "empty.bin" => "the image is empty (0 bytes); send JPEG",
            "heic_stub.heic" => "looks like HEIC",
            "html_error_page.png" => "looks like an HTML page",
            "random.bin" => "no known file type",
            "svg.svg" => "looks like SVG",
            "text.jpg" => "looks like plain text",
            "zero_width.png" => "damaged PNG: Invalid image dimensions",
            "gif_header_only.gif" | "jpeg_soi_only.jpg" | "truncated.png" => "truncated",
            "truncated_half.jpg" | "truncated_header.jpg" => "truncated JPEG",
            other => panic!("no expectation for {other}"),
        };
        let message = result.expect_err(name).to_string();
        assert!(message.contains(expected), "{name}: {message}");
    }
}

#[test]
fn truncated_jpegs_are_rejected_wherever_they_end() {
    for name in ["cat.jpg", "cat_cmyk.jpg", "exif_6.jpg"] {
        let whole = read(data().join(name));
        for percent in 0..98 {
            let error = rejection(whole[..whole.len() * percent / 100].to_vec());
            match error {
                ImageError::Empty | ImageError::Truncated { .. } => {}
                other => panic!("{name} at {percent} %: {other}"),
            }
        }
    }
}

#[test]
fn jpegs_without_an_end_marker_or_with_data_after_it_are_accepted() {
    let whole = read(data().join("cat.jpg"));
    let expected = crop_encoded(whole.clone()).unwrap();
    assert!(whole.ends_with(&[0xff, 0xd9]));
    let without_end = crop_encoded(whole[..whole.len() - 2].to_vec()).unwrap();
    assert_eq!(without_end, expected);
    for tail in [
        &b"\0\0\0\0"[..],
        b"\xff\xd9",
        b"\xff\xd8\xff\xe1 another, as in MPO",
        &[0x55; 5000],
    ] {
        assert_eq!(crop_encoded([&whole, tail].concat()).unwrap(), expected);
    }
}

#[test]
fn every_kind_of_jpeg_has_the_pixels_that_pillow_decodes() {
    let mut files = 0;
    for entry in std::fs::read_dir(data().join("jpeg")).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        let config = PreprocessConfig::default();
        let got = decode(&read(&path), &config).unwrap_or_else(|error| panic!("{name}: {error}"));
        let expected = decode(&read(path.with_extension("png")), &config).unwrap();
        assert_eq!(
            (got.width, got.height, got.layout),
            (expected.width, expected.height, expected.layout),
            "{name}"
        );
        assert_eq!(difference(&got.data, &expected.data).0, 0, "{name}");
        files += 1;
    }
    assert!(files >= 20, "only {files} files");
}

#[test]
fn crops_of_jpegs_depend_on_nothing_that_was_not_decoded() {
    let mut files: Vec<_> = std::fs::read_dir(data().join("jpeg"))
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "jpg"))
        .collect();
    files.extend(["cat.jpg", "cat_422.jpg", "exif_6.jpg"].map(|name| data().join(name)));
    for path in files {
        let encoded = read(&path);
        let name = path.file_name().unwrap().to_string_lossy();
        for (width, height, resize_shorter_side) in [
            (8, 8, 16),
            (5, 20, 22),
            (16, 3, 19),
            (30, 30, 30),
            (9, 9, 250),
        ] {
            let geometry = Geometry {
                width,
                height,
                resize_shorter_side,
            };
            for config in [PreprocessConfig::default(), SCALED] {
                let min_shorter_side = config.jpeg_scaling.min_shorter_side(resize_shorter_side);
                let mut whole = Pixels::default();
                let needed = Needed {
                    min_shorter_side,
                    crop: None,
                };
                whole.decode_needed(&encoded, &config, needed).unwrap();
                let mut expected = vec![0; geometry.bytes()];
                let mut resizer = Resizer::default();
                resizer.crop(&whole, &geometry, &mut expected).unwrap();

                // Pixels of an earlier image, which must not show.
                let mut preprocessor = Preprocessor::new(config);
                preprocessor.pixels.data = whole.data.iter().map(|value| !value).collect();
                let mut got = vec![0; geometry.bytes()];
                let source = Source::Encoded(encoded.clone().into());
                preprocessor.crop(&source, &geometry, &mut got).unwrap();
                assert_eq!(got, expected, "{name} {geometry:?}");
            }
        }
    }
}

#[test]
fn bytes_between_the_segments_of_a_jpeg_are_skipped() {
    let whole = read(data().join("cat.jpg"));
    let jfif_end = 4 + usize::from(u16::from_be_bytes([whole[4], whole[5]]));
    let expected = crop_encoded(whole.clone()).unwrap();
    for junk in [&b"\0\0\0"[..], b"\xff\xff\xff", b"\xff\0junk", b"\xff\xd3"] {
        let jpeg = [&whole[..jfif_end], junk, &whole[jfif_end..]].concat();
        assert_eq!(crop_encoded(jpeg).unwrap(), expected, "{junk:?}");
    }
}

#[test]
fn jpegs_whose_scans_would_take_too_much_work_are_rejected_at_once() {
    let mut jpeg = read(data().join("cat_progressive.jpg"));
    let size = jpeg
        .windows(2)
        .position(|pair| pair == [0xff, 0xc2])
        .unwrap()
        + 5;
    jpeg[size..size + 4].copy_from_slice(&[0x1f, 0, 0x1f, 0]);
    assert!(jpeg.ends_with(&[0xff, 0xd9]));
    jpeg.truncate(jpeg.len() - 2);
    // Refinements of all AC coefficients, each of which ends 32767 blocks with three bytes of data.
    for _ in 0..2000 {
        jpeg.extend(b"\xff\xda\0\x08\x01\x01\x01\x01\x3f\x10");
        jpeg.extend([0x55; 400]);
    }
    jpeg.extend([0xff, 0xd9]);
    let start = Instant::now();
    let error = rejection(jpeg).to_string();
    assert!(
        error.contains("scans of a 7936x7936 picture would take too much work; at most"),
        "{error}"
    );
    assert!(start.elapsed() < Duration::from_secs(1));
}

/// Where the frame header of a JPEG is.
fn frame_header(jpeg: &[u8]) -> usize {
    jpeg.windows(2)
        .position(|pair| pair == [0xff, 0xc0])
        .unwrap()
}

#[test]
fn jpegs_with_a_wrong_size_in_the_header_are_rejected() {
    let whole = read(data().join("cat.jpg"));
    let resized = |width: u16, height: u16| {
        let mut jpeg = whole.clone();
        let size = frame_header(&whole) + 5;
        jpeg[size..size + 2].copy_from_slice(&height.to_be_bytes());
        jpeg[size + 2..size + 4].copy_from_slice(&width.to_be_bytes());
        rejection(jpeg)
    };
    assert_eq!(
        resized(0, 300),
        ImageError::ZeroSize {
            width: 0,
            height: 300
        }
    );
    assert_eq!(
        resized(451, 0),
        ImageError::ZeroSize {
            width: 451,
            height: 0
        }
    );
    assert!(matches!(
        resized(8001, 8000),
        ImageError::TooManyPixels {
            width: 8001,
            height: 8000,
            max_pixels: 64_000_000
        }
    ));
    assert!(matches!(resized(8000, 8000), ImageError::Truncated { .. }));
}

#[test]
fn unsupported_variants_of_jpeg_are_named() {
    let whole = read(data().join("cat.jpg"));
    let frame = frame_header(&whole);
    let changed = |offset: usize, value: u8| {
        let mut jpeg = whole.clone();
        jpeg[frame + offset] = value;
        rejection(jpeg).to_string()
    };
    assert!(changed(1, 0xc3).contains("losslessly compressed"));
    assert!(changed(1, 0xc5).contains("hierarchical"));
    assert!(changed(4, 12).contains("12 bits per channel"));
}

#[test]
fn jpegs_in_adobe_rgb_are_not_mistaken_for_ycbcr() {
    const ADOBE_RGB: &[u8] = b"\xff\xee\0\x0eAdobe\0\x64\0\0\0\0\0";
    let whole = read(data().join("cat.jpg"));
    let jfif_end = 4 + usize::from(u16::from_be_bytes([whole[4], whole[5]]));
    let ycbcr = crop_encoded(whole.clone()).unwrap();
    let luma_as_red = crop_encoded([&whole[..2], ADOBE_RGB, &whole[jfif_end..]].concat()).unwrap();
    let with_jfif =
        crop_encoded([&whole[..jfif_end], ADOBE_RGB, &whole[jfif_end..]].concat()).unwrap();
    assert_eq!(with_jfif, ycbcr);
    for (rgb, stored) in ycbcr.chunks_exact(3).zip(luma_as_red.chunks_exact(3)) {
        let luma =
            0.299 * f64::from(rgb[0]) + 0.587 * f64::from(rgb[1]) + 0.114 * f64::from(rgb[2]);
        assert!(
            (luma - f64::from(stored[0])).abs() < 8.0,
            "{rgb:?} {stored:?}"
        );
    }
}

#[test]
fn exif_can_be_ignored() {
    let encoded = Bytes::from(read(data().join("exif_6.jpg")));
    let config = PreprocessConfig {
        exif: Exif::Ignore,
        ..Default::default()
    };
    assert_eq!(
        decode(&encoded, &config).unwrap().orientation,
        Orientation::default()
    );
    let mut ignored = vec![0; CROP_BYTES];
    Preprocessor::new(config)
        .crop(&Source::Encoded(encoded.clone()), &IMAGENET, &mut ignored)
        .unwrap();
    assert!(difference(&ignored, &crop_encoded(encoded).unwrap()).0 > 50);
}

#[test]
fn png_and_webp_are_turned_upright_and_invalid_exif_is_ignored() {
    let (width, height) = (30u32, 20u32);
    let stored: Vec<u8> = (0..width * height)
        .flat_map(|i| [(i % 251) as u8, (i / 3) as u8, (i % 30) as u8])
        .collect();
    let geometry = Geometry {
        width: 12,
        height: 12,
        resize_shorter_side: 16,
    };
    let mut resizer = Resizer::default();
    for value in 0..=9u8 {
        let exif = [
            b"II*\0\x08\0\0\0\x01\0\x12\x01\x03\0\x01\0\0\0",
            &[value, 0, 0, 0, 0, 0, 0, 0][..],
        ]
        .concat();
        let orientation = Orientation::from_exif(value);
        let pixels = Pixels {
            width,
            height,
            layout: PixelLayout::Rgb,
            orientation,
            data: stored.clone(),
        };
        let mut expected = vec![0; 12 * 12 * 3];
        resizer.crop(&pixels, &geometry, &mut expected).unwrap();

        let mut png = Vec::new();
        let mut encoder = PngEncoder::new(&mut png);
        encoder.set_exif_metadata(exif.clone()).unwrap();
        encoder
            .write_image(&stored, width, height, ExtendedColorType::Rgb8)
            .unwrap();
        assert_eq!(
            crop(Source::Encoded(png.clone().into()), &geometry).unwrap(),
            expected,
            "PNG, orientation {value}"
        );

        // Some programs write EXIF after the pixels of PNG.
        let start = png.windows(4).position(|kind| kind == b"eXIf").unwrap() - 4;
        let chunk: Vec<u8> = png.drain(start..start + 12 + exif.len()).collect();
        let end = png.len() - 12;
        png.splice(end..end, chunk);
        assert_eq!(
            crop(Source::Encoded(png.into()), &geometry).unwrap(),
            expected,
            "PNG with EXIF at the end, orientation {value}"
        );

        // Others write it to WebP with the prefix that it has in JPEG.
        for exif in [exif.clone(), [b"Exif\0\0", &exif[..]].concat()] {
            let mut webp = Vec::new();
            let mut encoder = WebPEncoder::new_lossless(&mut webp);
            encoder.set_exif_metadata(exif).unwrap();
            encoder
                .write_image(&stored, width, height, ExtendedColorType::Rgb8)
                .unwrap();
            assert_eq!(
                crop(Source::Encoded(webp.into()), &geometry).unwrap(),
                expected,
                "WebP, orientation {value}"
            );
        }
    }
}

#[test]
fn files_of_every_format_with_a_wrong_size_are_rejected_quickly() {
    let mut bmp = b"BM\0\0\0\0\0\0\0\0\x36\0\0\0\x28\0\0\0".to_vec();
    bmp.extend_from_slice(&7000u32.to_le_bytes());
    bmp.extend_from_slice(&7000u32.to_le_bytes());
    bmp.extend_from_slice(&[1, 0, 24, 0]);
    bmp.resize(60, 0);
    for (name, file) in [
        ("PNM", b"P6\n8000 8000\n255\nabc".to_vec()),
        ("PNM", b"P6\n99999999 99999999\n255\nabc".to_vec()),
        ("PNM", b"P6\n0 5\n255\n".to_vec()),
        (
            "GIF",
            b"GIF89a\xff\xff\xff\xff\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0\xff\xff\xff\xff\0\x02\0;"
                .to_vec(),
        ),
        ("BMP", bmp),
        ("TIFF", b"II*\0\xff\xff\xff\xff".to_vec()),
        (
            "WebP",
            b"RIFF\x20\0\0\0WEBPVP8L\x10\0\0\0\x2f\xff\xff\xff\x0f\0\0\0\0\0\0\0\0".to_vec(),
        ),
    ] {
        let start = Instant::now();
        let error = rejection(file);
        assert!(
            start.elapsed() < Duration::from_millis(500),
            "{name}: {error} after {:?}",
            start.elapsed()
        );
        assert_ne!(error, ImageError::DecoderPanic, "{name}");
    }
}

#[test]
fn very_long_sides_are_rejected_by_the_header() {
    let error = rejection(b"P5\n1 64000000\n255\n".to_vec());
    assert_eq!(
        error,
        ImageError::SideTooLong {
            width: 1,
            height: 64_000_000,
            max_side: 1_000_000
        }
    );
}

#[test]
fn a_preprocessor_stays_usable_after_damaged_files() {
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default());
    let mut state = 0x9e37_79b9_7f4a_7c15u64;
    let mut random = move |below: usize| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state % below as u64) as usize
    };
    for name in [
        "cat.jpg",
        "tiny_33x47.png",
        "cat_lossy.webp",
        "moon_16bit.png",
    ] {
        let whole = Bytes::from(read(data().join(name)));
        let expected = crop_encoded(whole.clone()).unwrap();
        let mut target = vec![0; CROP_BYTES];
        for _ in 0..20 {
            let mut damaged = whole.to_vec();
            for _ in 0..=random(8) {
                // Half of the damage is in the headers.
                let end = if random(2) == 0 {
                    damaged.len()
                } else {
                    damaged.len().min(700)
                };
                damaged[random(end)] = random(256) as u8;
            }
            // Some damage cannot be detected; what matters is that nothing ends the thread.
            let _ = preprocessor.crop(&Source::Encoded(damaged.into()), &IMAGENET, &mut target);
        }
        preprocessor
            .crop(&Source::Encoded(whole), &IMAGENET, &mut target)
            .unwrap();
        assert_eq!(target, expected, "{name}");
    }
}

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

#[test]
fn a_mirrored_crop_has_left_and_right_swapped() {
    let geometry = Geometry {
        width: 3,
        height: 2,
        resize_shorter_side: 3,
    };
    let mut crop: Vec<u8> = (0..18).collect();
    geometry.mirror(&mut crop);
    assert_eq!(
        crop,
        [6, 7, 8, 3, 4, 5, 0, 1, 2, 15, 16, 17, 12, 13, 14, 9, 10, 11]
    );
}

const SCALED: PreprocessConfig = PreprocessConfig {
    exif: Exif::Apply,
    max_pixels: 64_000_000,
    jpeg_scaling: JpegScaling::Auto,
};

fn crop_scaled(encoded: &[u8], geometry: &Geometry) -> Result<Vec<u8>, ImageError> {
    let mut crop = vec![0; geometry.bytes()];
    Preprocessor::new(SCALED).crop(
        &Source::Encoded(encoded.to_vec().into()),
        geometry,
        &mut crop,
    )?;
    Ok(crop)
}

fn at_least(min_shorter_side: u32) -> Needed<'static> {
    Needed {
        min_shorter_side: Some(min_shorter_side),
        crop: None,
    }
}

#[test]
fn large_jpegs_are_scaled_down_to_the_smallest_sufficient_size() {
    let photo = read(data().join("cat.jpg"));
    let whole = decode(&photo, &SCALED).unwrap();
    let shorter = whole.width.min(whole.height);
    for (min_shorter_side, divisor) in [
        (shorter, 1),
        (shorter / 2, 2),
        (shorter / 2 + 1, 1),
        (shorter / 4, 4),
        (10, 8),
    ] {
        let mut pixels = Pixels::default();
        pixels
            .decode_needed(&photo, &SCALED, at_least(min_shorter_side))
            .unwrap();
        let expected = [whole.width, whole.height].map(|side| side.div_ceil(divisor));
        assert_eq!(
            [pixels.width, pixels.height],
            expected,
            "at least {min_shorter_side} pixels"
        );
        assert_eq!(
            pixels.data.len(),
            (pixels.width * pixels.height * 3) as usize
        );
    }
}

/// The mean of every square of `divisor` x `divisor` pixels.
fn averages(whole: &Pixels, divisor: u32) -> Vec<u8> {
    let channels = whole.layout.channels();
    let mut averages = Vec::new();
    for (top, left) in (0..whole.height).step_by(divisor as usize).flat_map(|y| {
        (0..whole.width)
            .step_by(divisor as usize)
            .map(move |x| (y, x))
    }) {
        let [below, right] =
            [(top, whole.height), (left, whole.width)].map(|(from, end)| (from + divisor).min(end));
        for channel in 0..channels {
            let pixels = (top..below)
                .flat_map(|y| (left..right).map(move |x| (y * whole.width + x) as usize));
            let sum: u32 = pixels
                .map(|pixel| u32::from(whole.data[pixel * channels + channel]))
                .sum();
            averages.push((sum / ((below - top) * (right - left))) as u8);
        }
    }
    averages
}

#[test]
fn every_variant_of_jpeg_is_scaled_to_the_average_of_its_pixels() {
    for name in [
        "cat.jpg",
        "cat_444.jpg",
        "cat_422.jpg",
        "cat_420_restarts.jpg",
        "cat_gray.jpg",
        "cat_progressive.jpg",
        "sunflower_q30.jpg",
    ] {
        let photo = read(data().join(name));
        let whole = decode(&photo, &SCALED).unwrap();
        for divisor in [2, 4, 8] {
            let mut pixels = Pixels::default();
            let min_shorter_side = whole.width.min(whole.height) / divisor;
            pixels
                .decode_needed(&photo, &SCALED, at_least(min_shorter_side))
                .unwrap();
            assert_eq!(
                (pixels.width, pixels.height),
                (
                    whole.width.div_ceil(divisor),
                    whole.height.div_ceil(divisor)
                )
            );
            assert_eq!(pixels.layout, whole.layout);
            let (max, mean) = difference(&pixels.data, &averages(&whole, divisor));
            println!("{name} at 1/{divisor}: max {max}, mean {mean:.3}");
            assert!(
                max < 30 && mean < 2.5,
                "{name} at 1/{divisor} differs by up to {max}, {mean:.3} in the mean"
            );
        }
    }
}

#[test]
fn four_channel_jpegs_are_decoded_at_full_size() {
    let photo = read(data().join("cat_cmyk.jpg"));
    let mut pixels = Pixels::default();
    pixels.decode_needed(&photo, &SCALED, at_least(1)).unwrap();
    let whole = decode(&photo, &SCALED).unwrap();
    assert_eq!(
        (pixels.width, pixels.height, pixels.data),
        (whole.width, whole.height, whole.data)
    );
}

#[test]
fn scaled_crops_are_close_to_exact_ones_and_upright() {
    let small = Geometry {
        width: 40,
        height: 40,
        resize_shorter_side: 45,
    };
    for name in ["cat.jpg", "exif_6.jpg", "sunflower_q30.jpg"] {
        let photo = read(data().join(name));
        let exact = crop(Source::Encoded(photo.clone().into()), &small).unwrap();
        let (max, mean) = difference(&crop_scaled(&photo, &small).unwrap(), &exact);
        println!("{name}: max {max}, mean {mean:.3}");
        assert!(mean > 0.0, "{name} was not scaled");
        assert!(
            mean < 2.5,
            "{name} differs by up to {max}, {mean:.3} in the mean"
        );
    }
}

#[test]
fn scaling_rejects_the_same_files_with_the_same_messages() {
    let small = Geometry {
        width: 40,
        height: 40,
        resize_shorter_side: 45,
    };
    let photo = read(data().join("cat.jpg"));
    let mut cases: Vec<Vec<u8>> = (1..40)
        .map(|i| photo[..photo.len() * i / 40].to_vec())
        .collect();
    // With an end marker, but with data missing before it.
    cases.extend((1..20).map(|i| [&photo[..photo.len() * i / 20], &[0xff, 0xd9]].concat()));
    cases.extend((1..40).map(|i| {
        let mut flipped = photo.clone();
        flipped[photo.len() * i / 40] ^= 0x55;
        flipped
    }));
    let message = |result: Result<Vec<u8>, ImageError>| {
        result.map_or_else(|error| error.to_string(), |_| "a crop".into())
    };
    for (i, case) in cases.iter().enumerate() {
        let exact = message(crop(Source::Encoded(case.clone().into()), &small));
        assert_eq!(message(crop_scaled(case, &small)), exact, "case {i}");
    }
}

#[test]
fn golden_photos_scaled_down_stay_close() {
    let Some(folder) = shared("golden") else {
        return;
    };
    for name in ["bench_12mp.jpg", "big_4032x2688.jpg", "bench_500x375.jpg"] {
        let photo = read(folder.join("images").join(name));
        let exact = crop_encoded(photo.clone()).unwrap();
        let (max, mean) = difference(&crop_scaled(&photo, &IMAGENET).unwrap(), &exact);
        println!("{name}: max {max}, mean {mean:.3}");
        assert!(
            mean < 1.5,
            "{name} differs by up to {max}, {mean:.3} in the mean"
        );
        assert_eq!(
            mean == 0.0,
            name == "bench_500x375.jpg",
            "a small photo is not scaled"
        );
    }
}
