//! What is known of one call: its method, caller, deadline and priority, its record for log, metrics
//! and traces, and the status that it ends with.

pub(in crate::grpc) mod arrival;
pub(in crate::grpc) mod caller;
pub(in crate::grpc) mod context;
pub(in crate::grpc) mod methods;
pub(in crate::grpc) mod record;
pub(in crate::grpc) mod status;

use tonic::{Code, Response, Status};

use self::{context::CallGuard, status::CallError};

/// Ends the request's measurement and makes its answer.
pub(in crate::grpc) fn answer<T>(
    guard: CallGuard,
    result: Result<T, CallError>,
) -> Result<Response<T>, Status> {
    guard.finish(result.as_ref().err().map_or(Code::Ok, CallError::code));
    result.map(Response::new).map_err(Status::from)
}
