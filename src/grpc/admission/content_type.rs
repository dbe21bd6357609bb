//! The content type of a call: what is not gRPC is refused as HTTP, before anything else is read.

use http::{HeaderMap, Response, StatusCode, header::CONTENT_TYPE};
use tonic::body::Body;

/// Whether the request is a call whose messages are protobuf: `application/grpc`, perhaps with
/// `+proto` or parameters.
pub(super) fn is_grpc(headers: &HeaderMap) -> bool {
    let Some(kind) = headers.get(CONTENT_TYPE) else {
        return false;
    };
    let kind = kind.as_bytes();
    let name = kind.split(|byte| *byte == b';').next().unwrap_or_default();
    let name = name.trim_ascii_end();
    [&b"application/grpc"[..], b"application/grpc+proto"]
        .iter()
        .any(|known| name.eq_ignore_ascii_case(known))
}

/// The answer to any other request (gRPC over HTTP/2, "Requests").
pub(super) fn unsupported() -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::UNSUPPORTED_MEDIA_TYPE;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_recognized_by_their_content_type() {
        let check = |kind: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(CONTENT_TYPE, kind.parse().unwrap());
            is_grpc(&headers)
        };
        for kind in [
            "application/grpc",
            "application/grpc+proto",
            "Application/gRPC",
            "application/grpc; charset=utf-8",
        ] {
            assert!(check(kind), "{kind}");
        }
        for kind in [
            "",
            "application/grpc-web",
            "application/grpc-web+proto",
            "application/grpc+json",
            "application/grpcurl",
            "application/json",
            "text/plain",
        ] {
            assert!(!check(kind), "{kind}");
        }
        assert!(!is_grpc(&HeaderMap::new()));
    }
}
