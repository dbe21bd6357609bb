//! Which processor this is.

use sha2::{Digest, Sha256};

use crate::cache::hex;

/// What `/proc/cpuinfo` says about a processor that stays the same from start to start, on x86 and
/// on ARM.
const LASTING: [&str; 13] = [
    "vendor_id",
    "cpu family",
    "model",
    "model name",
    "stepping",
    "cache size",
    "flags",
    "CPU implementer",
    "CPU architecture",
    "CPU variant",
    "CPU part",
    "CPU revision",
    "Features",
];

/// Name of the CPU as its maker calls it, else the architecture.
pub(super) fn name() -> String {
    name_in(&cpuinfo())
}

/// The name and a fingerprint of the kind of processor: virtual machines call different ones alike.
pub(super) fn identity() -> String {
    identity_in(&cpuinfo())
}

/// Whether this is a processor of Intel's that lacks a feature, by its name in `/proc/cpuinfo`; not
/// where there is no such file.
pub(super) fn is_intel_without(feature: &str) -> bool {
    is_intel_without_in(&cpuinfo(), feature)
}

fn is_intel_without_in(cpuinfo: &str, feature: &str) -> bool {
    let value = |name| fields(cpuinfo).find(|(key, _)| *key == name);
    let has_feature = value("flags").is_some_and(|(_, flags)| {
        let mut flags = flags.split_whitespace();
        flags.any(|flag| flag == feature)
    });
    value("vendor_id").is_some_and(|(_, vendor)| vendor == "GenuineIntel") && !has_feature
}

fn cpuinfo() -> String {
    std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default()
}

fn name_in(cpuinfo: &str) -> String {
    let name = fields(cpuinfo).find(|(key, _)| *key == "model name");
    name.map_or(std::env::consts::ARCH, |(_, name)| name)
        .to_owned()
}

fn identity_in(cpuinfo: &str) -> String {
    let mut sha256 = Sha256::new();
    let first = cpuinfo.split("\n\n").next().unwrap_or_default();
    for (key, value) in fields(first).filter(|(key, _)| LASTING.contains(key)) {
        sha256.update(format!("{key}: {value}\n"));
    }
    format!("{} {}", name_in(cpuinfo), &hex(&sha256.finalize())[..16])
}

fn fields(cpuinfo: &str) -> impl Iterator<Item = (&str, &str)> {
    let fields = cpuinfo.lines().filter_map(|line| line.split_once(':'));
    fields.map(|(key, value)| (key.trim(), value.trim()))
}

#[cfg(test)]
mod tests {
    use super::*;

    const CPUINFO: &str = "processor\t: 0\nmodel\t\t: 207\nmodel name\t: Some Processor\n\
                           cpu MHz\t\t: 2300.1\nflags\t\t: avx2 avx512f\n\n\
                           processor\t: 1\nmodel name\t: Some Processor\n";

    #[test]
    fn processors_of_one_name_are_told_apart_by_what_they_can_do() {
        assert_eq!(name_in(CPUINFO), "Some Processor");
        let identity = identity_in(CPUINFO);
        assert!(identity.starts_with("Some Processor "), "{identity}");

        let other_speed = CPUINFO.replace("2300.1", "1800.0");
        assert_eq!(identity_in(&other_speed), identity);
        for (from, to) in [("207", "143"), ("avx512f", "avx512f amx_bf16")] {
            assert_ne!(identity_in(&CPUINFO.replace(from, to)), identity, "{to}");
        }
    }

    #[test]
    fn what_intel_calls_by_another_name_is_not_asked_of_others() {
        let of = |vendor: &str, flags: &str| {
            let cpuinfo = format!("vendor_id\t: {vendor}\nflags\t\t: {flags}\n");
            is_intel_without_in(&cpuinfo, "amx_bf16")
        };
        assert!(of("GenuineIntel", "avx512_bf16 amx_bf16_other"));
        assert!(!of("GenuineIntel", "avx512_bf16 amx_bf16 amx_tile"));
        assert!(!of("AuthenticAMD", "avx512_bf16"));
        assert!(!is_intel_without_in("", "amx_bf16"));
    }

    #[test]
    fn a_processor_without_a_name_is_called_by_its_architecture() {
        assert_eq!(name_in(""), std::env::consts::ARCH);
        assert!(identity_in("").starts_with(std::env::consts::ARCH));
    }
}
