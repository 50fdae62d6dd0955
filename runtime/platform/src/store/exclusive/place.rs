//! Where an exclusive object is mapped, and who uses the address: an object leaves its mapping only when nobody does.
//!
//! # Context: handler; [`Place::enter`] and [`Place::leave`]: control plane

use crate::sys::{mem, pagemap, thread};
use core::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use softfault_mm::page::{PAGE_SHIFT, pgoff_index};

/// Where an object is mapped.
#[derive(Debug, Default)]
pub(super) struct Place {
    /// Address of page `first`; 0: mapped nowhere.
    base: AtomicUsize,
    first: AtomicU64,
    nr: AtomicU64,
    /// The mapping is open to stores.
    writable: AtomicBool,
    /// Who uses the address right now.
    busy: AtomicU32,
}

/// The address, for as long as the value lives.
#[derive(Debug)]
pub(super) struct Held<'p> {
    place: &'p Place,
    pub(super) base: usize,
}

impl Place {
    /// Keeps the address for as long as the value lives; `None`: the object is mapped nowhere.
    ///
    /// ```text
    /// hold                                  leave
    /// busy += 1                             base = 0
    /// base?                                 busy = 0?
    /// ```
    /// SeqCst pairs with `leave`: one of the two sees the other.
    pub(super) fn hold(&self) -> Option<Held<'_>> {
        self.busy.fetch_add(1, Ordering::SeqCst);
        let held = Held { place: self, base: self.base.load(Ordering::SeqCst) };
        (held.base != 0).then_some(held)
    }
}

impl Place {
    /// Says where the object is mapped.
    pub(super) fn enter(&self, base: usize, first: u64, nr: u64, writable: bool) {
        self.first.store(first, Ordering::Relaxed);
        self.nr.store(nr, Ordering::Relaxed);
        self.writable.store(writable, Ordering::Relaxed);
        // SeqCst pairs with `hold`: who sees the address sees the rest.
        self.base.store(base, Ordering::SeqCst);
    }

    /// Forgets where, and waits for who uses the address.
    pub(super) fn leave(&self) {
        // SeqCst pairs with `hold` and `Held::drop`: who holds the place is seen, or finds that it is none.
        self.base.store(0, Ordering::SeqCst);
        while self.busy.load(Ordering::SeqCst) != 0 {
            thread::sched_yield();
        }
    }

    /// Returns whether the object is mapped.
    pub(super) fn is_somewhere(&self) -> bool {
        // SeqCst pairs with `enter` and `leave`.
        self.base.load(Ordering::SeqCst) != 0
    }

    /// Returns whether the mapping is open to stores.
    pub(super) fn is_writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    /// Returns the pages that are mapped: the first, and how many.
    pub(super) fn pages(&self) -> (u64, u64) {
        (self.first.load(Ordering::Relaxed), self.nr.load(Ordering::Relaxed))
    }
}

impl Held<'_> {
    /// Returns the address of page `pgoff`, if it and the `nr` from it are mapped.
    pub(super) fn address(&self, pgoff: u64, nr: u64) -> Option<usize> {
        let at = pgoff.checked_sub(self.place.first.load(Ordering::Relaxed))?;
        (at.checked_add(nr)? <= self.place.nr.load(Ordering::Relaxed))
            .then(|| self.base + (pgoff_index(at) << PAGE_SHIFT))
    }
}

impl Drop for Held<'_> {
    fn drop(&mut self) {
        // Release pairs with `leave`: what was done to the mapping happened before it goes.
        self.place.busy.fetch_sub(1, Ordering::Release);
    }
}

/// Returns whether a page lies at `addr` of an arena, in memory or swapped out; one that is swapped out may be missed where the
/// kernel has no PAGEMAP_SCAN (before Linux 6.7).
pub(super) fn is_there(addr: usize) -> bool {
    let some = pagemap::PAGE_IS_PRESENT | pagemap::PAGE_IS_SWAPPED;
    pagemap::look(addr).map_or_else(|_| mem::is_resident(addr), |categories| categories & some != 0)
}
