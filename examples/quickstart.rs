//! Reads every page of a file through an arena and through the kernel's own mmap, verifies every byte, and compares.
//!
//! `cargo run --release --example quickstart [FILE]`
//!
//! Without FILE it makes one of 512 MiB in the temp folder, whose content is known. With FILE the bytes are compared
//! with what pread(2) says. A file that is larger than a quarter of the free memory is read window by window. The exit
//! status is 1 when a byte is wrong.

use indicatif::{ProgressBar, ProgressStyle};
use softfault::{Arena, Object, Prot, Runtime, Sharing, Stats};
use std::error::Error;
use std::fs::File;
use std::hint::black_box;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::process::ExitCode;
use std::time::{Duration, Instant};

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

const PAGE: usize = 4096;
const EXTENT: u64 = 2 << 20;
const MADE_BYTES: u64 = 512 << 20;

fn main() -> ExitCode {
    match run(std::env::args_os().nth(1)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(e) => {
            eprintln!("quickstart: {e}");
            ExitCode::FAILURE
        }
    }
}

fn run(path: Option<std::ffi::OsString>) -> Result<()> {
    let (file, content) = match &path {
        Some(path) => open(Path::new(path))?,
        None => make_file()?,
    };
    let len = file.metadata()?.len();
    let name = path.map_or_else(|| "a file of known content".into(), |p| p.to_string_lossy().into_owned());
    let threads = std::thread::available_parallelism()?.get();
    println!("{name}: {len} bytes, {} pages, {threads} threads\n", len.div_ceil(PAGE as u64));
    if len == 0 {
        println!("0 pages: nothing to read");
        return Ok(());
    }

    let rt = Runtime::new()?;
    print!("{}", rt.delivery());
    let object = rt.file(&file)?;
    let windows = windows(len);
    if windows.len() > 1 {
        println!("larger than a quarter of the free memory: read in {} windows", windows.len());
    }
    let (mut ours, mut kernels) = (Side::default(), Side::default());
    let bar = progress("reading", windows.len() as u64 * 2, "{msg} {wide_bar} {pos}/{len}");
    for window in windows {
        // Once beforehand, so that both sides find the file in the kernel's page cache.
        read_through(&file, &window)?;
        let job = Job { content: &content, window: window.clone(), threads };
        ours.measure(&job, &|| Ok(Box::new(View::new(&rt, &object, &window)?)), &|| rt.stats()["pgfault"])?;
        object.evict(window.clone())?;
        bar.inc(1);
        kernels.measure(&job, &|| Ok(Box::new(kernel_map(&file, &window)?)), &|| 0)?;
        bar.inc(1);
    }
    bar.finish_and_clear();
    print_table(&mut ours, &mut kernels);
    let mut stats = rt.stats();
    // A fault cannot time its own delivery, and measuring it makes faults: in a runtime of its own.
    let other = Runtime::new()?;
    other.measure_delivery(rt.delivery().chosen)?;
    stats.stages.retain(|s| s.name != "delivery");
    stats.stages.splice(..0, other.stats().stage("delivery").cloned());
    print_stats(&stats, ours.pages);
    println!("\nevery byte was as expected, on both sides");
    Ok(())
}

/// What the bytes must be.
enum Content {
    /// Those that [`known_page`] makes.
    Known,
    /// Those that pread(2) returns.
    File(File),
}

impl Content {
    /// Writes what page `page` must hold to `buf`: zeros behind the end of the file.
    fn expect(&self, page: u64, buf: &mut [u8; PAGE]) -> std::io::Result<()> {
        let Self::File(file) = self else {
            known_page(page, buf);
            return Ok(());
        };
        let mut done = 0;
        while done < PAGE {
            match file.read_at(&mut buf[done..], page * PAGE as u64 + done as u64)? {
                0 => break,
                n => done += n,
            }
        }
        buf[done..].fill(0);
        Ok(())
    }
}

/// Makes the content of page `page`: 512 numbers of a splitmix64 sequence that begins with the page's number.
fn known_page(page: u64, buf: &mut [u8; PAGE]) {
    let mut state = page.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    for word in buf.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        word.copy_from_slice(&(z ^ (z >> 31)).to_le_bytes());
    }
}

fn progress(message: &'static str, len: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(len).with_style(style).with_message(message)
}

fn open(path: &Path) -> Result<(File, Content)> {
    let file = File::open(path).map_err(|e| format!("{}: {e}", path.display()))?;
    if !file.metadata()?.is_file() {
        return Err(format!("{}: not a regular file", path.display()).into());
    }
    let again = file.try_clone()?;
    Ok((file, Content::File(again)))
}

/// Makes the file of known content. It has no name any more when it is returned: it goes with the process, however
/// that ends.
fn make_file() -> Result<(File, Content)> {
    let path = std::env::temp_dir().join(format!("softfault-quickstart-{}", std::process::id()));
    let mut options = std::fs::OpenOptions::new();
    let file = options.read(true).write(true).create_new(true).open(&path);
    let file = file.map_err(|e| format!("{}: {e}", path.display()))?;
    std::fs::remove_file(&path)?;
    let bar = progress("making the file", MADE_BYTES, "{msg} {wide_bar} {bytes}/{total_bytes} {eta}");
    let mut out = std::io::BufWriter::with_capacity(1 << 20, &file);
    let mut buf = [0; PAGE];
    for page in 0..MADE_BYTES / PAGE as u64 {
        known_page(page, &mut buf);
        out.write_all(&buf).map_err(|e| format!("{}: {e} (it takes 512 MiB)", path.display()))?;
        if page % 1024 == 0 {
            bar.set_position(page * PAGE as u64);
        }
    }
    out.flush()?;
    drop(out);
    bar.finish_and_clear();
    Ok((file, Content::Known))
}

/// Cuts the file so that a window, once in the runtime's cache and once in the kernel's, fits into the free memory.
fn windows(len: u64) -> Vec<Range<u64>> {
    let window = (free_memory() / 4).next_multiple_of(EXTENT).max(64 << 20);
    (0..len.div_ceil(window)).map(|i| i * window..((i + 1) * window).min(len)).collect()
}

/// Returns `MemAvailable` of `/proc/meminfo`, in bytes.
fn free_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:")).unwrap_or("");
    line.trim().trim_end_matches("kB").trim().parse::<u64>().unwrap_or(256 << 10) << 10
}

fn read_through(file: &File, window: &Range<u64>) -> std::io::Result<()> {
    let mut buf = vec![0; 1 << 20];
    let mut at = window.start;
    while at < window.end {
        match file.read_at(&mut buf, at)? {
            0 => break,
            n => at += n as u64,
        }
    }
    Ok(())
}

/// A window of the object, mapped into an arena of its own.
struct View {
    arena: Arena,
    len: usize,
}

impl View {
    fn new(rt: &Runtime, object: &Object, window: &Range<u64>) -> Result<Self> {
        let len = usize::try_from(window.end - window.start)?;
        let arena = rt.arena(len).build()?;
        arena.map(0, object, window.start, len, Prot::Read, Sharing::Shared)?;
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

fn kernel_map(file: &File, window: &Range<u64>) -> Result<memmap2::Mmap> {
    let len = usize::try_from(window.end - window.start)?.next_multiple_of(PAGE);
    let mut options = memmap2::MmapOptions::new();
    options.offset(window.start).len(len);
    // SAFETY: this program does not change the file; if another does, the comparison says so.
    Ok(unsafe { options.map(file) }?)
}

/// What is to be read, by how many threads.
struct Job<'a> {
    content: &'a Content,
    window: Range<u64>,
    threads: usize,
}

type Bytes = dyn AsRef<[u8]> + Send + Sync;

/// What one of the two ways took, over all windows.
#[derive(Default)]
struct Side {
    pages: u64,
    /// Nanoseconds of each first touch, in random order, nothing cached by the runtime.
    first: Vec<u32>,
    /// The same in a second mapping, with everything cached by the runtime.
    again: Vec<u32>,
    /// Threads' time for reading and comparing sequentially.
    sequential: Duration,
    /// Faults that reached the runtime, and those that the kernel resolved alone, in the first pass.
    faults: (u64, u64),
}

impl Side {
    fn measure(&mut self, job: &Job<'_>, map: &dyn Fn() -> Result<Box<Bytes>>, count: &dyn Fn() -> u64) -> Result<()> {
        let view = map()?;
        let (ours, kernels) = (count(), kernel_faults());
        let pages = (*view).as_ref().len() / PAGE;
        let random = shuffled(pages);
        self.first.extend(job.pass(&*view, &random)?.0);
        self.faults.0 += count() - ours;
        self.faults.1 += kernel_faults().saturating_sub(kernels);
        let ascending: Vec<u32> = (0..u32::try_from(pages)?).collect();
        self.sequential += job.pass(&*view, &ascending)?.1;
        drop(view);
        self.again.extend(job.pass(&*map()?, &random)?.0);
        self.pages += pages as u64;
        Ok(())
    }
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
        let first_page = self.window.start / PAGE as u64;
        let mut touches = Vec::with_capacity(pages.len());
        let mut expected = [0; PAGE];
        let began = Instant::now();
        for &page in pages {
            let at = page as usize * PAGE;
            let before = Instant::now();
            black_box(bytes[at]);
            touches.push(u32::try_from(before.elapsed().as_nanos()).unwrap_or(u32::MAX));
            let number = first_page + u64::from(page);
            self.content.expect(number, &mut expected)?;
            let found = &bytes[at..at + PAGE];
            if let Some(i) = (found != expected).then(|| (0..PAGE).find(|i| found[*i] != expected[*i])).flatten() {
                let byte = number * PAGE as u64 + i as u64;
                return Err(format!("byte {byte:#x} is {:#04x}, must be {:#04x}", found[i], expected[i]).into());
            }
        }
        Ok((touches, began.elapsed()))
    }
}

/// Returns `0..nr` in an order that looks random and is the same every time.
fn shuffled(nr: usize) -> Vec<u32> {
    let mut order: Vec<u32> = (0..u32::try_from(nr).unwrap_or(u32::MAX)).collect();
    let mut state = 0x2545_f491_4f6c_dd1d_u64;
    for i in (1..order.len()).rev() {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        let bound = i as u64 + 1;
        order.swap(i, usize::try_from(state % bound).unwrap_or(0));
    }
    order
}

/// Returns the process's minor and major faults, as the kernel counts them; see proc_pid_stat(5).
fn kernel_faults() -> u64 {
    let mut text = String::new();
    let read = File::open("/proc/self/stat").and_then(|mut f| f.read_to_string(&mut text));
    let fields: Vec<&str> = text.rsplit(')').next().unwrap_or("").split_whitespace().collect();
    let field = |i: usize| fields.get(i).and_then(|f| f.parse::<u64>().ok()).unwrap_or(0);
    read.map_or(0, |_| field(7) + field(9))
}

/// Returns the quantile `thousandths` of sorted samples.
fn quantile(sorted: &[u32], thousandths: usize) -> f64 {
    sorted.get((sorted.len() * thousandths / 1000).min(sorted.len().saturating_sub(1))).map_or(0.0, |v| f64::from(*v))
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
fn per_page(total: u64, pages: u64) -> f64 {
    total as f64 / pages.max(1) as f64
}

fn mean(samples: &[u32]) -> f64 {
    per_page(samples.iter().map(|v| u64::from(*v)).sum(), samples.len() as u64)
}

fn print_table(ours: &mut Side, kernels: &mut Side) {
    println!("\n{:<44}{:>12}{:>14}{:>9}", "", "softfault", "kernel mmap", "ratio");
    let row = |name: &str, a: f64, b: f64, digits: usize| {
        let ratio = if b > 0.0 { format!("{:.2}", a / b) } else { "-".into() };
        println!("{name:<44}{a:>12.digits$}{b:>14.digits$}{ratio:>9}");
    };
    let count = |n: u64| per_page(n, 1);
    println!("{:<44}{:>12}{:>14}", "pages", ours.pages, kernels.pages);
    // The kernel also counts the first writes to fresh pages of the cache, one a page: no access waits in those alone.
    let faults = (ours.faults.0, kernels.faults.1);
    println!("{:<44}{:>12}{:>14}", "faults of the first pass", faults.0, faults.1);
    row("faults per page", count(faults.0) / count(ours.pages), count(faults.1) / count(kernels.pages), 4);
    for (name, pick) in [
        ("first touch, random order", (|s| &mut s.first) as fn(&mut Side) -> &mut Vec<u32>),
        ("again in a new mapping, random order", |s| &mut s.again),
    ] {
        let (a, b) = (pick(ours), pick(kernels));
        row(&format!("{name}: ns/page"), mean(a), mean(b), 0);
        a.sort_unstable();
        b.sort_unstable();
        for (label, q) in [("p50", 500), ("p90", 900), ("p99", 990), ("p99.9", 999), ("max", 1000)] {
            row(&format!("    {label} of the touches, ns"), quantile(a, q), quantile(b, q), 0);
        }
    }
    let sequential = |s: &Side| per_page(u64::try_from(s.sequential.as_nanos()).unwrap_or(u64::MAX), s.pages);
    row("sequential, read and compared: ns/page", sequential(ours), sequential(kernels), 0);
}

fn print_stats(stats: &Stats, pages: u64) {
    println!("\nfaults by reason bit, all passes");
    for (name, count) in stats.reasons.iter().filter(|(_, n)| *n > 0) {
        println!("    {name:<12}{count:>12}{:>12.4} a page", per_page(*count, pages));
    }
    println!("what else was counted");
    for name in ["pgfault", "pgmajfault", "pgminfault", "pgpgin", "pgmapped", "pgmapped_around", "extent_promote"] {
        println!("    {name:<16}{:>12}", stats[name]);
    }
    println!("stages of a fault (one in 32 is timed)     count     p50 ns     p99 ns");
    for stage in stats.stages.iter().filter(|s| s.count > 0) {
        println!("    {:<36}{:>8}{:>11}{:>11}", stage.name, stage.count, stage.p50_ns, stage.p99_ns);
    }
}
