//! `ObjectBuilder`: what an object is made of, and how it is to behave.
//!
//! # Context: control plane

use super::make::{self, Backing, Facts};
use super::options::ObjectOptions;
use super::{Object, exclusive};
use crate::cache::state::RuntimeInner;
use crate::error::{Error, Result, parent_only};
use crate::object::guarded::Guarded;
use crate::process::registry;
use crate::short::Short;
use softfault_mm::mapping::FailurePolicy;
use softfault_mm::page::{EXTENT_SIZE, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::vma::VmOps;
use softfault_mm::vmstat::Event;
use softfault_platform::store::blocks::is_alignment;
use softfault_platform::store::file::FileStore;
use softfault_platform::store::retry::Retries;
use softfault_platform::store::zero::ZeroStore;
use softfault_platform::store::{HandlerStore, ReadHere, Store};
use std::sync::Arc;
use std::time::Duration;

/// The longest object: a queue's entry has 34 bits for a page.
const LEN_MAX: u64 = 1 << (34 + PAGE_SHIFT);

/// Options of an object; see [`Runtime::object`](crate::Runtime::object).
pub struct ObjectBuilder {
    pub(super) rt: Arc<RuntimeInner>,
    pub(super) options: ObjectOptions,
}

impl std::fmt::Debug for ObjectBuilder {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ObjectBuilder")
            .field("len_bytes", &self.options.len_bytes)
            .field("max_len_bytes", &self.options.max_len_bytes)
            .field("writable", &self.options.writable)
            .field("label", &self.options.label.as_ref().map(Short))
            .finish_non_exhaustive()
    }
}

impl ObjectBuilder {
    pub(crate) fn new(rt: Arc<RuntimeInner>, len_bytes: u64) -> Self {
        let options = ObjectOptions::new(len_bytes, rt.fill_window_pages, rt.readahead_pages);
        Self { rt, options }
    }
    /// Sets the length, where it is known only after the other options.
    pub(crate) fn len(mut self, bytes: u64) -> Self {
        self.options.len_bytes = bytes;
        self
    }
    /// Sets the label, where the program has said none.
    pub(crate) fn label_or(mut self, label: impl FnOnce() -> String) -> Self {
        self.options.label.get_or_insert_with(label);
        self
    }
    /// Says what the object is called in errors and in [`Runtime::recent_failures`](crate::Runtime::recent_failures); default
    /// the path of a file, and a number of others.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn label(mut self, label: impl Into<String>) -> Self {
        self.options.label = Some(label.into());
        self
    }
    /// Reserves room for the object to grow to `bytes` (by [`Object::set_len`]).
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn max_len(mut self, bytes: u64) -> Self {
        self.options.max_len_bytes = bytes;
        self
    }
    /// Reserves room to grow without a maximum that is known beforehand: a sixteenth of a region of the cache, which is 64 GiB
    /// where nothing limits the address space. It takes address space, and memory only for what is cached, unless the program
    /// locks all its memory (`mlockall(2)`): give [`ObjectBuilder::max_len`] then.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn growable(mut self, yes: bool) -> Self {
        self.options.growable = yes;
        self
    }
    /// Permits shared mappings with stores, and [`Object::write_at`]. What is written goes to the store in time,
    /// and for certain by [`Object::sync`].
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn writable(mut self, yes: bool) -> Self {
        self.options.writable = yes;
        self
    }
    /// Says what happens to accesses whose page the store cannot give; default [`FailurePolicy::Poison`].
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn on_failure(mut self, policy: FailurePolicy) -> Self {
        self.options.policy = policy;
        self
    }
    /// Bounds how long a touch waits for a fill. Needs a filler: not for handler-safe stores, which run in the
    /// faulting thread itself.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn deadline(mut self, deadline: Duration) -> Self {
        self.options.deadline = Some(deadline);
        self
    }
    /// Tries a failing read `times` more, sleeping `backoff`, then twice that, and so on (fillers only).
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn retries(mut self, times: u32, backoff: Duration) -> Self {
        self.options.retries = Retries { times, backoff_ns: u64::try_from(backoff.as_nanos()).unwrap_or(u64::MAX) };
        self
    }
    /// Makes the first store to each page of a shared mapping fault (`page_mkwrite`) instead of being noted silently.
    /// Not for [`Delivery::Monitor`](crate::Delivery::Monitor) arenas.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn synchronous_writes(mut self, yes: bool) -> Self {
        self.options.mkwrite = yes;
        self
    }
    /// Makes shared mappings synchronous as `MAP_SYNC`: before the first store to a page lands, the store has made its
    /// block durable ([`Store::dsync`]). Implies synchronous writes.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn dsync(mut self, yes: bool) -> Self {
        self.options.dsync = yes;
        self.options.mkwrite |= yes;
        self
    }
    /// Sets how many pages the thread that misses one reads at most (1 to 512); default the runtime's.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn fill_window_pages(mut self, nr: u32) -> Self {
        self.options.fill_window_pages = nr.clamp(1, 512).next_power_of_two();
        self
    }
    /// Sets the largest readahead window; default the runtime's. See [`RuntimeBuilder::readahead_pages`].
    ///
    /// [`RuntimeBuilder::readahead_pages`]: crate::RuntimeBuilder::readahead_pages
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn readahead_pages(mut self, max: u32) -> Self {
        self.options.readahead_pages = Some(max);
        self
    }
    /// Bounds the bytes of the object's cached pages, below the cache's own limit (at least 64 pages); see
    /// [`Object::set_cache_limit`].
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn cache_limit(mut self, bytes: u64) -> Self {
        self.options.cache_limit_bytes = Some(bytes);
        self
    }
    /// Whether a first store to an uncached page of a private mapping is read past the cache, straight into the
    /// private page (default), or fills the cache first.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn private_past_cache(mut self, yes: bool) -> Self {
        self.options.private_past_cache = yes;
        self
    }

    /// Makes the object *exclusive*: its pages live in the private memory of the one arena that maps it, and nowhere
    /// else. For restores that are used once, and for buffer pools: pages come from and go to a pool of recycled frames
    /// (`UFFDIO_MOVE`), so that the kernel allocates and frees none.
    ///
    /// It is mapped at most once at a time, `Sharing::Private`, into an arena with `InThread` delivery, and unmapped whole;
    /// its protection cannot be changed. [`Object::read_at`](crate::Object::read_at) and
    /// [`Object::write_at`](crate::Object::write_at) work while it is mapped. Unmapping drops its pages.
    ///
    /// What is stored through the mapping belongs to the object: if it is [`writable`](Self::writable), changed pages are
    /// given to [`Store::write`] when they are reclaimed, evicted, synced or unmapped (which waits for a flush that is under
    /// way); what the store does not take at the end is named by [`Object::lost`](crate::Object::lost). If not, they stay
    /// until the object is unmapped, and are then gone. Anonymous memory goes to the runtime's swap file if it has one, else
    /// it stays; it is gone when it is unmapped. A page that was stored to is told from one that was not by a keyed digest of
    /// its bytes (they are mistaken for each other with a chance of 2^-64).
    ///
    /// Pages are reclaimed in the order in which they came, or came back soon: a mapped page gives no sign of being used.
    /// Map it `Prot::Read` where it is not stored to: nothing is looked at then when pages leave, and they leave by the
    /// batch. [`Object::sync`](crate::Object::sync) looks at every cached page of its range and writes copies of those that
    /// were changed. A system call that only references a page (vmsplice) instead of pinning it may see the frame's
    /// next content; [`Arena::pin`](crate::Arena::pin) keeps it.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn exclusive(mut self, yes: bool) -> Self {
        self.options.exclusive = yes.then(|| self.options.exclusive.unwrap_or(false));
        self
    }

    /// As [`ObjectBuilder::exclusive`], but pages are copied instead of moved, as they are where the kernel knows no
    /// `UFFDIO_MOVE` (before Linux 6.8).
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn exclusive_by_copy(mut self) -> Self {
        self.options.exclusive = Some(true);
        self
    }

    /// Keeps 2 MiB of the object that are cached whole as one huge page, mapped by one entry where the extent is native,
    /// and dropped whole; a thread of the runtime collapses them in the background, [`Object::collapse`] at once.
    ///
    /// Not for objects whose shared stores are noted page by page or fault (writable ones, but anonymous memory without
    /// swap; [`synchronous_writes`](ObjectBuilder::synchronous_writes), `page_mkwrite`): there it has no effect, and
    /// `thp_unsupported` of [`Stats`](crate::Stats) counts the object. A pin keeps the whole huge page cached.
    /// `nr_shmem_hugepages` and `thp_*` say what came of it.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn huge_pages(mut self, yes: bool) -> Self {
        self.options.huge_pages = yes;
        self
    }

    /// Makes the object over a store that filler threads call.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Exhausted`], [`Error::Argument`].
    pub fn store(self, store: Box<dyn Store>) -> Result<Object> {
        if self.options.dsync {
            let why = "must be made durable in the faulting thread; use `handler_store`";
            return Err(Error::Argument { op: "ObjectBuilder::store", arg: "dsync", value: 1, why });
        }
        let ops = Box::new(ShmemVmOps { mkwrite: self.options.mkwrite });
        self.store_with(store, ops, None)
    }

    /// The same with a vtable of the runtime's own, which does what [`ShmemVmOps`] does, and more.
    /// `here`: what of the store can be read in a handler.
    pub(crate) fn store_with(
        self,
        store: Box<dyn Store>,
        ops: Box<dyn VmOps>,
        here: Option<Box<dyn ReadHere>>,
    ) -> Result<Object> {
        let store = Box::new(Guarded(store));
        self.build(Backing {
            store,
            ops,
            file: None,
            here,
            facts: Facts {
                handler_safe: false,
                store_faults: false,
                always_dirty: false,
                persistent: true,
                dirty_goes: true,
                reads_ahead: true,
                custom_ops: false,
            },
        })
    }

    /// Makes the object over a store that is called in the faulting thread, in a signal handler.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`] with a deadline (it needs a filler), [`Error::Exhausted`].
    pub fn handler_store<S: HandlerStore + 'static>(self, store: Box<S>) -> Result<Object> {
        self.handler_store_or_file(store, None)
    }

    /// The same of a file.
    pub(crate) fn file_store(self, store: Box<FileStore>) -> Result<Object> {
        let file = std::ptr::from_ref(&*store);
        self.handler_store_or_file(store, Some(file))
    }

    /// Refuses a deadline of an object that is read in the faulting thread.
    pub(super) fn check_deadline(&self, op: &'static str) -> Result<()> {
        self.options.deadline.map_or(Ok(()), |d| {
            Err(Error::Argument {
                op,
                arg: "deadline (ms)",
                value: u64::try_from(d.as_millis()).unwrap_or(u64::MAX),
                why: "a store that runs in the faulting thread cannot be timed out; use `store`",
            })
        })
    }

    fn handler_store_or_file<S: HandlerStore + 'static>(
        self,
        store: Box<S>,
        file: Option<*const FileStore>,
    ) -> Result<Object> {
        self.check_deadline("ObjectBuilder::handler_store")?;
        let ops = Box::new(ShmemVmOps { mkwrite: self.options.mkwrite });
        let store_faults = store.touches_arenas();
        self.build(Backing {
            store,
            ops,
            file,
            here: None,
            facts: Facts {
                handler_safe: true,
                store_faults,
                always_dirty: false,
                persistent: true,
                dirty_goes: true,
                reads_ahead: !store_faults,
                custom_ops: false,
            },
        })
    }

    /// Makes the object of anonymous memory, over the runtime's swap file if it has one.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Exhausted`].
    pub fn anonymous(mut self) -> Result<Object> {
        self.options.writable = true;
        let ops = Box::new(ShmemVmOps { mkwrite: self.options.mkwrite });
        let (store, handler_safe): (Box<dyn Store>, bool) = match &self.rt.swap {
            None => (Box::new(ZeroStore), true),
            Some(swap) => {
                // The object may grow to the end of its last chunk.
                let max = self.options.max_len_bytes.max(self.options.len_bytes);
                let max = max.checked_next_multiple_of(EXTENT_SIZE as u64).unwrap_or(max);
                let (store, handler_safe) = swap.store("ObjectBuilder::anonymous", max)?;
                (if handler_safe { store } else { Box::new(Guarded(store)) }, handler_safe)
            }
        };
        // Without swap its bytes are nowhere else: stores need no tracking, and nothing ever leaves.
        let always_dirty = self.rt.swap.is_none();
        let dirty_goes = !always_dirty;
        self.build(Backing {
            store,
            ops,
            file: None,
            here: None,
            facts: Facts {
                handler_safe,
                store_faults: false,
                always_dirty,
                persistent: false,
                dirty_goes,
                reads_ahead: false,
                custom_ops: false,
            },
        })
    }

    /// Makes the object with a vtable of the user's: its `fault` decides, and may compute pages
    /// ([`filemap::fill_with`]). Pages it leaves to the default are zeros.
    ///
    /// # Context: program
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
    /// [`Mapping`]: crate::Mapping
    /// [`filemap::fill_with`]: crate::filemap::fill_with
    /// [`filemap::fault`]: crate::filemap::fault
    #[expect(unsafe_code, reason = "the caller promises a handler-safe vtable")]
    pub unsafe fn vm_ops(self, ops: Box<dyn VmOps>) -> Result<Object> {
        exclusive::check(&self.options, true)?;
        self.build(Backing {
            store: Box::new(ZeroStore),
            ops,
            file: None,
            here: None,
            facts: Facts {
                handler_safe: true,
                store_faults: false,
                always_dirty: false,
                persistent: false,
                dirty_goes: false,
                custom_ops: true,
                reads_ahead: false,
            },
        })
    }

    fn build(self, backing: Backing) -> Result<Object> {
        let room = if self.options.growable { self.rt.room_to_grow() } else { 0 };
        let max = self.options.max_len_bytes.max(self.options.len_bytes).max(room);
        let len = usize::try_from(max.max(1)).ok().and_then(|l| l.checked_next_multiple_of(EXTENT_SIZE)).ok_or(
            Error::Argument { op: "object", arg: "len_bytes", value: max, why: "larger than the address space" },
        )?;
        if len as u64 > LEN_MAX {
            let why = "at most 64 TiB: the queues of reclaim cannot name more pages";
            return Err(Error::Argument { op: "object", arg: "len_bytes or max_len", value: max, why });
        }
        let align = backing.store.read_align_bytes();
        if !is_alignment(align) {
            let why = "must be a power of two, 4096 (a page) to 2 MiB (an extent)";
            return Err(Error::Argument { op: "object", arg: "read_align_bytes", value: align, why });
        }
        parent_only("object")?;
        let plan =
            exclusive::plan(&self.rt, &self.options, len / PAGE_SIZE, &*backing.store, backing.facts.always_dirty)?;
        let rt = Arc::clone(&self.rt);
        let id = registry::lock().mappings.get().ok_or_else(registry::exhausted("object", "objects (262144)"))?;
        let (space, offset) = rt.allocate(len).inspect_err(|_| registry::lock().mappings.put(id))?;
        let inner = Arc::new(make::make(&self.options, backing, plan, rt, (space, offset, len), id));
        if inner.is_persistent() {
            inner.rt.add_writable(inner.flushing());
        }
        if inner.huge {
            let weak = Arc::downgrade(&inner);
            inner.rt.khugepaged.add(weak)?;
        } else if self.options.huge_pages {
            inner.rt.stat.add(0, Event::THP_UNSUPPORTED, 1);
        }
        Ok(Object { inner, writable: self.options.writable })
    }
}
