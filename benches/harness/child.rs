//! A side in a process of its own: mostly this program again, told what to run by lines on its standard input.
//!
//! It answers each line with `done` and figures, or `failed` or `absent` and why. It does nothing before its first line, and ends
//! when its input does, also because its parent died.

use crate::{Context, Error, Result};
use std::io::{BufRead, BufReader, Write};
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

/// The first argument of a child.
const ARGUMENT: &str = "--child";

/// A running child, as its parent sees it.
#[derive(Debug)]
pub struct Child {
    process: std::process::Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Child {
    /// Starts a child.
    ///
    /// # Errors
    /// The command cannot be run.
    pub fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("starting a child")?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let output = BufReader::new(output.ok_or_else(|| Error::Wrong("a child without output".to_owned()))?);
        Ok(Self { process, input, output })
    }

    /// Returns its process number.
    #[must_use]
    pub fn id(&self) -> u32 {
        self.process.id()
    }

    /// Sends one line and returns the figures of the answer.
    ///
    /// # Errors
    /// What it answers, or that it does not.
    pub fn ask(&mut self, line: &str) -> Result<Vec<f64>> {
        let mut answer = String::new();
        if let Some(input) = &mut self.input {
            // Who has died says why in its last line.
            let _ = writeln!(input, "{line}");
        }
        self.output.read_line(&mut answer).context("reading from a child")?;
        match answer.trim().split_once(' ') {
            Some(("done", figures)) => Ok(figures.split(' ').filter_map(|f| f.parse().ok()).collect()),
            Some(("absent", why)) => Err(Error::Absent(why.to_owned())),
            Some(("failed", why)) => Err(Error::Wrong(why.to_owned())),
            _ => Err(Error::Wrong(format!("a child ended, or answered {answer:?}, to {line:?}"))),
        }
    }

    /// The same, of an answer with one figure.
    ///
    /// # Errors
    /// As [`Child::ask`].
    pub fn ask_one(&mut self, line: &str) -> Result<f64> {
        let figures = self.ask(line)?;
        figures.first().copied().ok_or_else(|| Error::Wrong("a child answered without a figure".to_owned()))
    }
}

impl Drop for Child {
    fn drop(&mut self) {
        drop(self.input.take());
        // It was told to end; how it ended says nothing any more.
        let _ = self.process.wait();
    }
}

/// Returns a command that starts this program as a child of itself.
///
/// # Errors
/// The system does not say which program this is.
pub fn this_program() -> Result<Command> {
    let mut command = Command::new(std::env::current_exe().context("finding this program")?);
    command.arg(ARGUMENT);
    Ok(command)
}

/// Returns whether this program was started as a child of itself.
#[must_use]
pub fn is_one() -> bool {
    std::env::args().nth(1).as_deref() == Some(ARGUMENT)
}

/// Returns the arguments of this program, which is a child.
#[must_use]
pub fn arguments() -> Vec<String> {
    std::env::args().skip(2).collect()
}

/// Returns the error of a child that was started by hand.
#[must_use]
pub fn usage() -> Error {
    Error::Usage(format!("{ARGUMENT} is for this program's own use"))
}

/// Answers line by line until the input ends.
///
/// # Errors
/// The parent cannot be heard, or told.
pub fn serve(mut answer: impl FnMut(&str) -> Result<String>) -> Result<()> {
    for line in std::io::stdin().lines() {
        let answer = match answer(&line.context("reading a line")?) {
            Ok(figures) => format!("done {figures}"),
            Err(Error::Absent(why)) => format!("absent {why}"),
            Err(e) => format!("failed {e}"),
        };
        let mut out = std::io::stdout();
        writeln!(out, "{}", answer.replace('\n', "; ")).context("answering")?;
        out.flush().context("answering")?;
    }
    Ok(())
}
