//! From an address to the arena that it is in: a word for each 32 GiB of the address space, and, where no arena has all of those,
//! one for each 2 MiB, in a leaf that comes with the first arena there.
//!
//! ```text
//! word of 32 GiB
//!   0                   no arena was ever there
//!   slot + 1, and WHOLE one arena has all of it: no word for each 2 MiB is written when that comes, and when it goes
//!   a leaf's address    a u32 for each 2 MiB: slot + 1, or 0
//! ```
//! A leaf stays: a handler may be reading it. While one arena has all of its 32 GiB it is kept aside, and empty.

use crate::sys::{Errno, mem};
use core::sync::atomic::{AtomicU32, AtomicUsize, Ordering, fence};
use softfault_mm::page::EXTENT_SHIFT;

/// log2 of the user address space.
pub(super) const ADDRESS_BITS: u32 = 47;
const NR_GRANULES: usize = 1 << (ADDRESS_BITS - EXTENT_SHIFT);
/// log2 of the granules of a leaf of the page map: 32 GiB of address space in 64 KiB.
const LEAF_SHIFT: u32 = 14;
const LEAF_LEN: usize = 1 << LEAF_SHIFT;
type Leaf = [AtomicU32; LEAF_LEN];
/// In a word: one arena has all of the 32 GiB. No leaf's address has it.
const WHOLE: usize = 1;
/// The words.
static WORDS: [AtomicUsize; NR_GRANULES >> LEAF_SHIFT] = [const { AtomicUsize::new(0) }; NR_GRANULES >> LEAF_SHIFT];
/// The leaves that stand aside, for words that are `WHOLE`. Protected by the lock of who writes.
static KEPT: [AtomicUsize; NR_GRANULES >> LEAF_SHIFT] = [const { AtomicUsize::new(0) }; NR_GRANULES >> LEAF_SHIFT];

/// Returns the leaf that a word is the address of, if any.
#[inline]
fn leaf(word: usize) -> Option<&'static Leaf> {
    // SAFETY: null, or a leaf that `open` mapped, which is never unmapped: the caller has looked for `WHOLE`.
    unsafe { (word as *const Leaf).as_ref() }
}

/// Returns which arena a granule of the address space is in: its slot plus one; 0: none.
///
/// # Context: handler
#[inline]
pub(super) fn slot_code(granule: usize) -> u32 {
    let Some(word) = WORDS.get(granule >> LEAF_SHIFT) else { return 0 };
    // SeqCst pairs with `page_map::set`; and with `page_map::open`: a zeroed leaf is a valid one.
    let word = word.load(Ordering::SeqCst);
    if word & WHOLE != 0 {
        return (word >> 1) as u32;
    }
    // SeqCst pairs with `page_map::set`.
    leaf(word).and_then(|leaf| leaf.get(granule % LEAF_LEN)).map_or(0, |e| e.load(Ordering::SeqCst))
}

/// The parts of a range: which word, which granules of its 32 GiB.
fn parts(base: usize, len_bytes: usize) -> impl Iterator<Item = (usize, core::ops::Range<usize>)> {
    let (first, end) = (base >> EXTENT_SHIFT, (base + len_bytes) >> EXTENT_SHIFT);
    (first >> LEAF_SHIFT..end.div_ceil(LEAF_LEN)).map(move |at| {
        let start = at << LEAF_SHIFT;
        (at, first.max(start) - start..end.min(start + LEAF_LEN) - start)
    })
}

/// Makes what [`set`] needs to write a range. Control plane, under the caller's lock.
pub(super) fn open(base: usize, len_bytes: usize) -> Result<(), Errno> {
    for (at, part) in parts(base, len_bytes) {
        let word = WORDS.get(at).ok_or(Errno::EINVAL)?;
        if part.len() < LEAF_LEN && word.load(Ordering::Relaxed) == 0 {
            // SeqCst pairs with `slot_code`: the kernel's zeros are there.
            word.store(mem::map_zeroed(size_of::<Leaf>())?, Ordering::SeqCst);
        }
    }
    Ok(())
}

/// Says that an arena has a range, or that it has it no more (0), which is then the range that it had. Control plane, under the
/// caller's lock; the range is open.
pub(super) fn set(base: usize, len_bytes: usize, code: u32) {
    for (at, part) in parts(base, len_bytes) {
        let (Some(word), Some(kept)) = (WORDS.get(at), KEPT.get(at)) else { return };
        if part.len() == LEAF_LEN {
            set_whole(word, kept, code);
        } else if let Some(leaf) = leaf(word.load(Ordering::Relaxed)) {
            // Release pairs with `slot_code`: what is known of an arena is there.
            leaf.iter().take(part.end).skip(part.start).for_each(|e| e.store(code, Ordering::Release));
        }
    }
    // An unpublication comes before the loads of `section::synchronize`: who has read what was there before it is in a section that
    // those see. Pairs with the loads of `slot_code`.
    fence(Ordering::SeqCst);
}

fn set_whole(word: &AtomicUsize, kept: &AtomicUsize, code: u32) {
    let next = if code == 0 {
        kept.load(Ordering::Relaxed)
    } else {
        kept.store(word.load(Ordering::Relaxed), Ordering::Relaxed);
        (code as usize) << 1 | WHOLE
    };
    // SeqCst pairs with `slot_code`.
    word.store(next, Ordering::SeqCst);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SPAN: usize = LEAF_LEN << EXTENT_SHIFT;
    const EXTENT: usize = 1 << EXTENT_SHIFT;

    fn at(address: usize) -> u32 {
        slot_code(address >> EXTENT_SHIFT)
    }

    /// The page map is the process's: nothing else of this crate's tests has arenas this far up.
    #[test]
    fn an_arena_that_has_all_of_a_word_leaves_the_leaf_that_was_there_as_it_was() {
        let base = 3000 * SPAN;
        let (first, len) = (base + SPAN - 3 * EXTENT, 2 * SPAN);
        // A small one opens the leaf of the second word, and goes.
        assert_eq!(open(base + SPAN, EXTENT), Ok(()));
        set(base + SPAN, EXTENT, 9);
        assert_eq!((at(base + SPAN), at(base + SPAN + EXTENT)), (9, 0));
        set(base + SPAN, EXTENT, 0);
        let leaf = WORDS[3001].load(Ordering::Relaxed);
        assert_ne!(leaf, 0);

        for round in 0..2 {
            assert_eq!(open(first, len), Ok(()));
            set(first, len, 7);
            for inside in [first, base + SPAN, base + 2 * SPAN - 1, base + 2 * SPAN, first + len - 1] {
                assert_eq!(at(inside), 7, "{inside:#x} in round {round}");
            }
            assert_eq!((at(first - 1), at(first + len)), (0, 0), "its neighbours, in round {round}");
            assert_eq!(WORDS[3001].load(Ordering::Relaxed), 7 << 1 | WHOLE);
            set(first, len, 0);
            assert_eq!([first, base + SPAN, base + 2 * SPAN, first + len - 1].map(at), [0; 4], "round {round}");
            assert_eq!(WORDS[3001].load(Ordering::Relaxed), leaf, "who reads it may go on");
        }
        assert_eq!(slot_code(NR_GRANULES), 0, "past the end of the address space");
        assert_eq!(open(NR_GRANULES << EXTENT_SHIFT, EXTENT), Err(Errno::EINVAL));
    }
}
