//! Connections: accepting them, TLS, and the pace at which messages must arrive.

pub(in crate::grpc) mod accept;
mod connection;
pub(in crate::grpc) mod foreign;
pub(in crate::grpc) mod inflate;
pub(in crate::grpc) mod receive;
pub(in crate::grpc) mod table;
pub(in crate::grpc) mod tls;
