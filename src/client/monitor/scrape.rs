//! One scrape of a server: `/metrics` and `/readyz` of its HTTP port.

use std::{fmt, str::FromStr, time::Duration};

use bytes::Bytes;
use http::{Request, StatusCode, Uri, header::HOST};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use thiserror::Error;
use tokio::{
    net::TcpStream,
    time::{Instant, timeout},
};

use super::exposition::{self, ExpositionError, Families, Series};

/// How long one HTTP exchange may take.
const TIMEOUT: Duration = Duration::from_secs(3);
/// The longest text of `/readyz` that is accepted, in bytes.
const MAX_REASON_BYTES: usize = 4096;

/// The address of a server's HTTP port: `http://HOST:PORT`, or `HOST:PORT` for short.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MetricsAddress(Uri);

/// A text that isn't a [`MetricsAddress`], with a description of what to write instead.
#[derive(Clone, Debug, PartialEq, Eq, Error)]
#[error("{0}")]
pub struct MetricsAddressError(String);

impl MetricsAddress {
    /// The address as `HOST:PORT`.
    pub fn authority(&self) -> &str {
        self.0
            .authority()
            .map_or("", |authority| authority.as_str())
    }

    fn host_and_port(&self) -> (&str, u16) {
        let host = self.0.host().unwrap_or_default();
        (
            host.trim_matches(['[', ']']),
            self.0.port_u16().unwrap_or(80),
        )
    }
}

impl fmt::Display for MetricsAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "http://{}", self.authority())
    }
}

impl FromStr for MetricsAddress {
    type Err = MetricsAddressError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let (scheme, rest) = text.split_once("://").unwrap_or(("http", text));
        if scheme != "http" {
            return Err(MetricsAddressError(format!(
                "`{scheme}://` isn't supported: metrics are read with no TLS; use http://HOST:PORT"
            )));
        }

        let malformed = || {
            MetricsAddressError(format!(
                "`{text}` isn't an address; write for example http://127.0.0.1:8002"
            ))
        };
        let authority = rest
            .strip_suffix("/metrics")
            .unwrap_or(rest)
            .trim_end_matches('/');
        let uri: Uri = format!("http://{authority}/")
            .parse()
            .map_err(|_| malformed())?;
        if uri.path() != "/" || uri.query().is_some() || authority.contains('@') {
            return Err(malformed());
        }
        match uri.port_u16() {
            Some(_) => Ok(Self(uri)),
            None => Err(MetricsAddressError(format!(
                "the port of --http is missing; write for example http://{authority}:8002"
            ))),
        }
    }
}

/// Why a server could not be scraped.
#[derive(Debug, Error)]
pub enum ScrapeError {
    /// The connection failed.
    #[error("{}", connect_reason(.0))]
    Connect(std::io::Error),
    /// There was no answer within 3 s.
    #[error("no answer within {} s", TIMEOUT.as_secs())]
    Timeout,
    /// The connection broke, or the answer isn't HTTP.
    #[error("it does not speak HTTP, or hung up ({0}); is this the address of --http?")]
    Http(#[from] hyper::Error),
    /// The body is cut off, or longer than is read.
    #[error("/metrics can't be read: {0}")]
    Body(Box<dyn std::error::Error + Send + Sync>),
    /// The HTTP status isn't 200.
    #[error("/metrics answered {0}; is this the address of --http?")]
    Status(StatusCode),
    /// The text isn't in Prometheus' format.
    #[error("/metrics is not in Prometheus' format: {0}")]
    Format(#[from] ExpositionError),
    /// The metrics are those of another program.
    #[error("its metrics are not those of a resnet18 server")]
    NotOurs,
}

fn connect_reason(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "nothing listens there".into(),
        _ => error.to_string(),
    }
}

/// A server's metrics and readiness at one moment.
#[derive(Clone, Debug)]
pub struct Scrape {
    /// When the metrics arrived.
    pub at: Instant,
    /// Why the server accepts no requests, as it says itself; `None` if it is ready.
    pub not_ready: Option<String>,
    families: Families,
}

impl Scrape {
    /// Scrapes a server, on two connections of their own.
    ///
    /// # Errors
    /// When it does not answer within 3 s, or not with the metrics of a resnet18 server.
    pub async fn take(address: &MetricsAddress) -> Result<Self, ScrapeError> {
        let (status, text) = get(address, "/metrics", exposition::MAX_BYTES).await?;
        if status != StatusCode::OK {
            return Err(ScrapeError::Status(status));
        }
        let families = exposition::parse(&text)?;
        if !families.contains_key("classifier_build_info") {
            return Err(ScrapeError::NotOurs);
        }
        let at = Instant::now();

        let (status, text) = get(address, "/readyz", MAX_REASON_BYTES).await?;
        let reason = text.trim().trim_start_matches("not ready: ").to_owned();
        Ok(Self {
            at,
            not_ready: (status != StatusCode::OK).then_some(reason),
            families,
        })
    }

    /// The series of the metric `name`; empty if there are none.
    pub fn series(&self, name: &str) -> &[Series] {
        self.families.get(name).map_or(&[], Vec::as_slice)
    }

    /// The sum of the finite values of the metric's series with these labels; `None` if there are
    /// none.
    pub fn value(&self, name: &str, labels: &[(&str, &str)]) -> Option<f64> {
        self.series(name)
            .iter()
            .filter(|series| series.has(labels))
            .map(|series| series.value)
            .filter(|value| value.is_finite())
            .reduce(|a, b| a + b)
    }

    /// A scrape at the time `at` of a server that is ready.
    #[cfg(test)]
    pub fn of(text: &str, at: Instant) -> Self {
        Self {
            at,
            not_ready: None,
            families: exposition::parse(text).unwrap(),
        }
    }
}

/// Sends one HTTP/1.1 GET on a new connection, so that a server that was replaced is noticed
/// immediately.
async fn get(
    address: &MetricsAddress,
    path: &str,
    max_bytes: usize,
) -> Result<(StatusCode, String), ScrapeError> {
    let exchange = async {
        let stream = TcpStream::connect(address.host_and_port())
            .await
            .map_err(ScrapeError::Connect)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let request = Request::get(path)
            .header(HOST, address.authority())
            .body(Empty::<Bytes>::new());
        let answer = sender.send_request(request.expect("the path and the host are valid"));

        let read = async {
            let answer = answer.await?;
            let status = answer.status();
            let body = Limited::new(answer.into_body(), max_bytes)
                .collect()
                .await
                .map_err(ScrapeError::Body)?;
            Ok((
                status,
                String::from_utf8_lossy(&body.to_bytes()).into_owned(),
            ))
        };
        let mut read = std::pin::pin!(read);
        tokio::select! {
            result = &mut read => result,
            // The connection may end after it has delivered the whole answer.
            ended = connection => match ended {
                Ok(()) => read.await,
                Err(error) => Err(error.into()),
            },
        }
    };
    timeout(TIMEOUT, exchange)
        .await
        .map_err(|_| ScrapeError::Timeout)?
}

#[cfg(test)]
mod tests {
    use tokio::{
        io::{AsyncReadExt, AsyncWriteExt},
        net::TcpListener,
    };

    use super::*;

    #[test]
    fn addresses_have_a_port_and_no_tls() {
        for text in [
            "http://127.0.0.1:8002",
            "127.0.0.1:8002",
            "http://127.0.0.1:8002/",
            "127.0.0.1:8002/metrics",
        ] {
            assert_eq!(
                text.parse::<MetricsAddress>().unwrap().to_string(),
                "http://127.0.0.1:8002",
                "{text}"
            );
        }
        assert_eq!(
            "[::1]:8002"
                .parse::<MetricsAddress>()
                .unwrap()
                .host_and_port(),
            ("::1", 8002)
        );
        for (text, advice) in [
            ("https://host:1", "no TLS"),
            ("host", "host:8002"),
            ("host:1/other", "isn't an address"),
            ("", "isn't an address"),
            ("me@host:1", "isn't an address"),
        ] {
            let error = text.parse::<MetricsAddress>().unwrap_err().to_string();
            assert!(error.contains(advice), "{text}: {error}");
        }
    }

    /// Scrapes a server that sends `answer` on each connection.
    async fn scrape_of(answer: String) -> Result<Scrape, ScrapeError> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        let server = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.unwrap();
                let _ = stream.read(&mut [0; 1024]).await;
                // It fails when the client has already closed the connection.
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        let result = Scrape::take(&address).await;
        server.abort();
        result
    }

    fn page(body: &str) -> String {
        format!(
            "HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        )
    }

    #[tokio::test]
    async fn a_server_of_ours_is_read_and_others_are_told_apart() {
        let scrape = scrape_of(page(
            "classifier_build_info{version=\"1\"} 1\nm{a=\"x\"} 2\nm{a=\"y\"} 3\nm NaN\n",
        ))
        .await;
        let scrape = scrape.unwrap();
        assert_eq!(scrape.not_ready, None);
        assert_eq!(
            (scrape.value("m", &[]), scrape.value("m", &[("a", "y")])),
            (Some(5.0), Some(3.0))
        );
        assert_eq!(
            (scrape.value("m", &[("a", "z")]), scrape.value("n", &[])),
            (None, None)
        );

        for (answer, reason) in [
            (page("up 1\n"), "not those of a resnet18 server"),
            (page("<html></html>\n"), "line 1"),
            (
                "HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n".into(),
                "404",
            ),
            ("SSH-2.0-OpenSSH_9.9\r\n".into(), "--http"),
            (String::new(), "hung up"),
            (
                "HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\nm 1\n".into(),
                "can't be read",
            ),
            (
                page(&"m 1\n".repeat(exposition::MAX_BYTES / 4 + 1)),
                "limit",
            ),
        ] {
            let error = scrape_of(answer.clone()).await.unwrap_err().to_string();
            assert!(error.contains(reason), "{answer:.40}: {error}");
        }
    }

    #[tokio::test]
    async fn a_closed_port_is_reported() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string().parse().unwrap();
        drop(listener);
        assert_eq!(
            Scrape::take(&address).await.unwrap_err().to_string(),
            "nothing listens there"
        );
    }
}
