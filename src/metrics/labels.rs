//! The closed sets of labels, so that no client can create series.

/// Why work that arrived was not done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// No place in the queue.
    QueueFull,
    /// Its deadline passed while it waited.
    Deadline,
    /// Its caller went away while it waited.
    Cancelled,
    /// The server was starting or draining.
    NotReady,
    /// Too many streams were open.
    StreamLimit,
    /// Too many calls were in progress.
    CallLimit,
    /// Its caller brought no token that is known.
    Unauthenticated,
}

impl Rejection {
    /// In the order of the variants.
    pub const LABELS: [&'static str; 7] = [
        "queue_full",
        "deadline",
        "cancelled",
        "not_ready",
        "stream_limit",
        "call_limit",
        "unauthenticated",
    ];
}

/// What became of a frame of a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameOutcome {
    /// It was answered with classes.
    Classified,
    /// A newer frame took its place.
    Dropped,
    /// It was answered with an error.
    Failed,
}

impl FrameOutcome {
    /// In the order of the variants.
    pub const LABELS: [&'static str; 3] = ["classified", "dropped", "failed"];
}

/// The methods whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs)]
pub enum Method {
    Classify,
    StreamClassify,
    ListModels,
    ServerLive,
    ServerReady,
    ServerMetadata,
    ModelReady,
    ModelMetadata,
    ModelConfig,
    ModelInfer,
    ModelStreamInfer,
    ModelStatistics,
    RepositoryIndex,
}

impl Method {
    /// In the order of the variants.
    pub const LABELS: [&'static str; 13] = [
        "Classify",
        "StreamClassify",
        "ListModels",
        "ServerLive",
        "ServerReady",
        "ServerMetadata",
        "ModelReady",
        "ModelMetadata",
        "ModelConfig",
        "ModelInfer",
        "ModelStreamInfer",
        "ModelStatistics",
        "RepositoryIndex",
    ];

    const ALL: [Self; 13] = [
        Self::Classify,
        Self::StreamClassify,
        Self::ListModels,
        Self::ServerLive,
        Self::ServerReady,
        Self::ServerMetadata,
        Self::ModelReady,
        Self::ModelMetadata,
        Self::ModelConfig,
        Self::ModelInfer,
        Self::ModelStreamInfer,
        Self::ModelStatistics,
        Self::RepositoryIndex,
    ];

    /// The method of that name, as the contracts write it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL
            .into_iter()
            .find(|method| Self::LABELS[*method as usize] == name)
    }
}

/// Why a connection was closed before its first call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The TLS handshake failed or took too long.
    Tls,
    /// It said nothing.
    Silent,
    /// The system could not hand it over.
    Accept,
}

impl Refusal {
    /// In the order of the variants.
    pub const LABELS: [&'static str; 3] = ["tls", "silent", "accept"];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_variant_of_each_set_has_the_last_label() {
        assert_eq!(
            Rejection::LABELS[Rejection::Unauthenticated as usize..],
            ["unauthenticated"]
        );
        assert_eq!(
            FrameOutcome::LABELS[FrameOutcome::Failed as usize..],
            ["failed"]
        );
        assert_eq!(
            Method::LABELS[Method::RepositoryIndex as usize..],
            ["RepositoryIndex"]
        );
        assert!(
            Method::ALL
                .iter()
                .enumerate()
                .all(|(i, method)| i == *method as usize)
        );
        assert_eq!(
            (Method::named("ModelInfer"), Method::named("Model")),
            (Some(Method::ModelInfer), None)
        );
        assert_eq!(Refusal::LABELS[Refusal::Accept as usize..], ["accept"]);
    }
}
