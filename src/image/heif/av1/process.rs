//! The processes that decode AV1 pictures, as the server sees them: started when one is needed, kept
//! for the next picture, and ended when they fail, take too long or have decoded many.

use std::{
    ffi::OsString,
    io::{self, BufReader, Read, Write},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::PathBuf,
    process::{Child, Command, Stdio},
    sync::{Mutex, OnceLock},
    thread::available_parallelism,
    time::{Duration, Instant},
};

use heifer::heifer_hevc_dec::recon::Frame;

use super::wire::{Answer, Outcome, Request};
use crate::sync::lock;

/// The pictures after which a process is replaced: its decoder leaves some memory behind with each.
const PICTURES_PER_PROCESS: u32 = 256;

/// The program that is started, and its arguments.
static PROGRAM: OnceLock<(PathBuf, Vec<OsString>)> = OnceLock::new();

/// Processes that wait for a picture.
static IDLE: Mutex<Vec<Process>> = Mutex::new(Vec::new());

/// Says how a process is started in which [`decode_av1`](super::child::decode_av1) is called. Before
/// that, AVIF files are rejected. The first call counts.
pub fn decode_av1_with(program: PathBuf, arguments: Vec<OsString>) {
    let _ = PROGRAM.set((program, arguments));
}

/// Why a picture was not decoded.
#[derive(Debug)]
pub enum Failure {
    /// This program has not said how a process is started.
    NoProgram,
    /// A process can't be started.
    NotStarted(io::Error),
    /// The process ended while it decoded.
    Crashed,
    TookTooLong,
    /// It answered that it has no picture.
    Refused(Outcome),
}

/// A decoded picture, and the CPU time that it took.
pub struct Decoded {
    pub frame: Frame,
    pub took: Duration,
}

/// Decodes a picture in a process of its own. Waits for it at most `timeout`.
pub fn decode(data: &[u8], request: Request, timeout: Duration) -> Result<Decoded, Failure> {
    let deadline = Instant::now().checked_add(timeout);
    let mut process = match idle() {
        Some(process) => process,
        None => Process::start()?,
    };
    let outcome = process.decode(data, request, deadline);
    // After anything else it may not be at the start of an answer.
    let is_intact = matches!(outcome, Ok(_) | Err(Failure::Refused(_)));
    if is_intact && process.pictures < PICTURES_PER_PROCESS {
        let mut idle = lock(&IDLE);
        if idle.len() < available_parallelism().map_or(1, usize::from) {
            idle.push(process);
        }
    }
    outcome
}

/// A process that waits, if there is one. Those that have ended meanwhile are forgotten.
fn idle() -> Option<Process> {
    loop {
        let mut process = lock(&IDLE).pop()?;
        if matches!(process.child.try_wait(), Ok(None)) {
            return Some(process);
        }
    }
}

/// A process, which is ended when this is dropped.
struct Process {
    child: Child,
    socket: UnixStream,
    pictures: u32,
}

impl Drop for Process {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Process {
    fn start() -> Result<Self, Failure> {
        let (program, arguments) = PROGRAM.get().ok_or(Failure::NoProgram)?;
        let start = || {
            let (socket, theirs) = UnixStream::pair()?;
            let mut command = Command::new(program);
            command
                .args(arguments)
                // It needs none of the server's settings and secrets.
                .env_clear()
                .stdin(OwnedFd::from(theirs))
                .stdout(Stdio::null())
                .stderr(Stdio::null());
            // A Ctrl-C in the server's terminal is not for it; it ends with the server.
            std::os::unix::process::CommandExt::process_group(&mut command, 0);
            let child = command.spawn()?;
            Ok(Self {
                child,
                socket,
                pictures: 0,
            })
        };
        start().map_err(Failure::NotStarted)
    }

    fn decode(
        &mut self,
        data: &[u8],
        request: Request,
        deadline: Option<Instant>,
    ) -> Result<Decoded, Failure> {
        self.pictures += 1;
        let mut connection = Connection {
            socket: &self.socket,
            deadline,
        };
        let sent = request
            .write(&mut connection)
            .and_then(|()| connection.write_all(data));
        sent.map_err(explain)?;
        let mut reader = BufReader::with_capacity(1 << 16, connection);
        let answer = Answer::read(&mut reader).map_err(explain)?;
        if answer.outcome != Outcome::Decoded {
            return Err(Failure::Refused(answer.outcome));
        }
        let pixels = u64::from(answer.width) * u64::from(answer.height);
        if pixels == 0 || pixels > request.max_pixels.into() {
            return Err(Failure::Crashed);
        }
        Ok(Decoded {
            frame: read_frame(&answer, &mut reader).map_err(explain)?,
            took: Duration::from_nanos(answer.nanoseconds),
        })
    }
}

fn explain(error: io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::TimedOut | io::ErrorKind::WouldBlock => Failure::TookTooLong,
        _ => Failure::Crashed,
    }
}

/// Reads the planes of a picture. Where chroma is subsampled, the frame has an even number of columns
/// and of rows, of which the last are repeated.
fn read_frame(answer: &Answer, reader: &mut impl Read) -> io::Result<Frame> {
    let mut frame = Frame {
        widths: [0; 3],
        heights: [0; 3],
        planes: Default::default(),
        bit_depth: [answer.depth; 2],
        chroma_format: match (answer.monochrome, answer.subsampled) {
            (true, _) => 0,
            (false, [true, true]) => 1,
            (false, [true, false]) => 2,
            (false, _) => 3,
        },
        full_range: false,
        matrix_coeffs: 2,
    };
    let sample_bytes = if answer.depth > 8 { 2 } else { 1 };
    let mut bytes = Vec::new();
    for (index, [width, height]) in answer.planes().into_iter().enumerate() {
        let [columns, rows] = answer.subsampled.map(|halved| index == 0 && halved);
        let padded = |side: u32, even: bool| if even { side.next_multiple_of(2) } else { side };
        let (full_width, full_height) = (padded(width, columns), padded(height, rows));
        bytes.resize(width as usize * sample_bytes, 0);
        let length = full_width as usize * full_height as usize;
        let mut plane = Vec::with_capacity(length);
        for _ in 0..height {
            reader.read_exact(&mut bytes)?;
            if sample_bytes == 1 {
                plane.extend(bytes.iter().map(|&sample| u16::from(sample)));
            } else {
                let samples = bytes.as_chunks().0.iter();
                plane.extend(samples.map(|&sample| u16::from_le_bytes(sample)));
            }
            let last = plane[plane.len() - 1];
            plane.resize(plane.len().next_multiple_of(full_width as usize), last);
        }
        if plane.len() < length {
            plane.extend_from_within(plane.len() - full_width as usize..);
        }
        frame.widths[index] = full_width;
        frame.heights[index] = full_height;
        frame.planes[index] = plane;
    }
    Ok(frame)
}

/// A connection that fails when its time is over.
struct Connection<'a> {
    socket: &'a UnixStream,
    deadline: Option<Instant>,
}

impl Connection<'_> {
    /// The time that is left.
    fn left(&self) -> io::Result<Option<Duration>> {
        let Some(deadline) = self.deadline else {
            return Ok(None);
        };
        match deadline.saturating_duration_since(Instant::now()) {
            Duration::ZERO => Err(io::ErrorKind::TimedOut.into()),
            left => Ok(Some(left)),
        }
    }
}

impl Read for Connection<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.socket.set_read_timeout(self.left()?)?;
        self.socket.read(buffer)
    }
}

impl Write for Connection<'_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        self.socket.set_write_timeout(self.left()?)?;
        self.socket.write(buffer)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::{super::tests, *};

    /// Decodes a picture of 97 by 65 pixels.
    fn decode_small() -> Result<Decoded, Failure> {
        let data = tests::data_of("avif/yuv420.avif");
        let request = Request {
            length: data.len() as u32,
            max_pixels: 97 * 65,
            memory: 1 << 30,
        };
        decode(&data, request, Duration::from_secs(60))
    }

    #[test]
    fn a_process_that_has_ended_is_not_used_again() {
        tests::start_processes();
        let mut ended = Process::start().unwrap();
        ended.child.kill().unwrap();
        ended.child.wait().unwrap();
        lock(&IDLE).push(ended);
        assert_eq!(decode_small().unwrap().frame.widths, [98, 49, 49]);
    }

    #[test]
    fn a_picture_beyond_a_limit_is_rejected_and_the_next_one_decoded() {
        tests::start_processes();
        let data = tests::data_of("bombs/flat.avif");
        let with = |max_pixels: u32, memory: u64| {
            let request = Request {
                length: data.len() as u32,
                max_pixels,
                memory,
            };
            decode(&data, request, Duration::from_secs(60))
        };
        let pixels = 3000 * 2990;
        assert!(matches!(
            with(pixels - 1, 1 << 30),
            Err(Failure::Refused(Outcome::Damaged))
        ));
        // An allocation fails, by which the process may end.
        assert!(matches!(
            with(pixels, 1 << 20),
            Err(Failure::Crashed | Failure::Refused(_))
        ));
        assert_eq!(with(pixels, 1 << 30).unwrap().frame.heights[0], 2990);
        assert_eq!(decode_small().unwrap().frame.heights, [66, 33, 33]);
    }
}
