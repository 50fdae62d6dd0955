//! The `AddressSpaceOps` of an exclusive object: its pages lie in the one arena that maps it, and nowhere else.
//!
//! ```text
//! read_folio   frame from the pool - store reads into it - digest - MOVE into the arena      then `uptodate`
//! punch        MOVE out into a frame - changed? then write it - the frame is free            then `absent`
//! ```
//! So a page is mapped by its fill, before anybody is told that it is there, and an uptodate page is mapped. Between the
//! MOVE and `uptodate` a thread may already load and store: the bytes are whole, and stores are found by the digest.
//!
//! # Written pages
//! What was moved out is in nobody's hands any more, so "evict" is: take it out (atomic), look whether it was changed
//! (`digest`), write it from the frame (stable bytes), and only then it is absent. Where the object has nowhere to write
//! to, or the store fails, the frame goes back, dirty, and the page stays:
//! ```text
//! evictor                                  a thread of the program
//! word: evicting
//! MOVE out                                 (stores before this are in the frame)
//!                                          stores: faults, sees evicting, sleeps
//! changed, nowhere to go: MOVE back
//! word: uptodate, dirty                    woken, stores
//! ```
//! Where MOVE is missing the page is write-protected instead of taken out, looked at and written in place, and dropped.
//!
//! # Unmapping
//! `leave` clears the address and waits for the MOVEs under way, not for stores: a read that is still under way then finds
//! no place for its pages and fails (`Refused`). Who calls it waits before for reads of which a part is in place
//! (`may_be_stored_to`). Pages that were published after their mapping went are forgotten by the
//! next `enter`.
//!
//! # Context: handler; `enter` and `leave`: control plane

mod place;

use super::Store;
use super::blocks::Blocks;
use super::retry::Retries;
use super::source::Source;
use crate::frames::{Frames, Obstacle, RUN_MAX, Slots, Want};
use crate::sys::{Errno, mem, pagemap, thread};
use core::sync::atomic::{AtomicU64, Ordering};
use place::{Held, Place, is_there};
use softfault_mm::folio::{DIRTY, FolioWord, State};
use softfault_mm::mapping::FailurePolicy;
use softfault_mm::ops::{AddressSpaceOps, Staged, Zap};
use softfault_mm::page::{PAGE_SHIFT, PAGE_SIZE, pgoff_index};
use softfault_mm::types::FillError;

/// What an exclusive object does with pages that were written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Facts {
    /// Changed pages go to the store; otherwise they stay.
    pub writes_back: bool,
    /// Every page counts as written (its bytes are nowhere else): none is looked at.
    pub always_dirty: bool,
    /// Pages are never moved, as if the kernel could not.
    pub by_copy: bool,
}

/// What an exclusive object is made of.
#[expect(missing_debug_implementations, reason = "a store has none; it is taken apart at once")]
pub struct Parts<'s> {
    /// Where its pages lie while the store fills them, and while they wait to be written.
    pub frames: &'s Frames,
    /// Where its pages come from, and go to.
    pub store: &'s dyn Store,
    /// Its pages' words.
    pub folios: &'s [FolioWord],
    /// A digest for each of them.
    pub filled: &'s [Filled],
    /// What becomes of pages that were written.
    pub facts: Facts,
    /// Its length, past which the store is not asked.
    pub len_bytes: u64,
    /// How often a failed read is tried again.
    pub retries: Retries,
    /// The store may be called in a handler.
    pub handler_safe: bool,
    /// What becomes of pages that the store cannot give.
    pub policy: FailurePolicy,
    /// The object's, in statistics and messages.
    pub name: u64,
}

/// The digest of a page as it was filled.
#[derive(Debug, Default)]
#[repr(C)]
pub struct Filled([AtomicU64; 2]);

/// An exclusive object: its place in an arena, and its store.
pub struct ExclusiveOps<'s> {
    frames: &'s Frames,
    source: Source<'s>,
    folios: &'s [FolioWord],
    filled: &'s [Filled],
    facts: Facts,
    place: Place,
    /// Pages that lie in the arena.
    nr_mapped: AtomicU64,
    /// Writes of changed pages that the store refused.
    write_errors: AtomicU64,
}

impl core::fmt::Debug for ExclusiveOps<'_> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("ExclusiveOps").field("place", &self.place).field("facts", &self.facts).finish_non_exhaustive()
    }
}

impl<'s> ExclusiveOps<'s> {
    /// Joins a pool of frames with a store.
    #[must_use]
    pub fn new(parts: Parts<'s>) -> Self {
        let Parts { frames, store, folios, filled, facts, len_bytes, retries, handler_safe, policy, name } = parts;
        let (blocks, i_size) = (Blocks::of(store), AtomicU64::new(len_bytes));
        let source = Source { store, blocks, i_size, retries, handler_safe, policy, name };
        let (place, nr_mapped, write_errors) = (Place::default(), AtomicU64::new(0), AtomicU64::new(0));
        Self { frames, source, folios, filled, facts, place, nr_mapped, write_errors }
    }

    /// Sets the end past which the store is not asked.
    pub fn set_len(&self, len_bytes: u64) {
        // Release pairs with `Source::wanted`.
        self.source.i_size.store(len_bytes, Ordering::Release);
    }

    /// Returns what the object does with written pages.
    #[must_use]
    pub fn facts(&self) -> Facts {
        self.facts
    }

    /// Returns how many writes of changed pages the store refused.
    #[must_use]
    pub fn write_errors(&self) -> u64 {
        self.write_errors.load(Ordering::Relaxed)
    }

    /// Publishes where pages `first..first + nr` are mapped. Control plane, with no claim on the object.
    ///
    /// # Safety
    /// `base` and `nr` pages from it are private anonymous memory, registered, without a page, and this object's until
    /// `leave` has returned; open to stores if `writable`, else to loads.
    pub unsafe fn enter(&self, base: usize, first: u64, nr: u64, writable: bool) {
        self.place.enter(base, first, nr, writable);
    }

    /// Forgets where the object is mapped; waits for MOVEs under way, not for reads. What still lies there goes with the
    /// mapping.
    pub fn leave(&self) {
        self.place.leave();
        self.frames.note_dropped(self.nr_mapped.swap(0, Ordering::Relaxed));
    }

    fn note_mapped(&self, nr: usize) {
        self.nr_mapped.fetch_add(nr as u64, Ordering::Relaxed);
        self.frames.note_mapped(nr as u64);
    }

    fn note_dropped(&self, nr: usize) {
        self.nr_mapped.fetch_sub(nr as u64, Ordering::Relaxed);
        self.frames.note_dropped(nr as u64);
    }

    /// Returns whether the object is mapped.
    #[must_use]
    pub fn is_mapped(&self) -> bool {
        self.place.is_somewhere()
    }

    /// Returns the address of page `pgoff`, and whether it may be stored to. The caller has pinned the page: as long as it
    /// is, the mapping stays.
    #[must_use]
    pub fn address(&self, pgoff: u64) -> Option<(usize, bool)> {
        let held = self.place.hold()?;
        Some((held.address(pgoff, 1)?, self.place.is_writable()))
    }

    /// Returns whether page `pgoff`, which is `filling`, lies in the arena already, where a store to it may have to be written.
    #[must_use]
    pub fn may_be_stored_to(&self, pgoff: u64) -> bool {
        let Some(held) = self.place.hold() else { return false };
        self.is_tracked() && held.address(pgoff, 1).is_some_and(is_there)
    }

    fn word(&self, pgoff: u64) -> Option<&FolioWord> {
        self.folios.get(pgoff_index(pgoff))
    }

    fn is_tracked(&self) -> bool {
        !self.facts.always_dirty && self.place.is_writable()
    }

    /// Remembers what a page is filled with. The owner of its claim only.
    fn note_filled(&self, pgoff: u64, page: &[u8; PAGE_SIZE]) {
        if self.is_tracked()
            && let Some(Filled([a, b])) = self.filled.get(pgoff_index(pgoff))
        {
            let [x, y] = self.frames.key().digest(page);
            // Relaxed: who reads them owns the page by then, through its word.
            a.store(x, Ordering::Relaxed);
            b.store(y, Ordering::Relaxed);
        }
    }

    /// Returns whether the page, whose bytes now are `page`, was changed since it was filled. The evictor only.
    fn is_changed(&self, pgoff: u64, page: &[u8; PAGE_SIZE]) -> bool {
        if self.word(pgoff).is_some_and(|w| w.load().has(DIRTY)) {
            return true;
        }
        if !self.is_tracked() {
            return false;
        }
        let Some(Filled([a, b])) = self.filled.get(pgoff_index(pgoff)) else { return true };
        self.frames.key().digest(page) != [a.load(Ordering::Relaxed), b.load(Ordering::Relaxed)]
    }

    /// Puts the first `nr` of the frames where the pages from `pgoff` on belong.
    fn install(&self, pgoff: u64, slots: &mut Slots<'_>, nr: usize) -> Result<(), (u32, FillError)> {
        let refused = (0, FillError::Refused);
        let held = self.place.hold().ok_or(refused)?;
        let to = held.address(pgoff, nr as u64).ok_or(refused)?;
        for i in 0..nr {
            self.note_filled(pgoff + i as u64, slots.page(i));
        }
        let by_copy = self.facts.by_copy || !self.place.is_writable();
        // SAFETY: the caller owns the pages' claims; `held` keeps the mapping.
        let installed = unsafe { slots.install(to, 0, nr, by_copy) };
        self.note_mapped(installed.map_or_else(|(n, _)| n, |()| nr));
        installed.map_err(|(n, obstacle)| (n as u32, error_of(obstacle)))
    }

    /// Fills pages by `fill`, which gets the bytes of a run and says how many whole pages of it are good.
    fn fill(&self, pgoff: u64, nr: u32, fill: &mut dyn FnMut(u64, &mut [u8]) -> Filling) -> Filling {
        let mut done = 0;
        while done < nr {
            let at = pgoff + u64::from(done);
            let slots = self.frames.take_patiently((nr - done) as usize, Want::Full);
            let mut slots = slots.ok_or((done, FillError::NoMemory))?;
            slots.populate();
            let filled = fill(at, slots.pages_mut());
            let good = filled.map_or_else(|(n, _)| n as usize, |()| slots.nr());
            self.install(at, &mut slots, good).map_err(|(n, e)| (done + n, e))?;
            filled.map_err(|(n, e)| (done + n, e))?;
            done += slots.nr() as u32;
        }
        Ok(())
    }

    /// Takes at most `nr` pages out, and writes what was changed; returns how many are gone.
    fn evict_run(&self, held: &Held<'_>, pgoff: u64, nr: usize) -> Result<usize, Obstacle> {
        let mut slots = self.frames.take_patiently(nr, Want::Empty).ok_or(Obstacle::NoMemory)?;
        let nr = slots.nr();
        let src = held.address(pgoff, nr as u64).ok_or(Obstacle::Gone)?;
        // SAFETY: the caller owns the pages (evicting), `held` keeps their mapping.
        let taken = unsafe { slots.collect(src, nr) };
        self.note_dropped(slots.nr_full());
        let taken = match taken {
            Ok(()) => nr,
            Err((0, obstacle)) => return Err(obstacle),
            Err((n, _)) => n,
        };
        let mut at = 0;
        while at < taken {
            let is_dirty = |i: &usize| slots.is_full(*i) && self.is_changed(pgoff + *i as u64, slots.page(*i));
            let len = (at..taken).take_while(is_dirty).count();
            if len == 0 {
                at += 1;
                continue;
            }
            if !self.write_back(pgoff + at as u64, slots.address(at), len) {
                // Those from `at` on go back; those before it are gone, and a second look finds them so.
                self.put_back(held, pgoff, &mut slots, at..at + len, true);
                self.put_back(held, pgoff, &mut slots, at + len..taken, false);
                return if at == 0 { Err(Obstacle::Busy) } else { Ok(at) };
            }
            at += len;
        }
        Ok(taken)
    }

    /// Copies the pages from `pgoff` on into frames, gives them to the store, and remembers what it has.
    fn write_copies(&self, held: &Held<'_>, pgoff: u64, slots: &mut Slots<'_>) -> Result<(), FillError> {
        let nr = slots.nr();
        let Some(src) = held.address(pgoff, nr as u64) else { return Ok(()) };
        let to = slots.pages_mut();
        // SAFETY: the pages are `writeback` or pinned, hence mapped, and `held` keeps the mapping; the frames are ours.
        unsafe { mem::copy_racy(to.as_mut_ptr(), src as *const u8, nr * PAGE_SIZE) };
        // SAFETY: the frames are ours, and nobody stores to them.
        let r = unsafe { self.source.write(pgoff, slots.address(0), nr as u32) };
        if let Err(error) = r {
            self.write_errors.fetch_add(1, Ordering::Relaxed);
            return Err(error.fill_error());
        }
        for i in 0..nr {
            self.note_filled(pgoff + i as u64, slots.page(i));
        }
        Ok(())
    }

    /// Gives changed pages to the store; `false`: they must stay.
    fn write_back(&self, pgoff: u64, address: usize, nr: usize) -> bool {
        if self.source.wanted(pgoff, nr as u32) == 0 {
            return true;
        }
        if !self.facts.writes_back {
            return false;
        }
        // SAFETY: the bytes are the caller's: a frame, or a protected page that is evicting.
        let r = unsafe { self.source.write(pgoff, address, nr as u32) };
        if r.is_err() {
            self.write_errors.fetch_add(1, Ordering::Relaxed);
            return false;
        }
        // The evictor reads from the flag what was written.
        for word in (0..nr as u64).filter_map(|i| self.word(pgoff + i)) {
            word.set(DIRTY);
        }
        true
    }

    /// Moves frames back to where they came from: their bytes are nowhere else.
    fn put_back(
        &self,
        held: &Held<'_>,
        pgoff: u64,
        slots: &mut Slots<'_>,
        range: core::ops::Range<usize>,
        changed: bool,
    ) {
        for i in range {
            let at = pgoff + i as u64;
            if changed && let Some(word) = self.word(at) {
                word.set(DIRTY);
            }
            let Some(to) = held.address(at, 1).filter(|_| slots.is_full(i)) else { continue };
            // SAFETY: the page is evicting, the caller's, and was taken from there.
            while let Err((_, Obstacle::Busy | Obstacle::NoMemory)) = unsafe { slots.install(to, i, 1, false) } {
                thread::sched_yield();
            }
            self.note_mapped(1);
        }
    }

    /// Drops pages without moving them: protects them, writes what was changed in place, and lets go of all or none. Those
    /// that stay are open to stores again: nobody else would open them, a fault finds them cached and mapped.
    fn evict_in_place(&self, held: &Held<'_>, pgoff: u64, nr: u32) -> Result<(), Obstacle> {
        let src = held.address(pgoff, u64::from(nr)).ok_or(Obstacle::Gone)?;
        let len = nr as usize * PAGE_SIZE;
        let protect = |on| self.frames.uffd().writeprotect(src, len, on);
        if !self.place.is_writable() {
            return self.write_and_drop(pgoff, src, nr);
        }
        let gone = match protect(true) {
            Ok(()) => self.write_and_drop(pgoff, src, nr),
            Err(_) => Err(Obstacle::Busy),
        };
        if gone.is_err() {
            while protect(false) == Err(Errno::EAGAIN) {
                thread::sched_yield();
            }
        }
        gone
    }

    /// Writes what was changed of pages that nobody can store to, and drops all of them or none.
    fn write_and_drop(&self, pgoff: u64, src: usize, nr: u32) -> Result<(), Obstacle> {
        let mut kept = false;
        for i in 0..nr {
            let (at, address) = (pgoff + u64::from(i), src + i as usize * PAGE_SIZE);
            // SAFETY: the page is evicting, hence mapped, and protected: nobody changes it, and only we can drop it.
            let page = unsafe { &*(address as *const [u8; PAGE_SIZE]) };
            if self.is_changed(at, page) && !self.write_back(at, address, 1) {
                kept = true;
                if let Some(word) = self.word(at) {
                    word.set(DIRTY);
                }
            }
        }
        if kept { Err(Obstacle::Busy) } else { self.drop_range(src, nr) }
    }

    /// Gives the pages at `src`, which are there, back to the kernel, whatever they hold.
    fn drop_range(&self, src: usize, nr: u32) -> Result<(), Obstacle> {
        // SAFETY: the pages are the caller's (evicting), and their bytes are nobody's.
        unsafe { mem::drop_pages(src, nr as usize * PAGE_SIZE) }.map_err(|_| Obstacle::Busy)?;
        self.note_dropped(nr as usize);
        Ok(())
    }

    /// Drops what is there of pages that are `filling`, which may have been put in place or not.
    fn drop_filled(&self, held: &Held<'_>, pgoff: u64, nr: u32) -> Result<(), Obstacle> {
        for at in pgoff..pgoff + u64::from(nr) {
            let Some(src) = held.address(at, 1) else { continue };
            // For the count alone: it is dropped unseen.
            let seen = is_there(src);
            // SAFETY: the page is the caller's (filling), and its bytes are nobody's.
            unsafe { mem::drop_pages(src, PAGE_SIZE) }.map_err(|_| Obstacle::Busy)?;
            self.note_dropped(usize::from(seen));
        }
        Ok(())
    }
}

/// What a fill says: how many pages are good, and why the next is not.
type Filling = Result<(), (u32, FillError)>;

fn error_of(obstacle: Obstacle) -> FillError {
    match obstacle {
        Obstacle::NoMemory => FillError::NoMemory,
        Obstacle::Gone => FillError::Refused,
        Obstacle::Busy => FillError::Io(Errno::EBUSY),
        Obstacle::Unfit => FillError::Io(Errno::EINVAL),
    }
}

impl AddressSpaceOps for ExclusiveOps<'_> {
    fn read_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        // Without a place for the pages the store need not be asked.
        if !self.is_mapped() {
            return Err((0, FillError::Refused));
        }
        self.fill(pgoff, nr, &mut |at, pages| self.source.read(at, pages))
    }

    fn zero_folio(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        let zero = &mut |_, pages: &mut [u8]| {
            pages.fill(0);
            Ok(())
        };
        self.fill(pgoff, nr, zero).map_err(|(_, error)| error)
    }

    /// Never asked: there is no copy of an exclusive page but itself.
    fn read_staged(&self, _pgoff: u64, _staged: &Staged) -> Result<(), FillError> {
        Err(FillError::Refused)
    }

    fn dsync(&self, _pgoff: u64, _nr: u32) -> Result<(), FillError> {
        Ok(())
    }

    /// Writes copies: the pages stay where they are, and a store to one after it was copied shows in its digest.
    fn write_folio(&self, pgoff: u64, nr: u32) -> Result<(), (u32, FillError)> {
        let Some(held) = self.place.hold() else { return Ok(()) };
        let mut done = 0;
        while done < nr {
            let slots = self.frames.take_patiently((nr - done) as usize, Want::Full);
            let mut slots = slots.ok_or((done, FillError::NoMemory))?;
            slots.populate();
            self.write_copies(&held, pgoff + u64::from(done), &mut slots).map_err(|e| (done, e))?;
            done += slots.nr() as u32;
        }
        Ok(())
    }

    fn is_written(&self, pgoff: u64) -> bool {
        if !self.is_tracked() {
            return false;
        }
        let Some(held) = self.place.hold() else { return false };
        let (Some(address), Some(Filled([a, b]))) = (held.address(pgoff, 1), self.filled.get(pgoff_index(pgoff)))
        else {
            return false;
        };
        // SAFETY: the caller pinned the page, so it is mapped; `held` keeps the mapping.
        let now = unsafe { self.frames.key().digest_racy(address as *const u8) };
        now != [a.load(Ordering::Relaxed), b.load(Ordering::Relaxed)]
    }

    fn each_missing(&self, pgoff: u64, nr: u64, found: &mut dyn FnMut(u64, bool)) {
        let Some(held) = self.place.hold() else { return };
        let (first, mapped) = self.place.pages();
        let (from, to) = (pgoff.max(first), pgoff.saturating_add(nr).min(first + mapped));
        let Some(addr) = held.address(from, to.saturating_sub(from)) else { return };
        // Where the kernel cannot say it (before Linux 6.7) nobody knows.
        let _ = pagemap::each_missing(addr, pgoff_index(to.saturating_sub(from)) << PAGE_SHIFT, &mut |at, len| {
            for page in (at..at + len).step_by(PAGE_SIZE) {
                found(from + ((page - addr) >> PAGE_SHIFT) as u64, self.is_tracked());
            }
        });
    }

    fn rereads_unflushed(&self) -> bool {
        self.source.store.rereads_unflushed()
    }

    fn punch(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        // Mapped nowhere: the words are all that is left of the pages.
        let Some(held) = self.place.hold() else { return Ok(()) };
        if self.word(pgoff).is_some_and(|w| w.load().state() == State::Filling) {
            return self.drop_filled(&held, pgoff, nr).map_err(error_of);
        }
        let (mut at, end) = (pgoff, pgoff + u64::from(nr));
        let in_place = self.facts.by_copy || !self.place.is_writable();
        while at < end {
            if in_place {
                return self.evict_in_place(&held, pgoff, nr).map_err(error_of);
            }
            match self.evict_run(&held, at, ((end - at) as usize).min(RUN_MAX)) {
                Ok(n) => at += n as u64,
                Err(Obstacle::Unfit) if at == pgoff => {
                    return self.evict_in_place(&held, pgoff, nr).map_err(error_of);
                }
                Err(obstacle) => return Err(error_of(obstacle)),
            }
        }
        Ok(())
    }

    /// Through a mapping for loads nothing is changed: its pages go in place, and share one flush of the TLBs.
    fn punch_pages(&self, id: u32, pages: &[(u32, u64)], zaps: &mut [Zap]) -> bool {
        let Some(held) = self.place.hold() else { return false };
        if self.place.is_writable() {
            return false;
        }
        let mut nr = 0;
        for (_, pgoff) in pages.iter().filter(|(of, _)| *of == id) {
            let (Some(addr), Some(zap)) = (held.address(*pgoff, 1), zaps.get_mut(nr)) else { return false };
            *zap = Zap { addr, len_bytes: PAGE_SIZE };
            nr += 1;
        }
        // SAFETY: the pages are the caller's (evicting), unchanged, and `held` keeps their mapping.
        if !unsafe { mem::zap_ranges(zaps.get(..nr).unwrap_or_default()) } {
            // Some may be gone: dropping those again, one by one, is no error.
            return false;
        }
        self.note_dropped(nr);
        true
    }

    /// All or none, of a single page: one that cannot be dropped must stay, or its bytes are read without a fault.
    fn discard(&self, pgoff: u64, nr: u32) -> Result<(), FillError> {
        let Some(held) = self.place.hold() else { return Ok(()) };
        let src = held.address(pgoff, u64::from(nr)).ok_or(FillError::Refused)?;
        self.drop_range(src, nr).map_err(error_of)
    }

    fn with_page_mut(&self, pgoff: u64, f: &mut dyn FnMut(&mut [u8])) {
        let _ = self.fill(pgoff, 1, &mut |_, page| {
            f(page);
            Ok(())
        });
    }

    fn copy_from_page(&self, pgoff: u64, offset: usize, dst: &mut [u8]) {
        let Some((address, _)) = self.address(pgoff) else { return };
        let len = dst.len().min(PAGE_SIZE.saturating_sub(offset));
        let src = (address as *const u8).wrapping_add(offset);
        // SAFETY: the caller pinned the page, so it is mapped; `dst` is an exclusive slice of at least `len` bytes.
        unsafe { mem::copy_racy(dst.as_mut_ptr(), src, len) };
    }
}
