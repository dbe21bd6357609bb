//! HEIC and AVIF files: by other programs, of tiles, turned, damaged, and made to cost much.

use std::fs;

use heifer::{
    EncodeOptions, encode_rgb8,
    heifer_isobmff::{HeifFile, boxes::Property},
};

use super::*;
use crate::image::heif::av1::tests::start_processes;

/// A picture of colours that change slowly, with a bright corner, in RGB.
fn gradient(width: u32, height: u32) -> Vec<u8> {
    let pixel = |x: u32, y: u32| {
        if x < 64 && y < 64 {
            return [250, 250, 250];
        }
        let of = |value: u32, side: u32| (40 + 160 * value / side) as u8;
        [of(x, width), of(y, height), 90]
    };
    (0..height)
        .flat_map(|y| (0..width).flat_map(move |x| pixel(x, y)))
        .collect()
}

/// A file of several tiles, as phones write them.
fn tiled(width: u32, height: u32) -> Vec<u8> {
    let options = EncodeOptions {
        quality: 95,
        max_threads: 1,
    };
    let file = encode_rgb8(width, height, &gradient(width, height), &options).unwrap();
    let container = HeifFile::parse(&file).unwrap();
    let primary = container.primary_id;
    assert_eq!(&container.item(primary).unwrap().item_type.0, b"grid");
    file
}

#[test]
fn a_photo_is_the_same_as_in_another_format() {
    start_processes();
    for (file, same) in [
        ("cat.heic", "cat.jpg"),
        ("exif_6.heic", "exif_6.jpg"),
        ("cat.avif", "cat.jpg"),
        ("exif_6.avif", "exif_6.jpg"),
    ] {
        let [photo, jpeg] = [file, same].map(|name| {
            let encoded = fs::read(data().join(name)).unwrap();
            crop_encoded(encoded).unwrap()
        });
        let (_, mean) = difference(&photo, &jpeg);
        assert!(mean < 3.0, "{file}: {mean}");
    }
}

#[test]
fn tiles_are_put_together() {
    let (width, height) = (600, 530);
    let file = tiled(width, height);
    let pixels = decode(&file, &PreprocessConfig::default()).unwrap();
    assert_eq!((pixels.width, pixels.height), (width, height));
    let rgb: Vec<u8> = pixels
        .data
        .as_chunks::<4>()
        .0
        .iter()
        .flat_map(|&[red, green, blue, _]| [red, green, blue])
        .collect();
    let (_, mean) = difference(&rgb, &gradient(width, height));
    assert!(mean < 1.0, "{mean}");

    // Rows that are scaled as they are decoded make the same crop.
    let scaled = crop_encoded(file).unwrap();
    let mut whole = vec![0; CROP_BYTES];
    Resizer::default()
        .crop(&pixels, &IMAGENET, &mut whole)
        .unwrap();
    assert_eq!(difference(&scaled, &whole).0, 0);
}

#[test]
fn every_turn_is_undone() {
    let file = fs::read(data().join("exif_6.heic")).unwrap();
    let container = HeifFile::parse(&file).unwrap();
    let turns = container
        .item_properties(container.primary_id)
        .unwrap()
        .filter(|property| matches!(property, Property::Rotation(_)));
    assert_eq!(turns.count(), 1);

    let at = file.windows(4).position(|kind| kind == b"irot").unwrap() + 4;
    let upright = |quarters: u8| {
        let mut file = file.clone();
        file[at] = quarters;
        let pixels = decode(&file, &PreprocessConfig::default()).unwrap();
        pixels.orientation
    };
    assert_eq!(
        [0, 1, 2, 3].map(upright),
        [1, 8, 3, 6].map(Orientation::from_exif)
    );
}

#[test]
fn damaged_files_are_rejected_with_a_reason() {
    let file = fs::read(data().join("cat.heic")).unwrap();
    for length in [16, 200, file.len() / 2] {
        let error = rejection(file[..length].to_vec());
        let reason = error.to_string();
        assert!(reason.contains("HEIC"), "{length}: {reason}");
    }

    let as_kind = |kind: &[u8; 4]| {
        let mut other = file.clone();
        for at in (0..file.len() - 4).filter(|&at| &file[at..at + 4] == b"hvc1") {
            other[at..at + 4].copy_from_slice(kind);
        }
        rejection(other).to_string()
    };
    let reason = as_kind(b"vvc1");
    assert!(reason.contains("of the type vvc1"), "{reason}");
    let reason = as_kind(b"av01");
    assert!(reason.contains("damaged HEIC"), "{reason}");
}

#[test]
fn sizes_beyond_the_limit_are_rejected_before_anything_is_decoded() {
    let file = tiled(600, 530);
    let mut sizes = file.clone();
    // The size of the whole is in the data of the grid, those of the tiles are in properties.
    for at in (0..file.len() - 4).filter(|&at| &file[at..at + 4] == b"ispe") {
        sizes[at + 8..at + 16].copy_from_slice(&[0, 1, 0, 0, 0, 1, 0, 0]);
    }
    let error = rejection(sizes);
    assert!(
        matches!(
            error,
            ImageError::TooManyPixels { .. } | ImageError::Damaged { .. }
        ),
        "{error}"
    );

    let config = PreprocessConfig {
        max_pixels: 300_000,
        ..PreprocessConfig::default()
    };
    let error = decode(&file, &config).unwrap_err();
    assert!(matches!(error, ImageError::TooManyPixels { .. }), "{error}");
}

#[test]
fn tables_that_take_long_to_read_are_rejected() {
    // A hundred thousand pictures of nothing.
    let entry = b"\0\0\0\x15infe\x02\0\0\0\0\x01\0\0hvc1\0";
    let mut table = b"\0\0\0\0\xff\xff".to_vec();
    table.extend(entry.repeat(100_000));
    let boxed = |kind: &[u8; 4], content: &[u8]| {
        let mut out = (content.len() as u32 + 8).to_be_bytes().to_vec();
        out.extend(kind);
        out.extend(content);
        out
    };
    let meta = [&[0; 4][..], &boxed(b"iinf", &table)].concat();
    let file = [boxed(b"ftyp", b"heic\0\0\0\0"), boxed(b"meta", &meta)].concat();
    let error = rejection(file).to_string();
    assert!(error.contains("tables"), "{error}");
}

fn avif(name: &str) -> Vec<u8> {
    read(data().join("avif").join(name))
}

/// The pixels of a file as red, green and blue.
fn rgb(file: &[u8]) -> Pixels {
    start_processes();
    let mut pixels = decode(file, &PreprocessConfig::default()).unwrap();
    let channels = pixels.layout.channels();
    let offsets = pixels.layout.rgb_offsets();
    pixels.data = pixels
        .data
        .chunks_exact(channels)
        .flat_map(|pixel| offsets.map(|offset| pixel[offset]))
        .collect();
    pixels
}

#[test]
fn avif_files_of_every_kind_show_the_same() {
    let source = rgb(&avif("source.png"));
    let gray: Vec<u8> = source
        .data
        .as_chunks::<3>()
        .0
        .iter()
        .flat_map(|pixel| {
            let [red, green, blue] = pixel.map(f64::from);
            [(0.299 * red + 0.587 * green + 0.114 * blue).round() as u8; 3]
        })
        .collect();
    for (name, largest_mean) in [
        ("yuv444", 1.5),
        ("yuv422", 2.0),
        ("yuv420", 2.5),
        ("limited", 2.5),
        ("10bit", 2.5),
        ("12bit_limited", 2.0),
        ("bt709", 1.5),
        ("bt2020", 1.5),
        ("identity", 1.5),
        ("alpha", 2.5),
        ("sequence", 2.5),
        ("left", 2.5),
        ("mirrored", 2.5),
        ("yuv400", 1.5),
        ("gray_limited", 1.5),
    ] {
        let pixels = rgb(&avif(&format!("{name}.avif")));
        assert_eq!((pixels.width, pixels.height), (97, 65), "{name}");
        let expected = if ["yuv400", "gray_limited"].contains(&name) {
            &gray
        } else {
            &source.data
        };
        let (_, mean) = difference(&pixels.data, expected);
        assert!(mean < largest_mean, "{name}: {mean}");
    }
    let turned = |name: &str| rgb(&avif(name)).orientation;
    assert_eq!(turned("left.avif"), Orientation::from_exif(8));
    assert_eq!(turned("mirrored.avif"), Orientation::from_exif(2));
    assert_eq!(turned("yuv420.avif"), Orientation::default());

    let cropped = rgb(&avif("cropped.avif"));
    assert_eq!((cropped.width, cropped.height), (49, 33));
    let middle = source.data.chunks_exact(97 * 3).skip(16).take(33);
    let middle: Vec<u8> = middle
        .flat_map(|row| &row[24 * 3..73 * 3])
        .copied()
        .collect();
    let (_, mean) = difference(&cropped.data, &middle);
    assert!(mean < 1.5, "{mean}");
}

#[test]
fn tiles_of_avif_are_put_together() {
    let pixels = rgb(&avif("tiles.avif"));
    assert_eq!((pixels.width, pixels.height), (256, 192));
    let cat = rgb(&read(data().join("cat.jpg")));
    let part = cat
        .data
        .chunks_exact(cat.width as usize * 3)
        .skip(30)
        .take(192);
    let part: Vec<u8> = part
        .flat_map(|row| &row[90 * 3..346 * 3])
        .copied()
        .collect();
    let (_, mean) = difference(&pixels.data, &part);
    assert!(mean < 5.0, "{mean}");
}

#[test]
fn colours_of_rare_kinds_are_rejected() {
    start_processes();
    let reason = rejection(avif("ycgco.avif")).to_string();
    assert!(reason.contains("matrix 8 of H.273"), "{reason}");
}

#[test]
fn damaged_avif_files_are_rejected_with_a_reason() {
    start_processes();
    let file = avif("yuv420.avif");
    for length in [16, 200, file.len() / 2, file.len() - 1] {
        let reason = rejection(file[..length].to_vec()).to_string();
        assert!(reason.contains("AVIF"), "{length}: {reason}");
    }
    // The size in the container is larger than the coded one, or smaller.
    let at = file.windows(4).position(|kind| kind == b"ispe").unwrap() + 8;
    for (width, height) in [(98, 65), (97, 1 << 20), (96, 65), (97, 64)] {
        let mut sized = file.clone();
        sized[at..at + 4].copy_from_slice(&u32::to_be_bytes(width));
        sized[at + 4..at + 8].copy_from_slice(&u32::to_be_bytes(height));
        let reason = rejection(sized).to_string();
        let why = ["smaller", "damaged", "neither side", "more than"];
        assert!(
            why.iter().any(|why| reason.contains(why)),
            "{width}x{height}: {reason}"
        );
    }

    // The first tile tells what the others take.
    let mut tiles = avif("tiles.avif");
    let second = tiles.windows(3).rposition(|unit| unit == b"\x0a\x0b\0");
    if let Some(second) = second {
        tiles[second + 9] ^= 0x10;
        let reason = rejection(tiles).to_string();
        assert!(reason.contains("AVIF"), "{reason}");
    }
}

#[test]
fn many_damaged_pictures_end_nothing() {
    start_processes();
    let mut random = random_numbers(0x2545_f491_4f6c_dd1d);
    let mut preprocessor = Preprocessor::new(PreprocessConfig::default());
    let mut crop = vec![0; CROP_BYTES];
    let mut decoded = 0;
    for name in [
        "yuv420.avif",
        "12bit_limited.avif",
        "tiles.avif",
        "sequence.avif",
    ] {
        let whole = avif(name);
        for _ in 0..100 {
            let mut damaged = whole.clone();
            for _ in 0..=random(4) {
                let at = random(damaged.len());
                damaged[at] = random(256) as u8;
            }
            let source = Source::Encoded(damaged.into());
            let cropped = preprocessor.crop(&source, &IMAGENET, &mut crop);
            decoded += u32::from(cropped.is_ok());
        }
        let source = Source::Encoded(whole.into());
        preprocessor.crop(&source, &IMAGENET, &mut crop).unwrap();
    }
    assert!(decoded > 40, "{decoded}");
}

#[test]
fn a_picture_that_takes_too_long_is_abandoned() {
    start_processes();
    let config = PreprocessConfig {
        max_decode_time: Duration::from_micros(900),
        ..PreprocessConfig::default()
    };
    let start = Instant::now();
    let error = decode(&read(data().join("cat.avif")), &config).unwrap_err();
    assert!(matches!(error, ImageError::TookTooLong { .. }), "{error}");
    assert!(start.elapsed() < Duration::from_secs(5));
    // The next one is decoded by another process.
    assert_eq!(rgb(&avif("yuv420.avif")).width, 97);
}
