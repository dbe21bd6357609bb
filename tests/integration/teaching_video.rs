//! `resnet18 teach` with videos and cameras, which a real `ffmpeg` reads.

use std::{
    fs::{self, File},
    path::Path,
    process::{Command, Output},
};

use serde_json::Value;

use crate::{
    common::{Server, data, ffmpeg, resnet18},
    teaching::{picture, result, text},
};

/// Makes a video of 4 s from one of ffmpeg's own sources.
fn make_video(path: &Path, source: &str) {
    let status = Command::new("ffmpeg")
        .args(["-loglevel", "error", "-nostdin", "-f", "lavfi", "-i"])
        .arg(format!("{source}=size=320x240:rate=25"))
        .args(["-frames:v", "100", "-c:v", "mpeg4", "-q:v", "5"])
        .arg(path)
        .status();
    assert!(status.unwrap().success());
}

fn kept(output: &Output) -> Value {
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}");
    let report: Value = serde_json::from_slice(&output.stdout).unwrap();
    report["added"]["kept"].clone()
}

#[test]
fn classes_are_taught_from_videos_and_cameras() {
    if !ffmpeg() {
        return;
    }
    let folder = tempfile::tempdir().unwrap();
    let at = |name: &str| folder.path().join(name);
    make_video(&at("clip.mp4"), "mandelbrot");
    make_video(&at("bars.avi"), "testsrc2");
    let taught = at("taught");
    let server = Server::start(&["--engine", "embedded", "--teach", text(&taught)]);
    let url = server.url();
    let fixed = ["teach", "views", "--server", &url, "--json", "--class"];
    let teach = |arguments: &[&str]| {
        let mut command = resnet18();
        command.args(fixed).args(arguments);
        command
    };

    // A photo and a video; the frames are spread over the video, at whatever rate it is read.
    let photo = at("photo.png");
    fs::write(&photo, picture("dots", 3)).unwrap();
    let clip = at("clip.mp4");
    let arguments = ["fractal", text(&photo), text(&clip), "--pictures", "8"];
    assert_eq!(kept(&teach(&arguments).output().unwrap()), 9);
    let pictures: Vec<_> = fs::read_dir(taught.join("views/train/fractal"))
        .unwrap()
        .map(|entry| fs::read(entry.unwrap().path()).unwrap())
        .collect();
    let jpegs = pictures
        .iter()
        .filter(|picture| picture.starts_with(b"\xff\xd8"));
    assert_eq!((pictures.len(), jpegs.count()), (9, 8));

    // Standard input sets the pace, as a camera does.
    let bars = at("bars.avi");
    let arguments = ["bars", "--camera", "-", "--fps", "10", "--pictures", "6"];
    let output = teach(&arguments).stdin(File::open(&bars).unwrap()).output();
    assert_eq!(kept(&output.unwrap()), 6);
    let arguments = ["bars", "--camera", text(&bars), "--fps", "2"];
    let output = teach(&arguments).output().unwrap();
    let more = kept(&output).as_u64().unwrap();
    assert!(
        (2..=9).contains(&more),
        "two frames a second of four seconds: {more}"
    );

    let trained = result(&["teach", "views", "--server", &url, "--train"]);
    assert_eq!(trained["trained"]["photos"], 15 + more);

    // What can't be read is told; what came before it is kept.
    let other = at("other.png");
    fs::write(&other, picture("dots", 4)).unwrap();
    let no_video = data("README.md");
    let cases: [(&[&str], &str); 4] = [
        (&["--camera", "/dev/video99"], "no such file"),
        (
            &["--camera", text(&clip), "--ffmpeg", "no-such-program"],
            "isn't installed",
        ),
        (&[text(&other), text(&no_video)], "ffmpeg can't read"),
        (&[text(&clip), "--pictures", "0"], "1 to 1000"),
    ];
    for (arguments, reason) in cases {
        let output = teach(&[&["fractal"], arguments].concat()).output().unwrap();
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(
            !output.status.success() && errors.contains(reason),
            "{errors}"
        );
    }
    let kept = fs::read_dir(taught.join("views/train/fractal"))
        .unwrap()
        .count();
    assert_eq!(kept, 10);

    let output = resnet18()
        .args(["teach", "views", "--camera", "--server", &url])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(64), "--camera without --class");
}
