//! What decoding an image will cost, by its headers: memory and time that a caller can be charged
//! before any of it is spent.
//!
//! Each format has an [`Outline`]: the size of its picture, and what its decoder needs for it.

use std::time::Duration;

use super::{
    Fit, Geometry, ImageFormat, PixelFormat, PreprocessConfig, RawFrame, Region, Source, bmp, gif,
    guard::guarded,
    heif, ico, jpeg,
    outline::{Outline, area},
    png, pnm, qoi, tga, tiff, webp,
};

/// What decoding an image, and resizing it to a crop, is expected to cost.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Estimate {
    /// The bytes that decoding may allocate at its peak, the crop excluded.
    pub memory_bytes: u64,
    /// The CPU time of decoding and resizing on one core of a usual machine. It is rough, and errs
    /// high by up to a few times.
    pub time: Duration,
    /// Width times height; 0 if the headers cannot be read.
    pub pixels: u64,
}

/// Estimates the cost of making the crop of an image, or those of its `regions`, from its headers,
/// within microseconds.
///
/// JPEG files of several scans are searched to their end for the headers of their scans. Files that
/// will be rejected by their headers cost next to nothing, as do ready crops.
pub fn estimate(
    source: &Source,
    regions: &[Region],
    config: PreprocessConfig,
    geometry: &Geometry,
) -> Estimate {
    let outline = match source {
        Source::Encoded(encoded) => {
            let format = ImageFormat::of(encoded);
            // Some headers are read by decoders of other crates.
            guarded(format, || outline(format?, encoded, &config)).flatten()
        }
        Source::Raw(frame) => Some(raw_frame(frame)),
        Source::Crop(_) => None,
    };
    let accepted =
        outline.filter(|outline| config.check_size(outline.width, outline.height).is_ok());
    let Some(mut outline) = accepted else {
        return Estimate {
            time: OVERHEAD,
            ..Estimate::default()
        };
    };
    let (width, height) = (outline.width, outline.height);
    let mut part = 0;
    let mut after_decoding = resizing(&outline, geometry);
    if !regions.is_empty() {
        // The picture is kept whole, and a region at a time is copied out of it.
        outline.by_rows = false;
        after_decoding = 0;
        for area in regions.iter().map(|region| region.area(width, height)) {
            part = part.max(area * outline.bytes_per_pixel);
            let per_pixel = 1 + 2 * geometry.filter.support() as u64;
            after_decoding = after_decoding.saturating_add(area * per_pixel);
        }
    }
    Estimate {
        memory_bytes: outline.memory_bytes(geometry).saturating_add(part),
        time: OVERHEAD + Duration::from_nanos(outline.nanoseconds.saturating_add(after_decoding)),
        pixels: outline.pixels(),
    }
}

/// What reading headers and writing a crop costs in any case.
const OVERHEAD: Duration = Duration::from_micros(100);

/// Reads the headers of a file; `None` if they cannot be read, so that the file will be
/// rejected.
fn outline(format: ImageFormat, encoded: &[u8], config: &PreprocessConfig) -> Option<Outline> {
    match format {
        ImageFormat::Jpeg => jpeg::outline(encoded, config.exif),
        ImageFormat::Png => png::outline(encoded, config.exif),
        ImageFormat::WebP => webp::outline(encoded),
        ImageFormat::Gif => gif::outline(encoded, config),
        ImageFormat::Bmp => bmp::outline(encoded),
        ImageFormat::Tiff => tiff::outline(encoded),
        ImageFormat::Pnm => pnm::outline(encoded),
        ImageFormat::Qoi => qoi::outline(encoded),
        ImageFormat::Ico => ico::outline(encoded, config.exif),
        ImageFormat::Tga => tga::outline(encoded),
        ImageFormat::Heic | ImageFormat::Avif => heif::outline(format, encoded, config),
    }
}

/// The time of resizing: what the crop shows of a picture is read once, and each pixel becomes a part
/// of as many scaled ones as the filter reaches.
fn resizing(outline: &Outline, geometry: &Geometry) -> u64 {
    let pixels = match geometry.fit {
        // The square in the middle.
        Fit::Crop | Fit::CropRounded => {
            let shorter = outline.width.min(outline.height);
            outline.pixels().min(2 * area(shorter, shorter))
        }
        Fit::Squash | Fit::Letterbox(_) | Fit::Line(_) => outline.pixels(),
    };
    pixels * 2 * geometry.filter.support() as u64
}

/// What converting a raw frame needs. One that is resized in place counts as if it were copied.
fn raw_frame(frame: &RawFrame) -> Outline {
    let (width, height) = (frame.width, frame.height);
    let bytes_per_pixel = match frame.format {
        PixelFormat::Gray8 => 1,
        PixelFormat::Rgb8 | PixelFormat::Bgr8 => 3,
        // YCbCr is converted to four bytes.
        PixelFormat::Rgba8 | PixelFormat::Bgra8 | PixelFormat::Nv12 | PixelFormat::I420 => 4,
    };
    // A frame without the data that its size needs is rejected.
    let pixels = area(width, height);
    let is_complete = pixels <= frame.data.len() as u64;
    Outline {
        width: if is_complete { width } else { 0 },
        height,
        bytes_per_pixel,
        working_bytes: 32 * u64::from(width),
        nanoseconds: pixels.saturating_mul(4),
        ..Outline::default()
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs,
        path::{Path, PathBuf},
        time::Instant,
    };

    use bytes::Bytes;

    use super::*;
    use crate::{
        image::{Crop, Filter, ImageError, Preprocessor, decode},
        testing::random_numbers,
    };

    const GEOMETRY: Geometry = Geometry::cropped(4, 4, 4);

    fn of(encoded: impl Into<Bytes>) -> Estimate {
        estimate(
            &Source::Encoded(encoded.into()),
            &[],
            PreprocessConfig::default(),
            &GEOMETRY,
        )
    }

    /// The image files of the tests and the fuzzers' seeds.
    fn files() -> Vec<PathBuf> {
        let folders = [
            "tests/data",
            "tests/data/jpeg",
            "tests/data/avif",
            "fuzz/seeds/image",
        ];
        let entries = folders.iter().flat_map(|folder| {
            fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join(folder)).unwrap()
        });
        entries
            .map(|entry| entry.unwrap().path())
            .filter(|path| path.is_file())
            .collect()
    }

    #[test]
    fn headers_tell_the_size_that_the_decoder_finds() {
        #[cfg(unix)]
        crate::image::heif::av1::tests::start_processes();
        let config = PreprocessConfig::default();
        let mut images = 0;
        for path in files() {
            let encoded = fs::read(&path).unwrap();
            let Ok(pixels) = decode(&encoded, &config) else {
                continue;
            };
            let estimate = of(encoded);
            let name = path.display();
            let area = u64::from(pixels.width) * u64::from(pixels.height);
            assert_eq!(estimate.pixels, area, "{name}");
            assert!(
                estimate.time < Duration::from_millis(200),
                "{name}: {estimate:?}"
            );
            images += 1;
        }
        assert!(images > 40, "{images} images");
    }

    #[test]
    fn what_headers_reject_costs_nothing() {
        for file in [
            &b"P6\n99999999 99999999\n255\nabc"[..],
            b"P5\n1 64000000\n255\n",
            b"II*\0\xff\xff\xff\xff",
            b"\xff\xd8\xff",
            b"GIF89a",
            b"no image",
            b"",
        ] {
            let estimate = of(file);
            assert_eq!((estimate.memory_bytes, estimate.pixels), (0, 0), "{file:?}");
            assert!(estimate.time < Duration::from_millis(1));
        }
        let ready = Source::Crop(Crop::Pixels(Bytes::from_static(&[0; 12])));
        assert_eq!(
            estimate(&ready, &[], PreprocessConfig::default(), &GEOMETRY).memory_bytes,
            0
        );
    }

    #[test]
    fn small_files_of_large_pictures_cost_what_their_pixels_do() {
        // A lossless WebP file of 8000 x 8000 pixels of one colour.
        let webp =
            b"RIFF\x1a\0\0\0WEBPVP8L\x0e\0\0\0\x2f\x3f\xdf\xcf\x07\x07\x10\x11\xfd\x0fDD\xff\x03";
        let estimate = of(&webp[..]);
        assert_eq!(estimate.pixels, 64_000_000);
        assert!(estimate.memory_bytes >= 7 * 64_000_000, "{estimate:?}");
        assert!(estimate.time > Duration::from_millis(300), "{estimate:?}");
    }

    #[test]
    fn pictures_that_are_shown_whole_cost_more() {
        // A PNM, whose rows all are in memory, and which is ten times as high as wide.
        let tall = b"P6\n1000 10000\n255\n";
        let with = |fit, filter| {
            let geometry = Geometry {
                fit,
                filter,
                ..Geometry::cropped(600, 600, 600)
            };
            let source = Source::Encoded(Bytes::from_static(tall));
            estimate(&source, &[], PreprocessConfig::default(), &geometry)
        };
        let cropped = with(Fit::Crop, Filter::Bilinear);
        // 600 columns of three bytes, in 1000 rows and in 10,000.
        for fit in [Fit::Squash, Fit::Letterbox([0; 3])] {
            let whole = with(fit, Filter::Bilinear);
            assert_eq!(whole.memory_bytes - cropped.memory_bytes, 600 * 3 * 9000);
            assert_eq!((whole.time - cropped.time).as_millis(), 16);
        }
        let sharp = with(Fit::Crop, Filter::Lanczos);
        assert_eq!((sharp.time - cropped.time).as_millis(), 8);
    }

    #[test]
    fn damaged_files_are_decoded_or_rejected_in_time_and_never_unforeseen() {
        let mut random = random_numbers(0x2545_f491_4f6c_dd1d);
        // Small files only, which decoders without optimizations decode quickly too.
        let files: Vec<_> = files()
            .iter()
            .map(|path| fs::read(path).unwrap())
            .filter(|file| file.len() < 4000)
            .collect();
        let config = PreprocessConfig {
            max_pixels: 1 << 20,
            max_decode_time: Duration::from_secs(5),
            ..PreprocessConfig::default()
        };
        let mut preprocessor = Preprocessor::new(config);
        let mut crop = vec![0; GEOMETRY.bytes()];
        let mut decoded = 0;
        for _ in 0..5000 {
            let mut file = files[random(files.len())].clone();
            for _ in 0..=random(4) {
                // Half of the damage is in the headers.
                let end = file.len().min([100, usize::MAX][random(2)]);
                file[random(end)] = [0, 1, 0x7f, 0xff, random(256) as u8][random(5)];
            }
            if random(4) == 0 {
                file.truncate(random(file.len()).max(1));
            }
            let source = Source::Encoded(file.into());
            let estimate = estimate(&source, &[], config, &GEOMETRY);
            match preprocessor.crop(&source, &GEOMETRY, &mut crop) {
                Ok(()) => {
                    assert_ne!(estimate.pixels, 0, "{source:?}");
                    decoded += 1;
                }
                Err(error) => assert!(
                    !matches!(error, ImageError::TookTooLong { .. }),
                    "{source:?} took too long"
                ),
            }
        }
        assert!(decoded > 500, "{decoded} were decoded");
    }

    #[test]
    fn long_headers_are_read_quickly() {
        // As large as a message may be, of what has to be skipped byte by byte or part by part.
        let jpeg = [b"\xff\xd8\xff\xc0", &vec![0; 16 << 20][..]].concat();
        let gif = [b"GIF89a\x01\0\x01\0\0\0\0", &b"!\xfe\0".repeat(4 << 20)[..]].concat();
        let pnm = [b"P6\n#", &vec![b'#'; 16 << 20][..]].concat();
        for file in [jpeg, gif, pnm] {
            let start = Instant::now();
            let _ = of(file);
            assert!(start.elapsed() < Duration::from_secs(10));
        }
    }
}
