//! The `GRPCInferenceService` as tonic calls it.

use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    infer::{self, Admitted},
    metadata,
    names::{self, has_version, resolve},
    statistics, stream,
};
use crate::{
    grpc::{
        call::{
            answer,
            context::{Call, Context},
        },
        stream::open,
    },
    inference::{
        ModelConfigRequest, ModelConfigResponse, ModelInferRequest, ModelInferResponse,
        ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest, ModelReadyResponse,
        ModelStatisticsRequest, ModelStatisticsResponse, ModelStreamInferResponse,
        RepositoryIndexRequest, RepositoryIndexResponse, ServerLiveRequest, ServerLiveResponse,
        ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        grpc_inference_service_server::GrpcInferenceService,
    },
    state::State,
};

/// The service; streams keep its context beyond the call that opened them.
pub(in crate::grpc) struct InferenceService(pub Arc<Context>);

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    type ModelStreamInferStream = ReceiverStream<Result<ModelStreamInferResponse, Status>>;

    async fn server_live(
        &self,
        request: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        let guard = Call::of(&request).guard();
        answer(
            guard,
            Ok(ServerLiveResponse {
                live: !matches!(self.0.state.get(), State::Failed(_)),
            }),
        )
    }

    async fn server_ready(
        &self,
        request: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let guard = Call::of(&request).guard();
        answer(
            guard,
            Ok(ServerReadyResponse {
                ready: self.0.state.get().ready().is_ok(),
            }),
        )
    }

    async fn server_metadata(
        &self,
        request: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let guard = Call::of(&request).guard();
        answer(guard, Ok(metadata::server()))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let mut guard = Call::of(&request).guard();
        let ModelReadyRequest { name, version } = request.into_inner();
        let (model, _) = resolve(&self.0.registry, &name);
        let entry = self.0.registry.find(model).ok();
        entry.iter().for_each(|entry| guard.model(entry));
        let served = entry
            .and_then(|entry| entry.served)
            .is_some_and(|served| has_version(&served, &version));
        answer(
            guard,
            Ok(ModelReadyResponse {
                ready: served && self.0.state.get().ready().is_ok(),
            }),
        )
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let mut guard = Call::of(&request).guard();
        let ModelMetadataRequest { name, version } = request.into_inner();
        let found = names::find(&self.0, &name, &version, &mut guard);
        answer(
            guard,
            found.map(|(served, form)| metadata::model(&served, form)),
        )
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let mut guard = Call::of(&request).guard();
        let ModelConfigRequest { name, version } = request.into_inner();
        let found = names::find(&self.0, &name, &version, &mut guard);
        let config = found.map(|(served, form)| metadata::config(&served, form));
        answer(
            guard,
            config.map(|config| ModelConfigResponse {
                config: Some(config),
            }),
        )
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let call = Call::of(&request);
        let mut guard = call.guard();
        let admitted = Admitted {
            arrived: call.arrived,
            span: call.record.trace().context(),
        };
        let result = match infer::submit(&self.0, request.into_inner(), &call, admitted, &mut guard)
        {
            Ok(submitted) => submitted.answer().await,
            Err(error) => Err(error),
        };
        result
            .iter()
            .for_each(|answered| call.record.classified(&answered.reply));
        answer(guard, result.map(|answered| answered.response))
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let call = Call::of(&request);
        let guard = call.guard();
        let run = |answers| {
            stream::run(
                Arc::clone(&self.0),
                request.into_inner(),
                call,
                guard,
                answers,
            )
        };
        Ok(open(&self.0.state, run))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let mut guard = Call::of(&request).guard();
        let read = statistics::read(&self.0, request.get_ref(), &mut guard);
        answer(guard, read)
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let guard = Call::of(&request).guard();
        let index = metadata::index(
            &self.0.registry,
            &self.0.state.get(),
            request.get_ref().ready,
        );
        answer(guard, Ok(index))
    }
}
