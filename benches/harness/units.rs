//! What every file of a benchmark uses: sizes, and why something could not be measured.

use softfault_platform::sys::Errno;

/// Bytes in a page.
pub const PAGE: usize = 4096;
/// Bytes in an extent: what one page-table page, or one huge entry, maps.
pub const EXTENT: usize = 2 << 20;
/// Pages in the windows that are filled or mapped at once.
pub const WINDOW_PAGES: usize = 64;
/// Bytes in a mebibyte.
pub const MIB: usize = 1 << 20;

/// Why a benchmark could not be measured.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call failed.
    #[error("{what}: {errno}")]
    Sys {
        /// What was tried.
        what: &'static str,
        /// The kernel's answer.
        errno: Errno,
    },
    /// The standard library's input or output failed.
    #[error("{what}: {source}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// The library's answer.
        source: std::io::Error,
    },
    /// The command line cannot be understood.
    #[error("{0}")]
    Usage(String),
    /// Something is missing on this machine or in this build: the rows that need it are skipped with this reason.
    #[error("{0}")]
    Absent(String),
    /// A side did something else than it was timed for; its figure would be worthless.
    #[error("{0}")]
    Wrong(String),
}

impl Error {
    /// Returns the error once more, as text, for another row that it costs.
    #[must_use]
    pub fn again(&self) -> Self {
        match self {
            Self::Absent(why) => Self::Absent(why.clone()),
            other => Self::Wrong(other.to_string()),
        }
    }
}

/// A result of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Names what was tried when a system call fails.
pub trait Context<T> {
    /// Turns the error into an [`Error`] that says `what` was tried.
    ///
    /// # Errors
    /// The error it was given.
    fn context(self, what: &'static str) -> Result<T>;
}

impl<T> Context<T> for std::result::Result<T, Errno> {
    fn context(self, what: &'static str) -> Result<T> {
        self.map_err(|errno| Error::Sys { what, errno })
    }
}

impl<T> Context<T> for std::io::Result<T> {
    fn context(self, what: &'static str) -> Result<T> {
        self.map_err(|source| Error::Io { what, source })
    }
}
