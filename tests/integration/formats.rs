//! Image files of every kind that Pillow writes, decoded to the pixels that Pillow reads.

use std::{fmt::Write, fs, path::Path};

#[cfg(unix)]
use resnet18_server::image::decode_av1_with;
use resnet18_server::image::{Exif, ImageError, ImageFormat, Pixels, PreprocessConfig, decode};

use crate::common::{pillow, script, succeed};

fn config() -> PreprocessConfig {
    PreprocessConfig {
        exif: Exif::Ignore,
        ..PreprocessConfig::default()
    }
}

/// The pixels as packed RGB, without alpha.
fn rgb(pixels: &Pixels) -> Vec<u8> {
    let channels = pixels.layout.channels();
    pixels
        .data
        .chunks_exact(channels)
        .flat_map(|pixel| {
            if channels < 3 {
                [pixel[0]; 3]
            } else {
                [pixel[0], pixel[1], pixel[2]]
            }
        })
        .collect()
}

#[test]
fn files_of_every_kind_that_pillow_writes_are_decoded_as_pillow_does() {
    let Some(python) = pillow() else { return };
    #[cfg(unix)]
    decode_av1_with(
        env!("CARGO_BIN_EXE_resnet18").into(),
        vec!["decode-av1".into()],
    );
    let folder = tempfile::tempdir().unwrap();
    succeed(script(&python, "make_images.py").arg(folder.path()), &[]);

    let index = fs::read_to_string(folder.path().join("index.txt")).unwrap();
    let mut wrong = String::new();
    let mut formats = Vec::new();
    for line in index.lines() {
        let [name, width, height, tolerance] = line.split(' ').collect::<Vec<_>>()[..] else {
            panic!("{line}");
        };
        let size = [width, height].map(|side| side.parse::<u32>().unwrap());
        if let Err(problem) = compare(&folder.path().join(name), size, tolerance.parse().unwrap()) {
            writeln!(wrong, "{name}: {problem}").unwrap();
        }
        formats.extend(ImageFormat::of(
            &fs::read(folder.path().join(name)).unwrap(),
        ));
    }
    assert!(wrong.is_empty(), "{wrong}");

    let count = |format| formats.iter().filter(|other| **other == format).count();
    assert!(
        count(ImageFormat::Tiff) > 400,
        "{}",
        count(ImageFormat::Tiff)
    );
    for format in [
        ImageFormat::Png,
        ImageFormat::Bmp,
        ImageFormat::WebP,
        ImageFormat::Gif,
        ImageFormat::Tga,
        ImageFormat::Qoi,
        ImageFormat::Ico,
        ImageFormat::Avif,
    ] {
        assert!(count(format) >= 8, "{format}: {}", count(format));
    }
}

/// Compares a file with the pixels beside it, and half of the file with none.
fn compare(path: &Path, [width, height]: [u32; 2], tolerance: u8) -> Result<(), String> {
    let file = fs::read(path).unwrap();
    let expected = fs::read(format!("{}.rgb", path.display())).unwrap();
    let pixels = decode(&file, &config()).map_err(|error| error.to_string())?;
    if (pixels.width, pixels.height) != (width, height) {
        return Err(format!("it has {}x{} pixels", pixels.width, pixels.height));
    }
    let differences = rgb(&pixels)
        .into_iter()
        .zip(expected)
        .map(|(a, b)| a.abs_diff(b));
    let largest = differences.max().unwrap_or(0);
    if largest > tolerance {
        return Err(format!("differs by {largest}"));
    }
    // Pillow adds a footer to TGA, without which the file is whole as well.
    let footer = if path.extension().is_some_and(|kind| kind == "tga") {
        26
    } else {
        0
    };
    match decode(&file[..(file.len() - footer) / 2], &config()) {
        Ok(_) => Err("half of it is read as a whole".to_owned()),
        Err(ImageError::DecoderPanic) => Err("half of it makes the decoder panic".to_owned()),
        Err(_) => Ok(()),
    }
}
