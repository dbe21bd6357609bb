//! Every fit and filter against Pillow and OpenCV; `tests/python/make_crops.py` makes the sheets.

use super::*;

const WIDTH: u32 = 40;
const HEIGHT: u32 = 32;
const PADDING: [u8; 3] = [127, 0, 200];
/// The columns of a sheet.
const FILTERS: [Filter; 8] = [
    Filter::Bilinear,
    Filter::Bicubic,
    Filter::Lanczos,
    Filter::Nearest,
    Filter::Linear,
    Filter::Area,
    Filter::Cubic,
    Filter::Lanczos4,
];

/// The rows of a sheet.
fn geometries() -> [Geometry; 6] {
    let crop = Geometry::cropped(WIDTH, HEIGHT, 46);
    let squash = |resize_shorter_side| Geometry {
        resize_shorter_side,
        fit: Fit::Squash,
        ..crop
    };
    let letterbox = Geometry {
        fit: Fit::Letterbox(PADDING),
        ..crop
    };
    let rounded = Geometry {
        fit: Fit::CropRounded,
        ..crop
    };
    let line = Geometry {
        fit: Fit::Line(PADDING),
        ..crop
    };
    [crop, squash(HEIGHT), squash(40), letterbox, rounded, line]
}

fn file(name: &str) -> PathBuf {
    data().join("fits").join(name)
}

/// The pixels of a PNG, RGB.
fn pixels(path: &Path) -> (u32, u32, Vec<u8>) {
    let image = image::open(path).unwrap().into_rgb8();
    (image.width(), image.height(), image.into_raw())
}

/// One crop of a sheet.
fn cell(sheet: &(u32, u32, Vec<u8>), column: usize, row: usize) -> Vec<u8> {
    let (width, height) = (WIDTH as usize, HEIGHT as usize);
    let rows = sheet.2.chunks_exact(sheet.0 as usize * 3);
    rows.skip(row * height)
        .take(height)
        .flat_map(|row| row[column * width * 3..][..width * 3].to_vec())
        .collect()
}

fn raw(name: &str) -> Source {
    let (width, height, data) = pixels(&file(name));
    Source::Raw(RawFrame {
        format: PixelFormat::Rgb8,
        width,
        height,
        stride: 0,
        data: data.into(),
    })
}

#[test]
fn every_fit_and_filter_matches_pillow_and_opencv() {
    for name in ["large", "small"] {
        let sheet = pixels(&file(&format!("{name}_crops.png")));
        let encoded: Bytes = read(file(&format!("{name}.png"))).into();
        for (row, geometry) in geometries().into_iter().enumerate() {
            for (column, filter) in FILTERS.into_iter().enumerate() {
                let geometry = Geometry { filter, ..geometry };
                let expected = cell(&sheet, column, row);
                // A file is scaled in bands of rows, and a frame is at once.
                for source in [
                    Source::Encoded(encoded.clone()),
                    raw(&format!("{name}.png")),
                ] {
                    let got = crop(source, &geometry).unwrap();
                    let (max, mean) = difference(&got, &expected);
                    println!(
                        "{name} {} {filter}: max {max}, mean {mean:.4}",
                        geometry.fit
                    );
                    let exact = matches!(
                        filter,
                        Filter::Bilinear | Filter::Bicubic | Filter::Lanczos | Filter::Nearest
                    );
                    assert!(
                        max <= u8::from(!exact),
                        "{name}, row {row}, {filter}: differs by up to {max}, {mean:.3} in the mean"
                    );
                }
            }
        }
    }
}

#[test]
fn every_fit_and_filter_turns_pictures_upright() {
    let (width, height, data) = pixels(&file("large.png"));
    let at = |x: u32, y: u32| data[3 * (y * width + x) as usize..][..3].to_vec();
    for geometry in geometries() {
        for filter in FILTERS {
            let geometry = Geometry { filter, ..geometry };
            let expected = crop(raw("large.png"), &geometry).unwrap();
            for exif in 1..=8 {
                let orientation = Orientation::from_exif(exif);
                let size = if orientation.swapped {
                    (height, width)
                } else {
                    (width, height)
                };
                let mut stored = Vec::new();
                for row in 0..size.1 {
                    for column in 0..size.0 {
                        let (x, y) = match exif {
                            1 => (column, row),
                            2 => (width - 1 - column, row),
                            3 => (width - 1 - column, height - 1 - row),
                            4 => (column, height - 1 - row),
                            5 => (row, column),
                            6 => (width - 1 - row, column),
                            7 => (width - 1 - row, height - 1 - column),
                            _ => (row, height - 1 - column),
                        };
                        stored.extend(at(x, y));
                    }
                }
                let pixels = Pixels {
                    width: size.0,
                    height: size.1,
                    layout: PixelLayout::Rgb,
                    orientation,
                    data: stored,
                };
                let mut got = vec![0; geometry.bytes()];
                Resizer::default()
                    .crop(&pixels, &geometry, &mut got)
                    .unwrap();
                let (max, _) = difference(&got, &expected);
                assert!(
                    max <= u8::from(filter != Filter::Nearest),
                    "orientation {exif}, {}, {filter}: differs by up to {max}",
                    geometry.fit
                );
            }
        }
    }
}

#[test]
fn a_jpeg_is_decoded_as_far_as_the_filter_reaches() {
    let encoded: Bytes = read(data().join("cat.jpg")).into();
    let whole = decode(&encoded, &PreprocessConfig::default()).unwrap();
    for geometry in geometries() {
        for filter in FILTERS {
            let geometry = Geometry { filter, ..geometry };
            let mut expected = vec![0; geometry.bytes()];
            Resizer::default()
                .crop(&whole, &geometry, &mut expected)
                .unwrap();
            let got = crop(Source::Encoded(encoded.clone()), &geometry).unwrap();
            assert_eq!(got, expected, "{}, {filter}", geometry.fit);
        }
    }
}

#[test]
fn extreme_proportions_cost_no_memory() {
    let square = Geometry::cropped(24, 24, 24);
    let fits = [
        Fit::Crop,
        Fit::CropRounded,
        Fit::Squash,
        Fit::Letterbox(PADDING),
    ];
    for (width, height) in [(1, 10_000), (10_000, 1), (1, 1), (3, 2)] {
        for fit in fits {
            for filter in FILTERS {
                let geometry = Geometry {
                    fit,
                    filter,
                    ..square
                };
                let frame = RawFrame {
                    format: PixelFormat::Gray8,
                    width,
                    height,
                    stride: 0,
                    data: vec![77; (width * height) as usize].into(),
                };
                let got = crop(Source::Raw(frame), &geometry).unwrap();
                assert_eq!(
                    got[3 * (12 * 24 + 12)],
                    77,
                    "{width}x{height}, {fit}, {filter}"
                );
            }
        }
    }

    let frame = RawFrame {
        format: PixelFormat::Gray8,
        width: 1,
        height: 18_725,
        stride: 0,
        data: vec![77; 18_725].into(),
    };
    let squash = Geometry {
        fit: Fit::Squash,
        ..IMAGENET
    };
    let error = crop(Source::Raw(frame.clone()), &squash).unwrap_err();
    assert_eq!(
        error,
        ImageError::SideTooLong {
            width: 1,
            height: 18_725,
            max_side: 18_724
        }
    );
    crop(Source::Raw(frame), &IMAGENET).unwrap();
}
