//! Errors about a HEIF or AVIF file, and the conversion of those of its libraries.

use heifer::heifer_isobmff as container;

use super::super::{ImageError, ImageFormat};

/// The file that an error is about.
#[derive(Clone, Copy)]
pub(super) struct Named {
    pub format: ImageFormat,
    /// The length of the file as received.
    pub bytes: usize,
}

impl Named {
    pub fn damaged(self, reason: impl Into<String>) -> ImageError {
        ImageError::Damaged {
            format: self.format,
            reason: reason.into(),
        }
    }

    pub fn unsupported(self, reason: impl Into<String>) -> ImageError {
        ImageError::UnsupportedVariant {
            format: self.format,
            reason: reason.into(),
        }
    }

    pub fn truncated(self) -> ImageError {
        ImageError::Truncated {
            format: self.format,
            bytes: self.bytes,
        }
    }

    /// What is wrong with a part of the container that is there.
    pub fn container(self, error: container::Error) -> ImageError {
        match error {
            container::Error::Unimplemented(what) => self.unsupported(what),
            error => self.damaged(error.to_string()),
        }
    }

    /// What is wrong with the container, which may end early.
    pub fn end(self, error: container::Error) -> ImageError {
        match error {
            container::Error::UnexpectedEof => self.truncated(),
            error => self.container(error),
        }
    }
}
