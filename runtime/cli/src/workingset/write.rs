//! `softfault workingset merge` and `carry`: sets out of sets.

use crate::console::Console;
use crate::failure::{Failure, Outcome, Result};
use crate::source::{self, How};
use crate::units::{bytes, count, of_pages};
use clap::Args;
use serde::Serialize;
use softfault_image::workingset::{self, WorkingSet};
use std::fmt;
use std::path::PathBuf;

/// A page is as early in the new set as in any that has it. Sets of different images, or of different resolutions, are not
/// merged: exit code 5. The new file takes the place of what is there.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  softfault workingset merge run1.sws run2.sws run3.sws --out any.sws
  softfault workingset merge run1.sws run2.sws run3.sws --at-least 2 --out most.sws")]
pub(crate) struct Merge {
    /// The recordings.
    #[arg(required = true)]
    sets: Vec<PathBuf>,
    /// In how many of them a page has to be.
    #[arg(long, value_name = "NR", default_value_t = 1)]
    at_least: usize,
    /// The new file.
    #[arg(long, short, value_name = "FILE")]
    out: PathBuf,
}

/// Each group of pages is looked for by its digest, where it was, or else where it is nearest: so a set survives a rebuild.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  softfault workingset carry monday.sws monday.sfi tuesday.sfi
  softfault workingset carry monday.sws monday.sfi tuesday.sfi --out tuesday.sws")]
pub(crate) struct Carry {
    /// The set.
    set: PathBuf,
    /// The image that it is of.
    old: PathBuf,
    /// The image that it shall be of.
    new: PathBuf,
    /// The new file, in place of what is there; by default beside the new image, where a restore finds it.
    #[arg(long, short, value_name = "FILE")]
    out: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Merged {
    path: String,
    recordings: u32,
    windows: usize,
    pages: u64,
    bytes: u64,
}

#[derive(Debug, Serialize)]
struct CarriedTo {
    path: String,
    /// Groups of four pages: where they were, elsewhere, gone.
    stayed: u64,
    moved: u64,
    lost: u64,
    pages: u64,
    bytes: u64,
}

pub(crate) fn merge(args: &Merge, console: &Console) -> Result<Outcome> {
    if args.at_least == 0 || args.at_least > args.sets.len() {
        return Err(Failure::Usage(format!("--at-least is 1 to {}, the number of sets", args.sets.len())));
    }
    let sets: Vec<_> = args.sets.iter().map(WorkingSet::open).collect::<Result<_, _>>()?;
    let merged = workingset::merge(&sets.iter().collect::<Vec<_>>(), args.at_least)?;
    merged.save(&args.out)?;
    let report = Merged {
        path: args.out.display().to_string(),
        recordings: merged.recordings(),
        windows: merged.windows().len(),
        pages: merged.nr_pages(),
        bytes: of_pages(merged.nr_pages()),
    };
    console.say("workingset merge", &report)?;
    Ok(Outcome::Done)
}

pub(crate) fn carry(args: &Carry, console: &Console) -> Result<Outcome> {
    let set = WorkingSet::open(&args.set)?;
    let old = source::open(&args.old, &How::default(), console)?;
    let new = source::open(&args.new, &How::default(), console)?;
    let going_on = console.progress("looking for pages");
    let carried = workingset::carry(&set, &old, &new)?;
    drop(going_on);
    let path = match &args.out {
        Some(out) => carried.set.save(out).map(|()| out.clone())?,
        None => carried.set.save_beside(&new)?,
    };
    let pages = carried.set.nr_pages();
    let report = CarriedTo {
        path: path.display().to_string(),
        stayed: carried.stayed,
        moved: carried.moved,
        lost: carried.lost,
        pages,
        bytes: of_pages(pages),
    };
    console.say("workingset carry", &report)?;
    Ok(Outcome::Done)
}

impl fmt::Display for Merged {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pages, of) = (count(self.pages, "page"), count(self.recordings.into(), "recording"));
        let windows = count(self.windows as u64, "window");
        writeln!(f, "{}: {pages} ({}) in {windows}, of {of}", self.path, bytes(self.bytes))
    }
}

impl fmt::Display for CarriedTo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} ({})", self.path, count(self.pages, "page"), bytes(self.bytes))?;
        let Self { stayed, moved, lost, .. } = self;
        writeln!(f, "groups of four pages: {stayed} where they were, {moved} elsewhere, {lost} gone")
    }
}
