//! The classifying services and their admission, made once for both ports: calls of the live page
//! on the HTTP port count against the same limits as those on the gRPC port.

use std::{convert::Infallible, sync::Arc, thread, time::Duration};

use http::{Request, Response};
use tonic::body::Body;
use tonic_web::GrpcWebLayer;
use tower::{Layer, util::BoxCloneSyncService};

use super::{
    GrpcConfig,
    admission::{Admission, AdmissionConfig, caps::CallLimits},
    call::{context::Context, places::Share},
    classifier::ClassifierService,
    oip::InferenceService,
    transport::inflate::Inflater,
};
use crate::{
    budget::MemoryBudget, inference::grpc_inference_service_server::GrpcInferenceServiceServer,
    proto::classifier_server::ClassifierServer, registry::Registry, state::StateCell,
};

/// The longest that a call of the live page may take, including its upload.
const MAX_BROWSER_CALL: Duration = Duration::from_secs(30);

/// The `Classifier` service as browsers call it, in gRPC-Web over HTTP/1.1.
pub struct BrowserCalls {
    pub(crate) service: BoxCloneSyncService<Request<axum::body::Body>, Response<Body>, Infallible>,
    /// The largest message that is accepted, in bytes.
    pub(crate) max_message_bytes: usize,
}

/// The classifying services and their admission.
#[derive(Clone)]
pub struct Services {
    pub(super) admission: Admission,
    pub(super) classifier: ClassifierServer<ClassifierService>,
    pub(super) inference: GrpcInferenceServiceServer<InferenceService>,
    /// What the messages of all callers are charged to.
    pub(crate) memory: MemoryBudget,
    max_message_bytes: usize,
}

impl Services {
    /// The services of these models, with the limits and tokens of `config`.
    pub fn new(registry: Arc<Registry>, state: StateCell, config: &GrpcConfig) -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        let memory = MemoryBudget::new(config.max_memory);
        let share = Share(config.max_per_client);
        let admission = Admission::new(AdmissionConfig {
            limits: CallLimits {
                calls: config.max_calls,
                health: config.max_connections,
                share,
            },
            deadlines: config.deadlines,
            receive_timeout: config.receive_timeout,
            max_message_bytes: config.max_message_bytes,
            memory: memory.clone(),
            inflater: Inflater::new(cores),
            tokens: config.access.tokens(),
            registry: Arc::clone(&registry),
            state: state.clone(),
        });
        let context = Arc::new(Context::new(registry, state, config.max_streams, share));
        let classifier = ClassifierServer::new(ClassifierService(Arc::clone(&context)))
            .max_decoding_message_size(config.max_message_bytes);
        let inference = GrpcInferenceServiceServer::new(InferenceService(context))
            .max_decoding_message_size(config.max_message_bytes);
        Self {
            admission,
            classifier,
            inference,
            memory,
            max_message_bytes: config.max_message_bytes,
        }
    }

    /// The `Classifier` service for the live page.
    pub fn for_browsers(&self) -> BrowserCalls {
        let admitted = self
            .admission
            .within(MAX_BROWSER_CALL)
            .layer()
            .layer(self.classifier.clone());
        let service = BoxCloneSyncService::new(GrpcWebLayer::new().layer(admitted));
        BrowserCalls {
            service,
            max_message_bytes: self.max_message_bytes,
        }
    }
}
