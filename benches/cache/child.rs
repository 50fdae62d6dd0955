//! A side in a process of its own: this program again, told what to run by lines on its standard input.
//!
//! The child does nothing before its first line, so that it is in its memory group by then.

use crate::cgroup::Group;
use crate::subject::{self, Subject};
use crate::taken;
use softfault_benches::area::{Mapping, ViewMut};
use softfault_benches::child::{self, usage};
use softfault_benches::machine::Cpus;
use softfault_benches::workload::{Load, Workload};
use softfault_benches::{Context, PAGE, Result};
use softfault_platform::sys::file;
use softfault_platform::sys::mem::{PROT_READ, PROT_WRITE};
use std::ffi::CString;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// madvise(2): no readahead.
const MADV_RANDOM: i32 = 1;

/// What a child runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    /// softfault over the file.
    Softfault,
    /// The kernel's mmap of the file.
    Mmap,
    /// The same with `MADV_RANDOM`.
    MmapRandom,
    /// softfault's own memory, counted; see [`taken`].
    Overhead,
}

impl Kind {
    const ALL: [Self; 4] = [Self::Softfault, Self::Mmap, Self::MmapRandom, Self::Overhead];

    /// Its name as an argument.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Softfault => "softfault",
            Self::Mmap => "mmap",
            Self::MmapRandom => "mmap_random",
            Self::Overhead => "overhead",
        }
    }
}

/// A running child, in its memory group.
#[derive(Debug)]
pub(crate) struct Child {
    child: child::Child,
    // Goes after the process has ended, which dropping the child waits for.
    group: Option<Group>,
}

impl Child {
    /// Starts a child over `len_bytes` of `path`, in `group` if there is one, of `limit_bytes`.
    pub(crate) fn start(kind: Kind, path: &Path, len_bytes: usize, group: Option<Group>, limit: usize) -> Result<Self> {
        let mut command = child::this_program()?;
        command.arg(kind.name()).arg(path).args([len_bytes.to_string(), limit.to_string()]);
        let child = Self { child: child::Child::start(&mut command)?, group };
        child.group.as_ref().map_or(Ok(()), |g| g.add(child.child.id()))?;
        Ok(child)
    }

    /// Sends one line and returns the figures of the answer.
    pub(crate) fn ask(&mut self, line: &str) -> Result<Vec<f64>> {
        self.child.ask(line)
    }

    /// Runs accesses there, fewer when `budget` is used up, and returns nanoseconds an access.
    pub(crate) fn run(&mut self, workload: Workload, threads: usize, accesses: usize, budget: Duration) -> Result<f64> {
        self.child.ask_one(&format!("{} {threads} {accesses} {}", workload.name(), budget.as_millis()))
    }

    /// Says how full its group is.
    pub(crate) fn remark(&self) -> Option<String> {
        self.group.as_ref().map(Group::remark)
    }
}

/// Runs a child until its input ends.
pub(crate) fn main() -> Result<()> {
    let args = child::arguments();
    let [kind, path, len_bytes, limit] = &args[..] else { return Err(usage()) };
    let number = |text: &String| text.parse::<usize>().map_err(|_| usage());
    let kind = Kind::ALL.into_iter().find(|k| k.name() == kind).ok_or_else(usage)?;
    let place = Place { kind, path: PathBuf::from(path), len_bytes: number(len_bytes)?, limit_bytes: number(limit)? };
    let (mut side, mut loads) = (None, Vec::new());
    child::serve(|line| place.answer(line, &mut side, &mut loads))
}

/// What the arguments of a child said.
#[derive(Debug)]
struct Place {
    kind: Kind,
    path: PathBuf,
    len_bytes: usize,
    limit_bytes: usize,
}

/// The mapping that is accessed, made by the first line.
#[derive(Debug)]
enum Side {
    Softfault(Subject, Option<(Workload, subject::Arena)>),
    Kernel(Mapping),
}

/// The loads so far.
type Loads = Vec<(Workload, Load)>;

/// Accesses between two looks at the budget: few where each may take milliseconds, many where they are short against
/// starting two threads.
fn slice(workload: Workload, accesses: usize) -> usize {
    let most = if workload == Workload::SeqRead { 4096 } else { 64 };
    (accesses / 32).clamp(1, most)
}

impl Place {
    /// Does what one line says: `WORKLOAD THREADS ACCESSES MILLISECONDS`, or anything for [`Kind::Overhead`].
    fn answer(&self, line: &str, side: &mut Option<Side>, loads: &mut Loads) -> Result<String> {
        if self.kind == Kind::Overhead {
            return taken::count(self.len_bytes);
        }
        let words: Vec<&str> = line.split(' ').collect();
        let [workload, numbers @ ..] = &words[..] else { return Err(usage()) };
        let workload = Workload::named(workload).ok_or_else(usage)?;
        let numbers: Vec<usize> = numbers.iter().filter_map(|n| n.parse().ok()).collect();
        let [threads, accesses, budget_ms] = numbers[..] else { return Err(usage()) };

        if !loads.iter().any(|(w, _)| *w == workload) {
            loads.push((workload, Load::new(workload, self.len_bytes / PAGE)));
        }
        let load = loads.iter_mut().find(|(w, _)| *w == workload).map(|(_, l)| l).ok_or_else(usage)?;
        if side.is_none() {
            *side = Some(self.open()?);
        }
        let side = side.as_mut().ok_or_else(usage)?;
        self.prepare(side, workload)?;
        let (start, slice, cpus) = (Instant::now(), slice(workload, accesses).max(threads), Cpus::find()?);
        let (mut ns, mut done) = (0.0, 0);
        // A side that reads megabytes for each page would take hours: it gets fewer accesses instead.
        while done == 0 || (done < accesses && start.elapsed().as_millis() < budget_ms as u128) {
            ns += side.run(load, threads, slice, cpus)? * slice as f64;
            done += slice;
        }
        Ok((ns / done as f64).to_string())
    }

    /// Maps the file anew where another workload wants it otherwise.
    fn prepare(&self, side: &mut Side, workload: Workload) -> Result<()> {
        let Side::Softfault(subject, arena) = side else { return Ok(()) };
        if arena.as_ref().is_none_or(|(w, _)| *w != workload) {
            // The former mapping first: both would not fit.
            *arena = None;
            *arena = Some((workload, subject.file(&self.path, self.len_bytes, workload)?));
        }
        Ok(())
    }

    fn open(&self) -> Result<Side> {
        if self.kind == Kind::Softfault {
            return Ok(Side::Softfault(Subject::start(self.limit_bytes)?, None));
        }
        let path = CString::new(self.path.as_os_str().as_bytes()).map_err(|_| usage())?;
        let fd = file::open_rdwr(&path).context("opening the file")?;
        let map = Mapping::plain(fd, self.len_bytes, PROT_READ | PROT_WRITE);
        file::close(fd);
        let map = map?;
        if self.kind == Kind::MmapRandom {
            map.advise(MADV_RANDOM)?;
        }
        Ok(Side::Kernel(map))
    }
}

impl Side {
    fn run(&self, load: &mut Load, threads: usize, accesses: usize, cpus: Cpus) -> Result<f64> {
        match self {
            Self::Kernel(map) => {
                // SAFETY: the mapping is writable, outlives the view, and is accessed through views only.
                let view = unsafe { ViewMut::new(map.base(), map.len_bytes()) };
                load.run(&view, threads, accesses, cpus)
            }
            Self::Softfault(_, Some((_, arena))) => arena.run(load, threads, accesses, cpus),
            Self::Softfault(_, None) => Err(usage()),
        }
    }
}
