//! TLS and tokens, as their files are now.

use std::{sync::Arc, time::Duration};

use super::auth::{TokenConfig, Tokens};
use crate::grpc::transport::tls::{self, Certificates, TlsConfig};

/// How often the files of certificates and tokens are checked for changes.
const REFRESH: Duration = Duration::from_secs(1);

/// Who may connect and call. The default is everyone, without TLS.
#[derive(Default)]
pub struct AccessControl {
    certificates: Option<Arc<Certificates>>,
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
            certificates: tls.map(tls::certificates).transpose()?.map(Arc::new),
            tokens: tokens.map(Tokens::read).transpose()?.map(Arc::new),
        })
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
        if let Some(certificates) = &self.certificates {
            certificates.refresh();
        }
        if let Some(tokens) = &self.tokens {
            tokens.refresh();
        }
    }
}
