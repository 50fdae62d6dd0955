//! What was found, and what mends it.

use serde::Serialize;

/// How bad it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Level {
    /// As it should be.
    Ok,
    /// A program may need to know.
    Note,
    /// The runtime does not work, or is far slower than it could be.
    Problem,
}

impl Level {
    pub(crate) fn word(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Note => "note",
            Self::Problem => "PROBLEM",
        }
    }
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) level: Level,
    pub(crate) says: String,
    /// What to do about it; always there if it is not as it should be.
    pub(crate) mend: Option<String>,
}

impl Finding {
    pub(crate) fn ok(says: impl Into<String>) -> Self {
        Self { level: Level::Ok, says: says.into(), mend: None }
    }

    pub(crate) fn note(says: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Note, says: says.into(), mend: Some(mend.into()) }
    }

    pub(crate) fn problem(says: impl Into<String>, mend: impl Into<String>) -> Self {
        Self { level: Level::Problem, says: says.into(), mend: Some(mend.into()) }
    }
}
