//! Which arenas map an object. Linux: `i_mmap`, `mm/rmap.c`.
//!
//! Reclaim and write-back find the vmas themselves, without a lock, by `vmatree`'s lists. This is the control plane's
//! side: who may change those lists, and which arenas are to be asked. An object knows no arena: it asks by [`Mapper`], and
//! names itself by its number, which is its own for as long as it lives.
//!
//! # Context: control plane

use crate::error::Result;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// Somebody who maps objects: an arena. Each method takes the lock of its mappings.
///
/// # Context: control plane
pub(crate) trait Mapper: Send + Sync {
    /// Returns the number by which the locks of several are ordered.
    fn slot(&self) -> u32;
    /// Takes back the native extents over pages `from..to` of the object; returns how many came.
    ///
    /// # Errors
    /// [`Error::Exhausted`](crate::Error::Exhausted) when the process has no mapping left to split.
    fn demote(&self, object: u32, from: u64, to: u64) -> Result<usize>;
    /// Drops the page-table entries of the object's pages `from..to` from shared mappings.
    ///
    /// # Errors
    /// [`Error::Pinned`](crate::Error::Pinned), [`Error::System`](crate::Error::System).
    fn zap(&self, op: &'static str, object: u32, from: u64, to: u64) -> Result<()>;
    /// Removes the poison markers of the object's pages `from..to` that system calls would meet.
    ///
    /// # Errors
    /// As `zap`.
    fn unpoison(&self, op: &'static str, object: u32, from: u64, to: u64) -> Result<()>;
    /// Maps the native extents over the huge page of the object that begins at page `first`, where the kernel does not do so
    /// by one entry at a touch.
    fn map_huge(&self, object: u32, first: u64);
}

/// The arenas that map an object. Linux: `i_mmap`.
#[derive(Debug)]
pub(crate) struct IMmap {
    /// The object's number.
    object: u32,
    /// Who maps it. A leaf.
    arenas: Mutex<Vec<Weak<dyn Mapper>>>,
    /// See [`IMmap::gate`]. The first in the order of locks (`runtime/README.md`, "Locks, in order").
    gate: Mutex<()>,
    /// See [`IMmap::lists`].
    lists: Mutex<()>,
}

impl IMmap {
    pub(crate) fn new(object: u32) -> Self {
        Self { object, arenas: Mutex::default(), gate: Mutex::default(), lists: Mutex::default() }
    }

    /// Keeps mappings from coming to be, and the end of the object from moving. Taken before any arena's mappings are locked.
    pub(crate) fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from changing the object's list of vmas. A leaf: nothing is allocated or waited for under it.
    pub(crate) fn lists(&self) -> MutexGuard<'_, ()> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an arena, once. The caller holds the gate.
    pub(crate) fn add(&self, arena: Weak<dyn Mapper>) {
        let mut list = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|w| w.strong_count() > 0);
        // By address alone: one type may have several tables of methods.
        if !list.iter().any(|w| std::ptr::addr_eq(w.as_ptr(), arena.as_ptr())) {
            list.push(arena);
        }
    }

    /// Returns the arenas that are alive, in the order in which their locks are taken.
    pub(crate) fn arenas(&self) -> Vec<Arc<dyn Mapper>> {
        let list = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        let mut alive: Vec<_> = list.iter().filter_map(Weak::upgrade).collect();
        alive.sort_by_key(|a| a.slot());
        alive
    }

    /// Takes back every native extent over pages `from..to`, in every arena; returns how many came.
    ///
    /// # Errors
    /// As [`Mapper::demote`]; some of them may be taken back then.
    pub(crate) fn demote(&self, from: u64, to: u64) -> Result<usize> {
        self.arenas().iter().try_fold(0, |nr, arena| Ok(nr + arena.demote(self.object, from, to)?))
    }

    /// Drops the page-table entries of pages `from..to` from every shared mapping.
    ///
    /// # Errors
    /// As [`Mapper::zap`].
    pub(crate) fn zap(&self, op: &'static str, from: u64, to: u64) -> Result<()> {
        self.arenas().iter().try_for_each(|arena| arena.zap(op, self.object, from, to))
    }

    /// Removes the poison markers of pages `from..to`.
    ///
    /// # Errors
    /// As [`Mapper::unpoison`].
    pub(crate) fn unpoison(&self, op: &'static str, from: u64, to: u64) -> Result<()> {
        self.arenas().iter().try_for_each(|arena| arena.unpoison(op, self.object, from, to))
    }

    /// Maps the huge page that begins at page `first` by huge entries.
    pub(crate) fn map_huge(&self, first: u64) {
        self.arenas().iter().for_each(|arena| arena.map_huge(self.object, first));
    }
}
