//! `Runtime`: the value that owns the cache and the counters, and makes objects and arenas.
//!
//! # Context: control plane

use crate::arena::ArenaBuilder;
use crate::cache::failures::{self, RecentFailure};
use crate::cache::share;
use crate::cache::start::{self, Options};
use crate::cache::state::RuntimeInner;
use crate::cache::stats::Stats;
use crate::cache::swap::SwapOptions;
use crate::calibrate;
use crate::delivery::{Delivery, DeliveryReport};
use crate::error::{Error, Result, image, parent_only, system};
use crate::mapped::Mapped;
use crate::memory;
use crate::object::file::FileOptions;
use crate::object::{Object, ObjectBuilder};
use crate::process::audit::{self, Audit, Offender};
use crate::process::registry;
use crate::snapshot::{CaptureBuilder, OpenImage};
use softfault_image::Image;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// A page-fault runtime. Cheap to clone; the last clone, arena and object end it.
#[derive(Clone, Debug)]
pub struct Runtime {
    pub(crate) inner: Arc<RuntimeInner>,
}

/// Options of a [`Runtime`].
#[derive(Clone)]
pub struct RuntimeBuilder {
    options: Options,
}

impl std::fmt::Debug for RuntimeBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // As the options say it: in another pair of braces a long path would be past a kilobyte.
        self.options.fmt(f)
    }
}

impl RuntimeBuilder {
    /// Lets anonymous memory leave the cache, to `bytes` of `path`: a file, which is overwritten, or a folder, in which a
    /// file without a name is made (`std::env::temp_dir()`, say; not on a tmpfs, which is memory itself). It takes disk
    /// space as pages are written, and is read and written past the kernel's cache where the file system can.
    ///
    /// Pages of zeros take neither space nor I/O.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn swap(mut self, path: impl Into<PathBuf>, bytes: u64) -> Self {
        let zswap_bytes = self.options.swap.take().map_or(0, |s| s.zswap_bytes);
        self.options.swap = Some(SwapOptions { path: path.into(), bytes, zswap_bytes });
        self
    }
    /// Keeps pages that lz4 makes smaller than three quarters in up to `bytes` of memory in front of the swap file, where
    /// they cost no I/O; call [`RuntimeBuilder::swap`] first. This memory is on top of the cache's limit, and is kept
    /// until the runtime ends.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn zswap(mut self, bytes: u64) -> Self {
        let none = SwapOptions { path: PathBuf::new(), bytes: 0, zswap_bytes: 0 };
        self.options.swap.get_or_insert(none).zswap_bytes = bytes;
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
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn cache_limit(mut self, bytes: u64) -> Self {
        self.options.cache_limit_bytes = Some(bytes);
        self
    }
    /// Sets how many threads call stores that are not handler-safe; default 4. More are started, up to 64, while work
    /// waits and none of them gets on: a store that hangs keeps only its own pages waiting.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn fillers(mut self, nr: usize) -> Self {
        self.options.fillers = nr.clamp(1, 64);
        self
    }
    /// Sets how many pages the thread that misses one reads at most (rounded to a power of two, 1 to 512); default 16.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn fill_window_pages(mut self, nr: u32) -> Self {
        self.options.fill_window_pages = nr.clamp(1, 512).next_power_of_two();
        self
    }
    /// Sets the largest readahead window in pages; default twice the fill window, or 0 where that is one page.
    ///
    /// What a miss does not need itself, and the windows behind it while a stream goes on, the fillers read before
    /// anybody asks. [`Advice::Sequential`](crate::Advice::Sequential) doubles it. 0 turns it off: a miss reads the
    /// aligned fill window around it. Never read ahead are anonymous memory, vtables of the user's, stores that touch
    /// arenas (a filler may not) and objects whose failures end the process.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn readahead_pages(mut self, max: u32) -> Self {
        self.options.readahead_pages = Some(max);
        self
    }

    /// Locks what is cached in memory, as mlock2(2) with `MLOCK_ONFAULT` does: the kernel neither swaps it nor unmaps it to
    /// reclaim it, so the cache costs what [`RuntimeBuilder::cache_limit`] says, and gives memory back only by that limit.
    /// Default: not, and under pressure the kernel swaps the cache as other memory.
    ///
    /// Without `CAP_IPC_LOCK` the maximal lengths of all objects together (and the frames and mappings of exclusive ones) must
    /// stay below `RLIMIT_MEMLOCK`: an object that does not fit is [`Error::Limit`]. The private copies of private
    /// mappings are the program's, and not locked.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn lock_cache(mut self, yes: bool) -> Self {
        self.options.lock_cache = yes;
        self
    }

    /// Sets how often mappings are scanned for stores, and after how long dirty pages are written though nobody asks;
    /// defaults 500 ms and 5 s.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn writeback(mut self, interval: Duration, expire: Duration) -> Self {
        self.options.writeback.interval = interval.max(Duration::from_millis(1));
        self.options.writeback.expire = expire;
        self
    }

    /// Writes a line on standard error before a touch becomes a SIGBUS: the object, its byte, and why. Default: not; see
    /// [`Runtime::recent_failures`].
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn report_signals(mut self, yes: bool) -> Self {
        self.options.report_signals = yes;
        self
    }

    /// Sets what share of the cache (in percent) may be dirty before pages are written in the background, and before
    /// writers to stores that wait for a device are made to wait themselves; defaults 10 and 40.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn dirty_limits(mut self, background_percent: u32, percent: u32) -> Self {
        self.options.writeback.background_percent = u64::from(background_percent.min(100));
        self.options.writeback.limit_percent = u64::from(percent.clamp(1, 100));
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
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn exit_wait(mut self, limit: Duration) -> Self {
        // In milliseconds, of which a short wait is one.
        self.options.writeback.exit_wait = if limit.is_zero() { limit } else { limit.max(Duration::from_millis(1)) };
        self
    }

    /// Makes the runtime: maps the tables, installs the signal handlers, starts the fillers.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Limit`] where `RLIMIT_AS` is too small, or `RLIMIT_MEMLOCK` while everything is locked that is mapped
    /// (mlockall(2)): nothing was done. [`Error::Exhausted`], [`Error::System`], [`Error::Io`].
    pub fn build(self) -> Result<Runtime> {
        if softfault_platform::child::in_child() {
            let what = "a forked child of a process with a runtime cannot make its own: exec first";
            return Err(Error::Denied { op: "RuntimeBuilder::build", what });
        }
        let inner = start::start(&self.options)?;
        Ok(Runtime { inner })
    }
}

impl Runtime {
    /// Returns options at their defaults.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn builder() -> RuntimeBuilder {
        RuntimeBuilder { options: Options::default() }
    }

    /// Makes a runtime with default options.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// As [`RuntimeBuilder::build`].
    pub fn new() -> Result<Self> {
        Self::builder().build()
    }

    /// Opens a file as a read-only object; its length is what it is now.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Exhausted`].
    pub fn open_file(&self, path: impl AsRef<Path>) -> Result<Object> {
        self.file_options().open(path)
    }

    /// Makes a read-only object of an open file (the descriptor is duplicated).
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::System`], [`Error::Exhausted`].
    pub fn file(&self, file: &File) -> Result<Object> {
        self.file_options().file(file)
    }

    /// Opens a file as an object that may be written; its length is what it is now.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::Exhausted`].
    pub fn open_file_rw(&self, path: impl AsRef<Path>) -> Result<Object> {
        self.file_options().writable(true).open(path)
    }

    /// Makes an object that may be written of a file that is open for reading and writing.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Io`], [`Error::System`], [`Error::Exhausted`].
    pub fn file_rw(&self, file: &File) -> Result<Object> {
        self.file_options().writable(true).file(file)
    }

    /// Opens a file, reserves an arena that is as long, and maps it whole, to be read: what mmap(2) does.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// As [`Runtime::open_file`], [`ArenaBuilder::build`] and [`Arena::map`](crate::Arena::map); nothing is left open then.
    pub fn map_file(&self, path: impl AsRef<Path>) -> Result<Mapped> {
        Mapped::new(&self.inner, self.open_file(path)?)
    }

    /// Maps an object whole, into an arena of its own, to be written if the object may be: of a file that is opened with
    /// options, of a store, of anonymous memory.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// As [`ArenaBuilder::build`] and [`Arena::map`](crate::Arena::map).
    pub fn map_object(&self, object: Object) -> Result<Mapped> {
        Mapped::new(&self.inner, object)
    }

    /// Opens an image of memory, of which sessions are restored ([`Restore`](crate::Restore)): an `.sfi` file, or a raw one. If the
    /// runtime has it open already, it is that one.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Image`], [`Error::Exhausted`].
    pub fn open_image(&self, path: impl AsRef<Path>) -> Result<OpenImage> {
        let op = "Runtime::open_image";
        OpenImage::new(op, &self.inner, Image::open(path).map_err(image(op))?)
    }

    /// The same of an image that was opened with options: as a stack of files, with regions, or trusted
    /// ([`Image::with_integrity`]).
    ///
    /// # Context: program
    ///
    /// # Errors
    /// As [`Runtime::open_image`].
    pub fn image(&self, image: Image) -> Result<OpenImage> {
        OpenImage::new("Runtime::image", &self.inner, image)
    }

    /// Begins to say what is captured of this process's arenas: a consistent image of them, made while threads go on
    /// storing to them.
    ///
    /// ```no_run
    /// use softfault::{Arena, Runtime};
    /// use std::convert::Infallible;
    ///
    /// fn save(rt: &Runtime, arena: &Arena, position: &u64) -> softfault::Result<()> {
    ///     // Stores wait while the closure runs: what it reads is of the same moment as the image.
    ///     let mut at_cut = 0;
    ///     let closure = || {
    ///         at_cut = *position;
    ///         Ok::<(), Infallible>(())
    ///     };
    ///     let capture = rt.capture().arena(arena).begin("memory.sfi", closure)?;
    ///     // From here on threads store again, while the image is written.
    ///     capture.key("position", &at_cut.to_le_bytes());
    ///     println!("{:?}", capture.progress());
    ///     capture.commit()?;
    ///     Ok(())
    /// }
    /// ```
    ///
    /// # Context: program, filler
    pub fn capture(&self) -> CaptureBuilder {
        CaptureBuilder::default()
    }

    /// Begins an object of a file: writable or not, past the kernel's cache or not.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn file_options(&self) -> FileOptions {
        FileOptions::new(Arc::clone(&self.inner))
    }

    /// Makes `len_bytes` of anonymous memory, which begins as zeros.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Exhausted`].
    pub fn anonymous(&self, len_bytes: u64) -> Result<Object> {
        self.object(len_bytes).anonymous()
    }

    /// Begins an object of `len_bytes` over a store or vtable of the user's.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn object(&self, len_bytes: u64) -> ObjectBuilder {
        ObjectBuilder::new(Arc::clone(&self.inner), len_bytes)
    }

    /// Begins an arena: `len_bytes` of address space, rounded up to 2 MiB.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn arena(&self, len_bytes: usize) -> ArenaBuilder {
        ArenaBuilder::new(Arc::clone(&self.inner), len_bytes)
    }

    /// Returns what can be had here, what was chosen and why. The first call tries each mode, by opening a userfaultfd: where
    /// a filter of system calls kills who does, ask for [`Delivery::Segv`] and do not call this.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn delivery(&self) -> &DeliveryReport {
        self.inner.findings.report()
    }

    /// Reads the counters, without stopping anyone.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn stats(&self) -> Stats {
        Stats::read(&self.inner)
    }

    /// Measures how long a touch takes to reach the handler (64 touches of pages made for it), into the `delivery`
    /// stage of the histogram: the one stage that a fault cannot time itself. Returns how many were measured; none
    /// where the calling thread blocks the signals, or for `Monitor`.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// As [`ArenaBuilder::build`].
    pub fn measure_delivery(&self, mode: Delivery) -> Result<u64> {
        calibrate::measure_delivery(&self.inner, mode)
    }

    /// Changes the cache's limit. Pages above a lower one leave in the background; until then nothing new comes in but for
    /// what goes. At least 64 pages, as for [`RuntimeBuilder::cache_limit`].
    ///
    /// A limit for which no queues can be had (48 bytes of memory for each page, past `RLIMIT_DATA` or what may be committed)
    /// changes nothing: `nr_cache_limit_pages` says what holds.
    ///
    /// # Context: program, filler
    pub fn set_cache_limit(&self, bytes: u64) {
        share::leave(&self.inner);
        self.inner.set_limit(memory::limit_pages(bytes));
    }

    /// Writes everything that was stored before the call to the stores of all objects, without a flush, as it is done at
    /// exit(3) ([`RuntimeBuilder::exit_wait`]); returns whether that was done within `timeout`. Errors are counted
    /// (`writeback_errors`), and told by [`Object::sync`], which also makes things durable.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Denied`] in a forked child.
    pub fn write_back(&self, timeout: Duration) -> Result<bool> {
        parent_only("Runtime::write_back")?;
        Ok(self.inner.write_back(timeout))
    }

    /// Returns the last failures, up to 64, oldest first: of stores, whoever was told, and of touches that became signals.
    /// Thread-safe, and at any time; nobody is stopped.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn recent_failures(&self) -> Vec<RecentFailure> {
        failures::read(&self.inner.stat.failures)
    }

    /// Names the threads that could not take our signals, see [`crate::audit`].
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Io`] when `/proc` cannot be read.
    pub fn audit_threads(&self) -> Result<Audit> {
        audit::audit_threads()
    }

    /// Returns the threads that made this runtime, or mapped something where faults arrive by signals, while they blocked SIGBUS
    /// or SIGSEGV: each will end the process where it touches an arena, unless it unblocks them before. `nr_warnings` counts
    /// them. [`Runtime::audit_threads`] looks at every thread, as it is now.
    ///
    /// # Context: program
    #[must_use]
    pub fn warnings(&self) -> Vec<Offender> {
        self.inner.warnings.list()
    }

    /// Puts our handlers back in front, when the program's language runtime has installed its own after us; they then
    /// chain to the newcomer.
    ///
    /// # Context: program
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
