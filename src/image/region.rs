//! Regions of an image: boxes that are cut out of its decoded pixels, each to be classified like an
//! image of its own.

use std::fmt;

use super::pixels::{Pixels, resize_buffer};

/// How far a box in fractions may reach over the edge, as a fraction of the side: what sums of
/// rounded numbers are off by.
const ROUNDING: f64 = 1e-6;

/// A box in the upright image.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Region {
    pub left: f64,
    pub top: f64,
    pub width: f64,
    pub height: f64,
    /// What the four numbers count.
    pub unit: RegionUnit,
}

/// What the numbers of a [`Region`] count.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RegionUnit {
    /// Pixels of the upright image.
    #[default]
    Pixels,
    /// Parts of its width and height: 0 to 1.
    Fractions,
}

/// Why a region can't be cut out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("region {number} of {of} ({region}) {reason}")]
pub struct RegionError {
    /// Counts from 1.
    pub number: usize,
    /// How many there are.
    pub of: usize,
    /// Its numbers.
    pub region: String,
    /// What is wrong with it.
    pub reason: String,
}

impl fmt::Display for Region {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            left,
            top,
            width,
            height,
            unit,
        } = self;
        let unit = match unit {
            RegionUnit::Pixels => "pixels",
            RegionUnit::Fractions => "fractions",
        };
        write!(
            f,
            "left {left}, top {top}, width {width}, height {height}, in {unit}"
        )
    }
}

/// Whole pixels of the upright image.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct PixelBox {
    pub left: u32,
    pub top: u32,
    pub width: u32,
    pub height: u32,
}

impl Region {
    /// Checks what can be known without the image.
    ///
    /// # Errors
    /// The first region that fits no image.
    pub fn check_all(regions: &[Self]) -> Result<(), RegionError> {
        let check = |region: &Self| {
            let Self {
                left,
                top,
                width,
                height,
                unit,
            } = *region;
            if [left, top, width, height]
                .iter()
                .any(|value| !value.is_finite())
            {
                return Err("has a value that is not a number".to_owned());
            }
            if width <= 0.0 || height <= 0.0 {
                return Err("is empty; width and height must be more than 0".to_owned());
            }
            if left < 0.0 || top < 0.0 {
                return Err(
                    "begins outside of the image; left and top must be 0 or more".to_owned(),
                );
            }
            let most = 1.0 + ROUNDING;
            if unit == RegionUnit::Fractions && (left + width > most || top + height > most) {
                return Err("reaches over the edge of the image, which is at 1".to_owned());
            }
            Ok(())
        };
        Self::each(regions, check).map(|_| ())
    }

    /// The regions in an image of this size, with their edges rounded to whole pixels.
    ///
    /// # Errors
    /// The first region that is not within the image, or empty.
    pub(super) fn resolve_all(
        regions: &[Self],
        (width, height): (u32, u32),
    ) -> Result<Vec<PixelBox>, RegionError> {
        Self::check_all(regions)?;
        Self::each(regions, |region| region.resolve(width, height))
    }

    fn each<T>(
        regions: &[Self],
        of: impl Fn(&Self) -> Result<T, String>,
    ) -> Result<Vec<T>, RegionError> {
        let one = |(index, region): (usize, &Self)| {
            of(region).map_err(|reason| RegionError {
                number: index + 1,
                of: regions.len(),
                region: region.to_string(),
                reason,
            })
        };
        regions.iter().enumerate().map(one).collect()
    }

    fn resolve(&self, width: u32, height: u32) -> Result<PixelBox, String> {
        let edges = |start: f64, length: f64, side: u32| {
            let side = f64::from(side);
            match self.unit {
                RegionUnit::Pixels => (start.round(), (start + length).round()),
                RegionUnit::Fractions => (
                    (start * side).round(),
                    ((start + length) * side).round().min(side),
                ),
            }
        };
        let (left, right) = edges(self.left, self.width, width);
        let (top, bottom) = edges(self.top, self.height, height);
        if right > f64::from(width) || bottom > f64::from(height) {
            return Err(format!(
                "reaches over the edge of the image, which is {width}x{height} pixels when it is \
                 upright"
            ));
        }
        if right <= left || bottom <= top {
            return Err(format!(
                "is empty once its edges are rounded to whole pixels; the image is \
                 {width}x{height} pixels"
            ));
        }
        Ok(PixelBox {
            left: left as u32,
            top: top as u32,
            width: (right - left) as u32,
            height: (bottom - top) as u32,
        })
    }

    /// About how many pixels the region has in an image of this size.
    pub(super) fn area(&self, width: u32, height: u32) -> u64 {
        let whole = f64::from(width) * f64::from(height);
        let area = match self.unit {
            RegionUnit::Pixels => self.width * self.height,
            RegionUnit::Fractions => self.width * self.height * whole,
        };
        // What is no number becomes 0.
        area.min(whole) as u64
    }
}

impl Pixels {
    /// The width and height of the upright image.
    pub(super) fn upright_size(&self) -> (u32, u32) {
        if self.orientation.swapped {
            (self.height, self.width)
        } else {
            (self.width, self.height)
        }
    }

    /// Copies a part of the image into `target`, upright.
    pub(super) fn cut(&self, part: PixelBox, target: &mut Self) {
        let channels = self.layout.channels();
        let stored_width = self.width as usize;
        target.width = part.width;
        target.height = part.height;
        target.layout = self.layout;
        target.orientation = super::Orientation::default();
        let (width, height) = (part.width as usize, part.height as usize);
        resize_buffer(&mut target.data, width * height * channels);

        let (left, top) = (part.left as usize, part.top as usize);
        let orientation = self.orientation;
        let backwards = |place: usize, side: u32| side as usize - 1 - place;
        let rows = target.data.chunks_exact_mut(width * channels);
        for (y, row) in rows.enumerate() {
            if !orientation.swapped && !orientation.mirrored_x {
                let mut from = top + y;
                if orientation.mirrored_y {
                    from = backwards(from, self.height);
                }
                let start = (from * stored_width + left) * channels;
                row.copy_from_slice(&self.data[start..][..row.len()]);
                continue;
            }
            for (x, pixel) in row.chunks_exact_mut(channels).enumerate() {
                let (mut column, mut line) = (left + x, top + y);
                if orientation.swapped {
                    (column, line) = (line, column);
                }
                if orientation.mirrored_x {
                    column = backwards(column, self.width);
                }
                if orientation.mirrored_y {
                    line = backwards(line, self.height);
                }
                let start = (line * stored_width + column) * channels;
                pixel.copy_from_slice(&self.data[start..][..channels]);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::image::{
        Geometry, ImageError, Orientation, PixelFormat, PixelLayout, PreprocessConfig,
        Preprocessor, RawFrame, Resizer, Source, decode,
    };

    const GEOMETRY: Geometry = Geometry::cropped(32, 24, 40);

    fn region(left: f64, top: f64, width: f64, height: f64) -> Region {
        Region {
            left,
            top,
            width,
            height,
            unit: RegionUnit::Pixels,
        }
    }

    fn fractions(left: f64, top: f64, width: f64, height: f64) -> Region {
        Region {
            unit: RegionUnit::Fractions,
            ..region(left, top, width, height)
        }
    }

    /// A PNG of part of an image that has been decoded and turned upright by other code.
    fn png(upright: &image::DynamicImage, part: PixelBox) -> Bytes {
        let cut = upright.crop_imm(part.left, part.top, part.width, part.height);
        let mut file = std::io::Cursor::new(Vec::new());
        cut.write_to(&mut file, image::ImageFormat::Png).unwrap();
        file.into_inner().into()
    }

    /// The image as it is decoded, upright, in RGB or gray.
    fn upright(pixels: &Pixels, exif: u8) -> image::DynamicImage {
        let Pixels {
            width,
            height,
            layout,
            data,
            ..
        } = pixels.clone();
        let mut image = match layout {
            PixelLayout::Gray => image::GrayImage::from_raw(width, height, data)
                .unwrap()
                .into(),
            PixelLayout::Rgb => image::RgbImage::from_raw(width, height, data)
                .unwrap()
                .into(),
            PixelLayout::Rgba => image::RgbaImage::from_raw(width, height, data)
                .unwrap()
                .into(),
            other => panic!("{other:?}"),
        };
        let turn = image::metadata::Orientation::from_exif(exif).unwrap();
        image::DynamicImage::apply_orientation(&mut image, turn);
        image
    }

    fn crops(source: &Source, regions: &[Region]) -> Result<Vec<Vec<u8>>, ImageError> {
        let mut crops = vec![vec![0; GEOMETRY.bytes()]; regions.len()];
        Preprocessor::new(PreprocessConfig::default())
            .crop_regions(source, regions, &GEOMETRY, &mut crops)
            .map(|()| crops)
    }

    fn crop(source: &Source) -> Vec<u8> {
        let mut crop = vec![0; GEOMETRY.bytes()];
        Preprocessor::new(PreprocessConfig::default())
            .crop(source, &GEOMETRY, &mut crop)
            .unwrap();
        crop
    }

    fn data(name: &str) -> Bytes {
        let path = format!("{}/tests/data/{name}", env!("CARGO_MANIFEST_DIR"));
        std::fs::read(path).unwrap().into()
    }

    #[test]
    fn a_region_is_what_its_pixels_are_as_an_image_of_their_own() {
        for (name, exif) in [
            ("cat.jpg", 1),
            ("cat_gray.jpg", 1),
            ("exif_6.jpg", 6),
            ("moon_16bit.png", 1),
            ("cat_lossy.webp", 1),
        ] {
            let file = data(name);
            let pixels = decode(&file, &PreprocessConfig::default()).unwrap();
            assert_eq!(pixels.orientation, Orientation::from_exif(exif), "{name}");
            let upright = upright(&pixels, exif);
            let size = (upright.width(), upright.height());
            let regions = [
                fractions(0.0, 0.0, 1.0, 1.0),
                region(3.0, 5.0, 41.0, 29.0),
                region(10.4, 7.6, 20.2, 50.0),
                fractions(0.5, 0.25, 0.5, 0.75),
                region(f64::from(size.0) - 1.0, f64::from(size.1) - 1.0, 1.0, 1.0),
            ];
            let found = crops(&Source::Encoded(file), &regions).unwrap();
            let parts = Region::resolve_all(&regions, size).unwrap();
            for (part, found) in parts.into_iter().zip(found) {
                let expected = crop(&Source::Encoded(png(&upright, part)));
                assert_eq!(found, expected, "{name}: {part:?}");
            }
        }
    }

    #[test]
    fn every_orientation_is_cut_upright() {
        let stored = Pixels {
            width: 7,
            height: 5,
            layout: PixelLayout::Rgb,
            orientation: Orientation::default(),
            data: (0..7 * 5 * 3).collect(),
        };
        for exif in 1..=8 {
            let turned = Pixels {
                orientation: Orientation::from_exif(exif),
                ..stored.clone()
            };
            let upright = upright(&stored, exif);
            assert_eq!(turned.upright_size(), (upright.width(), upright.height()));
            let part = PixelBox {
                left: 1,
                top: 2,
                width: 4,
                height: 3,
            };
            let mut cut = Pixels::default();
            turned.cut(part, &mut cut);
            let expected = upright.crop_imm(1, 2, 4, 3).into_rgb8().into_raw();
            assert_eq!(cut.data, expected, "orientation {exif}");
        }
    }

    #[test]
    fn raw_frames_are_cut_like_files_of_their_pixels() {
        let (width, height) = (46, 38);
        for (format, bytes) in [
            (PixelFormat::Rgb8, 3 * 46 * 38),
            (PixelFormat::Bgra8, 4 * 46 * 38),
            (PixelFormat::Gray8, 46 * 38),
            (PixelFormat::Nv12, 46 * 38 * 3 / 2),
            (PixelFormat::I420, 46 * 38 * 3 / 2),
        ] {
            let data: Vec<u8> = (0..bytes).map(|index| (index * 31 % 251) as u8).collect();
            let source = Source::Raw(RawFrame {
                format,
                width,
                height,
                stride: 0,
                data: data.into(),
            });
            let found = crops(
                &source,
                &[fractions(0.0, 0.0, 1.0, 1.0), region(5.0, 3.0, 21.0, 30.0)],
            )
            .unwrap();
            assert_eq!(found[0], crop(&source), "{format}");

            // The pixels of the part, by way of the whole frame's.
            let mut whole = Pixels::default();
            let budget = crate::image::Budget::new(&PreprocessConfig::default());
            let Source::Raw(frame) = &source else {
                unreachable!()
            };
            crate::image::raw::decode(frame, &budget, &mut whole).unwrap();
            let mut part = Pixels::default();
            let middle = PixelBox {
                left: 5,
                top: 3,
                width: 21,
                height: 30,
            };
            whole.cut(middle, &mut part);
            let mut expected = vec![0; GEOMETRY.bytes()];
            Resizer::default()
                .crop(&part, &GEOMETRY, &mut expected)
                .unwrap();
            assert_eq!(found[1], expected, "{format}");
        }
    }

    #[test]
    fn a_wrong_region_is_named_with_what_is_wrong() {
        let file = Source::Encoded(data("tiny_33x47.png"));
        let good = region(0.0, 0.0, 33.0, 47.0);
        assert!(crops(&file, &[good]).is_ok());
        for (wrong, expected) in [
            (region(0.0, 0.0, 34.0, 10.0), "33x47"),
            (region(0.0, 40.0, 10.0, 8.0), "over the edge"),
            (region(33.0, 0.0, 1.0, 1.0), "over the edge"),
            (region(-1.0, 0.0, 5.0, 5.0), "begins outside"),
            (region(0.0, 0.0, 0.0, 5.0), "is empty"),
            (region(0.0, 0.0, 5.0, -5.0), "is empty"),
            (region(3.1, 0.0, 0.2, 5.0), "rounded"),
            (region(f64::NAN, 0.0, 5.0, 5.0), "not a number"),
            (region(0.0, 0.0, f64::INFINITY, 5.0), "not a number"),
            (region(0.0, 0.0, 1e300, 5.0), "over the edge"),
            (fractions(0.5, 0.0, 0.6, 0.5), "at 1"),
            (fractions(0.5, 0.0, 1e-9, 0.5), "rounded"),
        ] {
            let error = crops(&file, &[good, wrong]).unwrap_err().to_string();
            assert!(
                error.starts_with("region 2 of 2 (left ") && error.contains(expected),
                "{wrong}: {error}"
            );
        }
        // Sums of rounded fractions.
        assert!(crops(&file, &[fractions(0.7, 0.1, 0.3, 0.900_000_01)]).is_ok());
    }
}
