//! Flags of `serve` for its HTTP port: the address, the live page, REST, and other sites.

use std::net::SocketAddr;

use clap::{Args, ValueEnum};

use super::SecurityFlags;
use crate::{
    cli::{CliError, values},
    http::{HttpConfig, Origin, Web},
};

#[derive(Debug, Args)]
pub struct HttpFlags {
    /// The address of the HTTP port, which serves the live page, REST, /metrics, /healthz and
    /// /readyz.
    #[arg(long = "http", env = "RESNET18_HTTP", value_name = "ADDRESS",
          default_value = "127.0.0.1:8002", value_parser = values::listen_address)]
    pub address: SocketAddr,
    /// Whether to serve the live page at / of the HTTP port, where browsers can also classify
    /// photos and camera pictures. auto: only if --http is a loopback address and the gRPC port
    /// requires neither a client certificate nor the permissions of a socket. on, or --web alone:
    /// always, and under any host name, as behind a proxy.
    #[arg(long, env = "RESNET18_WEB", value_enum, default_value = "auto", num_args = 0..=1,
          default_missing_value = "on")]
    web: Mode,
    /// Whether to serve REST (/v1, /v2) and gRPC-Web on the HTTP port. auto, on, off: as for --web.
    #[arg(long, env = "RESNET18_REST", value_enum, default_value = "auto", num_args = 0..=1,
          default_missing_value = "on")]
    rest: Mode,
    /// The web sites whose scripts may call REST and gRPC-Web, such as https://HOST;
    /// repeat the flag or separate them with commas [default: only the live page].
    #[arg(
        long,
        env = "RESNET18_ALLOW_ORIGIN",
        value_name = "ORIGIN",
        value_delimiter = ','
    )]
    allow_origin: Vec<Origin>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Mode {
    Auto,
    On,
    Off,
}

impl HttpFlags {
    /// What the HTTP port serves, and to whom. It must not admit callers that the gRPC port would
    /// reject. `grpc_is_tcp` is false if that port is a Unix socket.
    ///
    /// # Errors
    /// If the flags contradict each other.
    pub fn config(
        &self,
        security: &SecurityFlags,
        grpc_is_tcp: bool,
    ) -> Result<HttpConfig, CliError> {
        let client_certificates = security.requires_client_certificate();
        let who = |flag: &str, mode| match mode {
            Mode::On if client_certificates => Err(CliError::Usage(format!(
                "--{flag} and --tls-client-ca cannot be combined: the HTTP port does not ask for \
                 certificates"
            ))),
            Mode::On => Ok(Web::Everywhere),
            Mode::Auto
                if self.address.ip().is_loopback() && grpc_is_tcp && !client_certificates =>
            {
                Ok(Web::Loopback)
            }
            Mode::Auto | Mode::Off => Ok(Web::Off),
        };
        let rest = who("rest", self.rest)?;
        if rest == Web::Off && !self.allow_origin.is_empty() {
            return Err(CliError::Usage(
                "--allow-origin is for REST and gRPC-Web, which are off; --rest on turns them on"
                    .into(),
            ));
        }
        Ok(HttpConfig {
            web: who("web", self.web)?,
            rest,
            allowed_origins: self.allow_origin.clone(),
        })
    }

    /// Logs a warning if other machines can reach the port, for it is not protected.
    pub fn warn_if_exposed(&self, security: &SecurityFlags) {
        if self.address.ip().is_loopback() {
            return;
        }
        let lacks = if security.has_http_tls() {
            "their readers need no token"
        } else {
            "it has no TLS and no token"
        };
        tracing::warn!("anyone who can reach the HTTP port can read the metrics: {lacks}");
        let offered = match (self.web, self.rest) {
            (Mode::On, Mode::On) => "on the live page (--web) and by REST (--rest)",
            (Mode::On, _) => "on the live page (--web)",
            (_, Mode::On) => "by REST (--rest)",
            _ => return,
        };
        if security.requires_token() && !security.has_http_tls() {
            tracing::warn!(
                "tokens that are sent to the HTTP port {offered} travel in plain text: add \
                 --http-tls, or put a proxy with TLS in front of it"
            );
        } else if !security.requires_token() {
            tracing::warn!(
                "anyone who can reach the HTTP port can use the server {offered}: there is no \
                 token (--tokens)"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::flags::NetworkFlags;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        network: NetworkFlags,
        #[command(flatten)]
        security: SecurityFlags,
    }

    fn config(line: &str) -> Option<HttpConfig> {
        let Flags { network, security } =
            clap::Parser::try_parse_from(["serve"].into_iter().chain(line.split_whitespace()))
                .unwrap();
        network.http(&security).ok()
    }

    #[test]
    fn the_port_serves_where_grpc_callers_need_no_more_or_on_request() {
        let certificates = "--tls-cert a --tls-key b --tls-client-ca c";
        for flag in ["web", "rest"] {
            let who = |line: &str| {
                config(&line.replace("--it", &format!("--{flag}"))).map(|config| match flag {
                    "web" => config.web,
                    _ => config.rest,
                })
            };
            assert_eq!(who(""), Some(Web::Loopback));
            assert_eq!(
                who("--http [::1]:1 --tokens a --grpc 0.0.0.0:1"),
                Some(Web::Loopback)
            );
            assert_eq!(who("--http 0.0.0.0:1"), Some(Web::Off));
            assert_eq!(who(certificates), Some(Web::Off));
            assert_eq!(who("--it off"), Some(Web::Off));
            assert_eq!(who("--http 0.0.0.0:1 --it"), Some(Web::Everywhere));
            assert_eq!(who("--it on --grpc 127.0.0.1:1"), Some(Web::Everywhere));
            assert_eq!(who(&format!("--it {certificates}")), None);
            #[cfg(unix)]
            assert_eq!(who("--grpc unix:/run/a.sock"), Some(Web::Off));
        }
    }

    #[test]
    fn origins_need_something_to_call() {
        let origins = "--allow-origin https://a.example,http://b.example:3000";
        assert_eq!(config(origins).unwrap().allowed_origins.len(), 2);
        assert!(config(&format!("--http 0.0.0.0:1 {origins}")).is_none());
        assert!(config(&format!("--http 0.0.0.0:1 --rest {origins}")).is_some());
    }
}
