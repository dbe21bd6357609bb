//! Headers of AV1 pictures, and the processes that decode them.

use std::{env, fs, path::Path, sync::Once};

use heifer::heifer_isobmff::HeifFile;

use super::header::{Header, HeaderError};

/// Makes AVIF files readable in tests: the process is this test program, which runs only
/// [`process`].
pub(in crate::image) fn start_processes() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        let arguments = [
            "--exact",
            "--ignored",
            "--nocapture",
            "image::heif::av1::tests::process",
        ];
        let arguments = arguments.map(Into::into).to_vec();
        super::decode_av1_with(env::current_exe().unwrap(), arguments);
    });
}

#[test]
#[ignore = "a child process of the other tests, started by start_processes"]
fn process() {
    // It fails where standard input is no socket.
    let _ = super::decode_av1();
}

/// The data of the picture of a file in tests/data.
pub(super) fn data_of(name: &str) -> Vec<u8> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data");
    let file = fs::read(folder.join(name)).unwrap();
    let container = HeifFile::parse(&file).unwrap();
    let data = container.item_data(container.primary_id).unwrap();
    data.into_owned()
}

#[test]
fn headers_say_how_samples_are_stored() {
    let kind = |name: &str| {
        let Header { frames, sequence } = Header::read(&data_of(&format!("avif/{name}"))).unwrap();
        assert_eq!(
            (frames, sequence.max_width, sequence.max_height),
            (1, 97, 65),
            "{name}"
        );
        (
            sequence.depth,
            sequence.monochrome,
            sequence.subsampled,
            sequence.matrix,
            sequence.full_range,
        )
    };
    assert_eq!(kind("yuv420.avif"), (8, false, [true, true], 6, true));
    assert_eq!(kind("yuv422.avif"), (8, false, [true, false], 6, true));
    assert_eq!(kind("yuv444.avif"), (8, false, [false, false], 6, true));
    assert!(kind("yuv400.avif").1);
    assert_eq!(kind("limited.avif"), (8, false, [true, true], 6, false));
    assert_eq!(kind("10bit.avif").0, 10);
    assert_eq!(
        kind("12bit_limited.avif"),
        (12, false, [true, false], 6, false)
    );
    assert_eq!(kind("identity.avif"), (8, false, [false, false], 0, true));
    assert_eq!(kind("bt2020.avif"), (10, false, [false, false], 9, true));
    // It is not marked as a still picture, and has a long header.
    assert_eq!(kind("sequence.avif").0, 8);
}

#[test]
fn memory_grows_with_what_is_stored() {
    let bytes = |name: &str| {
        let header = Header::read(&data_of(&format!("avif/{name}"))).unwrap();
        super::memory(&header, 1_000_000) as f64 / 1e6
    };
    // Samples as they are decoded and as they are converted, and two bytes of other things.
    assert!(
        (6.5..6.6).contains(&bytes("yuv420.avif")),
        "{}",
        bytes("yuv420.avif")
    );
    assert!(
        (14.0..14.1).contains(&bytes("bt2020.avif")),
        "{}",
        bytes("bt2020.avif")
    );
    assert!(
        (5.0..5.1).contains(&bytes("yuv400.avif")),
        "{}",
        bytes("yuv400.avif")
    );
}

#[test]
fn damaged_headers_are_rejected() {
    let data = data_of("avif/yuv420.avif");
    for length in 0..data.len() {
        assert!(Header::read(&data[..length]).is_err(), "{length}");
    }
    // A unit of eight bytes that ends in its third.
    assert_eq!(Header::read(b"\x0a\x08\0"), Err(HeaderError::Ends));
    assert_eq!(
        Header::read(b"\x0a\xff\xff\xff\xff"),
        Err(HeaderError::Ends)
    );

    let padding = b"\x7a\0".repeat(4097);
    assert_eq!(Header::read(&padding), Err(HeaderError::TooManyUnits));
    let mut frames = data.clone();
    // Frames without any data.
    frames.extend(b"\x32\0".repeat(8));
    assert_eq!(Header::read(&frames), Err(HeaderError::TooManyFrames));

    let start = data.iter().position(|&byte| byte == 0x0a).unwrap();
    let mut changed = data.clone();
    let mut header = data[start..start + 2 + usize::from(data[start + 1])].to_vec();
    changed.extend(&header);
    assert!(Header::read(&changed).is_ok(), "it may be repeated");
    header[4] ^= 1;
    changed.extend(header);
    assert_eq!(Header::read(&changed), Err(HeaderError::Damaged));
}
