//! Cross-origin requests of browsers (W3C CORS): which other sites may call, if any.

use std::{fmt, str::FromStr, sync::Arc};

use axum::{
    extract::Request,
    http::{
        HeaderMap, HeaderValue, Method, StatusCode, Uri,
        header::{
            ACCESS_CONTROL_ALLOW_HEADERS, ACCESS_CONTROL_ALLOW_METHODS,
            ACCESS_CONTROL_ALLOW_ORIGIN, ACCESS_CONTROL_EXPOSE_HEADERS, ACCESS_CONTROL_MAX_AGE,
            ACCESS_CONTROL_REQUEST_METHOD, ORIGIN, VARY,
        },
    },
    middleware::Next,
    response::{IntoResponse, Response},
};

/// The headers that a site's scripts may send.
const REQUEST_HEADERS: &str = "authorization, content-type, grpc-timeout, \
                               inference-header-content-length, traceparent, tracestate, \
                               x-grpc-web, x-priority, x-user-agent";
/// The headers of an answer that they may read.
const RESPONSE_HEADERS: &str = "grpc-message, grpc-retry-pushback-ms, grpc-status, \
                                grpc-status-details-bin, inference-header-content-length, \
                                retry-after";
/// For how long a browser may remember the answer to a preflight, in seconds.
const MAX_AGE: &str = "7200";

/// The origin of a web site: `https://app.example.com`, with a port if it is not the usual one.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Origin(HeaderValue);

impl FromStr for Origin {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || {
            format!(
                "\"{text}\" is not an origin as browsers send it; write for example \
                 https://app.example.com or http://localhost:3000"
            )
        };
        let uri: Uri = text.parse().map_err(|_| wrong())?;
        let is_origin = matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.host().is_some_and(|host| !host.is_empty())
            && !text.contains('@')
            // Without a path, and in lower case.
            && text.matches('/').count() == 2
            && !text.contains(['?', '#'])
            && text == text.to_ascii_lowercase();
        if !is_origin {
            return Err(wrong());
        }
        Ok(Self(text.parse().map_err(|_| wrong())?))
    }
}

impl fmt::Display for Origin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.0.to_str().unwrap_or_default())
    }
}

/// The origins that may call.
#[derive(Clone, Debug, Default)]
pub(super) struct Origins(Arc<[Origin]>);

impl Origins {
    pub fn new(origins: &[Origin]) -> Self {
        Self(origins.into())
    }

    /// The origin of a request, if it may call.
    pub fn of<'a>(&self, headers: &'a HeaderMap) -> Option<&'a HeaderValue> {
        let origin = headers.get(ORIGIN)?;
        self.0
            .iter()
            .any(|known| known.0 == origin)
            .then_some(origin)
    }

    /// Answers a preflight, or adds to an answer that the site's scripts may read it.
    pub async fn answer(self, request: Request, next: Next) -> Response {
        let origin = self.of(request.headers()).cloned();
        let is_preflight = request.method() == Method::OPTIONS
            && request
                .headers()
                .contains_key(ACCESS_CONTROL_REQUEST_METHOD);
        let mut response = match (&origin, is_preflight) {
            (Some(_), true) => preflight(),
            (None, true) => (
                StatusCode::FORBIDDEN,
                "scripts of this site may not call this server; its flag --allow-origin lists \
                 the sites that may\n",
            )
                .into_response(),
            (_, false) => next.run(request).await,
        };
        let headers = response.headers_mut();
        if !self.0.is_empty() {
            headers.append(VARY, HeaderValue::from_static("origin"));
        }
        if let Some(origin) = origin {
            headers.insert(ACCESS_CONTROL_ALLOW_ORIGIN, origin);
            let exposed = HeaderValue::from_static(RESPONSE_HEADERS);
            headers.insert(ACCESS_CONTROL_EXPOSE_HEADERS, exposed);
        }
        response
    }
}

fn preflight() -> Response {
    (
        StatusCode::NO_CONTENT,
        [
            (ACCESS_CONTROL_ALLOW_METHODS, "GET, POST"),
            (ACCESS_CONTROL_ALLOW_HEADERS, REQUEST_HEADERS),
            (ACCESS_CONTROL_MAX_AGE, MAX_AGE),
        ],
    )
        .into_response()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn origins_are_written_as_browsers_send_them() {
        for good in [
            "https://app.example.com",
            "http://localhost:3000",
            "http://[::1]:3000",
        ] {
            assert_eq!(good.parse::<Origin>().unwrap().to_string(), good);
        }
        for bad in [
            "*",
            "null",
            "",
            "app.example.com",
            "https://",
            "https://app.example.com/",
            "https://App.example.com",
            "https://user@app.example.com",
            "ftp://app.example.com",
            "https://app.example.com?a",
        ] {
            assert!(bad.parse::<Origin>().is_err(), "{bad}");
        }
    }

    #[test]
    fn only_listed_origins_are_known() {
        let origins = Origins::new(&["http://a:1".parse().unwrap()]);
        let of = |origin: &str| {
            let headers = [(ORIGIN, origin.parse().unwrap())].into_iter().collect();
            origins.of(&headers).is_some()
        };
        assert!(of("http://a:1"));
        for other in ["http://a", "https://a:1", "http://a:11", "null", ""] {
            assert!(!of(other), "{other}");
        }
    }
}
