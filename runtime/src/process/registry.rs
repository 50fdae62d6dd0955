//! What is one per process: numbers of the published tables, signal dispositions, userfaultfd contexts, helpers.
//!
//! [`lock`] is taken after every other lock of the control plane but the leaves (`runtime/README.md`, "Locks, in order"), and
//! never by a handler or a helper.
//!
//! # Context: control plane

use crate::by_std;
#[cfg(feature = "userfaultfd")]
use crate::delivery::Delivery;
use crate::error::{Error, Result, system};
#[cfg(feature = "userfaultfd")]
use crate::lease::Lease;
use crate::memory;
use crate::process::helper;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::exclusive::ExclusiveMmu;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd::{self, Kind, UffdMmu};
use softfault_platform::mmu::{budget, segv};
#[cfg(feature = "userfaultfd")]
use softfault_platform::sys::Errno;
use softfault_platform::trap::{self, chain};
use softfault_platform::vmatree::{self, Numbered};
use softfault_platform::{child, host, stack, staging};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// Numbers of one table: the free ones, and the first never used.
#[derive(Debug)]
pub(crate) struct Ids {
    free: Vec<u32>,
    next: u32,
    of: Numbered,
}

impl Ids {
    const fn new(of: Numbered) -> Self {
        Self { free: Vec::new(), next: 0, of }
    }
    /// Returns a free number, whose entries are accessible.
    pub(crate) fn get(&mut self) -> Option<u32> {
        self.free.pop().or_else(|| {
            let id = self.next;
            self.of.open(id).ok()?;
            self.next += 1;
            Some(id)
        })
    }
    /// Gives a number back. Nobody looks at its entry any more.
    pub(crate) fn put(&mut self, id: u32) {
        self.free.push(id);
    }
    /// Returns the number behind the greatest that was ever used.
    pub(crate) fn bound(&self) -> u32 {
        self.next
    }
}

impl vmatree::SplitPool for Ids {
    fn get(&mut self) -> Option<u32> {
        Ids::get(self)
    }
}

/// The process's tables and what hangs on the number of runtimes.
#[derive(Debug)]
pub(crate) struct Registry {
    pub(crate) arenas: Ids,
    pub(crate) vmas: Ids,
    pub(crate) splits: Ids,
    pub(crate) mappings: Ids,
    pub(crate) delegations: Ids,
    stats: Vec<&'static softfault_mm::vmstat::VmStat>,
    runtimes: usize,
    helpers: Option<helper::Pool>,
    #[cfg(feature = "userfaultfd")]
    contexts: [Option<Lease<UffdMmu>>; 3],
    #[cfg(feature = "userfaultfd")]
    exclusive: Option<Lease<ExclusiveMmu>>,
    #[cfg(feature = "userfaultfd")]
    monitor: Option<helper::Monitor>,
    #[cfg(feature = "userfaultfd")]
    keeper: Option<helper::Keeper>,
}

static REGISTRY: Mutex<Registry> = Mutex::new(Registry {
    arenas: Ids::new(Numbered::Arenas),
    vmas: Ids::new(Numbered::Vmas),
    splits: Ids::new(Numbered::Splits),
    mappings: Ids::new(Numbered::Mappings),
    delegations: Ids::new(Numbered::Delegations),
    stats: Vec::new(),
    runtimes: 0,
    helpers: None,
    #[cfg(feature = "userfaultfd")]
    contexts: [None, None, None],
    #[cfg(feature = "userfaultfd")]
    exclusive: None,
    #[cfg(feature = "userfaultfd")]
    monitor: None,
    #[cfg(feature = "userfaultfd")]
    keeper: None,
});

/// Locks the registry. A panic under the lock left at worst a leaked number behind.
pub(crate) fn lock() -> MutexGuard<'static, Registry> {
    REGISTRY.lock().unwrap_or_else(PoisonError::into_inner)
}

const OP: &str = "Runtime::build";

/// A runtime that was counted in: dropped, it is counted out, and the last one takes everything with it.
#[derive(Debug)]
pub(crate) struct Entered {
    /// Its block of counters.
    pub(crate) stat: &'static softfault_mm::vmstat::VmStat,
    pid: u32,
}

impl Entered {
    /// Counts a runtime in; the first one maps the tables and installs the handlers.
    ///
    /// # Errors
    /// What failed; the runtime was counted out.
    pub(crate) fn enter(fillers: usize) -> Result<Self> {
        let mut registry = lock();
        registry.runtimes += 1;
        let entered = Self { stat: registry.take_stat(), pid: std::process::id() };
        let ready = registry.make_ready(fillers);
        // Counting out takes the lock.
        drop(registry);
        ready.map(|()| entered)
    }
}

impl Drop for Entered {
    fn drop(&mut self) {
        // A forked child: nothing of this is its own, and the lock may have been held by a thread that does not exist here.
        if self.pid == std::process::id() {
            let leftover = lock().leave(self.stat);
            drop(leftover);
        }
    }
}

impl Registry {
    /// Bounds what exposures by protection may cost, by what the process has now, and keeps some mappings for them.
    #[expect(clippy::unused_self, reason = "the lock: the reserve is made once")]
    pub(crate) fn bound_exposures(&mut self) {
        let count = |maps: Vec<u8>| maps.iter().filter(|b| **b == b'\n').count();
        let in_use = by_std::read("/proc/self/maps").map_or(0, count);
        budget::bound_exposures(max_map_count(), i64::try_from(in_use).unwrap_or(i64::MAX));
        budget::make_reserve();
    }

    /// Returns whether there are runtimes.
    pub(crate) fn is_in_use(&self) -> bool {
        self.runtimes > 0
    }

    /// Makes what every runtime needs. The tables stay until the process ends, whatever comes of this.
    fn make_ready(&mut self, fillers: usize) -> Result<()> {
        child::init().map_err(system(OP, "mmap"))?;
        vmatree::init(memory::address_space_share(16)).map_err(system(OP, "mmap"))?;
        staging::init().map_err(system(OP, "mmap"))?;
        stack::init().map_err(system(OP, "mmap"))?;
        host::init();
        // Without it first stores cannot be found, and every page that may be stored to counts as dirty.
        let _ = softfault_platform::sys::pagemap::init();
        budget::init(max_map_count());
        match &mut self.helpers {
            Some(pool) => pool.grow(fillers)?,
            None => self.helpers = Some(helper::Pool::start(fillers)?),
        }
        chain::install(trap::on_signal).map_err(system(OP, "rt_sigaction"))
    }

    /// Counts a runtime out; the last one restores the dispositions and closes what was open.
    ///
    /// Returns the threads to be joined after the lock is dropped.
    fn leave(&mut self, stat: &'static softfault_mm::vmstat::VmStat) -> Leftover {
        self.stats.push(stat);
        self.runtimes -= 1;
        let mut leftover = Leftover::default();
        if self.runtimes > 0 {
            return leftover;
        }
        chain::uninstall(trap::on_signal);
        leftover.helpers = self.helpers.take();
        #[cfg(feature = "userfaultfd")]
        {
            leftover.monitor = self.monitor.take();
            for kind in [Kind::Async, Kind::Sync, Kind::Monitor] {
                uffd::set_context(kind, None);
            }
            leftover.exclusive = self.exclusive.take();
            leftover.keeper = self.keeper.take();
            leftover.contexts = std::mem::take(&mut self.contexts).into_iter().flatten().collect();
        }
        leftover
    }

    /// Takes a block of counters: blocks are recycled and never freed, because a handler may still count in one.
    fn take_stat(&mut self) -> &'static softfault_mm::vmstat::VmStat {
        let stat = self.stats.pop().unwrap_or_else(|| Box::leak(Box::new(softfault_mm::vmstat::VmStat::new())));
        stat.reset();
        stat
    }

    /// Returns the process's context of this kind, opening it at first use.
    #[cfg(feature = "userfaultfd")]
    #[expect(unsafe_code, reason = "contexts are lent to every vma until the last runtime goes")]
    pub(crate) fn context(&mut self, kind: Kind) -> std::result::Result<&'static UffdMmu, Errno> {
        if self.contexts[kind as usize].is_none() {
            let lease = Lease::new(Box::new(UffdMmu::open(kind)?));
            if kind == Kind::Monitor {
                // SAFETY: as below; and a monitor that could not be started borrows nothing.
                self.monitor = Some(helper::Monitor::start(unsafe { lease.lend() })?);
            }
            self.contexts[kind as usize] = Some(lease);
            self.keep();
        }
        let lease = self.contexts[kind as usize].as_ref().ok_or(Errno::EINVAL)?;
        // SAFETY: the lease is dropped after the last runtime left: no vma, arena or monitor is left then.
        let mmu = unsafe { lease.lend() };
        uffd::set_context(kind, Some(mmu));
        Ok(mmu)
    }

    /// Returns the process's context for exclusive objects, opening it at first use.
    #[cfg(feature = "userfaultfd")]
    #[expect(unsafe_code, reason = "as for the other contexts")]
    pub(crate) fn exclusive(&mut self) -> std::result::Result<&'static ExclusiveMmu, Errno> {
        if self.exclusive.is_none() {
            self.exclusive = Some(Lease::new(Box::new(ExclusiveMmu::open()?)));
            self.keep();
        }
        let lease = self.exclusive.as_ref().ok_or(Errno::EINVAL)?;
        // SAFETY: as for `context`: it is dropped after the last runtime left, and with it the last pool of frames.
        Ok(unsafe { lease.lend() })
    }
}

#[cfg(feature = "userfaultfd")]
impl Registry {
    /// Has every context that is open kept by a thread, beside the program's table.
    fn keep(&mut self) {
        let contexts = self.contexts.iter().flatten().map(|mmu| mmu.uffd());
        let open: Vec<_> = contexts.chain(self.exclusive.as_ref().map(|mmu| mmu.uffd())).collect();
        // One that the program has closed meanwhile is taken back first, from the thread that is about to end.
        open.iter().for_each(|uffd| _ = uffd.take_back());
        let numbers = open.iter().map(|uffd| uffd.fd()).chain(softfault_platform::sys::pagemap::note_kept());
        let Some(keeper) = helper::Keeper::start(numbers.collect()) else { return };
        open.iter().for_each(|uffd| uffd.note_kept());
        self.keeper = Some(keeper);
    }
}

/// What the last runtime leaves to be ended outside the lock.
#[derive(Debug, Default)]
pub(crate) struct Leftover {
    helpers: Option<helper::Pool>,
    #[cfg(feature = "userfaultfd")]
    monitor: Option<helper::Monitor>,
    #[cfg(feature = "userfaultfd")]
    contexts: Vec<Lease<UffdMmu>>,
    #[cfg(feature = "userfaultfd")]
    exclusive: Option<Lease<ExclusiveMmu>>,
    #[cfg(feature = "userfaultfd")]
    keeper: Option<helper::Keeper>,
}

impl Drop for Leftover {
    fn drop(&mut self) {
        #[cfg(feature = "userfaultfd")]
        drop(self.monitor.take());
        drop(self.helpers.take());
        // Handlers that entered before the arenas went may still be on their way out of a section.
        softfault_platform::section::synchronize();
        #[cfg(feature = "userfaultfd")]
        {
            drop((std::mem::take(&mut self.contexts), self.exclusive.take()));
            softfault_platform::sys::fd::let_go();
            drop(self.keeper.take());
        }
    }
}

/// Reads `vm.max_map_count`; the kernel's default where it cannot be read.
fn max_map_count() -> i64 {
    by_std::read_to_string("/proc/sys/vm/max_map_count").ok().and_then(|s| s.trim().parse().ok()).unwrap_or(65_530)
}

/// Returns the page tables of exclusive objects.
///
/// # Errors
/// [`Error::Delivery`] where there is no userfaultfd.
#[cfg(feature = "userfaultfd")]
pub(crate) fn exclusive_mmu() -> Result<&'static ExclusiveMmu> {
    lock().exclusive().map_err(|e| {
        let why = format!("exclusive objects need a userfaultfd context: {e}");
        Error::Delivery { mode: Delivery::InThread, why }
    })
}

/// Returns the page tables of arenas served by SIGSEGV.
pub(crate) fn segv_mmu() -> &'static segv::SegvMmu {
    &segv::SEGV
}

/// Wraps "no number is left".
pub(crate) fn exhausted(op: &'static str, what: &'static str) -> impl Fn() -> Error {
    move || Error::Exhausted { op, what }
}
