//! Which arenas map an object. Linux: `i_mmap`, `mm/rmap.c`.
//!
//! Reclaim and write-back find the vmas themselves, without a lock, by `vmatree`'s lists. This is the control plane's
//! side: who may change those lists, and which arenas are to be asked.

use crate::arena::ArenaInner;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The arenas that map an object. Linux: `i_mmap`.
#[derive(Debug, Default)]
pub(crate) struct IMmap {
    arenas: Mutex<Vec<Weak<ArenaInner>>>,
    gate: Mutex<()>,
    lists: Mutex<()>,
}

impl IMmap {
    /// Keeps mappings from coming to be, and the end of the object from moving. Taken before any arena's `vmas`.
    pub(crate) fn gate(&self) -> MutexGuard<'_, ()> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps others from changing the object's list of vmas. A leaf: nothing is allocated or waited for under it.
    pub(crate) fn lists(&self) -> MutexGuard<'_, ()> {
        self.lists.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Adds an arena, once. The caller holds the gate.
    pub(crate) fn add(&self, arena: &Arc<ArenaInner>) {
        let mut list = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        list.retain(|w| w.strong_count() > 0);
        if !list.iter().any(|w| std::ptr::eq(w.as_ptr(), Arc::as_ptr(arena))) {
            list.push(Arc::downgrade(arena));
        }
    }

    /// Returns the arenas that are alive, in the order in which their locks are taken.
    pub(crate) fn arenas(&self) -> Vec<Arc<ArenaInner>> {
        let list = self.arenas.lock().unwrap_or_else(PoisonError::into_inner);
        let mut alive: Vec<_> = list.iter().filter_map(Weak::upgrade).collect();
        alive.sort_by_key(|a| a.slot);
        alive
    }
}
