//! `softfault workingset compare`.

use crate::console::Console;
use crate::failure::{Outcome, Result};
use serde::Serialize;
use softfault_image::workingset::{self, WorkingSet};
use std::fmt;
use std::path::PathBuf;

/// Precision: which share of what was foretold was touched; the rest was read for nothing. Recall: which share of what was touched
/// was foretold; the rest was waited for. Jaccard's index has both.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault workingset compare replayed.sws recorded-today.sws")]
pub(crate) struct Args {
    /// What was foretold.
    foretold: PathBuf,
    /// What was touched.
    touched: PathBuf,
}

#[derive(Debug, Serialize)]
struct Report {
    foretold: String,
    touched: String,
    /// Pages that one of these numbers stands for.
    resolution_pages: u64,
    both: u64,
    foretold_alone: u64,
    touched_alone: u64,
    precision: f64,
    recall: f64,
    jaccard: f64,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let (foretold, touched) = (WorkingSet::open(&args.foretold)?, WorkingSet::open(&args.touched)?);
    let drift = workingset::compare(&foretold, &touched)?;
    let report = Report {
        foretold: args.foretold.display().to_string(),
        touched: args.touched.display().to_string(),
        resolution_pages: foretold.resolution().pages(),
        both: drift.both,
        foretold_alone: drift.foretold,
        touched_alone: drift.touched,
        precision: drift.precision(),
        recall: drift.recall(),
        jaccard: drift.jaccard(),
    };
    console.say("workingset compare", &report)?;
    Ok(Outcome::Done)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let percent = |share: f64| 100.0 * share;
        writeln!(f, "{} foretold what {} has touched:", self.foretold, self.touched)?;
        writeln!(f, "both       {}", self.both)?;
        writeln!(f, "foretold   {} more, which were read for nothing", self.foretold_alone)?;
        writeln!(f, "touched    {} more, which were waited for", self.touched_alone)?;
        writeln!(f, "precision  {:.1} %", percent(self.precision))?;
        writeln!(f, "recall     {:.1} %", percent(self.recall))?;
        writeln!(f, "jaccard    {:.1} %", percent(self.jaccard))
    }
}
