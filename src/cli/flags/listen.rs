//! Flags of `serve` for its ports: addresses, limits and deadlines.

use std::{
    io, net::SocketAddr, num::NonZeroUsize, path::PathBuf, str::FromStr, sync::Arc, time::Duration,
};

use clap::Args;
use tokio::net::TcpListener;

#[cfg(unix)]
use super::socket;
use super::{HttpFlags, SecurityFlags};
use crate::{
    cli::{CliError, open_files, values},
    grpc::{Deadlines, GrpcConfig, Listener},
    http::HttpConfig,
    memory_limit::memory_limit,
    server::Listeners,
};

/// The least memory for callers, in largest messages: one caller's part, a quarter, has room for a
/// message and its decompression.
const MIN_MEMORY_MESSAGES: u64 = 8;
const MAX_MEMORY_MIB: u64 = 1 << 24;

#[derive(Debug, Args)]
#[command(next_help_heading = "Network")]
pub struct NetworkFlags {
    /// The address of the gRPC port: HOST:PORT, or unix:PATH for a Unix domain socket.
    #[arg(
        long,
        env = "RESNET18_GRPC",
        value_name = "ADDRESS",
        default_value = "127.0.0.1:8001"
    )]
    grpc: GrpcAddress,
    /// The permissions of the Unix domain socket, in octal, as for chmod [default: those that the
    /// umask allows].
    #[arg(long, env = "RESNET18_GRPC_SOCKET_MODE", value_name = "MODE",
          value_parser = values::file_mode)]
    grpc_socket_mode: Option<u32>,
    #[command(flatten)]
    http: HttpFlags,
    /// Maximum size of a message, in MiB.
    #[arg(long, env = "RESNET18_MAX_MESSAGE_MIB", value_name = "MIB", default_value = "16",
          value_parser = clap::value_parser!(u32).range(1..=1024))]
    max_message_mib: u32,
    /// Maximum number of open streams.
    #[arg(
        long,
        env = "RESNET18_MAX_STREAMS",
        value_name = "N",
        default_value = "256"
    )]
    max_streams: NonZeroUsize,
    /// Maximum memory of all that is held for callers, in MiB: half of it for messages, of which
    /// one caller may have half, and half for decoding images. At least 8 times --max-message-mib
    /// [default: half of the memory that the process may use, by its container or the machine].
    #[arg(long, env = "RESNET18_MAX_MEMORY", value_name = "MIB",
          value_parser = clap::value_parser!(u64).range(1..=MAX_MEMORY_MIB))]
    max_memory: Option<u64>,
    /// Maximum number of calls in progress.
    #[arg(
        long,
        env = "RESNET18_MAX_CALLS",
        value_name = "N",
        default_value = "1024"
    )]
    max_calls: NonZeroUsize,
    /// Maximum number of open connections. A further one replaces the one that is idle longest; if
    /// none is idle, it waits.
    #[arg(
        long,
        env = "RESNET18_MAX_CONNECTIONS",
        value_name = "N",
        default_value = "1024"
    )]
    max_connections: NonZeroUsize,
    /// How much of the calls, streams, health watches and connections one client may hold, in
    /// percent of those that others leave; at least one. A client is a token's name, or else an
    /// address. 100 = everything.
    #[arg(long, env = "RESNET18_MAX_PER_CLIENT", value_name = "PERCENT", default_value = "75",
          value_parser = clap::value_parser!(u8).range(1..=100))]
    max_per_client: u8,
    /// Close connections that have had no call in progress for this long; clients reconnect by
    /// themselves. 0 = never.
    #[arg(long, env = "RESNET18_IDLE_TIMEOUT", value_name = "DURATION", default_value = "5m",
          value_parser = values::duration)]
    idle_timeout: Duration,
    /// Ask clients to reconnect when their connection is this old, so that load balancers
    /// distribute connections anew [default: never].
    #[arg(long, env = "RESNET18_MAX_CONNECTION_AGE", value_name = "DURATION",
          value_parser = values::positive_duration)]
    max_connection_age: Option<Duration>,
    /// How long calls may continue after their connection has reached its maximum age.
    #[arg(long, env = "RESNET18_CONNECTION_GRACE", value_name = "DURATION", default_value = "30s",
          value_parser = values::duration)]
    connection_grace: Duration,
    /// The deadline of unary requests that do not have one [default: none].
    #[arg(long, env = "RESNET18_DEFAULT_DEADLINE", value_name = "DURATION",
          value_parser = values::positive_duration)]
    default_deadline: Option<Duration>,
    /// Maximum deadline of a unary request; longer ones are shortened [default: unlimited].
    #[arg(long, env = "RESNET18_MAX_DEADLINE", value_name = "DURATION",
          value_parser = values::positive_duration)]
    max_deadline: Option<Duration>,
    /// How long a message may take to arrive; streams may be idle between messages.
    #[arg(long, env = "RESNET18_RECEIVE_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::positive_duration)]
    receive_timeout: Duration,
    /// How long requests are still accepted at shutdown, after health and readiness checks have
    /// begun to fail, so that load balancers notice.
    #[arg(long, env = "RESNET18_DRAIN_DELAY", value_name = "DURATION", default_value = "0s",
          value_parser = values::duration)]
    pub drain_delay: Duration,
    /// How long accepted requests may take to finish at shutdown.
    #[arg(long, env = "RESNET18_DRAIN_TIMEOUT", value_name = "DURATION", default_value = "30s",
          value_parser = values::duration)]
    pub drain_timeout: Duration,
}

/// The bound addresses.
pub struct Bound {
    pub listeners: Listeners,
    /// To be removed at the end.
    pub socket: SocketFile,
}

/// The file of the gRPC port, if that is a Unix domain socket.
#[derive(Clone, Default)]
pub struct SocketFile(#[cfg(unix)] Option<socket::BoundFile>);

impl SocketFile {
    /// Removes the file, if there is one and it is still that of this process.
    pub fn remove(&self) {
        #[cfg(unix)]
        if let Some(file) = &self.0 {
            file.remove();
        }
    }
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

    /// Whether other machines may reach this address.
    fn is_exposed(&self) -> bool {
        match self {
            Self::Tcp(address) => !address.ip().is_loopback(),
            #[cfg(unix)]
            Self::Unix(_) => false,
        }
    }
}

impl FromStr for GrpcAddress {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        #[cfg(unix)]
        if let Some(path) = text.strip_prefix("unix:") {
            let path = path.strip_prefix("//").unwrap_or(path);
            if path.is_empty() {
                return Err("a path is missing, as in unix:/run/resnet18.sock".into());
            }
            return Ok(Self::Unix(path.into()));
        }
        values::listen_address(text).map(Self::Tcp)
    }
}

impl NetworkFlags {
    /// The configuration of the gRPC port.
    ///
    /// # Errors
    /// If the certificates or tokens, which are read here, cannot be used.
    pub fn config(&self, security: &SecurityFlags) -> Result<GrpcConfig, CliError> {
        Ok(GrpcConfig {
            max_message_bytes: self.max_message_mib as usize * 1024 * 1024,
            max_memory: self.max_memory()? / 2,
            max_streams: self.max_streams.get(),
            max_calls: self.max_calls.get(),
            max_connections: open_files::allow_connections(self.max_connections.get()),
            max_per_client: self.max_per_client,
            idle_timeout: Some(self.idle_timeout).filter(|timeout| !timeout.is_zero()),
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

    /// The memory of all that is held for callers, in bytes.
    ///
    /// # Errors
    /// If it has no room for the largest messages.
    pub fn max_memory(&self) -> Result<u64, CliError> {
        let least = u64::from(self.max_message_mib) * MIN_MEMORY_MESSAGES;
        match self.max_memory {
            Some(mib) if mib < least => Err(CliError::Usage(format!(
                "--max-memory {mib} is too little for messages of {} MiB (--max-message-mib): it \
                 must be at least {least}",
                self.max_message_mib
            ))),
            Some(mib) => Ok(mib << 20),
            None => Ok((memory_limit() / 2).max(least << 20)),
        }
    }

    /// What the HTTP port serves, and to whom.
    ///
    /// # Errors
    /// If the flags contradict each other.
    pub fn http(&self, security: &SecurityFlags) -> Result<HttpConfig, CliError> {
        self.http.config(security, self.grpc.is_tcp())
    }

    /// Binds the addresses.
    ///
    /// # Errors
    /// If an address cannot be used.
    pub async fn listen(&self) -> Result<Bound, CliError> {
        let mut socket = SocketFile::default();
        let grpc = match &self.grpc {
            GrpcAddress::Tcp(_) if self.grpc_socket_mode.is_some() => {
                return Err(CliError::Usage(
                    "--grpc-socket-mode is for --grpc unix:PATH".into(),
                ));
            }
            GrpcAddress::Tcp(address) => Listener::Tcp(bind_tcp(*address, "grpc").await?),
            #[cfg(unix)]
            GrpcAddress::Unix(path) => {
                let (listener, file) = socket::bind(path, self.grpc_socket_mode)?;
                socket = SocketFile(Some(file));
                Listener::Unix(listener)
            }
        };
        Ok(Bound {
            listeners: Listeners {
                grpc,
                http: bind_tcp(self.http.address, "http").await?,
            },
            socket,
        })
    }

    /// Logs a warning for each port that other machines can reach without protection.
    pub fn warn_if_exposed(&self, security: &SecurityFlags) {
        if self.grpc.is_exposed() {
            self.warn_about_grpc(security);
        }
        self.http.warn_if_exposed(security);
    }

    fn warn_about_grpc(&self, security: &SecurityFlags) {
        match (security.has_tls(), security.requires_token()) {
            (false, false) => tracing::warn!(
                "anyone who can reach the gRPC port can use the server: there is no TLS \
                 (--tls-cert) and no token (--tokens)"
            ),
            (false, true) => {
                tracing::warn!("tokens travel in plain text: there is no TLS (--tls-cert)");
            }
            (true, false) if !security.requires_client_certificate() => tracing::warn!(
                "anyone who can reach the gRPC port can use the server: there is no token \
                 (--tokens) or client certificate (--tls-client-ca)"
            ),
            (true, _) => {}
        }
    }
}

/// `flag` is the name of the flag that gave the address.
async fn bind_tcp(address: SocketAddr, flag: &str) -> Result<TcpListener, CliError> {
    TcpListener::bind(address).await.map_err(|error| {
        let advice = match error.kind() {
            io::ErrorKind::AddrInUse => "another program uses it",
            io::ErrorKind::PermissionDenied => "permission denied",
            io::ErrorKind::AddrNotAvailable => "this machine does not have that address",
            _ => "it failed",
        };
        CliError::Failed(format!(
            "can't listen on {address}: {advice} ({error}); choose another address with --{flag}"
        ))
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    #[cfg(unix)]
    #[test]
    fn grpc_is_served_on_an_address_or_a_socket() {
        match "localhost:0".parse() {
            Ok(GrpcAddress::Tcp(address)) => assert!(address.ip().is_loopback()),
            other => panic!("{other:?}"),
        }
        for text in ["unix:/run/a.sock", "unix:///run/a.sock"] {
            match text.parse() {
                Ok(GrpcAddress::Unix(path)) => assert_eq!(path, Path::new("/run/a.sock")),
                other => panic!("{text}: {other:?}"),
            }
        }
        assert!("unix:".parse::<GrpcAddress>().unwrap_err().contains("path"));
        assert!("8001".parse::<GrpcAddress>().unwrap_err().contains("port"));
    }
}
