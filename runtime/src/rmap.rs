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

#![expect(unsafe_code, reason = "hides ranges of the arenas' own address space")]

use crate::arena::ArenaInner;
use crate::object::ObjectInner;
use crate::vmas::{VmaEntry, VmaSet, range_of};
use softfault_mm::page::PAGE_SIZE;
use softfault_platform::store::object::Rmap;
use softfault_platform::sys::mem;
use softfault_platform::vmatree::Trap;
use std::ops::Range;
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
        // Emptied also if `f` unwinds: what is in the list keeps the object itself.
        let _emptied = Emptied(self);
        let r = f();
        drop(guards);
        r
    }
}

/// Empties the list on drop.
struct Emptied<'a>(&'a IMmap);

impl Drop for Emptied<'_> {
    fn drop(&mut self) {
        let done = std::mem::take(&mut *self.0.hidden());
        drop(done);
    }
}

impl Rmap for IMmap {
    fn unmap(&self, pgoff: u64, nr: u32) {
        for hidden in self.hidden().iter() {
            hidden.hide(pgoff, pgoff + u64::from(nr));
        }
    }
}

/// One mapping of an object that is being evicted from, and what of it is pinned: all that hiding pages needs.
#[derive(Debug)]
pub(crate) struct Hidden {
    arena: Arc<ArenaInner>,
    entry: VmaEntry,
    pins: Vec<Range<usize>>,
}

impl VmaSet {
    /// Returns the mappings of `object` in this set, which is `arena`'s.
    pub(crate) fn hidden_of(&self, arena: &Arc<ArenaInner>, object: &Arc<ObjectInner>) -> Vec<Hidden> {
        let of_object = self.iter().filter(|v| Arc::ptr_eq(&v.object, object));
        let hidden = of_object.map(|v| Hidden { arena: Arc::clone(arena), entry: v.clone(), pins: self.pins.clone() });
        hidden.collect()
    }
}

impl Hidden {
    /// Hides the object's pages `from..to`, which are being evicted, and forgets the hints about them. Allocates and
    /// locks nothing.
    ///
    /// Under userfaultfd the punch unmaps them and the next touch traps. By protection it would be filled with zeros,
    /// so the granules that hold them are hidden first.
    pub(crate) fn hide(&self, from: u64, to: u64) {
        let (arena, v) = (&self.arena, &self.entry);
        let Some(range) = range_of(v, from, to) else { return };
        if arena.trap != Trap::Segv {
            arena.forget_mapped(&range);
            return;
        }
        // A pinned neighbour in the same granule must stay: then only the pages themselves are hidden.
        let wide = arena.granule_pages.max(1) * PAGE_SIZE;
        let around = (range.start & !(wide - 1))..range.end.next_multiple_of(wide);
        let pinned = self.pins.iter().any(|p| p.start < around.end && around.start < p.end);
        let granule = if pinned { PAGE_SIZE } else { wide };
        let hidden =
            (range.start & !(granule - 1)).max(v.range.start)..range.end.next_multiple_of(granule).min(v.range.end);
        // SAFETY: the arena's own range; a touch faults again.
        let r = unsafe { mem::mprotect(arena.address(hidden.start), hidden.len(), mem::PROT_NONE) };
        if r.is_err() {
            // The kernel is out of vmas for the split: hiding the whole mapping splits nothing.
            // SAFETY: as above.
            let _ = unsafe { mem::mprotect(arena.address(v.range.start), v.range.len(), mem::PROT_NONE) };
            arena.forget_mapped(&v.range);
        }
        arena.forget_mapped(&hidden);
    }
}
