//! A server's address, parsed from the forms that people write.

use std::{fmt, str::FromStr};

use http::Uri;
use thiserror::Error;
use tonic::transport::Endpoint;

/// Where a server listens: `http://host:port` or `https://host:port`, `host:port` for short, or
/// `unix:path`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress {
    /// The form that tonic parses.
    text: String,
    tls: bool,
}

/// A text that isn't a [`ServerAddress`], with a description of what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct AddressError(String);

impl ServerAddress {
    /// A tonic endpoint for this address, without TLS settings.
    pub fn endpoint(&self) -> Endpoint {
        Endpoint::from_shared(self.text.clone())
            .expect("the address was checked when it was parsed")
    }

    /// Where to connect over TCP; `None` for a socket in the file system.
    pub fn host_and_port(&self) -> Option<(String, u16)> {
        if self.text.starts_with("unix:") {
            return None;
        }
        let uri: Uri = self.text.parse().ok()?;
        let host = uri.host()?.trim_matches(['[', ']']).to_owned();
        let usual = if self.tls { 443 } else { 80 };
        Some((host, uri.port_u16().unwrap_or(usual)))
    }

    /// The same address with another port, as text.
    pub fn with_port(&self, port: u16) -> String {
        let (scheme, authority) = self.text.split_once("://").unwrap_or(("http", &self.text));
        let uri = self.text.parse::<Uri>().ok();
        let host = uri.as_ref().and_then(Uri::host).unwrap_or(authority);
        format!("{scheme}://{host}:{port}")
    }

    /// Whether connections are encrypted.
    pub fn uses_tls(&self) -> bool {
        self.tls
    }
}

impl FromStr for ServerAddress {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim();
        if let Some(path) = text.strip_prefix("unix:") {
            return unix_address(path.strip_prefix("//").unwrap_or(path));
        }

        let text = text.trim_end_matches('/');
        let (scheme, authority) = text.split_once("://").unwrap_or(("http", text));
        if !matches!(scheme, "http" | "https") {
            return Err(AddressError(format!(
                "`{scheme}://` isn't supported; \
                 use http://HOST:PORT, https://HOST:PORT or unix:PATH"
            )));
        }

        let malformed = || {
            AddressError(format!(
                "`{text}` isn't an address; write for example http://127.0.0.1:8001"
            ))
        };
        let uri: Uri = format!("{scheme}://{authority}/")
            .parse()
            .map_err(|_| malformed())?;
        // A colon after the brackets of an IPv6 address, if there are any, begins the port.
        let after_brackets = authority.rsplit(']').next().unwrap_or(authority);
        if after_brackets.contains(':') && uri.port_u16().is_none() {
            return Err(malformed());
        }
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err(AddressError(
                "an address has no path; write for example http://127.0.0.1:8001".into(),
            ));
        }
        if !text.contains("://") && uri.port_u16().is_none() {
            return Err(AddressError(format!(
                "the port is missing; write for example {authority}:8001"
            )));
        }

        Ok(Self {
            text: format!("{scheme}://{authority}"),
            tls: scheme == "https",
        })
    }
}

fn unix_address(path: &str) -> Result<ServerAddress, AddressError> {
    if path.is_empty() {
        return Err(AddressError(
            "the path is missing; write for example unix:/run/resnet18.sock".into(),
        ));
    }
    Ok(ServerAddress {
        text: format!("unix:{path}"),
        tls: false,
    })
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::ServerAddress;

    #[test]
    fn short_and_long_forms_mean_the_same() {
        for text in [
            "http://127.0.0.1:8001",
            "127.0.0.1:8001",
            "http://127.0.0.1:8001/",
        ] {
            assert_eq!(
                text.parse::<ServerAddress>().unwrap().to_string(),
                "http://127.0.0.1:8001",
                "{text}"
            );
        }
        assert_eq!(
            "[::1]:8001".parse::<ServerAddress>().unwrap().to_string(),
            "http://[::1]:8001"
        );
        assert_eq!(
            "https://models.lan:443"
                .parse::<ServerAddress>()
                .unwrap()
                .to_string(),
            "https://models.lan:443"
        );
        for text in ["unix:/run/a.sock", "unix:///run/a.sock"] {
            assert_eq!(
                text.parse::<ServerAddress>().unwrap().to_string(),
                "unix:/run/a.sock"
            );
        }
        assert_eq!(
            "http://models.lan"
                .parse::<ServerAddress>()
                .unwrap()
                .to_string(),
            "http://models.lan"
        );
    }

    #[test]
    fn an_address_has_a_host_and_a_port() {
        for (text, host, port, other) in [
            (
                "http://127.0.0.1:8002",
                "127.0.0.1",
                8002,
                "http://127.0.0.1:8001",
            ),
            ("https://[::1]:9", "::1", 9, "https://[::1]:8001"),
            (
                "http://models.lan",
                "models.lan",
                80,
                "http://models.lan:8001",
            ),
            (
                "https://models.lan",
                "models.lan",
                443,
                "https://models.lan:8001",
            ),
        ] {
            let address: ServerAddress = text.parse().unwrap();
            assert_eq!(address.host_and_port(), Some((host.to_owned(), port)));
            assert_eq!(address.with_port(8001), other);
        }
        let socket: ServerAddress = "unix:/run/a.sock".parse().unwrap();
        assert_eq!(socket.host_and_port(), None);
    }

    #[test]
    fn other_forms_are_refused_with_advice() {
        for (text, advice) in [
            ("grpc://host:1", "use http://"),
            ("unix:", "path"),
            ("localhost", "localhost:8001"),
            ("http://host:1/path", "no path"),
            ("", "isn't an address"),
            ("host:port", "isn't an address"),
        ] {
            let error = text.parse::<ServerAddress>().unwrap_err().to_string();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }
}
