//! The beginning of a runtime: its tables, its threads, and its place in the process.
//!
//! # Context: control plane

#[cfg(feature = "userfaultfd")]
use super::frames::FramePool;
use super::khugepaged::Khugepaged;
use super::kswapd::Kswapd;
use super::share;
use super::state::RuntimeInner;
use super::swap::{Swap, SwapOptions};
use crate::delivery::Findings;
use crate::error::{Result, system};
use crate::lease::{Lease, Table};
use crate::memory;
use crate::process::audit::Warnings;
use crate::process::registry::{self, Entered};
use crate::writeback::exit::LastWriter;
use crate::writeback::flusher::{Flusher, Policy, Writables};
use softfault_mm::lru::Lruvec;
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::page::PAGE_SHIFT;
use softfault_mm::sync::{AtomicU64, Ordering};
use softfault_platform::sys::Errno;
use std::sync::{Arc, Mutex};

/// What a runtime is to be, as its builder was told.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    /// `None`: a part of the share that all runtimes without a limit divide.
    pub(crate) cache_limit_bytes: Option<u64>,
    pub(crate) writeback: Policy,
    pub(crate) fillers: usize,
    pub(crate) fill_window_pages: u32,
    pub(crate) swap: Option<SwapOptions>,
    pub(crate) readahead_pages: Option<u32>,
    pub(crate) lock_cache: bool,
    pub(crate) report_signals: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self {
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
}

/// Maps the tables, installs the signal handlers, starts the threads.
///
/// # Errors
/// What failed; nothing is left of the runtime then.
///
/// # Context: control plane
#[expect(unsafe_code, reason = "the helper threads borrow the account")]
pub(crate) fn start(options: &Options) -> Result<Arc<RuntimeInner>> {
    let limit = options.cache_limit_bytes.map_or_else(share::next_limit_pages, memory::limit_pages);
    memory::check_room(
        "RuntimeBuilder::build",
        memory::runtime_bytes(limit, options.fillers, registry::lock().is_in_use()),
    )?;
    let swap = options.swap.as_ref().map(Swap::open).transpose()?;
    let entered = Entered::enter(options.fillers)?;
    let stat = entered.stat;
    stat.failures.set_speaking(options.report_signals);
    let queues = new_queues(limit)?;
    let [small, main, probation] = &queues;
    let lru = Lruvec::new(small.lend(), main.lend(), probation.lend(), limit);
    let account = Lease::new(Box::new(CacheAccount::new(limit, lru)));
    // SAFETY: `RuntimeInner` drops the thread before the account.
    let kswapd = unsafe { Kswapd::start(&account, stat) }?;
    let writables = Arc::<Writables>::default();
    // SAFETY: as above.
    let lent = unsafe { account.lend() };
    lent.dirty_limit.store(limit.saturating_mul(options.writeback.limit_percent) / 100, Ordering::Relaxed);
    let flusher = Flusher::start(Arc::clone(&writables), lent, options.writeback)?;
    let last_writer = LastWriter::start(Arc::clone(&writables), lent, options.writeback.exit_wait)?;
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
        dirty_percent: options.writeback.limit_percent,
        findings: Findings::default(),
        fill_window_pages: options.fill_window_pages,
        swap,
        readahead_pages: options.readahead_pages,
        lock_cache: options.lock_cache,
        arena_table_bytes: AtomicU64::new(0),
        regions: Mutex::new(Vec::new()),
        #[cfg(feature = "userfaultfd")]
        frames: FramePool::default(),
        pid: std::process::id(),
    };
    let inner = Arc::new(inner);
    inner.warnings.note("RuntimeBuilder::build");
    if options.cache_limit_bytes.is_none() {
        share::join(&inner);
    }
    Ok(inner)
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
