//! The methods of all services by their paths, as far as admission must know them.

use crate::{
    inference::grpc_inference_service_server as inference,
    metrics::Method,
    proto::{classifier_server as classifier, teacher_server as teacher},
};

/// No path of our services is longer; others are cut to this in logs and spans.
pub(in crate::grpc) const MAX_PATH: usize = 100;

/// The method of a path, if it is one whose calls are counted.
pub(in crate::grpc) fn method(path: &str) -> Option<Method> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    let services = [
        classifier::SERVICE_NAME,
        teacher::SERVICE_NAME,
        inference::SERVICE_NAME,
    ];
    services.contains(&service).then(|| Method::named(name))?
}

/// Whether the path is one of the classifying services, rather than health or reflection.
pub(in crate::grpc) fn is_classifying(path: &str) -> bool {
    ["/resnet18.", "/inference."]
        .iter()
        .any(|prefix| path.starts_with(prefix))
}

/// Whether a call of this path may have many messages.
pub(in crate::grpc) fn is_stream(path: &str) -> bool {
    [
        "/StreamClassify",
        "/AddExamples",
        "/GetExample",
        "/GetModel",
        "/ModelStreamInfer",
        "/ServerReflectionInfo",
    ]
    .iter()
    .any(|method| path.ends_with(method))
}

/// Whether a call of this path trains a model, which goes on when its caller leaves.
pub(in crate::grpc) fn is_training(path: &str) -> bool {
    method(path) == Some(Method::Train)
}

/// What a call is for, which decides the limit that it counts against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(in crate::grpc) enum Kind {
    /// It may bring images.
    Classifying,
    /// It only asks for the server's health, which a busy server must not reject.
    Health,
    /// It asks for the contract.
    Reflection,
    /// There is no such service.
    Other,
}

/// What a call of this path is for.
pub(in crate::grpc) fn kind(path: &str) -> Kind {
    let is_probe = matches!(
        method(path),
        Some(Method::ServerLive | Method::ServerReady | Method::ModelReady)
    );
    if is_probe || path.starts_with("/grpc.health.") {
        Kind::Health
    } else if path.starts_with("/grpc.reflection.") {
        Kind::Reflection
    } else if is_classifying(path) {
        Kind::Classifying
    } else {
        Kind::Other
    }
}

/// The method of a path, if each of its calls brings images in one message.
pub(in crate::grpc) fn image_method(path: &str) -> Option<Method> {
    method(path).filter(|method| {
        matches!(
            method,
            Method::Classify | Method::ClassifyBatch | Method::ModelInfer
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn methods_are_known_by_their_whole_path() {
        assert_eq!(
            method("/resnet18.v1.Classifier/Classify"),
            Some(Method::Classify)
        );
        assert_eq!(
            method("/inference.GRPCInferenceService/ModelInfer"),
            Some(Method::ModelInfer)
        );
        for other in [
            "",
            "/",
            "Classify",
            "/resnet18.v1.Classifier/",
            "/resnet18.v2.Classifier/Classify",
            "/a/b/Classify",
        ] {
            assert_eq!(method(other), None, "{other}");
        }
        for (path, expected) in [
            ("/inference.GRPCInferenceService/ModelReady", Kind::Health),
            (
                "/inference.GRPCInferenceService/ModelInfer",
                Kind::Classifying,
            ),
            ("/grpc.health.v1.Health/Watch", Kind::Health),
            (
                "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo",
                Kind::Reflection,
            ),
            ("/etc/passwd", Kind::Other),
        ] {
            assert_eq!(kind(path), expected, "{path}");
        }
    }
}
