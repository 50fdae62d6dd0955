//! `Object`: a file, anonymous memory, a user's store or a user's vtable, as a range of the cache.

pub(crate) mod advise;
mod builder;
pub(crate) mod collapse;
pub(crate) mod exclusive;
pub(crate) mod fault;
pub(crate) mod file;
mod guarded;
mod heal;
mod invalidate;
pub(crate) mod io;
pub(crate) mod rmap;
mod truncate;

pub use builder::ObjectBuilder;

use crate::cache::space::Space;
use crate::cache::state::RuntimeInner;
use crate::error::{Error, Result, parent_only};
use crate::lease::Lease;
use crate::memory::limit_pages;
use crate::object::exclusive::{Exclusive, Parts, Plan};
use crate::object::file::FileOf;
use crate::object::rmap::IMmap;
use crate::process::mlock;
use crate::process::registry;
use crate::short::Short;
use crate::types::Access;
use crate::types::Invalidated;
use crate::writeback::state::Flushing;
use crate::writeback::{self, Held, lost, state, sync, writeout};
use softfault_mm::extent::ChunkWord;
use softfault_mm::failing::{Asked, Failing};
use softfault_mm::failpoint;
use softfault_mm::folio::{DIRTY, FolioWord, State};
use softfault_mm::mapping::{DYING, Mapping};
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT, pages_of};
use softfault_mm::sync::{AtomicU32, AtomicU64, Ordering};
use softfault_mm::vma::VmOps;
use softfault_mm::xarray::Nodes;
use softfault_platform::store::file::FileStore;
use softfault_platform::store::object::{FolioMemory, ObjectOps};
use softfault_platform::store::{Store, bounce};
use softfault_platform::{section, vmatree};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};
use std::time::Duration;

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
    /// The store again, if it is a file's.
    file: Option<*const FileStore>,
}

/// Bytes that can be mapped into arenas and read and written by calls. Cheap to clone.
///
/// A file that is opened several times, by whatever name, is one object: what is stored through one value is seen through the
/// others, and what each of them permits is its own.
#[derive(Clone, Debug)]
pub struct Object {
    pub(crate) inner: Arc<ObjectInner>,
    /// What this value permits: others of the same object may permit more.
    pub(crate) writable: bool,
}

pub(crate) struct ObjectInner {
    pub(crate) rt: Arc<RuntimeInner>,
    pub(crate) space: Arc<Space>,
    pub(crate) offset: u64,
    pub(crate) len_max: usize,
    /// Somebody may write it: set at the beginning, or once, by who opens a file again for writing.
    writable: AtomicBool,
    pub(crate) dsync: bool,
    pub(crate) sync_wp: bool,
    /// Complete chunks are to be huge pages.
    pub(crate) huge: bool,
    // Dropped in this order: what borrows before what is borrowed.
    mapping: Option<Lease<Mapping<'static>>>,
    nodes: Option<Lease<[AtomicU64]>>,
    a_ops: Option<Lease<ObjectOps<'static>>>,
    pub(crate) exclusive: Option<Exclusive>,
    store: Option<Lease<dyn Store>>,
    vm_ops: Option<Lease<dyn VmOps>>,
    /// The store again, if it is a file's: valid for as long.
    file_store: Option<&'static FileStore>,
    /// Which file that is, once others may find the object by it.
    file: OnceLock<FileOf>,
    id: u32,
    i_mmap: Option<Lease<IMmap>>,
    flushing: Arc<Flushing>,
    /// What people call it.
    label: Option<Lease<str>>,
    pid: u32,
}

impl std::fmt::Debug for ObjectInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Object")
            .field("id", &self.id)
            .field("label", &self.mapping.as_ref().map(|m| Short(m.label)))
            .field("offset", &self.offset)
            .finish_non_exhaustive()
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
        let i_mmap = Lease::new(Box::new(IMmap::new(id)));
        // SAFETY: `Drop` withdraws the object and waits for its users before any lease goes.
        let store_ref = unsafe { store.lend() };
        // SAFETY: the object holds the runtime, which holds the account.
        let account = unsafe { rt.account.lend() };
        // SAFETY: the object holds the space, and with it the ports.
        let ports = unsafe { &*std::ptr::from_ref(space.region.ports()) };
        let region = &space.region;
        let memory = FolioMemory {
            ports,
            fd: region.fd(),
            fd_offset: offset,
            alias: region.alias_at(offset),
            len_bytes: len,
            is_locked: rt.lock_cache,
        };
        let read_align = (store_ref.read_align_bytes() >> PAGE_SHIFT) as u32;
        if plan.is_none() && !store_ref.uses_descriptors() || read_align > 1 {
            bounce::init();
        }
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
        let nodes: Lease<[AtomicU64]> =
            Lease::new((0..Nodes::words(chunks.len())).map(|_| AtomicU64::new(0)).collect());
        let label: Lease<str> = Lease::new(b.label_of(id).into_boxed_str());
        let mapping = Mapping {
            id,
            // SAFETY: as for the store.
            label: unsafe { label.lend() },
            folios,
            chunks,
            // SAFETY: the object keeps the nodes for as long as the mapping, which is dropped or leaked with them.
            nodes: Nodes::new(unsafe { nodes.lend() }),
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
            is_flushed: AtomicBool::new(b.writable && backing.persistent),
            write_blocks: store_ref.write_blocks(),
            exclusive: exclusive.is_some(),
            // What is read of a block past the cache, the next page of it would read again.
            staging: b.private_past_cache
                && !backing.always_dirty
                && !b.mkwrite
                && exclusive.is_none()
                && read_align <= 1,
            fill_window: b.fill_window_pages,
            read_align,
            ra: advise::readahead_of(b.readahead_pages, b.fill_window_pages, b.policy, backing.reads_ahead),
            deadline_ns: b.deadline.map_or(u64::MAX, |d| u64::try_from(d.as_nanos()).unwrap_or(u64::MAX)),
            users: AtomicU32::new(0),
            nr_maps: AtomicU32::new(0),
            account,
            own_limit: AtomicU64::new(b.cache_limit_bytes.map_or(u64::MAX, limit_pages)),
            nr_own: AtomicU64::new(0),
            hand: AtomicU64::new(0),
            flush_turn: AtomicU32::new(0),
            flushing: AtomicU32::new(0),
            flush_wanted: AtomicU32::new(0),
            failing: Failing::new(),
            stat: rt.stat,
        };
        let mapping = Lease::new(Box::new(mapping));
        // SAFETY: as for the store.
        let mapping_ref = unsafe { mapping.lend() };
        vmatree::publish_mapping(id, Some(mapping_ref));
        let flushing = Flushing::new(mapping_ref, store_ref, b.writable && backing.persistent);
        let has_mkwrite = vm_ops.has_page_mkwrite();
        Self {
            rt,
            space,
            offset,
            len_max: len,
            writable: AtomicBool::new(b.writable),
            dsync: b.dsync,
            sync_wp: b.mkwrite || has_mkwrite,
            huge: b.huge_pages && (!b.writable || backing.always_dirty) && !b.mkwrite && !has_mkwrite,
            mapping: Some(mapping),
            nodes: Some(nodes),
            a_ops: Some(a_ops),
            exclusive,
            store: Some(store),
            vm_ops: Some(vm_ops),
            // SAFETY: it points to what `store` has on the heap, which goes when nobody can have this value any more.
            file_store: backing.file.map(|file| unsafe { &*file }),
            file: OnceLock::new(),
            id,
            i_mmap: Some(i_mmap),
            flushing: Arc::new(flushing),
            label: Some(label),
            pid: std::process::id(),
        }
    }

    /// Returns whether somebody may write the object.
    pub(crate) fn is_writable(&self) -> bool {
        // Acquire pairs with the Release of allow_writes(): the store can be written.
        self.writable.load(Ordering::Acquire)
    }
    /// Returns whether what is written is to be found in the store later: the object is synced, and written back when it goes.
    pub(crate) fn is_persistent(&self) -> bool {
        self.flushing.is_persistent()
    }
    /// Has the object written from now on: its store can be.
    pub(crate) fn allow_writes(&self) {
        self.mapping().is_flushed.store(true, Ordering::Relaxed);
        self.flushing.allow_writes();
        if !self.writable.swap(true, Ordering::Release) {
            self.rt.add_writable(&self.flushing);
        }
    }

    /// Returns of which file the object is, if others may find it by that.
    pub(crate) fn file(&self) -> Option<&FileOf> {
        self.file.get()
    }
    /// Says of which file it is.
    pub(crate) fn is_file(&self, file: FileOf) {
        let _ = self.file.set(file);
    }
    /// Calls `f` with the store, if it is a file's.
    pub(crate) fn file_store<R>(&self, f: impl FnOnce(&FileStore) -> R) -> Option<R> {
        self.file_store.map(f)
    }

    pub(crate) fn mapping(&self) -> &'static Mapping<'static> {
        lend(self.mapping.as_ref())
    }
    /// Returns what people call the object.
    pub(crate) fn label(&self) -> Arc<str> {
        self.mapping().label.into()
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
    /// Returns what write-back needs of the object. Its borrows are good while the object lives.
    pub(crate) fn flushing(&self) -> &Arc<Flushing> {
        &self.flushing
    }
    /// Returns whether first stores must fault.
    pub(crate) fn is_synchronous(&self) -> bool {
        self.sync_wp
    }
    /// Returns the address of the alias of page `pgoff`.
    pub(crate) fn alias_at(&self, pgoff: u64) -> usize {
        self.space.region.alias_at(self.offset + (pgoff << PAGE_SHIFT))
    }

    /// Returns the address range to lock for some of its pages: a huge page is locked whole, or not at all.
    pub(crate) fn lockable(&self, pages: Range<u64>) -> Range<usize> {
        let nr = EXTENT_PAGES as u64;
        let is_huge = |p: u64| self.mapping().chunks.get((p / nr) as usize).is_some_and(ChunkWord::is_huge);
        let start = if is_huge(pages.start) { pages.start / nr * nr } else { pages.start };
        let end = if is_huge(pages.end - 1) { pages.end.next_multiple_of(nr) } else { pages.end };
        self.alias_at(start)..self.alias_at(end)
    }
    /// Returns whether everything that is cached of it is locked in memory.
    pub(crate) fn is_locked(&self) -> bool {
        self.rt.lock_cache
    }

    /// Returns who maps the object.
    pub(crate) fn i_mmap(&self) -> &'static IMmap {
        lend(self.i_mmap.as_ref())
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

/// Dropped, it lets others open the file anew.
struct Forgotten(FileOf);

impl Drop for Forgotten {
    fn drop(&mut self) {
        self.0.forget();
    }
}

impl Drop for ObjectInner {
    #[expect(unsafe_code, reason = "gives the object's range of the cache back")]
    fn drop(&mut self) {
        // Last, whatever becomes of the rest: who opens the file meanwhile waits for it.
        let _file = self.file.take().filter(|_| self.pid == std::process::id()).map(Forgotten);
        // The flusher passes it over from here on, and an exit waits until it has been written back.
        let ours = self.pid == std::process::id();
        let ending = (ours && self.is_persistent()).then(|| self.rt.ending(&self.flushing));
        failpoint!(OBJECT_ENDS);
        if ending.is_some() {
            writeout::write_back_last(&self.flushing);
        }
        drop(ending);
        let (Some(mapping), Some(a_ops)) = (self.mapping.take(), self.a_ops.take()) else { return };
        let (store, vm_ops, i_mmap) = (self.store.take(), self.vm_ops.take(), self.i_mmap.take());
        let nodes = self.nodes.take();
        let exclusive = self.exclusive.take();
        let mut patience = 2_000;
        // A flush takes what it takes; for a while.
        let mut flush_patience = 60_000;
        // Acquire pairs with the Release of filemap::release(): everything done under the claims has happened.
        // No new user from then on: reclaim finds the object by its number for as long as that is published.
        let end = || mapping.users.compare_exchange(0, DYING, Ordering::AcqRel, Ordering::Acquire).is_ok();
        let mut ended = ours && end();
        while !ended && patience > 0 && ours {
            std::thread::sleep(Duration::from_millis(1));
            let flushes = mapping.flushing.load(Ordering::Relaxed) != 0 && flush_patience > 0;
            *if flushes { &mut flush_patience } else { &mut patience } -= 1;
            ended = end();
        }
        if !ended {
            // A store that never returns still owns its pages (or this is a forked child): the range is given up, not
            // reused. `store` and `vm_ops` are what such a thread may be running in.
            mapping.leak();
            nodes.into_iter().for_each(Lease::leak);
            a_ops.leak();
            exclusive.into_iter().for_each(Exclusive::leak);
            store.into_iter().for_each(Lease::leak);
            vm_ops.into_iter().for_each(Lease::leak);
            i_mmap.into_iter().for_each(Lease::leak);
            self.label.take().into_iter().for_each(Lease::leak);
            std::mem::forget((Arc::clone(&self.space), Arc::clone(&self.rt)));
            return;
        }
        vmatree::publish_mapping(self.id, None);
        section::synchronize();
        // Every page that is paid for: reclaim that took one, and did not find the object by its number again, left it
        // `evicting`, and has ended its section since.
        let free = |w: &FolioWord| matches!(w.load().state(), State::Absent | State::Poisoned);
        let used = || mapping.each_folio(0, u64::MAX).map(|(_, word)| word);
        let cached = used().filter(|w| !free(w)).count();
        let dirty = used().filter(|w| w.load().is_mappable() && w.load().has(DIRTY)).count();
        mapping.account_cleaned(dirty as u64);
        [Asked::Write, Asked::Flush].into_iter().for_each(|asked| mapping.note_success(asked));
        mapping.uncharge(cached as u64);
        if let Some(addr) = mapping.account.progressed() {
            softfault_platform::sys::futex::wake_all(addr);
        }
        collapse::forget_huge(&mapping);
        drop((mapping, nodes, a_ops, exclusive, vm_ops, store, i_mmap));
        if self.rt.lock_cache {
            mlock::unlock(self.space.region.alias_at(self.offset), self.len_max);
        }
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
        self.check_writable("Object::write_at")?;
        io::write_at(&self.inner, offset, buf)
    }

    pub(crate) fn check_writable(&self, op: &'static str) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::Denied { op, what: "the object was not made writable" }) }
    }

    /// Returns how many pages are in the cache.
    #[must_use]
    pub fn cached_pages(&self) -> u64 {
        let _walk = self.inner.flushing().state().walk();
        let used = self.inner.mapping().each_folio(0, u64::MAX);
        used.filter(|(_, word)| word.load().is_mappable()).count() as u64
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
    pub fn populate(&self, range: Range<u64>) -> Result<()> {
        parent_only("Object::populate")?;
        self.inner.check_mapped("Object::populate")?;
        io::populate(&self.inner, range, Access::Read)
    }
}

impl Object {
    /// Makes durable every byte of the range that was written before the call, through whatever mapping or call: the pages
    /// go to the store in ascending runs, then the store is flushed.
    ///
    /// # Errors
    /// [`Error::Writeback`] and [`Error::Flush`]: nothing is promised, the pages are dirty again as far as they are cached,
    /// and the next call tries again. [`Error::Lost`] names bytes whose writes a failed flush took away while they were not
    /// cached: every call over them says so until, after one has, they are written again or [`Object::forget_lost`]. [`Error::Held`]: a
    /// page of the range is held and dirty; the others are durable only after a call that does not meet one.
    pub fn sync(&self, range: Range<u64>) -> Result<()> {
        let op = "Object::sync";
        parent_only(op)?;
        if !self.inner.is_persistent() {
            return Ok(());
        }
        sync::sync(self.inner.flushing(), op, &state::pages(self.inner.mapping(), &range), false)
    }

    /// Gives the store every byte of the range that was written before the call, and does not flush it: other readers of a
    /// file see the bytes, and a crash may still take them. Linux: `sync_file_range(2)`, and what `MS_ASYNC` once did.
    ///
    /// # Errors
    /// [`Error::Writeback`], and [`Error::Held`] where a page of the range is held and dirty; the others were written.
    pub fn write_back(&self, range: Range<u64>) -> Result<()> {
        let op = "Object::write_back";
        parent_only(op)?;
        if !self.inner.is_persistent() {
            return Ok(());
        }
        let held = writeout::write_back(self.inner.flushing(), op, &state::pages(self.inner.mapping(), &range))?;
        held.map_or(Ok(()), |p| Err(Error::Held { op, object: self.inner.label(), range: state::bytes(&(p..p + 1)) }))
    }

    /// Makes everything durable that was written before the call.
    ///
    /// # Errors
    /// As [`Object::sync`].
    pub fn sync_all(&self) -> Result<()> {
        self.sync(0..u64::MAX)
    }

    /// Makes everything that was written before the call, and is not held, durable before anything that is written after
    /// it: an ordering point, by waiting.
    ///
    /// # Errors
    /// As [`Object::sync`], but for [`Error::Held`].
    pub fn barrier(&self) -> Result<()> {
        let op = "Object::barrier";
        parent_only(op)?;
        if !self.inner.is_persistent() {
            return Ok(());
        }
        sync::sync(self.inner.flushing(), op, &(0..self.inner.mapping().nr_pages()), true)
    }

    /// Keeps the pages of the range from being written back, whatever the pressure, until the value is dropped: a
    /// write-ahead log must be durable before the pages it describes. Held dirty pages cannot be reclaimed: they count
    /// against the cache's limit.
    ///
    /// # Errors
    /// [`Error::Held`] where a page is held already, [`Error::Denied`] on exclusive objects.
    pub fn hold_dirty(&self, range: Range<u64>) -> Result<Held> {
        let op = "Object::hold_dirty";
        parent_only(op)?;
        let object = Arc::clone(&self.inner);
        writeback::hold(self.inner.flushing(), object, op, &range)
    }

    /// Returns the bytes whose writes failed flushes took away.
    #[must_use]
    pub fn lost(&self) -> Vec<Range<u64>> {
        lost::tell(self.inner.flushing(), 0..self.inner.mapping().folios.len() as u64)
    }

    /// Accepts the loss of what was written to the range: [`Object::sync`] does not report it any more.
    pub fn forget_lost(&self, range: Range<u64>) {
        let pages = (range.start >> PAGE_SHIFT)..pages_of(range.end);
        lost::forget(self.inner.mapping(), &pages);
    }

    /// Drops what is cached of the range, because the store's content was changed by somebody else: the next touch reads it
    /// anew. Pages that were written here and not written back, and pinned ones, stay. Private copies stay.
    ///
    /// Who is about to change the store itself syncs and invalidates the range before, until nothing is kept, touches
    /// nothing of it meanwhile, and invalidates it afterwards: a cached page may be taken for written (never the other way
    /// round), and would be written back over the change.
    ///
    /// # Errors
    /// [`Error::Exhausted`] when an extent cannot be taken back.
    pub fn invalidate(&self, range: Range<u64>) -> Result<Invalidated> {
        let op = "Object::invalidate";
        parent_only(op)?;
        invalidate::invalidate(&self.inner, &range)
    }

    /// Makes the complete chunks (2 MiB) of the byte range huge pages, now: as `MADV_COLLAPSE`. Returns how many of the
    /// chunks that lie in the range are huge pages then.
    ///
    /// Chunks are left as they are that are not cached whole, that a pin touches, or that the kernel refuses
    /// (`thp_collapse_alloc_failed` counts those); all chunks of an object that was not made with
    /// [`huge_pages`](crate::ObjectBuilder::huge_pages), or cannot have them.
    ///
    /// # Errors
    /// [`Error::Denied`] in a forked child.
    pub fn collapse(&self, range: Range<u64>) -> Result<u64> {
        parent_only("Object::collapse")?;
        Ok(collapse::collapse(&self.inner, &range))
    }
}
