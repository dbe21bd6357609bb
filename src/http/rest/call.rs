//! A request over HTTP as the gRPC call that it stands for.

use std::{convert::Infallible, sync::Arc, time::Duration};

use axum::{
    body::Body as HttpBody,
    http::{
        HeaderMap, HeaderValue, StatusCode,
        header::{
            ACCEPT, ACCEPT_ENCODING, CONNECTION, CONTENT_ENCODING, CONTENT_LENGTH, CONTENT_TYPE,
            EXPECT, TE, TRANSFER_ENCODING,
        },
        request::Parts,
    },
    response::{IntoResponse, Response},
};
use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use tokio::{sync::oneshot, task::spawn_blocking, time::timeout};
use tonic::{Status, body::Body};
use tower::{ServiceExt, util::BoxCloneSyncService};

use super::{
    schema::Method,
    status::{Refusal, Style, failed},
};
use crate::{
    grpc::{BodyForm, Encoding, ForeignBody},
    http::slow::Stalled,
};

/// Answers of more bytes become JSON on a thread of their own.
const LONG_ANSWER: usize = 64 << 10;
/// How long the rest of a refused request is read: a caller that still sends would otherwise see
/// its connection break instead of the answer.
const DISCARD: Duration = Duration::from_millis(500);
/// The most of it that is read, in bytes.
const MAX_DISCARD: usize = 64 << 20;
/// How long gRPC's prefix of a message is, in bytes.
const PREFIX: usize = 5;

/// What a request stands for.
pub(super) enum Input {
    /// This message; the request's body is not read.
    Message(Vec<u8>),
    /// The message that its body becomes.
    Body(BodyForm),
}

/// Makes calls.
#[derive(Clone)]
pub(super) struct Calls(
    pub BoxCloneSyncService<http::Request<Body>, http::Response<Body>, Infallible>,
);

impl Calls {
    /// Calls a method and returns its answer as JSON.
    pub async fn json(
        &self,
        method: &Arc<Method>,
        style: Style,
        (head, body): (Parts, HttpBody),
        input: Input,
    ) -> Response {
        let method = Arc::clone(method);
        let convert = {
            let method = Arc::clone(&method);
            move |message| {
                let json = method.answer(message).map_err(Status::internal)?;
                Ok(json_response(StatusCode::OK, json))
            }
        };
        self.call(&method.path, style, (head, body), input, convert)
            .await
    }

    /// Calls a method and returns its answer as `convert` makes it of the message.
    pub async fn call(
        &self,
        path: &str,
        style: Style,
        (head, body): (Parts, HttpBody),
        input: Input,
        convert: impl FnOnce(Bytes) -> Result<Response, Status> + Send + 'static,
    ) -> Response {
        let (body, mut unread) = Returned::new(body);
        let request = match request(path, head, body, input) {
            Ok(request) => request,
            Err(refusal) => {
                discard(unread.await.ok());
                return refusal.into_response(style);
            }
        };
        let answered = match self.0.clone().oneshot(request).await {
            Ok(response) => message(response).await,
            Err(never) => match never {},
        };
        let response = match answered {
            Ok(message) if message.len() > LONG_ANSWER => {
                let converted = spawn_blocking(move || convert(message)).await;
                converted.unwrap_or_else(|_| Err(Status::internal("the answer can't be written")))
            }
            Ok(message) => convert(message),
            Err(status) => Err(status),
        };
        response.unwrap_or_else(|status| {
            discard(unread.try_recv().ok());
            failed(style, &status)
        })
    }
}

pub(super) fn json_response(status: StatusCode, mut json: Vec<u8>) -> Response {
    json.push(b'\n');
    (status, [(CONTENT_TYPE, "application/json")], json).into_response()
}

/// The request of a call: its headers, but for those of the body and the connection, and its
/// message.
fn request(
    path: &str,
    head: Parts,
    body: Returned,
    input: Input,
) -> Result<http::Request<Body>, Refusal> {
    let encoding = encoding(&head.headers)?;
    let length = body.size_hint().exact();
    let mut request = http::Request::new(Body::empty());
    *request.uri_mut() = path.parse().expect("the paths of methods are URIs");
    *request.method_mut() = http::Method::POST;
    *request.extensions_mut() = head.extensions;
    *request.headers_mut() = head.headers;
    let headers = request.headers_mut();
    for name in [
        ACCEPT,
        ACCEPT_ENCODING,
        CONNECTION,
        CONTENT_ENCODING,
        CONTENT_LENGTH,
        EXPECT,
        TE,
        TRANSFER_ENCODING,
    ] {
        headers.remove(name);
    }
    for name in ["grpc-encoding", "grpc-accept-encoding"] {
        headers.remove(name);
    }
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("application/grpc"));

    match input {
        Input::Message(message) => {
            let length = u32::try_from(message.len()).unwrap_or(u32::MAX);
            let framed = [&[0], &length.to_be_bytes()[..], &message].concat();
            *request.body_mut() = Body::new(http_body_util::Full::new(Bytes::from(framed)));
        }
        Input::Body(form) => {
            request.extensions_mut().insert(ForeignBody {
                encoding,
                length: length.and_then(|length| usize::try_from(length).ok()),
                form,
            });
            *request.body_mut() = Body::new(body);
        }
    }
    Ok(request)
}

/// How a request's body is compressed.
fn encoding(headers: &HeaderMap) -> Result<Option<Encoding>, Refusal> {
    let Some(name) = headers.get(CONTENT_ENCODING) else {
        return Ok(None);
    };
    Encoding::named(name.as_bytes()).ok_or_else(|| {
        Refusal::unsupported_type(format!(
            "the content encoding \"{}\" is unknown; this server decompresses gzip, deflate and zstd",
            name.as_bytes().escape_ascii()
        ))
    })
}

/// The message of an answer, or the status of a call that failed.
async fn message(response: http::Response<Body>) -> Result<Bytes, Status> {
    let (head, body) = response.into_parts();
    let error = |headers: &HeaderMap| {
        Status::from_header_map(headers).filter(|status| status.code() != tonic::Code::Ok)
    };
    if let Some(status) = error(&head.headers) {
        return Err(status);
    }
    let body = body.collect().await?;
    if let Some(status) = body.trailers().and_then(error) {
        return Err(status);
    }
    let mut message = body.to_bytes();
    if message.len() < PREFIX {
        return Err(Status::internal("the call has no answer"));
    }
    Ok(message.split_off(PREFIX))
}

/// A request's body, which is given back by whom it was given to, if it was not read to its end.
struct Returned {
    body: Option<HttpBody>,
    back: Option<oneshot::Sender<HttpBody>>,
}

impl Returned {
    fn new(body: HttpBody) -> (Self, oneshot::Receiver<HttpBody>) {
        let (back, unread) = oneshot::channel();
        let body = Self {
            body: Some(body),
            back: Some(back),
        };
        (body, unread)
    }
}

impl Drop for Returned {
    fn drop(&mut self) {
        if let (Some(body), Some(back)) = (self.body.take(), self.back.take())
            && !body.is_end_stream()
        {
            // Where nobody waits for it, it is dropped here.
            let _ = back.send(body);
        }
    }
}

impl http_body::Body for Returned {
    type Data = Bytes;
    type Error = Status;

    fn poll_frame(
        mut self: std::pin::Pin<&mut Self>,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<Result<Frame<Bytes>, Status>>> {
        use std::{pin::Pin, task::ready};

        let Some(body) = &mut self.body else {
            return None.into();
        };
        let frame = ready!(Pin::new(body).poll_frame(cx));
        if !matches!(frame, Some(Ok(_))) {
            self.body = None;
        }
        frame
            .map(|frame| {
                frame.map_err(|error| match Stalled::of(&error) {
                    Some(stalled) => Status::deadline_exceeded(stalled.to_string()),
                    // With its source, which says that the caller is gone.
                    None => Status::from_error(Box::new(error)),
                })
            })
            .into()
    }

    fn is_end_stream(&self) -> bool {
        self.body.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.body
            .as_ref()
            .map_or_else(SizeHint::default, |body| body.size_hint())
    }
}

/// Reads what is left of a body for a while, beside the answer.
pub(super) fn discard(body: Option<HttpBody>) {
    if let Some(mut body) = body {
        tokio::spawn(timeout(DISCARD, async move {
            let mut left = MAX_DISCARD;
            while left > 0
                && let Some(Ok(frame)) = body.frame().await
            {
                left = left.saturating_sub(frame.data_ref().map_or(0, Bytes::len));
            }
        }));
    }
}
