//! `Object`: a file, anonymous memory, a user's store or a user's vtable, as a range of the cache.

use crate::arena::ArenaInner;
use crate::error::{Error, Result, parent_only};
use crate::exclusive::{Exclusive, Parts, Plan};
use crate::guarded::Guarded;
use crate::io;
use crate::lease::Lease;
use crate::registry;
use crate::rmap::IMmap;
use crate::runtime::{Runtime, RuntimeInner, Space};
use crate::writeback::FlushState;
use crate::{Access, FailurePolicy};
use softfault_mm::folio::{DIRTY, FolioWord, State};
use softfault_mm::mapping::{DYING, Mapping};
use softfault_mm::page::{EXTENT_SIZE, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::sync::{AtomicU32, AtomicU64, Ordering};
use softfault_mm::vma::VmOps;
use softfault_platform::store::object::{FolioMemory, ObjectOps, Retries};
use softfault_platform::store::zero::ZeroStore;
use softfault_platform::store::{HandlerStore, Store};
use softfault_platform::{section, vmatree};
use std::sync::Arc;
use std::time::Duration;

/// Options of an object; see [`Runtime::object`].
#[derive(Debug)]
pub struct ObjectBuilder {
    pub(crate) runtime: Runtime,
    pub(crate) len_bytes: u64,
    max_len_bytes: u64,
    pub(crate) writable: bool,
    pub(crate) policy: FailurePolicy,
    deadline: Option<Duration>,
    pub(crate) retries: Retries,
    pub(crate) mkwrite: bool,
    dsync: bool,
    fill_window_pages: u32,
    readahead_pages: Option<u32>,
    private_past_cache: bool,
    cache_limit_bytes: Option<u64>,
    /// Exclusive; by copying only.
    pub(crate) exclusive: Option<bool>,
    pub(crate) huge_pages: bool,
}

impl ObjectBuilder {
    pub(crate) fn new(runtime: Runtime, len_bytes: u64) -> Self {
        let fill_window_pages = runtime.inner.fill_window_pages;
        let readahead_pages = runtime.inner.readahead_pages;
        Self {
            runtime,
            len_bytes,
            max_len_bytes: len_bytes,
            writable: false,
            policy: FailurePolicy::Poison,
            deadline: None,
            retries: Retries::default(),
            mkwrite: false,
            dsync: false,
            fill_window_pages,
            readahead_pages,
            private_past_cache: true,
            cache_limit_bytes: None,
            exclusive: None,
            huge_pages: false,
        }
    }
    /// Sets the length, where it is known only after the other options.
    pub(crate) fn len(mut self, bytes: u64) -> Self {
        self.len_bytes = bytes;
        self
    }
    pub(crate) fn is_writable(&self) -> bool {
        self.writable
    }
    /// Reserves room for the object to grow to `bytes` (by [`Object::set_len`]).
    #[must_use]
    pub fn max_len(mut self, bytes: u64) -> Self {
        self.max_len_bytes = bytes;
        self
    }
    /// Permits shared mappings with stores, and [`Object::write_at`]. What is written goes to the store in time,
    /// and for certain by [`Object::sync`].
    #[must_use]
    pub fn writable(mut self, yes: bool) -> Self {
        self.writable = yes;
        self
    }
    /// Says what happens to accesses whose page the store cannot give; default [`FailurePolicy::Poison`].
    #[must_use]
    pub fn on_failure(mut self, policy: FailurePolicy) -> Self {
        self.policy = policy;
        self
    }
    /// Bounds how long a touch waits for a fill. Needs a filler: not for handler-safe stores, which run in the
    /// faulting thread itself.
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = Some(deadline);
        self
    }
    /// Tries a failing read `times` more, sleeping `backoff`, then twice that, and so on (fillers only).
    #[must_use]
    pub fn retries(mut self, times: u32, backoff: Duration) -> Self {
        self.retries = Retries { times, backoff_ns: u64::try_from(backoff.as_nanos()).unwrap_or(u64::MAX) };
        self
    }
    /// Makes the first store to each page of a shared mapping fault (`page_mkwrite`) instead of being noted silently.
    /// Not for [`Delivery::Monitor`](crate::Delivery::Monitor) arenas.
    #[must_use]
    pub fn synchronous_writes(mut self, yes: bool) -> Self {
        self.mkwrite = yes;
        self
    }
    /// Makes shared mappings synchronous as `MAP_SYNC`: before the first store to a page lands, the store has made its
    /// block durable ([`Store::dsync`]). Implies synchronous writes.
    #[must_use]
    pub fn dsync(mut self, yes: bool) -> Self {
        self.dsync = yes;
        self.mkwrite |= yes;
        self
    }
    /// Sets how many pages the thread that misses one reads at most (1 to 512); default the runtime's.
    #[must_use]
    pub fn fill_window_pages(mut self, nr: u32) -> Self {
        self.fill_window_pages = nr.clamp(1, 512).next_power_of_two();
        self
    }
    /// Sets the largest readahead window; default the runtime's. See [`RuntimeBuilder::readahead_pages`].
    ///
    /// [`RuntimeBuilder::readahead_pages`]: crate::RuntimeBuilder::readahead_pages
    #[must_use]
    pub fn readahead_pages(mut self, max: u32) -> Self {
        self.readahead_pages = Some(max);
        self
    }
    /// Bounds the bytes of the object's cached pages, below the cache's own limit (at least 64 pages); see
    /// [`Object::set_cache_limit`].
    #[must_use]
    pub fn cache_limit(mut self, bytes: u64) -> Self {
        self.cache_limit_bytes = Some(bytes);
        self
    }
    /// Whether a first store to an uncached page of a private mapping is read past the cache, straight into the
    /// private page (default), or fills the cache first.
    #[must_use]
    pub fn private_past_cache(mut self, yes: bool) -> Self {
        self.private_past_cache = yes;
        self
    }

    /// Makes the object over a store that filler threads call.
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Argument`].
    pub fn store(self, store: Box<dyn Store>) -> Result<Object> {
        if self.dsync {
            let why = "must be made durable in the faulting thread; use `handler_store`";
            return Err(Error::Argument { op: "ObjectBuilder::store", arg: "dsync", value: 1, why });
        }
        let store = Box::new(Guarded(store));
        let ops = Box::new(ShmemVmOps { mkwrite: self.mkwrite });
        self.build(Backing {
            store,
            handler_safe: false,
            store_faults: false,
            always_dirty: false,
            persistent: true,
            dirty_goes: true,
            reads_ahead: true,
            ops,
        })
    }

    /// Makes the object over a store that is called in the faulting thread, in a signal handler.
    ///
    /// # Errors
    /// [`Error::Argument`] with a deadline (it needs a filler), [`Error::Exhausted`].
    pub fn handler_store<S: HandlerStore + 'static>(self, store: Box<S>) -> Result<Object> {
        if let Some(d) = self.deadline {
            return Err(Error::Argument {
                op: "ObjectBuilder::handler_store",
                arg: "deadline (ms)",
                value: u64::try_from(d.as_millis()).unwrap_or(u64::MAX),
                why: "a store that runs in the faulting thread cannot be timed out; use `store`",
            });
        }
        let ops = Box::new(ShmemVmOps { mkwrite: self.mkwrite });
        let store_faults = store.touches_arenas();
        self.build(Backing {
            store,
            handler_safe: true,
            store_faults,
            always_dirty: false,
            persistent: true,
            dirty_goes: true,
            reads_ahead: !store_faults,
            ops,
        })
    }

    /// Makes the object of anonymous memory, over the runtime's swap file if it has one.
    ///
    /// # Errors
    /// [`Error::Exhausted`].
    pub fn anonymous(mut self) -> Result<Object> {
        self.writable = true;
        let ops = Box::new(ShmemVmOps { mkwrite: self.mkwrite });
        let (store, handler_safe): (Box<dyn Store>, bool) = match &self.runtime.inner.swap {
            None => (Box::new(ZeroStore), true),
            Some(swap) => {
                // The object may grow to the end of its last chunk.
                let max = self.max_len_bytes.max(self.len_bytes);
                let max = max.checked_next_multiple_of(EXTENT_SIZE as u64).unwrap_or(max);
                let (store, handler_safe) = swap.store("ObjectBuilder::anonymous", max)?;
                (if handler_safe { store } else { Box::new(Guarded(store)) }, handler_safe)
            }
        };
        // Without swap its bytes are nowhere else: stores need no tracking, and nothing ever leaves.
        let always_dirty = self.runtime.inner.swap.is_none();
        let dirty_goes = !always_dirty;
        self.build(Backing {
            store,
            handler_safe,
            store_faults: false,
            always_dirty,
            persistent: false,
            dirty_goes,
            reads_ahead: false,
            ops,
        })
    }

    /// Makes the object with a vtable of the user's: its `fault` decides, and may compute pages
    /// ([`filemap::fill_with`]). Pages it leaves to the default are zeros.
    ///
    /// # Errors
    /// [`Error::Exhausted`].
    ///
    /// # Safety
    /// 1. The vtable's methods run in signal handlers: no allocation, no lock, no libc function outside
    ///    signal-safety(7), no panic, no access to arenas.
    /// 2. They change folio words and bytes only through [`filemap::fill_with`] and [`filemap::fault`]: the words and
    ///    `a_ops` that a [`Mapping`] shows have owners, and going past them shows other threads bytes of nobody's.
    ///
    /// [`filemap::fill_with`]: crate::filemap::fill_with
    /// [`filemap::fault`]: crate::filemap::fault
    #[expect(unsafe_code, reason = "the caller promises a handler-safe vtable")]
    pub unsafe fn vm_ops(self, ops: Box<dyn VmOps>) -> Result<Object> {
        self.check_exclusive(true)?;
        self.build(Backing {
            store: Box::new(ZeroStore),
            handler_safe: true,
            store_faults: false,
            always_dirty: false,
            persistent: false,
            dirty_goes: false,
            reads_ahead: false,
            ops,
        })
    }

    fn build(self, backing: Backing) -> Result<Object> {
        let max = self.max_len_bytes.max(self.len_bytes);
        let len = usize::try_from(max.max(1)).ok().and_then(|l| l.checked_next_multiple_of(EXTENT_SIZE)).ok_or(
            Error::Argument { op: "object", arg: "len_bytes", value: max, why: "larger than the address space" },
        )?;
        parent_only("object")?;
        let plan = self.plan_exclusive(len / PAGE_SIZE, &*backing.store, backing.always_dirty)?;
        let rt = Arc::clone(&self.runtime.inner);
        let id = registry::lock().mappings.get().ok_or_else(registry::exhausted("object", "objects (262144)"))?;
        let (space, offset) = rt.allocate(len).inspect_err(|_| registry::lock().mappings.put(id))?;
        let inner = Arc::new(ObjectInner::new(&self, backing, plan, rt, space, (offset, len), id));
        if inner.persistent {
            inner.rt.add_writable(&inner);
        }
        if inner.huge {
            inner.rt.khugepaged.add(&inner)?;
        }
        Ok(Object { inner })
    }
}

/// What an object is made over.
struct Backing {
    store: Box<dyn Store>,
    handler_safe: bool,
    store_faults: bool,
    always_dirty: bool,
    /// What is written is to be found in the store later: the object is synced, and written back when it goes.
    persistent: bool,
    /// Dirty pages have somewhere to go.
    dirty_goes: bool,
    /// A filler may fill pages that nobody asked for.
    reads_ahead: bool,
    ops: Box<dyn VmOps>,
}

/// Bytes that can be mapped into arenas and read and written by calls. Cheap to clone.
#[derive(Clone, Debug)]
pub struct Object {
    pub(crate) inner: Arc<ObjectInner>,
}

pub(crate) struct ObjectInner {
    pub(crate) rt: Arc<RuntimeInner>,
    pub(crate) space: Arc<Space>,
    pub(crate) offset: u64,
    pub(crate) len_max: usize,
    pub(crate) writable: bool,
    pub(crate) persistent: bool,
    pub(crate) dsync: bool,
    pub(crate) sync_wp: bool,
    /// Complete chunks are to be huge pages.
    pub(crate) huge: bool,
    // Dropped in this order: what borrows before what is borrowed.
    mapping: Option<Lease<Mapping<'static>>>,
    a_ops: Option<Lease<ObjectOps<'static>>>,
    pub(crate) exclusive: Option<Exclusive>,
    store: Option<Lease<dyn Store>>,
    vm_ops: Option<Lease<dyn VmOps>>,
    id: u32,
    i_mmap: Option<Lease<IMmap>>,
    flush_state: FlushState,
    pid: u32,
}

impl std::fmt::Debug for ObjectInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object").field("id", &self.id).field("offset", &self.offset).finish_non_exhaustive()
    }
}

impl ObjectInner {
    #[expect(unsafe_code, reason = "the object's parts are lent to handlers until it is dropped")]
    fn new(
        b: &ObjectBuilder,
        backing: Backing,
        plan: Option<Plan>,
        rt: Arc<RuntimeInner>,
        space: Arc<Space>,
        (offset, len): (u64, usize),
        id: u32,
    ) -> Self {
        let store: Lease<dyn Store> = Lease::new(backing.store);
        let vm_ops: Lease<dyn VmOps> = Lease::new(backing.ops);
        let i_mmap = Lease::new(Box::<IMmap>::default());
        // SAFETY: `Drop` withdraws the object and waits for its users before any lease goes.
        let store_ref = unsafe { store.lend() };
        // SAFETY: the object holds the runtime, which holds the account.
        let account = unsafe { rt.account.lend() };
        // SAFETY: the object holds the space, and with it the ports.
        let ports = unsafe { &*std::ptr::from_ref(space.region.ports()) };
        let region = &space.region;
        let memory =
            FolioMemory { ports, fd: region.fd(), fd_offset: offset, alias: region.alias_at(offset), len_bytes: len };
        // SAFETY: `allocate` gave this range of the region to this object alone, until `give`.
        let a_ops = unsafe {
            ObjectOps::new(memory, store_ref, b.len_bytes, b.retries, backing.handler_safe, b.policy, u64::from(id))
        };
        let a_ops = Lease::new(Box::new(a_ops));
        // SAFETY: the object holds the space, so the words outlive it.
        let folios = unsafe { space.region.folios(offset, len) };
        let (handler_safe, name) = (backing.handler_safe, u64::from(id));
        let exclusive = plan.map(|p| p.build(&Parts::new(b, store_ref, folios, handler_safe, name)));
        // SAFETY: as above.
        let chunks = unsafe { space.region.chunks(offset, len) };
        let mapping = Mapping {
            id,
            folios,
            chunks,
            i_size: AtomicU64::new(b.len_bytes),
            a_ops: match &exclusive {
                Some(exclusive) => exclusive.as_ops(),
                // SAFETY: as for the store.
                None => unsafe { a_ops.lend() },
            },
            policy: b.policy,
            handler_safe: backing.handler_safe,
            store_faults: backing.store_faults,
            always_dirty: backing.always_dirty,
            dirty_goes: backing.dirty_goes && (exclusive.is_none() || b.writable),
            is_flushed: b.writable && backing.persistent,
            write_blocks: store_ref.write_blocks(),
            exclusive: exclusive.is_some(),
            staging: b.private_past_cache && !backing.always_dirty && !b.mkwrite && exclusive.is_none(),
            fill_window: b.fill_window_pages,
            ra: crate::madvise::readahead_of(b.readahead_pages, b.fill_window_pages, b.policy, backing.reads_ahead),
            deadline_ns: b.deadline.map_or(u64::MAX, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
            users: AtomicU32::new(0),
            nr_maps: AtomicU32::new(0),
            account,
            own_limit: AtomicU64::new(b.cache_limit_bytes.map_or(u64::MAX, |bytes| (bytes >> PAGE_SHIFT).max(64))),
            nr_own: AtomicU64::new(0),
            hand: AtomicU64::new(0),
            flush_turn: AtomicU32::new(0),
            flushing: AtomicU32::new(0),
            flush_wanted: AtomicU32::new(0),
            stat: rt.stat,
        };
        let mapping = Lease::new(Box::new(mapping));
        // SAFETY: as for the store.
        vmatree::publish_mapping(id, Some(unsafe { mapping.lend() }));
        let has_mkwrite = vm_ops.has_page_mkwrite();
        Self {
            rt,
            space,
            offset,
            len_max: len,
            writable: b.writable,
            persistent: b.writable && backing.persistent,
            dsync: b.dsync,
            sync_wp: b.mkwrite || has_mkwrite,
            huge: b.huge_pages && (!b.writable || backing.always_dirty) && !b.mkwrite && !has_mkwrite,
            mapping: Some(mapping),
            a_ops: Some(a_ops),
            exclusive,
            store: Some(store),
            vm_ops: Some(vm_ops),
            id,
            i_mmap: Some(i_mmap),
            flush_state: FlushState::default(),
            pid: std::process::id(),
        }
    }

    pub(crate) fn mapping(&self) -> &'static Mapping<'static> {
        lend(self.mapping.as_ref())
    }
    pub(crate) fn vm_ops(&self) -> &'static dyn VmOps {
        lend(self.vm_ops.as_ref())
    }
    pub(crate) fn a_ops(&self) -> &'static ObjectOps<'static> {
        lend(self.a_ops.as_ref())
    }
    pub(crate) fn store(&self) -> &'static dyn Store {
        lend(self.store.as_ref())
    }
    pub(crate) fn flush_state(&self) -> &FlushState {
        &self.flush_state
    }
    /// Returns whether first stores must fault.
    pub(crate) fn is_synchronous(&self) -> bool {
        self.sync_wp
    }
    /// Returns the address of the alias of page `pgoff`.
    pub(crate) fn alias_at(&self, pgoff: u64) -> usize {
        self.space.region.alias_at(self.offset + (pgoff << PAGE_SHIFT))
    }

    /// Returns the arenas that map the object now.
    pub(crate) fn arenas(&self) -> Vec<Arc<ArenaInner>> {
        self.i_mmap().arenas()
    }
    /// Returns who maps the object.
    pub(crate) fn i_mmap(&self) -> &'static IMmap {
        lend(self.i_mmap.as_ref())
    }

    /// Takes back every native extent over pages `from..to`, in every arena.
    pub(crate) fn demote(self: &Arc<Self>, from: u64, to: u64) -> Result<usize> {
        let mut nr = 0;
        for arena in self.arenas() {
            nr += arena.demote_object(self, from, to)?;
        }
        Ok(nr)
    }
}

#[expect(unsafe_code, reason = "the object's parts are lent to handlers until it is dropped")]
fn lend<T: ?Sized>(part: Option<&Lease<T>>) -> &'static T {
    match part {
        // SAFETY: every vma and claim that holds the borrow is gone before `ObjectInner::drop` takes the parts.
        Some(lease) => unsafe { lease.lend() },
        None => unreachable!("the parts are taken only by drop"),
    }
}

impl Drop for ObjectInner {
    #[expect(unsafe_code, reason = "gives the object's range of the cache back")]
    fn drop(&mut self) {
        if self.persistent && self.pid == std::process::id() {
            self.write_back_last();
        }
        let (Some(mapping), Some(a_ops)) = (self.mapping.take(), self.a_ops.take()) else { return };
        let (store, vm_ops, i_mmap) = (self.store.take(), self.vm_ops.take(), self.i_mmap.take());
        let exclusive = self.exclusive.take();
        let mut patience = 2_000;
        // Acquire pairs with the Release of filemap::release(): everything done under the claims has happened.
        // No new user from then on: reclaim finds the object by its number for as long as that is published.
        let end = || mapping.users.compare_exchange(0, DYING, Ordering::AcqRel, Ordering::Acquire).is_ok();
        let ours = self.pid == std::process::id();
        let mut ended = ours && end();
        while !ended && patience > 0 && ours {
            std::thread::sleep(Duration::from_millis(1));
            patience -= 1;
            ended = end();
        }
        if !ended {
            // A store that never returns still owns its pages (or this is a forked child): the range is given up, not
            // reused. `store` and `vm_ops` are what such a thread may be running in.
            mapping.leak();
            a_ops.leak();
            exclusive.into_iter().for_each(Exclusive::leak);
            store.into_iter().for_each(Lease::leak);
            vm_ops.into_iter().for_each(Lease::leak);
            i_mmap.into_iter().for_each(Lease::leak);
            std::mem::forget((Arc::clone(&self.space), Arc::clone(&self.rt)));
            return;
        }
        vmatree::publish_mapping(self.id, None);
        section::synchronize();
        // Reclaim that took pages before it could not find the object any more has left them `evicting`, and charged.
        let is_charged = |w: &&FolioWord| w.load().is_mappable() || w.load().state() == State::Evicting;
        let charged = mapping.folios.iter().filter(is_charged).count();
        let dirty = mapping.folios.iter().filter(|w| w.load().is_mappable() && w.load().has(DIRTY)).count();
        mapping.account_cleaned(dirty as u64);
        mapping.uncharge(charged as u64);
        Self::forget_huge(&mapping);
        drop((mapping, a_ops, exclusive, vm_ops, store, i_mmap));
        // SAFETY: no vma (they hold the object), no claim (users is 0), and no section that saw either.
        unsafe { self.space.give(self.offset, self.len_max) };
        registry::lock().mappings.put(self.id);
    }
}

impl Object {
    /// Returns the end of the object, in bytes.
    #[must_use]
    pub fn len(&self) -> u64 {
        self.inner.mapping().i_size.load(Ordering::Acquire)
    }
    /// Returns whether the object has no bytes.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads bytes through the cache, without a fault: errors are results.
    ///
    /// Reads past the end are short; the result is the number of bytes read.
    ///
    /// # Errors
    /// [`Error::Fault`] naming the first byte that could not be had; the bytes before it were read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        parent_only("Object::read_at")?;
        io::read_at(&self.inner, offset, buf)
    }

    /// Writes bytes through the cache, without a fault. Does not grow the object: writes past the end are short.
    ///
    /// # Errors
    /// [`Error::Denied`] on an object that is not writable, [`Error::Fault`].
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> Result<usize> {
        parent_only("Object::write_at")?;
        io::write_at(&self.inner, offset, buf)
    }

    /// Returns how many pages are in the cache.
    #[must_use]
    pub fn cached_pages(&self) -> u64 {
        self.inner.mapping().folios.iter().filter(|w| w.load().is_mappable()).count() as u64
    }

    /// Returns whether the store's pages are cached at `offset`, and readable without asking the store.
    #[must_use]
    pub fn is_cached(&self, offset: u64) -> bool {
        self.inner.mapping().folio(offset >> PAGE_SHIFT).is_some_and(|w| w.load().is_mappable())
    }

    /// Reads the byte range into the cache.
    ///
    /// # Errors
    /// [`Error::Fault`].
    pub fn populate(&self, range: std::ops::Range<u64>) -> Result<()> {
        parent_only("Object::populate")?;
        self.inner.check_mapped("Object::populate")?;
        io::populate(&self.inner, range, Access::Read)
    }
}
