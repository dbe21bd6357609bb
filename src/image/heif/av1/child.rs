//! What runs in the process that decodes AV1 pictures: one after the other, until the server closes
//! the connection.
//!
//! The decoder is `re_rav1d`, a translation of dav1d. Where it panics it ends the process, as its
//! functions are those of a C library; what it allocates is not all freed; and it can't be
//! interrupted. So it runs beside the server and not in it.

use std::{
    io::{self, BufReader, BufWriter, Read, Write},
    os::{fd::AsFd, unix::net::UnixStream},
};

use re_rav1d::{Decoder, Error, Picture, PixelLayout, PlanarImageComponent as Component, Settings};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use super::wire::{Answer, Outcome, Request};
use crate::image::budget::thread_time;

/// Decodes what is asked for over the socket that is standard input.
///
/// # Errors
/// If standard input is no socket, or the connection fails.
pub fn decode_av1() -> io::Result<()> {
    let socket = UnixStream::from(io::stdin().as_fd().try_clone_to_owned()?);
    confine()?;
    serve(&socket)
}

/// Switches core dumps off, and makes this process the first that the system ends where memory is
/// short.
fn confine() -> io::Result<()> {
    let none = Rlimit {
        current: Some(0),
        maximum: Some(0),
    };
    setrlimit(Resource::Core, none)?;
    #[cfg(target_os = "linux")]
    let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    Ok(())
}

fn serve(socket: &UnixStream) -> io::Result<()> {
    let mut reader = BufReader::new(socket);
    let mut writer = BufWriter::new(socket);
    while let Some(request) = Request::read(&mut reader)? {
        let mut data = vec![0; request.length as usize];
        reader.read_exact(&mut data)?;
        limit_memory(request.memory)?;
        let start = thread_time();
        let decoded = decode(data, request.max_pixels);
        let took = thread_time().saturating_sub(start);
        let nanoseconds = u64::try_from(took.as_nanos()).unwrap_or(u64::MAX);
        match decoded {
            Ok(picture) => answer(&picture, nanoseconds, &mut writer)?,
            Err(outcome) => Answer {
                nanoseconds,
                ..Answer::without(outcome)
            }
            .write(&mut writer)?,
        }
        writer.flush()?;
    }
    Ok(())
}

/// Limits what this process may write to. Beyond it an allocation fails, which ends the process.
fn limit_memory(bytes: u64) -> io::Result<()> {
    let maximum = getrlimit(Resource::Data).maximum;
    let limit = Rlimit {
        current: Some(bytes.min(maximum.unwrap_or(u64::MAX))),
        maximum,
    };
    Ok(setrlimit(Resource::Data, limit)?)
}

/// The picture that the data shows, on this thread alone.
fn decode(data: Vec<u8>, max_pixels: u32) -> Result<Picture, Outcome> {
    let mut settings = Settings::new();
    settings.set_n_threads(1);
    settings.set_max_frame_delay(1);
    settings.set_frame_size_limit(max_pixels);
    // Of a picture in layers only the last is shown.
    settings.set_all_layers(false);
    let mut decoder = Decoder::with_settings(&settings).map_err(outcome)?;
    match decoder.send_data(data, None, None, None) {
        Ok(()) | Err(Error::Again) => {}
        Err(error) => return Err(outcome(error)),
    }
    decoder.get_picture().map_err(outcome)
}

fn outcome(error: Error) -> Outcome {
    match error {
        Error::Again => Outcome::Nothing,
        Error::UnsupportedBitstream => Outcome::Unsupported,
        _ => Outcome::Damaged,
    }
}

fn answer(picture: &Picture, nanoseconds: u64, writer: &mut impl Write) -> io::Result<()> {
    let depth = picture.bits_per_component().map_or(8, |bits| bits.0);
    let layout = picture.pixel_layout();
    let answer = Answer {
        outcome: Outcome::Decoded,
        nanoseconds,
        width: picture.width(),
        height: picture.height(),
        depth: depth as u8,
        monochrome: layout == PixelLayout::I400,
        subsampled: match layout {
            PixelLayout::I420 => [true, true],
            PixelLayout::I422 => [true, false],
            PixelLayout::I400 | PixelLayout::I444 => [false, false],
        },
    };
    answer.write(writer)?;
    let sample_bytes = if depth > 8 { 2 } else { 1 };
    let components = [Component::Y, Component::U, Component::V];
    for (component, [width, height]) in components.into_iter().zip(answer.planes()) {
        let plane = picture.plane(component);
        let stride = picture.stride(component) as usize;
        for row in plane.chunks(stride).take(height as usize) {
            write_row(&row[..width as usize * sample_bytes], sample_bytes, writer)?;
        }
    }
    Ok(())
}

/// Writes a row of samples, which are in this machine's order of bytes.
fn write_row(row: &[u8], sample_bytes: usize, writer: &mut impl Write) -> io::Result<()> {
    if sample_bytes == 1 || cfg!(target_endian = "little") {
        return writer.write_all(row);
    }
    for &[high, low] in row.as_chunks::<2>().0 {
        writer.write_all(&[low, high])?;
    }
    Ok(())
}
