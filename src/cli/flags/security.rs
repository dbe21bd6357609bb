//! Flags of `serve` for access control: TLS and tokens.

use std::path::PathBuf;

use clap::Args;

use crate::{
    cli::{
        CliError,
        values::{OrNone, or_none},
    },
    grpc::{AccessControl, OpenService, TlsConfig, TokenConfig},
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityFlags {
    /// The server's certificate chain, PEM. The file is read again when it changes.
    #[arg(
        long,
        env = "RESNET18_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// The private key of the certificate, PEM.
    #[arg(
        long,
        env = "RESNET18_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
    /// The authorities whose certificates clients must present, PEM (mutual TLS).
    #[arg(
        long,
        env = "RESNET18_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_client_ca: Option<PathBuf>,
    /// Encrypt the HTTP port too, with the same certificate: probes, scrapers and browsers must then
    /// use https.
    #[arg(long, env = "RESNET18_HTTP_TLS", requires = "tls_cert")]
    http_tls: bool,
    /// A file with the tokens that callers must send, one `NAME TOKEN` per line. The file is read
    /// again when it changes.
    #[arg(long, env = "RESNET18_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Services that callers may use without a token.
    #[arg(long, env = "RESNET18_OPEN_SERVICES", value_delimiter = ',', default_value = "health",
          value_parser = or_none::<OpenService>("none"))]
    open_services: Vec<OrNone<OpenService>>,
}

impl SecurityFlags {
    pub fn has_tls(&self) -> bool {
        self.tls_cert.is_some()
    }

    /// Whether the HTTP port is encrypted.
    pub fn has_http_tls(&self) -> bool {
        self.http_tls
    }

    pub fn requires_client_certificate(&self) -> bool {
        self.tls_client_ca.is_some()
    }

    pub fn requires_token(&self) -> bool {
        self.tokens.is_some()
    }

    /// Reads the certificates and tokens.
    ///
    /// # Errors
    /// If a file cannot be read or its content is invalid.
    pub fn access(&self) -> Result<AccessControl, CliError> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsConfig {
                certificate: certificate.clone(),
                key: key.clone(),
                client_authorities: self.tls_client_ca.clone(),
            }),
            _ => None,
        };
        let tokens = self.tokens.clone().map(|file| TokenConfig {
            file,
            open: self.open_services.iter().copied().flatten().collect(),
        });
        let http = tls.clone().filter(|_| self.http_tls);
        let access = AccessControl::new(tls, tokens).and_then(|access| match http {
            Some(tls) => access.with_http(tls),
            None => Ok(access),
        });
        access.map_err(CliError::Usage)
    }
}
