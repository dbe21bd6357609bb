//! A reader for YUV4MPEG2, the container for uncompressed video that `ffmpeg` writes.
//!
//! A stream is one header line with the size of the frames, then each frame as a line that starts
//! with `FRAME` and the planes. The format is described at
//! <https://wiki.multimedia.cx/index.php/YUV4MPEG2>.

use bytes::{Bytes, BytesMut};
use thiserror::Error;
use tokio::io::{self, AsyncBufRead, AsyncBufReadExt, AsyncReadExt};

/// The longest header line, in bytes.
const LONGEST_LINE: u64 = 1024;
/// The largest width and height, in pixels.
const LARGEST_SIDE: u32 = 1 << 15;

/// A stream's header. Its frames are packed I420, 8 bits a sample.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Y4mHeader {
    pub width: u32,
    pub height: u32,
    /// Frames per second, if the header has them.
    pub fps: Option<f64>,
}

/// Why a stream isn't valid YUV4MPEG2, or isn't the expected kind of it.
#[derive(Debug, Error)]
pub enum Y4mError {
    /// The stream doesn't begin with the format's name.
    #[error("not a YUV4MPEG2 stream")]
    NoMagic,
    /// The header has no width or height, or one that is out of range.
    #[error("the header has no valid frame size")]
    NoSize,
    /// The frames have another pixel format than I420.
    #[error("the pixel format `{0}` isn't 8-bit 4:2:0")]
    PixelFormat(String),
    /// Something other than a frame follows the header or a frame.
    #[error("a frame doesn't begin with FRAME")]
    NoFrame,
    /// The stream ends within a frame.
    #[error("the stream ends within a frame")]
    Truncated,
    /// The stream can't be read.
    #[error("cannot read: {0}")]
    Io(#[from] io::Error),
}

impl Y4mHeader {
    /// The size of a frame in bytes: the luma plane and two chroma planes of half its width and
    /// height, rounded up.
    pub fn frame_bytes(&self) -> usize {
        let (width, height) = (self.width as usize, self.height as usize);
        width * height + 2 * width.div_ceil(2) * height.div_ceil(2)
    }

    fn parse(line: &str) -> Result<Self, Y4mError> {
        let mut words = line.split_ascii_whitespace();
        if words.next() != Some("YUV4MPEG2") {
            return Err(Y4mError::NoMagic);
        }
        let (mut width, mut height, mut fps) = (None, None, None);
        for word in words {
            let (tag, value) = word.split_at(word.chars().next().map_or(0, char::len_utf8));
            match tag {
                "W" => width = value.parse().ok(),
                "H" => height = value.parse().ok(),
                "F" => fps = ratio(value),
                // The suffixes of the 8-bit formats tell where the chroma samples are located.
                "C" if !matches!(value, "420" | "420jpeg" | "420mpeg2" | "420paldv") => {
                    return Err(Y4mError::PixelFormat(value.into()));
                }
                _ => {}
            }
        }
        match (width, height) {
            (Some(width @ 1..=LARGEST_SIDE), Some(height @ 1..=LARGEST_SIDE)) => {
                Ok(Self { width, height, fps })
            }
            _ => Err(Y4mError::NoSize),
        }
    }
}

fn ratio(text: &str) -> Option<f64> {
    let (numerator, denominator) = text.split_once(':')?;
    let fps = numerator.parse::<f64>().ok()? / denominator.parse::<f64>().ok()?;
    (fps.is_finite() && fps > 0.0).then_some(fps)
}

/// Reads the header; `None` if the stream is empty.
pub async fn read_header(
    reader: &mut (impl AsyncBufRead + Unpin),
) -> Result<Option<Y4mHeader>, Y4mError> {
    match read_line(reader).await? {
        None => Ok(None),
        Some(line) => Y4mHeader::parse(&line).map(Some),
    }
}

/// Reads a frame; `None` at the end of the stream.
pub async fn read_frame(
    reader: &mut (impl AsyncBufRead + Unpin),
    header: &Y4mHeader,
) -> Result<Option<Bytes>, Y4mError> {
    match read_line(reader).await? {
        None => return Ok(None),
        Some(line) if line.split_ascii_whitespace().next() == Some("FRAME") => {}
        Some(_) => return Err(Y4mError::NoFrame),
    }

    let length = header.frame_bytes();
    let mut data = BytesMut::with_capacity(length);
    let mut rest = reader.take(length as u64);
    while data.len() < length {
        if rest.read_buf(&mut data).await? == 0 {
            return Err(Y4mError::Truncated);
        }
    }
    Ok(Some(data.freeze()))
}

/// Reads a line of limited length, without its line feed; `None` at the end of the stream.
async fn read_line(reader: &mut (impl AsyncBufRead + Unpin)) -> Result<Option<String>, Y4mError> {
    let mut line = Vec::new();
    match reader
        .take(LONGEST_LINE)
        .read_until(b'\n', &mut line)
        .await?
    {
        0 => Ok(None),
        _ if line.last() != Some(&b'\n') => Err(if line.starts_with(b"F") {
            Y4mError::Truncated
        } else {
            Y4mError::NoMagic
        }),
        _ => Ok(Some(String::from_utf8_lossy(&line).trim_end().to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    async fn header(mut text: &[u8]) -> Result<Option<Y4mHeader>, Y4mError> {
        read_header(&mut text).await
    }

    #[tokio::test]
    async fn headers_have_the_size() {
        let text = b"YUV4MPEG2 W456 H256 F30000:1001 Ip A1:1 C420jpeg XYSCSS=420JPEG \
                     XCOLORRANGE=LIMITED\n";
        let parsed = header(text).await.unwrap().unwrap();
        assert_eq!((parsed.width, parsed.height), (456, 256));
        assert!((parsed.fps.unwrap() - 29.97).abs() < 0.001);
        assert_eq!(parsed.frame_bytes(), 456 * 256 * 3 / 2);
        // Without a pixel format it is 4:2:0; an unknown rate is written as 0:0.
        let parsed = header(b"YUV4MPEG2 H3 W5 F0:0\n").await.unwrap().unwrap();
        assert_eq!((parsed.fps, parsed.frame_bytes()), (None, 15 + 2 * 3 * 2));
        assert!(header(b"").await.unwrap().is_none());
    }

    #[tokio::test]
    async fn wrong_headers_are_refused() {
        use Y4mError::*;
        assert!(matches!(header(b"RIFF....\n").await, Err(NoMagic)));
        assert!(matches!(header(&[b'Y'; 5000]).await, Err(NoMagic)));
        assert!(matches!(
            header("YUV4MPEG2 W2 H2 \u{e9}\n".as_bytes()).await,
            Ok(Some(_))
        ));
        for size in ["W2", "W0 H2", "W-2 H2", "W99999999 H2", "W2 H"] {
            assert!(
                matches!(
                    header(format!("YUV4MPEG2 {size}\n").as_bytes()).await,
                    Err(NoSize)
                ),
                "{size}"
            );
        }
        for format in ["422", "420p10", "444", "mono"] {
            let text = format!("YUV4MPEG2 W2 H2 C{format}\n");
            assert!(matches!(header(text.as_bytes()).await, Err(PixelFormat(f)) if f == format));
        }
    }

    #[tokio::test]
    async fn frames_are_read_exactly() {
        let header = Y4mHeader {
            width: 2,
            height: 2,
            fps: None,
        };
        let mut stream: &[u8] = b"FRAME\nABCDEFFRAME Ip\nGHI\nKLFRAME\nabc";
        assert_eq!(
            read_frame(&mut stream, &header).await.unwrap().unwrap(),
            "ABCDEF"
        );
        assert_eq!(
            read_frame(&mut stream, &header).await.unwrap().unwrap(),
            "GHI\nKL"
        );
        assert!(matches!(
            read_frame(&mut stream, &header).await,
            Err(Y4mError::Truncated)
        ));
        assert!(read_frame(&mut &b""[..], &header).await.unwrap().is_none());
        assert!(matches!(
            read_frame(&mut &b"PLANE\n"[..], &header).await,
            Err(Y4mError::NoFrame)
        ));
    }
}
