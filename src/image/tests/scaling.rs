//! JPEGs that are decoded at reduced scale.

use super::*;

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
        ..Needed::default()
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
    let small = Geometry::cropped(40, 40, 45);
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

/// libjpeg-turbo, which decodes whole pictures only, judges other damage.
#[cfg(not(feature = "turbojpeg"))]
#[test]
fn scaling_rejects_the_same_files_with_the_same_messages() {
    let small = Geometry::cropped(40, 40, 45);
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
