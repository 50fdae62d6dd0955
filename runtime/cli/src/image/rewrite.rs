//! `softfault image convert`, `rebase` and `compact`: the same memory in another file.

use crate::console::Console;
use crate::failure::{Outcome, Result};
use crate::source::{self, Format, How, Stored};
use crate::units::bytes;
use clap::{Args, ValueEnum};
use serde::Serialize;
use softfault_image::{Digest, Image, ops};
use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Target {
    /// Our container.
    Sfi,
    /// The memory as it is, zero pages as holes.
    Raw,
}

/// Formats go by the names of the files: `.sfi`, else raw; --from and --to say otherwise. The new file is checked against the
/// contents of the old one before it gets its name, and replaces none.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  softfault image convert memory.raw heap.sfi --codec lz4
  softfault image convert heap.sfi memory.raw
  softfault image convert --from criu --pid 17 /var/lib/dump app.sfi --codec zstd:9 --frame 256K")]
pub(crate) struct Convert {
    /// The image.
    src: PathBuf,
    /// The new file.
    dst: PathBuf,
    /// The format of the new file; by default `.sfi` where it is called so, else raw.
    #[arg(long, value_enum, value_name = "FORMAT")]
    to: Option<Target>,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    stored: Stored,
}

/// The new file has the pages that differ from the parent's, and needs the parent's files, in the same folder, whenever it is read.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  softfault image rebase tuesday.sfi monday.sfi tuesday-small.sfi --codec lz4")]
pub(crate) struct Rebase {
    /// The image.
    image: PathBuf,
    /// What it becomes a child of; `.sfi` where it is called so, else raw.
    parent: PathBuf,
    /// The new file.
    dst: PathBuf,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    stored: Stored,
}

/// The new file needs no other. Each piece of an extent of 2 MiB is one read of whoever needs the extent: `image inspect` says how
/// many there are.
#[derive(Args, Debug)]
#[command(after_help = "Examples:
  softfault image compact thursday.sfi thursday-flat.sfi --budget 4")]
pub(crate) struct Compact {
    /// The image.
    image: PathBuf,
    /// The new file.
    dst: PathBuf,
    /// How many pieces an extent of 2 MiB may have.
    #[arg(long, default_value_t = 8)]
    budget: u32,
    #[command(flatten)]
    how: How,
    #[command(flatten)]
    stored: Stored,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    /// Its bytes on disk, and those of the memory.
    file_bytes: u64,
    bytes: u64,
    file_digest: Option<String>,
    content_digest: Option<String>,
    needs: Vec<String>,
}

pub(crate) fn convert(args: &Convert, console: &Console) -> Result<Outcome> {
    let image = source::open(&args.src, &args.how, console)?;
    let default = if source::is_called_sfi(&args.dst) { Target::Sfi } else { Target::Raw };
    let going_on = console.progress("converting");
    match args.to.unwrap_or(default) {
        Target::Sfi => {
            ops::convert(&image, &args.dst, &args.stored.stored())?;
            drop(going_on);
            say("image convert", &args.dst, Format::Sfi, console)
        }
        Target::Raw => {
            ops::extract(&image, 0..image.nr_pages(), &args.dst)?;
            drop(going_on);
            say("image convert", &args.dst, Format::Raw, console)
        }
    }
}

pub(crate) fn rebase(args: &Rebase, console: &Console) -> Result<Outcome> {
    let image = source::open(&args.image, &args.how, console)?;
    let parent = Arc::new(source::open(&args.parent, &How::default(), console)?);
    let going_on = console.progress("comparing with the parent");
    ops::rebase(&image, &parent, &args.dst, &args.stored.stored())?;
    drop(going_on);
    say("image rebase", &args.dst, Format::Sfi, console)
}

pub(crate) fn compact(args: &Compact, console: &Console) -> Result<Outcome> {
    let image = source::open(&args.image, &args.how, console)?;
    let going_on = console.progress("compacting");
    ops::compact(&image, &args.dst, &args.stored.stored(), args.budget)?;
    drop(going_on);
    say("image compact", &args.dst, Format::Sfi, console)
}

/// Says what the new file is.
fn say(kind: &str, path: &Path, format: Format, console: &Console) -> Result<Outcome> {
    let image = source::open(path, &How::of(Some(format)), console)?;
    console.say(kind, &report(&image, path)?)?;
    Ok(Outcome::Done)
}

fn report(image: &Image, path: &Path) -> Result<Report> {
    let meta = std::fs::metadata(path).map_err(crate::failure::Failure::io("stat", path))?;
    let text = |digest: Option<Digest>| digest.map(|d| d.to_string());
    Ok(Report {
        path: path.display().to_string(),
        file_bytes: meta.len(),
        bytes: crate::units::of_pages(image.nr_pages()),
        file_digest: text(image.file_digest()),
        content_digest: text(image.content_digest()),
        needs: image.needs().iter().map(|p| p.display().to_string()).collect(),
    })
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "{}: {} of memory in a file of {}", self.path, bytes(self.bytes), bytes(self.file_bytes))?;
        if let Some(digest) = &self.file_digest {
            writeln!(f, "file      {digest}")?;
        }
        if let Some(digest) = &self.content_digest {
            writeln!(f, "contents  {digest}")?;
        }
        self.needs.iter().try_for_each(|path| writeln!(f, "needs     {path}"))
    }
}
