//! Which requests the page and its calls answer: those of this very page, under a name that the
//! server goes by.
//!
//! Browsers send requests for any site that a person visits. What such a site asks of this server
//! is refused by the headers that browsers add (`Origin`, `Sec-Fetch-Site`; W3C Fetch Metadata),
//! and a site whose name suddenly means this machine (DNS rebinding) by its name in `Host`.

use std::net::IpAddr;

use axum::http::{
    HeaderMap, Method, StatusCode,
    header::{CONTENT_TYPE, HOST, ORIGIN},
    uri::Authority,
};

/// Who gets the page at `/` and may send images from it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Web {
    /// Nobody.
    Off,
    /// Browsers that call the server by a name of this machine: `localhost`, `127.0.0.1`, `[::1]`.
    Loopback,
    /// Browsers that call it by any name.
    Everywhere,
}

/// Why a request is not answered.
pub(super) type Refusal = (StatusCode, &'static str);

impl Web {
    /// Whether a request is answered.
    pub(super) fn admits(self, method: &Method, headers: &HeaderMap) -> Result<(), Refusal> {
        let host = authority(headers.get(HOST).and_then(|host| host.to_str().ok()));
        if self == Self::Loopback && !host.as_ref().is_some_and(|host| is_loopback(host.host())) {
            const REASON: &str = "the page is for this machine only: open it as http://localhost:PORT or \
                                  http://127.0.0.1:PORT, or start the server with --web on\n";
            return Err((StatusCode::MISDIRECTED_REQUEST, REASON));
        }
        if method != Method::POST {
            return Ok(());
        }
        if !is_same_origin(headers, host.as_ref()) {
            return Err((
                StatusCode::FORBIDDEN,
                "only the server's own page may call it from a browser\n",
            ));
        }
        match headers.get(CONTENT_TYPE).map(|kind| kind.as_bytes()) {
            Some(b"application/grpc-web" | b"application/grpc-web+proto") => Ok(()),
            _ => Err((
                StatusCode::UNSUPPORTED_MEDIA_TYPE,
                "calls are gRPC-Web: application/grpc-web+proto\n",
            )),
        }
    }
}

fn authority(text: Option<&str>) -> Option<Authority> {
    text?.parse().ok()
}

fn is_loopback(host: &str) -> bool {
    let host = host.to_ascii_lowercase();
    let address = host
        .trim_start_matches('[')
        .trim_end_matches(']')
        .parse::<IpAddr>();
    host == "localhost"
        || host.ends_with(".localhost")
        || address.is_ok_and(|address| address.is_loopback())
}

/// Programs that are no browsers send neither header.
fn is_same_origin(headers: &HeaderMap, host: Option<&Authority>) -> bool {
    let site = headers
        .get("sec-fetch-site")
        .is_none_or(|site| site == "same-origin");
    let origin = headers.get(ORIGIN).is_none_or(|origin| {
        // A proxy in front may have taken TLS off: the scheme says nothing.
        let origin = origin
            .to_str()
            .ok()
            .and_then(|origin| origin.split_once("://"));
        origin.is_some_and(|(_, name)| host.is_some() && authority(Some(name)).as_ref() == host)
    });
    site && origin
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(web: Web, method: Method, headers: &[(&'static str, &str)]) -> u16 {
        let headers = headers
            .iter()
            .map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap()))
            .collect();
        web.admits(&method, &headers)
            .map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    const KIND: (&str, &str) = ("content-type", "application/grpc-web+proto");

    #[test]
    fn a_page_for_this_machine_goes_by_its_names_only() {
        for host in [
            "localhost",
            "LOCALHOST:8002",
            "127.0.0.1:8002",
            "127.1.2.3",
            "[::1]:8002",
            "app.localhost:1",
        ] {
            assert_eq!(
                status(Web::Loopback, Method::GET, &[("host", host)]),
                200,
                "{host}"
            );
        }
        for host in [
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "192.168.0.1",
            "",
            "a b",
        ] {
            assert_eq!(
                status(Web::Loopback, Method::GET, &[("host", host)]),
                421,
                "{host}"
            );
        }
        assert_eq!(status(Web::Loopback, Method::GET, &[]), 421);
        assert_eq!(
            status(
                Web::Everywhere,
                Method::GET,
                &[("host", "models.example.com")]
            ),
            200
        );
    }

    #[test]
    fn calls_come_from_the_page_or_from_no_browser() {
        let call = |headers: &[_]| {
            status(
                Web::Everywhere,
                Method::POST,
                &[&[KIND, ("host", "models.example.com:8002")], headers].concat(),
            )
        };
        assert_eq!(call(&[]), 200);
        assert_eq!(
            call(&[
                ("origin", "http://models.example.com:8002"),
                ("sec-fetch-site", "same-origin")
            ]),
            200
        );
        assert_eq!(call(&[("origin", "https://Models.example.com:8002")]), 200);
        for origin in [
            "null",
            "http://evil.example",
            "http://models.example.com",
            "http://models.example.com:80",
            "",
        ] {
            assert_eq!(call(&[("origin", origin)]), 403, "{origin}");
        }
        for site in ["cross-site", "same-site", "none"] {
            assert_eq!(call(&[("sec-fetch-site", site)]), 403, "{site}");
        }
        assert_eq!(
            status(
                Web::Everywhere,
                Method::POST,
                &[KIND, ("origin", "http://evil.example")]
            ),
            403
        );
    }

    #[test]
    fn calls_are_of_a_type_that_no_form_can_send() {
        for kind in [
            "text/plain",
            "application/grpc",
            "application/grpc-web-text",
            "multipart/form-data",
        ] {
            assert_eq!(
                status(
                    Web::Everywhere,
                    Method::POST,
                    &[("host", "a"), ("content-type", kind)]
                ),
                415,
                "{kind}"
            );
        }
    }
}
