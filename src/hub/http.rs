//! One HTTPS request: through the proxy that the environment names, with limits for connecting and
//! for the answer. Redirects are followed, to HTTPS only.

use std::{io, sync::Arc, time::Duration};

use http::{
    HeaderMap, Method, Request, Response, StatusCode, Uri,
    header::{ACCEPT_ENCODING, HOST, LOCATION, USER_AGENT},
    uri::Scheme,
};
use http_body_util::Empty;
use hyper::{body::Incoming, client::conn::http1};
use hyper_util::{
    client::proxy::matcher::{Intercept, Matcher},
    rt::TokioIo,
};
use tokio::{
    io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt},
    net::{TcpStream, lookup_host},
    task::JoinSet,
    time::{sleep, timeout},
};
use tokio_rustls::{
    TlsConnector,
    rustls::{ClientConfig, RootCertStore, crypto::ring, pki_types::ServerName},
};

use super::error::HubError;

/// How long connecting may take: resolving the name, TCP, the proxy and TLS, all together.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);
/// How long the beginning of an answer may take.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(15);
/// Most redirects that are followed.
const MAX_REDIRECTS: usize = 5;
/// Most addresses of a host that are tried.
const MAX_ADDRESSES: usize = 8;
/// How long after the address before the next one is tried.
const ADDRESS_DELAY: Duration = Duration::from_millis(250);
/// Longest answer of a proxy to CONNECT, in bytes.
const MAX_PROXY_ANSWER: usize = 8 << 10;

/// A stream of either kind.
trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Stream for T {}

/// Makes requests, each over a connection of its own.
pub(super) struct Client {
    proxies: Matcher,
    tls: TlsConnector,
}

/// An answer with its beginning only; the body is still to be read.
pub(super) struct Answer {
    pub(super) response: Response<Incoming>,
    /// The headers of the redirects before it, first to last.
    pub(super) redirects: Vec<HeaderMap>,
}

impl Client {
    /// A client that trusts the system's authorities, or those in `SSL_CERT_FILE`.
    pub(super) fn new() -> Self {
        let mut roots = RootCertStore::empty();
        roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
        let tls = ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("ring supports the default versions of TLS")
            .with_root_certificates(roots)
            .with_no_client_auth();
        Self {
            proxies: Matcher::from_env(),
            tls: TlsConnector::from(Arc::new(tls)),
        }
    }

    /// Requests `url` with additional headers. `hint` says what else the user could do.
    ///
    /// # Errors
    /// No connection or no answer in time, a redirect that is not followed, or an answer without the
    /// file.
    pub(super) async fn get(
        &self,
        url: &str,
        headers: &HeaderMap,
        hint: &str,
    ) -> Result<Answer, HubError> {
        let mut redirects = Vec::new();
        let mut next = url.to_owned();
        loop {
            let response = self.request(&next, headers, hint).await?;
            let refuse = |reason: String| HubError::Answer {
                url: next.clone(),
                reason,
            };
            match response.status() {
                StatusCode::OK
                | StatusCode::PARTIAL_CONTENT
                | StatusCode::RANGE_NOT_SATISFIABLE => {
                    return Ok(Answer {
                        response,
                        redirects,
                    });
                }
                status if status.is_redirection() => {
                    if redirects.len() == MAX_REDIRECTS {
                        return Err(refuse(format!("redirects more than {MAX_REDIRECTS} times")));
                    }
                    let target = response
                        .headers()
                        .get(LOCATION)
                        .and_then(|location| location.to_str().ok())
                        .ok_or_else(|| refuse("redirects to nowhere".into()))?;
                    let target = redirected(&next, target).map_err(refuse)?;
                    redirects.push(response.headers().clone());
                    next = target;
                }
                StatusCode::NOT_FOUND => return Err(refuse("there is no such file".into())),
                StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                    return Err(refuse(format!(
                        "the server answered {}: it is not public, or there is no such file",
                        response.status()
                    )));
                }
                status => return Err(refuse(format!("the server answered {status}"))),
            }
        }
    }

    async fn request(
        &self,
        url: &str,
        headers: &HeaderMap,
        hint: &str,
    ) -> Result<Response<Incoming>, HubError> {
        let unreachable = |reason: String| HubError::Unreachable {
            url: url.to_owned(),
            reason,
            hint: hint.to_owned(),
        };
        let uri: Uri = url.parse().map_err(|_| HubError::Answer {
            url: url.to_owned(),
            reason: "is no URL".into(),
        })?;
        let (Some(host), Some(authority)) = (uri.host(), uri.authority()) else {
            return Err(unreachable("the URL has no host".into()));
        };
        let path = uri.path_and_query().map_or("/", |path| path.as_str());

        let connecting = timeout(CONNECT_TIMEOUT, self.connect(&uri, host));
        let stream = match connecting.await {
            Err(_) => {
                return Err(unreachable(format!(
                    "no connection within {} s",
                    CONNECT_TIMEOUT.as_secs()
                )));
            }
            Ok(connected) => connected.map_err(unreachable)?,
        };

        let answering = async {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
            tokio::spawn(connection);
            let mut request = Request::builder()
                .method(Method::GET)
                .uri(path)
                .header(HOST, authority.as_str())
                .header(USER_AGENT, concat!("resnet18/", env!("CARGO_PKG_VERSION")))
                .header(ACCEPT_ENCODING, "identity")
                .body(Empty::<bytes::Bytes>::new())
                .expect("the parts of a URL are valid");
            request.headers_mut().extend(headers.clone());
            sender.send_request(request).await
        };
        match timeout(ANSWER_TIMEOUT, answering).await {
            Err(_) => Err(unreachable(format!(
                "no answer within {} s",
                ANSWER_TIMEOUT.as_secs()
            ))),
            Ok(answered) => answered.map_err(|error| unreachable(error.to_string())),
        }
    }

    /// Connects to the host of `uri`, through a proxy where the environment names one.
    async fn connect(&self, uri: &Uri, host: &str) -> Result<Box<dyn Stream>, String> {
        let encrypted = uri.scheme() == Some(&Scheme::HTTPS);
        let port = uri.port_u16().unwrap_or(if encrypted { 443 } else { 80 });
        let plain_host = host.trim_start_matches('[').trim_end_matches(']');
        let proxy = self.proxies.intercept(uri).filter(|_| encrypted);
        let tcp = match proxy {
            None => tcp(plain_host, port)
                .await
                .map_err(|error| error.to_string())?,
            Some(proxy) => tunnel(&proxy, &format!("{host}:{port}")).await?,
        };
        if !encrypted {
            return Ok(Box::new(tcp));
        }

        let name = ServerName::try_from(plain_host.to_owned())
            .map_err(|_| format!("{host} is no name of a host"))?;
        let tls = self.tls.connect(name, tcp).await;
        tls.map(|tls| Box::new(tls) as Box<dyn Stream>)
            .map_err(|error| {
                let untrusted = error.to_string().contains("invalid peer certificate");
                let hint = if untrusted {
                    "; give the authority of a mirror or proxy with SSL_CERT_FILE"
                } else {
                    ""
                };
                format!("TLS failed: {error}{hint}")
            })
    }
}

/// Connects to the first address of the host that answers. Each is tried a moment after the one
/// before, so that one that is silent, as where IPv6 leads nowhere, holds up nothing.
async fn tcp(host: &str, port: u16) -> io::Result<TcpStream> {
    let mut attempts = JoinSet::new();
    let addresses = lookup_host((host, port)).await?;
    for (address, number) in addresses.take(MAX_ADDRESSES).zip(0..) {
        attempts.spawn(async move {
            sleep(ADDRESS_DELAY * number).await;
            TcpStream::connect(address).await
        });
    }
    let mut last = io::Error::other("the host has no address");
    while let Some(attempt) = attempts.join_next().await {
        match attempt {
            Ok(Ok(stream)) => return Ok(stream),
            Ok(Err(error)) => last = error,
            Err(error) => last = io::Error::other(error),
        }
    }
    Err(last)
}

/// A connection to `target` through a proxy.
async fn tunnel(proxy: &Intercept, target: &str) -> Result<TcpStream, String> {
    let uri = proxy.uri();
    let name = uri.authority().map_or("", |authority| authority.as_str());
    let failed = |reason: String| format!("the proxy {name} {reason}");
    if uri.scheme() != Some(&Scheme::HTTP) {
        return Err(failed(
            "is not one of http://, the only kind that is supported".into(),
        ));
    }
    let host = uri.host().unwrap_or_default();
    let port = uri.port_u16().unwrap_or(80);
    let mut stream = tcp(host, port)
        .await
        .map_err(|error| failed(format!("can't be reached: {error}")))?;

    let mut request = format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n");
    if let Some(credentials) = proxy.basic_auth().and_then(|value| value.to_str().ok()) {
        request += &format!("Proxy-Authorization: {credentials}\r\n");
    }
    request += "\r\n";
    let broken = |error: io::Error| failed(format!("broke the connection: {error}"));
    stream.write_all(request.as_bytes()).await.map_err(broken)?;

    // Byte by byte, so that nothing of what follows the answer is read.
    let mut answer = Vec::new();
    while !answer.ends_with(b"\r\n\r\n") {
        if answer.len() == MAX_PROXY_ANSWER {
            return Err(failed("gave an endless answer".into()));
        }
        let byte = stream.read_u8().await.map_err(broken)?;
        answer.push(byte);
    }
    let answer = String::from_utf8_lossy(&answer);
    let status = answer.split(' ').nth(1).unwrap_or_default();
    if status != "200" {
        let line = answer.lines().next().unwrap_or_default();
        return Err(failed(format!("answered \"{line}\"")));
    }
    Ok(stream)
}

/// The URL that `location` means for an answer of `url`: HTTPS, unless `url` is not either.
fn redirected(url: &str, location: &str) -> Result<String, String> {
    let target = if location.starts_with('/') && !location.starts_with("//") {
        let origin = url
            .find("://")
            .and_then(|start| url[start + 3..].find('/').map(|end| start + 3 + end))
            .unwrap_or(url.len());
        format!("{}{location}", &url[..origin])
    } else {
        location.to_owned()
    };
    if target.starts_with("https://") {
        return Ok(target);
    }
    if url.starts_with("http://") && is_plain_loopback(&target) {
        return Ok(target);
    }
    Err(format!("redirects to {target}, which is not https://"))
}

/// Whether the URL is one of this machine without encryption.
pub(super) fn is_plain_loopback(url: &str) -> bool {
    let uri: Option<Uri> = url.parse().ok();
    let Some(host) = uri
        .as_ref()
        .filter(|uri| uri.scheme() == Some(&Scheme::HTTP))
        .and_then(Uri::host)
    else {
        return false;
    };
    let host = host.trim_start_matches('[').trim_end_matches(']');
    host == "localhost"
        || host
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn redirects_lead_to_https_only() {
        let from = "https://hub.example/a/b.pth";
        assert_eq!(
            redirected(from, "/c.pth").unwrap(),
            "https://hub.example/c.pth"
        );
        assert_eq!(
            redirected(from, "https://cdn.example/x").unwrap(),
            "https://cdn.example/x"
        );
        for elsewhere in [
            "http://hub.example/c.pth",
            "ftp://hub.example/c",
            "file:///etc/passwd",
            "//other/c",
            "http://127.0.0.1/c",
        ] {
            assert!(redirected(from, elsewhere).is_err(), "{elsewhere}");
        }
        let local = "http://127.0.0.1:80/a";
        assert!(redirected(local, "http://[::1]:90/b").is_ok());
        assert!(redirected(local, "http://example.com/b").is_err());
    }
}
