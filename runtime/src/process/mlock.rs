//! Memory that stays, whoever wants it: pages locked for pins, and a cache that is locked whole. Linux: mlock(2).
//!
//! The kernel's lock does not nest: one munlock(2) undoes any number of mlock(2). So pages that pins lock are counted here
//! by their address, and only the first and the last of the pins over a page go to the kernel.
//!
//! What is locked is the cache's alias where there is one. A page that one locked mapping has is not reclaimed from any
//! other, so the arenas' entries stay too, and arenas are not split. Pages of private memory have no alias: there the arena's
//! own range is locked, and since pages that are locked are pinned, no run of pages that are being filled, moved or taken out
//! crosses the ends of a locked range.
//!
//! # Context: control plane

use crate::error::Error;
use crate::memory;
use softfault_mm::page::PAGE_SIZE;
use softfault_platform::mmu::budget;
use softfault_platform::sys::{Errno, file, mlock};
use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// The pages that pins have locked, by address, and how many of them hold each.
static PAGES: Mutex<BTreeMap<usize, u32>> = Mutex::new(BTreeMap::new());

fn pages() -> MutexGuard<'static, BTreeMap<usize, u32>> {
    PAGES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns how many pages pins have locked, in the process. Statistics wait for nobody: 0 while a pin is being made.
pub(crate) fn nr_pages() -> u64 {
    PAGES.try_lock().map_or(0, |pages| pages.len() as u64)
}

/// How pages are locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum How {
    /// Pages that are there, which are faulted in at this address.
    Populate,
    /// What is mapped at this address, and what will be.
    OnFault,
}

/// Why memory could not be locked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// `RLIMIT_MEMLOCK`: the bytes that are needed, and what it is.
    Limit { needed_bytes: u64, limit_bytes: u64 },
    /// Mappings: `vm.max_map_count`.
    Mappings,
    /// The part of it that locks and promotions may use.
    Budget,
    /// Something else.
    Other(Errno),
}

impl Refusal {
    /// Says why `len_bytes` could not be locked.
    fn of(errno: Errno, len_bytes: usize) -> Self {
        let limit_bytes = file::rlimit_memlock();
        let needed_bytes = memory::locked_bytes() + len_bytes as u64;
        // The limit is none for who has CAP_IPC_LOCK: there ENOMEM is a mapping that cannot be split.
        let is_past_limit = needed_bytes > limit_bytes && !memory::may_lock_everything();
        match errno {
            Errno::ENOMEM | Errno::EPERM if is_past_limit => Self::Limit { needed_bytes, limit_bytes },
            Errno::ENOMEM => Self::Mappings,
            errno => Self::Other(errno),
        }
    }

    /// Makes the error of a call that needed the lock.
    pub(crate) fn into_error(self, op: &'static str) -> Error {
        match self {
            Self::Limit { needed_bytes, limit_bytes } => {
                let what = "RLIMIT_MEMLOCK (bytes to be locked in memory without CAP_IPC_LOCK)";
                Error::Limit { op, what, limit: limit_bytes, needed: needed_bytes }
            }
            Self::Mappings | Self::Budget => Error::Exhausted {
                op,
                what: "mappings (vm.max_map_count): each locked range between others that are not costs two",
            },
            Self::Other(errno) => Error::System { op, call: "mlock", errno },
        }
    }
}

/// A range of memory that is locked until this is dropped.
#[derive(Debug)]
pub(crate) struct Locked {
    range: Range<usize>,
}

impl Locked {
    /// Locks a range of addresses, multiples of the page.
    pub(crate) fn new(range: Range<usize>, how: How) -> Result<Self, Refusal> {
        let mut pages = pages();
        let fresh: Vec<_> = runs(range.clone().step_by(PAGE_SIZE).filter(|at| !pages.contains_key(at))).collect();
        for (done, run) in fresh.iter().enumerate() {
            if let Err(refusal) = lock_run(&pages, run, how) {
                fresh[..done].iter().for_each(|run| unlock_run(&pages, run));
                return Err(refusal);
            }
        }
        range.clone().step_by(PAGE_SIZE).for_each(|at| *pages.entry(at).or_default() += 1);
        Ok(Self { range })
    }
}

impl Drop for Locked {
    fn drop(&mut self) {
        if softfault_platform::child::in_child() {
            // A child inherits no lock, and the mutex may be held by a thread that it does not have.
            return;
        }
        let mut pages = pages();
        let mut last = Vec::new();
        for at in self.range.clone().step_by(PAGE_SIZE) {
            match pages.get_mut(&at) {
                Some(nr) if *nr > 1 => *nr -= 1,
                _ => {
                    pages.remove(&at);
                    last.push(at);
                }
            }
        }
        runs(last.into_iter()).for_each(|run| unlock_run(&pages, &run));
    }
}

/// Joins pages, in order, that lie in a row.
fn runs(pages: impl Iterator<Item = usize>) -> impl Iterator<Item = Range<usize>> {
    let mut pages = pages.peekable();
    std::iter::from_fn(move || {
        let start = pages.next()?;
        let mut end = start + PAGE_SIZE;
        while pages.next_if_eq(&end).is_some() {
            end += PAGE_SIZE;
        }
        Some(start..end)
    })
}

/// Returns how many mappings a locked run costs beside those that are locked already: it is one, and splits what it lies in.
fn cost(pages: &BTreeMap<usize, u32>, run: &Range<usize>) -> i64 {
    let left = run.start.checked_sub(PAGE_SIZE).is_some_and(|at| pages.contains_key(&at));
    let right = pages.contains_key(&run.end);
    2 * (1 - i64::from(left) - i64::from(right))
}

fn lock_run(pages: &BTreeMap<usize, u32>, run: &Range<usize>, how: How) -> Result<(), Refusal> {
    let cost = cost(pages, run);
    if !budget::charge(cost) {
        return Err(Refusal::Budget);
    }
    let locked = match how {
        How::Populate => mlock::mlock(run.start, run.len()),
        How::OnFault => mlock::mlock_onfault(run.start, run.len()),
    };
    locked.map_err(|errno| {
        let refusal = Refusal::of(errno, run.len());
        // What could not be faulted in counts as locked all the same.
        let _ = mlock::munlock(run.start, run.len());
        budget::charge(-cost);
        refusal
    })
}

fn unlock_run(pages: &BTreeMap<usize, u32>, run: &Range<usize>) {
    // It fails only where a mapping cannot be split: the pages stay locked then, until their mapping goes.
    let _ = mlock::munlock(run.start, run.len());
    budget::charge(-cost(pages, run));
}

/// Locks a range of the cache, or of an arena, for as long as it is mapped: not counted, and not unlocked by pins.
///
/// # Errors
/// Why not.
pub(crate) fn lock_for_good(addr: usize, len_bytes: usize) -> Result<(), Refusal> {
    mlock::mlock_onfault(addr, len_bytes).map_err(|errno| Refusal::of(errno, len_bytes))
}

/// Undoes [`lock_for_good`].
pub(crate) fn unlock(addr: usize, len_bytes: usize) {
    // It fails only where `unlock_run` says that it may.
    let _ = mlock::munlock(addr, len_bytes);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pages_in_a_row_are_one_run() {
        let page = |n: usize| n * PAGE_SIZE;
        let got: Vec<_> = runs([1, 2, 3, 7, 9, 10].into_iter().map(page)).collect();
        assert_eq!(got, [page(1)..page(4), page(7)..page(8), page(9)..page(11)]);
    }

    /// The kernel counts a range as locked before it finds that it cannot be faulted in.
    #[test]
    fn what_cannot_be_faulted_in_is_unlocked_again() {
        let at = softfault_platform::sys::mem::reserve(4 * PAGE_SIZE, PAGE_SIZE).expect("address space");
        // No runtime has said how many mappings there may be.
        budget::charge(-2);
        let refused = Locked::new(at..at + 4 * PAGE_SIZE, How::Populate).map(drop);
        budget::charge(2);
        assert_eq!(refused, Err(Refusal::Mappings), "nobody may touch it, which is ENOMEM");
        let smaps = std::fs::read_to_string("/proc/self/smaps").expect("smaps");
        let holds = |line: &str| {
            let (from, to) = line.split(' ').next()?.split_once('-')?;
            let [from, to] = [from, to].map(|n| usize::from_str_radix(n, 16).ok());
            Some((from?..to?).contains(&at))
        };
        let of_it = smaps.lines().skip_while(|line| holds(line) != Some(true));
        let flags = of_it.filter_map(|line| line.strip_prefix("VmFlags:")).next().expect("flags");
        assert!(!flags.split(' ').any(|flag| flag == "lo"), "it counts as locked:{flags}");
    }

    #[test]
    fn who_may_lock_everything_is_told_of_no_limit() {
        let limit_bytes = file::rlimit_memlock();
        if limit_bytes == u64::MAX {
            return println!("skipped: RLIMIT_MEMLOCK is infinite");
        }
        let refusal = Refusal::of(Errno::ENOMEM, usize::try_from(limit_bytes).expect("64-bit") + PAGE_SIZE);
        let is_limit = matches!(refusal, Refusal::Limit { .. });
        assert_eq!(is_limit, !memory::may_lock_everything(), "{refusal:?}");
    }

    #[test]
    fn a_run_costs_what_it_splits() {
        let page = |n: usize| n * PAGE_SIZE;
        let pages: BTreeMap<_, _> = [4, 8].map(|n| (page(n), 1)).into();
        assert_eq!(cost(&pages, &(page(1)..page(3))), 2, "alone");
        assert_eq!(cost(&pages, &(page(5)..page(6))), 0, "it lengthens one");
        assert_eq!(cost(&pages, &(page(5)..page(8))), -2, "it joins two");
    }
}
