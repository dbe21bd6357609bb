//! Crops that callers prepare themselves: already upright and of the model's input size, either as
//! pixels or as normalized values.

use bytes::Bytes;

use super::{Geometry, ImageError};

/// A crop that needs no decoding.
#[derive(Clone, Debug)]
pub enum Crop {
    /// RGB pixels: `uint8 [height, width, 3]`.
    Pixels(Bytes),
    /// Pixels normalized by `(pixel / 255 - mean) / std`.
    Normalized {
        /// `float32 [3, height, width]` in the order red, green, blue, little-endian.
        values: Bytes,
        /// The mean of red, green and blue, on a scale where black is 0 and white is 1.
        mean: [f32; 3],
        /// The standard deviation of red, green and blue, on the same scale.
        std: [f32; 3],
    },
}

/// Writes `source` as RGB8 into `crop`, which has [`Geometry::bytes`] bytes.
///
/// Normalized values are rounded to the nearest pixel value, so a value changes by at most
/// `1 / (510 · std)`, and values computed from whole pixels are recovered exactly.
pub(super) fn write(source: &Crop, geometry: &Geometry, crop: &mut [u8]) -> Result<(), ImageError> {
    match source {
        Crop::Pixels(pixels) => {
            check_length(pixels.len(), crop.len())?;
            crop.copy_from_slice(pixels);
            Ok(())
        }
        Crop::Normalized { values, mean, std } => {
            check_length(values.len(), crop.len() * size_of::<f32>())?;
            denormalize(values, *mean, *std, geometry.width as usize, crop)
        }
    }
}

fn check_length(got: usize, expected: usize) -> Result<(), ImageError> {
    if got != expected {
        return Err(ImageError::ReadyCropLength {
            expected: expected as u64,
            got: got as u64,
        });
    }
    Ok(())
}

/// Converts planes of normalized values to interleaved pixels.
fn denormalize(
    values: &[u8],
    mean: [f32; 3],
    std: [f32; 3],
    width: usize,
    crop: &mut [u8],
) -> Result<(), ImageError> {
    let planes = values.chunks_exact(values.len() / 3);
    for (channel, plane) in planes.enumerate() {
        let (mean, std) = (mean[channel], std[channel]);
        for (i, bytes) in plane.as_chunks().0.iter().enumerate() {
            let value = f32::from_le_bytes(*bytes);
            let Some(pixel) = nearest_pixel(value, mean, std) else {
                return Err(ImageError::ValueOutOfRange {
                    value: value.to_string(),
                    channel: ["red", "green", "blue"][channel],
                    x: i % width,
                    y: i / width,
                    black: (-mean / std).to_string(),
                    white: ((1.0 - mean) / std).to_string(),
                });
            };
            crop[3 * i + channel] = pixel;
        }
    }
    Ok(())
}

/// The pixel value nearest to a normalized value; `None` for values outside black to white.
fn nearest_pixel(value: f32, mean: f32, std: f32) -> Option<u8> {
    let nearest = ((value * std + mean) * 255.0).round();
    // A NaN is in no range, so it gives `None` too.
    if (0.0..=255.0).contains(&nearest) {
        Some(nearest as u8)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GEOMETRY: Geometry = Geometry::cropped(16, 16, 16);
    const MEAN: [f32; 3] = [0.485, 0.456, 0.406];
    const STD: [f32; 3] = [0.229, 0.224, 0.225];

    fn normalized(value: impl Fn(usize, usize) -> f32) -> Crop {
        let values = (0..3).flat_map(|channel| (0..256).map(move |i| (channel, i)));
        let values: Vec<u8> = values
            .flat_map(|(channel, i)| value(channel, i).to_le_bytes())
            .collect();
        Crop::Normalized {
            values: values.into(),
            mean: MEAN,
            std: STD,
        }
    }

    fn written(source: &Crop) -> Result<Vec<u8>, ImageError> {
        let mut crop = vec![0; GEOMETRY.bytes()];
        write(source, &GEOMETRY, &mut crop).map(|()| crop)
    }

    #[test]
    fn every_pixel_survives_normalization_exactly() {
        let crop = written(&normalized(|channel, i| {
            (i as f32 / 255.0 - MEAN[channel]) / STD[channel]
        }))
        .unwrap();
        assert!(
            crop.chunks_exact(3)
                .enumerate()
                .all(|(i, pixel)| pixel == [i as u8; 3])
        );
    }

    #[test]
    fn values_between_two_pixels_are_rounded_to_the_nearer_one() {
        let crop = written(&normalized(|channel, _| {
            (100.4 / 255.0 - MEAN[channel]) / STD[channel]
        }))
        .unwrap();
        assert_eq!(crop, [100; 768]);
    }

    #[test]
    fn values_outside_black_to_white_are_rejected() {
        for value in [2.7, -2.2, 127.0, f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let source = normalized(|channel, i| if (channel, i) == (1, 17) { value } else { 0.0 });
            let error = written(&source).unwrap_err().to_string();
            assert!(
                error.contains(&format!("{value}")) && error.contains("green at x 1, y 1"),
                "{error}"
            );
            assert!(error.contains("-2.03") && error.contains("2.42"), "{error}");
        }
    }

    #[test]
    fn crops_of_another_size_are_rejected() {
        let error = written(&Crop::Pixels(vec![0; 767].into()))
            .unwrap_err()
            .to_string();
        assert!(error.contains("767") && error.contains("768"), "{error}");
        let error = written(&Crop::Normalized {
            values: vec![0; 768].into(),
            mean: MEAN,
            std: STD,
        })
        .unwrap_err();
        assert!(error.to_string().contains("3072"), "{error}");
    }
}
