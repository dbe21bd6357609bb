//! Adapts the limit of open files of the process to the number of connections.

/// Files that are not connections of the gRPC port: models, libraries, the log and the connections
/// of the HTTP port.
#[cfg(unix)]
const RESERVED: u64 = 256;

/// Raises the limit of open files so that it allows `wanted` connections, and returns the number of
/// connections that it then allows. Logs a warning if these are fewer.
#[cfg(unix)]
pub fn allow_connections(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

    let needed = wanted as u64 + RESERVED;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < needed) {
        let raised = maximum.map_or(needed, |maximum| maximum.min(needed));
        // If that is refused, the lower limit applies.
        let _ = setrlimit(
            Resource::Nofile,
            Rlimit {
                current: Some(raised),
                maximum,
            },
        );
    }

    let Some(files) = getrlimit(Resource::Nofile).current else {
        return wanted;
    };
    let allowed = allowed_connections(files);
    if allowed >= wanted as u64 {
        return wanted;
    }
    tracing::warn!(
        "the process may open {files} files, so {allowed} connections are accepted instead of \
         {wanted} (--max-connections); raise the limit with `ulimit -n` or LimitNOFILE="
    );
    allowed as usize
}

/// Other systems have no such limit.
#[cfg(not(unix))]
pub fn allow_connections(wanted: usize) -> usize {
    wanted
}

/// The number of connections that a limit of `files` open files allows.
#[cfg(unix)]
fn allowed_connections(files: u64) -> u64 {
    (files - RESERVED.min(files / 2)).max(1)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_server_keeps_files_for_itself() {
        assert_eq!(
            [1024, 512, 64, 0].map(allowed_connections),
            [768, 256, 32, 1]
        );
    }
}
