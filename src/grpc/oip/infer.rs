//! One inference request: putting its images into the queue, and making its answer.

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{sync::oneshot, time::timeout_at};

use super::{
    Form,
    answers::{Outputs, Shown},
    metadata::MODEL_HASH,
    names,
    options::{self, Filter, Regions},
    parameters,
    tensors::{self, Expected, TensorError},
    versions,
};
use crate::{
    budget::Reservation,
    grpc::{
        call::{Call, context::Context, status::CallError, timing::CallTiming},
        classifier::{EmbeddingForm, gives_embeddings},
    },
    image::{Region, Source},
    inference::{
        InferParameter, ModelInferRequest, ModelInferResponse, infer_parameter::ParameterChoice,
    },
    registry::Served,
    scheduler::{InputImage, Job, JobError, Outcome, Priority, Reply},
    telemetry::context::SpanContext,
};

/// How a request's images enter the queue.
#[derive(Clone, Copy)]
pub(super) struct RequestContext {
    pub timing: CallTiming,
    /// The span that the images belong to.
    pub span: SpanContext,
}

/// A request that has been answered.
pub(super) struct Answered {
    pub response: ModelInferResponse,
    /// The reply to its last image.
    pub reply: Reply,
}

/// A request whose images are in the queue. Dropping it withdraws them.
pub(super) struct Submitted {
    measured: Measured,
    outputs: Outputs,
    filter: Filter,
    embedding: EmbeddingForm,
    /// How many regions each image has, if they have some.
    each: Option<usize>,
    images: Vec<oneshot::Receiver<Outcome>>,
    deadline: Option<Instant>,
    id: String,
    /// The memory of the regions' crops.
    _crops: Option<Reservation>,
}

/// Reads a request and puts its images into the queue.
pub(super) fn submit(
    context: &Context,
    mut request: ModelInferRequest,
    call: &Call,
    how: RequestContext,
) -> Result<Submitted, CallError> {
    let (served, form) = names::find(
        context,
        &request.model_name,
        &request.model_version,
        &call.record,
    )?;
    let RequestContext { timing, span } = how;
    let measured = Measured {
        served: Arc::clone(&served),
        form,
        arrived: timing.arrived,
        answered: false,
    };

    let id = request.id.clone();
    let (deadline, priority) = deadline_and_priority(&request, &timing)?;
    let outputs = Outputs::requested(&request.outputs)?;
    if outputs.want_embedding() {
        gives_embeddings(&served)?;
    }
    let embedding = options::embedding(&request.parameters)?;
    let filter = Filter::of(&request.parameters, &served)?;
    if !filter.is_none() && !outputs.want_classes() {
        return Err(TensorError::FilterOfTensors.into());
    }

    let regions = Regions::take(&mut request)?;
    let each = regions.as_ref().map(|regions| regions.each);
    let expected = Expected {
        form,
        geometry: served.geometry,
        normalization: served.normalization,
    };
    let images = tensors::images(request, &expected)?;
    let regions = regions_of_images(regions, images.len())?;

    let crops = each.map_or(0, |each| each * images.len());
    let crops = call.memory.crops(crops, served.geometry.bytes())?;
    let bytes = images.iter().map(Source::bytes).sum();
    served.metrics.received(bytes);
    call.record.received(bytes);

    let wants_embedding = outputs.want_embedding();
    let jobs = images.into_iter().zip(regions).map(|(source, regions)| {
        let decode_estimate = Some(served.queue.estimate(&source, &regions));
        let image = InputImage {
            source,
            regions,
            arrived: timing.arrived,
            mirrored: false,
        };
        Job {
            client: call.client,
            priority,
            called: timing.arrived,
            deadline,
            counted: true,
            decode_estimate,
            crops: each.unwrap_or(1),
            wants_embedding,
            fetch: Box::new(move || Some(image)),
            span: Some(span),
            kind: form.kind(),
        }
    });
    let images = served.queue.submit_all(jobs)?;
    Ok(Submitted {
        measured,
        outputs,
        filter,
        embedding,
        each,
        images,
        deadline,
        id,
        _crops: crops,
    })
}

/// The deadline and the priority of a request, which its parameters `timeout` (in microseconds) and
/// `priority` may set.
fn deadline_and_priority(
    request: &ModelInferRequest,
    timing: &CallTiming,
) -> Result<(Option<Instant>, Priority), CallError> {
    let timeout = parameters::integer(&request.parameters, "timeout", 0)?;
    let own_deadline = timeout
        .filter(|micros| *micros > 0)
        .and_then(|micros| timing.arrived.checked_add(Duration::from_micros(micros)));
    let deadline = [timing.deadline, own_deadline].into_iter().flatten().min();

    let priority = match parameters::integer(&request.parameters, "priority", 0)? {
        Some(number) => Priority::from_number(number),
        None => timing.priority,
    };
    Ok((deadline, priority))
}

/// The regions of each of so many images; none if the request has no regions.
fn regions_of_images(
    regions: Option<Regions>,
    images: usize,
) -> Result<Vec<Arc<[Region]>>, TensorError> {
    match regions {
        None => Ok(vec![[].into(); images]),
        Some(Regions { of_images, .. }) if of_images.len() == images => Ok(of_images),
        Some(Regions { of_images, .. }) => Err(TensorError::RegionsOfOthers {
            images,
            regions: of_images.len(),
        }),
    }
}

impl Submitted {
    /// The version of the model that answers.
    pub fn served(&self) -> &Arc<Served> {
        &self.measured.served
    }

    /// Waits for the images. If one fails, the request fails, and the images that still wait are
    /// withdrawn.
    pub async fn answer(self) -> Result<Answered, CallError> {
        let Self {
            mut measured,
            outputs,
            filter,
            embedding,
            each,
            images,
            deadline,
            id,
            _crops,
        } = self;
        let mut replies = match deadline {
            None => replies(images).await?,
            Some(deadline) => timeout_at(deadline.into(), replies(images))
                .await
                .unwrap_or(Err(CallError::Timeout))?,
        };
        let ready = Instant::now();
        let served = &measured.served;
        let shown = Shown {
            labels: &served.labels,
            unknown_class: served.unknown_class,
            activation: served.activation,
            filter: &filter,
            embedding,
            each,
        };
        let (outputs, raw_output_contents) = outputs.tensors(&replies, &shown);
        measured.succeed(&replies, ready.elapsed());
        let hash = InferParameter {
            parameter_choice: Some(ParameterChoice::StringParam(
                measured.served.version.clone(),
            )),
        };
        let response = ModelInferResponse {
            model_name: measured.form.name(&measured.served.name),
            model_version: versions::number(&measured.served.version),
            id,
            parameters: HashMap::from([(MODEL_HASH.into(), hash)]),
            outputs,
            raw_output_contents,
        };
        Ok(Answered {
            response,
            reply: replies.pop().expect("a request has an image at least"),
        })
    }
}

async fn replies(images: Vec<oneshot::Receiver<Outcome>>) -> Result<Vec<Reply>, CallError> {
    let of = images.len();
    let mut replies = Vec::with_capacity(of);
    for (i, outcome) in images.into_iter().enumerate() {
        // A scheduler that stops drops the sender.
        match outcome.await.unwrap_or(Err(JobError::Abandoned)) {
            Ok(reply) => replies.push(reply),
            Err(JobError::Image(error)) if of > 1 => {
                return Err(CallError::ImageInRequest {
                    image: i + 1,
                    of,
                    error,
                });
            }
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
        self.form.statistics(&self.served.metrics).succeeded(
            self.arrived.elapsed(),
            &stages,
            output,
        );
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        if !self.answered {
            self.form
                .statistics(&self.served.metrics)
                .failed(self.arrived.elapsed());
        }
    }
}
