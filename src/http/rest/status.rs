//! Errors over HTTP: the status that a gRPC status stands for, and its body.

use std::time::Duration;

use axum::{
    http::{
        HeaderValue, StatusCode,
        header::{CONTENT_TYPE, RETRY_AFTER, WWW_AUTHENTICATE},
    },
    response::{IntoResponse, Response},
};
use serde_json::json;
use tonic::{Code, Status};
use tonic_types::StatusExt;

use crate::proto::code_name;

/// In whose words an error is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Style {
    /// `{"code": 5, "status": "NOT_FOUND", "message": "…"}`
    Contract,
    /// The Open Inference Protocol's: `{"error": "…"}`
    Protocol,
}

/// A request that is refused before it becomes a call.
pub(super) struct Refusal {
    pub http: StatusCode,
    pub code: Code,
    pub message: String,
}

impl Refusal {
    pub fn invalid(message: impl Into<String>) -> Self {
        Self {
            http: StatusCode::BAD_REQUEST,
            code: Code::InvalidArgument,
            message: message.into(),
        }
    }

    pub fn unsupported_type(message: impl Into<String>) -> Self {
        Self {
            http: StatusCode::UNSUPPORTED_MEDIA_TYPE,
            ..Self::invalid(message)
        }
    }

    pub fn into_response(self, style: Style) -> Response {
        respond(style, self.http, self.code, &self.message, None)
    }
}

/// The answer to a call that failed.
pub(super) fn failed(style: Style, status: &Status) -> Response {
    let delay = status
        .get_details_retry_info()
        .and_then(|info| info.retry_delay);
    let code = status.code();
    respond(style, http_status(code), code, status.message(), delay)
}

fn respond(
    style: Style,
    http: StatusCode,
    code: Code,
    message: &str,
    delay: Option<Duration>,
) -> Response {
    let body = match style {
        Style::Protocol => json!({ "error": message }),
        Style::Contract => {
            let mut body = json!({
                "code": code as i32,
                "status": code_name(code),
                "message": message,
            });
            if let Some(delay) = delay {
                body["retry_delay"] = format!("{}s", delay.as_secs_f64()).into();
            }
            body
        }
    };
    let mut response = (
        http,
        [(CONTENT_TYPE, "application/json")],
        format!("{body}\n"),
    )
        .into_response();
    let headers = response.headers_mut();
    if let Some(delay) = delay {
        // HTTP knows whole seconds only.
        headers.insert(
            RETRY_AFTER,
            (delay.as_millis().div_ceil(1000) as u64).into(),
        );
    }
    if http == StatusCode::UNAUTHORIZED {
        headers.insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
    }
    response
}

/// The HTTP status of a code, as `google.rpc.Code` maps them; `OUT_OF_RANGE` is this server's code
/// for too large a message.
fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        // 499: the client closed its request.
        Code::Cancelled => StatusCode::from_u16(499).expect("499 is a status"),
        Code::InvalidArgument | Code::FailedPrecondition => StatusCode::BAD_REQUEST,
        Code::OutOfRange => StatusCode::PAYLOAD_TOO_LARGE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::Unknown | Code::Internal | Code::DataLoss => StatusCode::INTERNAL_SERVER_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use tonic_types::{ErrorDetails, StatusExt};

    use super::*;

    #[test]
    fn a_full_queue_says_when_to_retry() {
        let delay = Duration::from_millis(1250);
        let details = ErrorDetails::with_retry_info(Some(delay));
        let status = Status::with_error_details(Code::ResourceExhausted, "full", details);
        let response = failed(Style::Contract, &status);
        assert_eq!(response.status(), StatusCode::TOO_MANY_REQUESTS);
        assert_eq!(response.headers()[RETRY_AFTER], "2");
        let response = failed(Style::Protocol, &Status::not_found("none"));
        assert_eq!(response.status(), StatusCode::NOT_FOUND);
        assert!(!response.headers().contains_key(RETRY_AFTER));
    }
}
