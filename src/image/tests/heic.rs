//! HEIC files: by other programs, of tiles, turned, damaged, and made to cost much.

use std::fs;

use heifer::{
    EncodeOptions, encode_rgb8,
    heifer_isobmff::{HeifFile, boxes::Property},
};

use super::*;

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
    for (file, same) in [("cat.heic", "cat.jpg"), ("exif_6.heic", "exif_6.jpg")] {
        let [heic, jpeg] = [file, same].map(|name| {
            let encoded = fs::read(data().join(name)).unwrap();
            crop_encoded(encoded).unwrap()
        });
        let (_, mean) = difference(&heic, &jpeg);
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

    let mut av1 = file.clone();
    for at in (0..file.len() - 4).filter(|&at| &file[at..at + 4] == b"hvc1") {
        av1[at..at + 4].copy_from_slice(b"av01");
    }
    let reason = rejection(av1).to_string();
    assert!(reason.contains("AV1 and not HEVC"), "{reason}");
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
