//! When a call arrived, by when it must be answered and how urgent it is, as its headers say.

use std::time::{Duration, Instant};

use http::HeaderMap;

use super::{
    methods::{is_classifying, is_stream, is_training},
    status::CallError,
};
use crate::scheduler::Priority;

/// The server's own limits on deadlines.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadlines {
    /// For single requests without a deadline; `None` means that they may wait without limit.
    pub default: Option<Duration>,
    /// The longest that any single request may wait; `None` means no limit.
    pub longest: Option<Duration>,
}

impl Deadlines {
    /// How long a call may take whose header asks for `requested`. Streams have no limit but their
    /// own, and training has none.
    pub(in crate::grpc) fn timeout(
        &self,
        path: &str,
        requested: Option<Duration>,
    ) -> Option<Duration> {
        if is_stream(path) || is_training(path) || !is_classifying(path) {
            return requested;
        }
        [requested.or(self.default), self.longest]
            .into_iter()
            .flatten()
            .min()
    }
}

/// When a call arrived, by when it must be answered, and how urgent it is.
#[derive(Clone, Copy, Debug)]
pub(in crate::grpc) struct CallTiming {
    pub arrived: Instant,
    pub deadline: Option<Instant>,
    pub priority: Priority,
}

/// The metadata key of a call's priority.
const PRIORITY: &str = "x-priority";

/// The priority that the headers ask for.
///
/// # Errors
/// [`CallError::Invalid`] for a value that is not a number.
pub(in crate::grpc) fn priority(headers: &HeaderMap) -> Result<Priority, CallError> {
    let Some(value) = headers.get(PRIORITY) else {
        return Ok(Priority::default());
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Priority::from_number).ok_or_else(|| {
        CallError::Invalid(format!(
            "the metadata `{PRIORITY}` is {value:?}; it must be 1 (before others), 2 (as others) \
             or 3 (after others)"
        ))
    })
}

/// The `grpc-timeout` header: up to 8 digits and a unit (gRPC over HTTP/2, "Requests"). Malformed
/// ones are ignored.
pub(in crate::grpc) fn grpc_timeout(headers: &HeaderMap) -> Option<Duration> {
    let value = headers.get("grpc-timeout")?.to_str().ok()?;
    let (digits, unit) = value.split_at_checked(value.len().checked_sub(1)?)?;
    if digits.len() > 8 || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let n: u64 = digits.parse().ok()?;
    Some(match unit {
        "H" => Duration::from_secs(n * 3600),
        "M" => Duration::from_secs(n * 60),
        "S" => Duration::from_secs(n),
        "m" => Duration::from_millis(n),
        "u" => Duration::from_micros(n),
        "n" => Duration::from_nanos(n),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(value: &str) -> Option<Duration> {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-timeout", value.parse().unwrap());
        grpc_timeout(&headers)
    }

    #[test]
    fn timeouts_are_read_in_every_unit() {
        assert_eq!(parse("2H"), Some(Duration::from_secs(7200)));
        assert_eq!(parse("3M"), Some(Duration::from_secs(180)));
        assert_eq!(parse("4S"), Some(Duration::from_secs(4)));
        assert_eq!(parse("99999999m"), Some(Duration::from_millis(99_999_999)));
        assert_eq!(parse("5u"), Some(Duration::from_micros(5)));
        assert_eq!(parse("6n"), Some(Duration::from_nanos(6)));
    }

    #[test]
    fn priorities_are_numbers() {
        let parse = |value: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(PRIORITY, value.parse().unwrap());
            priority(&headers)
        };
        assert!(matches!(priority(&HeaderMap::new()), Ok(Priority::Normal)));
        assert!(matches!(
            (parse("1"), parse("3")),
            (Ok(Priority::High), Ok(Priority::Low))
        ));
        for wrong in ["high", "-1", "1.5", ""] {
            assert!(
                parse(wrong)
                    .unwrap_err()
                    .message()
                    .contains("1 (before others)")
            );
        }
    }

    #[test]
    fn deadlines_are_given_and_limited() {
        let s = |seconds| Some(Duration::from_secs(seconds));
        let none = Deadlines::default();
        let both = Deadlines {
            default: s(5),
            longest: s(60),
        };
        let (single, stream) = (
            "/resnet18.v1.Classifier/Classify",
            "/resnet18.v1.Classifier/StreamClassify",
        );
        assert_eq!(
            (none.timeout(single, None), none.timeout(single, s(90))),
            (None, s(90))
        );
        assert_eq!(
            (
                both.timeout(single, None),
                both.timeout(single, s(1)),
                both.timeout(single, s(90))
            ),
            (s(5), s(1), s(60))
        );
        assert_eq!(
            (both.timeout(stream, None), both.timeout(stream, s(90))),
            (None, s(90))
        );
        let training = "/resnet18.v1.Teacher/Train";
        assert_eq!(
            (both.timeout(training, None), both.timeout(training, s(90))),
            (None, s(90))
        );
        assert_eq!(both.timeout("/grpc.health.v1.Health/Watch", None), None);
        assert_eq!(
            Deadlines {
                default: s(90),
                longest: s(60)
            }
            .timeout(single, None),
            s(60)
        );
    }

    #[test]
    fn malformed_timeouts_are_ignored() {
        for value in ["", "S", "1", "1x", "-1S", "+1S", "123456789S", "1.5S"] {
            assert_eq!(parse(value), None, "{value}");
        }
        assert_eq!(grpc_timeout(&HeaderMap::new()), None);
    }
}
