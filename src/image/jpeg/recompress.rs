//! What JPEG compression takes from a picture, to the bit as libjpeg's defaults: colours at half the
//! resolution, the accurate integer transform, and the standard's tables. Entropy coding loses
//! nothing and is left out.

use super::{colour::Colours, huffman::Block, transform, upsample::Upsampling, zigzag::ZIGZAG};

/// The tables of ITU-T T.81, annex K.1, in zigzag order: for luma and for chroma.
const TABLES: [[u16; 64]; 2] = [
    [
        16, 11, 12, 14, 12, 10, 16, 14, 13, 14, 18, 17, 16, 19, 24, 40, 26, 24, 22, 22, 24, 49, 35,
        37, 29, 40, 58, 51, 61, 60, 57, 51, 56, 55, 64, 72, 92, 78, 64, 68, 87, 69, 55, 56, 80,
        109, 81, 87, 95, 98, 103, 104, 103, 62, 77, 113, 121, 112, 100, 120, 92, 101, 103, 99,
    ],
    [
        17, 18, 18, 24, 21, 24, 47, 26, 26, 47, 99, 66, 56, 66, 99, 99, 99, 99, 99, 99, 99, 99, 99,
        99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
        99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99, 99,
    ],
];

/// Fraction bits of the factors of the transform, and of the values between its passes.
const FRACTION: u32 = 13;
const BETWEEN: u32 = 2;

/// The samples of a component, in whole blocks.
struct Plane {
    samples: Vec<u8>,
    /// Bytes from a row to the next.
    stride: usize,
    /// The samples of a row without those that fill the last block.
    width: usize,
}

impl Plane {
    /// A component of `width` × `height` samples; `sample` gives those of a row, and `columns` and
    /// `rows` that many, of which those beyond the size are what fills the last blocks.
    fn new(
        [width, height]: [usize; 2],
        [columns, rows]: [usize; 2],
        sample: impl Fn(usize, usize) -> u8,
    ) -> Self {
        let samples = (0..rows)
            .flat_map(|row| (0..columns).map(move |column| (row.min(height - 1), column)))
            .map(|(row, column)| sample(row, column))
            .collect();
        Self {
            samples,
            stride: columns,
            width,
        }
    }

    fn row(&self, row: usize) -> &[u8] {
        &self.samples[row * self.stride..][..self.width]
    }

    /// Transforms and rounds each block, and transforms it back.
    fn lose(&mut self, quantization: &[i16; 64]) {
        for row in (0..self.samples.len() / self.stride).step_by(8) {
            for column in (0..self.stride).step_by(8) {
                let block = &mut self.samples[row * self.stride + column..];
                let rounded = quantized(forward(block, self.stride), quantization);
                transform::inverse(&rounded, quantization, 63, block, self.stride);
            }
        }
    }
}

/// Replaces a picture of `width` pixels of RGB a row by what is left of it by compression at this
/// `quality`, 1 to 100.
pub(in crate::image) fn recompress(pixels: &mut [u8], width: usize, quality: u8) {
    let height = pixels.len() / (3 * width);
    if height == 0 {
        return;
    }
    let [luma, chroma] = TABLES.map(|table| quantization(&table, quality));
    let padded = [width, height].map(|side| side.next_multiple_of(16));
    let ycc: Vec<[u8; 3]> = pixels.as_chunks::<3>().0.iter().map(to_ycc).collect();
    let at = |row: usize, column: usize, component: usize| {
        ycc[row.min(height - 1) * width + column.min(width - 1)][component]
    };

    let mut y = Plane::new([width, height], padded, |row, column| at(row, column, 0));
    y.lose(&luma);
    let half = [width, height].map(|side| side.div_ceil(2));
    let [cb, cr] = [1, 2].map(|component| {
        let mut plane = Plane::new(half, padded.map(|side| side / 2), |row, column| {
            let of = |row: usize| {
                let [left, right] = [2 * column, 2 * column + 1].map(|x| at(row, x, component));
                u16::from(left) + u16::from(right)
            };
            // The rounding alternates from column to column.
            let bias = 1 + column as u16 % 2;
            ((of(2 * row) + of(2 * row + 1) + bias) >> 2) as u8
        });
        plane.lose(&chroma);
        plane
    });

    // libjpeg does not interpolate rows of one or two samples.
    let upsampling = match half[0] {
        0..=2 => Upsampling::Repeat(2),
        _ => Upsampling::Both,
    };
    let mut enlarged = [vec![0; padded[0]], vec![0; padded[0]]];
    let mut sums = vec![0; padded[0]];
    for (row, target) in pixels.chunks_exact_mut(3 * width).enumerate() {
        let nearest = row / 2;
        let below = row % 2 == 1;
        let other = if below {
            (nearest + 1).min(half[1] - 1)
        } else {
            nearest.saturating_sub(1)
        };
        for (plane, enlarged) in [&cb, &cr].into_iter().zip(&mut enlarged) {
            let samples = (plane.row(nearest), plane.row(other));
            upsampling.row(enlarged, samples.0, samples.1, below, &mut sums);
        }
        let [cb, cr] = [&enlarged[0][..width], &enlarged[1][..width]];
        Colours::YCbCr.write_row(target, &[y.row(row), cb, cr]);
    }
}

/// The table for this quality, in the order of rows.
fn quantization(table: &[u16; 64], quality: u8) -> [i16; 64] {
    let quality = u32::from(quality.clamp(1, 100));
    let percent = if quality < 50 {
        5000 / quality
    } else {
        200 - 2 * quality
    };
    let mut rows = [0; 64];
    for (index, &value) in table.iter().enumerate() {
        let scaled = (u32::from(value) * percent + 50) / 100;
        rows[usize::from(ZIGZAG[index])] = scaled.clamp(1, 255) as i16;
    }
    rows
}

/// Luma and colour differences, with factors rounded to 1/65536.
fn to_ycc(&[red, green, blue]: &[u8; 3]) -> [u8; 3] {
    let [red, green, blue] = [red, green, blue].map(i32::from);
    let half = 1 << 15;
    let difference = |sum: i32| ((sum + (128 << 16) + half - 1) >> 16) as u8;
    [
        ((19_595 * red + 38_470 * green + 7_471 * blue + half) >> 16) as u8,
        difference(32_768 * blue - 11_059 * red - 21_709 * green),
        difference(32_768 * red - 27_439 * green - 5_329 * blue),
    ]
}

/// The cosine transform of 8 rows of samples, times 8, in the order of rows.
fn forward(samples: &[u8], stride: usize) -> [i32; 64] {
    let mut values = [0; 64];
    for (row, line) in values.as_chunks_mut::<8>().0.iter_mut().enumerate() {
        let samples: &[u8; 8] = samples[row * stride..]
            .first_chunk()
            .expect("planes have whole blocks");
        let centred = samples.map(|sample| i32::from(sample) - 128);
        *line = one_dimension(centred, |sum| sum << BETWEEN, FRACTION - BETWEEN);
    }
    for column in 0..8 {
        let input = std::array::from_fn(|row| values[8 * row + column]);
        let output = one_dimension(input, |sum| shifted(sum, BETWEEN), FRACTION + BETWEEN);
        for (row, value) in output.into_iter().enumerate() {
            values[8 * row + column] = value;
        }
    }
    values
}

/// Divides by a power of two, and rounds.
fn shifted(value: i32, bits: u32) -> i32 {
    (value + (1 << (bits - 1))) >> bits
}

/// One pass of the transform of C. Loeffler, A. Ligtenberg and G. Moschytz, as sums of products.
/// `whole` scales the two outputs that need no product, `bits` all others.
fn one_dimension(x: [i32; 8], whole: impl Fn(i32) -> i32, bits: u32) -> [i32; 8] {
    let sum = |i: usize| x[i] + x[7 - i];
    let [outer, inner] = [sum(0) + sum(3), sum(1) + sum(2)];
    let [a, b] = [sum(0) - sum(3), sum(1) - sum(2)];
    let d: [i32; 4] = std::array::from_fn(|i| x[i] - x[7 - i]);
    let odd = |factors: [i32; 4]| {
        let products = d.iter().zip(factors).map(|(value, factor)| value * factor);
        shifted(products.sum(), bits)
    };
    [
        whole(outer + inner),
        odd([11_363, 9_633, 6_437, 2_260]),
        shifted(10_703 * a + 4_433 * b, bits),
        odd([9_633, -2_259, -11_362, -6_436]),
        whole(outer - inner),
        odd([6_437, -11_362, 2_261, 9_633]),
        shifted(4_433 * a - 10_704 * b, bits),
        odd([2_260, -6_436, 9_633, -11_363]),
    ]
}

/// The coefficients as multiples of the table's values.
fn quantized(coefficients: [i32; 64], quantization: &[i16; 64]) -> Block {
    std::array::from_fn(|index| {
        let divisor = 8 * i32::from(quantization[index]);
        let value = coefficients[index];
        let magnitude = (value.abs() + divisor / 2) / divisor;
        (magnitude * value.signum()) as i16
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::image::jpeg::tests::{pillow, read_pnm};

    /// Two colours, noise in one corner, and edges at odd places.
    fn picture(width: usize, height: usize) -> Vec<u8> {
        let mut random = crate::testing::random_numbers(5);
        (0..height)
            .flat_map(|y| (0..width).map(move |x| (x, y)))
            .flat_map(|(x, y)| {
                let noise = if x < width / 3 { random(256) as u8 } else { 0 };
                let smooth = (x * 255 / width) as u8;
                let edge = if (x * 3 + y * 5) % 37 < 18 { 230 } else { 20 };
                [smooth ^ noise, edge, (y * 255 / height) as u8]
            })
            .collect()
    }

    #[test]
    fn pictures_lose_what_they_do_with_pillow() {
        let Some(python) = pillow() else {
            return;
        };
        let folder = tempfile::tempdir().unwrap();
        let [before, after] = ["a.ppm", "b.ppm"].map(|name| folder.path().join(name));
        for (width, height, quality) in [
            (224, 224, 75),
            (224, 224, 10),
            (64, 48, 100),
            (41, 33, 75),
            (8, 7, 95),
            (3, 9, 60),
        ] {
            let mut pixels = picture(width, height);
            let header = format!("P6\n{width} {height}\n255\n");
            std::fs::write(&before, [header.as_bytes(), &pixels].concat()).unwrap();
            let script = "import io, sys\nfrom PIL import Image\n\
                          b = io.BytesIO()\n\
                          Image.open(sys.argv[1]).save(b, 'JPEG', quality=int(sys.argv[3]))\n\
                          Image.open(b).save(sys.argv[2])\n";
            let status = std::process::Command::new(&python)
                .args(["-c", script])
                .args([&before, &after])
                .arg(quality.to_string())
                .status();
            assert!(status.unwrap().success());
            let (size, expected) = read_pnm(&after);
            assert_eq!(size, [width as u32, height as u32]);
            recompress(&mut pixels, width, quality);
            let differing = pixels.iter().zip(&expected).filter(|(a, b)| a != b).count();
            assert_eq!(differing, 0, "{width} x {height}, quality {quality}");
        }
    }

    #[test]
    fn a_picture_of_one_colour_keeps_it() {
        for colour in [[0; 3], [255; 3], [90, 90, 90]] {
            let mut pixels = colour.repeat(20 * 11);
            recompress(&mut pixels, 20, 75);
            assert_eq!(pixels, colour.repeat(20 * 11));
        }
    }
}
