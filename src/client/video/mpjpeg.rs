//! A reader for the container in which `ffmpeg` writes JPEG files one after another (`-f mpjpeg`):
//! parts of a multipart message, each with its length in a header.

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{self, AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

use crate::client::MAX_MESSAGE_BYTES;

/// The longest line, in bytes.
const LONGEST_LINE: u64 = 1024;
/// The most lines before a file.
const MOST_LINES: usize = 16;

/// Why a stream isn't made of JPEG files as expected.
#[derive(Debug, Error)]
pub enum MpjpegError {
    /// A file doesn't begin with lines that say how long it is.
    #[error("a JPEG file doesn't begin with its length")]
    NoLength,
    /// A file is larger than a message may be.
    #[error("a JPEG file has {0} bytes")]
    TooLarge(usize),
    /// The stream ends within a file.
    #[error("the stream ends within a file")]
    Truncated,
    /// The stream can't be read.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
}

/// Reads a file; `None` at the end of the stream.
pub async fn read_file(
    reader: &mut (impl AsyncBufRead + Unpin),
) -> Result<Option<Bytes>, MpjpegError> {
    let mut length = None;
    for _ in 0..MOST_LINES {
        let mut line = Vec::new();
        let read = (&mut *reader)
            .take(LONGEST_LINE)
            .read_until(b'\n', &mut line)
            .await?;
        if read == 0 {
            // What follows the last file is no further one.
            return if length.is_none() {
                Ok(None)
            } else {
                Err(MpjpegError::Truncated)
            };
        }
        let line = String::from_utf8_lossy(&line);
        match (line.trim().split_once(':'), length) {
            (Some((name, value)), _) if name.eq_ignore_ascii_case("content-length") => {
                length = value.trim().parse::<usize>().ok();
            }
            (None, Some(length)) if line.trim().is_empty() => {
                return content(reader, length).await.map(Some);
            }
            _ => {}
        }
    }
    Err(MpjpegError::NoLength)
}

async fn content(
    reader: &mut (impl AsyncBufRead + Unpin),
    length: usize,
) -> Result<Bytes, MpjpegError> {
    if length > MAX_MESSAGE_BYTES {
        return Err(MpjpegError::TooLarge(length));
    }
    let mut content = BytesMut::zeroed(length);
    match reader.read_exact(&mut content).await {
        Ok(_) => Ok(content.freeze()),
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(MpjpegError::Truncated),
        Err(error) => Err(error.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn files(mut stream: &[u8]) -> Result<Vec<Bytes>, MpjpegError> {
        let mut files = Vec::new();
        while let Some(file) = read_file(&mut stream).await? {
            files.push(file);
        }
        Ok(files)
    }

    #[tokio::test]
    async fn files_may_hold_anything() {
        let stream = b"--ffmpeg\r\nContent-type: image/jpeg\r\nContent-length: 6\r\n\r\n\r\n--a\n\
            \r\n--ffmpeg\r\nContent-type: image/jpeg\r\nContent-length: 3\r\n\r\nxyz\r\n--ffmpeg\r\n";
        assert_eq!(files(stream).await.unwrap(), [&b"\r\n--a\n"[..], b"xyz"]);
        assert!(files(b"").await.unwrap().is_empty());
    }

    #[tokio::test]
    async fn what_is_no_such_stream_is_refused() {
        let header = |length: &str| format!("--ffmpeg\r\nContent-length: {length}\r\n\r\n");
        let error = files(header("4").as_bytes()).await.unwrap_err();
        assert!(matches!(error, MpjpegError::Truncated));
        let error = files(b"Content-length: 4\r\n").await.unwrap_err();
        assert!(matches!(error, MpjpegError::Truncated));
        let error = files(header("99999999999").as_bytes()).await.unwrap_err();
        assert!(matches!(error, MpjpegError::TooLarge(_)));
        let error = files(&b"\n".repeat(100)).await.unwrap_err();
        assert!(matches!(error, MpjpegError::NoLength));
    }
}
