//! The side that is measured: the only file here that names softfault.

use softfault::{Access, HandlerStore, Object, PageMut, Prot, Runtime, Sharing, Store, StoreError};
use softfault_benches::area::{HotFile, View};
use softfault_benches::{Error, Result, WINDOW_PAGES};
use softfault_platform::sys::file;
use std::path::Path;

/// How faults reach the runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Delivery {
    /// SIGBUS in the faulting thread, by userfaultfd.
    InThread,
    /// SIGSEGV in the faulting thread, by protection.
    Segv,
}

/// What kind of arena is measured.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Shape {
    /// Its size, and the object's.
    pub(crate) len_bytes: usize,
    /// Maps the cached neighbours of a faulting page with it.
    pub(crate) fault_around: bool,
    /// Its extents may be handed back to the kernel.
    pub(crate) native: bool,
    /// The object is filled by a store that the runtime knows as a trait object only.
    pub(crate) opaque_store: bool,
}

impl Shape {
    /// An arena that stays trapped, faulting page by page.
    pub(crate) const TRAPPED: Self = Self { len_bytes: 0, fault_around: false, native: false, opaque_store: false };
}

/// What the runtime counted for an arena.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Counters {
    /// Times the trap handler was entered.
    pub(crate) entries: u64,
    /// Extents handed to the kernel.
    pub(crate) promotions: u64,
    /// Extents taken back.
    pub(crate) demotions: u64,
}

/// A runtime.
#[derive(Debug)]
pub(crate) struct Subject {
    runtime: Runtime,
    delivery: Delivery,
}

/// An arena that maps one whole object.
#[derive(Debug)]
pub(crate) struct Arena<'a> {
    subject: &'a Subject,
    arena: softfault::Arena,
    object: Object,
    len_bytes: usize,
}

/// A file as a user's own store: the runtime sees a trait object that reads into the page it is given.
#[derive(Debug)]
struct OpaqueStore {
    fd: i32,
}

impl Store for OpaqueStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> std::result::Result<(), StoreError> {
        let (dst, len) = (page.as_mut_ptr() as usize, page.len_bytes());
        // SAFETY: `page` lends `len` exclusive writable bytes at `dst`.
        match unsafe { file::pread(self.fd, dst, len, pos_bytes) } {
            Ok(n) if n == len => Ok(()),
            Ok(_) => Err(StoreError::Short),
            Err(e) => Err(StoreError::Io(e)),
        }
    }
}

// SAFETY: one raw pread(2).
unsafe impl HandlerStore for OpaqueStore {}

impl Drop for OpaqueStore {
    fn drop(&mut self) {
        file::close(self.fd);
    }
}

fn wrong(error: softfault::Error) -> Error {
    Error::Wrong(error.to_string())
}

impl Subject {
    /// Starts a runtime, unpinned and with its handlers installed; `None` where there is none to measure.
    pub(crate) fn start(delivery: Delivery) -> Result<Option<Self>> {
        let window = u32::try_from(WINDOW_PAGES).unwrap_or(u32::MAX);
        let runtime = Runtime::builder().fill_window_pages(window).build().map_err(wrong)?;
        Ok(Some(Self { runtime, delivery }))
    }

    /// Maps `file`, nothing of which is cached yet.
    pub(crate) fn arena_of(&self, file: &HotFile, shape: Shape) -> Result<Arena<'_>> {
        let object = if shape.opaque_store {
            let fd = file::dup_cloexec(file.fd()).map_err(|e| Error::Wrong(format!("dup: {e}")))?;
            self.runtime.object(shape.len_bytes as u64).handler_store(Box::new(OpaqueStore { fd }))
        } else {
            self.runtime.open_file(file.path())
        };
        let object = object.map_err(wrong)?;
        let mode = match self.delivery {
            Delivery::InThread => softfault::Delivery::InThread,
            Delivery::Segv => softfault::Delivery::Segv,
        };
        let arena = self.runtime.arena(shape.len_bytes).delivery(mode).fault_around(shape.fault_around);
        let arena = arena.native_extents(shape.native).build().map_err(wrong)?;
        arena.map(0, &object, 0, shape.len_bytes, Prot::Read, Sharing::Shared).map_err(wrong)?;
        Ok(Arena { subject: self, arena, object, len_bytes: shape.len_bytes })
    }

    /// Maps a file made in `dir` for it, and caches all of it.
    pub(crate) fn arena_cached(&self, dir: &Path, shape: Shape) -> Result<Arena<'_>> {
        let file = HotFile::create(dir, "cached", shape.len_bytes)?;
        let arena = self.arena_of(&file, shape)?;
        arena.fault_in()?;
        Ok(arena)
    }
}

impl Arena<'_> {
    /// Drops the arena's page-table entries, then times a first touch of the pages in `order`.
    pub(crate) fn first_touch(&self, order: &[u32]) -> Result<f64> {
        self.zap()?;
        self.view().time_touches(order)
    }

    /// Returns the arena's memory.
    pub(crate) fn view(&self) -> View<'_> {
        // SAFETY: the whole arena is mapped readable until `self` is dropped, and nobody writes to it.
        unsafe { View::new(self.arena.as_ptr() as usize, self.len_bytes) }
    }

    /// Caches and maps every page.
    pub(crate) fn fault_in(&self) -> Result<()> {
        self.arena.fault_in(0..self.len_bytes, Access::Read).map_err(wrong)
    }

    /// Drops every page-table entry; the pages stay cached.
    pub(crate) fn zap(&self) -> Result<()> {
        self.arena.zap(0..self.len_bytes).map_err(wrong)
    }

    /// Drops every page from the cache.
    pub(crate) fn evict(&self) -> Result<()> {
        self.object.evict(0..u64::MAX).map_err(wrong)?;
        match self.object.cached_pages() {
            0 => Ok(()),
            n => Err(Error::Wrong(format!("{n} pages stayed in the cache"))),
        }
    }

    /// Hands every extent to the kernel; an error when some stay trapped.
    pub(crate) fn promote(&self) -> Result<()> {
        self.arena.promote(0..self.arena.len()).map_err(wrong)?;
        let (native, all) = (self.arena.native_extents(), self.len_bytes / (2 << 20));
        if native == all { Ok(()) } else { Err(Error::Wrong(format!("{native} of {all} extents are native"))) }
    }

    /// Takes every extent back.
    pub(crate) fn demote(&self) -> Result<()> {
        self.arena.demote(0..self.arena.len()).map_err(wrong).map(drop)
    }

    /// Returns what was counted so far.
    pub(crate) fn counters(&self) -> Counters {
        let s = self.subject.runtime.stats();
        Counters { entries: s["handler_entry"], promotions: s["extent_promote"], demotions: s["extent_demote"] }
    }
}
