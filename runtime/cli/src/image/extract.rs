//! `softfault image extract`.

use crate::console::Console;
use crate::failure::{Failure, Outcome, Result};
use crate::source::{self, How};
use crate::units::{bytes, of_pages, parse_pages};
use serde::Serialize;
use softfault_image::{Image, ops};
use std::fmt;
use std::ops::Range;
use std::path::PathBuf;

/// Zero pages are holes. The file appears when it is durable, and replaces none.
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault image extract heap.sfi heap.raw --region heap
  softfault image extract heap.sfi first.raw --pages 0..256
  softfault image extract tuesday.sfi tuesday.diff --since monday.sfi")]
pub(crate) struct Args {
    /// The image.
    image: PathBuf,
    /// The new file.
    dst: PathBuf,
    /// Only this region, by its name.
    #[arg(long, value_name = "NAME")]
    region: Option<String>,
    /// Only these pages: FIRST..END, each of which may be left out.
    #[arg(long, value_parser = parse_pages, value_name = "RANGE", conflicts_with = "region")]
    pages: Option<Range<u64>>,
    /// A sparse file of the pages that differ from an older image's, as long as the image: what Firecracker calls a diff.
    #[arg(long, value_name = "IMAGE", conflicts_with_all = ["region", "pages"])]
    since: Option<PathBuf>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    first_page: u64,
    pages: u64,
    bytes: u64,
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let image = source::open(&args.image, &args.how, console)?;
    let pages = pages_of(args, &image)?;
    let going_on = console.progress("extracting");
    match &args.since {
        Some(old) => ops::extract_diff(&source::open(old, &How::default(), console)?, &image, &args.dst)?,
        None => ops::extract(&image, pages.clone(), &args.dst)?,
    }
    drop(going_on);
    let nr = pages.end - pages.start;
    let path = args.dst.display().to_string();
    console.say("image extract", &Report { path, first_page: pages.start, pages: nr, bytes: of_pages(nr) })?;
    Ok(Outcome::Done)
}

fn pages_of(args: &Args, image: &Image) -> Result<Range<u64>> {
    if let Some(name) = &args.region {
        let names = || image.regions().iter().map(|r| r.name.as_str()).collect::<Vec<_>>().join(", ");
        let region = image.regions().iter().find(|r| r.name == *name);
        return match region {
            Some(region) => Ok(region.pages()),
            None => Err(Failure::Usage(format!("there is no region `{name}` in the image, which has: {}", names()))),
        };
    }
    let pages = args.pages.clone().unwrap_or_else(|| 0..image.nr_pages());
    let end = if pages.end == u64::MAX { image.nr_pages() } else { pages.end };
    if pages.start > end || end > image.nr_pages() {
        return Err(Failure::Usage(format!("the image has {} pages, not so many", image.nr_pages())));
    }
    Ok(pages.start..end)
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} from page {} on", self.path, bytes(self.bytes), self.first_page)
    }
}
