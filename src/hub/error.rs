//! Why a published model can't be had, each with what to do about it.

use std::{io, path::PathBuf};

use super::format_bytes;

/// Why a published model can't be had.
#[derive(Debug, thiserror::Error)]
pub enum HubError {
    /// A name that nobody publishes a model under.
    #[error("{0}")]
    Name(String),
    /// There is no folder to keep models in.
    #[error(
        "there is no home folder to keep models in (HOME is not set); give one with --hub-cache"
    )]
    NoFolder,
    /// Off line, and the file is not there.
    #[error("{file} is not on this machine, and nothing is fetched with --offline; {hint}")]
    Offline { file: String, hint: String },
    /// No connection.
    #[error("{url} can't be reached: {reason}; {hint}")]
    Unreachable {
        url: String,
        reason: String,
        hint: String,
    },
    /// A server that answered with something else than the file.
    #[error("{url}: {reason}")]
    Answer { url: String, reason: String },
    /// The connection ended too often before the file did.
    #[error(
        "{url}: the transfer was cut after {} ({reason}); what came is kept, and the next attempt \
         goes on from there",
        format_bytes(*got)
    )]
    Cut {
        url: String,
        got: u64,
        reason: String,
    },
    /// Not had within the time that there was.
    #[error("{file} could not be had within {seconds} s{got}")]
    TooSlow {
        file: String,
        seconds: u64,
        /// What has come, with the words around it; may be empty.
        got: String,
    },
    /// Not the bytes that it should be.
    #[error(
        "{place}: its SHA-256 begins with {found}, but should with {expected}; nothing has read \
         it{removed}"
    )]
    Hash {
        place: String,
        expected: String,
        found: String,
        /// What became of the file, with the words around it.
        removed: &'static str,
    },
    /// The folder can't be written.
    #[error("{}: {}", path.display(), disk(source))]
    Disk { path: PathBuf, source: io::Error },
    /// The file was had but is no model.
    #[error("{file}: {reason}")]
    Model { file: String, reason: String },
}

fn disk(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
            "the disk is full; make room, or keep models elsewhere with --hub-cache".into()
        }
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            format!("can't be written ({error}); keep models elsewhere with --hub-cache")
        }
        _ => format!("can't be written: {error}"),
    }
}
