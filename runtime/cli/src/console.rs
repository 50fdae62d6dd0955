//! What is said, and where: answers on standard output, everything else on standard error.

use crate::failure::{Failure, Result};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use serde::Serialize;
use std::fmt;
use std::io::{self, IsTerminal, Write};
use std::time::Duration;

/// How often progress is drawn while a call does not come back.
const TICK: Duration = Duration::from_millis(100);

/// Where a verb speaks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Console {
    json: bool,
    quiet: bool,
}

/// An answer, and which verb's it is: its schema is called so.
#[derive(Debug, Serialize)]
struct Answer<'a, T> {
    kind: &'a str,
    #[serde(flatten)]
    answer: &'a T,
}

/// What a failure is in JSON.
#[derive(Debug, Serialize)]
struct Failed<'a> {
    code: u8,
    name: &'a str,
    error: String,
}

impl Console {
    pub(crate) fn new(json: bool, quiet: bool) -> Self {
        Self { json, quiet }
    }

    /// Writes a verb's answer: as text, or as JSON on one line.
    ///
    /// # Errors
    /// Standard output could not be written. Who reads it may have seen enough: that is none.
    pub(crate) fn say(&self, kind: &str, answer: &(impl Serialize + fmt::Display)) -> Result<()> {
        self.write(kind, answer).map_err(Failure::io("write", "standard output"))
    }

    fn write(&self, kind: &str, answer: &(impl Serialize + fmt::Display)) -> io::Result<()> {
        let text = match self.json {
            true => serde_json::to_string(&Answer { kind, answer })? + "\n",
            false => answer.to_string(),
        };
        self.write_bytes(text.as_bytes())
    }

    /// Writes bytes to standard output.
    ///
    /// # Errors
    /// As [`Console::say`].
    pub(crate) fn write_bytes(&self, bytes: &[u8]) -> io::Result<()> {
        let mut out = io::stdout().lock();
        match out.write_all(bytes).and_then(|()| out.flush()) {
            Err(e) if e.kind() == io::ErrorKind::BrokenPipe => Ok(()),
            result => result,
        }
    }

    /// Says what a person should know and a program need not.
    pub(crate) fn note(&self, text: &str) {
        // Who has closed standard error wants to hear nothing.
        let _ = writeln!(io::stderr(), "softfault: {text}");
    }

    /// Says why nothing came of it.
    pub(crate) fn fail(&self, failure: &Failure) {
        self.note(&failure.to_string());
        if self.json {
            let answer = Failed { code: failure.number(), name: failure.name(), error: failure.to_string() };
            let line = serde_json::to_string(&Answer { kind: "error", answer: &answer }).unwrap_or_default();
            // The exit code says it too.
            let _ = self.write_bytes((line + "\n").as_bytes());
        }
    }

    /// Shows that something goes on, until what is returned is dropped: on a terminal, and nowhere else.
    pub(crate) fn progress(&self, what: &str) -> Progress {
        let is_shown = !self.quiet && io::stderr().is_terminal();
        let target = if is_shown { ProgressDrawTarget::stderr() } else { ProgressDrawTarget::hidden() };
        let bar = ProgressBar::with_draw_target(None, target);
        // A template of ours is right, or the test says so; drawn is at least the default.
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.set_message(what.to_owned());
        if is_shown {
            bar.enable_steady_tick(TICK);
        }
        Progress(bar)
    }
}

const TEMPLATE: &str = "{spinner} {msg} {binary_bytes} in {elapsed}";

/// Something that goes on.
#[derive(Debug)]
pub(crate) struct Progress(ProgressBar);

impl Progress {
    /// So many bytes are done.
    pub(crate) fn set(&self, bytes: u64) {
        self.0.set_position(bytes);
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_template_of_progress_is_one() {
        ProgressStyle::with_template(TEMPLATE).expect("a template");
    }
}
