//! Starts the processes, and looks at the clock: from the start of a process to its first answer.

use crate::options::{Allocator, Options};
use crate::process::{image_in, texts_in};
use crate::texts;
use crate::units::Result;
use rustix::fs::Advice;
use softfault::{Error, Runtime};
use std::fs::File;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// The folder of a run; it goes with it.
struct Folder(PathBuf);

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a process said, and when it said the first of it.
struct Said {
    first: Duration,
    answer: String,
    rest: String,
}

/// Saves a heap of each allocator, and compares how the next process comes to its first answer.
pub(crate) fn run(options: &Options) -> Result<()> {
    if let Some(why) = missing()? {
        println!("not here: {why}");
        return Ok(());
    }
    let folder = Folder(options.dir.join(format!("softfault-warm_start-{}", std::process::id())));
    std::fs::create_dir_all(&folder.0)?;
    texts::make(&texts_in(&folder.0), options.documents)?;
    options.heaps.iter().try_for_each(|heap| compare(options, &folder.0, *heap))
}

/// Says why there can be no captures on this machine, if so.
fn missing() -> Result<Option<String>> {
    match Runtime::new()?.arena(2 << 20).capturable(true).build() {
        Ok(_) => Ok(None),
        Err(Error::Delivery { why, .. }) => Ok(Some(format!("captures need what cannot be had: {why}"))),
        Err(e) => Err(e.into()),
    }
}

fn compare(options: &Options, dir: &Path, heap: Allocator) -> Result<()> {
    let start = |role| start(role, dir, heap, options.documents);
    let saved = start("save")?;
    let image = std::fs::metadata(image_in(dir))?;
    let mib = image.blocks() / (2 << 10);
    let name = name_of(heap);
    println!("{name}: an index of {} documents in an arena, saved in {mib} MiB", options.documents);
    println!("  {:44} {:>10} {:>10}", "time to the first answer, the files being", "cold", "hot");
    let mut pages = String::new();
    for (role, what) in [("rebuild", "built anew"), ("eager", "image read"), ("restore", "restored, as it is touched")]
    {
        let mut times = [Vec::new(), Vec::new()];
        for _ in 0..options.runs {
            for (cold, times) in [true, false].into_iter().zip(&mut times) {
                if cold && !cool(dir)? {
                    continue;
                }
                let said = start(role)?;
                if said.answer != saved.answer {
                    return Err(format!("{what}: another answer: {}, not {}", said.answer, saved.answer).into());
                }
                times.push(said.first);
                pages = said.rest;
            }
        }
        let [cold, hot] = times.map(median);
        println!("  {what:44} {cold:>10} {hot:>10}");
    }
    let read = pages.lines().find_map(|line| line.strip_prefix("pages: ")).unwrap_or("?");
    println!("  {read} pages of the image were read for it, of {}", image.blocks() / 8);
    println!("  {}", saved.answer);
    let checked = start("restore --check")?;
    // The next heap's image has its name.
    std::fs::remove_file(image_in(dir))?;
    println!(
        "  {}",
        checked.rest.lines().find(|line| line.starts_with("checked: ")).ok_or("it says nothing of a check")?
    );
    Ok(())
}

fn name_of(heap: Allocator) -> &'static str {
    match heap {
        Allocator::Talc => "talc",
        Allocator::Mimalloc => "mimalloc",
    }
}

/// Runs this program once more, and waits for its end.
fn start(role: &str, dir: &Path, heap: Allocator, documents: u64) -> Result<Said> {
    let (verb, check) = role.split_once(' ').unwrap_or((role, ""));
    let mut command = Command::new(std::env::current_exe()?);
    command.arg(verb).arg(dir).args(["--heap", name_of(heap), "--documents", &documents.to_string()]);
    command.args(Some(check).filter(|c| !c.is_empty()));
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut out = BufReader::new(child.stdout.take().ok_or("no pipe")?);
    let (mut answer, mut rest) = (String::new(), String::new());
    out.read_line(&mut answer)?;
    let first = begun.elapsed();
    out.read_to_string(&mut rest)?;
    let status = child.wait()?;
    match answer.trim_end().strip_prefix("answer: ") {
        Some(answer) if status.success() => Ok(Said { first, answer: answer.to_owned(), rest }),
        _ => Err(format!("{role}, {}: {status}", name_of(heap)).into()),
    }
}

/// Has the kernel drop what it has cached of the files; false: they are in memory alone.
fn cool(dir: &Path) -> Result<bool> {
    const TMPFS: i64 = 0x0102_1994;
    for path in [texts_in(dir), image_in(dir)] {
        let file = File::open(path)?;
        if rustix::fs::fstatfs(&file)?.f_type == TMPFS {
            return Ok(false);
        }
        rustix::fs::fadvise(&file, 0, None, Advice::DontNeed)?;
    }
    Ok(true)
}

fn median(mut times: Vec<Duration>) -> String {
    times.sort_unstable();
    times.get(times.len() / 2).map_or_else(|| "-".to_owned(), |t| format!("{:.1} ms", t.as_secs_f64() * 1e3))
}
