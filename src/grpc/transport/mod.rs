//! Connections: accepting them, TLS, and the pace at which messages must arrive.

pub(in crate::grpc) mod accept;
pub(in crate::grpc) mod inflate;
pub(in crate::grpc) mod receive;
pub(in crate::grpc) mod tls;
