//! `softfault heatmap` and `timeline`: what a session has recorded, page by time.
//!
//! The file of events is a recording: what `Session::mark` returns of a session that was restored with `Restore::record`, and
//! `WorkingSet::save` writes. It has each page that was touched, in the window of time in which it was touched first.

mod grid;
pub(crate) mod heatmap;
mod svg;
pub(crate) mod timeline;

use crate::console::Console;
use crate::failure::Result;
use crate::source::{self, How};
use softfault_image::workingset::WorkingSet;
use std::ops::Range;
use std::path::PathBuf;

/// A recording, and whose pages are whose.
#[derive(Debug)]
struct Recording {
    set: WorkingSet,
    /// The regions' names and pages; all pages, where no image says more.
    regions: Vec<(String, Range<u64>)>,
}

/// Which recording is looked at.
#[derive(clap::Args, Debug)]
pub(crate) struct Which {
    /// The recording: a working set.
    events: PathBuf,
    /// The image that it is of, whose regions are named then.
    #[arg(long)]
    image: Option<PathBuf>,
}

fn open(which: &Which, console: &Console) -> Result<Recording> {
    let set = WorkingSet::open(&which.events)?;
    let mut regions = Vec::new();
    if let Some(path) = &which.image {
        let image = source::open(path, &How::default(), console)?;
        set.check_is_of(&image)?;
        regions.extend(image.regions().iter().map(|r| (r.name.clone(), r.pages())));
    }
    if regions.is_empty() {
        regions.push(("all".into(), 0..set.image_pages()));
    }
    Ok(Recording { set, regions })
}

/// Returns how many pages of `pages` are in `runs`.
fn nr_within(runs: impl Iterator<Item = Range<u64>>, pages: &Range<u64>) -> u64 {
    runs.map(|run| run.end.min(pages.end).saturating_sub(run.start.max(pages.start))).sum()
}
