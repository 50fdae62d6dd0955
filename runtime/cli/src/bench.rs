//! `softfault bench`: what a restore of this image costs here.

mod restore;

use crate::console::Console;
use crate::failure::{Outcome, Result};
use clap::Subcommand;

#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Restores an image some times over, and says how long each step takes.
    Restore(restore::Args),
}

pub(crate) fn run(verb: &Verb, console: &Console) -> Result<Outcome> {
    match verb {
        Verb::Restore(args) => restore::run(args, console),
    }
}
