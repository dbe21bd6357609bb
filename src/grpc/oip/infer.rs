//! One request for inference: into the queue, and its answer.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::timeout_at};

use super::{
    Form,
    answers::Outputs,
    names, parameters,
    tensors::{self, Expected},
};
use crate::{
    grpc::{
        arrival::Arrived,
        context::{Call, Context},
        status::CallError,
    },
    image::Source,
    inference::{ModelInferRequest, ModelInferResponse},
    metrics::RequestGuard,
    registry::Served,
    scheduler::{Arrival, Job, JobError, Outcome, Priority, Reply},
};

/// A request whose images are in the queue. Dropping it withdraws them.
pub(super) struct Submitted {
    measured: Measured,
    outputs: Outputs,
    images: Vec<oneshot::Receiver<Outcome>>,
    deadline: Option<Instant>,
    id: String,
}

/// Reads a request and puts its images into the queue; `counts` as in [`Job`].
pub(super) fn submit(
    context: &Context,
    request: ModelInferRequest,
    call: Call,
    counts: bool,
    guard: &mut RequestGuard,
) -> Result<Submitted, CallError> {
    let (served, form) = names::find(context, &request.model_name, &request.model_version, guard)?;
    let Arrived { at, deadline, priority } = call.arrived;
    let measured = Measured { served: Arc::clone(&served), form, arrived: at, answered: false };
    let timeout = parameters::integer(&request.parameters, "timeout", 0)?.filter(|micros| *micros > 0);
    let priority = match parameters::integer(&request.parameters, "priority", 0)? {
        Some(number) => Priority::from_number(number),
        None => priority,
    };
    let own = timeout.and_then(|micros| at.checked_add(Duration::from_micros(micros)));
    let deadline = [deadline, own].into_iter().flatten().min();
    let outputs = Outputs::requested(&request.outputs)?;
    let id = request.id.clone();
    let expected = Expected { form, geometry: served.geometry, normalization: served.normalization };
    let images = tensors::images(request, &expected)?;
    served.metrics.received(images.iter().map(Source::bytes).sum());
    let jobs = images.into_iter().map(|image| {
        let fetch = Box::new(move || Some(Arrival { image, at, mirrored: false }));
        Job { client: call.client, priority, deadline, counts, fetch }
    });
    let images = served.queue.submit_all(jobs)?;
    Ok(Submitted { measured, outputs, images, deadline, id })
}

impl Submitted {
    /// The version of the model that answers.
    pub fn served(&self) -> &Arc<Served> {
        &self.measured.served
    }

    /// Waits for the images. One that fails fails the request, and those that still wait are withdrawn.
    pub async fn answer(self) -> Result<ModelInferResponse, CallError> {
        let Self { mut measured, outputs, images, deadline, id } = self;
        let replies = match deadline {
            None => replies(images).await?,
            Some(deadline) => timeout_at(deadline.into(), replies(images)).await.unwrap_or(Err(CallError::TimeIsUp))?,
        };
        let ready = Instant::now();
        let (outputs, raw_output_contents) = outputs.tensors(&replies, &measured.served.labels);
        measured.succeed(&replies, ready.elapsed());
        Ok(ModelInferResponse {
            model_name: measured.form.name(&measured.served.name),
            model_version: measured.served.version.clone(),
            id,
            outputs,
            raw_output_contents,
            ..Default::default()
        })
    }
}

async fn replies(images: Vec<oneshot::Receiver<Outcome>>) -> Result<Vec<Reply>, CallError> {
    let of = images.len();
    let mut replies = Vec::with_capacity(of);
    for (i, outcome) in images.into_iter().enumerate() {
        // A sender that is dropped without an answer belongs to a scheduler that has stopped.
        match outcome.await.unwrap_or(Err(JobError::Abandoned)) {
            Ok(reply) => replies.push(reply),
            Err(JobError::Image(error)) if of > 1 => return Err(CallError::OneOf { image: i + 1, of, error }),
            Err(error) => return Err(error.into()),
        }
    }
    Ok(replies)
}

/// A request that counts as failed unless it succeeds.
struct Measured {
    served: Arc<Served>,
    form: Form,
    arrived: Instant,
    answered: bool,
}

impl Measured {
    fn succeed(&mut self, replies: &[Reply], output: Duration) {
        self.answered = true;
        let stages: Vec<_> = replies.iter().map(|reply| reply.stages).collect();
        self.form.statistics(&self.served.metrics).succeeded(self.arrived.elapsed(), &stages, output);
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if !self.answered {
            self.form.statistics(&self.served.metrics).failed(self.arrived.elapsed());
        }
    }
}
