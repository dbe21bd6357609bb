//! Where to listen, for whom and for how many: flags → a [`GrpcConfig`] and the listeners.

use std::{
    io,
    net::SocketAddr,
    num::NonZeroUsize,
    path::{Path, PathBuf},
    str::FromStr,
    sync::Arc,
    time::Duration,
};

use clap::{Args, ValueEnum};
use tokio::net::TcpListener;

use crate::{
    cli::{CliError, open_files, values},
    grpc::{AccessControl, Deadlines, GrpcConfig, Listener, OpenService, TlsConfig, TokenConfig},
    http::Web,
    server::Listeners,
};

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkFlags {
    /// Where gRPC is served: HOST:PORT, or unix:PATH for a socket in the file system.
    #[arg(
        long,
        env = "RESNET18_GRPC",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8001"
    )]
    grpc: GrpcAddress,
    /// Where the live page, /metrics, /healthz and /readyz are served.
    #[arg(long, env = "RESNET18_HTTP", value_name = "ADDRESS", default_value = "127.0.0.1:8002",
          value_parser = values::listen_address)]
    http: SocketAddr,
    /// The live page at / of the HTTP port, where people send photos and camera pictures too. auto:
    /// only where --http is a loopback address and callers of the gRPC port need neither a client
    /// certificate nor a socket's permissions; on, or --web alone: also elsewhere and under any
    /// host name, as behind a proxy.
    #[arg(long, env = "RESNET18_WEB", value_enum, default_value = "auto", num_args = 0..=1,
          default_missing_value = "on")]
    web: WebArg,
    /// The largest message that is accepted, in MiB.
    #[arg(long, env = "RESNET18_MAX_MESSAGE_MIB", value_name = "MIB", default_value = "16",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_message_mib: u32,
    /// The most streams that are open at once.
    #[arg(
        long,
        env = "RESNET18_MAX_STREAMS",
        value_name = "N",
        default_value = "256"
    )]
    max_streams: NonZeroUsize,
    /// The most calls that are in progress at once; each may hold one message.
    #[arg(
        long,
        env = "RESNET18_MAX_CALLS",
        value_name = "N",
        default_value = "512"
    )]
    max_calls: NonZeroUsize,
    /// The most connections that are open at once; further ones wait.
    #[arg(
        long,
        env = "RESNET18_MAX_CONNECTIONS",
        value_name = "N",
        default_value = "1024"
    )]
    max_connections: NonZeroUsize,
    /// Ask connections to go when they are this old, so that load balancers spread them anew
    /// [default: never].
    #[arg(long, env = "RESNET18_MAX_CONNECTION_AGE", value_name = "DURATION", value_parser = values::positive_duration)]
    max_connection_age: Option<Duration>,
    /// How long calls may go on when their connection has reached its age.
    #[arg(long, env = "RESNET18_CONNECTION_GRACE", value_name = "DURATION", default_value = "30s",
          value_parser = values::duration)]
    connection_grace: Duration,
    /// The deadline of single requests that come without one [default: none].
    #[arg(long, env = "RESNET18_DEFAULT_DEADLINE", value_name = "DURATION", value_parser = values::positive_duration)]
    default_deadline: Option<Duration>,
    /// The longest deadline of a single request, whatever it asks for [default: any].
    #[arg(long, env = "RESNET18_MAX_DEADLINE", value_name = "DURATION", value_parser = values::positive_duration)]
    max_deadline: Option<Duration>,
    /// How long a message may take to arrive; streams may be silent between their messages.
    #[arg(long, env = "RESNET18_RECEIVE_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::positive_duration)]
    receive_timeout: Duration,
    /// How long requests are still served at shutdown after health and readiness say no, so that
    /// load balancers notice.
    #[arg(long, env = "RESNET18_DRAIN_DELAY", value_name = "DURATION", default_value = "0s",
          value_parser = values::duration)]
    pub drain_delay: Duration,
    /// How long accepted work may take to finish at shutdown.
    #[arg(long, env = "RESNET18_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::duration)]
    pub drain_timeout: Duration,
}

#[derive(Debug, Args)]
#[command(next_help_heading = "Security")]
pub struct SecurityFlags {
    /// The server's certificate and those that lead to its authority's, PEM; read again when it
    /// changes.
    #[arg(
        long,
        env = "RESNET18_TLS_CERT",
        value_name = "FILE",
        requires = "tls_key"
    )]
    tls_cert: Option<PathBuf>,
    /// The certificate's private key, PEM.
    #[arg(
        long,
        env = "RESNET18_TLS_KEY",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_key: Option<PathBuf>,
    /// The authorities whose certificates clients must show, PEM (mutual TLS).
    #[arg(
        long,
        env = "RESNET18_TLS_CLIENT_CA",
        value_name = "FILE",
        requires = "tls_cert"
    )]
    tls_client_ca: Option<PathBuf>,
    /// Tokens that callers must send, one `NAME TOKEN` a line; read again when it changes.
    #[arg(long, env = "RESNET18_TOKENS", value_name = "FILE")]
    tokens: Option<PathBuf>,
    /// Services that answer without a token.
    #[arg(
        long,
        env = "RESNET18_OPEN_SERVICES",
        value_enum,
        value_delimiter = ',',
        default_value = "health"
    )]
    open_services: Vec<OpenServiceArg>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum OpenServiceArg {
    Health,
    Reflection,
    None,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum WebArg {
    Auto,
    On,
    Off,
}

#[derive(Clone, Debug)]
enum GrpcAddress {
    Tcp(SocketAddr),
    #[cfg(unix)]
    Unix(PathBuf),
}

impl GrpcAddress {
    fn is_tcp(&self) -> bool {
        matches!(self, Self::Tcp(_))
    }
}

impl FromStr for GrpcAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        #[cfg(unix)]
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            return match path.is_empty() {
                true => Err("say the path too, as in unix:/run/resnet18.sock".into()),
                false => Ok(Self::Unix(path.into())),
            };
        }
        values::listen_address(text).map(Self::Tcp)
    }
}

impl NetworkFlags {
    /// What was asked for. Certificates and tokens are read here, before anything is bound.
    pub fn config(&self, security: &SecurityFlags) -> Result<GrpcConfig, CliError> {
        Ok(GrpcConfig {
            max_message_bytes: self.max_message_mib as usize * 1024 * 1024,
            max_streams: self.max_streams.get(),
            max_calls: self.max_calls.get(),
            max_connections: open_files::connections(self.max_connections.get()),
            max_connection_age: self.max_connection_age,
            connection_grace: self.connection_grace,
            deadlines: Deadlines {
                default: self.default_deadline,
                longest: self.max_deadline,
            },
            receive_timeout: self.receive_timeout,
            access: Arc::new(security.access()?),
        })
    }

    /// Who gets the page. It must not let in whom the gRPC port would not.
    pub fn web(&self, security: &SecurityFlags) -> Result<Web, CliError> {
        let certificates = security.tls_client_ca.is_some();
        match self.web {
            WebArg::On if certificates => Err(CliError::Usage(
                "--web and --tls-client-ca: the HTTP port can't ask browsers for certificates; leave one of them out"
                    .into(),
            )),
            WebArg::On => Ok(Web::Everywhere),
            WebArg::Auto if self.http.ip().is_loopback() && self.grpc.is_tcp() && !certificates => Ok(Web::Loopback),
            WebArg::Auto | WebArg::Off => Ok(Web::Off),
        }
    }

    /// Opens the ports.
    pub async fn listen(&self) -> Result<Listeners, CliError> {
        let grpc = match &self.grpc {
            GrpcAddress::Tcp(address) => Listener::Tcp(bind(*address, "grpc").await?),
            #[cfg(unix)]
            GrpcAddress::Unix(path) => Listener::Unix(bind_socket(path)?),
        };
        Ok(Listeners {
            grpc,
            http: bind(self.http, "http").await?,
        })
    }

    /// What somebody should know who can be reached from elsewhere.
    pub fn warn(&self, security: &SecurityFlags) {
        let exposed = match &self.grpc {
            GrpcAddress::Tcp(address) => !address.ip().is_loopback(),
            #[cfg(unix)]
            GrpcAddress::Unix(_) => false,
        };
        match (security.tls_cert.is_some(), security.tokens.is_some()) {
            (false, false) if exposed => tracing::warn!(
                "anyone who can reach the gRPC port can use the server: there is no TLS (--tls-cert) and no token (--tokens)"
            ),
            (false, true) if exposed => {
                tracing::warn!("tokens travel in plain text: there is no TLS (--tls-cert)");
            }
            (true, false) if exposed && security.tls_client_ca.is_none() => tracing::warn!(
                "anyone who can reach the gRPC port can use the server: there is no token (--tokens) or client certificate \
                 (--tls-client-ca)"
            ),
            _ => {}
        }
        if !self.http.ip().is_loopback() {
            tracing::warn!(
                "anyone who can reach the HTTP port can read the metrics; it has no TLS and no token"
            );
            match (self.web, &security.tokens) {
                (WebArg::On, None) => {
                    tracing::warn!(
                        "and can use the server by its page (--web): there is no token (--tokens)"
                    );
                }
                (WebArg::On, Some(_)) => {
                    tracing::warn!(
                        "and the page's tokens travel in plain text: put a proxy with TLS in front"
                    );
                }
                _ => {}
            }
        }
    }
}

impl SecurityFlags {
    fn access(&self) -> Result<AccessControl, CliError> {
        let tls = match (&self.tls_cert, &self.tls_key) {
            (Some(certificate), Some(key)) => Some(TlsConfig {
                certificate: certificate.clone(),
                key: key.clone(),
                client_authorities: self.tls_client_ca.clone(),
            }),
            _ => None,
        };
        let open = |service: &OpenServiceArg| match service {
            OpenServiceArg::Health => Some(OpenService::Health),
            OpenServiceArg::Reflection => Some(OpenService::Reflection),
            OpenServiceArg::None => None,
        };
        let open = self.open_services.iter().filter_map(open).collect();
        let tokens = self.tokens.clone().map(|file| TokenConfig { file, open });
        AccessControl::new(tls, tokens).map_err(CliError::Usage)
    }
}

async fn bind(address: SocketAddr, flag: &str) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "another program uses it",
            io::ErrorKind::PermissionDenied => "this user may not",
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            _ => "it failed",
        };
        CliError::Failed(format!(
            "can't listen on {address}: {advice} ({error}); choose another with --{flag}"
        ))
    })
}

/// Binds a socket in the file system; one that a server left behind is replaced.
#[cfg(unix)]
fn bind_socket(path: &Path) -> Result<tokio::net::UnixListener, CliError> {
    use std::os::unix::{fs::FileTypeExt, net::UnixStream};
    let failed = |reason: &dyn std::fmt::Display| {
        CliError::Failed(format!(
            "can't listen on unix:{}: {reason}; choose another path with --grpc",
            path.display()
        ))
    };
    if let Ok(metadata) = std::fs::symlink_metadata(path) {
        if !metadata.file_type().is_socket() {
            return Err(failed(&"there is a file of that name, which is no socket"));
        }
        match UnixStream::connect(path) {
            Ok(_) => return Err(failed(&"another program uses it")),
            // Nobody listens: a server that was killed has left it behind.
            Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
                std::fs::remove_file(path).map_err(|error| failed(&error))?;
            }
            Err(error) => return Err(failed(&error)),
        }
    }
    tokio::net::UnixListener::bind(path).map_err(|error| failed(&error))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(unix)]
    #[test]
    fn grpc_is_served_on_an_address_or_a_socket() {
        assert!(
            matches!("localhost:0".parse(), Ok(GrpcAddress::Tcp(address)) if address.ip().is_loopback())
        );
        for text in ["unix:/run/a.sock", "unix:///run/a.sock"] {
            assert!(
                matches!(text.parse(), Ok(GrpcAddress::Unix(path)) if path == Path::new("/run/a.sock")),
                "{text}"
            );
        }
        assert!("unix:".parse::<GrpcAddress>().unwrap_err().contains("path"));
        assert!("8001".parse::<GrpcAddress>().unwrap_err().contains("port"));
    }

    #[test]
    fn the_page_is_shown_where_grpc_callers_need_nothing_else_or_when_asked_for() {
        #[derive(clap::Parser)]
        struct Flags {
            #[command(flatten)]
            network: NetworkFlags,
            #[command(flatten)]
            security: SecurityFlags,
        }
        let web = |line: &str| {
            let Flags { network, security } =
                clap::Parser::try_parse_from(["serve"].into_iter().chain(line.split_whitespace()))
                    .unwrap();
            network.web(&security).ok()
        };
        let certificates = "--tls-cert a --tls-key b --tls-client-ca c";
        assert_eq!(web(""), Some(Web::Loopback));
        assert_eq!(
            web("--http [::1]:1 --tokens a --grpc 0.0.0.0:1"),
            Some(Web::Loopback)
        );
        assert_eq!(web("--http 0.0.0.0:1"), Some(Web::Off));
        assert_eq!(web(certificates), Some(Web::Off));
        assert_eq!(web("--web off"), Some(Web::Off));
        assert_eq!(web("--http 0.0.0.0:1 --web"), Some(Web::Everywhere));
        assert_eq!(web("--web on --grpc 127.0.0.1:1"), Some(Web::Everywhere));
        assert_eq!(web(&format!("--web {certificates}")), None);
        #[cfg(unix)]
        assert_eq!(web("--grpc unix:/run/a.sock"), Some(Web::Off));
    }
}
