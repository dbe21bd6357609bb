//! The `GRPCInferenceService` as tonic calls it.

use std::sync::Arc;

use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

use super::{
    infer::{self, RequestContext},
    metadata,
    names::{self, has_version, resolve},
    repository, statistics, stream,
};
use crate::{
    grpc::{
        call::{Call, context::Context, status::CallError},
        stream::open,
    },
    inference::{
        CudaSharedMemoryRegisterRequest, CudaSharedMemoryRegisterResponse,
        CudaSharedMemoryStatusRequest, CudaSharedMemoryStatusResponse,
        CudaSharedMemoryUnregisterRequest, CudaSharedMemoryUnregisterResponse, LogSettingsRequest,
        LogSettingsResponse, ModelConfigRequest, ModelConfigResponse, ModelInferRequest,
        ModelInferResponse, ModelMetadataRequest, ModelMetadataResponse, ModelReadyRequest,
        ModelReadyResponse, ModelStatisticsRequest, ModelStatisticsResponse,
        ModelStreamInferResponse, RepositoryIndexRequest, RepositoryIndexResponse,
        RepositoryModelLoadRequest, RepositoryModelLoadResponse, RepositoryModelUnloadRequest,
        RepositoryModelUnloadResponse, ServerLiveRequest, ServerLiveResponse,
        ServerMetadataRequest, ServerMetadataResponse, ServerReadyRequest, ServerReadyResponse,
        SystemSharedMemoryRegisterRequest, SystemSharedMemoryRegisterResponse,
        SystemSharedMemoryStatusRequest, SystemSharedMemoryStatusResponse,
        SystemSharedMemoryUnregisterRequest, SystemSharedMemoryUnregisterResponse,
        TraceSettingRequest, TraceSettingResponse,
        grpc_inference_service_server::GrpcInferenceService,
    },
    state::State,
};

/// What to do without shared memory.
const SHARED_MEMORY: &str = "shared memory is not supported; send the data in the request, and read \
                             it from the answer";
/// What to do without settings of traces.
const TRACE_SETTINGS: &str = "traces can't be set by calls; start the server with --otlp-endpoint, and \
                              send the header `traceparent`";
/// What to do without settings of the log.
const LOG_SETTINGS: &str = "the log can't be set by calls; start the server with --log or \
                            --log-format";

/// The service; streams keep its context beyond the call that opened them.
pub(in crate::grpc) struct InferenceService(pub Arc<Context>);

#[tonic::async_trait]
impl GrpcInferenceService for InferenceService {
    type ModelStreamInferStream = ReceiverStream<Result<ModelStreamInferResponse, Status>>;

    async fn server_live(
        &self,
        request: Request<ServerLiveRequest>,
    ) -> Result<Response<ServerLiveResponse>, Status> {
        let call = Call::of(&request);
        call.answer(Ok(ServerLiveResponse {
            live: !matches!(self.0.state.get(), State::Failed(_) | State::Stalled(_)),
        }))
    }

    async fn server_ready(
        &self,
        request: Request<ServerReadyRequest>,
    ) -> Result<Response<ServerReadyResponse>, Status> {
        let call = Call::of(&request);
        call.answer(Ok(ServerReadyResponse {
            ready: self.0.state.get().ready().is_ok(),
        }))
    }

    async fn server_metadata(
        &self,
        request: Request<ServerMetadataRequest>,
    ) -> Result<Response<ServerMetadataResponse>, Status> {
        let call = Call::of(&request);
        call.answer(Ok(metadata::server()))
    }

    async fn model_ready(
        &self,
        request: Request<ModelReadyRequest>,
    ) -> Result<Response<ModelReadyResponse>, Status> {
        let call = Call::of(&request);
        let ModelReadyRequest { name, version } = request.into_inner();
        let (model, _) = resolve(&self.0.registry, &name);
        let entry = self.0.registry.find(model).ok();
        if let Some(entry) = &entry {
            call.record.model(&entry.name, &entry.metrics);
        }
        let served = entry
            .and_then(|entry| entry.served)
            .is_some_and(|served| has_version(&served, &version));
        call.answer(Ok(ModelReadyResponse {
            ready: served && self.0.state.get().ready().is_ok(),
        }))
    }

    async fn model_metadata(
        &self,
        request: Request<ModelMetadataRequest>,
    ) -> Result<Response<ModelMetadataResponse>, Status> {
        let call = Call::of(&request);
        let ModelMetadataRequest { name, version } = request.into_inner();
        let found = names::find(&self.0, &name, &version, &call.record);
        call.answer(found.map(|(served, form)| metadata::model(&served, form)))
    }

    async fn model_config(
        &self,
        request: Request<ModelConfigRequest>,
    ) -> Result<Response<ModelConfigResponse>, Status> {
        let call = Call::of(&request);
        let ModelConfigRequest { name, version } = request.into_inner();
        let found = names::find(&self.0, &name, &version, &call.record);
        let config = found.map(|(served, form)| metadata::config(&served, form));
        call.answer(config.map(|config| ModelConfigResponse {
            config: Some(config),
        }))
    }

    async fn model_infer(
        &self,
        request: Request<ModelInferRequest>,
    ) -> Result<Response<ModelInferResponse>, Status> {
        let call = Call::of(&request);
        let admitted = RequestContext {
            timing: call.timing,
            span: call.record.trace().context(),
        };
        let result = match infer::submit(&self.0, request.into_inner(), &call, admitted) {
            Ok(submitted) => submitted.answer().await,
            Err(error) => Err(error),
        };
        if let Ok(answered) = &result {
            call.record.classified(&answered.reply);
        }
        call.answer(result.map(|answered| answered.response))
    }

    async fn model_stream_infer(
        &self,
        request: Request<Streaming<ModelInferRequest>>,
    ) -> Result<Response<Self::ModelStreamInferStream>, Status> {
        let call = Call::of(&request);
        let context = Arc::clone(&self.0);
        let run = |answers| stream::run(context, request.into_inner(), call, answers);
        Ok(open(&self.0.state, run))
    }

    async fn model_statistics(
        &self,
        request: Request<ModelStatisticsRequest>,
    ) -> Result<Response<ModelStatisticsResponse>, Status> {
        let call = Call::of(&request);
        let read = statistics::read(&self.0, request.get_ref(), &call.record);
        call.answer(read)
    }

    async fn repository_index(
        &self,
        request: Request<RepositoryIndexRequest>,
    ) -> Result<Response<RepositoryIndexResponse>, Status> {
        let call = Call::of(&request);
        let index = metadata::index(
            &self.0.registry,
            &self.0.state.get(),
            request.get_ref().ready,
        );
        call.answer(Ok(index))
    }

    async fn repository_model_load(
        &self,
        request: Request<RepositoryModelLoadRequest>,
    ) -> Result<Response<RepositoryModelLoadResponse>, Status> {
        let call = Call::of(&request);
        let loaded = repository::load(&self.0, request.into_inner(), &call.record).await;
        call.answer(loaded.map(|()| RepositoryModelLoadResponse {}))
    }

    async fn repository_model_unload(
        &self,
        request: Request<RepositoryModelUnloadRequest>,
    ) -> Result<Response<RepositoryModelUnloadResponse>, Status> {
        let call = Call::of(&request);
        let unloaded = repository::unload(&self.0, request.into_inner(), &call.record).await;
        call.answer(unloaded.map(|()| RepositoryModelUnloadResponse {}))
    }

    async fn system_shared_memory_status(
        &self,
        request: Request<SystemSharedMemoryStatusRequest>,
    ) -> Result<Response<SystemSharedMemoryStatusResponse>, Status> {
        not_offered(&request, SHARED_MEMORY)
    }

    async fn system_shared_memory_register(
        &self,
        request: Request<SystemSharedMemoryRegisterRequest>,
    ) -> Result<Response<SystemSharedMemoryRegisterResponse>, Status> {
        not_offered(&request, SHARED_MEMORY)
    }

    async fn system_shared_memory_unregister(
        &self,
        request: Request<SystemSharedMemoryUnregisterRequest>,
    ) -> Result<Response<SystemSharedMemoryUnregisterResponse>, Status> {
        not_offered(&request, SHARED_MEMORY)
    }

    async fn cuda_shared_memory_status(
        &self,
        request: Request<CudaSharedMemoryStatusRequest>,
    ) -> Result<Response<CudaSharedMemoryStatusResponse>, Status> {
        not_offered(&request, SHARED_MEMORY)
    }

    async fn cuda_shared_memory_register(
        &self,
        request: Request<CudaSharedMemoryRegisterRequest>,
    ) -> Result<Response<CudaSharedMemoryRegisterResponse>, Status> {
        not_offered(&request, SHARED_MEMORY)
    }

    async fn cuda_shared_memory_unregister(
        &self,
        request: Request<CudaSharedMemoryUnregisterRequest>,
    ) -> Result<Response<CudaSharedMemoryUnregisterResponse>, Status> {
        not_offered(&request, SHARED_MEMORY)
    }

    async fn trace_setting(
        &self,
        request: Request<TraceSettingRequest>,
    ) -> Result<Response<TraceSettingResponse>, Status> {
        not_offered(&request, TRACE_SETTINGS)
    }

    async fn log_settings(
        &self,
        request: Request<LogSettingsRequest>,
    ) -> Result<Response<LogSettingsResponse>, Status> {
        not_offered(&request, LOG_SETTINGS)
    }
}

/// Answers a call of a method that is not offered.
fn not_offered<T, U>(request: &Request<T>, instead: &'static str) -> Result<Response<U>, Status> {
    Call::of(request).answer(Err(CallError::NotOffered(instead)))
}
