//! Flags of clients: the server to connect to, and the credentials for it.

use std::path::PathBuf;

use clap::Args;

use crate::{
    address::ServerAddress,
    certificate,
    cli::CliError,
    client::{Credentials, Server, Token},
};

/// The server to connect to.
#[derive(Clone, Debug, Args)]
pub struct ServerFlags {
    /// The server's address: http://HOST:PORT, https://HOST:PORT, HOST:PORT or unix:PATH.
    #[arg(
        long,
        env = "RESNET18_SERVER",
        value_name = "URL",
        default_value = "http://127.0.0.1:8001"
    )]
    server: ServerAddress,
    #[command(flatten)]
    credentials: CredentialFlags,
}

/// The server and the model to use, for subcommands that classify.
#[derive(Clone, Debug, Args)]
pub struct ConnectionFlags {
    #[command(flatten)]
    server: ServerFlags,
    /// The model to use, by its name on the server [default: the server's default model].
    #[arg(
        long,
        env = "RESNET18_MODEL_NAME",
        value_name = "NAME",
        default_value = "",
        hide_default_value = true
    )]
    pub model: String,
}

impl ConnectionFlags {
    /// The server, with the credentials for it.
    ///
    /// # Errors
    /// As for [`ServerFlags::server`].
    pub fn server(&self) -> Result<Server, CliError> {
        self.server.server()
    }
}

impl ServerFlags {
    /// The server, with the credentials for it.
    ///
    /// # Errors
    /// If a certificate cannot be read, the server's address does not use TLS but certificates are
    /// given, or the token is invalid.
    pub fn server(&self) -> Result<Server, CliError> {
        self.credentials.server(self.server.clone())
    }
}

/// Credentials for a server.
#[derive(Clone, Debug, Args)]
pub struct CredentialFlags {
    /// The certificate authority to trust, PEM [default: the system's authorities].
    #[arg(long, env = "RESNET18_CA", value_name = "FILE")]
    ca: Option<PathBuf>,
    /// The client's certificate, PEM, for servers that require one.
    #[arg(
        long,
        env = "RESNET18_CLIENT_CERT",
        value_name = "FILE",
        requires = "client_key"
    )]
    client_cert: Option<PathBuf>,
    /// The private key of the client's certificate, PEM.
    #[arg(
        long,
        env = "RESNET18_CLIENT_KEY",
        value_name = "FILE",
        requires = "client_cert"
    )]
    client_key: Option<PathBuf>,
    /// The token, for servers that require one. Prefer RESNET18_TOKEN: other users of the machine
    /// can see the flags.
    #[arg(
        long,
        env = "RESNET18_TOKEN",
        value_name = "TOKEN",
        hide_env_values = true
    )]
    token: Option<String>,
}

impl CredentialFlags {
    /// The server at `address`, with these credentials.
    ///
    /// # Errors
    /// If a certificate cannot be read or used, `address` does not use TLS but certificates are
    /// given, or the token is invalid.
    pub fn server(&self, address: ServerAddress) -> Result<Server, CliError> {
        if !address.uses_tls() && (self.ca.is_some() || self.client_cert.is_some()) {
            return Err(CliError::Usage(format!(
                "certificates are for https://, but the server is {address}"
            )));
        }

        let identity = match (&self.client_cert, &self.client_key) {
            (Some(certificate), Some(key)) => {
                let (_, certificate) =
                    certificate::read_identity(certificate).map_err(CliError::Usage)?;
                let (_, key) = certificate::read_key(key).map_err(CliError::Usage)?;
                Some((certificate, key))
            }
            _ => None,
        };
        let authority = self
            .ca
            .as_deref()
            .map(certificate::read)
            .transpose()
            .map_err(CliError::Usage)?
            .map(|(_, pem)| pem);
        let credentials = Credentials {
            authority,
            identity,
            token: self
                .token
                .as_deref()
                .map(Token::new)
                .transpose()
                .map_err(CliError::Usage)?,
        };
        Ok(Server {
            address,
            credentials,
        })
    }
}
