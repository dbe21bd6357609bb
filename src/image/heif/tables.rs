//! The tables of a container, whose length is looked at before they are read.

use super::{super::ImageError, errors::Named};

/// The most bytes of each table of the container: enough for a thousand tiles. Reading them takes a
/// time that grows with the square of their length.
const LARGEST_TABLE: usize = 32 << 10;

/// Rejects files whose tables are longer than any photo's.
pub(super) fn check(encoded: &[u8], named: Named) -> Result<(), ImageError> {
    let Some(meta) = boxes(encoded).find(|(kind, _)| kind == b"meta") else {
        return Ok(());
    };
    // The version and the flags come first.
    let children = boxes(meta.1.get(4..).unwrap_or_default());
    for (kind, content) in children {
        let longest = match &kind {
            b"iinf" | b"iloc" | b"iref" => content.len(),
            b"iprp" => boxes(content)
                .filter(|(kind, _)| kind == b"ipma")
                .map(|(_, content)| content.len())
                .sum(),
            _ => 0,
        };
        if longest > LARGEST_TABLE {
            return Err(named.damaged(format!(
                "its tables of pictures have more than {LARGEST_TABLE} bytes"
            )));
        }
    }
    Ok(())
}

/// The boxes of a container, each with its type and content.
fn boxes(mut data: &[u8]) -> impl Iterator<Item = ([u8; 4], &[u8])> {
    std::iter::from_fn(move || {
        let (size, rest) = data.split_first_chunk::<4>()?;
        let (kind, rest) = rest.split_first_chunk::<4>()?;
        let (size, header, rest) = match u32::from_be_bytes(*size) {
            // To the end of the file.
            0 => (data.len() as u64, 8, rest),
            1 => {
                let (size, rest) = rest.split_first_chunk::<8>()?;
                (u64::from_be_bytes(*size), 16, rest)
            }
            size => (size.into(), 8, rest),
        };
        let content = usize::try_from(size.checked_sub(header)?).ok()?;
        let content = content.min(rest.len());
        let (content, after) = rest.split_at(content);
        data = after;
        Some((*kind, content))
    })
}
