//! What a ring would make of large reads: several threads that read as the fillers do, against one that drives an io_uring.
//!
//! Either side has the whole list of requests before it, as if the queue of fills were never empty, and reads a cold file
//! into holes of a memfd. Past the kernel's cache (`pread`, `uring`) or through it: `sendfile`, which is what a buffered
//! file store does and maps no page; `uring_cached`, which has to map them. Row names: side, bytes of a request, order,
//! requests in flight (for the fillers: threads). `_cpu` is the processors' time of the whole process, the kernel's
//! workers included. `_vs_4` sets sixteen requests in flight against the four threads that a runtime has.
//!
//! sendfile(2) moves 64 KiB at a time and so hides from the kernel how much is wanted. What that costs, and that it takes
//! no ring to have it back, say two more sides with four threads: `pread_cached`, and `sendfile_ahead`, which asks for
//! the whole request by posix_fadvise(2) first; and rows `_vs_pread`.

use crate::ring::{Read, Ring};
use crate::rows::name;
use softfault_benches::area::{HotFile, Mapping, Memfd, page_byte, shuffled};
use softfault_benches::report::RowSpec;
use softfault_benches::session::{Series, Session};
use softfault_benches::{Context, Error, PAGE, Result};
use softfault_platform::sys::mem::{PROT_READ, PROT_WRITE};
use softfault_platform::sys::thread::{CpuMask, affinity, set_affinity};
use softfault_platform::sys::{Errno, file, syscall::syscall6};
use std::cell::{Cell, RefCell};
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

const SIZES_KIB: [usize; 4] = [64, 128, 256, 512];
const DEPTHS: [usize; 3] = [1, 4, 16];
const ORDERS: [Order; 2] = [Order::Sequential, Order::Random];
/// The file, and what is read of it in a run.
const FILE_MIB: (usize, usize) = (256, 16);
const RUN_MIB: (usize, usize) = (32, 4);
/// Threads that a runtime has unless told otherwise.
const FILLERS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Order {
    Sequential,
    Random,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum How {
    Pread,
    Uring,
    Sendfile,
    SendfileAhead,
    PreadCached,
    UringCached,
}

impl How {
    const ALL: [Self; 6] =
        [Self::Pread, Self::Uring, Self::Sendfile, Self::SendfileAhead, Self::PreadCached, Self::UringCached];

    fn name(self) -> &'static str {
        match self {
            Self::Pread => "pread",
            Self::Uring => "uring",
            Self::Sendfile => "sendfile",
            Self::SendfileAhead => "sendfile_ahead",
            Self::PreadCached => "pread_cached",
            Self::UringCached => "uring_cached",
        }
    }

    fn is_direct(self) -> bool {
        matches!(self, Self::Pread | Self::Uring)
    }

    fn is_ring(self) -> bool {
        matches!(self, Self::Uring | Self::UringCached)
    }

    /// Neither what the fillers do nor a ring: measured with the usual threads only.
    fn is_aside(self) -> bool {
        matches!(self, Self::SendfileAhead | Self::PreadCached)
    }

    /// What it is set against.
    fn reference(self) -> Option<Self> {
        match self {
            Self::Uring => Some(Self::Pread),
            Self::UringCached | Self::SendfileAhead | Self::PreadCached => Some(Self::Sendfile),
            Self::Pread | Self::Sendfile => None,
        }
    }
}

/// One side: how, how much at once, in which order, how many at a time.
#[derive(Clone, Copy, Debug)]
struct Case {
    how: How,
    kib: usize,
    order: Order,
    depth: usize,
}

impl Case {
    /// All, those that are compared next to each other.
    fn all() -> Vec<Self> {
        let depths = |kib, order| DEPTHS.map(|depth| How::ALL.map(|how| Self { how, kib, order, depth })).concat();
        let sizes = |kib| ORDERS.into_iter().flat_map(move |order| depths(kib, order));
        SIZES_KIB.into_iter().flat_map(sizes).filter(|c| c.depth == FILLERS || !c.how.is_aside()).collect()
    }

    fn name(&self) -> &'static str {
        let order = if self.order == Order::Sequential { "seq" } else { "rand" };
        name(format!("readahead_{}_{}k_{order}_{}", self.how.name(), self.kib, self.depth))
    }

    fn cpu_name(&self) -> &'static str {
        name(format!("{}_cpu", self.name()))
    }
}

fn specs() -> Vec<RowSpec> {
    let mut rows = Vec::new();
    let mut add = |name, series, reference: &'static str| {
        let reference = Box::leak(Box::new([reference]));
        rows.push(RowSpec::against(name, series, reference, None).paired().unit("us/MiB"));
    };
    for (case, reference) in Case::all().into_iter().filter_map(|c| Some((c, c.how.reference()?))) {
        let threads = Case { how: reference, ..case };
        add(case.name(), case.name(), threads.name());
        add(case.cpu_name(), case.cpu_name(), threads.cpu_name());
        if case.how == How::UringCached && case.depth == FILLERS {
            let pread = Case { how: How::PreadCached, ..case };
            add(name(format!("{}_vs_pread", case.name())), case.name(), pread.name());
        }
        if case.depth > FILLERS {
            let usual = Case { depth: FILLERS, ..threads };
            add(name(format!("{}_vs_4", case.name())), case.name(), usual.name());
            add(name(format!("{}_vs_4_cpu", case.name())), case.cpu_name(), usual.cpu_name());
        }
    }
    rows
}

/// Measures the group.
pub(crate) fn run(session: &mut Session) -> Result<()> {
    let rows = session.select(&specs());
    if rows.is_empty() {
        return Ok(());
    }
    let file_bytes = session.options.size_bytes(FILE_MIB.0, FILE_MIB.1);
    let run_bytes = session.options.size_bytes(RUN_MIB.0, RUN_MIB.1);
    let bench = Bench::new(HotFile::create(&session.options.dir, "readahead", file_bytes)?, run_bytes)?;
    let ring = Ring::new(1).map(drop);
    let sides: Vec<Side<'_>> = Case::all().into_iter().map(|case| Side::new(&bench, case)).collect();
    let mut series = Vec::new();
    for side in &sides {
        let absent = match (&ring, bench.direct_fd) {
            (Err(why), _) if side.case.how.is_ring() => Some(why.again()),
            (_, None) if side.case.how.is_direct() => {
                Some(Error::Absent("no direct I/O on this file system".to_owned()))
            }
            _ => None,
        };
        if let Some(why) = absent {
            session.lack(side.case.name(), &why);
            session.lack(side.case.cpu_name(), &why);
            continue;
        }
        series.push(Series::new(side.case.name(), || side.take(0)));
        series.push(Series::new(side.case.cpu_name(), || side.take(1)));
    }
    session.measure(&rows, series)
}

/// The file, and the cache it is read into.
#[derive(Debug)]
struct Bench {
    file: HotFile,
    direct_fd: Option<i32>,
    cache: Memfd,
    alias: Mapping,
    /// Where threads may run: everywhere, as the fillers of a runtime; the measuring thread itself is pinned.
    cpus: CpuMask,
}

impl Bench {
    fn new(file: HotFile, run_bytes: usize) -> Result<Self> {
        let cache = Memfd::sparse(run_bytes)?;
        let alias = Mapping::shared(cache.fd(), run_bytes, PROT_READ | PROT_WRITE)?;
        let direct_fd = file::reopen(file.fd(), false, true).ok();
        Ok(Self { file, direct_fd, cache, alias, cpus: affinity().context("sched_getaffinity")? })
    }

    /// Reads `positions`, untimed: a cold file, an empty cache. Returns the microseconds a mebibyte by the clock on the
    /// wall and by the processors'.
    fn read(&self, case: Case, positions: &[u64]) -> Result<[f64; 2]> {
        self.file.cool()?;
        self.cache.punch()?;
        let threads = if case.how.is_ring() { 1 } else { case.depth };
        let (next, start) = (AtomicUsize::new(0), Barrier::new(threads + 1));
        let work = || {
            // Before any error: the others wait too.
            let ready = self.prepare(case);
            start.wait();
            match ready? {
                Reader::Ring(ring, fd) => self.drive(&ring, fd, case, positions)?,
                Reader::Filler(fd, port) => self.fill(fd, port.as_ref(), case, positions, &next)?,
            }
            Ok(Instant::now())
        };
        let (began, cpu_before, ends) = std::thread::scope(|scope| {
            let spawned: Vec<_> = (0..threads).map(|_| scope.spawn(work)).collect();
            let cpu_before = cpu_ns();
            let began = Instant::now();
            start.wait();
            let panicked = |_| Err(Error::Wrong("a reading thread panicked".to_owned()));
            let ends: Vec<_> = spawned.into_iter().map(|t| t.join().unwrap_or_else(panicked)).collect();
            (began, cpu_before, ends)
        });
        let cpu = cpu_ns()? - cpu_before?;
        let ends = ends.into_iter().collect::<Result<Vec<_>>>()?;
        let wall = ends.into_iter().max().map_or(f64::NAN, |end| (end - began).as_nanos() as f64);
        self.check(case, positions)?;
        let mib = (positions.len() * case.kib) as f64 / 1024.0;
        Ok([wall / 1000.0 / mib, cpu as f64 / 1000.0 / mib])
    }

    fn prepare(&self, case: Case) -> Result<Reader> {
        set_affinity(&self.cpus).context("sched_setaffinity")?;
        let fd = if case.how.is_direct() { self.direct_fd.unwrap_or(-1) } else { self.file.fd() };
        Ok(match case.how {
            How::Uring | How::UringCached => Reader::Ring(Ring::new(u32::try_from(case.depth).unwrap_or(1))?, fd),
            How::Pread | How::PreadCached => Reader::Filler(fd, None),
            How::Sendfile | How::SendfileAhead => Reader::Filler(fd, Some(Port::new(self.cache.fd())?)),
        })
    }

    /// What a filler does: one request after the other, into the cache's alias or by the cache's descriptor.
    fn fill(&self, fd: i32, port: Option<&Port>, case: Case, positions: &[u64], next: &AtomicUsize) -> Result<()> {
        let len_bytes = case.kib * 1024;
        loop {
            let i = next.fetch_add(1, Ordering::Relaxed);
            let Some(&pos_bytes) = positions.get(i) else { return Ok(()) };
            let offset = i * len_bytes;
            let mut done = 0;
            if case.how == How::SendfileAhead {
                file::fadvise_willneed(fd, pos_bytes, len_bytes).context("posix_fadvise")?;
            }
            if let Some(port) = port {
                file::seek(port.0, offset as u64).context("lseek")?;
            }
            while done < len_bytes {
                let (at, left) = (pos_bytes + done as u64, len_bytes - done);
                let n = match port {
                    // SAFETY: the port stands in the request's own bytes of the cache, `left` before their end.
                    Some(port) => unsafe { file::sendfile(port.0, fd, at, left) },
                    // SAFETY: the request's own bytes of the alias, to which no reference exists.
                    None => unsafe { file::pread(fd, self.alias.base() + offset + done, left, at) },
                };
                match n.context("reading the file")? {
                    0 => return Err(Error::Wrong("the file is too short".to_owned())),
                    n => done += n,
                }
            }
        }
    }

    /// What a thread with a ring does: it keeps `depth` requests in flight.
    fn drive(&self, ring: &Ring, fd: i32, case: Case, positions: &[u64]) -> Result<()> {
        let len_bytes = case.kib * 1024;
        let (mut next, mut done) = (0, 0);
        while done < positions.len() {
            while next < positions.len() && next - done < case.depth {
                let (dst, tag) = (self.alias.base() + next * len_bytes, next as u64);
                // SAFETY: the request's own bytes of the alias, which outlives the ring; no reference exists.
                unsafe { ring.push(&Read { fd, dst, len_bytes, pos_bytes: positions[next], tag }) }?;
                next += 1;
            }
            ring.enter()?;
            while let Some((tag, result)) = ring.pop()? {
                // Regular files are read whole: io_uring itself goes on after a short read.
                if usize::try_from(result) != Ok(len_bytes) {
                    return Err(Error::Wrong(format!("request {tag} of {len_bytes} bytes ended with {result}")));
                }
                done += 1;
            }
        }
        Ok(())
    }

    /// Looks at each request's first page and last.
    fn check(&self, case: Case, positions: &[u64]) -> Result<()> {
        let pages = case.kib * 1024 / PAGE;
        for (i, pos_bytes) in positions.iter().enumerate() {
            for page in [0, pages - 1] {
                let expected = page_byte(usize::try_from(*pos_bytes).unwrap_or(0) / PAGE + page);
                if self.alias.view().touch(i * pages + page) != expected {
                    return Err(Error::Wrong(format!("{}: request {i} read wrong bytes", case.name())));
                }
            }
        }
        Ok(())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(fd) = self.direct_fd {
            file::close(fd);
        }
    }
}

/// What a thread reads with, and which descriptor of the file.
#[derive(Debug)]
enum Reader {
    Ring(Ring, i32),
    Filler(i32, Option<Port>),
}

/// The cache's memfd with a position of its own; closed on drop.
#[derive(Debug)]
struct Port(i32);

impl Port {
    fn new(fd: i32) -> Result<Self> {
        file::reopen(fd, true, false).map(Self).context("reopening the memfd")
    }
}

impl Drop for Port {
    fn drop(&mut self) {
        file::close(self.0);
    }
}

/// One side's turns: other places of the file in each, the same ones for every side of a size and an order.
struct Side<'a> {
    bench: &'a Bench,
    case: Case,
    positions: Vec<u64>,
    turn: Cell<usize>,
    /// Wall and processor time come from one run: whichever series is asked first makes it.
    ready: RefCell<[Option<f64>; 2]>,
}

impl<'a> Side<'a> {
    fn new(bench: &'a Bench, case: Case) -> Self {
        let len_bytes = case.kib * 1024;
        let places = bench.file.len_bytes() / len_bytes;
        let at = |place: usize| (place * len_bytes) as u64;
        let positions = match case.order {
            Order::Sequential => (0..places).map(at).collect(),
            Order::Random => shuffled(places).into_iter().map(|p| at(p as usize)).collect(),
        };
        Self { bench, case, positions, turn: Cell::new(0), ready: RefCell::default() }
    }

    fn take(&self, which: usize) -> Result<f64> {
        if let Some(figure) = self.ready.borrow_mut()[which].take() {
            return Ok(figure);
        }
        let each = self.bench.cache.len_bytes() / (self.case.kib * 1024);
        let turns = self.positions.len() / each;
        let at = self.turn.replace(self.turn.get() + 1) % turns * each;
        let figures = self.bench.read(self.case, &self.positions[at..at + each])?;
        *self.ready.borrow_mut() = figures.map(Some);
        self.ready.borrow_mut()[which].take().ok_or_else(|| Error::Wrong("no such figure".to_owned()))
    }
}

/// Returns the processor time of the process so far, in nanoseconds; see clock_gettime(2).
fn cpu_ns() -> Result<i64> {
    const SYS_CLOCK_GETTIME: i64 = 228;
    const CLOCK_PROCESS_CPUTIME_ID: usize = 2;
    let mut time = [0i64; 2];
    let args = [CLOCK_PROCESS_CPUTIME_ID, time.as_mut_ptr() as usize, 0, 0, 0, 0];
    // SAFETY: writes one `struct timespec`, two words, exclusively borrowed.
    unsafe { syscall6(SYS_CLOCK_GETTIME, args) }.map_err(|errno: Errno| Error::Sys { what: "clock_gettime", errno })?;
    Ok(time[0] * 1_000_000_000 + time[1])
}
