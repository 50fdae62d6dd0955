//! What is wrong with an image, and where.
//!
//! # Context: control plane; allocates

use crate::digest::Digest;
use std::io;
use std::path::{Path, PathBuf};

/// The result of this crate's calls.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an image could not be read, written, or found.
///
/// Each names the file, and what is in it by its byte offset, so that a person can look there.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    #[error("{op} {}: {source}", path.display())]
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// The file is not what its format says: truncated, damaged, or made to deceive.
    #[error("{}: {what} at byte {offset}: {why}", path.display())]
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// Which part of it.
        what: &'static str,
        /// Where the part, or the value in it, begins.
        offset: u64,
        /// What is wrong there.
        why: String,
    },
    /// Bytes are not those that the image was made of.
    #[error("{}: the digest of {what} at byte {offset} is {found}, and not {wanted}", path.display())]
    Digest {
        /// Which file.
        path: PathBuf,
        /// Which part of it.
        what: &'static str,
        /// Where the part begins.
        offset: u64,
        /// What the image says.
        wanted: Digest,
        /// What the bytes say.
        found: Digest,
    },
    /// The image is whole, but made by or for something that this build does not know.
    #[error("{}: {what} is not supported: {why}", path.display())]
    Unsupported {
        /// Which file.
        path: PathBuf,
        /// What it asks for.
        what: String,
        /// What to do about it.
        why: &'static str,
    },
    /// A file below an image is no longer the one that the image was made over.
    #[error("{}: {what} has changed since the image was opened", path.display())]
    Changed {
        /// Which file.
        path: PathBuf,
        /// Its length, its identity, its digest.
        what: &'static str,
    },
    /// Something else holds what is to be removed or replaced.
    #[error("{}: in use: {why}", path.display())]
    InUse {
        /// Which file.
        path: PathBuf,
        /// By whom.
        why: String,
    },
    /// Two things cannot be put together.
    #[error("{op}: {what} differ: {one}, and {other}")]
    Mixed {
        /// The call.
        op: &'static str,
        /// What of them differs.
        what: &'static str,
        /// That of the one.
        one: String,
        /// That of the other.
        other: String,
    },
    /// The caller's own argument.
    #[error("{op}: {arg} is {value}: {why}")]
    Argument {
        /// The call.
        op: &'static str,
        /// Its argument.
        arg: &'static str,
        /// What it was.
        value: u64,
        /// Why it cannot be that.
        why: &'static str,
    },
}

impl Error {
    pub(crate) fn io(op: &'static str, path: &Path) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { op, path: path.into(), source }
    }

    /// Returns whether the image itself is at fault, not the machine or the caller.
    #[must_use]
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Corrupt { .. } | Self::Digest { .. })
    }
}
