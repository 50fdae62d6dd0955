//! `softfault timeline`.

use super::{Which, nr_within};
use crate::console::Console;
use crate::failure::{Outcome, Result};
use crate::units::{bytes, count, millis, of_pages};
use serde::Serialize;
use std::fmt;

/// The longest bar.
const BAR: u64 = 40;

/// A line for each window of time of a recording: how many pages were touched first in it, in how many runs, of which regions, and
/// which share of all had been touched then.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault timeline first.sws
  softfault timeline first.sws --image heap.sfi --json")]
pub(crate) struct Args {
    #[command(flatten)]
    which: Which,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    pages: u64,
    bytes: u64,
    windows: Vec<Window>,
}

#[derive(Debug, Serialize)]
struct Window {
    from_ns: u64,
    to_ns: u64,
    pages: u64,
    runs: usize,
    /// Pages until the window's end, of all windows.
    pages_until: u64,
    regions: Vec<Region>,
}

#[derive(Debug, Serialize)]
struct Region {
    name: String,
    pages: u64,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let recording = super::open(&args.which, console)?;
    let mut pages_until = 0;
    let windows = recording.set.windows().iter().map(|w| {
        pages_until += w.nr_pages();
        let of = |(name, pages): &(String, _)| Region { name: name.clone(), pages: nr_within(w.runs(), pages) };
        Window {
            from_ns: w.time_ns().start,
            to_ns: w.time_ns().end,
            pages: w.nr_pages(),
            runs: w.runs().count(),
            pages_until,
            regions: recording.regions.iter().map(of).filter(|r| r.pages > 0).collect(),
        }
    });
    let windows = windows.collect();
    let (path, pages) = (args.which.events.display().to_string(), pages_until);
    console.say("timeline", &Report { path, pages, bytes: of_pages(pages), windows })?;
    Ok(Outcome::Done)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} ({})", self.path, count(self.pages, "page"), bytes(self.bytes))?;
        let most = self.windows.iter().map(|w| w.pages).max().unwrap_or(0).max(1);
        for w in &self.windows {
            let bar = "#".repeat(usize::try_from((w.pages * BAR).div_ceil(most)).unwrap_or(0));
            let share = 100.0 * w.pages_until as f64 / self.pages.max(1) as f64;
            let time = format!("{}..{}", millis(w.from_ns), millis(w.to_ns));
            let regions: Vec<_> = w.regions.iter().map(|r| format!("{} {}", r.name.escape_debug(), r.pages)).collect();
            let (runs, regions) = (count(w.runs as u64, "run"), regions.join(", "));
            writeln!(f, "{time:>16} ms  {share:>5.1} %  {bar:<40}  {runs}: {regions}")?;
        }
        Ok(())
    }
}
