//! `/metrics`: the text that Prometheus scrapes, as OpenMetrics and compressed when the scraper asks
//! for that.

use std::io::Write;

use axum::{
    extract,
    http::{
        HeaderMap, HeaderName, HeaderValue,
        header::{ACCEPT, ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};

use super::HttpContext;
use crate::metrics::Format;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";
const OPENMETRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Answers a scrape.
pub(super) async fn metrics(
    extract::State(context): extract::State<HttpContext>,
    headers: HeaderMap,
) -> Response {
    let compressed = accepts_gzip(&headers);
    let format = format(&headers);
    // Reading /proc and asking a GPU's driver can block.
    let body = tokio::task::spawn_blocking(move || {
        let models = context.registry.list();
        let models = models.iter().map(|entry| &*entry.metrics);
        let text = context
            .exporter
            .render(format, models, &context.state, &context.memory)
            .into_bytes();
        if compressed { gzip(&text) } else { text }
    });
    let body = body
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));

    let content_type = match format {
        Format::Text => TEXT,
        Format::OpenMetrics => OPENMETRICS,
    };
    let headers = [
        (CONTENT_TYPE, content_type),
        (VARY, "accept, accept-encoding"),
    ];
    let mut response = (headers, body).into_response();
    if compressed {
        let gzip = HeaderValue::from_static("gzip");
        response.headers_mut().insert(CONTENT_ENCODING, gzip);
    }
    response
}

fn gzip(text: &[u8]) -> Vec<u8> {
    let mut encoder = GzEncoder::new(Vec::new(), Compression::fast());
    encoder
        .write_all(text)
        .and_then(|()| encoder.finish())
        .expect("writing into memory does not fail")
}

/// Whether the answer may be compressed by gzip (RFC 9110, 12.5.3).
fn accepts_gzip(headers: &HeaderMap) -> bool {
    let mut any = false;
    for (name, weight) in preferences(headers, ACCEPT_ENCODING) {
        match name {
            name if name.eq_ignore_ascii_case("gzip") => return weight > 0.0,
            "*" => any = weight > 0.0,
            _ => {}
        }
    }
    any
}

/// The format that is preferred (RFC 9110, 12.5.1); the text format, unless OpenMetrics is asked for
/// by its name.
fn format(headers: &HeaderMap) -> Format {
    let weight_of = |format: &str| {
        preferences(headers, ACCEPT)
            .filter(|(name, _)| name.eq_ignore_ascii_case(format))
            .map(|(_, weight)| weight)
            .fold(0.0, f32::max)
    };
    let openmetrics = weight_of("application/openmetrics-text");
    if openmetrics > 0.0 && openmetrics >= weight_of("text/plain") {
        Format::OpenMetrics
    } else {
        Format::Text
    }
}

/// The values of a header that lists what is accepted, without their parameters, and their weights
/// (RFC 9110, 12.4.2). A weight that is no number counts as 0.
fn preferences(headers: &HeaderMap, name: HeaderName) -> impl Iterator<Item = (&str, f32)> {
    headers
        .get_all(name)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(|item| {
            let mut parts = item.split(';').map(str::trim);
            let value = parts.next().unwrap_or_default();
            let weight = parts.find_map(|part| part.strip_prefix("q="));
            (value, weight.unwrap_or("1").parse().unwrap_or(0.0))
        })
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    #[test]
    fn scrapers_choose_whether_the_text_is_compressed() {
        let asks = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            accepts_gzip(&HeaderMap::from_iter([(ACCEPT_ENCODING, value)]))
        };
        for yes in [
            "gzip",
            "zstd, GZIP;q=0.5",
            "deflate,gzip",
            "*",
            "*;q=0, gzip",
        ] {
            assert!(asks(yes), "{yes}");
        }
        for no in [
            "",
            "identity",
            "gzip;q=0",
            "zstd",
            "*, gzip;q=0",
            "*;q=0",
            "gzip;q=x",
        ] {
            assert!(!asks(no), "{no}");
        }
        assert!(!accepts_gzip(&HeaderMap::new()));
    }

    #[test]
    fn scrapers_choose_the_format() {
        let chosen = |value: &'static str| {
            let value = HeaderValue::from_static(value);
            format(&HeaderMap::from_iter([(ACCEPT, value)]))
        };
        for openmetrics in [
            // What Prometheus 2 and 3 send.
            "application/openmetrics-text;version=1.0.0,application/openmetrics-text;version=0.0.1;\
             q=0.75,text/plain;version=0.0.4;q=0.5,*/*;q=0.1",
            "application/openmetrics-text;version=1.0.0;escaping=allow-utf-8;q=0.5,\
             text/plain;version=0.0.4;q=0.3,*/*;q=0.2",
            "Application/OpenMetrics-Text",
        ] {
            assert_eq!(chosen(openmetrics), Format::OpenMetrics, "{openmetrics}");
        }
        for text in [
            "",
            "*/*",
            "text/plain",
            "application/*",
            "text/plain, application/openmetrics-text;q=0.5",
            "application/openmetrics-text;q=0",
        ] {
            assert_eq!(chosen(text), Format::Text, "{text}");
        }
        assert_eq!(format(&HeaderMap::new()), Format::Text);
    }

    #[test]
    fn the_compressed_text_is_the_text() {
        let text = b"classifier_fps 12\n".repeat(1000);
        let compressed = gzip(&text);
        assert!(compressed.len() < text.len() / 10);
        let mut read = Vec::new();
        flate2::read::GzDecoder::new(&compressed[..])
            .read_to_end(&mut read)
            .unwrap();
        assert_eq!(read, text);
    }
}
