//! `Runtime`: the value that owns the cache and the counters, and makes objects and arenas.

use crate::arena::ArenaBuilder;
use crate::cache::kswapd::Kswapd;
use crate::cache::share;
use crate::cache::space::Space;
use crate::cache::stats::Stats;
use crate::cache::swap::{Swap, SwapOptions};
use crate::delivery::{Delivery, DeliveryReport, Findings};
use crate::error::{Error, Result, parent_only, system};
use crate::lease::{Lease, Table};
use crate::memory;
use crate::object::collapse::Khugepaged;
use crate::object::file::FileOptions;
use crate::object::{Object, ObjectBuilder};
use crate::process::audit::{Offender, Warnings};
use crate::process::mlock;
use crate::process::registry::{self, Entered};
use crate::writeback::exit::LastWriter;
use crate::writeback::flusher::{Ending, Flusher, Policy, Writables};
use crate::writeback::state::Flushing;
use softfault_mm::lru::Lruvec;
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::page::{EXTENT_SIZE, PAGE_SHIFT};
use softfault_mm::sync::AtomicU64;
use softfault_mm::vmstat::VmStat;
use softfault_platform::sys::Errno;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// A page-fault runtime. Cheap to clone; the last clone, arena and object end it.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(crate) inner: Arc<RuntimeInner>,
}

pub(crate) struct RuntimeInner {
    pub(crate) stat: &'static VmStat,
    // Dropped in this order: the threads, what they borrow, and what that borrows.
    pub(crate) khugepaged: Khugepaged,
    flusher: Option<Flusher>,
    last_writer: Option<LastWriter>,
    kswapd: Option<Kswapd>,
    entered: Option<Entered>,
    pub(crate) account: Lease<CacheAccount<'static>>,
    queues: [Table<AtomicU64>; 3],
    /// Callers that could not take our signals.
    pub(crate) warnings: Warnings,
    /// Who has it opens more of the queues.
    growing: Mutex<()>,
    writables: Arc<Writables>,
    dirty_percent: u64,
    pub(crate) findings: Findings,
    pub(crate) fill_window_pages: u32,
    /// Where anonymous memory goes; `None`: it stays.
    pub(crate) swap: Option<Swap>,
    pub(crate) readahead_pages: Option<u32>,
    /// What is cached is locked in memory.
    pub(crate) lock_cache: bool,
    /// Bytes of the arenas' tables.
    pub(crate) arena_table_bytes: AtomicU64,
    regions: Mutex<Vec<Arc<Space>>>,
    /// The frames of exclusive objects.
    #[cfg(feature = "userfaultfd")]
    pub(crate) frames: Mutex<Option<Lease<softfault_platform::frames::Frames>>>,
    pid: u32,
}

impl std::fmt::Debug for RuntimeInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Not the tables: they have a word a page, and what they are of may be a terabyte.
        f.debug_struct("Runtime")
            .field("cached_pages", &self.account.nr_pages)
            .field("limit_pages", &self.account.limit_pages)
            .finish_non_exhaustive()
    }
}

/// Options of a [`Runtime`].
#[derive(Clone, Debug)]
pub struct RuntimeBuilder {
    cache_limit_bytes: Option<u64>,
    writeback: Policy,
    fillers: usize,
    fill_window_pages: u32,
    swap: Option<SwapOptions>,
    readahead_pages: Option<u32>,
    lock_cache: bool,
    report_signals: bool,
}

impl RuntimeBuilder {
    /// Lets anonymous memory leave the cache, to `bytes` of `path`: a file, which is overwritten, or a folder, in which a
    /// file without a name is made (`std::env::temp_dir()`, say; not on a tmpfs, which is memory itself). It takes disk
    /// space as pages are written, and is read and written past the kernel's cache where the file system can.
    ///
    /// Pages of zeros take neither space nor I/O.
    #[must_use]
    pub fn swap(mut self, path: impl Into<PathBuf>, bytes: u64) -> Self {
        let zswap_bytes = self.swap.take().map_or(0, |s| s.zswap_bytes);
        self.swap = Some(SwapOptions { path: path.into(), bytes, zswap_bytes });
        self
    }
    /// Keeps pages that lz4 makes smaller than three quarters in up to `bytes` of memory in front of the swap file, where
    /// they cost no I/O; call [`RuntimeBuilder::swap`] first. This memory is on top of the cache's limit, and is kept
    /// until the runtime ends.
    #[must_use]
    pub fn zswap(mut self, bytes: u64) -> Self {
        let none = SwapOptions { path: PathBuf::new(), bytes: 0, zswap_bytes: 0 };
        self.swap.get_or_insert(none).zswap_bytes = bytes;
        self
    }
    /// Bounds the bytes of cached pages over all objects. Pages that are not used leave the cache for others.
    ///
    /// Default: an equal part of one share for the process, which is half of what its memory cgroup (or the machine) has, with
    /// all other runtimes that have no limit of their own; it changes as they come and go. Of a cgroup the smaller one of
    /// `memory.max` and `memory.high` counts. Limits that the program sets are its own to add up.
    ///
    /// A limit below 64 pages (256 KiB) is one of 64 pages: what one thread may need at once. Give as many for each thread
    /// that faults at the same time; with fewer all get on, but one behind the other.
    ///
    /// A fault for which nothing can leave, because everything is pinned or held, is `VM_FAULT_OOM`: SIGBUS, and an error
    /// of calls, whatever the object's [`FailurePolicy`](crate::FailurePolicy). Its page is not poisoned, nor is it made
    /// up: it comes from the store once there is room.
    #[must_use]
    pub fn cache_limit(mut self, bytes: u64) -> Self {
        self.cache_limit_bytes = Some(bytes);
        self
    }
    /// Sets how many threads call stores that are not handler-safe; default 4. More are started, up to 64, while work
    /// waits and none of them gets on: a store that hangs keeps only its own pages waiting.
    #[must_use]
    pub fn fillers(mut self, nr: usize) -> Self {
        self.fillers = nr.clamp(1, 64);
        self
    }
    /// Sets how many pages the thread that misses one reads at most (rounded to a power of two, 1 to 512); default 16.
    #[must_use]
    pub fn fill_window_pages(mut self, nr: u32) -> Self {
        self.fill_window_pages = nr.clamp(1, 512).next_power_of_two();
        self
    }
    /// Sets the largest readahead window in pages; default twice the fill window, or 0 where that is one page.
    ///
    /// What a miss does not need itself, and the windows behind it while a stream goes on, the fillers read before
    /// anybody asks. [`Advice::Sequential`](crate::Advice::Sequential) doubles it. 0 turns it off: a miss reads the
    /// aligned fill window around it. Never read ahead are anonymous memory, vtables of the user's, stores that touch
    /// arenas (a filler may not) and objects whose failures end the process.
    #[must_use]
    pub fn readahead_pages(mut self, max: u32) -> Self {
        self.readahead_pages = Some(max);
        self
    }

    /// Locks what is cached in memory, as mlock2(2) with `MLOCK_ONFAULT` does: the kernel neither swaps it nor unmaps it to
    /// reclaim it, so the cache costs what [`RuntimeBuilder::cache_limit`] says, and gives memory back only by that limit.
    /// Default: not, and under pressure the kernel swaps the cache as other memory.
    ///
    /// Without `CAP_IPC_LOCK` the maximal lengths of all objects together (and the frames and mappings of exclusive ones) must
    /// stay below `RLIMIT_MEMLOCK`: an object that does not fit is [`Error::Limit`]. The private copies of private
    /// mappings are the program's, and not locked.
    #[must_use]
    pub fn lock_cache(mut self, yes: bool) -> Self {
        self.lock_cache = yes;
        self
    }

    /// Sets how often mappings are scanned for stores, and after how long dirty pages are written though nobody asks;
    /// defaults 500 ms and 5 s.
    #[must_use]
    pub fn writeback(mut self, interval: Duration, expire: Duration) -> Self {
        self.writeback.interval = interval.max(Duration::from_millis(1));
        self.writeback.expire = expire;
        self
    }

    /// Writes a line on standard error before a touch becomes a SIGBUS: the object, its byte, and why. Default: not; see
    /// [`Runtime::recent_failures`].
    #[must_use]
    pub fn report_signals(mut self, yes: bool) -> Self {
        self.report_signals = yes;
        self
    }

    /// Sets what share of the cache (in percent) may be dirty before pages are written in the background, and before
    /// writers to stores that wait for a device are made to wait themselves; defaults 10 and 40.
    #[must_use]
    pub fn dirty_limits(mut self, background_percent: u32, percent: u32) -> Self {
        self.writeback.background_percent = u64::from(background_percent.min(100));
        self.writeback.limit_percent = u64::from(percent.clamp(1, 100));
        self
    }

    /// Sets how long exit(3) waits until everything is written that shared mappings and calls have stored to files and other
    /// stores; default 30 s. Zero: nothing is written then.
    ///
    /// The background thread writes as it does anyway, and flushes nothing: afterwards the bytes are where those of the
    /// kernel's own shared mappings are, in the file, and not yet safe from a power cut. It happens at exit(3) and at the
    /// return of `main`, after the handlers that were installed later than the first runtime, and whatever locks the thread
    /// that exits holds. It does not happen at `_exit(2)`, at Go's `os.Exit` and the return of Go's `main`, at signals
    /// that kill, and in forked children. What is held ([`Object::hold_dirty`]) is not written.
    #[must_use]
    pub fn exit_wait(mut self, limit: Duration) -> Self {
        // In milliseconds, of which a short wait is one.
        self.writeback.exit_wait = if limit.is_zero() { limit } else { limit.max(Duration::from_millis(1)) };
        self
    }

    /// Makes the runtime: maps the tables, installs the signal handlers, starts the fillers.
    ///
    /// # Errors
    /// [`Error::Limit`] where `RLIMIT_AS` is too small, or `RLIMIT_MEMLOCK` while everything is locked that is mapped
    /// (mlockall(2)): nothing was done. [`Error::Exhausted`], [`Error::System`], [`Error::Io`].
    #[expect(unsafe_code, reason = "the helper threads borrow the account")]
    pub fn build(self) -> Result<Runtime> {
        if softfault_platform::child::in_child() {
            let what = "a forked child of a process with a runtime cannot make its own: exec first";
            return Err(Error::Denied { op: "RuntimeBuilder::build", what });
        }
        let limit = self.cache_limit_bytes.map_or_else(share::next_limit_pages, memory::limit_pages);
        memory::check_room(
            "RuntimeBuilder::build",
            memory::runtime_bytes(limit, self.fillers, registry::lock().is_in_use()),
        )?;
        let swap = self.swap.as_ref().map(Swap::open).transpose()?;
        let entered = Entered::enter(self.fillers)?;
        let stat = entered.stat;
        stat.failures.set_speaking(self.report_signals);
        let queues = new_queues(limit)?;
        let [small, main, probation] = &queues;
        let lru = Lruvec::new(small.lend(), main.lend(), probation.lend(), limit);
        let account = Lease::new(Box::new(CacheAccount::new(limit, lru)));
        // SAFETY: `RuntimeInner` drops the thread before the account.
        let kswapd = unsafe { Kswapd::start(&account, stat) }?;
        let writables = Arc::<Writables>::default();
        // SAFETY: as above.
        let lent = unsafe { account.lend() };
        lent.dirty_limit
            .store(limit.saturating_mul(self.writeback.limit_percent) / 100, std::sync::atomic::Ordering::Relaxed);
        let flusher = Flusher::start(Arc::clone(&writables), lent, self.writeback)?;
        let last_writer = LastWriter::start(Arc::clone(&writables), lent, self.writeback.exit_wait)?;
        let inner = RuntimeInner {
            stat,
            khugepaged: Khugepaged::default(),
            flusher: Some(flusher),
            last_writer: Some(last_writer),
            kswapd: Some(kswapd),
            entered: Some(entered),
            account,
            queues,
            warnings: Warnings::default(),
            growing: Mutex::new(()),
            writables,
            dirty_percent: self.writeback.limit_percent,
            findings: Findings::default(),
            fill_window_pages: self.fill_window_pages,
            swap,
            readahead_pages: self.readahead_pages,
            lock_cache: self.lock_cache,
            arena_table_bytes: AtomicU64::new(0),
            regions: Mutex::new(Vec::new()),
            #[cfg(feature = "userfaultfd")]
            frames: Mutex::new(None),
            pid: std::process::id(),
        };
        let inner = Arc::new(inner);
        inner.warnings.note("RuntimeBuilder::build");
        if self.cache_limit_bytes.is_none() {
            share::join(&inner);
        }
        Ok(Runtime { inner })
    }
}

impl Runtime {
    /// Returns options at their defaults.
    #[must_use]
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder {
            cache_limit_bytes: None,
            writeback: Policy::default(),
            fillers: 4,
            fill_window_pages: 16,
            swap: None,
            readahead_pages: None,
            lock_cache: false,
            report_signals: false,
        }
    }

    /// Makes a runtime with default options.
    ///
    /// # Errors
    /// As [`RuntimeBuilder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Opens a file as a read-only object; its length is what it is now.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Exhausted`].
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<Object> {
        self.file_options().open(path)
    }

    /// Makes a read-only object of an open file (the descriptor is duplicated).
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::System`], [`Error::Exhausted`].
    pub fn file(&self, file: &File) -> Result<Object> {
        self.file_options().file(file)
    }

    /// Opens a file as an object that may be written; its length is what it is now.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Exhausted`].
    pub fn open_file_rw(&self, path: impl AsRef<Path>) -> Result<Object> {
        self.file_options().writable(true).open(path)
    }

    /// Makes an object that may be written of a file that is open for reading and writing.
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::System`], [`Error::Exhausted`].
    pub fn file_rw(&self, file: &File) -> Result<Object> {
        self.file_options().writable(true).file(file)
    }

    /// Begins an object of a file: writable or not, past the kernel's cache or not.
    #[must_use]
    pub fn file_options(&self) -> FileOptions {
        FileOptions::new(self.clone())
    }

    /// Makes `len_bytes` of anonymous memory, which begins as zeros.
    ///
    /// # Errors
    /// [`Error::Exhausted`].
    pub fn anonymous(&self, len_bytes: u64) -> Result<Object> {
        self.object(len_bytes).anonymous()
    }

    /// Begins an object of `len_bytes` over a store or vtable of the user's.
    #[must_use]
    pub fn object(&self, len_bytes: u64) -> ObjectBuilder {
        ObjectBuilder::new(self.clone(), len_bytes)
    }

    /// Begins an arena: `len_bytes` of address space, rounded up to 2 MiB.
    #[must_use]
    pub fn arena(&self, len_bytes: usize) -> ArenaBuilder {
        ArenaBuilder::new(self.clone(), len_bytes)
    }

    /// Returns what can be had here, what was chosen and why. The first call tries each mode, by opening a userfaultfd: where
    /// a filter of system calls kills who does, ask for [`Delivery::Segv`] and do not call this.
    #[must_use]
    pub fn delivery(&self) -> &DeliveryReport {
        self.inner.findings.report()
    }

    /// Reads the counters, without stopping anyone.
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::read(&self.inner)
    }

    /// Measures how long a touch takes to reach the handler (64 touches of pages made for it), into the `delivery`
    /// stage of the histogram: the one stage that a fault cannot time itself. Returns how many were measured; none
    /// where the calling thread blocks the signals, or for `Monitor`.
    ///
    /// # Errors
    /// As [`ArenaBuilder::build`].
    pub fn measure_delivery(&self, mode: Delivery) -> Result<u64> {
        crate::calibrate::measure_delivery(self, mode)
    }

    /// Changes the cache's limit. Pages above a lower one leave in the background; until then nothing new comes in but for
    /// what goes. At least 64 pages, as for [`RuntimeBuilder::cache_limit`].
    ///
    /// A limit for which no queues can be had (48 bytes of memory for each page, past `RLIMIT_DATA` or what may be committed)
    /// changes nothing: `nr_cache_limit_pages` says what holds.
    pub fn set_cache_limit(&self, bytes: u64) {
        share::leave(&self.inner);
        self.inner.set_limit(memory::limit_pages(bytes));
    }

    /// Writes everything that was stored before the call to the stores of all objects, without a flush, as it is done at
    /// exit(3) ([`RuntimeBuilder::exit_wait`]); returns whether that was done within `timeout`. Errors are counted
    /// (`writeback_errors`), and told by [`Object::sync`], which also makes things durable.
    ///
    /// # Errors
    /// [`Error::Denied`] in a forked child.
    pub fn write_back(&self, timeout: Duration) -> Result<bool> {
        parent_only("Runtime::write_back")?;
        Ok(self.inner.last_writer.as_ref().is_some_and(|w| w.write_back(timeout)))
    }

    /// Names the threads that could not take our signals, see [`crate::process::audit`].
    ///
    /// # Errors
    /// [`Error::Io`] when `/proc` cannot be read.
    pub fn audit_threads(&self) -> Result<crate::process::audit::Audit> {
        crate::process::audit::audit_threads()
    }

    /// Returns the threads that made this runtime, or mapped something where faults arrive by signals, while they blocked SIGBUS
    /// or SIGSEGV: each will end the process where it touches an arena, unless it unblocks them before. `nr_warnings` counts
    /// them. [`Runtime::audit_threads`] looks at every thread, as it is now.
    #[must_use]
    pub fn warnings(&self) -> Vec<Offender> {
        self.inner.warnings.list()
    }

    /// Puts our handlers back in front, when the program's language runtime has installed its own after us; they then
    /// chain to the newcomer.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn reinstall_handlers(&self) -> Result<()> {
        parent_only("Runtime::reinstall_handlers")?;
        let _registry = registry::lock();
        softfault_platform::trap::chain::install(softfault_platform::trap::on_signal)
            .map_err(system("Runtime::reinstall_handlers", "rt_sigaction"))
    }
}

impl RuntimeInner {
    /// Says that an object has ended, and is being written back for the last time until the value is dropped.
    pub(crate) fn ending(&self, flushing: &Flushing) -> Ending {
        Ending::begin(&self.writables, flushing)
    }
    pub(crate) fn set_limit(&self, pages: u64) {
        let account = &self.account;
        {
            // Two at a time would open one queue's memory twice.
            let _alone = self.growing.lock().unwrap_or_else(PoisonError::into_inner);
            let len = Lruvec::len_for(pages) as usize;
            if self.queues.iter().any(|q| q.open_to(len).is_err()) {
                return;
            }
            account.lru.grow(pages);
        }
        account.limit_pages.store(pages, std::sync::atomic::Ordering::SeqCst);
        let dirty = pages.saturating_mul(self.dirty_percent) / 100;
        account.dirty_limit.store(dirty, std::sync::atomic::Ordering::Relaxed);
        if account.wants_kswapd() {
            softfault_platform::sys::futex::wake_all(account.bell_addr());
        }
    }

    /// Finds `len_bytes` (a multiple of 2 MiB) of cache, in a region that exists or a new one.
    pub(crate) fn allocate(&self, len_bytes: usize) -> Result<(Arc<Space>, u64)> {
        let (space, offset) = self.take(len_bytes)?;
        if self.lock_cache
            && let Err(refusal) = mlock::lock_for_good(space.region.alias_at(offset), len_bytes)
        {
            space.put(offset, len_bytes);
            return Err(refusal.into_error("object"));
        }
        Ok((space, offset))
    }

    fn take(&self, len_bytes: usize) -> Result<(Arc<Space>, u64)> {
        let chunks = len_bytes / EXTENT_SIZE;
        let mut regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        for space in regions.iter() {
            if let Some(at) = space.take(chunks) {
                let at = at.map_err(system("object", "mprotect"))?;
                return Ok((Arc::clone(space), (at * EXTENT_SIZE) as u64));
            }
        }
        let space = Arc::new(Space::new(len_bytes)?);
        regions.push(Arc::clone(&space));
        let at = space.take(chunks).ok_or(Error::Exhausted { op: "object", what: "cache address space" })?;
        let at = at.map_err(system("object", "mprotect"))?;
        Ok((space, (at * EXTENT_SIZE) as u64))
    }

    /// Returns how many bytes an object gets that does not know how long it will be.
    pub(crate) fn room_to_grow(&self) -> u64 {
        let regions = self.regions.lock().unwrap_or_else(PoisonError::into_inner);
        let longest = regions.iter().map(|space| space.region.len_bytes()).max();
        let longest = longest.unwrap_or_else(|| memory::address_space_share(8));
        (longest as u64 / 16).min(1 << (crate::cache::space::REGION_SHIFTS.end() - 4))
    }

    /// Has the flusher look after an object.
    pub(crate) fn add_writable(&self, flushing: &Arc<Flushing>) {
        self.writables.add(Arc::clone(flushing));
    }

    /// Returns the bytes of address space and of memory, at most, that the queues of reclaim take.
    pub(crate) fn queue_bytes(&self) -> u64 {
        self.queues.iter().map(|q| q.lend().len() as u64 * 8).sum()
    }

    /// Returns the bytes of memory that those take.
    pub(crate) fn queue_bytes_resident(&self) -> u64 {
        self.queues.iter().map(Table::resident_bytes).sum()
    }

    /// Returns the bytes of memory that the words of pages and chunks take; 0 while an object is being made.
    pub(crate) fn folio_table_bytes(&self) -> u64 {
        let resident =
            |s: &Arc<Space>| s.free.try_lock().map_or(0, |free| s.region.table_bytes_resident(free.tail * EXTENT_SIZE));
        self.regions.try_lock().map_or(0, |regions| regions.iter().map(resident).sum())
    }

    /// Returns the bytes of memory that the cache's memfds occupy. Statistics wait for nobody: 0 while an object is
    /// being made.
    pub(crate) fn allocated_bytes(&self) -> u64 {
        self.regions.try_lock().map_or(0, |regions| regions.iter().map(|s| s.region.allocated_bytes()).sum())
    }

    /// Returns how many memfds the cache has.
    pub(crate) fn nr_regions(&self) -> usize {
        self.regions.try_lock().map_or(0, |regions| regions.len())
    }
}

/// Makes the queues of reclaim: for all memory, so that the limit may be raised, or for the limit alone where address space is
/// scarce; opened as far as the limit needs.
fn new_queues(limit_pages: u64) -> Result<[Table<AtomicU64>; 3]> {
    let most = memory::total_bytes() >> PAGE_SHIFT;
    let budget = memory::address_space_share(16);
    let bytes = |pages: u64| 3 * 8 * Lruvec::len_for(pages) as usize;
    let needed = Lruvec::len_for(limit_pages) as usize;
    let mut last = Errno::ENOMEM;
    for pages in [most, limit_pages.min(most)] {
        if pages > limit_pages && bytes(pages) > budget {
            continue;
        }
        let new = || {
            let table = Table::closed(Lruvec::len_for(pages) as usize)?;
            table.open_to(needed).map(|()| table)
        };
        match (new(), new(), new()) {
            (Ok(a), Ok(b), Ok(c)) => return Ok([a, b, c]),
            (Err(e), _, _) | (_, Err(e), _) | (_, _, Err(e)) => last = e,
        }
    }
    Err(system("Runtime::build", "mmap")(last))
}

impl Drop for RuntimeInner {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            // A forked child: nothing of this is its own.
            // The lock may have been held by a thread that does not exist here: it is not taken.
            std::mem::forget((self.last_writer.take(), self.flusher.take(), self.kswapd.take()));
            std::mem::forget(std::mem::take(self.regions.get_mut().unwrap_or_else(PoisonError::into_inner)));
            return;
        }
        drop((self.last_writer.take(), self.flusher.take()));
        drop(self.kswapd.take());
        drop(self.entered.take());
        crate::process::descriptors::sweep();
        share::divide();
    }
}
