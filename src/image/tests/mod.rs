//! Preprocessing from end to end: image files and raw frames to crops.

mod fits;
mod heif;
mod helped;
mod jpeg;
mod raw;
mod scaling;

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
use crate::testing::{random_numbers, shared};

const IMAGENET: Geometry = Geometry::cropped(224, 224, 256);

const SCALED: PreprocessConfig = PreprocessConfig {
    exif: Exif::Apply,
    max_pixels: 64_000_000,
    max_memory: u64::MAX,
    jpeg_scaling: JpegScaling::Auto,
    max_decode_time: Duration::from_secs(10),
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
    let whole = Geometry::cropped(224, 224, 224);
    let expected = crop(Source::Encoded(read(expected).into()), &whole).unwrap();
    let got = crop_encoded(read(image)).unwrap_or_else(|error| panic!("{name}: {error}"));
    let (max, mean) = difference(&got, &expected);
    // The same as Pillow's for JPEGs; other decoders may differ by 1.
    let most = u8::from(!name.ends_with(".jpg"));
    assert!(
        max <= most && mean < 0.01,
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
            "avif_stub.avif" => "AVIF",
            "bad_crc.png" => "damaged PNG: a checksum does not match",
            "bomb_50000x50000.png" => "50000x50000 pixels, more than the 64000000 allowed",
            "bomb_65500x65500.jpg" => "65500x65500 pixels, more than the 64000000 allowed",
            "empty.bin" => "the image is empty (0 bytes); send JPEG",
            "heic_stub.heic" => "HEIC",
            "html_error_page.png" => "looks like an HTML page",
            "random.bin" => "no known file type",
            "svg.svg" => {
                "looks like SVG; send JPEG, PNG, WebP, GIF, BMP, TIFF, PNM, HEIC, AVIF, QOI, ICO or TGA"
            }
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
    let geometry = Geometry::cropped(12, 12, 16);
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
    let mut random = random_numbers(0x9e37_79b9_7f4a_7c15);
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

#[test]
fn a_mirrored_crop_has_left_and_right_swapped() {
    let geometry = Geometry::cropped(3, 2, 3);
    let mut crop: Vec<u8> = (0..18).collect();
    geometry.mirror(&mut crop);
    assert_eq!(
        crop,
        [6, 7, 8, 3, 4, 5, 0, 1, 2, 15, 16, 17, 12, 13, 14, 9, 10, 11]
    );
}
