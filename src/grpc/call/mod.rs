//! What is known of one call: its method, caller, deadline and priority, its record for metrics,
//! log and traces, and the status that it ends with.

pub(in crate::grpc) mod activity;
pub(in crate::grpc) mod caller;
pub(in crate::grpc) mod context;
pub(in crate::grpc) mod memory;
pub(in crate::grpc) mod methods;
pub(in crate::grpc) mod places;
pub(in crate::grpc) mod record;
pub(in crate::grpc) mod status;
pub(in crate::grpc) mod timing;

use std::sync::Arc;

use tonic::{Request, Response, Status};

use self::{
    caller::client_id, memory::MessageMemory, places::Holder, record::CallRecord,
    status::CallError, timing::CallTiming,
};
use crate::scheduler::ClientId;

/// What a service needs to know of a call besides its message.
#[derive(Clone)]
pub(in crate::grpc) struct Call {
    pub timing: CallTiming,
    pub client: ClientId,
    /// Whom the call's places are counted for.
    pub holder: Option<Holder>,
    pub record: Arc<CallRecord>,
    /// The memory of its messages.
    pub memory: MessageMemory,
}

impl Call {
    /// The call that a request belongs to, as admission left it in the request's extensions.
    pub fn of<T>(request: &Request<T>) -> Self {
        let extensions = request.extensions();
        let by_admission = "admission adds this to every call of these services";
        let record: &Arc<CallRecord> = extensions.get().expect(by_admission);
        let memory: &MessageMemory = extensions.get().expect(by_admission);
        Self {
            timing: record.timing,
            client: client_id(extensions.get(), extensions.get()),
            holder: Holder::of(extensions.get(), extensions.get()),
            record: Arc::clone(record),
            memory: memory.clone(),
        }
    }

    /// Ends the call's measurement and makes its answer.
    pub fn answer<T>(&self, result: Result<T, CallError>) -> Result<Response<T>, Status> {
        match &result {
            Ok(_) => self.record.succeeded(),
            Err(error) => self.record.failed(error),
        }
        result.map(Response::new).map_err(Status::from)
    }
}
