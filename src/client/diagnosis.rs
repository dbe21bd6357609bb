//! Why a connection can't be used, found by looking at the error and at what listens there.

use std::{error::Error, time::Duration};

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    time::timeout,
};

use super::{ClientError, Server, error::root_cause};
use crate::address::ServerAddress;

/// How long a port may take to answer the greeting.
const LOOK: Duration = Duration::from_secs(2);

/// A TLS record with a greeting that ends at once. A TLS port answers with an alert, an HTTP/1 port
/// with a status line, and an HTTP/2 port with its settings (RFC 9113, 3.4).
const GREETING: [u8; 10] = [0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0];

/// What a port speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Protocol {
    Tls,
    Http1,
    Http2,
    Other,
    /// It accepts connections and says nothing.
    Silent,
}

/// When a connection failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// While it was established, TLS's handshake included.
    Connect,
    /// In its first call.
    FirstCall,
}

/// The explanation of an error of the connection, whose innermost reason is `reason`.
pub(super) async fn explain(server: &Server, reason: String, phase: Phase) -> ClientError {
    let Server {
        address,
        credentials,
    } = server;
    if address.uses_tls() && is_about_certificates(&reason) {
        return tls(address, &reason);
    }

    let unusable = |reason| ClientError::Unusable {
        server: address.clone(),
        reason,
    };
    match (look(address).await, address.uses_tls()) {
        (Some(Protocol::Http1), _) => unusable(format!(
            "this is the HTTP port; gRPC is on another one, by default {}",
            address.with_port(8001)
        )),
        (Some(Protocol::Tls), false) => unusable(format!(
            "it expects TLS; write {}",
            address.to_string().replacen("http://", "https://", 1)
        )),
        (Some(Protocol::Http2), true) => unusable(format!(
            "it does not use TLS; write {}",
            address.to_string().replacen("https://", "http://", 1)
        )),
        // The certificate of a client is checked after the client has finished its handshake: the
        // connection may break before the reason has arrived.
        (Some(Protocol::Tls), true) if phase == Phase::FirstCall => ClientError::Tls {
            server: address.clone(),
            reason: if credentials.identity.is_some() {
                format!("it may not accept the client's certificate ({reason})")
            } else {
                format!("it may require a client's certificate ({reason})")
            },
        },
        (Some(Protocol::Silent), _) => silent(address),
        (Some(Protocol::Tls | Protocol::Http2 | Protocol::Other) | None, _) => {
            ClientError::Unreachable {
                server: address.clone(),
                reason,
            }
        }
    }
}

/// The error of a server that accepts connections and does not answer calls.
pub(super) fn silent(server: &ServerAddress) -> ClientError {
    ClientError::Unusable {
        server: server.clone(),
        reason: "it accepts connections but does not answer; it may have as many open as it \
                 accepts (its flag --max-connections), or be too busy"
            .into(),
    }
}

/// The explanation of an error of the TLS library.
pub(super) fn tls_error(server: &ServerAddress, error: &dyn Error) -> ClientError {
    tls(server, &root_cause(error))
}

fn tls(server: &ServerAddress, reason: &str) -> ClientError {
    let meaning = [
        (
            "CaUsedAsEndEntity",
            "the server's certificate is that of an authority (CA:TRUE); a server needs one with \
             CA:FALSE",
        ),
        (
            "UnsupportedCertVersion",
            "the server's certificate is of X.509 version 1; it must be of version 3",
        ),
        (
            "CertificateRequired",
            "the server requires a client's certificate",
        ),
        (
            "received fatal alert",
            "the server does not accept the client's certificate",
        ),
        (
            "KeyMismatch",
            "the client's certificate and its key don't belong together",
        ),
    ];
    let meaning = meaning.iter().find(|(name, _)| reason.contains(name));
    ClientError::Tls {
        server: server.clone(),
        reason: match meaning {
            Some((_, meaning)) => format!("{meaning} ({reason})"),
            None => reason.to_owned(),
        },
    }
}

/// Whether the TLS library's error is about a certificate, the server's or the client's own.
fn is_about_certificates(reason: &str) -> bool {
    let alerts = [
        "UnknownCA",
        "BadCertificate",
        "CertificateRequired",
        "CertificateExpired",
        "CertificateUnknown",
        "CertificateRevoked",
        "UnsupportedCertificate",
        "AccessDenied",
        "DecryptError",
    ];
    reason.contains("certificate")
        || reason.contains("KeyMismatch")
        || reason.contains("received fatal alert")
            && alerts.iter().any(|alert| reason.contains(alert))
}

/// What listens at the address; `None` when nothing does, or it is a file.
async fn look(address: &ServerAddress) -> Option<Protocol> {
    let (host, port) = address.host_and_port()?;
    let look = async {
        let mut stream = TcpStream::connect((host.as_str(), port)).await.ok()?;
        stream.write_all(&GREETING).await.ok()?;
        let mut answer = [0; 6];
        let mut length = 0;
        while length < answer.len() {
            match timeout(LOOK, stream.read(&mut answer[length..])).await {
                Ok(Ok(read)) if read > 0 => length += read,
                Ok(_) => break,
                Err(_) => return Some(Protocol::Silent),
            }
        }
        Some(match &answer[..length] {
            [0x15 | 0x16, 3, ..] => Protocol::Tls,
            answer if answer.starts_with(b"HTTP/1") => Protocol::Http1,
            // A frame of settings that is shorter than 256 bytes.
            [0, 0, _, 4, ..] => Protocol::Http2,
            _ => Protocol::Other,
        })
    };
    // Connecting may take as long as an answer.
    timeout(2 * LOOK, look).await.ok()?
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_of_certificates_are_told_from_those_of_the_network() {
        for reason in [
            "invalid peer certificate: UnknownIssuer",
            "received fatal alert: CertificateRequired",
            "received fatal alert: UnknownCA",
            "keys may not be consistent: KeyMismatch",
        ] {
            assert!(is_about_certificates(reason), "{reason}");
        }
        for reason in [
            "Connection refused (os error 111)",
            "received corrupt message of type InvalidContentType",
            "received fatal alert: HandshakeFailure",
        ] {
            assert!(!is_about_certificates(reason), "{reason}");
        }
    }
}
