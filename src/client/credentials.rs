//! How a client authenticates itself, and which servers it trusts.

use std::fmt;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Identity},
};

/// Certificates and a token. The default has none, for a server that anyone may call.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The certificate authority that must have signed the server's certificate, as PEM. `None`
    /// means the authorities that the system trusts.
    pub authority: Option<Vec<u8>>,
    /// The client's own certificate and its private key, each as PEM, for mutual TLS.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// The bearer token to send with every call.
    pub token: Option<Token>,
}

/// A bearer token (RFC 6750), sent in the `authorization` header.
#[derive(Clone)]
pub struct Token(MetadataValue<Ascii>);

impl Token {
    /// Makes a token of one or more visible ASCII characters.
    ///
    /// # Errors
    /// A description of the allowed characters, when the token is empty or has others.
    pub fn new(token: &str) -> Result<Self, String> {
        let invalid = || {
            "a token must consist of visible ASCII characters: letters, digits and signs, without \
             spaces"
                .to_owned()
        };
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(invalid());
        }

        let mut value: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| invalid())?;
        // Keeps the value out of debug output and of HPACK's dynamic table.
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl fmt::Debug for Credentials {
    /// Shows which credentials there are, without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("authority", &self.authority.is_some())
            .field("identity", &self.identity.is_some())
            .field("token", &self.token.is_some())
            .finish()
    }
}

impl Credentials {
    /// The TLS settings of a connection with these credentials.
    pub(super) fn tls(&self) -> ClientTlsConfig {
        let config = match &self.authority {
            Some(pem) => ClientTlsConfig::new().ca_certificate(Certificate::from_pem(pem)),
            None => ClientTlsConfig::new().with_native_roots(),
        };
        match &self.identity {
            Some((certificate, key)) => config.identity(Identity::from_pem(certificate, key)),
            None => config,
        }
    }
}

/// The interceptor that adds the token, if there is one, to every call.
#[derive(Clone)]
pub struct SendToken(pub(super) Option<Token>);

impl Interceptor for SendToken {
    fn call(&mut self, mut request: Request<()>) -> Result<Request<()>, Status> {
        if let Some(Token(value)) = &self.0 {
            request
                .metadata_mut()
                .insert("authorization", value.clone());
        }
        Ok(request)
    }
}
