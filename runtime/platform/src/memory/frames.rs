//! Recycled page frames: where pages of exclusive objects are filled, and where they go when they leave their arena.
//!
//! A pool is a range of private anonymous memory, in *slots* of a page. A slot is full (a frame lies in it) or empty (its
//! frame was moved into an arena). UFFDIO_MOVE takes a frame from a slot to an arena or back, without a copy and
//! without the kernel allocating or freeing a page:
//! ```text
//! fill    take a full slot - read the store into it - MOVE slot -> arena       the slot is empty
//! evict   take an empty slot - MOVE arena -> slot - write it back if it was changed     the slot is full
//! ```
//! The pool needs no more slots than there are fills and evictions at once, since the cached pages themselves lie in
//! arenas: it holds 8 MiB at most, and that is all that exclusive objects cost above the cache's limit.
//!
//! A MOVE keeps the frame, not its protection: it arrives with the protection of where it goes, and write-protection is
//! lost on the way (measured on Linux 6.18). A frame that the kernel has pinned (`O_DIRECT`, io_uring) is `EBUSY`; one that
//! it merely references (vmsplice) moves.
//!
//! # Context: handler

use crate::digest::Key;
use crate::sys::uffd::{DONTWAKE, Filled, Uffd, bits};
use crate::sys::{Errno, mem, random, thread};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use softfault_mm::page::PAGE_SIZE;

/// Slots of a block: the longest run.
pub const RUN_MAX: usize = 64;
const NR_BLOCKS: usize = 32;
/// Slots of a pool.
pub const NR_SLOTS: usize = NR_BLOCKS * RUN_MAX;

/// How often a MOVE that must wait for somebody is tried again.
const TRIES: usize = 64;

#[derive(Debug, Default)]
struct Block {
    /// One bit a slot: in use.
    taken: AtomicU64,
    /// One bit a slot: a frame lies in it. Changed only by who has taken the slot.
    full: AtomicU64,
}

/// A pool of frames.
#[derive(Debug)]
pub struct Frames {
    base: usize,
    uffd: &'static Uffd,
    key: Key,
    blocks: [Block; NR_BLOCKS],
    /// Where a run was found last.
    hint: AtomicU32,
    /// Full slots.
    nr_full: AtomicU64,
    /// Pages in arenas.
    nr_mapped: AtomicU64,
}

/// Which slots are wanted: with a frame (to be filled), or without (to move one in).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Want {
    /// Full ones rather than empty ones.
    Full,
    /// Empty ones rather than full ones.
    Empty,
}

/// Why frames could not be moved or copied.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Obstacle {
    /// The kernel, or another thread, holds the page.
    Busy,
    /// The mappings do not permit a MOVE (it is not known here, or one of them is locked in memory or read-only).
    Unfit,
    /// The range is no arena's any more.
    Gone,
    /// No memory.
    NoMemory,
}

impl Frames {
    /// Maps an empty pool whose frames go where `uffd` is registered.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// The kernel's.
    pub fn new(uffd: &'static Uffd) -> Result<Self, Errno> {
        let mut words = [0u64; PAGE_SIZE / size_of::<u64>()];
        random::fill(&mut words)?;
        let base = mem::map_zeroed(NR_SLOTS * PAGE_SIZE)?;
        let frames = Self {
            base,
            uffd,
            key: Key::new(words),
            blocks: core::array::from_fn(|_| Block::default()),
            hint: AtomicU32::new(0),
            nr_full: AtomicU64::new(0),
            nr_mapped: AtomicU64::new(0),
        };
        // A frame inside a huge page would have to be split out of it; a child's copy would make frames shared.
        for advice in [mem::MADV_NOHUGEPAGE, mem::MADV_DONTFORK, mem::MADV_DONTDUMP] {
            // SAFETY: the range mapped above, which nobody has seen.
            match unsafe { mem::madvise(base, NR_SLOTS * PAGE_SIZE, advice) } {
                // A kernel without huge pages does not know the first advice.
                Err(Errno::EINVAL) if advice == mem::MADV_NOHUGEPAGE => {}
                r => r?,
            }
        }
        // MOVE goes only where a context is registered. Write-protection, not MISSING: an empty slot that is filled
        // gets its frame from the kernel, silently.
        uffd.register(base, NR_SLOTS * PAGE_SIZE, bits::REGISTER_WP)?;
        Ok(frames)
    }

    /// Returns the context.
    ///
    /// # Context: handler
    #[must_use]
    pub fn uffd(&self) -> &'static Uffd {
        self.uffd
    }
    /// Returns the address and the length of the slots, in bytes.
    ///
    /// # Context: handler
    #[must_use]
    pub fn range(&self) -> (usize, usize) {
        (self.base, NR_SLOTS * PAGE_SIZE)
    }
    /// Returns the key of the pages' digests.
    ///
    /// # Context: handler
    #[must_use]
    pub fn key(&self) -> &Key {
        &self.key
    }
    /// Returns the frames that lie in the pool.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr_full(&self) -> u64 {
        self.nr_full.load(Ordering::Relaxed)
    }
    /// Returns the pages that lie in arenas.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr_mapped(&self) -> u64 {
        self.nr_mapped.load(Ordering::Relaxed)
    }
    /// Counts `nr` pages that came to lie in an arena.
    ///
    /// # Context: handler
    pub fn note_mapped(&self, nr: u64) {
        self.nr_mapped.fetch_add(nr, Ordering::Relaxed);
    }
    /// Counts `nr` pages that left one.
    ///
    /// # Context: handler
    pub fn note_dropped(&self, nr: u64) {
        self.nr_mapped.fetch_sub(nr, Ordering::Relaxed);
    }

    /// Takes a run of at most `want` slots: as long a one as there is.
    ///
    /// For a fill a long run of empty ones is taken before a short one of full ones (one read, one MOVE). For an eviction all
    /// are empty, if a frame must be lost for it. `None`: all are in use.
    ///
    /// # Context: handler
    #[must_use]
    pub fn take(&self, want: usize, kind: Want) -> Option<Slots<'_>> {
        // Plain loops: this runs on signal stacks, and in debug builds every adapter is a frame.
        let mut nr = want.clamp(1, RUN_MAX);
        while nr > 0 {
            if let Some(slots) = self.take_run(nr, Pick::of(kind)) {
                return Some(slots);
            }
            if kind == Want::Full
                && let Some(slots) = self.take_run(nr, Pick::Any)
            {
                return Some(slots);
            }
            nr /= 2;
        }
        if kind == Want::Empty {
            // Every frame is free: more than are ever filled at once. A block of them goes back to the kernel, at the
            // price of one call.
            drop(self.take_run(RUN_MAX, Pick::Full).map(Slots::release));
            if let Some(slots) = self.take_run(want.clamp(1, RUN_MAX), Pick::Empty) {
                return Some(slots);
            }
        }
        self.take_run(1, Pick::Any).map(|slots| if kind == Want::Empty { slots.release() } else { slots })
    }

    /// Takes a run, waiting for others to give theirs back. `None`: they did not for long.
    ///
    /// # Context: handler
    #[must_use]
    pub fn take_patiently(&self, want: usize, kind: Want) -> Option<Slots<'_>> {
        for _ in 0..1 << 20 {
            if let Some(slots) = self.take(want, kind) {
                return Some(slots);
            }
            thread::sched_yield();
        }
        None
    }

    fn take_run(&self, nr: usize, pick: Pick) -> Option<Slots<'_>> {
        let hint = self.hint.load(Ordering::Relaxed) as usize;
        let mut i = 0;
        while i < NR_BLOCKS {
            let index = (hint + i) % NR_BLOCKS;
            let shift = self.blocks.get(index)?.take(nr, pick);
            if let Some(shift) = shift {
                self.hint.store(index as u32, Ordering::Relaxed);
                return Some(Slots { frames: self, index, shift, nr });
            }
            i += 1;
        }
        None
    }
}

impl Drop for Frames {
    fn drop(&mut self) {
        if crate::child::in_child() {
            return;
        }
        // SAFETY: mapped by `new`; every run of slots borrows the pool, so none is left.
        let _ = unsafe { mem::munmap(self.base, NR_SLOTS * PAGE_SIZE) };
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Pick {
    Full,
    Empty,
    Any,
}

impl Pick {
    fn of(want: Want) -> Self {
        if want == Want::Full { Self::Full } else { Self::Empty }
    }
}

/// Returns where the first `nr` ones in a row of `mask` begin.
fn run_of(mask: u64, nr: usize) -> Option<u32> {
    let (mut m, mut have) = (mask, 1);
    while have < nr {
        let step = have.min(nr - have);
        m &= m >> step;
        have += step;
    }
    (m != 0).then(|| m.trailing_zeros())
}

fn mask_of(shift: u32, nr: usize) -> u64 {
    let ones = if nr >= RUN_MAX { u64::MAX } else { (1 << nr) - 1 };
    ones << (shift & 63)
}

impl Block {
    fn take(&self, nr: usize, pick: Pick) -> Option<u32> {
        let mut taken = self.taken.load(Ordering::Relaxed);
        loop {
            let full = self.full.load(Ordering::Relaxed);
            let fits = match pick {
                Pick::Full => full,
                Pick::Empty => !full,
                Pick::Any => u64::MAX,
            };
            let shift = run_of(!taken & fits, nr)?;
            let want = taken | mask_of(shift, nr);
            // Acquire pairs with `Slots::drop`: the last holder is done with the bytes and the full bits.
            match self.taken.compare_exchange_weak(taken, want, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some(shift),
                Err(now) => taken = now,
            }
        }
    }
}

/// A run of slots, the holder's alone; goes back on drop.
#[derive(Debug)]
pub struct Slots<'f> {
    frames: &'f Frames,
    index: usize,
    shift: u32,
    nr: usize,
}

impl Slots<'_> {
    /// Returns how many there are.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr(&self) -> usize {
        self.nr
    }
    /// Returns the address of slot `i`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn address(&self, i: usize) -> usize {
        self.frames.base + (self.index * RUN_MAX + self.shift as usize + i) * PAGE_SIZE
    }
    fn bits(&self, from: usize, nr: usize) -> u64 {
        mask_of(self.shift + from as u32, nr.min(self.nr.saturating_sub(from)))
    }
    /// Returns whether a frame lies in slot `i`.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_full(&self, i: usize) -> bool {
        let block = self.frames.blocks.get(self.index);
        block.is_some_and(|b| b.full.load(Ordering::Relaxed) & self.bits(i, 1) != 0)
    }
    fn set_full(&self, from: usize, nr: usize, full: bool) {
        let Some(block) = self.frames.blocks.get(self.index) else { return };
        let bits = self.bits(from, nr);
        // Relaxed: the bits are read by others only after they took the slots, which pairs with our giving them back.
        let before = if full {
            block.full.fetch_or(bits, Ordering::Relaxed)
        } else {
            block.full.fetch_and(!bits, Ordering::Relaxed)
        };
        let changed = u64::from((if full { !before } else { before } & bits).count_ones());
        if full {
            self.frames.nr_full.fetch_add(changed, Ordering::Relaxed);
        } else {
            self.frames.nr_full.fetch_sub(changed, Ordering::Relaxed);
        }
    }

    /// Lends the bytes of slot `i`, which is full.
    ///
    /// # Context: handler
    #[must_use]
    pub fn page(&self, i: usize) -> &[u8; PAGE_SIZE] {
        debug_assert!(i < self.nr && self.is_full(i));
        // SAFETY: the slot is ours alone, a whole page, mapped and initialised (anonymous memory begins as zeros).
        unsafe { &*(self.address(i) as *const [u8; PAGE_SIZE]) }
    }
    /// Lends the bytes of all slots, to be written.
    ///
    /// # Context: handler
    #[must_use]
    pub fn pages_mut(&mut self) -> &mut [u8] {
        // SAFETY: the slots are ours alone, mapped and initialised; `&mut self` keeps it to one borrow.
        unsafe { core::slice::from_raw_parts_mut(self.address(0) as *mut u8, self.nr * PAGE_SIZE) }
    }

    /// Returns how many of the slots are full.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr_full(&self) -> usize {
        let block = self.frames.blocks.get(self.index);
        block.map_or(0, |b| (b.full.load(Ordering::Relaxed) & self.bits(0, self.nr)).count_ones() as usize)
    }

    /// Sees to it that a frame lies in each slot; what is in it is unspecified.
    ///
    /// # Context: handler
    pub fn populate(&mut self) {
        for i in (0..self.nr).filter(|i| !self.is_full(*i)) {
            let first = self.address(i) as *mut u8;
            // Volatile: the store is for the frame's sake, and a store that is read from nowhere could be left out.
            // SAFETY: the slot is ours alone; the kernel gives it a page.
            unsafe { first.write_volatile(0) };
        }
        self.set_full(0, self.nr, true);
    }

    /// Gives the frames back to the kernel.
    fn release(self) -> Self {
        // SAFETY: the slots are ours alone, and nobody wants their bytes.
        if self.nr_full() > 0 && unsafe { mem::drop_pages(self.address(0), self.nr * PAGE_SIZE) }.is_ok() {
            self.set_full(0, self.nr, false);
        }
        self
    }

    /// Sees to it that slot `i` is empty, whatever is known of it; `false`: the kernel does not let go of what is there.
    fn empty(&mut self, i: usize) -> bool {
        // SAFETY: the slot is ours alone, and its bytes are nobody's.
        let gone = unsafe { mem::drop_pages(self.address(i), PAGE_SIZE) }.is_ok();
        if gone {
            self.set_full(i, 1, false);
        }
        gone
    }

    /// Puts the frames `from..from + nr`, which are there, at `dst..`: by MOVE where that can be, else (or if `by_copy`)
    /// by COPY.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// How many are there now, and what is in the way of the next.
    ///
    /// # Safety
    /// `dst` and `nr` pages from it are an arena's, owned by the caller (`filling` or `evicting`): nobody relies on there
    /// being no page, or on what a stale one holds.
    pub unsafe fn install(
        &mut self,
        dst: usize,
        from: usize,
        nr: usize,
        by_copy: bool,
    ) -> Result<(), (usize, Obstacle)> {
        let (mut at, mut tries, mut copy) = (0, 0, by_copy);
        while at < nr {
            let (to, src, len) = (dst + at * PAGE_SIZE, self.address(from + at), (nr - at) * PAGE_SIZE);
            let r = if copy {
                self.frames.uffd.copy(to, src, len, DONTWAKE)
            } else {
                // SAFETY: the frames are ours, the range is the caller's to fill (contract).
                unsafe { self.frames.uffd.move_pages(to, src, len, DONTWAKE) }
            };
            let done = match r {
                Filled::All => nr - at,
                Filled::Partial(bytes) => bytes / PAGE_SIZE,
                Filled::Err(Errno::ENOMEM) => return Err((at, Obstacle::NoMemory)),
                Filled::Exists | Filled::Again if tries < TRIES => {
                    if r == Filled::Exists {
                        // SAFETY: the word says that no page is there: what lies there is stale (contract).
                        let _ = unsafe { mem::drop_pages(to, PAGE_SIZE) };
                    }
                    tries += 1;
                    thread::sched_yield();
                    continue;
                }
                // Not an arena's range any more; or the frame is not where it should be, and a copy would be of zeros.
                Filled::Gone => return Err((at, Obstacle::Gone)),
                // A mapping that cannot be moved into can be copied into.
                _ if !copy => {
                    copy = true;
                    continue;
                }
                _ => return Err((at, Obstacle::Busy)),
            };
            if !copy {
                self.set_full(from + at, done, false);
            }
            at += done;
            copy = by_copy;
        }
        Ok(())
    }

    /// Takes the `nr` pages at `src..` out of their arena, page `i` into slot `i`. A slot whose page was not there is empty
    /// afterwards.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// How many pages were looked at, and what is in the way of the next.
    ///
    /// # Safety
    /// The pages are an arena's, `evicting`, owned by the caller.
    pub unsafe fn collect(&mut self, src: usize, nr: usize) -> Result<(), (usize, Obstacle)> {
        let (mut at, mut tries) = (0, 0);
        // Who took these slots as empty ones may have looked before another filled them and gave them back. What is found in
        // one counts as the page's bytes, also where the page is gone already.
        for i in 0..nr {
            if self.is_full(i) && !self.empty(i) {
                return Err((0, Obstacle::Busy));
            }
        }
        while at < nr {
            let len = (nr - at) * PAGE_SIZE;
            // SAFETY: the pages are the caller's (contract), the slots ours.
            let r = unsafe { self.frames.uffd.move_pages(self.address(at), src + at * PAGE_SIZE, len, DONTWAKE) };
            let done = match r {
                Filled::All => nr - at,
                Filled::Partial(bytes) => bytes / PAGE_SIZE,
                Filled::Gone => {
                    at += 1;
                    continue;
                }
                Filled::Again | Filled::Exists if tries < TRIES => {
                    if r == Filled::Exists {
                        self.empty(at);
                    }
                    tries += 1;
                    thread::sched_yield();
                    continue;
                }
                Filled::Err(Errno::EINVAL) => return Err((at, Obstacle::Unfit)),
                _ => return Err((at, Obstacle::Busy)),
            };
            self.set_full(at, done, true);
            at += done;
        }
        Ok(())
    }
}

impl Drop for Slots<'_> {
    fn drop(&mut self) {
        if let Some(block) = self.frames.blocks.get(self.index) {
            // Release pairs with `Block::take`.
            block.taken.fetch_and(!self.bits(0, self.nr), Ordering::Release);
        }
    }
}

#[cfg(test)]
#[expect(clippy::expect_used, reason = "a test that cannot be set up says why")]
mod tests {
    extern crate std;
    use super::*;

    #[test]
    fn runs_are_found_in_words() {
        assert_eq!(run_of(u64::MAX, 64), Some(0));
        assert_eq!(run_of(u64::MAX >> 1, 64), None);
        assert_eq!(run_of(0b1110_1100, 3), Some(5));
        assert_eq!(run_of(0b1110_1100, 2), Some(2));
        assert_eq!(run_of(0, 1), None);
        assert_eq!(run_of(1 << 63, 1), Some(63));
        assert_eq!(mask_of(3, 2), 0b11000);
        assert_eq!(mask_of(0, 64), u64::MAX);
    }

    /// A pool, and a page of an arena's in which nothing lies; `None`, having said so: MOVE is not known here.
    fn pool() -> Option<(Frames, usize)> {
        let features = bits::FEATURE_MOVE | bits::FEATURE_PAGEFAULT_FLAG_WP;
        let Ok(uffd) = Uffd::open(bits::USER_MODE_ONLY, features) else {
            std::println!("skipped: there is no UFFDIO_MOVE");
            return None;
        };
        let uffd: &'static Uffd = std::boxed::Box::leak(std::boxed::Box::new(uffd));
        let arena = mem::map_zeroed(PAGE_SIZE).expect("a page");
        uffd.register(arena, PAGE_SIZE, bits::REGISTER_WP).expect("registered");
        Some((Frames::new(uffd).expect("a pool"), arena))
    }

    /// Another holder has filled the slot since it was seen to be empty, and the page is not there: its frame is not the page's.
    #[test]
    fn what_lies_in_a_slot_is_not_taken_for_the_page() {
        let Some((frames, arena)) = pool() else { return };
        let mut slots = frames.take(1, Want::Empty).expect("a slot");
        slots.populate();
        // SAFETY: the page is this test's.
        assert_eq!(unsafe { slots.collect(arena, 1) }, Ok(()));
        assert!(!slots.is_full(0), "a frame that was there before counts as the page");
    }

    /// The word of a slot says that it is full, and it is not: nothing is there to be moved, and a copy would be of zeros.
    #[test]
    fn a_frame_that_is_missing_is_not_made_up() {
        let Some((frames, arena)) = pool() else { return };
        let mut slots = frames.take(1, Want::Empty).expect("a slot");
        slots.set_full(0, 1, true);
        // SAFETY: the page is this test's.
        assert_eq!(unsafe { slots.install(arena, 0, 1, false) }, Err((0, Obstacle::Gone)));
    }

    #[test]
    fn a_block_gives_each_slot_once() {
        let b = Block::default();
        b.full.store(0b1111, Ordering::Relaxed);
        assert_eq!(b.take(3, Pick::Full), Some(0));
        assert_eq!(b.take(2, Pick::Full), None, "one full slot is left");
        assert_eq!(b.take(1, Pick::Full), Some(3));
        assert_eq!(b.take(60, Pick::Empty), Some(4));
        assert_eq!(b.take(1, Pick::Any), None, "all are taken");
    }
}
