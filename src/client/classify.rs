//! Single calls with a deadline: list the models, classify one image.

use std::time::Duration;

use tokio::time::{Instant, sleep};
use tonic::{Code, Request, Response, Status, TimeoutExpired};

use super::{Client, ClientError, error::explain_size, retry};
use crate::{
    address::ServerAddress,
    proto::{ClassifyRequest, ClassifyResponse, ListModelsRequest, Model},
};

/// A successful answer, possibly after retries.
#[derive(Clone, Debug)]
pub struct ClassifyAnswer {
    /// The classes, and how long the server took.
    pub response: ClassifyResponse,
    /// When the attempt that was answered was sent; `sent_at.elapsed()` is its round-trip time.
    pub sent_at: Instant,
}

/// Returns the server's model called `name`, or its default model if the name is empty.
///
/// `server` is the address that `client` is connected to; it appears in errors. While the server is
/// still starting, the call is repeated until `timeout` has passed.
///
/// # Errors
/// [`ClientError::UnknownModel`] when there is no such model, [`ClientError::Refused`] when the
/// call fails.
pub async fn find_model(
    client: &mut Client,
    server: &ServerAddress,
    name: &str,
    timeout: Duration,
) -> Result<Model, ClientError> {
    let models = list_models(client, server, timeout).await?;

    let names: Vec<&str> = models.iter().map(|model| model.name.as_str()).collect();
    let known = names.join(", ");
    models
        .into_iter()
        .find(|model| name.is_empty() || model.name == name)
        .ok_or_else(|| ClientError::UnknownModel {
            server: server.clone(),
            model: name.into(),
            known,
        })
}

/// Returns the server's models, the default one first.
///
/// `server` is the address that `client` is connected to; it appears in errors. While the server is
/// still starting, the call is repeated until `timeout` has passed.
///
/// # Errors
/// [`ClientError::Refused`] when the call fails.
pub async fn list_models(
    client: &mut Client,
    server: &ServerAddress,
    timeout: Duration,
) -> Result<Vec<Model>, ClientError> {
    let deadline = Instant::now() + timeout;
    list_until(client, deadline)
        .await
        .map_err(|status| ClientError::Refused {
            server: server.clone(),
            status: status.into(),
        })
}

async fn list_until(client: &mut Client, deadline: Instant) -> Result<Vec<Model>, Status> {
    let mut attempt = 0;
    loop {
        let mut request = Request::new(ListModelsRequest {});
        request.set_timeout(deadline.saturating_duration_since(Instant::now()));

        let status = match client.list_models(request).await {
            Ok(response) => return Ok(response.into_inner().models),
            Err(status) => normalize_timeout(status),
        };
        match retry::delay_before(&status, attempt, deadline) {
            Some(delay) => sleep(delay).await,
            None => return Err(status),
        }
        attempt += 1;
    }
}

/// Sends one request, once. The server learns the deadline and gives up when it has passed.
///
/// # Errors
/// The server's status; DEADLINE_EXCEEDED when `deadline` passes before an answer arrives.
///
/// ```no_run
/// use std::time::Duration;
///
/// use resnet18_server::{client, proto::{ClassifyRequest, Image}};
/// use tokio::time::Instant;
///
/// # async fn example() -> Result<(), Box<dyn std::error::Error>> {
/// let mut client = client::connect(&"http://127.0.0.1:8001".parse()?).await?;
/// let request = ClassifyRequest {
///     image: Some(Image::encoded(std::fs::read("cat.jpg")?)),
///     ..Default::default()
/// };
/// let deadline = Instant::now() + Duration::from_secs(1);
/// let answer = client::classify(&mut client, request, deadline).await?;
/// println!("{}", answer.classifications[0].label);
/// # Ok(())
/// # }
/// ```
pub async fn classify(
    client: &mut Client,
    request: ClassifyRequest,
    deadline: Instant,
) -> Result<ClassifyResponse, Status> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    if remaining.is_zero() {
        return Err(Status::deadline_exceeded(
            "the timeout passed before the request could be sent",
        ));
    }

    let mut request = Request::new(request);
    request.set_timeout(remaining);
    client
        .classify(request)
        .await
        .map(Response::into_inner)
        .map_err(|status| explain_size(normalize_timeout(status)))
}

/// Sends one request, and sends it again when the server rejects it only temporarily: after the
/// delay that the server asks for, up to [`retry::MAX_ATTEMPTS`] times, until `deadline`.
///
/// # Errors
/// The status of the last attempt, as [`classify`] returns it.
pub async fn classify_with_retries(
    client: &mut Client,
    request: ClassifyRequest,
    deadline: Instant,
) -> Result<ClassifyAnswer, Status> {
    let mut attempt = 0;
    loop {
        let sent_at = Instant::now();
        let status = match classify(client, request.clone(), deadline).await {
            Ok(response) => return Ok(ClassifyAnswer { response, sent_at }),
            Err(status) => status,
        };
        match retry::delay_before(&status, attempt, deadline) {
            Some(delay) => sleep(delay).await,
            None => return Err(status),
        }
        attempt += 1;
    }
}

/// Gives a status the code of its cause: tonic reports a deadline that it noticed itself as
/// CANCELLED.
pub fn normalize_timeout(status: Status) -> Status {
    if status.code() == Code::Cancelled && status.message() == TimeoutExpired(()).to_string() {
        return Status::deadline_exceeded("no answer within the timeout");
    }
    status
}

/// Converts a duration of the gRPC contract to milliseconds; an absent or negative one is 0.
pub fn milliseconds(duration: Option<&prost_types::Duration>) -> f64 {
    duration.map_or(0.0, |duration| {
        let ms = duration.seconds as f64 * 1e3 + f64::from(duration.nanos) / 1e6;
        ms.max(0.0)
    })
}
