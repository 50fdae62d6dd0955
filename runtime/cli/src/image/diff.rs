//! `softfault image diff`.

use crate::console::Console;
use crate::failure::{Outcome, Result};
use crate::source::{self, Format, How};
use crate::units::{bytes, count, of_pages};
use serde::Serialize;
use softfault_image::ops::{self, Compare};
use std::fmt;
use std::path::PathBuf;

/// What lies past the end of the shorter image is compared to zero. Pages that lie at the same place of the same file are not
/// read, nor those whose digests are equal.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault image diff monday.sfi tuesday.sfi
  softfault image diff --exit-code --read-pages built.sfi downloaded.sfi && echo equal")]
pub(crate) struct Args {
    /// The one image.
    old: PathBuf,
    /// The other.
    new: PathBuf,
    /// The format of both; by default `.sfi` where a file is called so, else raw.
    #[arg(long, value_enum, value_name = "FORMAT")]
    from: Option<Format>,
    /// Believes no digest: reads and compares the pages.
    #[arg(long)]
    read_pages: bool,
    /// Ends with exit code 6 if they differ.
    #[arg(long)]
    exit_code: bool,
}

#[derive(Debug, Serialize)]
struct Report {
    old: String,
    new: String,
    equal: bool,
    pages: u64,
    bytes: u64,
    runs: Vec<Run>,
}

#[derive(Debug, Serialize)]
struct Run {
    page: u64,
    pages: u64,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let how = How::of(args.from);
    let (old, new) = (source::open(&args.old, &how, console)?, source::open(&args.new, &how, console)?);
    let compare = if args.read_pages { Compare::Pages } else { Compare::Digests };
    let going_on = console.progress("comparing");
    let diff = ops::diff(&old, &new, compare)?;
    drop(going_on);
    let report = Report {
        old: args.old.display().to_string(),
        new: args.new.display().to_string(),
        equal: diff.nr_pages() == 0,
        pages: diff.nr_pages(),
        bytes: of_pages(diff.nr_pages()),
        runs: diff.runs().iter().map(|r| Run { page: r.start, pages: r.end - r.start }).collect(),
    };
    console.say("image diff", &report)?;
    Ok(if args.exit_code && !report.equal { Outcome::No } else { Outcome::Done })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.equal {
            return writeln!(f, "{} and {} are the same memory", self.old, self.new);
        }
        let (pages, runs) = (count(self.pages, "page"), count(self.runs.len() as u64, "run"));
        writeln!(f, "{} and {} differ in {pages} ({}), in {runs}", self.old, self.new, bytes(self.bytes))?;
        self.runs.iter().try_for_each(|run| writeln!(f, "{}..{}", run.page, run.page + run.pages))
    }
}
