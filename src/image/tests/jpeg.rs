//! JPEG files: every kind as Pillow decodes it, and what is rejected.

use super::*;

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
            let geometry = Geometry::cropped(width, height, resize_shorter_side);
            for config in [PreprocessConfig::default(), SCALED] {
                let min_shorter_side = config.jpeg_scaling.min_shorter_side(resize_shorter_side);
                let mut whole = Pixels::default();
                let needed = Needed {
                    min_shorter_side,
                    ..Needed::default()
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
    // Decoding them would take minutes.
    assert!(start.elapsed() < Duration::from_secs(10));
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
