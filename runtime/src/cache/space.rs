//! Where objects lie in the cache: regions, and which of their chunks are free.
//!
//! # Context: control plane

use crate::error::{Result, system};
use crate::memory;
use softfault_mm::page::EXTENT_SIZE;
use softfault_platform::cache::Region;
use softfault_platform::sys::Errno;
use std::sync::{Mutex, PoisonError};

/// log2 of the bytes of a region where nothing limits address space, and at least.
pub(crate) const REGION_SHIFTS: std::ops::RangeInclusive<u32> = 26..=40;

/// A region of the cache and which of its chunks are free.
#[derive(Debug)]
pub(crate) struct Space {
    pub(crate) region: Region,
    pub(crate) free: Mutex<Free>,
}

/// Free runs of a region, in chunks: what was given back, and the never used tail.
#[derive(Debug)]
pub(crate) struct Free {
    runs: Vec<(usize, usize)>,
    pub(crate) tail: usize,
    end: usize,
    /// What lies below is accessible.
    open: usize,
}

/// What is given back at the end of what is open is closed again from this length on: 64 MiB.
const CLOSE_MIN: usize = 32;

impl Free {
    /// Takes the first run that is long enough.
    fn take(&mut self, nr: usize) -> Option<usize> {
        if let Some(i) = self.runs.iter().position(|(_, len)| *len >= nr) {
            let (at, len) = self.runs[i];
            if len == nr {
                self.runs.swap_remove(i);
            } else {
                self.runs[i] = (at + nr, len - nr);
            }
            return Some(at);
        }
        let at = self.tail;
        (at.checked_add(nr)? <= self.end).then(|| {
            self.tail += nr;
            at
        })
    }

    /// Gives a run back, joining it with its neighbours.
    fn give(&mut self, mut at: usize, mut nr: usize) {
        while let Some(i) = self.runs.iter().position(|(a, n)| a + n == at || at + nr == *a) {
            let (a, n) = self.runs.swap_remove(i);
            at = at.min(a);
            nr += n;
        }
        if at + nr == self.tail {
            self.tail = at;
        } else {
            self.runs.push((at, nr));
        }
    }
}

impl Space {
    /// Makes a region: as large as the process's limits allow (it is sparse) without taking more than an eighth of the address
    /// space that is left, at least as large as the object.
    pub(crate) fn new(len_bytes: usize) -> Result<Self> {
        let budget = memory::address_space_share(8);
        let mut last = ("mmap", Errno::ENOMEM);
        let fits = |shift: &u32| Region::address_space_bytes(1 << shift) <= budget;
        let shifts = REGION_SHIFTS.rev().filter(fits).step_by(3).chain([0]);
        for wanted in shifts.map(|shift| len_bytes.max((1usize << shift).next_multiple_of(EXTENT_SIZE))) {
            match Region::new(wanted) {
                Ok(region) => {
                    let end = region.len_bytes() / EXTENT_SIZE;
                    let free = Mutex::new(Free { runs: Vec::new(), tail: 0, end, open: 0 });
                    return Ok(Space { region, free });
                }
                // A smaller one would need as many descriptors.
                Err((call, e @ (Errno::EMFILE | Errno::ENFILE))) => return Err(system("object", call)(e)),
                Err(e) => last = e,
            }
        }
        let least = len_bytes.max(1).next_multiple_of(EXTENT_SIZE) as u64;
        memory::check_file_size("object", "RLIMIT_FSIZE (the memfd of the cache)", least)?;
        memory::check_room("object", Region::address_space_bytes(len_bytes) as u64)?;
        Err(system("object", last.0)(last.1))
    }

    /// Takes a run of chunks, and makes it accessible; `None`: there is no room.
    pub(crate) fn take(&self, chunks: usize) -> Option<std::result::Result<usize, Errno>> {
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        let at = free.take(chunks)?;
        let to = at + chunks;
        if to > free.open {
            let (from, len) = ((free.open * EXTENT_SIZE) as u64, (to - free.open) * EXTENT_SIZE);
            if let Err(e) = self.region.open(from, len) {
                free.give(at, chunks);
                return Some(Err(e));
            }
            free.open = to;
        }
        Some(Ok(at))
    }

    /// Gives a range back to the region; its words and bytes are new afterwards.
    ///
    /// # Safety
    /// As [`Region::recycle`].
    #[expect(unsafe_code, reason = "passes Region::recycle's contract on")]
    pub(crate) unsafe fn give(&self, offset: u64, len_bytes: usize) {
        // SAFETY: the caller's contract.
        if unsafe { self.region.recycle(offset, len_bytes) }.is_err() {
            // The old bytes are still there: the range is lost to the region rather than shown to another object.
            return;
        }
        self.put(offset, len_bytes);
    }

    /// Gives a range back in which nothing is.
    #[expect(unsafe_code, reason = "closes what no object uses")]
    pub(crate) fn put(&self, offset: u64, len_bytes: usize) {
        let (at, nr) = (offset as usize / EXTENT_SIZE, len_bytes / EXTENT_SIZE);
        let mut free = self.free.lock().unwrap_or_else(PoisonError::into_inner);
        free.give(at, nr);
        let unused = free.open - free.tail.min(free.open);
        if unused >= CLOSE_MIN {
            // So that who locks everything later gets no memory for what is gone. What could not be closed is opened again all
            // the same before it is used.
            // SAFETY: nothing from the tail on is used by an object.
            let _ = unsafe { self.region.close((free.tail * EXTENT_SIZE) as u64, unused * EXTENT_SIZE) };
            free.open = free.tail;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Free;

    #[test]
    fn free_runs_join_and_are_reused() {
        let mut f = Free { runs: Vec::new(), tail: 0, end: 10, open: 0 };
        assert_eq!([f.take(3), f.take(3), f.take(3)], [Some(0), Some(3), Some(6)]);
        assert_eq!(f.take(2), None, "one is left");
        f.give(0, 3);
        f.give(3, 3);
        assert_eq!(f.take(6), Some(0), "two neighbours became one");
        f.give(0, 6);
        f.give(6, 3);
        assert_eq!((f.tail, f.runs.len()), (0, 0), "everything is tail again");
    }
}
