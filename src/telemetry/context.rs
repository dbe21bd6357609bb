//! Trace contexts of callers: the headers `traceparent` and `tracestate` of W3C Trace Context, with
//! the `tracestate` keys of level 1.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::{HeaderMap, HeaderValue};

/// Identifies a trace across all programs. Displayed as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

/// Identifies a span within its trace. Displayed as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub [u8; 8]);

/// What other spans need to refer to a span.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    pub trace: TraceId,
    pub span: SpanId,
    /// Whether the span is recorded.
    pub sampled: bool,
}

/// The trace context that a caller sent with its call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The caller's span.
    pub parent: SpanContext,
    /// The entries of all `tracestate` headers, joined; empty if there are none.
    pub tracestate: Arc<str>,
}

impl TraceId {
    pub fn random() -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&random().to_be_bytes());
        id[8..].copy_from_slice(&random().to_be_bytes());
        Self(id)
    }
}

impl SpanId {
    pub fn random() -> Self {
        Self(random().to_be_bytes())
    }
}

/// An unpredictable number that is not 0: ids of all zeros are invalid.
pub(super) fn random() -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // A keyed hash of a counter; the operating system's randomness is the key.
    KEYS.hash_one(COUNT.fetch_add(1, Relaxed)).max(1)
}

impl fmt::Display for TraceId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:032x}", u128::from_be_bytes(self.0))
    }
}

impl fmt::Display for SpanId {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{:016x}", u64::from_be_bytes(self.0))
    }
}

/// The longest `tracestate` that is passed on, in bytes; the standard asks for at least 512.
const MAX_TRACESTATE_BYTES: usize = 4096;
/// The most entries of a `tracestate`, from the standard.
const MAX_TRACESTATE_ENTRIES: usize = 32;

/// Reads the trace context from a call's headers. `None` unless there is exactly one valid
/// `traceparent`; an invalid `tracestate` is dropped and does not invalidate the `traceparent`.
pub fn remote(headers: &HeaderMap) -> Option<Remote> {
    let mut parents = headers.get_all("traceparent").iter();
    let (Some(only), None) = (parents.next(), parents.next()) else {
        return None;
    };
    let parent = traceparent(only.to_str().ok()?.trim_matches([' ', '\t']))?;

    let states: Option<Vec<_>> = headers.get_all("tracestate").iter().map(text).collect();
    let tracestate = states
        .and_then(|states| tracestate(&states.join(",")))
        .unwrap_or_default();

    Some(Remote {
        parent,
        tracestate: tracestate.into(),
    })
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// Parses `VERSION-TRACE-PARENT-FLAGS`, all in lower-case hexadecimal digits. Versions after 00 may
/// append more fields after another dash.
fn traceparent(text: &str) -> Option<SpanContext> {
    let (known, rest) = text.split_at_checked(55)?;
    let mut parts = known.split('-');
    let [version] = hex(parts.next()?)?;
    let trace = TraceId(hex(parts.next()?)?);
    let span = SpanId(hex(parts.next()?)?);
    let [flags] = hex(parts.next()?)?;

    let complete = match version {
        0 => rest.is_empty(),
        255 => false,
        _ => rest.is_empty() || rest.starts_with('-'),
    };
    let valid = complete && parts.next().is_none() && trace.0 != [0; 16] && span.0 != [0; 8];
    valid.then_some(SpanContext {
        trace,
        span,
        sampled: flags & 1 == 1,
    })
}

fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    if text.len() != 2 * N {
        return None;
    }

    let mut bytes = [0; N];
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// Parses a list of `KEY=VALUE`; removes spaces around entries, and empty entries.
fn tracestate(text: &str) -> Option<String> {
    let entries: Vec<&str> = text
        .split(',')
        .map(|entry| entry.trim_matches([' ', '\t']))
        .filter(|entry| !entry.is_empty())
        .collect();
    if text.len() > MAX_TRACESTATE_BYTES || entries.len() > MAX_TRACESTATE_ENTRIES {
        return None;
    }

    let mut keys = Vec::with_capacity(entries.len());
    for entry in &entries {
        let (key, value) = entry.split_once('=')?;
        if !is_key(key) || !is_value(value) || keys.contains(&key) {
            return None;
        }
        keys.push(key);
    }

    Some(entries.join(","))
}

/// Whether this is a valid key: `NAME`, or `TENANT@SYSTEM`.
fn is_key(key: &str) -> bool {
    let allowed = |text: &str, longest: usize| {
        let sign = |byte: u8| {
            byte.is_ascii_lowercase() || byte.is_ascii_digit() || b"_-*/".contains(&byte)
        };
        (1..=longest).contains(&text.len()) && text.bytes().all(sign)
    };
    let letter = |text: &str| text.starts_with(|c: char| c.is_ascii_lowercase());
    let letter_or_digit =
        |text: &str| letter(text) || text.starts_with(|c: char| c.is_ascii_digit());
    match key.split_once('@') {
        None => allowed(key, 256) && letter(key),
        Some((tenant, system)) => {
            allowed(tenant, 241) && letter_or_digit(tenant) && allowed(system, 14) && letter(system)
        }
    }
}

/// Whether this is a valid value: visible ASCII and spaces, 256 bytes at most.
fn is_value(value: &str) -> bool {
    let sign = |byte: u8| matches!(byte, b' '..=b'~') && byte != b',' && byte != b'=';
    (1..=256).contains(&value.len()) && value.bytes().all(sign)
}

#[cfg(test)]
mod tests {
    use super::*;

    const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

    fn read(headers: &[(&'static str, &str)]) -> Option<Remote> {
        let mut map = HeaderMap::new();
        for (name, value) in headers {
            map.append(*name, value.parse().unwrap());
        }
        remote(&map)
    }

    #[test]
    fn a_traceparent_names_trace_span_and_whether_it_is_sampled() {
        let remote = read(&[("traceparent", PARENT)]).unwrap();
        assert_eq!(
            remote.parent.trace.to_string(),
            "4bf92f3577b34da6a3ce929d0e0e4736"
        );
        assert_eq!(remote.parent.span.to_string(), "00f067aa0ba902b7");
        assert!(remote.parent.sampled && remote.tracestate.is_empty());
        for (flags, sampled) in [("00", false), ("02", false), ("03", true), ("ff", true)] {
            let text = format!("{}{flags}", &PARENT[..53]);
            assert_eq!(
                read(&[("traceparent", &text)]).unwrap().parent.sampled,
                sampled,
                "{flags}"
            );
        }
    }

    #[test]
    fn later_versions_may_append_fields() {
        for text in ["01-", "cc-"].map(|version| format!("{version}{}", &PARENT[3..])) {
            assert!(traceparent(&text).is_some(), "{text}");
            assert!(
                traceparent(&format!("{text}-what-comes")).is_some(),
                "{text}"
            );
            assert!(
                traceparent(&format!("{text}.what-comes")).is_none(),
                "{text}"
            );
        }
    }

    #[test]
    fn malformed_headers_are_ignored() {
        for wrong in [
            "",
            "00",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-0x",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00F067AA0BA902B7-01",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4bf92f3577b34da6a3ce929d0e0e473-600f067aa0ba902b7-01",
            "00_4bf92f3577b34da6a3ce929d0e0e4736_00f067aa0ba902b7_01",
            "0é-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-1",
        ] {
            assert_eq!(traceparent(wrong), None, "{wrong}");
        }
        assert_eq!(
            read(&[("traceparent", PARENT), ("traceparent", PARENT)]),
            None,
            "two of them"
        );
        assert_eq!(read(&[("tracestate", "a=1")]), None);
    }

    #[test]
    fn a_valid_tracestate_is_passed_on() {
        let state = |values: &[&str]| {
            let headers: Vec<_> = values.iter().map(|value| ("tracestate", *value)).collect();
            read(&[&[("traceparent", PARENT)], &headers[..]].concat())
                .unwrap()
                .tracestate
                .to_string()
        };
        assert_eq!(
            state(&["congo=t61rcWkgMzE, rojo=00f067"]),
            "congo=t61rcWkgMzE,rojo=00f067"
        );
        assert_eq!(state(&["a=1", "", ",b@c=2 3,"]), "a=1,b@c=2 3");
        assert_eq!(state(&["0a-*/_@system=~"]), "0a-*/_@system=~");
        let many: Vec<String> = (0..33).map(|i| format!("k{i}=v")).collect();
        assert_eq!(state(&[&many[..32].join(",")]), many[..32].join(","));
        let (long_key, long_value) = (
            format!("{}=1", "a".repeat(257)),
            format!("a={}", "v".repeat(257)),
        );
        for wrong in [
            "a",
            "a=",
            "=1",
            "A=1",
            "1a=1",
            "a b=1",
            "a@=1",
            "@a=1",
            "a@b@c=1",
            "a=1=2",
            "a=1,a=2",
            "a=\t1",
            &many.join(","),
            &long_key,
            &long_value,
        ] {
            assert_eq!(state(&[wrong]), "", "{wrong}");
        }
    }

    #[test]
    fn ids_are_random() {
        let ids: std::collections::HashSet<String> =
            (0..10_000).map(|_| TraceId::random().to_string()).collect();
        assert_eq!(ids.len(), 10_000);
        let ones: u32 = (0..10_000).map(|_| random().count_ones()).sum();
        assert!(
            (315_000..325_000).contains(&ones),
            "half of the bits are set: {ones}"
        );
    }
}
