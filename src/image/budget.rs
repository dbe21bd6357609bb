//! What decoding one image may take: the limits of the configuration, and the time that is left.

use std::{
    cell::Cell,
    io::{self, BufRead, Read, Seek, SeekFrom},
    time::Duration,
};

use super::{ImageError, PreprocessConfig};

/// The limits of one image, whose time begins when this is made. It is CPU time of the thread that
/// decodes, so that no image is rejected because the machine is busy with others.
///
/// Every loop of a decoder whose length depends on the file calls [`Budget::spend`], so that an
/// image which takes too long is abandoned. Decoders of other crates are given a [`Timed`] reader,
/// which fails in their place.
pub(super) struct Budget {
    config: PreprocessConfig,
    /// The thread's CPU time at which the image's time is used up.
    end: Cell<Duration>,
    /// The work until the clock is looked at again.
    left: Cell<usize>,
    /// The time that other threads have spent.
    helped: Cell<Duration>,
}

impl Budget {
    /// The work between two looks at the clock: a millisecond, at most, of decoding pixels.
    const BETWEEN_LOOKS: usize = 1 << 16;

    pub fn new(config: &PreprocessConfig) -> Self {
        Self {
            config: *config,
            end: Cell::new(thread_time().saturating_add(config.max_decode_time)),
            left: Cell::new(Self::BETWEEN_LOOKS),
            helped: Cell::new(Duration::ZERO),
        }
    }

    pub fn config(&self) -> &PreprocessConfig {
        &self.config
    }

    /// Counts work, in pixels or bytes, and looks at the clock from time to time.
    ///
    /// # Errors
    /// [`ImageError::TookTooLong`].
    #[inline]
    pub fn spend(&self, work: usize) -> Result<(), ImageError> {
        if let Some(left) = self.left.get().checked_sub(work) {
            self.left.set(left);
            return Ok(());
        }
        self.left.set(Self::BETWEEN_LOOKS);
        self.check()
    }

    /// Looks at the clock.
    ///
    /// # Errors
    /// [`ImageError::TookTooLong`].
    pub fn check(&self) -> Result<(), ImageError> {
        if thread_time() >= self.end.get() {
            return Err(self.timeout_error());
        }
        Ok(())
    }

    /// The time that is left.
    #[cfg(unix)]
    pub fn left(&self) -> Duration {
        self.end.get().saturating_sub(thread_time())
    }

    /// Counts CPU time that other threads have spent on this image.
    pub fn help(&self, time: Duration) {
        self.helped.set(self.helped.get() + time);
        self.charge(time);
    }

    /// The CPU time that other threads have spent on this image.
    pub fn helped(&self) -> Duration {
        self.helped.get()
    }

    /// Counts time that was spent elsewhere.
    pub fn charge(&self, time: Duration) {
        self.end.set(self.end.get().saturating_sub(time));
    }

    /// The error for an image that has used up its time.
    pub fn timeout_error(&self) -> ImageError {
        ImageError::TookTooLong {
            max_time: self.config.max_decode_time,
        }
    }
}

/// The CPU time that this thread has taken.
#[cfg(unix)]
pub(super) fn thread_time() -> Duration {
    use rustix::time::{ClockId, clock_gettime};

    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(
        time.tv_sec.unsigned_abs(),
        time.tv_nsec.try_into().unwrap_or(0),
    )
}

/// The time that has passed, where no thread's own is known.
#[cfg(not(unix))]
pub(super) fn thread_time() -> Duration {
    use std::{sync::LazyLock, time::Instant};

    static START: LazyLock<Instant> = LazyLock::new(Instant::now);
    START.elapsed()
}

/// A file in memory that can be read until the time is over: a point of cancellation for decoders
/// of other crates.
pub(super) struct Timed<'a> {
    data: &'a [u8],
    position: u64,
    budget: &'a Budget,
}

impl<'a> Timed<'a> {
    /// The most bytes that are handed out at once. Highly compressed ones may become a thousand
    /// times as many.
    const STEP: usize = 1 << 14;

    pub fn new(data: &'a [u8], budget: &'a Budget) -> Self {
        Self {
            data,
            position: 0,
            budget,
        }
    }

    fn rest(&self) -> &'a [u8] {
        let start = usize::try_from(self.position).unwrap_or(usize::MAX);
        self.data.get(start..).unwrap_or_default()
    }
}

impl Read for Timed<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        // Small reads come often, and large ones are of bytes that are stored as they are.
        self.budget.spend(64 + buffer.len()).map_err(too_late)?;
        let rest = self.rest();
        let length = rest.len().min(buffer.len());
        buffer[..length].copy_from_slice(&rest[..length]);
        self.position += length as u64;
        Ok(length)
    }
}

impl BufRead for Timed<'_> {
    fn fill_buf(&mut self) -> io::Result<&[u8]> {
        self.budget.spend(1024).map_err(too_late)?;
        let rest = self.rest();
        Ok(&rest[..rest.len().min(Self::STEP)])
    }

    fn consume(&mut self, amount: usize) {
        self.position += amount as u64;
    }
}

impl Seek for Timed<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let position = match to {
            SeekFrom::Start(position) => Some(position),
            SeekFrom::End(offset) => (self.data.len() as u64).checked_add_signed(offset),
            SeekFrom::Current(offset) => self.position.checked_add_signed(offset),
        };
        self.position = position.ok_or(io::ErrorKind::InvalidInput)?;
        Ok(self.position)
    }
}

fn too_late(error: ImageError) -> io::Error {
    io::Error::new(io::ErrorKind::TimedOut, error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of_time(max_decode_time: Duration) -> Budget {
        Budget::new(&PreprocessConfig {
            max_decode_time,
            ..PreprocessConfig::default()
        })
    }

    #[test]
    fn the_clock_is_looked_at_once_in_a_while() {
        let over = of_time(Duration::ZERO);
        assert!(over.check().is_err());
        assert!(over.spend(Budget::BETWEEN_LOOKS).is_ok());
        let error = over.spend(1).unwrap_err();
        assert!(matches!(error, ImageError::TookTooLong { .. }));
        assert!(over.spend(1).is_ok(), "it is counted from the start again");

        let endless = of_time(Duration::MAX);
        assert!(endless.spend(usize::MAX).is_ok());
    }

    #[test]
    fn a_file_is_read_in_steps_until_the_time_is_over() {
        let data: Vec<u8> = (0..100_000u32).map(|index| index as u8).collect();
        let budget = of_time(Duration::MAX);
        let mut file = Timed::new(&data, &budget);
        assert_eq!(file.fill_buf().unwrap().len(), Timed::STEP);
        let mut all = Vec::new();
        file.read_to_end(&mut all).unwrap();
        assert_eq!(all, data);
        assert_eq!(file.seek(SeekFrom::End(-2)).unwrap(), 99_998);
        assert_eq!(file.fill_buf().unwrap(), &data[99_998..]);
        file.seek(SeekFrom::Start(u64::MAX)).unwrap();
        assert!(file.fill_buf().unwrap().is_empty());

        let over = of_time(Duration::ZERO);
        let mut late = Timed::new(&data, &over);
        let error = late.read_to_end(&mut Vec::new()).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
    }
}
