//! TLS and tokens, as their files are now.

use std::{sync::Arc, time::Duration};

use super::auth::{TokenConfig, Tokens};
use crate::grpc::transport::tls::{self, Application, Certificates, HttpTls, TlsConfig};

/// How often the files of certificates and tokens are checked for changes.
const REFRESH: Duration = Duration::from_secs(1);

/// Who may connect and call. The default is everyone, without TLS.
#[derive(Default)]
pub struct AccessControl {
    certificates: Option<Arc<Certificates>>,
    http: Option<Arc<Certificates>>,
    tokens: Option<Arc<Tokens>>,
}

impl AccessControl {
    /// Reads certificates and tokens. Without `tls` connections are not encrypted, without `tokens`
    /// anyone may call.
    ///
    /// # Errors
    /// The file that is wrong, and how.
    pub fn new(tls: Option<TlsConfig>, tokens: Option<TokenConfig>) -> Result<Self, String> {
        Ok(Self {
            certificates: tls
                .map(|tls| tls::certificates(tls, Application::Http2))
                .transpose()?
                .map(Arc::new),
            http: None,
            tokens: tokens.map(Tokens::read).transpose()?.map(Arc::new),
        })
    }

    /// Encrypts the HTTP port too, whose callers never need certificates: probes and browsers have
    /// none.
    ///
    /// # Errors
    /// The file that is wrong, and how.
    pub fn with_http(self, tls: TlsConfig) -> Result<Self, String> {
        let tls = TlsConfig {
            client_authorities: None,
            ..tls
        };
        let certificates = tls::certificates(tls, Application::Http1)?;
        Ok(Self {
            http: Some(Arc::new(certificates)),
            ..self
        })
    }

    /// The certificates of the HTTP port; `None` if it is not encrypted.
    pub(crate) fn http(&self) -> Option<HttpTls> {
        self.http.clone().map(HttpTls)
    }

    pub(in crate::grpc) fn certificates(&self) -> Option<Arc<Certificates>> {
        self.certificates.clone()
    }

    pub(in crate::grpc) fn tokens(&self) -> Option<Arc<Tokens>> {
        self.tokens.clone()
    }

    /// Reads changed files again, for as long as the server runs.
    pub(in crate::grpc) async fn follow(self: Arc<Self>) {
        loop {
            tokio::time::sleep(REFRESH).await;
            let access = Arc::clone(&self);
            // A panic in there has been reported on standard error.
            let _ = tokio::task::spawn_blocking(move || access.refresh()).await;
        }
    }

    /// Blocks on the file system.
    fn refresh(&self) {
        for certificates in [&self.certificates, &self.http].into_iter().flatten() {
            certificates.refresh();
        }
        if let Some(tokens) = &self.tokens {
            tokens.refresh();
        }
    }
}
