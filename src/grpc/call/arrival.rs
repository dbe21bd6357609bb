//! What the headers of a call say of when it must be answered and how urgent it is.

use std::time::{Duration, Instant};

use http::HeaderMap;

use super::{
    methods::{is_ours, is_stream},
    status::CallError,
};
use crate::scheduler::Priority;

/// How long callers may wait.
#[derive(Clone, Copy, Debug, Default)]
pub struct Deadlines {
    /// For single requests that come without a deadline; `None` = they wait as long as it takes.
    pub default: Option<Duration>,
    /// A single request waits no longer than this, whatever it says.
    pub longest: Option<Duration>,
}

impl Deadlines {
    /// How long a call waits that asks for `asked`. Streams last as long as they like.
    pub(in crate::grpc) fn of(&self, path: &str, asked: Option<Duration>) -> Option<Duration> {
        if is_stream(path) || !is_ours(path) {
            return asked;
        }
        [asked.or(self.default), self.longest]
            .into_iter()
            .flatten()
            .min()
    }
}

/// When a call arrived, until when its caller waits, and how urgent it is.
#[derive(Clone, Copy, Debug)]
pub(in crate::grpc) struct Arrived {
    pub at: Instant,
    pub deadline: Option<Instant>,
    pub priority: Priority,
}

impl Arrived {
    /// What admission noted of a call.
    pub fn of<T>(request: &tonic::Request<T>) -> Self {
        let now = || Self {
            at: Instant::now(),
            deadline: None,
            priority: Priority::default(),
        };
        request.extensions().get().copied().unwrap_or_else(now)
    }
}

/// The metadata by which callers say how urgent a call is.
const PRIORITY: &str = "x-priority";

pub(in crate::grpc) fn priority(headers: &HeaderMap) -> Result<Priority, CallError> {
    let Some(value) = headers.get(PRIORITY) else {
        return Ok(Priority::default());
    };
    let number = value.to_str().ok().and_then(|text| text.parse().ok());
    number.map(Priority::from_number).ok_or_else(|| {
        CallError::Invalid(format!(
            "the metadata `{PRIORITY}` is {value:?}; it must be 1 (before others), 2 (as others) or 3 (after others)"
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
            (none.of(single, None), none.of(single, s(90))),
            (None, s(90))
        );
        assert_eq!(
            (
                both.of(single, None),
                both.of(single, s(1)),
                both.of(single, s(90))
            ),
            (s(5), s(1), s(60))
        );
        assert_eq!(
            (both.of(stream, None), both.of(stream, s(90))),
            (None, s(90))
        );
        assert_eq!(both.of("/grpc.health.v1.Health/Watch", None), None);
        assert_eq!(
            Deadlines {
                default: s(90),
                longest: s(60)
            }
            .of(single, None),
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
