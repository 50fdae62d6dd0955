//! The side that is measured: the only file here that names softfault.

use softfault_benches::Result;
use softfault_benches::area::{HotFile, View};
use std::marker::PhantomData;
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
#[expect(dead_code, reason = "read once the runtime can be opened here")]
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
pub(crate) struct Subject {}

/// An arena that maps one whole object.
#[derive(Debug)]
pub(crate) struct Arena<'a> {
    runtime: PhantomData<&'a Subject>,
}

impl Subject {
    /// Starts a runtime, unpinned and with its handlers installed; `None` where there is none to measure.
    pub(crate) fn start(_delivery: Delivery) -> Result<Option<Self>> {
        Ok(None)
    }

    /// Maps `file`, nothing of which is cached yet.
    pub(crate) fn arena_of(&self, _file: &HotFile, _shape: Shape) -> Result<Arena<'_>> {
        unimplemented!()
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
        unimplemented!()
    }

    /// Caches and maps every page.
    pub(crate) fn fault_in(&self) -> Result<()> {
        unimplemented!()
    }

    /// Drops every page-table entry; the pages stay cached.
    pub(crate) fn zap(&self) -> Result<()> {
        unimplemented!()
    }

    /// Drops every page from the cache.
    pub(crate) fn evict(&self) -> Result<()> {
        unimplemented!()
    }

    /// Hands every extent to the kernel; an error when some stay trapped.
    pub(crate) fn promote(&self) -> Result<()> {
        unimplemented!()
    }

    /// Takes every extent back.
    pub(crate) fn demote(&self) -> Result<()> {
        unimplemented!()
    }

    /// Returns what was counted so far.
    pub(crate) fn counters(&self) -> Counters {
        unimplemented!()
    }
}
