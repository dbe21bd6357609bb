//! TIFF files that these tests write: small ones of rare kinds, and ones that would cost much.

use super::*;
use crate::{
    image::{PixelLayout, decode as decode_file},
    testing::shared,
};

/// Writes a file with these tags, all of type LONG, and this data at its end. Offsets of strips and
/// tiles count from the beginning of the data.
fn tiff(tags: &[(u16, &[u32])], data: &[u8]) -> Vec<u8> {
    let table = 8 + 2 + 12 * tags.len() + 4;
    let arrays: usize = tags
        .iter()
        .map(|(_, values)| {
            if values.len() > 1 {
                4 * values.len()
            } else {
                0
            }
        })
        .sum();
    let base = (table + arrays) as u32;
    let mut file = b"II\x2a\0\x08\0\0\0".to_vec();
    file.extend((tags.len() as u16).to_le_bytes());
    let mut rest = Vec::new();
    for (tag, values) in tags {
        let is_offset = matches!(*tag, tag::STRIP_OFFSETS | tag::TILE_OFFSETS);
        let values: Vec<u8> = values
            .iter()
            .map(|value| if is_offset { value + base } else { *value })
            .flat_map(u32::to_le_bytes)
            .collect();
        file.extend(tag.to_le_bytes());
        file.extend(4u16.to_le_bytes());
        file.extend((values.len() as u32 / 4).to_le_bytes());
        if values.len() == 4 {
            file.extend(values);
        } else {
            file.extend((table as u32 + rest.len() as u32).to_le_bytes());
            rest.extend(values);
        }
    }
    file.extend([0; 4]);
    [file, rest, data.to_vec()].concat()
}

/// The tags of a gray image of 8 bits in one strip, with others added or put in their place.
fn gray(width: u32, height: u32, bytes: usize, others: &[(u16, &[u32])], data: &[u8]) -> Vec<u8> {
    let (bytes, width, height) = ([bytes as u32], [width], [height]);
    let mut tags: Vec<(u16, &[u32])> = vec![
        (tag::IMAGE_WIDTH, &width),
        (tag::IMAGE_LENGTH, &height),
        (tag::BITS_PER_SAMPLE, &[8]),
        (tag::PHOTOMETRIC_INTERPRETATION, &[1]),
        (tag::STRIP_OFFSETS, &[0]),
        (tag::STRIP_BYTE_COUNTS, &bytes),
    ];
    tags.retain(|(tag, _)| others.iter().all(|(other, _)| other != tag));
    tags.extend(others);
    tiff(&tags, data)
}

fn pixels(file: &[u8]) -> Pixels {
    decode_file(file, &PreprocessConfig::default()).unwrap_or_else(|error| panic!("{error}"))
}

fn rejection(file: &[u8]) -> String {
    decode_file(file, &PreprocessConfig::default())
        .map(|_| "pixels")
        .unwrap_err()
        .to_string()
}

#[track_caller]
fn assert_rejected(file: &[u8], reason: &str) {
    let message = rejection(file);
    assert!(message.contains(reason), "{message}");
}

#[test]
fn the_smallest_file_is_read_and_its_parts_are_needed() {
    let file = gray(3, 2, 6, &[], &[1, 2, 3, 4, 5, 6]);
    let image = pixels(&file);
    assert_eq!((image.width, image.height), (3, 2));
    assert_eq!(image.layout, PixelLayout::Gray);
    assert_eq!(image.data, [1, 2, 3, 4, 5, 6]);
    for end in 4..file.len() {
        assert_rejected(&file[..end], "truncated TIFF");
    }
}

#[test]
fn the_orientation_tag_is_applied_unless_it_is_to_be_ignored() {
    let file = gray(1, 1, 1, &[(tag::ORIENTATION, &[6])], &[9]);
    assert_eq!(pixels(&file).orientation, Orientation::from_exif(6));
    let config = PreprocessConfig {
        exif: Exif::Ignore,
        ..Default::default()
    };
    let ignored = decode_file(&file, &config).unwrap();
    assert_eq!(ignored.orientation, Orientation::default());
}

#[test]
fn subsampled_ycbcr_is_expanded() {
    // Two blocks of 2x2 lumas, of which the second and the lower halves reach over the edges.
    let data = [10, 20, 30, 40, 128, 128, 50, 0, 60, 0, 128, 255];
    let tags: &[(u16, &[u32])] = &[
        (tag::PHOTOMETRIC_INTERPRETATION, &[6]),
        (tag::SAMPLES_PER_PIXEL, &[3]),
        (tag::COMPRESSION, &[32773]),
        (tag::YCBCR_SUBSAMPLING, &[2, 2]),
    ];
    let packed = [&[11][..], &data].concat();
    let image = pixels(&gray(3, 2, packed.len(), tags, &packed));
    assert_eq!(image.layout, PixelLayout::Rgb);
    assert_eq!(image.data[..6], [10, 10, 10, 20, 20, 20]);
    assert_eq!(image.data[9..15], [30, 30, 30, 40, 40, 40]);
    // As far to red as Cr goes.
    assert_eq!(image.data[6..9], [228, 0, 50]);
}

#[test]
fn old_lzw_begins_in_the_lowest_bit() {
    let mut packed = Vec::new();
    let pixels_in: Vec<u8> = (0..6000u32).map(|i| (i * i / 90) as u8).collect();
    weezl::encode::Encoder::new(weezl::BitOrder::Lsb, 8)
        .into_stream(&mut packed)
        .encode_all(&pixels_in[..])
        .status
        .unwrap();
    let file = gray(100, 60, packed.len(), &[(tag::COMPRESSION, &[5])], &packed);
    assert_eq!(pixels(&file).data, pixels_in);
}

#[test]
fn facsimile_of_group_3_is_read_in_two_dimensions() {
    // Row 1, in runs: 4 white, 3 black, 1 white. Row 2, by differences: one to the right, the
    // same, and the end. Both begin with the mark.
    let bits = "000000000001".to_owned()
        + "1"
        + "1011"
        + "10"
        + "000111"
        + "000000000001"
        + "0"
        + "011"
        + "1"
        + "1";
    let bytes: Vec<u8> = (0..bits.len().div_ceil(8))
        .map(|byte| {
            (0..8).fold(0, |value, bit| {
                value << 1 | u8::from(bits.as_bytes().get(8 * byte + bit) == Some(&b'1'))
            })
        })
        .collect();
    let tags: &[(u16, &[u32])] = &[
        (tag::BITS_PER_SAMPLE, &[1]),
        (tag::PHOTOMETRIC_INTERPRETATION, &[0]),
        (tag::COMPRESSION, &[3]),
        (tag::T4_OPTIONS, &[1]),
    ];
    let image = pixels(&gray(8, 2, bytes.len(), tags, &bytes));
    let row = |text: &str| -> Vec<u8> {
        text.bytes()
            .map(|c| if c == b'#' { 0 } else { 255 })
            .collect()
    };
    assert_eq!(image.data, [row("....###."), row(".....##.")].concat());
    assert_rejected(&gray(8, 3, bytes.len(), tags, &bytes), "facsimile code");
}

#[test]
fn what_cannot_be_read_is_named() {
    for (others, reason) in [
        (
            &[(tag::COMPRESSION, &[34887][..])][..],
            "its compression is LERC; accepted are",
        ),
        (
            &[(tag::COMPRESSION, &[6])],
            "old-style JPEG (compression 6)",
        ),
        (&[(tag::COMPRESSION, &[33005])], "JPEG 2000"),
        (&[(tag::COMPRESSION, &[24])], "the unknown number 24"),
        (
            &[(tag::PHOTOMETRIC_INTERPRETATION, &[32803])],
            "raw colour filter array",
        ),
        (
            &[(tag::BITS_PER_SAMPLE, &[64]), (tag::SAMPLE_FORMAT, &[3])],
            "numbers of 64 bits",
        ),
        (&[(tag::SAMPLE_FORMAT, &[6])], "complex numbers of 8 bits"),
        (
            &[
                (tag::BITS_PER_SAMPLE, &[5, 6, 5]),
                (tag::SAMPLES_PER_PIXEL, &[3]),
            ],
            "differ in their numbers of bits, 5 and 6",
        ),
        (
            &[
                (tag::COMPRESSION, &[5]),
                (tag::PREDICTOR, &[2]),
                (tag::BITS_PER_SAMPLE, &[4]),
            ],
            "predicts samples of 4 bits",
        ),
        (&[(tag::SAMPLES_PER_PIXEL, &[60_000])], "60000 channels"),
    ] {
        assert_rejected(&gray(1, 1, 1, others, &[0; 64]), reason);
    }
    for (others, reason) in [
        (
            &[(tag::PHOTOMETRIC_INTERPRETATION, &[2][..])][..],
            "1 channels where its colours need 3",
        ),
        (&[(tag::PHOTOMETRIC_INTERPRETATION, &[3])], "no palette"),
        (&[(tag::ROWS_PER_STRIP, &[0])], "a side of 0"),
        (
            &[(tag::ROWS_PER_STRIP, &[1])],
            "it has 2 strips, but the offsets of only 1",
        ),
        (
            &[(tag::COMPRESSION, &[8]), (tag::STRIP_BYTE_COUNTS, &[0])],
            "a strip without data",
        ),
    ] {
        assert_rejected(&gray(1, 2, 1, others, &[0; 64]), reason);
    }
}

#[test]
fn strips_that_share_bytes_are_rejected() {
    let strips = 1000;
    let offsets = vec![0; strips];
    let counts = vec![100; strips];
    let tags: &[(u16, &[u32])] = &[
        (tag::COMPRESSION, &[8]),
        (tag::ROWS_PER_STRIP, &[1]),
        (tag::STRIP_OFFSETS, &offsets),
        (tag::STRIP_BYTE_COUNTS, &counts),
    ];
    let file = gray(10, strips as u32, 0, tags, &[0; 100]);
    assert_rejected(&file, "its strips overlap");
}

#[test]
fn the_number_of_strips_is_bounded_before_they_are_looked_at() {
    let file = gray(60, 1_000_000, 1, &[(tag::ROWS_PER_STRIP, &[1])], &[0]);
    assert_rejected(&file, "1000000 strips, more than the 131072 allowed");
    let tiles: &[(u16, &[u32])] = &[(tag::TILE_WIDTH, &[1]), (tag::TILE_LENGTH, &[16])];
    assert_rejected(&gray(8000, 8000, 1, tiles, &[0]), "4000000 tiles");
}

#[test]
fn what_parts_decompress_to_is_bounded_by_the_header() {
    // A tile is much larger than the image, and so is a pixel.
    let deflate: (u16, &[u32]) = (tag::COMPRESSION, &[8]);
    let tile: &[(u16, &[u32])] = &[
        deflate,
        (tag::TILE_WIDTH, &[u32::MAX]),
        (tag::TILE_LENGTH, &[1]),
    ];
    assert_rejected(&gray(1, 1, 1, tile, &[0]), "more than the 528777216 bytes");
    let samples: &[(u16, &[u32])] = &[deflate, (tag::SAMPLES_PER_PIXEL, &[64])];
    assert_rejected(
        &gray(8000, 8000, 1, samples, &[0]),
        "more than the 528777216 bytes",
    );
    // A tile that is higher than the image is only decompressed as far as it is needed.
    let high: &[(u16, &[u32])] = &[
        (tag::COMPRESSION, &[32773]),
        (tag::TILE_WIDTH, &[16]),
        (tag::TILE_LENGTH, &[u32::MAX]),
    ];
    assert_eq!(pixels(&gray(16, 1, 2, high, &[241, 7])).data, [7; 16]);
}

#[test]
fn codes_that_do_nothing_are_read_once() {
    let noops = vec![128; 100_000];
    let file = gray(9, 1, noops.len(), &[(tag::COMPRESSION, &[32773])], &noops);
    assert_rejected(&file, "ends before its last row");
    // Empty blocks of Deflate.
    let blocks = [b"\x78\x9c".to_vec(), [0, 0, 0, 0xff, 0xff].repeat(20_000)].concat();
    let file = gray(9, 1, blocks.len(), &[(tag::COMPRESSION, &[8])], &blocks);
    assert_rejected(&file, "ends before its last row");
}

#[test]
fn jpeg_data_of_another_size_is_rejected_by_its_header() {
    let jpeg = std::fs::read(concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/tests/data/cat_gray.jpg"
    ))
    .unwrap();
    let of_size = |width, height| {
        gray(
            width,
            height,
            jpeg.len(),
            &[(tag::COMPRESSION, &[7])],
            &jpeg,
        )
    };
    let image = pixels(&of_size(97, 71));
    assert_eq!(image.data.len(), 97 * 71);
    for (width, height) in [(96, 71), (98, 71), (97, 72), (97, 32)] {
        assert_rejected(
            &of_size(width, height),
            "JPEG data: it has 97x71 pixels of 1 channels where the file around it says",
        );
    }
    let tables = vec![0; 3000];
    let long: &[(u16, &[u32])] = &[(tag::COMPRESSION, &[7]), (tag::JPEG_TABLES, &tables)];
    assert_rejected(
        &gray(97, 71, jpeg.len(), long, &jpeg),
        "12000 bytes, more than the 8192",
    );
}

#[test]
fn files_that_cost_much_are_rejected() {
    let Some(folder) = shared("cases/bombs") else {
        return;
    };
    for (name, reason) in [
        ("jpeg_in_tiff.tif", "the image is 16384x16384 pixels"),
        (
            "jpeg_in_tiff_progressive.tif",
            "the image is 16384x16384 pixels",
        ),
        ("packbits_noops.tif", "its strips overlap"),
    ] {
        let file = std::fs::read(folder.join(name)).unwrap();
        println!("{name}: {}", rejection(&file));
        assert_rejected(&file, reason);
    }
}

#[test]
fn files_of_other_programs_are_read_whole() {
    let Some(folder) = shared("cases/tiff") else {
        return;
    };
    let mut files = 0;
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let image = pixels(&std::fs::read(&path).unwrap());
        assert_eq!(
            (image.width, image.height),
            (259, 300),
            "{}",
            path.display()
        );
        files += 1;
    }
    assert_eq!(files, 7);
}
