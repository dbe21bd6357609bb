//! Connections: accepting them, TLS, authorities of Unix sockets that HTTP/2 does not allow, and the
//! pace at which messages must arrive.

pub(in crate::grpc) mod accept;
#[cfg(unix)]
mod authority;
mod connection;
pub(in crate::grpc) mod foreign;
pub(in crate::grpc) mod inflate;
pub(in crate::grpc) mod receive;
pub(in crate::grpc) mod table;
pub(in crate::grpc) mod tls;
