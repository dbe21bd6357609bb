//! All services and their admission, made once for both ports: calls on the HTTP port count against
//! the same limits as those on the gRPC port.

use std::{convert::Infallible, sync::Arc, thread, time::Duration};

use http::{Request, Response};
use tonic::{body::Body, service::Routes};
use tonic_health::server::HealthReporter;
use tonic_web::GrpcWebLayer;
use tower::{Layer, util::BoxCloneSyncService};

use super::{
    GrpcConfig,
    admission::{Admission, AdmissionConfig, caps::CallLimits},
    call::{context::Context, places::Share},
    classifier::ClassifierService,
    health::{self, HealthService},
    oip::InferenceService,
    teacher::TeacherService,
    transport::inflate::Inflater,
};
use crate::{
    budget::MemoryBudget,
    inference::{self, grpc_inference_service_server::GrpcInferenceServiceServer},
    proto::{self, classifier_server::ClassifierServer, teacher_server::TeacherServer},
    registry::Registry,
    state::StateCell,
    teaching::Teacher,
};

/// The longest that a call on the HTTP port may take, including its upload.
const MAX_HTTP_CALL: Duration = Duration::from_secs(30);
/// The largest message to health and reflection, in bytes.
const MAX_SMALL_MESSAGE: usize = 64 << 10;

/// The services as they are called on the HTTP port.
#[derive(Clone)]
pub struct HttpCalls {
    /// In gRPC-Web, binary or as text, over HTTP/1.1.
    pub(crate) web: BoxCloneSyncService<Request<axum::body::Body>, Response<Body>, Infallible>,
    /// In gRPC's own framing, for requests that were translated from another one.
    pub(crate) translated: BoxCloneSyncService<Request<Body>, Response<Body>, Infallible>,
    /// The largest message that is accepted, in bytes.
    pub(crate) max_message_bytes: usize,
    /// Whether callers may teach.
    pub(crate) can_teach: bool,
}

/// All services and their admission.
#[derive(Clone)]
pub struct Services {
    pub(super) admission: Admission,
    pub(super) routes: Routes,
    pub(super) health: HealthReporter,
    /// What the messages of all callers are charged to.
    pub(crate) memory: MemoryBudget,
    max_message_bytes: usize,
    can_teach: bool,
}

impl Services {
    /// The services of these models, with the limits and tokens of `config`.
    /// `teacher` is there if callers may teach.
    pub fn new(
        registry: Arc<Registry>,
        state: StateCell,
        teacher: Option<Arc<Teacher>>,
        config: &GrpcConfig,
    ) -> Self {
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
        let health = HealthReporter::new();
        let health_service =
            HealthService::new(health.clone(), state.clone(), Arc::clone(&registry));
        let context = Arc::new(Context::new(registry, state, config.max_streams, share));
        let classifier = ClassifierServer::new(ClassifierService(Arc::clone(&context)))
            .max_decoding_message_size(config.max_message_bytes);
        let can_teach = teacher.is_some();
        let teaching = TeacherService {
            context: Arc::clone(&context),
            teacher,
        };
        let teaching =
            TeacherServer::new(teaching).max_decoding_message_size(config.max_message_bytes);
        let protocol = GrpcInferenceServiceServer::new(InferenceService(context))
            .max_decoding_message_size(config.max_message_bytes);

        let reflection = || {
            tonic_reflection::server::Builder::configure()
                .register_encoded_file_descriptor_set(proto::DESCRIPTOR)
                .register_encoded_file_descriptor_set(inference::DESCRIPTOR)
                .register_encoded_file_descriptor_set(health::DESCRIPTOR)
        };
        let built = "the descriptors come from the build";
        let reflection_v1 = reflection().build_v1().expect(built);
        let reflection_v1alpha = reflection().build_v1alpha().expect(built);
        let routes = Routes::new(classifier)
            .add_service(teaching)
            .add_service(protocol)
            .add_service(health_service.max_decoding_message_size(MAX_SMALL_MESSAGE))
            .add_service(reflection_v1.max_decoding_message_size(MAX_SMALL_MESSAGE))
            .add_service(reflection_v1alpha.max_decoding_message_size(MAX_SMALL_MESSAGE));

        Self {
            admission,
            routes,
            health,
            memory,
            max_message_bytes: config.max_message_bytes,
            can_teach,
        }
    }

    /// The services for the HTTP port.
    pub fn for_http(&self) -> HttpCalls {
        let admitted = self
            .admission
            .within(MAX_HTTP_CALL)
            .layer()
            .layer(self.routes.clone());
        HttpCalls {
            web: BoxCloneSyncService::new(GrpcWebLayer::new().layer(admitted.clone())),
            translated: BoxCloneSyncService::new(admitted),
            max_message_bytes: self.max_message_bytes,
            can_teach: self.can_teach,
        }
    }
}
