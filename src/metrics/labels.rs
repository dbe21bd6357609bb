//! Label values. All sets are closed, except the names of models: those are of the operator and of
//! callers who teach.

/// Why work that arrived was not done: `classifier_rejected_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The queue was full.
    QueueFull,
    /// Its deadline passed while it was queued.
    Deadline,
    /// Its caller cancelled while it was queued.
    Cancelled,
    /// The server was starting or draining.
    NotReady,
    /// Too many streams were open.
    StreamLimit,
    /// Too many calls were in progress.
    CallLimit,
    /// There was no memory for its message.
    Memory,
    /// Its caller had its share of the calls or streams.
    ClientLimit,
    /// Its caller sent no valid token.
    Unauthenticated,
}

impl Rejection {
    /// In the order of the variants, which index this array.
    pub const LABELS: [&'static str; 9] = [
        "queue_full",
        "deadline",
        "cancelled",
        "not_ready",
        "stream_limit",
        "call_limit",
        "memory",
        "client_limit",
        "unauthenticated",
    ];
}

/// The outcome of a frame of a stream: `classifier_frames_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FrameOutcome {
    /// Answered with classes.
    Classified,
    /// Replaced by a newer frame before it was classified.
    Dropped,
    /// Answered with an error.
    Failed,
}

impl FrameOutcome {
    /// In the order of the variants, which index this array.
    pub const LABELS: [&'static str; 3] = ["classified", "dropped", "failed"];
}

/// The gRPC methods whose requests are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Method {
    Classify,
    ClassifyBatch,
    StreamClassify,
    ListModels,
    AddExamples,
    RemoveExamples,
    Train,
    ListDatasets,
    GetExample,
    GetModel,
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
    RepositoryModelLoad,
    RepositoryModelUnload,
    SystemSharedMemoryStatus,
    SystemSharedMemoryRegister,
    SystemSharedMemoryUnregister,
    CudaSharedMemoryStatus,
    CudaSharedMemoryRegister,
    CudaSharedMemoryUnregister,
    TraceSetting,
    LogSettings,
}

impl Method {
    /// In the order of the variants, which index this array.
    pub const LABELS: [&'static str; 30] = [
        "Classify",
        "ClassifyBatch",
        "StreamClassify",
        "ListModels",
        "AddExamples",
        "RemoveExamples",
        "Train",
        "ListDatasets",
        "GetExample",
        "GetModel",
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
        "RepositoryModelLoad",
        "RepositoryModelUnload",
        "SystemSharedMemoryStatus",
        "SystemSharedMemoryRegister",
        "SystemSharedMemoryUnregister",
        "CudaSharedMemoryStatus",
        "CudaSharedMemoryRegister",
        "CudaSharedMemoryUnregister",
        "TraceSetting",
        "LogSettings",
    ];

    const ALL: [Self; 30] = [
        Self::Classify,
        Self::ClassifyBatch,
        Self::StreamClassify,
        Self::ListModels,
        Self::AddExamples,
        Self::RemoveExamples,
        Self::Train,
        Self::ListDatasets,
        Self::GetExample,
        Self::GetModel,
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
        Self::RepositoryModelLoad,
        Self::RepositoryModelUnload,
        Self::SystemSharedMemoryStatus,
        Self::SystemSharedMemoryRegister,
        Self::SystemSharedMemoryUnregister,
        Self::CudaSharedMemoryStatus,
        Self::CudaSharedMemoryRegister,
        Self::CudaSharedMemoryUnregister,
        Self::TraceSetting,
        Self::LogSettings,
    ];

    /// The methods whose requests are timed: those that work on images. The others answer at once.
    pub const TIMED: [&'static str; 5] = [
        "Classify",
        "ClassifyBatch",
        "StreamClassify",
        "ModelInfer",
        "ModelStreamInfer",
    ];

    /// Whether its requests are timed.
    pub fn is_timed(self) -> bool {
        Self::TIMED.contains(&Self::LABELS[self as usize])
    }

    /// Finds a method by its name in the `.proto` files.
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
    /// The peer sent no call in time.
    Silent,
    /// The operating system failed to accept it.
    Accept,
    /// Its address had its share of the connections.
    ClientLimit,
}

impl Refusal {
    /// In the order of the variants, which index this array.
    pub const LABELS: [&'static str; 4] = ["tls", "silent", "accept", "client_limit"];
}

/// Why the server closed a connection that had no call in progress.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Closure {
    /// It had been idle for too long.
    Idle,
    /// Its place was needed for another one.
    Displaced,
}

impl Closure {
    /// In the order of the variants, which index this array.
    pub const LABELS: [&'static str; 2] = ["idle", "displaced"];
}

/// Why a worker thread gave up its work: `classifier_worker_restarts_total`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Restart {
    /// It panicked.
    Panic,
    /// It was at work for longer than it may be.
    Hang,
}

impl Restart {
    /// In the order of the variants, which index this array.
    pub const LABELS: [&'static str; 2] = ["panic", "hang"];
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
            Method::LABELS[Method::LogSettings as usize..],
            ["LogSettings"]
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
        assert_eq!(
            Refusal::LABELS[Refusal::ClientLimit as usize..],
            ["client_limit"]
        );
        assert_eq!(
            Closure::LABELS[Closure::Displaced as usize..],
            ["displaced"]
        );
        assert_eq!(Restart::LABELS[Restart::Hang as usize..], ["hang"]);
    }
}
