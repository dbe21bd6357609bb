//! How much memory this process may use: the limit of its container or the machine's memory.

use std::{
    fs,
    path::{Path, PathBuf},
};

/// The assumed memory where the system does not tell, in bytes.
const UNKNOWN: u64 = 4 << 30;

/// The memory that this process may use, in bytes: the least of the machine's memory, the limits of
/// its cgroups and its own limits (`ulimit -v` and `-d`).
pub fn memory_limit() -> u64 {
    let read = |path: &Path| fs::read_to_string(path).ok();
    [machine(read), cgroup(read), process()]
        .into_iter()
        .flatten()
        .min()
        .unwrap_or(UNKNOWN)
}

fn machine(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let info = read(Path::new("/proc/meminfo"))?;
    let total = info
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))?;
    let kib: u64 = total.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

/// The least limit of the process's cgroup and the ones around it, in version 2 or 1 of cgroups.
fn cgroup(read: impl Fn(&Path) -> Option<String>) -> Option<u64> {
    let groups = read(Path::new("/proc/self/cgroup"))?;
    let mut least: Option<u64> = None;
    for line in groups.lines() {
        let mut fields = line.splitn(3, ':').skip(1);
        let (root, file) = match fields.next()? {
            "" => ("/sys/fs/cgroup", "memory.max"),
            controllers if controllers.split(',').any(|name| name == "memory") => {
                ("/sys/fs/cgroup/memory", "memory.limit_in_bytes")
            }
            _ => continue,
        };

        // A container may see the path of its host, which does not exist in it; the root does.
        let path = Path::new(fields.next()?.trim_start_matches('/'));
        for group in path.ancestors() {
            let file = PathBuf::from(root).join(group).join(file);
            let limit = read(&file).and_then(|limit| limit.trim().parse().ok());
            least = [least, limit].into_iter().flatten().min();
        }
    }
    least
}

#[cfg(unix)]
fn process() -> Option<u64> {
    use rustix::process::{Resource, getrlimit};

    [Resource::As, Resource::Data]
        .into_iter()
        .filter_map(|resource| getrlimit(resource).current)
        .min()
}

#[cfg(not(unix))]
fn process() -> Option<u64> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The content of `files` by their paths.
    fn files<const N: usize>(files: [(&str, &str); N]) -> impl Fn(&Path) -> Option<String> {
        move |path| {
            let found = files.iter().find(|(name, _)| Path::new(name) == path);
            found.map(|(_, content)| (*content).to_owned())
        }
    }

    #[test]
    fn the_machines_memory_is_read() {
        let info = "MemTotal:       24628936 kB\nMemFree:        18000000 kB\n";
        let read = files([("/proc/meminfo", info)]);
        assert_eq!(machine(read), Some(24_628_936 << 10));
        assert_eq!(machine(files([])), None);
    }

    #[test]
    fn the_least_limit_of_the_groups_counts() {
        let read = files([
            ("/proc/self/cgroup", "0::/kubepods/pod1/box\n"),
            ("/sys/fs/cgroup/kubepods/pod1/box/memory.max", "max\n"),
            ("/sys/fs/cgroup/kubepods/pod1/memory.max", "1073741824\n"),
            ("/sys/fs/cgroup/kubepods/memory.max", "8589934592\n"),
        ]);
        assert_eq!(cgroup(read), Some(1 << 30));

        // In a container that has a namespace of its own, or sees its host's path.
        for groups in ["0::/\n", "0::/docker/0123\n"] {
            let read = files([
                ("/proc/self/cgroup", groups),
                ("/sys/fs/cgroup/memory.max", "536870912\n"),
            ]);
            assert_eq!(cgroup(read), Some(512 << 20));
        }

        let read = files([
            ("/proc/self/cgroup", "5:cpu,cpuacct:/x\n4:memory:/x\n"),
            (
                "/sys/fs/cgroup/memory/x/memory.limit_in_bytes",
                "268435456\n",
            ),
        ]);
        assert_eq!(cgroup(read), Some(256 << 20));
        assert_eq!(cgroup(files([("/proc/self/cgroup", "0::/\n")])), None);
    }

    #[test]
    fn this_process_has_a_limit() {
        assert!(memory_limit() > 64 << 20);
    }
}
