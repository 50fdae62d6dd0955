//! Which arenas map an object, and hiding its pages from them. Linux: `i_mmap`, `mm/rmap.c`.
//!
//! # Locks
//! The gate comes first: `map` holds it while a mapping comes to be, evict and truncate for as long as they run. So
//! nothing is mapped while pages are dropped, and the list of mappings that was made beforehand stays true:
//! ```text
//! evict                                    a thread of the program
//! page -> evicting
//!                                          holds malloc's lock, faults on the page, waits for it
//! looks who maps the page: allocates       both wait for ever
//! ```
//! Therefore everything that allocates, and every lock that somebody may hold while allocating, is taken before the
//! first page is `evicting`.

use crate::arena::ArenaInner;
use crate::object::ObjectInner;
use crate::vmas::{Hidden, VmaSet};
use softfault_platform::store::object::Rmap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

/// The arenas that map an object. Linux: `i_mmap`.
#[derive(Debug, Default)]
pub(crate) struct IMmap {
    arenas: Mutex<Vec<Weak<ArenaInner>>>,
    /// Whether the object was ever mapped shared with stores permitted: then the words do not know what is dirty.
    gate: Mutex<bool>,
    /// What an eviction under way must hide: made before it begins, empty otherwise.
    hidden: Mutex<Vec<Hidden>>,
}

impl IMmap {
    /// Keeps mappings from coming to be. Taken before any arena's `vmas`.
    pub(crate) fn gate(&self) -> MutexGuard<'_, bool> {
        self.gate.lock().unwrap_or_else(PoisonError::into_inner)
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

    fn hidden(&self) -> MutexGuard<'_, Vec<Hidden>> {
        self.hidden.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs `f` while no mapping of `object` changes, with everything at hand that hiding its pages needs.
    ///
    /// The caller holds the gate.
    pub(crate) fn while_frozen<R>(&self, object: &Arc<ObjectInner>, f: impl FnOnce() -> R) -> R {
        let arenas = self.arenas();
        let guards: Vec<MutexGuard<'_, VmaSet>> = arenas.iter().map(|a| a.vmas()).collect();
        let hidden = arenas.iter().zip(&guards).flat_map(|(a, vmas)| vmas.hidden_of(a, object)).collect();
        *self.hidden() = hidden;
        let r = f();
        let done = std::mem::take(&mut *self.hidden());
        drop(guards);
        drop(done);
        r
    }
}

impl Rmap for IMmap {
    fn unmap(&self, pgoff: u64, nr: u32) {
        for hidden in self.hidden().iter() {
            hidden.hide(pgoff, pgoff + u64::from(nr));
        }
    }
}
