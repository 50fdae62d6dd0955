//! `softfault bench restore`.

use crate::console::Console;
use crate::failure::{Failure, Outcome, Result};
use crate::source::{self, How};
use crate::units::{bytes, count, micros, of_pages, parse_bytes};
use rustix::fs::Advice;
use serde::Serialize;
use softfault::{OpenImage, Restore, Runtime, Session};
use softfault_image::PAGE_SIZE;
use softfault_image::workingset::WorkingSet;
use std::fmt;
use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// Each run has a runtime of its own, so that nothing is cached from the one before but the file, by the kernel; with --cold not
/// even that. The steps: `open` (the image), `ready` (the session), `first` (its first page), `set` (the pages of a working set, one
/// after the other, and `replayed`, the same while the set is replayed), `complete` (everything resident and verified), `end` (of
/// the session), and beside them `read` (the image's files, eagerly, with read(2)).
#[derive(clap::Args, Debug)]
#[command(after_help = "Examples:
  softfault bench restore heap.sfi
  softfault bench restore heap.sfi --cold --runs 15 --working-set first.sws")]
pub(crate) struct Args {
    /// The image.
    image: PathBuf,
    /// Has the kernel forget the image's files before each measurement.
    #[arg(long)]
    cold: bool,
    /// How often.
    #[arg(long, default_value_t = 5, value_parser = clap::value_parser!(u16).range(1..))]
    runs: u16,
    /// Pages that are needed first.
    #[arg(long, value_name = "SET")]
    working_set: Option<PathBuf>,
    /// The limit of the cache; by default the runtime's own.
    #[arg(long, value_parser = parse_bytes, value_name = "BYTES")]
    cache: Option<usize>,
    #[command(flatten)]
    how: How,
}

#[derive(Debug, Serialize)]
struct Report {
    path: String,
    bytes: u64,
    cold: bool,
    runs: u16,
    resident_bytes: u64,
    steps: Vec<Step>,
}

#[derive(Debug, Serialize)]
struct Step {
    step: &'static str,
    median_ns: u64,
    min_ns: u64,
    max_ns: u64,
}

/// The times of each step, in the order of their first run.
#[derive(Debug, Default)]
struct Times(Vec<(&'static str, Vec<Duration>)>);

impl Times {
    fn add(&mut self, step: &'static str, since: Instant) {
        let took = since.elapsed();
        match self.0.iter_mut().find(|(name, _)| *name == step) {
            Some((_, all)) => all.push(took),
            None => self.0.push((step, vec![took])),
        }
    }

    fn steps(self) -> Vec<Step> {
        let ns = |d: &Duration| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX);
        let step = |(step, mut all): (&'static str, Vec<Duration>)| {
            all.sort();
            let at = |nr: usize| all.get(nr).map_or(0, ns);
            Step { step, median_ns: at(all.len() / 2), min_ns: at(0), max_ns: at(all.len() - 1) }
        };
        self.0.into_iter().map(step).collect()
    }
}

pub(crate) fn run(args: &Args, console: &Console) -> Result<Outcome> {
    let set = args.working_set.as_ref().map(WorkingSet::open).transpose()?;
    let image = source::open(&args.image, &args.how, console)?;
    let files: Vec<_> = [image.path().to_path_buf()].into_iter().chain(image.needs()).collect();
    let (mut times, mut resident_bytes) = (Times::default(), 0);
    let progress = console.progress("restoring");
    for _ in 0..args.runs {
        resident_bytes = restore_whole(args, &files, &mut times, console)?;
        if let Some(set) = &set {
            restore_set(args, &files, set, "set", &mut times, console)?;
            restore_set(args, &files, set, "replayed", &mut times, console)?;
        }
        read_eagerly(args, &files, &mut times)?;
    }
    drop(progress);
    let report = Report {
        path: args.image.display().to_string(),
        bytes: of_pages(image.nr_pages()),
        cold: args.cold,
        runs: args.runs,
        resident_bytes,
        steps: times.steps(),
    };
    console.say("bench restore", &report)?;
    Ok(Outcome::Done)
}

/// Opens the image in a runtime of its own, after what is cached of its files was dropped, if that was asked for.
fn open(args: &Args, files: &[PathBuf], console: &Console) -> Result<(Instant, OpenImage)> {
    if args.cold {
        files.iter().try_for_each(|path| forget(path))?;
    }
    let builder = Runtime::builder();
    let builder = if let Some(bytes) = args.cache { builder.cache_limit(bytes as u64) } else { builder };
    let runtime = builder.build()?;
    let begun = Instant::now();
    let image = source::open(&args.image, &args.how, console)?;
    Ok((begun, runtime.image(image)?))
}

/// Measures the steps of a restore; returns what is resident when it is complete.
fn restore_whole(args: &Args, files: &[PathBuf], times: &mut Times, console: &Console) -> Result<u64> {
    let (begun, image) = open(args, files, console)?;
    times.add("open", begun);
    let begun = Instant::now();
    let session = Restore::new(&image).build()?;
    times.add("ready", begun);
    let begun = Instant::now();
    if let Some(region) = session.regions().first() {
        read_page(&image, &session, region.region().offset / PAGE_SIZE as u64)?;
    }
    times.add("first", begun);
    let begun = Instant::now();
    let complete = session.complete().map_err(|e| because(&image, e))?;
    times.add("complete", begun);
    let begun = Instant::now();
    drop(session);
    times.add("end", begun);
    Ok(complete.resident_bytes)
}

/// Measures how long it takes to have the pages of a working set, early to late, in a session that replays it or does not.
fn restore_set(
    args: &Args,
    files: &[PathBuf],
    set: &WorkingSet,
    step: &'static str,
    times: &mut Times,
    console: &Console,
) -> Result<()> {
    let (_, image) = open(args, files, console)?;
    let restore = Restore::new(&image);
    let session = if step == "replayed" { restore.replay(set.clone()) } else { restore }.build()?;
    let begun = Instant::now();
    for run in set.windows().iter().flat_map(softfault_image::workingset::Window::runs) {
        for page in run {
            read_page(&image, &session, page)?;
        }
    }
    times.add(step, begun);
    Ok(())
}

/// Reads a page of the image where the session has it; one that no region has, nobody can touch.
fn read_page(image: &OpenImage, session: &Session, page: u64) -> Result<()> {
    let Some(region) = session.regions().iter().find(|r| r.region().pages().contains(&page)) else { return Ok(()) };
    let within = usize::try_from((page - region.region().pages().start) * PAGE_SIZE as u64).unwrap_or(usize::MAX);
    let mut bytes = [0; PAGE_SIZE];
    region.arena().read_at(region.range().start + within, &mut bytes).map_err(|e| because(image, e))
}

/// Returns what the image said, where that is why.
fn because(image: &OpenImage, error: softfault::Error) -> Failure {
    image.last_failure().map_or_else(|| error.into(), |failure| Failure::Fill { failure })
}

/// Reads the image's files as a program does that restores eagerly.
fn read_eagerly(args: &Args, files: &[PathBuf], times: &mut Times) -> Result<()> {
    if args.cold {
        files.iter().try_for_each(|path| forget(path))?;
    }
    let mut room = vec![0; 1 << 20];
    let begun = Instant::now();
    for path in files {
        let mut file = File::open(path).map_err(Failure::io("open", path))?;
        while file.read(&mut room).map_err(Failure::io("read", path))? > 0 {}
    }
    times.add("read", begun);
    Ok(())
}

/// Has the kernel forget what it has cached of a file.
fn forget(path: &Path) -> Result<()> {
    let file = File::open(path).map_err(Failure::io("open", path))?;
    // What is dirty is not forgotten.
    file.sync_all().map_err(Failure::io("sync", path))?;
    rustix::fs::fadvise(&file, 0, None, Advice::DontNeed).map_err(|e| Failure::io("forget", path)(e.into()))
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let how = if self.cold { "cold" } else { "hot" };
        writeln!(f, "{}: {} of memory, {how}, {}; us", self.path, bytes(self.bytes), count(self.runs.into(), "run"))?;
        writeln!(f, "{:<9} {:>12} {:>12} {:>12}", "step", "median", "min", "max")?;
        self.steps.iter().try_for_each(|s| {
            let [median, min, max] = [s.median_ns, s.min_ns, s.max_ns].map(micros);
            writeln!(f, "{:<9} {median:>12} {min:>12} {max:>12}", s.step)
        })
    }
}
