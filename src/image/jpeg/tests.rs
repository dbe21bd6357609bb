//! The decoder against Pillow, whose pixels it has to reproduce exactly.

use std::{
    fs,
    path::{Path, PathBuf},
    process::Command,
};

use super::*;
use crate::{image::PreprocessConfig, testing::skipped};

/// Python with Pillow, which `make test-env` sets up.
pub(super) fn pillow() -> Option<PathBuf> {
    let python = Path::new(env!("CARGO_MANIFEST_DIR")).join(".venv/bin/python");
    let import = Command::new(&python)
        .args(["-c", "import numpy, PIL.Image"])
        .output();
    if import.is_ok_and(|output| output.status.success()) {
        return Some(python);
    }
    skipped("there is no Python with Pillow; `make test-env` sets it up");
    None
}

/// The size and the pixels of a binary PNM file.
pub(super) fn read_pnm(path: &Path) -> ([u32; 2], Vec<u8>) {
    let file = fs::read(path).unwrap();
    assert!(file.starts_with(b"P5") || file.starts_with(b"P6"));
    let mut fields = file[3..].splitn(3, |byte| byte.is_ascii_whitespace());
    let mut number = || -> u32 {
        let field = str::from_utf8(fields.next().unwrap()).unwrap();
        field.parse().unwrap()
    };
    let [width, height] = [number(), number()];
    let rest = fields.next().unwrap();
    let maximum = b"255\n";
    assert!(rest.starts_with(maximum));
    ([width, height], rest[maximum.len()..].to_vec())
}

fn decoded(encoded: &[u8]) -> Result<Pixels, ImageError> {
    let mut pixels = Pixels::default();
    decode(
        &mut pixels,
        encoded,
        &Budget::new(&PreprocessConfig::default()),
        Needed::default(),
        None,
    )?;
    Ok(pixels)
}

/// Cuts off at least half of the last scan's data.
fn cut(encoded: &[u8]) -> &[u8] {
    let is_scan = |pair: &[u8]| pair == [0xff, marker::SOS];
    let last_scan = encoded.windows(2).rposition(is_scan).unwrap();
    let header = usize::from(encoded[last_scan + 3]) + 2;
    // What the last bytes are for is known only for longer scans.
    let data = encoded.len() - last_scan - header;
    let kept = if data > 64 { header + data / 2 } else { 1 };
    &encoded[..last_scan + kept]
}

/// `RESNET18_TEST_JPEGS` is the number of files, and `RESNET18_TEST_SEED` makes others of them.
#[test]
fn random_files_have_exactly_the_pixels_that_pillow_decodes() {
    let Some(python) = pillow() else {
        return;
    };
    let variable = |name: &str, default: &str| std::env::var(name).unwrap_or(default.to_owned());
    let count = variable("RESNET18_TEST_JPEGS", "300");
    let folder = tempfile::tempdir().unwrap();
    let output = Command::new(python)
        .arg(concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/tests/python/make_jpegs.py"
        ))
        .arg(folder.path())
        .args([&count, &variable("RESNET18_TEST_SEED", "1")])
        .output()
        .unwrap();
    let made = String::from_utf8_lossy(&output.stdout);
    assert!(
        output.status.success(),
        "{made}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    if !made.contains("cjpeg") {
        skipped("there is no cjpeg, so arithmetic coding and odd progressions are left out");
    }

    let mut files = 0;
    for entry in fs::read_dir(folder.path()).unwrap() {
        let path = entry.unwrap().path();
        if path.extension().is_none_or(|extension| extension != "jpg") {
            continue;
        }
        let encoded = fs::read(&path).unwrap();
        let keep = || {
            let kept = std::env::temp_dir().join(path.file_name().unwrap());
            fs::write(&kept, &encoded).unwrap();
            kept.display().to_string()
        };

        let pixels = decoded(&encoded).unwrap_or_else(|error| panic!("{}: {error}", keep()));
        let (size, expected) = read_pnm(&path.with_extension("pnm"));
        assert_eq!([pixels.width, pixels.height], size, "{}", keep());
        assert_eq!(pixels.data.len(), expected.len(), "{}", keep());
        let differences = pixels.data.iter().zip(&expected);
        let largest = differences.map(|(a, b)| a.abs_diff(*b)).max();
        assert_eq!(largest, Some(0), "{}", keep());

        let error = decoded(cut(&encoded)).map(|_| "pixels").unwrap_err();
        assert!(
            matches!(error, ImageError::Truncated { .. }),
            "{}, cut: {error}",
            keep()
        );
        files += 1;
    }
    assert_eq!(files.to_string(), count);
    println!("{made}");
}
