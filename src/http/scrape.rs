//! `/metrics`: the text that Prometheus scrapes, compressed when the scraper asks for that.

use std::io::Write;

use axum::{
    extract,
    http::{
        HeaderMap, HeaderValue,
        header::{ACCEPT_ENCODING, CONTENT_ENCODING, CONTENT_TYPE, VARY},
    },
    response::{IntoResponse, Response},
};
use flate2::{Compression, write::GzEncoder};

use super::HttpContext;

const TEXT: &str = "text/plain; version=0.0.4; charset=utf-8";

/// Answers a scrape.
pub(super) async fn metrics(
    extract::State(context): extract::State<HttpContext>,
    headers: HeaderMap,
) -> Response {
    let compressed = accepts_gzip(&headers);
    // Reading /proc and asking a GPU's driver can block.
    let body = tokio::task::spawn_blocking(move || {
        let models = context.registry.list();
        let models = models.iter().map(|entry| &*entry.metrics);
        let text = context
            .exporter
            .render(models, &context.state, &context.memory)
            .into_bytes();
        if compressed { gzip(&text) } else { text }
    });
    let body = body
        .await
        .unwrap_or_else(|panic| std::panic::resume_unwind(panic.into_panic()));

    let mut response = ([(CONTENT_TYPE, TEXT), (VARY, "accept-encoding")], body).into_response();
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
    let values = headers.get_all(ACCEPT_ENCODING).into_iter();
    for coding in values
        .filter_map(|value| value.to_str().ok()?.split(',').into())
        .flatten()
    {
        let (name, weight) = coding.split_once(';').unwrap_or((coding, ""));
        let weight = weight.trim().strip_prefix("q=").unwrap_or("1");
        let wanted = weight.parse::<f32>().is_ok_and(|weight| weight > 0.0);
        match name.trim() {
            name if name.eq_ignore_ascii_case("gzip") => return wanted,
            "*" => any = wanted,
            _ => {}
        }
    }
    any
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
