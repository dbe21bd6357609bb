//! The built program as a file.

use std::{fs, ops::Range, path::Path};

use crate::common::skipped;

/// The parts of a 64-bit little-endian ELF file that are loaded into memory. Debugging information
/// is not: release builds strip it, and in others it contains the paths of all sources.
fn loaded_segments(elf: &[u8]) -> Option<Vec<Range<usize>>> {
    const LOADABLE: u32 = 1;

    if elf.get(..6)? != b"\x7fELF\x02\x01" {
        return None;
    }
    let u16_at = |offset: usize| u16::from_le_bytes(elf[offset..offset + 2].try_into().unwrap());
    let u32_at = |offset: usize| u32::from_le_bytes(elf[offset..offset + 4].try_into().unwrap());
    let u64_at = |offset: usize| u64::from_le_bytes(elf[offset..offset + 8].try_into().unwrap());

    // Offset, entry size and number of entries of the program headers.
    let table = u64_at(32) as usize;
    let entry_size = usize::from(u16_at(54));
    let entries = usize::from(u16_at(56));
    let segments = (0..entries)
        .map(|entry| table + entry * entry_size)
        .filter(|&header| u32_at(header) == LOADABLE)
        .map(|header| {
            let start = u64_at(header + 8) as usize;
            start..start + u64_at(header + 32) as usize
        });
    Some(segments.collect())
}

/// A path of the machine that built the program would be looked up on every machine that runs it.
#[test]
fn the_program_does_not_contain_the_path_of_its_checkout() {
    let project = env!("CARGO_MANIFEST_DIR").as_bytes();
    // Panics in generated code name their file there.
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().unwrap();
    let target = target.to_str().unwrap().as_bytes();

    let program = fs::read(env!("CARGO_BIN_EXE_resnet18")).unwrap();
    let Some(segments) = loaded_segments(&program) else {
        return skipped("the program is not a 64-bit ELF file");
    };
    assert!(!segments.is_empty());

    for segment in segments {
        let bytes = &program[segment];
        for (start, _) in bytes.iter().enumerate().filter(|(_, byte)| **byte == b'/') {
            let rest = &bytes[start..];
            if rest.starts_with(project) && !rest.starts_with(target) {
                let end = rest.len().min(200);
                panic!("found {:?}", String::from_utf8_lossy(&rest[..end]));
            }
        }
    }
}
