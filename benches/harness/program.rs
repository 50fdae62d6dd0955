//! What every benchmark program is: arguments, a heading, groups of rows, an exit code; or a child of itself.

use crate::args::Options;
use crate::session::Session;
use crate::{Error, Result, child, report};
use std::process::ExitCode;

/// A group of rows whose sides are measured in turn.
pub type Group = (&'static str, fn(&mut Session) -> Result<()>);

/// One benchmark program.
#[derive(Debug)]
pub struct Program {
    /// What errors are told under.
    pub name: &'static str,
    /// Where files go, unless `--dir` says otherwise.
    pub dir: &'static str,
    /// Its rows.
    pub groups: &'static [Group],
    /// Prints what the figures are of, before the first row.
    pub describe: fn(&Options),
    /// What it does when it was started as a child of its own.
    pub child: Option<fn() -> Result<()>>,
}

impl Program {
    /// Runs it: 0 where every goal was met, 1 where not, 2 for a command line that it does not understand.
    #[must_use]
    pub fn main(&self) -> ExitCode {
        let done = match self.child {
            Some(child) if child::is_one() => child().map(|()| true),
            _ => self.run(),
        };
        exit(self.name, done)
    }

    fn run(&self) -> Result<bool> {
        let options = Options::from_env(self.dir)?;
        let mut session = Session::new(options)?;
        if !session.options.list {
            (self.describe)(&session.options);
            println!("{}", report::heading());
        }
        for (name, group) in self.groups {
            // One group that cannot be had on this machine does not cost the others.
            if let Err(e) = group(&mut session) {
                session.failed(name, &e);
            }
        }
        session.finish()
    }
}

/// Tells what came of a program, and turns it into its exit code.
#[must_use]
pub fn exit(name: &str, done: Result<bool>) -> ExitCode {
    match done {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(e) => {
            eprintln!("{name}: {e}");
            ExitCode::from(if matches!(e, Error::Usage(_)) { 2 } else { 1 })
        }
    }
}
