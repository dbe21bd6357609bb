//! Runs `resnet18 stream` with cameras that say nothing, stall or come back, and looks for an
//! `ffmpeg` that is left over.

use std::{
    fs,
    net::SocketAddr,
    process::{Output, Stdio},
    time::{Duration, Instant},
};

use bytes::Bytes;
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::{TcpListener, TcpStream},
    process::{Child, Command},
    sync::mpsc,
    time::{sleep, timeout},
};

use super::{
    classify::json_lines,
    fake_server::{self, Script},
};
use crate::common::{ffmpeg, skipped, text};

/// What a camera does with a connection.
#[derive(Clone, Debug)]
enum Behaviour {
    /// It says nothing.
    Silent,
    /// It closes the connection.
    Absent,
    /// It sends this video and then nothing, without closing.
    Stalls(Bytes),
    /// It sends this video and closes.
    Ends(Bytes),
}

/// A camera at an address of HTTP, which does the next of its behaviours with each connection, and
/// the last one with all further ones.
struct Camera {
    address: SocketAddr,
    connections: mpsc::UnboundedReceiver<()>,
}

impl Camera {
    async fn start(behaviours: &[Behaviour]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let (connected, connections) = mpsc::unbounded_channel();
        let behaviours = behaviours.to_vec();
        tokio::spawn(async move {
            let mut open = Vec::new();
            for index in 0.. {
                let (mut connection, _) = listener.accept().await.unwrap();
                let behaviour = &behaviours[index.min(behaviours.len() - 1)];
                let _ = connected.send(());
                match behaviour {
                    Behaviour::Silent => open.push(connection),
                    Behaviour::Absent => {}
                    Behaviour::Stalls(video) => {
                        send(&mut connection, video).await;
                        open.push(connection);
                    }
                    Behaviour::Ends(video) => {
                        send(&mut connection, video).await;
                        // Closing before the other side has read all could reset the connection.
                        let _ = connection.shutdown().await;
                        let _ = connection.read_to_end(&mut Vec::new()).await;
                    }
                }
            }
        });
        Self {
            address,
            connections,
        }
    }

    fn url(&self) -> String {
        format!("http://{}/cam.ts", self.address)
    }

    /// Starts the program on this camera.
    fn stream(&self, server: SocketAddr, flags: &[&str]) -> Child {
        Command::new(env!("CARGO_BIN_EXE_resnet18"))
            .args(["stream", &self.url(), "--json"])
            .args(flags)
            .env("RESNET18_SERVER", server.to_string())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
            .unwrap()
    }

    /// The processes that were started for this camera and still run, except for `program`.
    fn left_over(&self, program: u32) -> Vec<String> {
        let url = self.url();
        let processes = fs::read_dir("/proc").unwrap().flatten();
        processes
            .filter(|entry| entry.file_name() != program.to_string().as_str())
            .filter_map(|entry| fs::read(entry.path().join("cmdline")).ok())
            .map(|line| text(&line).replace('\0', " "))
            .filter(|line| line.contains(&url))
            .collect()
    }

    /// Waits until nothing is left that was started for this camera.
    async fn assert_nothing_is_left(&self, program: u32) {
        let give_up = Instant::now() + Duration::from_secs(10);
        while Instant::now() < give_up {
            if self.left_over(program).is_empty() {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
        panic!("still running: {:?}", self.left_over(program));
    }
}

async fn send(connection: &mut TcpStream, video: &[u8]) {
    let mut request = [0; 4096];
    let _ = connection.read(&mut request).await;
    let header = b"HTTP/1.1 200 OK\r\nContent-Type: video/mp2t\r\nConnection: close\r\n\r\n";
    let _ = connection.write_all(header).await;
    let _ = connection.write_all(video).await;
}

/// Whether this process ignores the signal.
fn is_ignored(number: u32) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status
        .lines()
        .find_map(|line| line.strip_prefix("SigIgn:"))
        .expect("Linux lists the signals that are ignored");
    u64::from_str_radix(mask.trim(), 16).unwrap() >> (number - 1) & 1 == 1
}

fn send_signal(signal: &str, process: u32) {
    let status = std::process::Command::new("kill")
        .args(["-s", signal, &process.to_string()])
        .status();
    assert!(status.unwrap().success());
}

async fn finished(child: Child) -> Output {
    timeout(Duration::from_secs(60), child.wait_with_output())
        .await
        .expect("it ends")
        .unwrap()
}

/// Twelve seconds of moving test bars, as cameras send them: ffmpeg looks at the first five before
/// it passes on a frame.
fn video(frames: u32) -> Bytes {
    let output = std::process::Command::new("ffmpeg")
        .args(["-loglevel", "error", "-nostdin", "-f", "lavfi"])
        .args(["-i", "testsrc=size=320x240:rate=25", "-frames:v"])
        .arg(frames.to_string())
        .args(["-c:v", "mpeg2video", "-f", "mpegts", "pipe:1"])
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", text(&output.stderr));
    output.stdout.into()
}

#[tokio::test]
async fn a_silent_camera_is_an_error_that_names_it() {
    if !ffmpeg() {
        return;
    }
    let (server, _) = fake_server::start(Script::default()).await;
    let camera = Camera::start(&[Behaviour::Silent]).await;

    let child = camera.stream(server, &["--source-timeout", "1s"]);
    let program = child.id().unwrap();
    let output = finished(child).await;
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(
        error.contains(&camera.url()) && error.contains("no frame for 1 s"),
        "{error}"
    );
    camera.assert_nothing_is_left(program).await;
}

#[tokio::test]
async fn the_time_limit_is_kept_before_the_first_frame() {
    if !ffmpeg() {
        return;
    }
    let (server, _) = fake_server::start(Script::default()).await;
    let camera = Camera::start(&[Behaviour::Silent]).await;

    let flags = ["--duration", "1s", "--source-timeout", "0"];
    let child = camera.stream(server, &flags);
    let program = child.id().unwrap();
    let output = finished(child).await;
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains(&camera.url()));
    camera.assert_nothing_is_left(program).await;
}

#[tokio::test]
async fn a_camera_that_stalls_is_an_error_after_its_frames() {
    if !ffmpeg() {
        return;
    }
    let (server, _) = fake_server::start(Script::default()).await;
    let camera = Camera::start(&[Behaviour::Stalls(video(300))]).await;

    // On a busy machine ffmpeg alone takes seconds to start.
    let child = camera.stream(server, &["--source-timeout", "10s"]);
    let program = child.id().unwrap();
    let output = finished(child).await;
    assert_eq!(output.status.code(), Some(1));
    let error = text(&output.stderr);
    assert!(
        error.contains(&camera.url()) && error.contains("no frame for 10 s"),
        "{error}"
    );
    let lines = json_lines(&output);
    let summary = &lines.last().unwrap()["summary"];
    assert!(summary["answered"].as_u64() > Some(0), "{summary}");
    camera.assert_nothing_is_left(program).await;
}

#[tokio::test]
async fn a_lost_camera_is_opened_again_on_demand() {
    if !ffmpeg() {
        return;
    }
    let (server, _) = fake_server::start(Script::default()).await;
    let video = video(25);
    let mut camera = Camera::start(&[
        Behaviour::Absent,
        Behaviour::Ends(video.clone()),
        Behaviour::Ends(video),
        Behaviour::Silent,
    ])
    .await;

    let child = camera.stream(server, &["--reconnect", "--source-timeout", "0"]);
    let program = child.id().unwrap();
    for _ in 0..4 {
        let opened = timeout(Duration::from_secs(60), camera.connections.recv()).await;
        opened.expect("the camera is opened again").unwrap();
    }
    // The frames that were read before are answered first.
    sleep(Duration::from_secs(3)).await;
    send_signal("TERM", program);
    let output = finished(child).await;
    let said = text(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{said}");
    assert!(
        said.contains("has ended; opening it again in 1 s"),
        "{said}"
    );

    let lines = json_lines(&output);
    let summary = &lines.last().unwrap()["summary"];
    assert!(summary["source_reconnects"].as_u64() > Some(0), "{summary}");
    camera.assert_nothing_is_left(program).await;
}

#[tokio::test]
async fn no_ffmpeg_outlives_the_program_however_it_ends() {
    if !ffmpeg() {
        return;
    }
    let (server, _) = fake_server::start(Script::default()).await;
    // Ignored signals, as with `nohup`, are inherited by the program.
    for (signal, number) in [("TERM", 15), ("INT", 2), ("HUP", 1), ("KILL", 9)] {
        if is_ignored(number) {
            skipped(&format!("SIG{signal} is ignored here"));
            continue;
        }
        let mut camera = Camera::start(&[Behaviour::Silent]).await;
        let child = camera.stream(server, &["--source-timeout", "0"]);
        let program = child.id().unwrap();
        camera.connections.recv().await.unwrap();
        assert!(!camera.left_over(program).is_empty(), "ffmpeg is running");

        send_signal(signal, program);
        finished(child).await;
        camera.assert_nothing_is_left(program).await;
    }
}

#[tokio::test]
async fn only_cameras_can_be_opened_again() {
    let (server, _) = fake_server::start(Script::default()).await;
    let arguments = ["stream", "a.mp4", "--reconnect"];
    let output = super::classify::resnet18(server, &arguments).await;
    assert_eq!(output.status.code(), Some(64));
    assert!(text(&output.stderr).contains("--reconnect"));
}
