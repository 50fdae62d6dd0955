//! What it costs: a plain file through an arena and through the kernel's own mmap, each as the other finds it.
//!
//! Cold: nothing of the file is in any cache; the kernel has been asked to drop its own. Hot: all of it is in the cache of the
//! side that is measured, and the mapping is new. Then both are mapped, and nothing faults.

use crate::content::{Content, shuffled};
use crate::units::{PAGE, Result};
use rustix::fs::Advice;
use softfault::{Arena, Object, Prot, Runtime, Sharing};
use std::fs::File;
use std::hint::black_box;
use std::time::{Duration, Instant};

type Bytes = dyn AsRef<[u8]> + Send + Sync;

/// The whole object, mapped into an arena of its own.
struct View {
    arena: Arena,
    len: usize,
}

impl View {
    fn new(rt: &Runtime, object: &Object) -> Result<Self> {
        let len = usize::try_from(object.len())?;
        let arena = rt.arena(len).build()?;
        arena.map(0, object, 0, len, Prot::Read, Sharing::Shared)?;
        Ok(Self { arena, len: len.next_multiple_of(PAGE) })
    }
}

impl AsRef<[u8]> for View {
    fn as_ref(&self) -> &[u8] {
        // SAFETY: `new` mapped the range readable, nothing unmaps it, and nobody writes: the object is read-only, and
        // this program changes neither it nor its file.
        unsafe { self.arena.as_slice(0..self.len) }
    }
}

fn kernel_map(file: &File, len: u64) -> Result<memmap2::Mmap> {
    let len = usize::try_from(len)?.next_multiple_of(PAGE);
    // SAFETY: this program does not change the file; if another does, the comparison says so.
    Ok(unsafe { memmap2::MmapOptions::new().len(len).map(file) }?)
}

/// Whether the file can be cold: one in memory alone cannot.
fn can_be_cold(file: &File) -> bool {
    const TMPFS: i64 = 0x0102_1994;
    rustix::fs::fstatfs(file).is_ok_and(|s| s.f_type != TMPFS)
}

/// Has the kernel drop what it has cached of the file, which nobody has mapped, and nobody has written to.
fn cool(file: &File) -> Result<()> {
    rustix::fs::fadvise(file, 0, None, Advice::DontNeed)?;
    Ok(())
}

/// What one side took.
#[derive(Default)]
struct Side {
    /// Nanoseconds of each first touch, in random order: nothing cached by anybody.
    cold: Vec<u32>,
    /// The same in a new mapping of what is cached.
    hot: Vec<u32>,
    /// Threads' time for reading and comparing once more, in order, where everything is mapped.
    again: Duration,
}

/// Compares the two, and prints what it found.
pub(crate) fn compare(file: &File, content: &Content, name: &str, threads: usize) -> Result<()> {
    let len = file.metadata()?.len();
    println!(
        "What it costs: {name}, {} pages, {threads} threads, first touches in random order",
        len.div_ceil(PAGE as u64)
    );
    if len == 0 {
        println!("  0 pages: nothing to read");
        return Ok(());
    }
    let rt = Runtime::builder().cache_limit(len + (64 << 20)).build()?;
    let object = rt.file(file)?;
    let job = Job { content, threads };
    let is_cold = can_be_cold(file);
    let mut ours = Side::default();
    cool(file)?;
    measure(&mut ours, &job, &|| Ok(Box::new(View::new(&rt, &object)?)))?;
    // Both have the memory to themselves.
    object.evict(0..len)?;
    let mut kernels = Side::default();
    cool(file)?;
    measure(&mut kernels, &job, &|| Ok(Box::new(kernel_map(file, len)?)))?;
    print_table(&mut ours, &mut kernels, is_cold);
    println!("  every byte was as expected, on both sides");
    Ok(())
}

fn measure(side: &mut Side, job: &Job<'_>, map: &dyn Fn() -> Result<Box<Bytes>>) -> Result<()> {
    let view = map()?;
    let pages = (*view).as_ref().len() / PAGE;
    let random = shuffled(pages);
    side.cold = job.pass(&*view, &random)?.0;
    drop(view);
    let view = map()?;
    side.hot = job.pass(&*view, &random)?.0;
    let ascending: Vec<u32> = (0..u32::try_from(pages)?).collect();
    side.again = job.pass(&*view, &ascending)?.1;
    Ok(())
}

struct Job<'a> {
    content: &'a Content,
    threads: usize,
}

impl Job<'_> {
    /// Touches and compares the pages in `order`, each thread its part of it; returns the nanoseconds of each touch and
    /// the threads' time for all of it.
    fn pass(&self, view: &Bytes, order: &[u32]) -> Result<(Vec<u32>, Duration)> {
        let part = order.len().div_ceil(self.threads);
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                order.chunks(part).map(|part| scope.spawn(move || self.part(view.as_ref(), part))).collect();
            let mut all = (Vec::with_capacity(order.len()), Duration::ZERO);
            for worker in workers {
                let (touches, took) = worker.join().map_err(|_| "a reader panicked")??;
                all.0.extend(touches);
                all.1 += took;
            }
            Ok(all)
        })
    }

    fn part(&self, bytes: &[u8], pages: &[u32]) -> Result<(Vec<u32>, Duration)> {
        let mut touches = Vec::with_capacity(pages.len());
        let began = Instant::now();
        for &page in pages {
            let at = page as usize * PAGE;
            let before = Instant::now();
            black_box(bytes[at]);
            touches.push(u32::try_from(before.elapsed().as_nanos()).unwrap_or(u32::MAX));
            self.content.check(u64::from(page), &bytes[at..at + PAGE])?;
        }
        Ok((touches, began.elapsed()))
    }
}

/// Returns the quantile `thousandths` of sorted samples.
fn quantile(sorted: &[u32], thousandths: usize) -> f64 {
    sorted.get((sorted.len() * thousandths / 1000).min(sorted.len().saturating_sub(1))).map_or(0.0, |v| f64::from(*v))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn mean(total: u64, nr: usize) -> f64 {
    total as f64 / nr.max(1) as f64
}

fn print_table(ours: &mut Side, kernels: &mut Side, is_cold: bool) {
    println!("  {:<52}{:>12}{:>14}{:>8}", "nanoseconds a page", "softfault", "kernel mmap", "ratio");
    let row = |name: &str, a: f64, b: f64| {
        let ratio = if b > 0.0 { format!("{:.2}", a / b) } else { "-".into() };
        println!("  {name:<52}{a:>12.0}{b:>14.0}{ratio:>8}");
    };
    let touches = |name: &str, a: &mut Vec<u32>, b: &mut Vec<u32>| {
        let [x, y] = [&*a, &*b].map(|s| mean(s.iter().map(|v| u64::from(*v)).sum(), s.len()));
        row(name, x, y);
        a.sort_unstable();
        b.sort_unstable();
        for (label, q) in [("p50", 500), ("p99", 990)] {
            row(&format!("    {label} of the touches"), quantile(a, q), quantile(b, q));
        }
    };
    if is_cold {
        touches("first touch, cold: from the disk", &mut ours.cold, &mut kernels.cold);
    } else {
        println!(
            "  the file lies in memory (a tmpfs): it is never cold, and no row says so; TMPDIR names another folder"
        );
    }
    touches("first touch, hot: from the own cache, newly mapped", &mut ours.hot, &mut kernels.hot);
    let nr = ours.hot.len();
    let of = |took: Duration| mean(u64::try_from(took.as_nanos()).unwrap_or(u64::MAX), nr);
    row("mapped: read and compared in order", of(ours.again), of(kernels.again));
}
