//! `softfault workingset inspect`.

use crate::console::Console;
use crate::failure::{Failure, Outcome, Result};
use crate::source::{self, How};
use crate::units::{bytes, count, millis, of_pages};
use serde::Serialize;
use softfault_image::workingset::{Suspicion, WorkingSet};
use std::fmt;
use std::path::PathBuf;

/// With --image it is looked up whether the set is of that image, and whether it is suspiciously large: a scan or a backup may have
/// been recorded, and replaying it would be copying the image.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault workingset inspect first.sws
  softfault workingset inspect --image heap.sfi --before monday.sws tuesday.sws
  softfault workingset inspect --image heap.sfi")]
pub(crate) struct Args {
    /// The set; by default the one that lies beside the image.
    set: Option<PathBuf>,
    /// The image that it should be of.
    #[arg(long, required_unless_present = "set")]
    image: Option<PathBuf>,
    /// The set before it, which it should not be much larger than.
    #[arg(long, value_name = "SET", requires = "image")]
    before: Option<PathBuf>,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    content_digest: String,
    image_pages: u64,
    /// Pages that one bit stands for.
    resolution_pages: u64,
    recordings: u32,
    pages: u64,
    bytes: u64,
    windows: Vec<Window>,
    suspicion: Option<String>,
}

#[derive(Debug, Serialize)]
struct Window {
    from_ns: u64,
    to_ns: u64,
    pages: u64,
    runs: usize,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let image = match &args.image {
        Some(path) => Some(source::open(path, &How::default(), console)?),
        None => None,
    };
    let path = match (&args.set, &image) {
        (Some(set), _) => set.clone(),
        (None, Some(image)) => WorkingSet::path_beside(image)?,
        (None, None) => return Err(Failure::Usage("a set, or --image".into())),
    };
    let set = WorkingSet::open(&path)?;
    let before = args.before.as_ref().map(WorkingSet::open).transpose()?;
    let suspicion = match &image {
        Some(image) => set.suspicion(image, before.as_ref())?.map(words),
        None => None,
    };
    console.say("workingset inspect", &report(path.display().to_string(), &set, suspicion))?;
    Ok(Outcome::Done)
}

fn report(path: String, set: &WorkingSet, suspicion: Option<String>) -> Report {
    let window = |w: &softfault_image::workingset::Window| {
        let time = w.time_ns();
        Window { from_ns: time.start, to_ns: time.end, pages: w.nr_pages(), runs: w.runs().count() }
    };
    Report {
        path,
        content_digest: set.content().to_string(),
        image_pages: set.image_pages(),
        resolution_pages: set.resolution().pages(),
        recordings: set.recordings(),
        pages: set.nr_pages(),
        bytes: of_pages(set.nr_pages()),
        windows: set.windows().iter().map(window).collect(),
        suspicion,
    }
}

fn words(suspicion: Suspicion) -> String {
    match suspicion {
        Suspicion::MostOfTheImage { touched, stored } => {
            format!("it is {touched} of the {stored} pages that the image stores: replaying it is copying the image")
        }
        Suspicion::Grew { from, to } => {
            format!("it has grown from {from} to {to} pages: was a scan or a backup recorded?")
        }
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (pages, all) = (count(self.pages, "page"), count(self.image_pages, "page"));
        writeln!(f, "{}: {pages} ({}) of an image of {all}", self.path, bytes(self.bytes))?;
        writeln!(f, "contents    {}", self.content_digest)?;
        writeln!(f, "recordings  {}", self.recordings)?;
        writeln!(f, "resolution  {}", count(self.resolution_pages, "page"))?;
        for w in &self.windows {
            let (from, to) = (millis(w.from_ns), millis(w.to_ns));
            let (pages, runs) = (count(w.pages, "page"), count(w.runs as u64, "run"));
            writeln!(f, "window      {from}..{to} ms: {pages} in {runs}")?;
        }
        self.suspicion.iter().try_for_each(|s| writeln!(f, "suspicious  {s}"))
    }
}
