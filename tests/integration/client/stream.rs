//! Runs `resnet18 stream` with videos and folders against a scripted server.

use std::{
    fs,
    io::Write as _,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use serde_json::Value;
use tokio::io::{AsyncBufReadExt, BufReader};

use super::{
    classify::{json_lines, resnet18},
    fake_server::{self, BROKEN, Script},
};

/// Makes a video of moving test bars. Returns false, and prints a note, if ffmpeg is missing.
fn make_video(path: &Path, size: &str, frames: u32) -> bool {
    let source = format!("testsrc=size={size}:rate=25");
    let status = Command::new("ffmpeg")
        .args([
            "-loglevel",
            "error",
            "-nostdin",
            "-f",
            "lavfi",
            "-i",
            &source,
            "-frames:v",
            &frames.to_string(),
        ])
        .args(["-c:v", "mpeg4", "-q:v", "5"])
        .arg(path)
        .status();
    match status {
        Ok(status) => {
            assert!(status.success());
            true
        }
        Err(error) => {
            // Written directly, because the test harness hides what passing tests print.
            let _ = writeln!(std::io::stderr(), "SKIPPED: ffmpeg can't be run: {error}");
            false
        }
    }
}

fn summary(lines: &[Value]) -> &Value {
    &lines.last().unwrap()["summary"]
}

#[tokio::test]
async fn every_frame_of_a_video_is_answered_in_order() {
    let folder = tempfile::tempdir().unwrap();
    for (name, size, frames) in [("wide.mp4", "640x360", 40), ("odd.avi", "101x75", 7)] {
        let video = folder.path().join(name);
        if !make_video(&video, size, frames) {
            return;
        }
        let (server, _) = fake_server::start(Script::default()).await;
        let video = video.to_string_lossy();
        let output = resnet18(server, &["stream", &video, "--policy", "every", "--json"]).await;

        assert_eq!(
            output.status.code(),
            Some(0),
            "{}",
            String::from_utf8_lossy(&output.stderr)
        );
        let lines = json_lines(&output);
        let ids: Vec<_> = lines
            .iter()
            .filter_map(|line| line["frame_id"].as_u64())
            .collect();
        assert_eq!(ids, (0..u64::from(frames)).collect::<Vec<_>>());
        let summary = summary(&lines);
        assert_eq!(
            (summary["answered"].as_u64(), summary["failed"].as_u64()),
            (Some(frames.into()), Some(0))
        );
        assert_eq!(summary["labels"][0]["label"], "golden retriever");
    }
}

#[tokio::test]
async fn a_live_stream_survives_a_restart_of_the_server() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("video.mp4");
    if !make_video(&video, "320x240", 50) {
        return;
    }
    let (server, _) = fake_server::start(Script {
        cut_after: 5.into(),
        ..Script::default()
    })
    .await;
    let output = resnet18(server, &["stream", &video.to_string_lossy(), "--json"]).await;

    assert_eq!(output.status.code(), Some(0));
    assert!(String::from_utf8_lossy(&output.stderr).contains("reconnecting"));
    let lines = json_lines(&output);
    let summary = summary(&lines);
    assert!(summary["answered"].as_u64().unwrap() > 20, "{summary}");
    assert!(summary["unanswered"].as_u64().unwrap() >= 1, "{summary}");
}

#[tokio::test]
async fn a_cut_off_file_is_an_error() {
    let folder = tempfile::tempdir().unwrap();
    for number in 0..20 {
        fs::write(folder.path().join(format!("{number:02}.jpg")), "an image").unwrap();
    }
    let (server, _) = fake_server::start(Script {
        cut_after: 5.into(),
        ..Script::default()
    })
    .await;
    let output = resnet18(
        server,
        &[
            "stream",
            &folder.path().to_string_lossy(),
            "--policy",
            "every",
        ],
    )
    .await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("try again"));
}

#[tokio::test]
async fn broken_frames_are_shown_and_the_stream_goes_on() {
    let folder = tempfile::tempdir().unwrap();
    for (name, content) in [
        ("a.jpg", &b"an image"[..]),
        ("b.jpg", BROKEN),
        ("c.jpg", b"another"),
    ] {
        fs::write(folder.path().join(name), content).unwrap();
    }
    let (server, _) = fake_server::start(Script::default()).await;
    let arguments = [
        "stream",
        &folder.path().to_string_lossy(),
        "--policy",
        "every",
        "--json",
    ];
    let output = resnet18(server, &arguments).await;
    let lines = json_lines(&output);
    assert_eq!(lines[1]["error"]["code"], "INVALID_ARGUMENT");
    assert_eq!(lines[2]["frame_id"], 2);
    assert_eq!(
        (&summary(&lines)["answered"], &summary(&lines)["failed"]),
        (&2.into(), &1.into())
    );
}

#[tokio::test]
async fn the_time_limit_ends_an_endless_stream() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.jpg"), "an image").unwrap();
    let (server, _) = fake_server::start(Script {
        delay: Duration::from_millis(5),
        ..Script::default()
    })
    .await;
    let folder = folder.path().to_string_lossy();
    let arguments = [
        "stream",
        &folder,
        "--loop",
        "--fps",
        "50",
        "--duration",
        "600ms",
        "--json",
    ];
    let output = resnet18(server, &arguments).await;
    assert_eq!(output.status.code(), Some(0));
    let lines = json_lines(&output);
    let answered = summary(&lines)["answered"].as_u64().unwrap();
    assert!((5..=40).contains(&answered), "{answered}");
}

#[tokio::test]
async fn an_image_is_a_stream_of_one_frame_which_loop_repeats() {
    let (server, _) = fake_server::start(Script::default()).await;
    let image = tempfile::NamedTempFile::with_suffix(".jpg").unwrap();
    fs::write(image.path(), "an image").unwrap();
    let image = image.path().to_string_lossy();

    // It is sent as it is, without ffmpeg.
    let once = ["stream", &image, "--fps", "2", "--json", "--ffmpeg", "none"];
    let output = resnet18(server, &once).await;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(summary(&json_lines(&output))["answered"], 1);

    let again = [
        "stream",
        &image,
        "--loop",
        "--fps",
        "20",
        "--duration",
        "600ms",
        "--json",
    ];
    let output = resnet18(server, &again).await;
    assert_eq!(output.status.code(), Some(0));
    let answered = summary(&json_lines(&output))["answered"].as_u64().unwrap();
    assert!((3..=13).contains(&answered), "{answered}");
}

#[tokio::test]
async fn a_video_shorter_than_the_time_between_frames_has_one() {
    let folder = tempfile::tempdir().unwrap();
    let video = folder.path().join("short.mp4");
    if !make_video(&video, "64x48", 5) {
        return;
    }
    let (server, _) = fake_server::start(Script::default()).await;
    let arguments = ["stream", &video.to_string_lossy(), "--fps", "2", "--json"];
    let output = resnet18(server, &arguments).await;
    assert_eq!(output.status.code(), Some(0));
    assert_eq!(summary(&json_lines(&output))["answered"], 1);
}

#[tokio::test]
async fn a_stream_ends_quietly_when_its_reader_has_gone() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("a.jpg"), "an image").unwrap();
    let (server, _) = fake_server::start(Script::default()).await;
    for arguments in [
        &["stream", "--loop", "--fps", "50", "--json"][..],
        &["stream", "--loop", "--policy", "every"],
    ] {
        let mut child = tokio::process::Command::new(env!("CARGO_BIN_EXE_resnet18"))
            .args(arguments)
            .arg(folder.path())
            .env("RESNET18_SERVER", server.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        assert!(lines.next_line().await.unwrap().is_some());
        drop(lines);

        let output = tokio::time::timeout(Duration::from_secs(20), child.wait_with_output())
            .await
            .expect("it ends")
            .unwrap();
        assert_eq!(output.status.code(), Some(0), "{arguments:?}");
        assert!(output.stderr.is_empty(), "{arguments:?}");
    }
}

#[tokio::test]
async fn a_damaged_video_and_a_missing_ffmpeg_are_explained() {
    let (server, _) = fake_server::start(Script::default()).await;
    let video = tempfile::NamedTempFile::with_suffix(".mp4").unwrap();
    fs::write(video.path(), "not a video").unwrap();
    let video = video.path().to_string_lossy();
    let output = resnet18(server, &["stream", &video, "--ffmpeg", "no-such-program"]).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&output.stderr).contains("get it with"));
    if Command::new("ffmpeg").arg("-version").output().is_ok() {
        let output = resnet18(server, &["stream", &video]).await;
        assert_eq!(output.status.code(), Some(1));
        assert!(String::from_utf8_lossy(&output.stderr).contains("ffmpeg can't read"));
    }
}
