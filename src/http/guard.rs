//! Protects the page and its calls against other web sites.
//!
//! A browser sends requests on behalf of any site that its user visits. Calls that other sites make
//! (CSRF) are recognized by the headers that browsers add (`Origin`, `Sec-Fetch-Site`; W3C Fetch
//! Metadata). A site whose name is made to resolve to this machine (DNS rebinding) is recognized by
//! its name in `Host`, for the metrics too.

use std::net::IpAddr;

use axum::http::{
    HeaderMap, Method, Request, StatusCode,
    header::{HOST, ORIGIN},
    uri::Authority,
};

use super::cors::Origins;
use crate::{
    grpc::Peer,
    telemetry::summary::{self, Warning},
};

/// Who may use a part of the HTTP port: the page at `/`, or REST.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Web {
    /// Nobody.
    Off,
    /// Those that address the server as this machine: `localhost`, `127.0.0.1`, `[::1]`.
    Loopback,
    /// Those that address the server by any name.
    Everywhere,
}

/// A part of the HTTP port.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Part {
    Page,
    Rest,
}

/// Who may use a part of the port, and from which other sites.
#[derive(Clone, Debug)]
pub(super) struct Guard {
    pub part: Part,
    pub web: Web,
    pub origins: Origins,
}

/// The answer to a refused request: status and text.
pub(super) type RefusedRequest = (StatusCode, &'static str);

/// By which names of the server its metrics may be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Names {
    /// By `localhost` or an IP address only, so that a site whose name resolves to this machine can't
    /// read them (DNS rebinding): the port is on loopback, and no proxy is configured.
    Local,
    /// By any name, such as those that scrapers know services by.
    Any,
}

impl Names {
    /// The names of a port that is on a loopback address or not.
    pub fn of(is_loopback: bool, web: Web) -> Self {
        if is_loopback && web != Web::Everywhere {
            Self::Local
        } else {
            Self::Any
        }
    }

    /// Decides whether a request's `Host` is one of the names. Every browser sends one.
    pub fn admit(self, headers: &HeaderMap) -> Result<(), RefusedRequest> {
        let Some(host) = headers.get(HOST) else {
            return Ok(());
        };
        let host = authority(host.to_str().ok());
        let is_local =
            host.is_some_and(|host| is_loopback(host.host()) || address(host.host()).is_some());
        if self == Self::Any || is_local {
            return Ok(());
        }
        Err((
            StatusCode::MISDIRECTED_REQUEST,
            "the metrics of a loopback address are read as localhost or by an address; behind a \
             proxy, let it send `Host: localhost`, or start the server with --web on or --http on \
             another address\n",
        ))
    }
}

/// Decides whether a request says once, and understandably, which host it is for (RFC 9112, 3.2).
pub(super) fn check_host(headers: &HeaderMap) -> Result<(), RefusedRequest> {
    let mut hosts = headers.get_all(HOST).iter();
    let Some(host) = hosts.next() else {
        return Ok(());
    };
    let is_valid = host.is_empty() || authority(host.to_str().ok()).is_some();
    if hosts.next().is_some() || !is_valid {
        return Err((
            StatusCode::BAD_REQUEST,
            "a request has one Host header, with a name or an address and perhaps a port\n",
        ));
    }
    Ok(())
}

impl Guard {
    /// Decides whether a request is answered; the log says which are not.
    pub fn admits<B>(&self, request: &Request<B>) -> Result<(), RefusedRequest> {
        self.decide(request).inspect_err(|(_, reason)| {
            let reason = format!("rejected a browser's request: {}", reason.trim_end());
            let peer = request.extensions().get::<Peer>();
            let warning = Warning {
                kind: &reason,
                host: peer.map_or("unknown", Peer::host),
            };
            summary::warn(warning, |further| tracing::warn!(further, "{reason}"));
        })
    }

    fn decide<B>(&self, request: &Request<B>) -> Result<(), RefusedRequest> {
        let headers = request.headers();
        let host = authority(headers.get(HOST).and_then(|host| host.to_str().ok()));
        if self.web == Web::Loopback && !host.as_ref().is_some_and(|host| is_loopback(host.host()))
        {
            return Err((
                StatusCode::MISDIRECTED_REQUEST,
                match self.part {
                    Part::Page => {
                        "the page is for this machine only: open it as http://localhost:PORT or \
                         http://127.0.0.1:PORT, or start the server with --web on\n"
                    }
                    Part::Rest => {
                        "calls over HTTP are for this machine only: name the server localhost or \
                         127.0.0.1, or start it with --rest on\n"
                    }
                },
            ));
        }

        let is_safe = matches!(*request.method(), Method::GET | Method::HEAD);
        let is_ours = is_same_origin(headers, host.as_ref()) || self.origins.of(headers).is_some();
        if is_safe || is_ours {
            return Ok(());
        }
        Err((
            StatusCode::FORBIDDEN,
            "only the server's own page may call it from a browser, and the sites of its flag \
             --allow-origin\n",
        ))
    }
}

fn authority(text: Option<&str>) -> Option<Authority> {
    text?.parse().ok()
}

fn is_loopback(host: &str) -> bool {
    let name = host.to_ascii_lowercase();
    name == "localhost"
        || name.ends_with(".localhost")
        || address(host).is_some_and(|address| address.is_loopback())
}

/// The host as an address, if it is one.
fn address(host: &str) -> Option<IpAddr> {
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host.parse().ok()
}

/// Whether the request comes from the server's own page, or from a program that is not a browser:
/// those send neither header.
fn is_same_origin(headers: &HeaderMap, host: Option<&Authority>) -> bool {
    let site = headers
        .get("sec-fetch-site")
        .is_none_or(|site| site == "same-origin");
    let origin = headers.get(ORIGIN).is_none_or(|origin| {
        // The scheme is ignored: a proxy in front of the server may have terminated TLS.
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
        let guard = Guard {
            part: Part::Page,
            web,
            origins: Origins::new(&["https://app.example".parse().unwrap()]),
        };
        let mut request = Request::new(());
        *request.method_mut() = method;
        for (name, value) in headers {
            request.headers_mut().append(*name, value.parse().unwrap());
        }
        guard
            .admits(&request)
            .map_or_else(|(status, _)| status.as_u16(), |()| 200)
    }

    #[test]
    fn a_page_for_this_machine_answers_to_its_names_only() {
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
    fn metrics_are_read_by_names_that_no_other_site_can_have() {
        let admits = |names: Names, host: Option<&str>| {
            let headers = host.map(|host| (HOST, host.parse().unwrap()));
            let admitted = names.admit(&headers.into_iter().collect());
            admitted.map_or_else(|(status, _)| status.as_u16(), |()| 200)
        };
        let local = Names::of(true, Web::Loopback);
        for host in ["localhost:8002", "127.0.0.1", "10.1.2.3:8002", "[fd00::1]"] {
            assert_eq!(admits(local, Some(host)), 200, "{host}");
        }
        for host in ["evil.example", "10.1.2.3.evil.example:8002", "resnet18"] {
            assert_eq!(admits(local, Some(host)), 421, "{host}");
            for any in [Names::of(false, Web::Off), Names::of(true, Web::Everywhere)] {
                assert_eq!(admits(any, Some(host)), 200, "{host}");
            }
        }
        assert_eq!(admits(local, None), 200, "HTTP/1.0");
    }

    #[test]
    fn a_request_names_one_host() {
        let check = |hosts: &[&str]| {
            let mut headers = HeaderMap::new();
            for host in hosts {
                headers.append(HOST, host.parse().unwrap());
            }
            check_host(&headers).map_or_else(|(status, _)| status.as_u16(), |()| 200)
        };
        for hosts in [&[][..], &[""], &["a:1"], &["[::1]:8002"]] {
            assert_eq!(check(hosts), 200, "{hosts:?}");
        }
        for hosts in [&["a", "a"][..], &["a", "b"], &["a b"], &["a:1:2"], &["a/b"]] {
            assert_eq!(check(hosts), 400, "{hosts:?}");
        }
    }

    #[test]
    fn calls_are_accepted_from_the_page_and_from_programs() {
        let call = |headers: &[_]| {
            status(
                Web::Everywhere,
                Method::POST,
                &[&[("host", "models.example.com:8002")], headers].concat(),
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
        let listed = ("origin", "https://app.example");
        assert_eq!(call(&[listed, ("sec-fetch-site", "cross-site")]), 200);
        for method in [Method::POST, Method::PUT, Method::OPTIONS] {
            let headers = [("host", "a"), ("origin", "http://evil.example")];
            assert_eq!(status(Web::Everywhere, method, &headers), 403);
        }
    }
}
