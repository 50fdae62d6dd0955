//! `softfault workingset`: what a program needs first after a restore.

mod compare;
mod inspect;
mod write;

use crate::console::Console;
use crate::failure::{Outcome, Result};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Says what is in a working set: its windows of time, and whether it is suspiciously large.
    Inspect(inspect::Args),
    /// Makes one set of several recordings.
    Merge(write::Merge),
    /// Says how well a set has foretold what was touched.
    Compare(compare::Args),
    /// Carries a set to the image of another build, by what its pages hold.
    Carry(write::Carry),
}

pub(crate) fn run(verb: &Verb, console: &Console) -> Result<Outcome> {
    match verb {
        Verb::Inspect(args) => inspect::run(args, console),
        Verb::Merge(args) => write::merge(args, console),
        Verb::Compare(args) => compare::run(args, console),
        Verb::Carry(args) => write::carry(args, console),
    }
}
