//! Whether a rejected request may be sent again, and when.
//!
//! The rules follow gRPC's convention: UNAVAILABLE is temporary, and a status may carry the delay
//! to wait in a `google.rpc.RetryInfo`.

use std::time::Duration;

use tokio::time::Instant;
use tonic::{Code, Status};
use tonic_types::StatusExt;

/// The most often that one request is sent, the first attempt included.
pub const MAX_ATTEMPTS: u32 = 8;

const FIRST_BACKOFF: Duration = Duration::from_millis(50);
const LONGEST_BACKOFF: Duration = Duration::from_secs(2);

/// The delay that the server asked for in the status's `google.rpc.RetryInfo`, if it has one.
pub fn requested_delay(status: &Status) -> Option<Duration> {
    status.get_error_details().retry_info()?.retry_delay
}

/// The exponential backoff after attempt number `attempt` (from 0): 50 ms, doubled after each
/// further attempt, up to 2 s.
pub fn backoff(attempt: u32) -> Duration {
    FIRST_BACKOFF
        .saturating_mul(1 << attempt.min(10))
        .min(LONGEST_BACKOFF)
}

/// How long to wait before a request is sent again after attempt number `attempt` (from 0) failed
/// with `status`: the longer of [`backoff`] and [`requested_delay`].
///
/// `None` means that it should not be sent again: the error isn't temporary, that attempt was the
/// last of [`MAX_ATTEMPTS`], or the deadline would pass first. RESOURCE_EXHAUSTED is temporary only
/// if the server says so by asking for a delay; without one it may as well mean a message that is
/// too large.
pub fn delay_before(status: &Status, attempt: u32, deadline: Instant) -> Option<Duration> {
    let requested = requested_delay(status);
    let temporary = match status.code() {
        Code::Unavailable => true,
        Code::ResourceExhausted => requested.is_some(),
        _ => false,
    };
    if !temporary || attempt + 1 >= MAX_ATTEMPTS {
        return None;
    }
    let delay = backoff(attempt).max(requested.unwrap_or_default());
    if Instant::now() + delay < deadline {
        Some(delay)
    } else {
        None
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::ErrorDetails;

    use super::*;

    fn exhausted(delay: Option<Duration>) -> Status {
        Status::with_error_details(
            Code::ResourceExhausted,
            "the queue is full",
            ErrorDetails::with_retry_info(delay),
        )
    }

    fn in_a_minute() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    #[test]
    fn the_servers_delay_is_heeded() {
        let delay = Duration::from_millis(700);
        assert_eq!(requested_delay(&exhausted(Some(delay))), Some(delay));
        assert_eq!(
            delay_before(&exhausted(Some(delay)), 0, in_a_minute()),
            Some(delay)
        );
    }

    #[test]
    fn a_short_delay_is_stretched_by_the_backoff() {
        let status = exhausted(Some(Duration::from_millis(1)));
        assert_eq!(
            delay_before(&status, 0, in_a_minute()),
            Some(Duration::from_millis(50))
        );
        assert_eq!(
            delay_before(&status, 3, in_a_minute()),
            Some(Duration::from_millis(400))
        );
        assert_eq!(backoff(40), Duration::from_secs(2));
    }

    #[test]
    fn what_cannot_succeed_is_not_repeated() {
        assert_eq!(
            delay_before(&Status::invalid_argument("no image"), 0, in_a_minute()),
            None
        );
        assert_eq!(
            delay_before(
                &Status::resource_exhausted("message too large"),
                0,
                in_a_minute()
            ),
            None
        );
        let unavailable = Status::unavailable("starting");
        assert!(delay_before(&unavailable, 0, in_a_minute()).is_some());
        assert_eq!(
            delay_before(&unavailable, MAX_ATTEMPTS - 1, in_a_minute()),
            None
        );
        assert_eq!(delay_before(&unavailable, 0, Instant::now()), None);
    }

    #[test]
    fn damaged_details_count_as_none() {
        let status = Status::with_details(
            Code::ResourceExhausted,
            "full",
            bytes::Bytes::from_static(b"\xff\xff\xff"),
        );
        assert_eq!(requested_delay(&status), None);
    }
}
