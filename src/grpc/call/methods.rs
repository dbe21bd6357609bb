//! What admission must know of the methods of all services, by their paths.

use crate::{
    inference::grpc_inference_service_server as inference, metrics::Method,
    proto::classifier_server as classifier,
};

/// A longer path is none of ours.
pub(in crate::grpc) const LONGEST_PATH: usize = 100;

/// The method of a path, if it is one whose calls are counted.
pub(in crate::grpc) fn method(path: &str) -> Option<Method> {
    let (service, name) = path.strip_prefix('/')?.split_once('/')?;
    [classifier::SERVICE_NAME, inference::SERVICE_NAME]
        .contains(&service)
        .then(|| Method::named(name))?
}

/// Whether the path is that of a service that does work.
pub(in crate::grpc) fn is_ours(path: &str) -> bool {
    ["/resnet18.", "/inference."]
        .iter()
        .any(|ours| path.starts_with(ours))
}

/// Whether a call of this path may have many messages.
pub(in crate::grpc) fn is_stream(path: &str) -> bool {
    [
        "/StreamClassify",
        "/ModelStreamInfer",
        "/ServerReflectionInfo",
    ]
    .iter()
    .any(|method| path.ends_with(method))
}

/// Whether a call only asks how the server is, which a busy one must not refuse.
pub(in crate::grpc) fn is_probe(path: &str) -> bool {
    matches!(
        method(path),
        Some(Method::ServerLive | Method::ServerReady | Method::ModelReady)
    )
}

/// Services that bring images, in a message that is not small.
pub(in crate::grpc) fn brings_images(path: &str) -> Option<Method> {
    method(path).filter(|method| matches!(method, Method::Classify | Method::ModelInfer))
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
        assert!(is_probe("/inference.GRPCInferenceService/ModelReady"));
        assert!(!is_probe("/inference.GRPCInferenceService/ModelInfer"));
    }
}
