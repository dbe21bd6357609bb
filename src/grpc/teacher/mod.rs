//! The `Teacher` service: pictures in, a model out, served at once.

mod answers;
mod download;

use std::{future::Future, sync::Arc};

use futures_util::{StreamExt, stream::FuturesOrdered};
use tonic::{Request, Response, Status, Streaming};

use self::download::Chunks;
use super::{
    call::{
        Call,
        context::Context,
        status::{CallError, shorten},
    },
    stream::open,
};
use crate::{
    proto::{
        AddExamplesRequest, AddExamplesResponse, GetExampleRequest, GetModelRequest,
        ListDatasetsRequest, ListDatasetsResponse, RefusedExample, RemoveExamplesRequest,
        RemoveExamplesResponse, TrainRequest, TrainResponse, teacher_server::Teacher as Service,
    },
    state::{NotReady, StateCell},
    teaching::{Added, Download, Example, TeachError, Teacher, Wanted},
};

/// How many refused pictures are listed, and how many names of the others.
const MAX_LISTED: usize = 1000;

/// The service as tonic calls it; without a teacher its methods are not offered.
pub(in crate::grpc) struct TeacherService {
    pub context: Arc<Context>,
    pub teacher: Option<Arc<Teacher>>,
}

impl TeacherService {
    fn teacher(&self) -> Result<&Arc<Teacher>, CallError> {
        match self.context.state.get().admits() {
            // What is taught may become the first model.
            Ok(()) | Err(NotReady::NoModel(_)) => {}
            Err(error) => return Err(error.into()),
        }
        self.teacher.as_ref().ok_or(CallError::NotOffered(
            "this server is not taught anything; its flag --teach DIR lets callers do that",
        ))
    }

    async fn add(
        &self,
        mut inbound: Streaming<AddExamplesRequest>,
        call: &Call,
    ) -> Result<AddExamplesResponse, CallError> {
        let teacher = self.teacher()?;
        let _place = self.context.stream_place(call.holder.clone())?;
        let mut answer = Answer::default();
        let mut in_work = FuturesOrdered::new();
        let mut has_more = true;
        while has_more || !in_work.is_empty() {
            let may_read = has_more && in_work.len() < teacher.parallelism();
            tokio::select! {
                next = next_message(&mut inbound, &self.context.state), if may_read => {
                    match next? {
                        Some(request) => in_work.push_back(keep(teacher, request, call)),
                        None => has_more = false,
                    }
                }
                Some(added) = in_work.next() => answer.count(added?),
            }
        }
        Ok(answer.response)
    }

    async fn remove(
        &self,
        request: RemoveExamplesRequest,
    ) -> Result<RemoveExamplesResponse, CallError> {
        let RemoveExamplesRequest {
            dataset,
            class,
            examples,
        } = request;
        if class.is_empty() && !examples.is_empty() {
            return Err(CallError::Invalid(
                "examples are named without their class; set `class` too".into(),
            ));
        }
        let class = Some(class).filter(|class| !class.is_empty());
        let removed = self.teacher()?.remove(dataset, class, examples).await;
        let removed = removed.map_err(logged)?;
        Ok(RemoveExamplesResponse {
            removed: removed.pictures as u32,
        })
    }

    async fn train(&self, request: TrainRequest) -> Result<TrainResponse, CallError> {
        let wanted = Wanted {
            dataset: request.dataset,
            reject_unknown: request.reject_unknown,
        };
        let trained = self.teacher()?.train(wanted).await;
        Ok(answers::trained(trained.map_err(logged)?))
    }

    async fn list(&self, request: ListDatasetsRequest) -> Result<ListDatasetsResponse, CallError> {
        let one = Some(request.dataset).filter(|name| !name.is_empty());
        let with_names = one.is_some();
        let listed = self.teacher()?.list(one).await.map_err(logged)?;
        Ok(ListDatasetsResponse {
            datasets: listed
                .into_iter()
                .map(|dataset| answers::dataset(dataset, with_names))
                .collect(),
        })
    }
}

impl TeacherService {
    /// Answers with the parts of the file that `find` opens.
    fn download<Find>(
        &self,
        call: Call,
        find: impl FnOnce(Arc<Teacher>) -> Find,
    ) -> Result<Response<Chunks>, Status>
    where
        Find: Future<Output = Result<Download, TeachError>> + Send + 'static,
    {
        // The request's memory is given back: it holds a few names.
        drop(call.memory.take());
        let ready = self.teacher().and_then(|teacher| {
            let place = self.context.stream_place(call.holder.clone())?;
            Ok((find(Arc::clone(teacher)), place))
        });
        let (file, place) = ready.map_err(|error| {
            call.record.failed(&error);
            Status::from(error)
        })?;
        Ok(open(&self.context.state, |answers| async move {
            let _place = place;
            download::run(&call.record, file, answers).await;
        }))
    }
}

#[tonic::async_trait]
impl Service for TeacherService {
    async fn add_examples(
        &self,
        request: Request<Streaming<AddExamplesRequest>>,
    ) -> Result<Response<AddExamplesResponse>, Status> {
        let call = Call::of(&request);
        call.answer(self.add(request.into_inner(), &call).await)
    }

    async fn remove_examples(
        &self,
        request: Request<RemoveExamplesRequest>,
    ) -> Result<Response<RemoveExamplesResponse>, Status> {
        let call = Call::of(&request);
        call.answer(self.remove(request.into_inner()).await)
    }

    async fn train(
        &self,
        request: Request<TrainRequest>,
    ) -> Result<Response<TrainResponse>, Status> {
        let call = Call::of(&request);
        call.answer(self.train(request.into_inner()).await)
    }

    async fn list_datasets(
        &self,
        request: Request<ListDatasetsRequest>,
    ) -> Result<Response<ListDatasetsResponse>, Status> {
        let call = Call::of(&request);
        call.answer(self.list(request.into_inner()).await)
    }

    type GetExampleStream = Chunks;
    type GetModelStream = Chunks;

    async fn get_example(
        &self,
        request: Request<GetExampleRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let call = Call::of(&request);
        let GetExampleRequest {
            dataset,
            class,
            example,
        } = request.into_inner();
        self.download(call, |teacher| async move {
            teacher.picture(dataset, class, example).await
        })
    }

    async fn get_model(
        &self,
        request: Request<GetModelRequest>,
    ) -> Result<Response<Chunks>, Status> {
        let call = Call::of(&request);
        let GetModelRequest { dataset } = request.into_inner();
        self.download(call, |teacher| async move { teacher.model(dataset).await })
    }
}

/// The next picture; `None` when the caller has sent all.
async fn next_message(
    inbound: &mut Streaming<AddExamplesRequest>,
    state: &StateCell,
) -> Result<Option<AddExamplesRequest>, CallError> {
    tokio::select! {
        message = inbound.message() => Ok(message?),
        () = state.draining() => Err(NotReady::Draining.into()),
    }
}

/// Keeps one picture; the memory of its message is held until then.
async fn keep(
    teacher: &Teacher,
    request: AddExamplesRequest,
    call: &Call,
) -> Result<Added, CallError> {
    let _memory = call.memory.take();
    call.record.received(request.image.len());
    let example = Example {
        dataset: request.dataset,
        class: request.class,
        image: request.image,
    };
    let added = teacher.add(example, call.client).await;
    added.map_err(|error| logged(error).into())
}

/// What became of the pictures so far.
#[derive(Default)]
struct Answer {
    response: AddExamplesResponse,
    pictures: u64,
}

impl Answer {
    fn count(&mut self, added: Added) {
        let response = &mut self.response;
        match added {
            Added::Kept(name) => {
                response.kept += 1;
                self.name(name);
            }
            Added::Known(name) => {
                response.known += 1;
                self.name(name);
            }
            Added::Refused(reason) => {
                response.refused += 1;
                if response.refusals.len() < MAX_LISTED {
                    response.refusals.push(RefusedExample {
                        index: self.pictures,
                        reason: shorten(&reason),
                    });
                }
            }
        }
        self.pictures += 1;
    }

    fn name(&mut self, name: String) {
        if self.response.examples.len() < MAX_LISTED {
            self.response.examples.push(name);
        }
    }
}

/// Writes what callers are not told into the log.
fn logged(error: TeachError) -> TeachError {
    if let TeachError::File { .. } = error {
        tracing::error!("{error}");
    }
    error
}
