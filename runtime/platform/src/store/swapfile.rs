//! A swap file: page-sized slots, and which of them are taken. Linux: `swap_info_struct`.
//!
//! # Context: handler
//! Slots are taken and given back by atomic operations on a bitmap in memory of its own.

use super::direct::DirectFile;
use super::{PageMut, PageRef, StoreError};
use crate::sys::{Errno, mem};
use core::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use softfault_mm::page::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};

/// Zeroed words that cost memory only where they were touched.
#[derive(Debug)]
pub(super) struct Words {
    at: usize,
    len: usize,
}

impl Words {
    /// # Errors
    /// The kernel's, `ENOMEM` mostly.
    pub(super) fn new(len: usize) -> Result<Self, Errno> {
        let bytes = Self::len_bytes(len).ok_or(Errno::ENOMEM)?;
        Ok(Self { at: mem::map_zeroed(bytes)?, len })
    }
    fn len_bytes(len: usize) -> Option<usize> {
        len.max(1).checked_mul(size_of::<AtomicU64>())?.checked_next_multiple_of(PAGE_SIZE)
    }
    pub(super) fn as_slice(&self) -> &[AtomicU64] {
        // SAFETY: `len` zeroed (valid) words that `new` mapped and `drop` unmaps; they are atomics, only ever shared.
        unsafe { core::slice::from_raw_parts(self.at as *const AtomicU64, self.len) }
    }
    pub(super) fn get(&self, index: u64) -> Option<&AtomicU64> {
        self.as_slice().get(usize::try_from(index).ok()?)
    }
}

impl Drop for Words {
    fn drop(&mut self) {
        // SAFETY: mapped by `new`; borrows of the words borrow `self`.
        let _ = unsafe { mem::munmap(self.at, Self::len_bytes(self.len).unwrap_or(0)) };
    }
}

/// What went through a swap file, in pages. Linux: the counters of the same names in `/proc/vmstat`.
#[derive(Debug, Default)]
pub struct SwapStat {
    /// Read from the file.
    pub pswpin: AtomicU64,
    /// Written to the file.
    pub pswpout: AtomicU64,
    /// Asked for, and zeros without I/O.
    pub swpin_zero: AtomicU64,
    /// Given as zeros, and dropped without I/O.
    pub swpout_zero: AtomicU64,
}

/// A file of page-sized slots, shared by the swap stores of a runtime. Owns its descriptors.
///
/// Which slot holds which page is known in memory alone: what is in the file is of no use to the next process.
#[derive(Debug)]
pub struct SwapFile {
    file: DirectFile,
    /// One bit a slot: taken. Bits past the last slot are taken for ever.
    map: Words,
    nr_slots: u32,
    nr_used: AtomicU32,
    /// The word behind the last slot taken: slots are taken in a circle, so that writes made one after the other lie one
    /// behind the other.
    next: AtomicU32,
    /// What went through.
    pub stat: SwapStat,
}

/// How many words a search for an untouched one looks at before it takes any free slot.
const SEARCH_WORDS: u32 = 1024;

impl SwapFile {
    /// Makes slots of the first `len_bytes` bytes (rounded down to pages) of a file that is at least as long.
    ///
    /// # Context: control plane
    ///
    /// # Errors
    /// `EINVAL`: not one page; `EFBIG`: 16 TiB or more; `ENOMEM`.
    pub fn new(file: DirectFile, len_bytes: u64) -> Result<Self, Errno> {
        let nr_slots = u32::try_from(len_bytes >> PAGE_SHIFT).map_err(|_| Errno::EFBIG)?;
        if nr_slots == 0 {
            return Err(Errno::EINVAL);
        }
        let map = Words::new(nr_slots.div_ceil(u64::BITS) as usize)?;
        if let Some(last) = map.as_slice().last()
            && !nr_slots.is_multiple_of(u64::BITS)
        {
            last.store(u64::MAX << (nr_slots % u64::BITS), Ordering::Relaxed);
        }
        let (nr_used, next) = (AtomicU32::new(0), AtomicU32::new(0));
        Ok(Self { file, map, nr_slots, nr_used, next, stat: SwapStat::default() })
    }

    /// Returns how many slots there are.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr_slots(&self) -> u32 {
        self.nr_slots
    }
    /// Returns how many slots are taken.
    ///
    /// # Context: handler
    #[must_use]
    pub fn nr_used(&self) -> u32 {
        self.nr_used.load(Ordering::Relaxed)
    }
    /// Returns whether the file's pages go past the kernel's cache.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_direct(&self) -> bool {
        self.file.is_direct()
    }

    /// Takes up to `max` slots in a row: the first and how many; `None`: all are taken. Linux: `get_swap_pages`.
    pub(super) fn get(&self, max: u32) -> Option<(u32, u32)> {
        if self.nr_used() >= self.nr_slots || max == 0 {
            return None;
        }
        let words = self.nr_slots.div_ceil(u64::BITS);
        let first = self.next.load(Ordering::Relaxed) % words;
        // A long run looks for untouched words first: a hole of one slot would cut it, and its writes, to pieces.
        let untouched = if max >= 8 { words.min(SEARCH_WORDS) } else { 0 };
        for i in 0..untouched + words {
            let at = (first + if i < untouched { i } else { i - untouched }) % words;
            let Some((bit, nr)) = self.get_in_word(at, max, i < untouched) else { continue };
            let run = self.extend(at * u64::BITS + bit, nr, max);
            self.next.store((run.0 + run.1) / u64::BITS, Ordering::Relaxed);
            self.nr_used.fetch_add(run.1, Ordering::Relaxed);
            return Some(run);
        }
        None
    }

    /// Takes the first free run of a word, at most `max` slots; `whole`: only of a word of which nothing is taken.
    fn get_in_word(&self, at: u32, max: u32, whole: bool) -> Option<(u32, u32)> {
        let word = self.map.get(u64::from(at))?;
        let mut seen = word.load(Ordering::Relaxed);
        loop {
            if seen == u64::MAX || (whole && seen != 0) {
                return None;
            }
            let bit = seen.trailing_ones();
            let nr = (seen >> bit).trailing_zeros().min(u64::BITS - bit).min(max);
            let bits = (u64::MAX >> (u64::BITS - nr)) << bit;
            // Acquire pairs with `put`: the former owner's reads and writes of the slots are over.
            match word.compare_exchange_weak(seen, seen | bits, Ordering::Acquire, Ordering::Relaxed) {
                Ok(_) => return Some((bit, nr)),
                Err(now) => seen = now,
            }
        }
    }

    /// Lengthens a run that ends with its word into the next words, as far as they are untouched.
    fn extend(&self, slot: u32, mut nr: u32, max: u32) -> (u32, u32) {
        while nr < max && (slot + nr).is_multiple_of(u64::BITS) && slot + nr < self.nr_slots {
            match self.get_in_word((slot + nr) / u64::BITS, max - nr, true) {
                Some((_, more)) => nr += more,
                None => break,
            }
        }
        (slot, nr)
    }

    /// Gives slots back, whose bytes nobody reads or writes any more. Linux: `swap_free`.
    pub(super) fn put(&self, slot: u32, nr: u32) {
        for s in slot..slot.saturating_add(nr) {
            if let Some(word) = self.map.get(u64::from(s / u64::BITS)) {
                // Release pairs with `get` of the next owner.
                word.fetch_and(!(1 << (s % u64::BITS)), Ordering::Release);
            }
        }
        self.nr_used.fetch_sub(nr, Ordering::Relaxed);
    }

    /// Reads from `slot` on.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn read(&self, slot: u32, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        self.file.read(u64::from(slot) << PAGE_SHIFT, page)?;
        self.stat.pswpin.fetch_add(page.len_bytes().div_ceil(PAGE_SIZE) as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Writes from `slot` on; what is left of the last slot becomes zeros: it may have been another page's.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn write(&self, slot: u32, pages: &PageRef<'_>) -> Result<(), StoreError> {
        let pos = u64::from(slot) << PAGE_SHIFT;
        self.file.write(pos, pages)?;
        let in_page = pages.len_bytes() & PAGE_MASK;
        if in_page > 0 {
            self.write_zeros(pos + pages.len_bytes() as u64, PAGE_SIZE - in_page)?;
        }
        self.stat.pswpout.fetch_add(pages.len_bytes().div_ceil(PAGE_SIZE) as u64, Ordering::Relaxed);
        Ok(())
    }

    /// Makes `len_bytes`, at most a page, of a slot zeros.
    ///
    /// # Errors
    /// The file's.
    pub(super) fn write_zeros(&self, pos_bytes: u64, len_bytes: usize) -> Result<(), StoreError> {
        static ZEROS: [u8; PAGE_SIZE] = [0; PAGE_SIZE];
        self.file.write(pos_bytes, &PageRef::from(ZEROS.as_slice()).part(0, len_bytes))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sys::file;

    fn swap_file(nr_slots: u32) -> Result<SwapFile, Errno> {
        let fd = mem::memfd_create(c"softfault-test-swap")?;
        let len = u64::from(nr_slots) << PAGE_SHIFT;
        file::ftruncate(fd, len)?;
        SwapFile::new(DirectFile::buffered(fd), len)
    }

    #[test]
    fn slots_are_handed_out_once_and_all_of_them() -> Result<(), Errno> {
        for nr in [1, 63, 64, 65, 200] {
            let f = swap_file(nr)?;
            let mut times = [0u8; 200];
            while let Some((slot, n)) = f.get(17) {
                let run = times.get_mut(slot as usize..(slot + n) as usize);
                run.into_iter().flatten().for_each(|t| *t += 1);
            }
            let (ours, past) = times.split_at(nr as usize);
            assert!(ours.iter().all(|t| *t == 1), "{nr} slots, each once: {ours:?}");
            assert!(past.iter().all(|t| *t == 0), "none past the last of {nr}");
            assert_eq!((f.nr_used(), f.get(1)), (nr, None), "full");
            f.put(nr - 1, 1);
            assert_eq!(f.get(5), Some((nr - 1, 1)), "what was given back");
            f.put(0, nr);
            assert_eq!(f.nr_used(), 0);
        }
        Ok(())
    }

    #[test]
    fn long_runs_pass_holes_while_there_is_room() -> Result<(), Errno> {
        let f = swap_file(64 * 8)?;
        assert_eq!(f.get(3), Some((0, 3)));
        assert_eq!(f.get(200), Some((64, 200)), "words of which nothing is taken, joined");
        assert_eq!(f.get(64), Some((320, 64)), "not the eight left of the fifth word");
        assert_eq!(f.get(200), Some((384, 128)), "to the end and no further");
        assert_eq!(f.get(200).map(|(slot, _)| slot), Some(3), "then whatever there is");
        Ok(())
    }

    #[test]
    fn a_size_that_cannot_be_is_refused() -> Result<(), Errno> {
        let file = || mem::memfd_create(c"softfault-test-swap").map(DirectFile::buffered);
        assert_eq!(SwapFile::new(file()?, 4095).err(), Some(Errno::EINVAL));
        assert_eq!(SwapFile::new(file()?, 1 << 44).err(), Some(Errno::EFBIG));
        Ok(())
    }
}
