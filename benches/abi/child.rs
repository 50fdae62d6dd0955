//! A side in a process of its own, as its parent sees it; and the one side that is this program again.
//!
//! A child makes its runtime first, then moves to the processor that measures, so that its background threads are not
//! bound to it. It answers each line with `done` and figures, or `failed` or `absent` and why, and ends when its input does.

use crate::subject::{Kind, Side};
use softfault_benches::machine::Pinned;
use softfault_benches::{Context, Error, Result};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{ChildStdin, ChildStdout, Command, Stdio};

/// The first argument of a child.
pub(crate) const ARGUMENT: &str = "--child";

/// A running child.
#[derive(Debug)]
pub(crate) struct Child {
    process: std::process::Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
}

impl Child {
    /// Starts a child.
    pub(crate) fn start(command: &mut Command) -> Result<Self> {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut process = command.spawn().context("starting a child")?;
        let (input, output) = (process.stdin.take(), process.stdout.take());
        let output = BufReader::new(output.ok_or_else(|| Error::Wrong("a child without output".to_owned()))?);
        Ok(Self { process, input, output })
    }

    /// Starts this program again, as the Rust side.
    pub(crate) fn rust(kind: Kind, path: &Path, len_bytes: usize, cpu: usize) -> Result<Self> {
        let mut command = Command::new(std::env::current_exe().context("finding this program")?);
        command.arg(ARGUMENT);
        Self::start(arguments(&mut command, kind, path, len_bytes, cpu))
    }

    /// Sends one line and returns the figures of the answer.
    pub(crate) fn ask(&mut self, line: &str) -> Result<Vec<f64>> {
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

    /// Has it touch every page for the first time, and returns nanoseconds a page.
    pub(crate) fn run(&mut self) -> Result<f64> {
        let figures = self.ask("run")?;
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

/// Adds what both the Rust side and the C side take.
pub(crate) fn arguments<'a>(
    command: &'a mut Command,
    kind: Kind,
    path: &Path,
    len_bytes: usize,
    cpu: usize,
) -> &'a mut Command {
    command.arg(kind.name()).arg(path).args([len_bytes.to_string(), cpu.to_string()])
}

/// Runs the Rust side until its input ends.
pub(crate) fn main() -> Result<()> {
    let usage = || Error::Usage(format!("{ARGUMENT} is for this program's own use"));
    let args: Vec<String> = std::env::args().skip(2).collect();
    let [kind, path, len_bytes, cpu] = &args[..] else { return Err(usage()) };
    let number = |text: &String| text.parse::<usize>().map_err(|_| usage());
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind).ok_or_else(usage)?;
    let side = Side::new(kind, Path::new(path), number(len_bytes)?)?;
    let _pinned = Pinned::to(number(cpu)?)?;
    for line in std::io::stdin().lines() {
        line.context("reading a line")?;
        let answer = match side.run() {
            Ok(ns) => format!("done {ns}"),
            Err(e) => format!("failed {e}"),
        };
        let mut out = std::io::stdout();
        writeln!(out, "{}", answer.replace('\n', "; ")).context("answering")?;
        out.flush().context("answering")?;
    }
    Ok(())
}
