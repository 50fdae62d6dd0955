//! Hiding what is exposed by protection, before the kernel has no mapping left for anybody.
//!
//! Where faults arrive by SIGSEGV, a page that is exposed between hidden ones costs the process two mappings of the kernel's,
//! of which it may have `vm.max_map_count`. Nothing of this is memory: what is hidden stays cached, and comes back by a touch.
//! So exposures are bounded (`mmu::budget`), and at the bound others are hidden, in the order of addresses, by the extent:
//! ```text
//! a fault                                     make_room
//! counted are as many as there may be,
//! or mprotect said ENOMEM: Crowded
//!                                             counts what is really exposed (runs join), by the hints of all extents
//!                                             hides extents whose exposures cost mappings, to three quarters
//! walks again
//! ```
//! An extent in which the program holds a pin stays: who pins counts first, and waits for the sections that may have looked
//! before. Where nothing can be hidden, since the program has every mapping that was ever given back, a touch waits: it looks
//! again after a pause (`mm::fault`), and its signals come between. A call makes room as a fault does, and ends with an error.
//!
//! A hint is cleared before the page is hidden, as everywhere: one that is set for a page which is hidden says "maybe".
//! Stores need no look, because a page that is exposed for them is dirty.
//!
//! # Context: handler

use crate::mmu::budget;
use crate::section::Slot;
use crate::sys::{futex, mem};
use crate::vmatree;
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use softfault_mm::extent::Extent;
use softfault_mm::ops::WaitKey;
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::vma::Vma;

/// Granules looked at in one section: an unmapping waits for it.
const BATCH: usize = 128;

/// Who has it hides; one at a time.
static BUSY: AtomicU32 = AtomicU32::new(0);
/// Arena and granule where the next one begins.
static HAND: AtomicU64 = AtomicU64::new(0);

/// Moves when somebody has made room; who found none sleeps on it, for a while.
static MADE: AtomicU32 = AtomicU32::new(0);

/// There is no room to be made for now.
#[derive(Clone, Copy, Debug)]
pub struct Crowded {
    /// What to sleep on before looking again.
    pub key: WaitKey,
    /// Somebody else is hiding: there will be some.
    pub is_being_made: bool,
}

impl Crowded {
    /// Returns what to sleep on from now on.
    ///
    /// # Context: handler
    #[must_use]
    pub fn now() -> Self {
        let key = WaitKey { addr: MADE.as_ptr() as usize, seen: MADE.load(Ordering::Relaxed) };
        Self { key, is_being_made: false }
    }
}

/// Makes room for more exposures, by hiding others; for a touch also by what is kept for when nothing can be hidden.
///
/// # Context: handler
///
/// # Errors
/// [`Crowded`]: there is none to be made for now.
pub fn make_room(slot: &Slot) -> Result<(), Crowded> {
    hide_others(slot, true)
}

/// Makes room for a call that changes mappings: what is kept for touches stays theirs.
///
/// # Context: control plane
///
/// # Errors
/// As [`make_room`].
pub fn make_room_for_call(slot: &Slot) -> Result<(), Crowded> {
    // Whatever was counted, the kernel says that there is none left.
    budget::note_full();
    hide_others(slot, false)
}

fn hide_others(slot: &Slot, for_a_touch: bool) -> Result<(), Crowded> {
    let crowded = Crowded::now();
    // Acquire pairs with the Release of `hide_others` of who hid before.
    if BUSY.swap(1, Ordering::Acquire) != 0 {
        return Err(Crowded { is_being_made: true, ..crowded });
    }
    let made = recount_and_hide(slot) || for_a_touch && budget::release_reserve();
    BUSY.store(0, Ordering::Release);
    if !made {
        // Nobody is woken: they would wake each other.
        return Err(crowded);
    }
    MADE.fetch_add(1, Ordering::Relaxed);
    futex::wake_word(&MADE);
    Ok(())
}

/// Returns whether there is room, as far as is known.
fn recount_and_hide(slot: &Slot) -> bool {
    let was_full = budget::take_full();
    let counted = budget::exposed();
    let mut total = 0;
    each_piece(slot, 0, &mut |vma, lo, hi| {
        total += cost(vma, lo, hi);
        true
    });
    budget::correct(total - counted);
    let most = budget::exposed_max();
    if !was_full && total <= most / 8 * 7 {
        return true;
    }
    let target = if was_full { total / 4 * 3 } else { most / 4 * 3 };
    let mut left = total;
    for hard in [false, true] {
        if left <= target {
            break;
        }
        each_piece(slot, HAND.load(Ordering::Relaxed), &mut |vma, lo, hi| {
            left -= hide(vma, lo, hi, hard);
            left > target
        });
    }
    budget::note_hidden(total - left);
    left < total
}

/// Calls `f(vma, lo, hi)` for each piece of a mapping that lies in one granule of an arena served by SIGSEGV, once round from
/// `hand` on, until it says `false`; keeps the hand there.
fn each_piece(slot: &Slot, hand: u64, f: &mut dyn FnMut(&Vma<'_>, usize, usize) -> bool) {
    let (first_arena, first_granule) = ((hand >> 32) as u32, (hand & 0xffff_ffff) as usize);
    let mut goes_on = true;
    let nr_arenas = vmatree::arenas_end();
    for i in 0..=nr_arenas {
        let arena = (first_arena + i) % nr_arenas.max(1);
        // The arena of the hand comes twice: from there on, and up to there.
        let mut granule = if i == 0 { first_granule } else { 0 };
        let end = if i == nr_arenas { first_granule } else { usize::MAX };
        while goes_on && granule < end {
            let to = granule.saturating_add(BATCH).min(end);
            let nr = vmatree::each_exposable(slot, arena, granule..to, &mut |vma, lo, hi| {
                goes_on = goes_on && f(vma, lo, hi);
            });
            granule = to;
            if hand != 0 || !goes_on {
                HAND.store(u64::from(arena) << 32 | granule as u64, Ordering::Relaxed);
            }
            if nr <= to {
                break;
            }
        }
        if !goes_on {
            return;
        }
    }
}

fn is_exposed(vma: &Vma<'_>, addr: usize) -> bool {
    vma.extent(addr).is_some_and(|e| e.maybe_mapped(Extent::page_index(addr)))
}

/// What the piece costs: its ends towards hidden pages, each counted with the pages above it.
fn cost(vma: &Vma<'_>, lo: usize, hi: usize) -> i64 {
    let Some(extent) = vma.extent(lo) else { return 0 };
    let run = extent.runs(Extent::page_index(lo), (hi - lo) >> PAGE_SHIFT);
    if run.ends == 0 {
        return 0;
    }
    let below = lo > vma.start && is_exposed(vma, lo - PAGE_SIZE);
    // An end at `hi` is counted by the next piece, if there is one.
    let above = i64::from(run.last && hi < vma.end);
    i64::from(run.ends) - above - i64::from(below && run.first) + i64::from(below && !run.first) + extent.splits()
}

/// Hides a piece if that gives mappings back, or (`hard`) costs none; returns how many.
fn hide(vma: &Vma<'_>, lo: usize, hi: usize, hard: bool) -> i64 {
    let Some(extent) = vma.extent(lo) else { return 0 };
    let (index, nr) = (Extent::page_index(lo), (hi - lo) >> PAGE_SHIFT);
    let run = extent.runs(index, nr);
    if run.ends == 0 || extent.user_pins() != 0 {
        return 0;
    }
    let below = lo > vma.start && is_exposed(vma, lo - PAGE_SIZE);
    let above = hi < vma.end && is_exposed(vma, hi);
    let mut before = i64::from(run.ends) + extent.splits();
    for (neighbour, mine) in [(below, run.first), (above, run.last)] {
        // Side by side they are one; a neighbour beside a hidden page ends there.
        before += i64::from(neighbour) * if mine { -1 } else { 1 };
    }
    let gain = before - i64::from(below) - i64::from(above);
    if gain < 0 || (gain == 0 && (!hard || below)) {
        return 0;
    }
    let taken = extent.take_mapped(index, nr);
    // SAFETY: a piece of a published vma, inside a section; what is hidden comes back by a touch.
    if unsafe { mem::mprotect(lo, hi - lo, mem::PROT_NONE) }.is_err() {
        extent.put_mapped(taken);
        return 0;
    }
    if nr == EXTENT_PAGES {
        extent.forget_splits();
    }
    gain
}
