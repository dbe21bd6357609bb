//! Connections: accepting them, TLS, what is mended on Unix sockets, and the pace at which messages
//! must arrive.

pub(in crate::grpc) mod accept;
#[cfg(unix)]
mod authority;
mod connection;
pub(in crate::grpc) mod foreign;
pub(in crate::grpc) mod inflate;
pub(in crate::grpc) mod receive;
pub(in crate::grpc) mod table;
pub(in crate::grpc) mod tls;
