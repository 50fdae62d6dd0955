//! The state of an object: its mapping, which handlers see, and what else it is made of.
//!
//! # Context: control plane; what it lends is called in handlers

use super::exclusive::{self, Exclusive};
use super::file::options::FileOf;
use super::rmap::IMmap;
use crate::cache::space::Space;
use crate::cache::state::RuntimeInner;
use crate::error::Result;
use crate::lease::Lease;
use crate::short::Short;
use crate::types::Access;
use crate::writeback::state::Flushing;
use softfault_mm::chunk::ChunkWord;
use softfault_mm::mapping::Mapping;
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT};
use softfault_mm::sync::{AtomicU64, Ordering};
use softfault_mm::vma::VmOps;
use softfault_platform::store::file::FileStore;
use softfault_platform::store::object::ObjectOps;
use softfault_platform::store::{ReadHere, Store};
use std::ops::Range;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, OnceLock};

/// An object, whichever values and mappings refer to it.
///
/// Its parts are lent to handlers, and taken apart only by its drop, when nobody can look any more: so they need no lock, and
/// what changes in them is atomic, or has a lock of its own.
pub(crate) struct ObjectInner {
    /// Keeps the runtime: its account, its counters and its threads.
    pub(crate) rt: Arc<RuntimeInner>,
    /// Keeps the memory that the pages lie in.
    pub(crate) space: Arc<Space>,
    /// Where they lie in it, in bytes. Set when it is made, as the next one.
    pub(crate) offset: u64,
    pub(crate) len_max: usize,
    /// Somebody may write it: set at the beginning, or once, by who opens a file again for writing. Protected then by the lock of
    /// that (`file::make_writable`).
    pub(super) writable: AtomicBool,
    /// Set when it is made, as the ones below.
    pub(crate) dsync: bool,
    pub(crate) sync_wp: bool,
    pub(crate) custom_ops: bool,
    /// Complete chunks are to be huge pages.
    pub(crate) huge: bool,
    // Dropped in this order: what borrows before what is borrowed. All of them are taken by drop alone.
    /// What handlers see. Protected by nothing: atomics, whose tables are in `softfault_mm`.
    pub(super) mapping: Option<Lease<Mapping<'static>>>,
    pub(super) nodes: Option<Lease<[AtomicU64]>>,
    pub(super) a_ops: Option<Lease<ObjectOps<'static>>>,
    pub(super) exclusive: Option<Exclusive>,
    pub(super) store: Option<Lease<dyn Store>>,
    pub(super) here: Option<Lease<dyn ReadHere>>,
    pub(super) vm_ops: Option<Lease<dyn VmOps>>,
    /// The store again, if it is a file's: valid for as long.
    pub(super) file_store: Option<&'static FileStore>,
    /// Which file that is, once others may find the object by it. Set once, by who has the file's place.
    pub(super) file: OnceLock<FileOf>,
    /// The object's number. Set when it is made.
    pub(super) id: u32,
    /// Who maps it. Protected by locks of its own.
    pub(super) i_mmap: Option<Lease<IMmap>>,
    /// What write-back needs. Protected by locks of its own.
    pub(super) flushing: Arc<Flushing>,
    /// What people call it.
    pub(super) label: Option<Lease<str>>,
    /// The process that made it: a forked child has nothing of it.
    pub(super) pid: u32,
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
    /// Returns whether somebody may write the object.
    pub(crate) fn is_writable(&self) -> bool {
        // Acquire pairs with `allow_writes`: who sees that it may be written finds that its store can be.
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
        // Release pairs with `is_writable`.
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

    /// Returns what handlers see of the object.
    pub(crate) fn mapping(&self) -> &'static Mapping<'static> {
        lend(self.mapping.as_ref())
    }
    /// Returns the end of the object, in bytes.
    pub(crate) fn len_bytes(&self) -> u64 {
        // Acquire pairs with the Release of `truncate::i_size_write`: who sees the new end sees what came before it.
        self.mapping().i_size.load(Ordering::Acquire)
    }
    /// Returns what people call the object.
    pub(crate) fn label(&self) -> Arc<str> {
        self.mapping().label.into()
    }
    /// Returns the object's vtable.
    pub(crate) fn vm_ops(&self) -> &'static dyn VmOps {
        lend(self.vm_ops.as_ref())
    }
    /// Returns how its pages are read and written, exclusive objects excepted.
    pub(crate) fn a_ops(&self) -> &'static ObjectOps<'static> {
        lend(self.a_ops.as_ref())
    }
    /// Returns what its pages come from, and go to.
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

    /// Returns whether the object's pages live in the one arena that maps it.
    pub(crate) fn is_exclusive(&self) -> bool {
        self.exclusive.is_some()
    }

    /// Returns what an exclusive object has beside the parts of every object.
    pub(crate) fn exclusive(&self) -> Option<&Exclusive> {
        self.exclusive.as_ref()
    }

    /// Returns the address of pinned page `pgoff`, for a call that reads or writes its bytes; `None`: an exclusive object
    /// that is not mapped there, or not for stores.
    pub(crate) fn page_at(&self, pgoff: u64, access: Access) -> Option<usize> {
        match &self.exclusive {
            None => Some(self.alias_at(pgoff)),
            Some(exclusive) => exclusive.address(pgoff, access),
        }
    }

    /// Refuses calls that need the object's pages while there is nowhere for them to be.
    ///
    /// # Errors
    /// [`Error::Denied`](crate::Error::Denied) on an exclusive object that is not mapped.
    pub(crate) fn check_mapped(&self, op: &'static str) -> Result<()> {
        if self.exclusive.as_ref().is_some_and(|e| !e.is_mapped()) { Err(exclusive::not_there(op)) } else { Ok(()) }
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
