//! What runs in the child process: limits for itself, then the model as the server would start it.

use std::{
    io,
    panic::{AssertUnwindSafe, catch_unwind},
    path::Path,
};

use serde::{Deserialize, Serialize};

use super::CheckLimits;
use crate::{
    engine::{self, EngineConfig, EngineError},
    model::{Model, Overrides},
    registry::loader::LoadError,
};

/// What a child writes to standard output, as one line of JSON.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    Passed(Report),
    Refused(Refusal),
}

/// A model that passed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Report {
    pub name: String,
    /// The first 12 hexadecimal digits of the SHA-256 of the file.
    pub version: String,
    pub classes: usize,
    /// The engine that ran the model.
    pub engine: String,
    /// The version of its library.
    pub engine_version: String,
    pub precision: String,
    /// Reasons to doubt the answers.
    pub warnings: Vec<String>,
}

/// A model that can't be served.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    /// Why, for the log.
    pub reason: String,
    /// Why, for callers.
    pub for_callers: String,
    /// Whether the engine that was asked for can't run any model here.
    pub unavailable: bool,
}

/// Limits this process: its memory, its time on the processors and its life, which ends with that of
/// its parent, the process `parent`. `threads` is how many of them compute.
///
/// # Errors
/// What the operating system reports, or that the parent has ended.
#[cfg(unix)]
pub fn confine(limits: &CheckLimits, threads: u64, parent: u32) -> io::Result<()> {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    // A limit that the server has itself can't be raised.
    let set = |resource, limit: u64, spare: u64| {
        let most = getrlimit(resource).maximum.unwrap_or(u64::MAX);
        setrlimit(
            resource,
            Rlimit {
                current: Some(limit.min(most)),
                maximum: Some(limit.saturating_add(spare).min(most)),
            },
        )
    };
    // The address space is no measure: OpenVINO and threads reserve much more than they use. What
    // is counted here is what can be written to.
    set(Resource::Data, limits.memory, 0)?;
    // The parent measures the time; this is for one that can't any more. Beside the threads that
    // compute there are that of the reference and the first one. Beyond the first limit there is a
    // signal with a name of its own.
    let seconds = limits.timeout.as_secs().saturating_add(1);
    set(Resource::Cpu, seconds.saturating_mul(threads + 2), 5)?;
    set(Resource::Core, 0, 0)?;

    #[cfg(not(target_os = "linux"))]
    let _ = parent;
    #[cfg(target_os = "linux")]
    {
        use rustix::process::{Signal, getppid, set_parent_process_death_signal};

        set_parent_process_death_signal(Some(Signal::KILL))?;
        // The parent may have ended before: then another process is the parent.
        let is_parent = |pid: rustix::process::Pid| pid.as_raw_nonzero().get() as u32 == parent;
        if !getppid().is_some_and(is_parent) {
            return Err(io::Error::other("the server has ended"));
        }
        // Where memory is short, the system should rather end this process than the server.
        let _ = std::fs::write("/proc/self/oom_score_adj", "1000");
    }
    Ok(())
}

/// There are no such limits on this system; the parent's time limit holds.
///
/// # Errors
/// None.
#[cfg(not(unix))]
pub fn confine(_: &CheckLimits, _: u64, _: u32) -> io::Result<()> {
    Ok(())
}

/// Reads the model and starts it as the server would, but for engines on GPUs: see
/// [`engine::try_out`]. Blocks until that is done.
pub fn answer(path: &Path, overrides: &Overrides, engine: &EngineConfig) -> Answer {
    let tried = catch_unwind(AssertUnwindSafe(|| try_model(path, overrides, engine)));
    let tried = tried.unwrap_or_else(|panic| {
        let words = panic.downcast_ref::<String>().map(String::as_str);
        let words = words.or(panic.downcast_ref::<&str>().copied());
        Err(LoadError::Panicked(words.unwrap_or("a panic").to_owned()))
    });
    match tried {
        Ok(report) => Answer::Passed(report),
        Err(error) => Answer::Refused(Refusal {
            reason: error.to_string(),
            for_callers: error.for_callers(),
            unavailable: matches!(error, LoadError::Engine(EngineError::Unavailable { .. })),
        }),
    }
}

fn try_model(
    path: &Path,
    overrides: &Overrides,
    engine: &EngineConfig,
) -> Result<Report, LoadError> {
    let model = Model::from_file(path, overrides)?;
    let info = engine::try_out(engine, &model)?;
    Ok(Report {
        name: model.name,
        version: model.version,
        classes: model.graph.classes,
        engine: info.kind.to_string(),
        engine_version: info.version,
        precision: info.precision.to_string(),
        warnings: info.warnings,
    })
}
