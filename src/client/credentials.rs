//! How a client shows who it is, and by what it knows the server.

use std::fmt;

use tonic::{
    Request, Status,
    metadata::{Ascii, MetadataValue},
    service::Interceptor,
    transport::{Certificate, ClientTlsConfig, Identity},
};

/// Certificates and a token; none of them is needed for a server that anyone may call.
#[derive(Clone, Default)]
pub struct Credentials {
    /// The authority of the server's certificate, PEM; `None` = those that the system trusts.
    pub authority: Option<Vec<u8>>,
    /// The client's own certificate and its private key, PEM.
    pub identity: Option<(Vec<u8>, Vec<u8>)>,
    /// Sent with every call.
    pub token: Option<Token>,
}

/// A bearer token.
#[derive(Clone)]
pub struct Token(MetadataValue<Ascii>);

impl Token {
    /// A token of visible ASCII characters.
    ///
    /// # Errors
    /// Other characters.
    pub fn new(token: &str) -> Result<Self, String> {
        let wrong = || "a token is made of letters, digits and signs, without spaces".to_owned();
        if token.is_empty() || !token.bytes().all(|byte| byte.is_ascii_graphic()) {
            return Err(wrong());
        }
        let mut value: MetadataValue<Ascii> =
            format!("Bearer {token}").parse().map_err(|_| wrong())?;
        value.set_sensitive(true);
        Ok(Self(value))
    }
}

impl fmt::Debug for Credentials {
    /// Without the secrets.
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.debug_struct("Credentials")
            .field("authority", &self.authority.is_some())
            .field("identity", &self.identity.is_some())
            .field("token", &self.token.is_some())
            .finish()
    }
}

impl Credentials {
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

/// Puts the token into every call.
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
