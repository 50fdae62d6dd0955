//! What a command ends with, and why.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

/// The result of a verb.
pub(crate) type Result<T, E = Failure> = std::result::Result<T, E>;

/// The table that `--help` ends with.
pub(crate) const EXIT_CODES: &str = "\
Exit codes:
  0  done
  1  the machine refused: a file that is not there, a disk that is full
  2  the command line, or a number in it, is not what it can be
  3  an image, or another file, is corrupt: truncated, damaged, or made to deceive
  4  an image is whole, and cannot be used so: another version, no digests
  5  something else stands against it: a file is held, has changed, or two do not belong together
  6  done, and the answer is no: images differ (diff --exit-code), the doctor has found a problem";

/// What a verb that did its work has to say by its exit code.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// It was done.
    Done,
    /// It was done, and the answer is no.
    No,
}

impl Outcome {
    pub(crate) fn code(self) -> ExitCode {
        ExitCode::from(match self {
            Self::Done => 0,
            Self::No => 6,
        })
    }
}

/// Why a verb did not do its work.
#[derive(Debug)]
pub(crate) enum Failure {
    /// What the crate of images says.
    Image(softfault_image::Error),
    /// What the runtime says.
    Runtime(softfault::Error),
    /// Why the image's pages could not be had by the runtime.
    Fill {
        /// What the crate of images has said.
        failure: Arc<softfault_image::Error>,
    },
    /// A system call of our own.
    Io {
        /// What was tried.
        op: &'static str,
        /// On which file.
        path: PathBuf,
        /// What the kernel said.
        source: io::Error,
    },
    /// A file that is no image and is not what it should be.
    Corrupt {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        why: String,
    },
    /// Arguments that do not go together, or name nothing.
    Usage(String),
}

impl Failure {
    pub(crate) fn io(op: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        move |source| Self::Io { op, path: path.into(), source }
    }

    /// Returns the exit code, as the table of `--help` has it.
    pub(crate) fn number(&self) -> u8 {
        match self {
            Self::Image(e) => number_of(e),
            Self::Fill { failure } => number_of(failure),
            Self::Runtime(softfault::Error::Image { source, .. }) => number_of(source),
            Self::Corrupt { .. } => 3,
            Self::Usage(_) | Self::Runtime(softfault::Error::Argument { .. }) => 2,
            Self::Runtime(_) | Self::Io { .. } => 1,
        }
    }

    pub(crate) fn code(&self) -> ExitCode {
        ExitCode::from(self.number())
    }

    /// Returns the number's name, for programs.
    pub(crate) fn name(&self) -> &'static str {
        match self.number() {
            2 => "usage",
            3 => "corrupt",
            4 => "unsupported",
            5 => "refused",
            _ => "failed",
        }
    }
}

/// Returns the exit code of what is wrong with an image.
fn number_of(error: &softfault_image::Error) -> u8 {
    use softfault_image::Error as E;
    match error {
        e if e.is_corruption() => 3,
        E::Unsupported { .. } => 4,
        E::Changed { .. } | E::InUse { .. } | E::Mixed { .. } => 5,
        E::Argument { .. } => 2,
        _ => 1,
    }
}

impl From<softfault::Error> for Failure {
    fn from(e: softfault::Error) -> Self {
        Self::Runtime(e)
    }
}

impl From<softfault_image::Error> for Failure {
    fn from(e: softfault_image::Error) -> Self {
        Self::Image(e)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Image(e) => e.fmt(f),
            Self::Fill { failure } => failure.fmt(f),
            Self::Runtime(e) => e.fmt(f),
            Self::Io { op, path, source } => write!(f, "{op} {}: {source}", path.display()),
            Self::Corrupt { path, why } => write!(f, "{}: {why}", path.display()),
            Self::Usage(why) => f.write_str(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use softfault_image::{Digest, Error};

    #[test]
    fn each_kind_of_failure_has_the_code_that_the_help_says() {
        let (path, digest) = (PathBuf::from("x"), Digest::ZERO);
        let io = || io::Error::other("refused");
        let cases = [
            (Error::Io { op: "read", path: path.clone(), source: io() }, 1, "failed"),
            (Error::Argument { op: "o", arg: "a", value: 1, why: "w" }, 2, "usage"),
            (Error::Corrupt { path: path.clone(), what: "w", offset: 1, why: "y".into() }, 3, "corrupt"),
            (Error::Digest { path: path.clone(), what: "w", offset: 1, wanted: digest, found: digest }, 3, "corrupt"),
            (Error::Unsupported { path: path.clone(), what: "w".into(), why: "y" }, 4, "unsupported"),
            (Error::Changed { path: path.clone(), what: "w" }, 5, "refused"),
            (Error::InUse { path: path.clone(), why: "y".into() }, 5, "refused"),
            (Error::Mixed { op: "o", what: "w", one: "1".into(), other: "2".into() }, 5, "refused"),
        ];
        for (error, code, name) in cases {
            let said = error.to_string();
            let failure = Failure::from(error);
            assert_eq!((failure.number(), failure.name(), failure.to_string()), (code, name, said));
            assert!(EXIT_CODES.contains(&format!("\n  {code}  ")), "the help says nothing of {code}");
        }
        assert_eq!(Failure::Usage(String::new()).number(), 2);
        assert_eq!(Failure::io("read", "x")(io()).number(), 1);
    }
}
