//! The words of an arena's granules: from 2 MiB of it to a vma, or to a split table; and from a whole GiB to a vma, where one has
//! all of that, so that mapping a tebibyte writes a thousand words and not half a million.
//!
//! ```text
//! nr words         one for each 2 MiB: (vma + 1) << 1, or split table << 1 | SPLIT, or 0
//! nr / 512 words   one for each whole GiB, from the arena's base on
//!   (vma + 1) << 1   all of it is that vma's; its fine words are 0
//!   0, FINE          the fine words count. 0: they were never written, and are 0
//! ```
//! A handler looks at the coarse word first, and one that a vma has all of wins. What needs more than a word for a GiB lowers it:
//! ```text
//! control plane                     a handler
//!                                   coarse word: the vma, which it had until now
//! fine words = what the coarse says
//! coarse word = FINE                coarse word: FINE; so the fine ones are there
//! ```
//! A GiB stays fine for as long as the arena lives: its fine words would have to be 0 before the coarse one says so.
//!
//! # Context: handler ([`word`]); the rest: control plane, under the caller's lock

use super::tables::{ArenaSlot, SPLIT_BIT, arena};
use core::sync::atomic::{AtomicU64, Ordering};
use softfault_mm::page::EXTENT_SHIFT;

/// log2 of the granules of a GiB.
const GIB_SHIFT: u32 = 30 - EXTENT_SHIFT;
const GIB_LEN: usize = 1 << GIB_SHIFT;
/// In a coarse word that names no vma: the fine words count, and may have been written.
const FINE: u64 = 1;

/// Returns how many words an arena of `nr` granules needs.
///
/// # Context: control plane
#[must_use]
pub const fn granule_words(nr: usize) -> usize {
    nr + (nr >> GIB_SHIFT)
}

/// Returns word `index` of an arena's.
#[inline]
fn at(a: &ArenaSlot, index: usize) -> Option<&'static AtomicU64> {
    let ptr = a.granules.load(Ordering::Relaxed).cast_const();
    if ptr.is_null() {
        return None;
    }
    // SAFETY: `publish_arena` was given a slice of `granule_words` words, which outlives the arena's publication and every section that
    // saw it; `fine` and `coarse` ask for no other; the caller is in a section or is the control plane.
    Some(unsafe { &*ptr.wrapping_add(index) })
}

/// Returns the number of the granule at `address`, and how many there are.
#[inline]
fn index_of(a: &ArenaSlot, address: usize) -> Option<(usize, usize)> {
    let index = address.checked_sub(a.base.load(Ordering::Relaxed))? >> EXTENT_SHIFT;
    let nr = a.nr_granules.load(Ordering::Relaxed);
    (index < nr).then_some((index, nr))
}

/// Returns the coarse word of the GiB that granule `index` of `nr` lies in; `None`: the end of the arena, which is no whole one.
#[inline]
fn coarse(a: &ArenaSlot, (index, nr): (usize, usize)) -> Option<&'static AtomicU64> {
    let gib = index >> GIB_SHIFT;
    if gib < nr >> GIB_SHIFT { at(a, nr + gib) } else { None }
}

/// Returns what a handler goes by at `address`, which lies in an arena of this slot: `(vma + 1) << 1`, a split table's number with
/// [`SPLIT_BIT`], or 0.
///
/// # Context: handler, in a section
#[inline]
pub(super) fn word(slot: u32, address: usize) -> Option<u64> {
    let a = arena(slot)?;
    let place = index_of(a, address)?;
    if let Some(coarse) = coarse(a, place) {
        // SeqCst pairs with `publish_whole` and `lower`, after the section's entry and before the load of the fine word.
        let seen = coarse.load(Ordering::SeqCst);
        if seen > FINE {
            return Some(seen);
        }
    }
    // SeqCst pairs with `publish_range`, `split_granule` and `join_granule`, after the section's entry.
    Some(at(a, place.0)?.load(Ordering::SeqCst))
}

/// Returns the word of the granule at `address` to be written: it counts from now on, and says what was said of it.
pub(super) fn fine(slot: u32, address: usize) -> Option<&'static AtomicU64> {
    let a = arena(slot)?;
    let place = index_of(a, address)?;
    if let Some(coarse) = coarse(a, place) {
        lower(a, coarse, place.0);
    }
    at(a, place.0)
}

/// Has the fine words of a GiB count.
fn lower(a: &ArenaSlot, coarse: &AtomicU64, index: usize) {
    let seen = coarse.load(Ordering::Relaxed);
    if seen == FINE {
        return;
    }
    if seen != 0 {
        let first = index >> GIB_SHIFT << GIB_SHIFT;
        // Release pairs with `word`: a handler that found no vma in the coarse word, before it said one, looks at these.
        (first..first + GIB_LEN).filter_map(|i| at(a, i)).for_each(|e| e.store(seen, Ordering::Release));
    }
    // SeqCst pairs with `word`.
    coarse.store(FINE, Ordering::SeqCst);
}

/// Points a whole GiB from `address` on at a vma (its code), or at none (0), if that takes one word; `None`: it has fine words, or
/// `address..end` is less. Returns where the GiB ends.
pub(super) fn publish_whole(slot: u32, address: usize, end: usize, code: u32) -> Option<usize> {
    let a = arena(slot)?;
    let place = index_of(a, address)?;
    let next = address.checked_add(GIB_LEN << EXTENT_SHIFT).filter(|next| *next <= end)?;
    let begins = place.0.is_multiple_of(GIB_LEN) && address.is_multiple_of(1 << EXTENT_SHIFT);
    let coarse = coarse(a, place).filter(|c| begins && c.load(Ordering::Relaxed) != FINE)?;
    // SeqCst pairs with `word`: an unpublication, before the loads of `synchronize`.
    coarse.store(u64::from(code) << 1, Ordering::SeqCst);
    Some(next)
}

/// Returns the first address from `from` on, a multiple of 2 MiB, and before `to`, whose granule has a split table.
///
/// # Context: control plane, under the caller's lock
#[must_use]
pub fn next_split(slot: u32, from: usize, to: usize) -> Option<usize> {
    let a = arena(slot)?;
    let mut address = from;
    while address < to {
        let place = index_of(a, address)?;
        let is_fine = coarse(a, place).is_none_or(|c| c.load(Ordering::Relaxed) == FINE);
        if is_fine && at(a, place.0)?.load(Ordering::Relaxed) & SPLIT_BIT != 0 {
            return Some(address);
        }
        let step = if is_fine { 1 } else { GIB_LEN - place.0 % GIB_LEN };
        address += step << EXTENT_SHIFT;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vmatree::{self, ArenaFacts, Numbered, SplitPool, Trap};
    use softfault_mm::vmstat::VmStat;

    const EXTENT: usize = 1 << EXTENT_SHIFT;
    const GIB: usize = 1 << 30;
    const BASE: usize = 3100 << 35;
    const SLOT: u32 = 77;
    const NR: usize = 3 * GIB_LEN + 5;
    static TABLE: [AtomicU64; granule_words(NR)] = [const { AtomicU64::new(0) }; granule_words(NR)];
    static STAT: VmStat = VmStat::new();

    struct Splits(u32);
    impl SplitPool for Splits {
        fn get(&mut self) -> Option<u32> {
            self.0 += 1;
            Numbered::Splits.open(self.0).ok().map(|()| self.0)
        }
    }

    fn publish(range: core::ops::Range<usize>, vma: Option<u32>) {
        // SAFETY: nobody looks for records here: the words alone are looked at.
        unsafe { vmatree::publish_range(SLOT, BASE + range.start, BASE + range.end, vma) };
    }

    fn words(at: [usize; 4]) -> [u64; 4] {
        at.map(|at| word(SLOT, BASE + at).unwrap_or(u64::MAX))
    }

    #[test]
    fn a_gibibyte_is_one_word_until_a_part_of_it_needs_its_own() {
        let used = || TABLE.iter().filter(|w| w.load(Ordering::Relaxed) != 0).count();
        assert_eq!(vmatree::init(usize::MAX), Ok(()));
        assert_eq!(Numbered::Arenas.open(SLOT), Ok(()));
        let facts = ArenaFacts { base: BASE, len_bytes: NR * EXTENT, granules: &TABLE, trap: Trap::Segv, stat: &STAT };
        // SAFETY: nobody else has the slot, and the facts stay.
        assert_eq!(unsafe { vmatree::publish_arena(SLOT, &facts) }, Ok(()));

        let end = NR * EXTENT;
        publish(0..end, Some(4));
        assert_eq!(used(), 3 + 5, "a word for each whole GiB, and for each 2 MiB of the rest");
        assert_eq!(words([0, GIB + 7, 3 * GIB, end - 1]), [5 << 1; 4]);
        assert_eq!(word(SLOT, BASE + end), None, "past the end");
        assert_eq!(next_split(SLOT, BASE, BASE + end), None);

        // One granule of the second is split: nothing of what is said of any page changes.
        let split = GIB + 3 * EXTENT;
        assert_eq!(vmatree::split_granule(SLOT, BASE + split, &mut Splits(90)), Ok(true));
        assert_eq!(words([GIB, split - 1, split + EXTENT, 2 * GIB - 1]), [5 << 1; 4], "what is beside it");
        assert_eq!(words([split; 4]), [91 << 1 | SPLIT_BIT; 4]);
        assert_eq!(next_split(SLOT, BASE, BASE + end), Some(BASE + split));
        assert_eq!(next_split(SLOT, BASE + split + EXTENT, BASE + end), None);
        assert_eq!(used(), 3 + 5 + GIB_LEN, "the others are whole");
        // SAFETY: the table is used by nobody again.
        assert_eq!(unsafe { vmatree::join_granule(SLOT, BASE + split) }, Some(91));
        assert_eq!(words([split; 4]), [5 << 1; 4]);

        // It stays fine, and can be taken and pointed elsewhere as a whole; so can those that are one word.
        publish(GIB..3 * GIB, None);
        assert_eq!(words([GIB, split, 2 * GIB - 1, 3 * GIB - 1]), [0; 4]);
        assert_eq!(words([0, GIB - 1, 3 * GIB, end - 1]), [5 << 1; 4], "its neighbours stay");
        publish(EXTENT..end, Some(8));
        assert_eq!(words([EXTENT, GIB, 2 * GIB, end - 1]), [9 << 1; 4]);
        assert_eq!(words([0; 4]), [5 << 1; 4], "a part of a GiB that was one word");
        publish(0..end, None);
        assert_eq!(words([0, GIB, 2 * GIB, end - 1]), [0; 4]);
        vmatree::withdraw_arena(SLOT);
        assert_eq!(vmatree::arena_of(BASE), None);
    }
}
