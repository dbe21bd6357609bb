//! How many connections fit into the number of files that the process may open.

/// Beside its connections the server opens models, libraries, the log and the HTTP port's
/// connections.
#[cfg(unix)]
const RESERVED: u64 = 256;

/// As many of the `wanted` connections as the system lets the process have; says so where those are
/// fewer.
#[cfg(unix)]
pub fn connections(wanted: usize) -> usize {
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let needed = wanted as u64 + RESERVED;
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current.is_some_and(|current| current < needed) {
        let raised = maximum.map_or(needed, |maximum| maximum.min(needed));
        // Where that is refused, the lower limit is what counts.
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
    let fitting = fitting(files);
    if fitting >= wanted as u64 {
        return wanted;
    }
    tracing::warn!(
        "the process may open {files} files, so {fitting} connections are accepted instead of {wanted} \
         (--max-connections); `ulimit -n` or LimitNOFILE= sets how many"
    );
    fitting as usize
}

/// Where files are not counted.
#[cfg(not(unix))]
pub fn connections(wanted: usize) -> usize {
    wanted
}

#[cfg(unix)]
fn fitting(files: u64) -> u64 {
    (files - RESERVED.min(files / 2)).max(1)
}

#[cfg(all(test, unix))]
mod tests {
    use super::*;

    #[test]
    fn the_server_keeps_files_for_itself() {
        assert_eq!(
            (fitting(1024), fitting(512), fitting(64), fitting(0)),
            (768, 256, 32, 1)
        );
    }
}
