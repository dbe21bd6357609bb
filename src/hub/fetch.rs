//! Fetches a file into a folder: resumed where it was cut, verified before anyone reads it, and
//! there whole or not at all.

use std::{
    fs::{self, File, TryLockError},
    io::{self, Read, Seek, SeekFrom, Write},
    path::{Path, PathBuf},
    thread,
    time::{Duration, Instant},
};

use http::{
    HeaderMap, HeaderValue, StatusCode,
    header::{CONTENT_LENGTH, CONTENT_RANGE, ETAG, IF_RANGE, RANGE},
};
use http_body_util::BodyExt;
use sha2::{Digest, Sha256};
use tokio::{
    runtime,
    time::{timeout, timeout_at},
};

use super::{
    Progress,
    error::HubError,
    format_bytes,
    http::{Answer, Client},
};
use crate::cache::create_private;

/// How long the transfer may stand still.
const STALL_TIMEOUT: Duration = Duration::from_secs(20);
/// How often a transfer that is cut is taken up again.
const MAX_CUTS: usize = 3;
/// How often to look whether another process has the file.
const LOCK_INTERVAL: Duration = Duration::from_millis(100);

/// A file to fetch.
pub(super) struct Wanted<'a> {
    pub(super) url: &'a str,
    /// Where it is to be.
    pub(super) path: &'a Path,
    /// Hexadecimal digits that its SHA-256 begins with; `None` takes the whole of it from the
    /// server's `X-Linked-ETag`, if that has it.
    pub(super) hash: Option<&'a str>,
    /// Most bytes that it may have.
    pub(super) limit: u64,
    /// When to give up; what has come is kept.
    pub(super) deadline: Option<Deadline>,
    /// What else the user could do, for errors.
    pub(super) hint: &'a str,
}

/// The time within which a file must be had.
#[derive(Clone, Copy, Debug)]
pub struct Deadline {
    pub at: Instant,
    /// How much time there was.
    pub whole: Duration,
}

/// Fetches the file, unless another process does so first. Blocks.
///
/// # Errors
/// A file that cannot be fetched, is not what it should be, or cannot be written.
pub(super) fn fetch(wanted: &Wanted, progress: &mut dyn FnMut(Progress)) -> Result<(), HubError> {
    let folder = wanted.path.parent().unwrap_or(Path::new("."));
    create_private(folder).map_err(|source| disk(folder, source))?;
    let name = name_of(wanted.path);
    let partial = Partial::open(folder.join(format!("{name}.part")), wanted)?;
    if wanted.path.exists() {
        // Another process had it while this one waited.
        if partial.len().is_ok_and(|len| len == 0) {
            partial.remove();
        }
        return Ok(());
    }

    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| disk(folder, source))?;
    let mut partial = partial;
    let fetched = runtime.block_on(async {
        let fetching = partial.complete(wanted, progress);
        match wanted.deadline {
            None => Some(fetching.await),
            Some(deadline) => timeout_at(deadline.at.into(), fetching).await.ok(),
        }
    });
    // A name that is still being resolved must not hold up the end.
    runtime.shutdown_background();

    let got = partial.len().unwrap_or_default();
    if got == 0 && !matches!(fetched, Some(Ok(_))) {
        partial.remove();
    }
    match (fetched, wanted.deadline) {
        (Some(fetched), _) => partial.keep(wanted, fetched?.as_deref()),
        (None, Some(deadline)) => Err(too_slow(wanted, deadline, got)),
        (None, None) => unreachable!("only a deadline ends it early"),
    }
}

fn too_slow(wanted: &Wanted, deadline: Deadline, got: u64) -> HubError {
    let got = if got > 0 {
        format!(
            "; {} are here, and the next attempt goes on from there",
            format_bytes(got)
        )
    } else {
        String::new()
    };
    HubError::TooSlow {
        file: name_of(wanted.path),
        seconds: deadline.whole.as_secs(),
        got,
    }
}

/// A file that is not complete yet, which no other process writes at the same time.
struct Partial {
    file: File,
    path: PathBuf,
    /// The file with the entity tag of the content, so that two versions are never mixed.
    tag: PathBuf,
}

impl Partial {
    /// Opens the file, waiting while another process has it.
    fn open(path: PathBuf, wanted: &Wanted) -> Result<Self, HubError> {
        let open = || {
            File::options()
                .read(true)
                .write(true)
                .create(true)
                .truncate(false)
                .open(&path)
        };
        loop {
            let file = open().map_err(|source| disk(&path, source))?;
            match file.try_lock() {
                Ok(()) => {}
                Err(TryLockError::WouldBlock) => {
                    if let Some(deadline) = wanted.deadline
                        && Instant::now() >= deadline.at
                    {
                        return Err(too_slow(wanted, deadline, 0));
                    }
                    thread::sleep(LOCK_INTERVAL);
                    continue;
                }
                Err(TryLockError::Error(source)) => return Err(disk(&path, source)),
            }
            // The process that had the lock may have moved the file to its place.
            if !is_at(&file, &path) && !wanted.path.exists() {
                continue;
            }
            let tag = path.with_extension("etag");
            return Ok(Self { file, path, tag });
        }
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.len())
    }

    /// Fetches what is missing. Returns the SHA-256 that the server names, if it does.
    async fn complete(
        &mut self,
        wanted: &Wanted<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<String>, HubError> {
        let client = Client::new();
        let mut cuts = 0;
        loop {
            match self.go_on(&client, wanted, progress).await {
                Err(HubError::Cut { got, .. }) if cuts < MAX_CUTS && got > 0 => cuts += 1,
                ended => return ended,
            }
        }
    }

    /// One request, for what is missing.
    async fn go_on(
        &mut self,
        client: &Client,
        wanted: &Wanted<'_>,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Option<String>, HubError> {
        let mut done = self.len().map_err(|source| disk(&self.path, source))?;
        let mut headers = HeaderMap::new();
        let tag = fs::read(&self.tag)
            .ok()
            .filter(|_| done > 0)
            .and_then(|tag| HeaderValue::from_bytes(&tag).ok());
        match tag {
            Some(tag) => {
                let range = format!("bytes={done}-");
                headers.insert(
                    RANGE,
                    HeaderValue::from_str(&range).expect("digits are valid"),
                );
                headers.insert(IF_RANGE, tag);
            }
            // Without a tag, nothing says that the rest belongs to the same version.
            None => done = 0,
        }
        let Answer {
            response,
            redirects,
        } = client.get(wanted.url, &headers, wanted.hint).await?;
        let refuse = |reason: String| HubError::Answer {
            url: wanted.url.to_owned(),
            reason,
        };

        let answered = response.headers();
        let linked = redirects.iter().chain([answered]).find_map(linked_hash);
        let is_rest = response.status() == StatusCode::PARTIAL_CONTENT
            && answered
                .get(CONTENT_RANGE)
                .and_then(|range| range.to_str().ok())
                .is_some_and(|range| range.starts_with(&format!("bytes {done}-")));
        match response.status() {
            StatusCode::PARTIAL_CONTENT if !is_rest => {
                return Err(refuse(
                    "the server sent another part than was asked for".into(),
                ));
            }
            // All of it is there, if it has the right hash.
            StatusCode::RANGE_NOT_SATISFIABLE => return Ok(linked),
            StatusCode::OK => done = 0,
            _ => {}
        }

        let rest: Option<u64> = answered
            .get(CONTENT_LENGTH)
            .and_then(|length| length.to_str().ok()?.parse().ok());
        let total = rest.map(|rest| done.saturating_add(rest));
        let too_large = || {
            refuse(format!(
                "the file is larger than {}, the most that is fetched",
                format_bytes(wanted.limit)
            ))
        };
        if total.is_some_and(|total| total > wanted.limit) {
            return Err(too_large());
        }

        // Only a strong tag stands for the exact bytes.
        let tag = answered
            .get(ETAG)
            .filter(|tag| !tag.as_bytes().starts_with(b"W/"));
        let written = match (done, tag) {
            (0, Some(tag)) => fs::write(&self.tag, tag.as_bytes()),
            (0, None) => remove_if_there(&self.tag),
            _ => Ok(()),
        };
        written.map_err(|source| self.full(source))?;
        self.file
            .set_len(done)
            .and_then(|()| self.file.seek(SeekFrom::Start(done)))
            .or_else(|error| if done == 0 { Ok(0) } else { Err(error) })
            .map_err(|source| self.full(source))?;

        let mut body = response.into_body();
        progress(Progress { done, total });
        loop {
            let cut = |reason: String| HubError::Cut {
                url: wanted.url.to_owned(),
                got: done,
                reason,
            };
            let frame = match timeout(STALL_TIMEOUT, body.frame()).await {
                Err(_) => {
                    return Err(cut(format!(
                        "nothing came for {} s",
                        STALL_TIMEOUT.as_secs()
                    )));
                }
                Ok(None) => break,
                Ok(Some(Err(error))) => return Err(cut(error.to_string())),
                Ok(Some(Ok(frame))) => frame,
            };
            let Ok(data) = frame.into_data() else {
                continue;
            };
            if done.saturating_add(data.len() as u64) > wanted.limit {
                return Err(too_large());
            }
            self.file
                .write_all(&data)
                .map_err(|source| self.full(source))?;
            done += data.len() as u64;
            progress(Progress { done, total });
        }
        if total.is_some_and(|total| done != total) {
            return Err(HubError::Cut {
                url: wanted.url.to_owned(),
                got: done,
                reason: "the connection ended".into(),
            });
        }
        Ok(linked)
    }

    /// An error of writing. What has come is removed, so that it does not fill the disk.
    fn full(&self, source: io::Error) -> HubError {
        self.remove();
        disk(&self.path, source)
    }

    fn remove(&self) {
        // The first error is the one to report.
        let _ = fs::remove_file(&self.path);
        let _ = fs::remove_file(&self.tag);
    }

    /// Verifies the file and moves it to its place.
    fn keep(mut self, wanted: &Wanted, linked: Option<&str>) -> Result<(), HubError> {
        if let Some(expected) = wanted.hash.or(linked) {
            let found = self
                .file
                .seek(SeekFrom::Start(0))
                .and_then(|_| digest(&mut self.file))
                .map_err(|source| disk(&self.path, source))?;
            if !found.starts_with(expected) {
                self.remove();
                return Err(HubError::Hash {
                    place: wanted.url.to_owned(),
                    found: found[..expected.len().min(found.len())].to_owned(),
                    expected: expected.to_owned(),
                    removed: ", and it was removed",
                });
            }
        }
        let kept = self
            .file
            .sync_all()
            .and_then(|()| fs::rename(&self.path, wanted.path));
        kept.map_err(|source| disk(wanted.path, source))?;
        let _ = fs::remove_file(&self.tag);
        Ok(())
    }
}

/// The SHA-256 of the rest of a file, in hexadecimal digits.
pub(super) fn digest(file: &mut impl Read) -> io::Result<String> {
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 16];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(read) => hasher.update(&buffer[..read]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

/// The SHA-256 of a large file on Hugging Face, which the answer with the redirect names.
fn linked_hash(headers: &HeaderMap) -> Option<String> {
    let tag = headers.get("x-linked-etag")?.to_str().ok()?;
    let hash = tag.trim_start_matches("W/").trim_matches('"');
    let is_hash = hash.len() == 64 && hash.bytes().all(|byte| byte.is_ascii_hexdigit());
    is_hash.then(|| hash.to_ascii_lowercase())
}

fn remove_if_there(path: &Path) -> io::Result<()> {
    match fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Whether the open file is the one at `path`.
#[cfg(unix)]
fn is_at(file: &File, path: &Path) -> bool {
    use std::os::unix::fs::MetadataExt;

    let identity = |metadata: fs::Metadata| (metadata.dev(), metadata.ino());
    let at = fs::metadata(path).map(identity).ok();
    at.is_some() && at == file.metadata().map(identity).ok()
}

/// Whether the open file is the one at `path`.
#[cfg(not(unix))]
fn is_at(_: &File, path: &Path) -> bool {
    path.exists()
}

pub(super) fn disk(path: &Path, source: io::Error) -> HubError {
    HubError::Disk {
        path: path.to_owned(),
        source,
    }
}

fn name_of(path: &Path) -> String {
    path.file_name().map_or("the file".into(), |name| {
        name.to_string_lossy().into_owned()
    })
}
