//! Bounds how long a file system may stall, such as a network mount whose server is gone.
//!
//! The system calls on such a mount never return, and nothing can interrupt them. They run on a
//! separate thread, which is abandoned if it makes no progress within [`READ_TIMEOUT`].

use std::{
    fs::File,
    io::{self, Read},
    mem,
    path::Path,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering},
        mpsc::{self, Receiver, RecvTimeoutError, SyncSender},
    },
    thread,
    time::Duration,
};

use super::{ReadFailure, open_regular};
use crate::sync::lock;

/// How long a file system may take for the next part of a file. A disk that has to spin up or a
/// mount whose server restarts answers sooner.
pub const READ_TIMEOUT: Duration = Duration::from_secs(15);

/// The most threads that may be abandoned in a file system; beyond that, files are not read.
const MOST_STALLED: usize = 32;

/// How much is read at a time, in bytes.
const PART: usize = 1 << 20;

/// The threads that have been abandoned and have not returned since.
static STALLED: Stalled = Stalled(AtomicUsize::new(0));

struct Stalled(AtomicUsize);

/// Does `work` on a separate thread, and waits for it at most `timeout`.
///
/// # Errors
/// [`ReadFailure::Stalled`] if it takes longer, or if too many have not returned.
pub fn within<T: Send + 'static>(
    timeout: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReadFailure> {
    within_counted(&STALLED, timeout, work)
}

fn within_counted<T: Send + 'static>(
    stalled: &'static Stalled,
    timeout: Duration,
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, ReadFailure> {
    let call = Call::start(stalled, move |done| {
        let _ = done.send(work());
    })?;
    call.next(timeout)?.ok_or_else(|| {
        ReadFailure::Io(io::Error::other("the thread that reads ended unexpectedly"))
    })
}

/// A regular file that is read on a thread of its own.
pub struct TimedFile {
    parts: Call<io::Result<Vec<u8>>>,
    timeout: Duration,
    /// What has been read and not been taken, from `taken` on.
    part: Vec<u8>,
    taken: usize,
}

impl TimedFile {
    /// Opens a regular file of at most `limit` bytes, and returns its size in bytes as well.
    ///
    /// # Errors
    /// Anything but a regular file, one that is larger, what the operating system reports, or a
    /// file system that stalls.
    pub fn open(path: &Path, limit: u64) -> Result<(Self, u64), ReadFailure> {
        let path = path.to_owned();
        let (file, bytes): (File, u64) = within(READ_TIMEOUT, move || open_regular(&path))??;
        if bytes > limit {
            return Err(ReadFailure::TooLarge { limit });
        }
        Ok((Self::new(&STALLED, file, READ_TIMEOUT)?, bytes))
    }

    fn new(
        stalled: &'static Stalled,
        mut file: impl Read + Send + 'static,
        timeout: Duration,
    ) -> Result<Self, ReadFailure> {
        let parts = Call::start(stalled, move |parts: SyncSender<io::Result<Vec<u8>>>| {
            loop {
                let mut part = Vec::with_capacity(PART);
                let read = (&mut file).take(PART as u64).read_to_end(&mut part);
                let is_last = !matches!(read, Ok(bytes) if bytes > 0);
                // Nobody may be waiting any more.
                if parts.send(read.map(|_| part)).is_err() || is_last {
                    return;
                }
            }
        })?;
        Ok(Self {
            parts,
            timeout,
            part: Vec::new(),
            taken: 0,
        })
    }
}

impl Read for TimedFile {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        if self.taken == self.part.len() {
            // After the end, the thread has ended as well.
            self.part = match self.parts.next(self.timeout)? {
                Some(part) => part?,
                None => Vec::new(),
            };
            self.taken = 0;
        }
        let rest = &self.part[self.taken..];
        let bytes = rest.len().min(buffer.len());
        buffer[..bytes].copy_from_slice(&rest[..bytes]);
        self.taken += bytes;
        Ok(bytes)
    }
}

/// A thread in the file system, and what it has found.
struct Call<T> {
    results: Receiver<T>,
    state: Arc<Mutex<CallState>>,
    stalled: &'static Stalled,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum CallState {
    Running,
    Ended,
    /// Nobody waits for it any more, and it is counted as stalled until it returns.
    Abandoned,
}

impl<T: Send + 'static> Call<T> {
    fn start(
        stalled: &'static Stalled,
        work: impl FnOnce(SyncSender<T>) + Send + 'static,
    ) -> Result<Self, ReadFailure> {
        if stalled.0.load(Ordering::Relaxed) >= MOST_STALLED {
            return Err(ReadFailure::Unresponsive);
        }
        // One part is read ahead.
        let (sender, results) = mpsc::sync_channel(1);
        let state = Arc::new(Mutex::new(CallState::Running));
        let end = End {
            state: Arc::clone(&state),
            stalled,
        };
        thread::Builder::new()
            .name("files".into())
            .spawn(move || {
                let _end = end;
                work(sender);
            })
            .map_err(ReadFailure::Io)?;
        Ok(Self {
            results,
            state,
            stalled,
        })
    }

    /// The next result; none once the thread has ended.
    fn next(&self, timeout: Duration) -> Result<Option<T>, ReadFailure> {
        match self.results.recv_timeout(timeout) {
            Ok(result) => Ok(Some(result)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                let mut state = lock(&self.state);
                if *state == CallState::Running {
                    *state = CallState::Abandoned;
                    self.stalled.0.fetch_add(1, Ordering::Relaxed);
                }
                Err(ReadFailure::Stalled(timeout))
            }
        }
    }
}

/// Notes that the thread which owns it has returned.
struct End {
    state: Arc<Mutex<CallState>>,
    stalled: &'static Stalled,
}

impl Drop for End {
    fn drop(&mut self) {
        let state = mem::replace(&mut *lock(&self.state), CallState::Ended);
        if state == CallState::Abandoned {
            self.stalled.0.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{sync::mpsc::Sender, time::Instant};

    use super::*;
    use crate::{files::read_to_end, testing::random_numbers};

    const SHORT: Duration = Duration::from_millis(50);

    /// A file that has `before`, and then nothing until the sender is dropped.
    struct Stalling {
        before: io::Cursor<Vec<u8>>,
        release: Receiver<()>,
    }

    impl Read for Stalling {
        fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
            match self.before.read(buffer)? {
                0 => {
                    let _ = self.release.recv();
                    Ok(0)
                }
                bytes => Ok(bytes),
            }
        }
    }

    fn stalling(before: Vec<u8>) -> (Stalling, Sender<()>) {
        let (sender, release) = mpsc::channel();
        let before = io::Cursor::new(before);
        (Stalling { before, release }, sender)
    }

    #[test]
    fn stalled_calls_are_left_behind_and_are_limited_in_number() {
        static COUNTED: Stalled = Stalled(AtomicUsize::new(0));
        let mut releases = Vec::new();
        for _ in 0..MOST_STALLED {
            let (file, release) = stalling(vec![7; PART + 3]);
            let file = TimedFile::new(&COUNTED, file, SHORT).unwrap();
            let started = Instant::now();
            let error = read_to_end(file, 0, 1 << 30).unwrap_err();
            assert!(started.elapsed() >= SHORT);
            assert!(error.to_string().contains("for 50ms"), "{error}");
            releases.push(release);
        }
        let refused = within_counted(&COUNTED, SHORT, || ()).unwrap_err();
        assert!(matches!(refused, ReadFailure::Unresponsive), "{refused}");

        drop(releases);
        let deadline = Instant::now() + Duration::from_secs(30);
        while within_counted(&COUNTED, SHORT, || ()).is_err() {
            assert!(Instant::now() < deadline, "they are still counted");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_file_is_read_whole_in_parts() {
        let mut random = random_numbers(7);
        let content: Vec<u8> = (0..2 * PART + 17).map(|_| random(256) as u8).collect();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &content).unwrap();

        let (opened, bytes) = TimedFile::open(file.path(), u64::MAX).unwrap();
        assert_eq!(bytes, content.len() as u64);
        assert!(read_to_end(opened, bytes, bytes).unwrap() == content);
    }

    #[test]
    fn an_error_in_the_middle_is_the_readers() {
        let broken = io::Cursor::new(vec![1; 10]).chain(Broken);
        let file = TimedFile::new(&STALLED, broken, READ_TIMEOUT).unwrap();
        let error = read_to_end(file, 10, 100).unwrap_err();
        assert!(error.to_string().contains("the disk is on fire"), "{error}");
    }

    struct Broken;

    impl Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("the disk is on fire"))
        }
    }

    #[test]
    fn a_panic_of_the_work_is_an_error() {
        let error = within(READ_TIMEOUT, || panic!("on purpose")).unwrap_err();
        assert!(error.to_string().contains("ended unexpectedly"), "{error}");
    }
}
