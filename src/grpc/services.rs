//! The services that do work, and the rules before them, made once: what the HTTP port offers to
//! the page goes by the same rules, and is counted together.

use std::{convert::Infallible, sync::Arc, time::Duration};

use http::{Request, Response};
use tonic::{body::Body, codec::CompressionEncoding};
use tonic_web::GrpcWebLayer;
use tower::{Layer, util::BoxCloneSyncService};

use super::{
    GrpcConfig,
    admission::{Admission, AdmissionConfig},
    call::context::Context,
    classifier::ClassifierService,
    oip::InferenceService,
};
use crate::{
    inference::grpc_inference_service_server::GrpcInferenceServiceServer,
    proto::classifier_server::ClassifierServer, registry::Registry, state::StateCell,
};

/// The longest that a page's call may take, its upload included: a person would not wait longer.
const LONGEST: Duration = Duration::from_secs(30);

/// The `Classifier` service as browsers call it, in gRPC-Web over HTTP/1.1.
pub struct BrowserCalls {
    pub(crate) service: BoxCloneSyncService<Request<axum::body::Body>, Response<Body>, Infallible>,
    /// The largest message that it takes, in bytes.
    pub(crate) max_message_bytes: usize,
}

/// The services and what is asked of their callers.
#[derive(Clone)]
pub struct Services {
    pub(super) admission: Admission,
    pub(super) classifier: ClassifierServer<ClassifierService>,
    pub(super) inference: GrpcInferenceServiceServer<InferenceService>,
    max_message_bytes: usize,
}

impl Services {
    /// The services of these models, with the limits and tokens of `config`.
    pub fn new(registry: Arc<Registry>, state: StateCell, config: &GrpcConfig) -> Self {
        let admission = Admission::new(AdmissionConfig {
            max_calls: config.max_calls,
            deadlines: config.deadlines,
            receive_timeout: config.receive_timeout,
            tokens: config.access.tokens.clone(),
            registry: Arc::clone(&registry),
            state: state.clone(),
        });
        let context = Arc::new(Context::new(registry, state, config.max_streams));
        let classifier = ClassifierServer::new(ClassifierService(Arc::clone(&context)))
            .max_decoding_message_size(config.max_message_bytes)
            // Images are compressed already, raw frames may gain; answers are too small to gain.
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        let inference = GrpcInferenceServiceServer::new(InferenceService(context))
            .max_decoding_message_size(config.max_message_bytes)
            .accept_compressed(CompressionEncoding::Gzip)
            .accept_compressed(CompressionEncoding::Zstd);
        Self {
            admission,
            classifier,
            inference,
            max_message_bytes: config.max_message_bytes,
        }
    }

    /// The `Classifier` service, for the page.
    pub fn for_browsers(&self) -> BrowserCalls {
        let admitted = self
            .admission
            .within(LONGEST)
            .layer()
            .layer(self.classifier.clone());
        let service = BoxCloneSyncService::new(GrpcWebLayer::new().layer(admitted));
        BrowserCalls {
            service,
            max_message_bytes: self.max_message_bytes,
        }
    }
}
