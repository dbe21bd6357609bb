//! TLS and mutual TLS: certificates from files, which are read again when they change.

use std::{path::PathBuf, sync::Arc};

use tokio_rustls::{
    TlsAcceptor,
    rustls::{
        RootCertStore, ServerConfig,
        crypto::{CryptoProvider, ring},
        server::WebPkiClientVerifier,
    },
};

use crate::{certificate, watch::Watched};

/// The files of the certificates, as PEM.
#[derive(Clone, Debug)]
pub struct TlsConfig {
    /// The server's certificate, followed by any intermediate ones.
    pub certificate: PathBuf,
    /// Its private key.
    pub key: PathBuf,
    /// The authorities of the certificates that clients must present; `None` means that clients
    /// need none.
    pub client_authorities: Option<PathBuf>,
}

/// The current certificates, as rustls expects them.
pub(in crate::grpc) type Certificates = Watched<Arc<ServerConfig>>;

/// The certificates of the HTTP port.
#[derive(Clone)]
pub(crate) struct HttpTls(pub(in crate::grpc) Arc<Certificates>);

impl HttpTls {
    /// What makes the handshake with the certificates as they are now.
    pub fn acceptor(&self) -> TlsAcceptor {
        TlsAcceptor::from(Arc::clone(&*self.0.get()))
    }
}

/// What is spoken on a connection after the handshake (ALPN).
#[derive(Clone, Copy)]
pub(in crate::grpc) enum Application {
    Http1,
    Http2,
}

/// Reads the certificates.
///
/// # Errors
/// The file that is missing or wrong, and how.
pub(in crate::grpc) fn certificates(
    config: TlsConfig,
    application: Application,
) -> Result<Certificates, String> {
    let files = [&config.certificate, &config.key]
        .into_iter()
        .chain(&config.client_authorities)
        .cloned()
        .collect();
    Watched::new("the certificates", files, move || {
        read(&config, application)
    })
}

fn read(config: &TlsConfig, application: Application) -> Result<Arc<ServerConfig>, String> {
    let provider: Arc<CryptoProvider> = ring::default_provider().into();
    let (chain, _) = certificate::read_identity(&config.certificate)?;
    let own = chain.first().and_then(|own| certificate::facts(own));
    if own.is_some_and(|own| own.is_authority) {
        tracing::warn!(
            "{}: this is the certificate of an authority (CA:TRUE), as `openssl req -x509` makes it \
             by default; many clients refuse it as a server's, `resnet18` among them \
             (docs/security.md has the commands for a better one)",
            config.certificate.display()
        );
    }
    let (key, _) = certificate::read_key(&config.key)?;
    let builder = ServerConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?;
    let builder = match &config.client_authorities {
        None => builder.with_no_client_auth(),
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificate::read(path)?.0 {
                roots
                    .add(certificate)
                    .map_err(|error| format!("{}: {error}", path.display()))?;
            }
            let verifier =
                WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build();
            builder.with_client_cert_verifier(
                verifier.map_err(|error| format!("{}: {error}", path.display()))?,
            )
        }
    };
    let mut server = builder.with_single_cert(chain, key).map_err(|error| {
        format!(
            "{} and {} don't fit together: {error}",
            config.certificate.display(),
            config.key.display()
        )
    })?;
    server.alpn_protocols = match application {
        Application::Http1 => vec![b"http/1.1".to_vec()],
        Application::Http2 => vec![b"h2".to_vec()],
    };
    Ok(Arc::new(server))
}
