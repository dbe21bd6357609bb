//! A server's address, as people write it.

use std::{fmt, str::FromStr};

use http::Uri;

/// Where a server listens: `http://host:port`, or `host:port` for short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServerAddress(Uri);

impl ServerAddress {
    /// The address as a URI with scheme and authority only.
    pub fn uri(&self) -> &Uri {
        &self.0
    }
}

impl FromStr for ServerAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let text = text.trim().trim_end_matches('/');
        let (scheme, authority) = text.split_once("://").unwrap_or(("http", text));
        match scheme {
            "http" => {}
            "https" => return Err("https isn't supported yet; use http://HOST:PORT".into()),
            _ => return Err(format!("`{scheme}://` isn't supported; use http://HOST:PORT")),
        }
        let malformed = || format!("`{text}` isn't an address; write for example http://127.0.0.1:8001");
        let uri: Uri = format!("http://{authority}/").parse().map_err(|_| malformed())?;
        // A colon after the brackets of an IPv6 address, if any, begins the port.
        let after_brackets = authority.rsplit(']').next().unwrap_or(authority);
        if after_brackets.contains(':') && uri.port_u16().is_none() {
            return Err(malformed());
        }
        if uri.path_and_query().is_some_and(|path| path != "/") {
            return Err("an address has no path; write for example http://127.0.0.1:8001".into());
        }
        if !text.contains("://") && uri.port_u16().is_none() {
            return Err(format!("say the port too, as in {authority}:8001"));
        }
        Ok(Self(uri))
    }
}

impl fmt::Display for ServerAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.0.authority().map_or("", |authority| authority.as_str()))
    }
}

#[cfg(test)]
mod tests {
    use super::ServerAddress;

    #[test]
    fn short_and_long_forms_mean_the_same() {
        for text in ["http://127.0.0.1:8001", "127.0.0.1:8001", "http://127.0.0.1:8001/"] {
            assert_eq!(text.parse::<ServerAddress>().unwrap().to_string(), "http://127.0.0.1:8001", "{text}");
        }
        assert_eq!("[::1]:8001".parse::<ServerAddress>().unwrap().to_string(), "http://[::1]:8001");
        assert_eq!("http://models.lan".parse::<ServerAddress>().unwrap().to_string(), "http://models.lan");
    }

    #[test]
    fn other_forms_are_refused_with_advice() {
        for (text, advice) in [
            ("https://host:1", "https isn't supported yet"),
            ("grpc://host:1", "use http://"),
            ("localhost", "localhost:8001"),
            ("http://host:1/path", "no path"),
            ("", "isn't an address"),
            ("host:port", "isn't an address"),
        ] {
            let error = text.parse::<ServerAddress>().unwrap_err();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }
}
