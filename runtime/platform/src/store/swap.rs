//! A swap store: anonymous memory that need not stay in the cache. Linux: `mm/swapfile.c`, `mm/page_io.c`.
//!
//! One word a page says where it is:
//!
//! ```text
//! none ---- write: zeros ----> none            reads as zeros, no I/O
//!   any ---- write ----------> slot            in the file (new slots, one write for a run)
//!   slot --- write ----------> busy -> slot    in place, where a run of pages has a run of slots
//!   any ---- write ----------> front           in front of the file (compressed)
//!   any ---- punch ----------> none
//! ```
//!
//! A slot has one owner: the word that names it, or, while that is `busy`, the writer. Whoever replaces a word gives
//! back what the old one named, except a busy one's slot: its writer finds the word changed and gives it back itself.
//!
//! ```text
//! read (page not in the cache)          punch, or write of the same page
//! slot 7
//!                                       none, or slot 9; 7 is free
//!                                       another page takes 7, writes it
//! pread(7): another page's bytes
//! word changed: read again
//! ```
//!
//! Every change of a word raises the generation in its upper bits, so a word that looks unchanged is unchanged.
//!
//! # Context: a filler, or a thread outside of sections: a slot's file may wait

use super::swapfile::{SwapFile, Words};
use super::{HandlerStore, PageMut, PageRef, Store, StoreError};
use crate::sys::{Errno, thread};
use core::ops::Deref;
use core::sync::atomic::{AtomicU64, Ordering, fence};
use softfault_mm::page::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, pages_of};

/// A shared swap file.
///
/// # Safety
/// `deref` is async-signal-safe: a load, as `Arc`'s.
pub unsafe trait SharedSwapFile: Deref<Target = SwapFile> + Send + Sync {}

// SAFETY: no code at all.
unsafe impl SharedSwapFile for &SwapFile {}

/// Something in front of the file that keeps pages without I/O, if it wants them. Linux: `zswap`, once `frontswap`.
///
/// Its methods run where [`Store`]'s do; a store with one is not a [`HandlerStore`] unless it is [`NoFront`].
pub trait Frontswap: Send + Sync {
    /// Whether [`Frontswap::store`] must see bytes that nobody changes meanwhile.
    const STABLE: bool;
    /// Takes one page (the last of an object may be shorter) and returns a handle; `None`: it goes to the file.
    ///
    /// # Context: as [`Store`]
    fn store(&self, page: &PageRef<'_>) -> Option<u32>;
    /// Gives a page back, zeros behind its end. The handle may be invalidated meanwhile: the bytes, and the result, are
    /// then not used.
    ///
    /// # Context: as [`Store`]
    ///
    /// # Errors
    /// [`StoreError::Corrupt`].
    fn load(&self, handle: u32, page: &mut PageMut<'_>) -> Result<(), StoreError>;
    /// Forgets a page.
    ///
    /// # Context: as [`Store`]
    fn invalidate(&self, handle: u32);
}

/// Nothing in front of the file.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoFront;

impl Frontswap for NoFront {
    const STABLE: bool = false;
    fn store(&self, _page: &PageRef<'_>) -> Option<u32> {
        None
    }
    fn load(&self, _handle: u32, _page: &mut PageMut<'_>) -> Result<(), StoreError> {
        Err(StoreError::Corrupt)
    }
    fn invalidate(&self, _handle: u32) {}
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    /// Nowhere: it reads as zeros.
    None,
    /// In this slot.
    Slot(u32),
    /// In this slot, which is being written in place.
    Busy(u32),
    /// In front of the file.
    Front(u32),
}

/// Bits 0..32: slot or handle; 32..34: the kind; 34..64: the generation.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Entry(u64);

impl Entry {
    fn place(self) -> Place {
        let value = self.0 as u32;
        match (self.0 >> 32) & 3 {
            0 => Place::None,
            1 => Place::Slot(value),
            2 => Place::Busy(value),
            _ => Place::Front(value),
        }
    }
    /// Returns the word's next value.
    fn next(self, place: Place) -> Self {
        let (kind, value) = match place {
            Place::None => (0u64, 0),
            Place::Slot(v) => (1, v),
            Place::Busy(v) => (2, v),
            Place::Front(v) => (3, v),
        };
        let generation = (self.0 >> 34).wrapping_add(1) << 34;
        Self(generation | kind << 32 | u64::from(value))
    }
}

/// The store of an anonymous object whose pages may leave the cache.
#[derive(Debug)]
pub struct SwapStore<F: SharedSwapFile, Z: Frontswap = NoFront> {
    file: F,
    front: Z,
    /// An [`Entry`] for each page of the object at its maximal length.
    map: Words,
    /// No page from here on was ever written.
    high: AtomicU64,
}

/// Pages of one write: 1 MiB.
const RUN_MAX: usize = 256;

impl<F: SharedSwapFile> SwapStore<F> {
    /// Makes the store of an object that is never longer than `max_len_bytes`: eight bytes of address space a page, and of
    /// memory where pages were written.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn new(file: F, max_len_bytes: u64) -> Result<Self, Errno> {
        Self::with_front(file, NoFront, max_len_bytes)
    }
}

impl<F: SharedSwapFile, Z: Frontswap> SwapStore<F, Z> {
    /// As [`SwapStore::new`], with something in front of the file.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `ENOMEM`.
    pub fn with_front(file: F, front: Z, max_len_bytes: u64) -> Result<Self, Errno> {
        let nr = usize::try_from(pages_of(max_len_bytes)).map_err(|_| Errno::ENOMEM)?;
        Ok(Self { file, front, map: Words::new(nr)?, high: AtomicU64::new(0) })
    }

    /// Acquire pairs with `exchange`: what the word names was written before.
    fn entry(&self, pgoff: u64) -> Entry {
        Entry(self.map.get(pgoff).map_or(0, |w| w.load(Ordering::Acquire)))
    }

    /// Changes a word from `old` to `place`; `false`: it is not `old` any more.
    fn exchange(&self, pgoff: u64, old: Entry, place: Place) -> bool {
        let Some(word) = self.map.get(pgoff) else { return false };
        // Release pairs with `SwapStore::entry`.
        word.compare_exchange(old.0, old.next(place).0, Ordering::Release, Ordering::Relaxed).is_ok()
    }

    /// Changes a word to `place`, whatever it is, and gives back what it named.
    fn replace(&self, pgoff: u64, place: Place) {
        loop {
            let old = self.entry(pgoff);
            if old.place() == Place::None && place == Place::None {
                return;
            }
            if self.exchange(pgoff, old, place) {
                self.release(old.place());
                return;
            }
        }
    }

    fn release(&self, place: Place) {
        match place {
            Place::Slot(slot) => self.file.put(slot, 1),
            Place::Front(handle) => self.front.invalidate(handle),
            Place::None | Place::Busy(_) => {}
        }
    }

    /// Returns where page `pgoff` is, how many pages from there on, at most `max`, lie in a row with it (in slots one
    /// behind the other, or all nowhere), and the sum of their words: each change of one of them adds to it.
    fn run(&self, pgoff: u64, max: usize) -> (Place, usize, u64) {
        let first = self.entry(pgoff);
        let (place, mut nr, mut sum) = (first.place(), 1, first.0);
        while nr < max {
            let e = self.entry(pgoff + nr as u64);
            let goes_on = match (place, e.place()) {
                (Place::None, Place::None) => true,
                (Place::Slot(a) | Place::Busy(a), Place::Slot(b) | Place::Busy(b)) => {
                    u64::from(a) + nr as u64 == b.into()
                }
                _ => false,
            };
            if !goes_on {
                break;
            }
            sum = sum.wrapping_add(e.0);
            nr += 1;
        }
        (place, nr, sum)
    }

    /// Fills pages from the beginning of `page` on; returns how many bytes, `None` if one of them went elsewhere
    /// meanwhile. `dirty`: something was written there before.
    fn read_run(&self, pgoff: u64, page: &mut PageMut<'_>, dirty: bool) -> Result<Option<usize>, StoreError> {
        let (place, nr, sum) = self.run(pgoff, page.len_bytes().div_ceil(PAGE_SIZE));
        let len = page.len_bytes().min(nr * PAGE_SIZE);
        let mut part = page.part(0, len);
        let r = match place {
            Place::None if dirty => {
                part.write_zeros();
                Ok(())
            }
            Place::None => part.allocate_zeros(),
            Place::Slot(slot) | Place::Busy(slot) => self.file.read(slot, &mut part),
            Place::Front(handle) => self.front.load(handle, &mut part),
        };
        // The bytes are looked at before the words are looked at again: a system call, or the front's own lock. The fence
        // pairs with `exchange` of who gives the slot to another page.
        fence(Ordering::Acquire);
        if self.run(pgoff, nr) != (place, nr, sum) {
            return Ok(None);
        }
        if place == Place::None {
            self.file.stat.swpin_zero.fetch_add(nr as u64, Ordering::Relaxed);
        }
        r.map(|()| Some(len))
    }

    fn read_all(&self, pgoff: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let (mut done, mut dirty) = (0, false);
        while done < page.len_bytes() {
            let here = pgoff + (done / PAGE_SIZE) as u64;
            match self.read_run(here, &mut page.part(done, usize::MAX), dirty)? {
                Some(n) => (done, dirty) = (done + n, false),
                // A page of the run went elsewhere meanwhile; someone else got on.
                None => dirty = true,
            }
        }
        Ok(())
    }

    /// Keeps one page without I/O, if it is zeros or the front takes it.
    fn write_without_io(&self, pgoff: u64, page: &PageRef<'_>) -> bool {
        if page.is_zero() {
            self.replace(pgoff, Place::None);
            self.file.stat.swpout_zero.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let Some(handle) = self.front.store(page) else { return false };
        self.replace(pgoff, Place::Front(handle));
        true
    }

    /// Takes pages from the beginning of `pages` on; returns how many.
    fn write_some(&self, pgoff: u64, pages: &PageRef<'_>) -> Result<usize, StoreError> {
        let nr = pages.len_bytes().div_ceil(PAGE_SIZE).min(RUN_MAX);
        let mut run = 0;
        while run < nr && !self.write_without_io(pgoff + run as u64, &pages.part(run * PAGE_SIZE, PAGE_SIZE)) {
            run += 1;
        }
        // The page behind the run, if there is one, is done.
        let behind = usize::from(run < nr);
        let done = if run > 0 { self.write_run(pgoff, &pages.part(0, run * PAGE_SIZE))? } else { 0 };
        Ok(if done == run { run + behind } else { done })
    }

    /// Writes a run of pages to the file: in place where they lie in a row, else to new slots in a row; as many as can be
    /// had so.
    fn write_run(&self, pgoff: u64, pages: &PageRef<'_>) -> Result<usize, StoreError> {
        let nr = pages.len_bytes().div_ceil(PAGE_SIZE);
        let (place, in_a_row, _) = self.run(pgoff, nr);
        let old = if let Place::Slot(_) = place { in_a_row } else { 0 };
        if old < nr
            && let Some((slot, got)) = self.file.get(nr as u32)
        {
            if got as usize > old {
                return self.write_new(pgoff, &pages.part(0, got as usize * PAGE_SIZE), slot, got);
            }
            self.file.put(slot, got);
        }
        match place {
            Place::Slot(slot) => self.write_in_place(pgoff, &pages.part(0, old * PAGE_SIZE), slot),
            _ => Err(StoreError::Io(Errno::ENOSPC)),
        }
    }

    fn write_new(&self, pgoff: u64, pages: &PageRef<'_>, slot: u32, nr: u32) -> Result<usize, StoreError> {
        if let Err(e) = self.file.write(slot, pages) {
            self.file.put(slot, nr);
            return Err(e);
        }
        (slot..).zip(pgoff..).take(nr as usize).for_each(|(slot, p)| self.replace(p, Place::Slot(slot)));
        Ok(nr as usize)
    }

    /// Writes pages that were seen in slots from `slot` on; returns how many still were: 0 says look again.
    fn write_in_place(&self, pgoff: u64, pages: &PageRef<'_>, slot: u32) -> Result<usize, StoreError> {
        let nr = pages.len_bytes().div_ceil(PAGE_SIZE);
        let take = |(slot, p): &(u32, u64)| {
            let e = self.entry(*p);
            e.place() == Place::Slot(*slot) && self.exchange(*p, e, Place::Busy(*slot))
        };
        let nr = (slot..).zip(pgoff..).take(nr).take_while(take).count();
        if nr == 0 {
            return Ok(0);
        }
        let r = self.file.write(slot, &pages.part(0, nr * PAGE_SIZE));
        for (slot, p) in (slot..).zip(pgoff..).take(nr) {
            self.put_back(p, slot);
        }
        r.map(|()| nr)
    }

    /// Ends what made a word busy; if somebody replaced it meanwhile the slot is nobody's.
    fn put_back(&self, pgoff: u64, slot: u32) {
        let e = self.entry(pgoff);
        // While the slot is ours nobody else can make a word of it: the same place is the same busy word.
        if e.place() != Place::Busy(slot) || !self.exchange(pgoff, e, Place::Slot(slot)) {
            self.file.put(slot, 1);
        }
    }

    /// Makes bytes `from..to` of one page zeros. Control plane: takes a page of stack.
    fn zero_partial_page(&self, pgoff: u64, from: usize, to: usize) -> Result<(), StoreError> {
        loop {
            let e = self.entry(pgoff);
            match e.place() {
                Place::None => return Ok(()),
                Place::Slot(slot) => {
                    if !self.exchange(pgoff, e, Place::Busy(slot)) {
                        continue;
                    }
                    let at = (u64::from(slot) << PAGE_SHIFT) + from as u64;
                    let r = self.file.write_zeros(at, to.saturating_sub(from));
                    self.put_back(pgoff, slot);
                    return r;
                }
                // Being written in place: that ends by itself.
                Place::Busy(_) => thread::sched_yield(),
                Place::Front(_) => {
                    let mut bytes = [0; PAGE_SIZE];
                    self.read_all(pgoff, &mut PageMut::from(bytes.as_mut_slice()))?;
                    bytes.get_mut(from..to).into_iter().for_each(|b| b.fill(0));
                    return self.write(pgoff << PAGE_SHIFT, &PageRef::from(bytes.as_slice()));
                }
            }
        }
    }
}

impl<F: SharedSwapFile, Z: Frontswap> Store for SwapStore<F, Z> {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        // What was written before the failure is not left behind: the next fill relies on holes.
        self.read_all(pos_bytes >> PAGE_SHIFT, page).inspect_err(|_| page.make_holes())
    }

    /// `ENOSPC`: neither the file nor what is in front of it takes more. Pages before the one that failed were taken.
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        let nr = pages.len_bytes().div_ceil(PAGE_SIZE);
        let first = pos_bytes >> PAGE_SHIFT;
        let end = first.saturating_add(nr as u64);
        if pos_bytes & PAGE_MASK as u64 != 0 || end > self.map.as_slice().len() as u64 {
            return Err(StoreError::Io(Errno::EINVAL));
        }
        self.high.fetch_max(end, Ordering::Relaxed);
        let mut done = 0;
        while done < nr {
            done += self.write_some(first + done as u64, &pages.part(done * PAGE_SIZE, usize::MAX))?;
        }
        Ok(())
    }

    /// The callers keep `write` and `punch` of whole pages apart; a part of a page that is being written waits. Whole pages
    /// come first: they cannot fail.
    fn punch(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        let high = self.high.load(Ordering::Relaxed).min(self.map.as_slice().len() as u64) << PAGE_SHIFT;
        let end = pos_bytes.saturating_add(len_bytes).min(high);
        (pages_of(pos_bytes)..end >> PAGE_SHIFT).for_each(|p| self.replace(p, Place::None));
        let mut at = pos_bytes;
        while at < end {
            let (pgoff, in_page) = (at >> PAGE_SHIFT, at as usize & PAGE_MASK);
            let here = ((PAGE_SIZE - in_page) as u64).min(end - at);
            if here < PAGE_SIZE as u64 {
                self.zero_partial_page(pgoff, in_page, in_page + here as usize)?;
            }
            // Behind the first page, which may be a part, only the last may be one.
            at = (at + here).max(end & !(PAGE_MASK as u64));
        }
        Ok(())
    }

    /// What is past the end is given back, and reads as zeros should the object grow again.
    fn set_len(&self, len_bytes: u64) -> Result<(), StoreError> {
        self.punch(len_bytes, u64::MAX)
    }

    fn uses_descriptors(&self) -> bool {
        true
    }

    fn write_blocks(&self) -> bool {
        true
    }

    fn is_stable(&self) -> bool {
        Z::STABLE
    }
}

// SAFETY: atomics in mapped memory and raw system calls; `SharedSwapFile` promises the rest, and `NoFront` does nothing.
unsafe impl<F: SharedSwapFile> HandlerStore for SwapStore<F> {}

impl<F: SharedSwapFile, Z: Frontswap> Drop for SwapStore<F, Z> {
    fn drop(&mut self) {
        for pgoff in 0..self.high.load(Ordering::Relaxed) {
            self.replace(pgoff, Place::None);
        }
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use crate::store::direct::DirectFile;
    use crate::sys::{file, mem};
    use core::sync::atomic::AtomicBool;

    fn swap_file(nr_slots: u64) -> Result<SwapFile, Errno> {
        let fd = mem::memfd_create(c"softfault-test-swap")?;
        file::ftruncate(fd, nr_slots << PAGE_SHIFT)?;
        SwapFile::new(DirectFile::buffered(fd), nr_slots << PAGE_SHIFT)
    }

    #[test]
    fn cutting_a_page_that_is_being_written_waits_and_gives_back_the_rest() -> Result<(), Errno> {
        let file = swap_file(8)?;
        let store = SwapStore::new(&file, 4 * PAGE_SIZE as u64)?;
        let bytes = [5; 4 * PAGE_SIZE];
        assert_eq!(store.write(0, &PageRef::from(bytes.as_slice())), Ok(()));
        let before = store.entry(1);
        let Place::Slot(slot) = before.place() else { return Err(Errno::EINVAL) };
        assert!(store.exchange(1, before, Place::Busy(slot)), "a filler begins to write it");
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            let cut = s.spawn(|| {
                let r = store.set_len(PAGE_SIZE as u64 + 10);
                done.store(true, Ordering::SeqCst);
                r
            });
            // The whole pages need not wait for it.
            while file.nr_used() > 2 && !done.load(Ordering::SeqCst) {
                std::thread::yield_now();
            }
            let used = file.nr_used();
            store.put_back(1, slot);
            assert_eq!(cut.join().ok(), Some(Ok(())));
            assert_eq!(used, 2);
        });
        let mut got = [1; 2 * PAGE_SIZE];
        assert_eq!(store.read(0, &mut PageMut::from(got.as_mut_slice())), Ok(()));
        assert!(got.iter().enumerate().all(|(i, b)| *b == if i < PAGE_SIZE + 10 { 5 } else { 0 }));
        Ok(())
    }

    #[test]
    fn the_parts_and_the_whole_pages_of_a_range_are_punched() -> Result<(), Errno> {
        let file = swap_file(8)?;
        for (from, to) in
            [(10, 20), (10, PAGE_SIZE), (0, 20), (10, PAGE_SIZE + 20), (10, 3 * PAGE_SIZE + 1), (0, 4 * PAGE_SIZE)]
        {
            let store = SwapStore::new(&file, 4 * PAGE_SIZE as u64)?;
            let bytes = [5; 4 * PAGE_SIZE];
            assert_eq!(store.write(0, &PageRef::from(bytes.as_slice())), Ok(()));
            assert_eq!(store.punch(from as u64, (to - from) as u64), Ok(()));
            let mut got = [1; 4 * PAGE_SIZE];
            assert_eq!(store.read(0, &mut PageMut::from(got.as_mut_slice())), Ok(()));
            assert!(
                got.iter().enumerate().all(|(i, b)| *b == if (from..to).contains(&i) { 0 } else { 5 }),
                "{from}..{to}"
            );
        }
        Ok(())
    }
}
