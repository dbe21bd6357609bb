//! Who continues which trace: the headers `traceparent` and `tracestate` of W3C Trace Context,
//! whose keys are those of level 1.

use std::{
    fmt,
    hash::{BuildHasher, RandomState},
    sync::{
        Arc, LazyLock,
        atomic::{AtomicU64, Ordering::Relaxed},
    },
};

use http::{HeaderMap, HeaderValue};

/// Names a trace, wherever its spans come from. Shown as 32 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TraceId(pub [u8; 16]);

/// Names a span of a trace. Shown as 16 hexadecimal digits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanId(pub [u8; 8]);

/// A span, as others refer to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SpanContext {
    /// Its trace.
    pub trace: TraceId,
    /// The span itself.
    pub span: SpanId,
    /// Whether it is recorded.
    pub sampled: bool,
}

/// What a caller says of the trace that its call belongs to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Remote {
    /// The caller's span.
    pub parent: SpanContext,
    /// What tracing systems on the way have noted, as one `tracestate`; empty if nothing.
    pub state: Arc<str>,
}

impl TraceId {
    /// An id that no other trace has.
    pub fn random() -> Self {
        let mut id = [0; 16];
        id[..8].copy_from_slice(&random().to_be_bytes());
        id[8..].copy_from_slice(&random().to_be_bytes());
        Self(id)
    }
}

impl SpanId {
    /// An id that no other span has.
    pub fn random() -> Self {
        Self(random().to_be_bytes())
    }
}

/// A number that is not 0, which can't be foreseen and hardly comes again.
pub(super) fn random() -> u64 {
    static KEYS: LazyLock<RandomState> = LazyLock::new(RandomState::new);
    static COUNT: AtomicU64 = AtomicU64::new(0);
    // A keyed hash, whose keys come from the system.
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

/// The longest `tracestate` that is passed on, in bytes; at least 512 are asked for.
const LONGEST_STATE: usize = 4096;
/// The most entries of a `tracestate`.
const MOST_ENTRIES: usize = 32;

/// What the headers of a call say; `None` if they don't say it exactly as the standard wants it. A
/// `tracestate` that is wrong does not make its `traceparent` wrong.
pub fn remote(headers: &HeaderMap) -> Option<Remote> {
    let mut parents = headers.get_all("traceparent").iter();
    let (Some(only), None) = (parents.next(), parents.next()) else {
        return None;
    };
    let parent = traceparent(only.to_str().ok()?.trim_matches([' ', '\t']))?;
    let states: Option<Vec<_>> = headers.get_all("tracestate").iter().map(text).collect();
    let state = states
        .and_then(|states| tracestate(&states.join(",")))
        .unwrap_or_default();
    Some(Remote {
        parent,
        state: state.into(),
    })
}

fn text(value: &HeaderValue) -> Option<&str> {
    value.to_str().ok()
}

/// `VERSION-TRACE-PARENT-FLAGS`, all in lower-case hexadecimal digits. Later versions may add more
/// behind another dash.
fn traceparent(text: &str) -> Option<SpanContext> {
    let (known, more) = text.split_at_checked(55)?;
    let mut parts = known.split('-');
    let [version] = hex(parts.next()?)?;
    let trace = TraceId(hex(parts.next()?)?);
    let span = SpanId(hex(parts.next()?)?);
    let [flags] = hex(parts.next()?)?;
    let complete = match version {
        0 => more.is_empty(),
        255 => false,
        _ => more.is_empty() || more.starts_with('-'),
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
    let mut bytes = [0; N];
    if text.len() != 2 * N {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(text.as_bytes().chunks_exact(2)) {
        *byte = digit(pair[0])? << 4 | digit(pair[1])?;
    }
    Some(bytes)
}

/// A list of `KEY=VALUE`, cleaned of spaces and empty entries.
fn tracestate(text: &str) -> Option<String> {
    let entries: Vec<&str> = text
        .split(',')
        .map(|entry| entry.trim_matches([' ', '\t']))
        .filter(|entry| !entry.is_empty())
        .collect();
    let mut keys = Vec::with_capacity(entries.len().min(MOST_ENTRIES));
    if text.len() > LONGEST_STATE || entries.len() > MOST_ENTRIES {
        return None;
    }
    for entry in &entries {
        let (key, value) = entry.split_once('=')?;
        if !is_key(key) || !is_value(value) || keys.contains(&key) {
            return None;
        }
        keys.push(key);
    }
    Some(entries.join(","))
}

/// `NAME`, or `TENANT@SYSTEM`.
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

/// Visible ASCII and spaces, without a space at the end.
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
        assert!(remote.parent.sampled && remote.state.is_empty());
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
    fn later_versions_may_say_more() {
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
    fn whatever_is_malformed_is_no_parent() {
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
    fn tracestate_is_passed_on_where_it_is_valid() {
        let state = |values: &[&str]| {
            let headers: Vec<_> = values.iter().map(|value| ("tracestate", *value)).collect();
            read(&[&[("traceparent", PARENT)], &headers[..]].concat())
                .unwrap()
                .state
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
