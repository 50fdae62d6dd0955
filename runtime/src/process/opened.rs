//! Pages of `Segv` arenas that the program has opened by an mprotect(2) of its own.
//!
//! There a page that is not cached is told from one that is by its protection alone, and mprotect(2) asks nobody: below what
//! it opens the kernel puts zeros where nothing is cached. It cannot be prevented. (A hole could be a mapping past the end of
//! a file, which raises SIGBUS whatever its protection; but then every exposure is an mmap(2) instead of an mprotect(2),
//! private copies could not be hidden at all, and stores that an mprotect(2) lets through would still be noted nowhere.) So
//! it is looked for: what the kernel says is open, and no fault of ours has opened, was opened by somebody else.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "closes ranges of arenas")]

use crate::by_std;
use crate::process::registry;
use softfault_mm::extent::Extent;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SIZE, PAGE_SIZE};
use softfault_platform::section::{self, Slot};
use softfault_platform::sys::{mem, thread};
use softfault_platform::vmatree::{self, Trap};
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};

/// Pages that were found so, since the process began.
static FOUND: AtomicU64 = AtomicU64::new(0);

/// Looks for pages that are open though nobody of ours has opened them, closes and counts them; returns how many were found
/// since the process began. What was loaded from them before was zeros.
pub(crate) fn close() -> u64 {
    let arenas = arenas();
    let suspects = if arenas.is_empty() { arenas } else { look(&arenas) };
    if !suspects.is_empty() {
        // What was read there and what is noted are of two moments. Who was hiding a page in between, and had taken its note
        // away, was in a section, and so was who opened one: it has ended both when these have.
        section::synchronize();
        // An arena that is there stays while the registry is locked: its addresses are nobody else's.
        let _registry = registry::lock();
        let arenas = self::arenas();
        let runs = look(&suspects);
        for run in runs.iter().filter(|run| arenas.iter().any(|a| a.start <= run.start && run.end <= a.end)) {
            FOUND.fetch_add((run.len() / PAGE_SIZE) as u64, Ordering::Relaxed);
            // SAFETY: a range of an arena; a touch faults, and is served or refused as the vma says.
            let _ = unsafe { mem::mprotect(run.start, run.len(), mem::PROT_NONE) };
        }
    }
    FOUND.load(Ordering::Relaxed)
}

/// Has stats look no more often than this many times as long as a look takes: it reads what the kernel says of every mapping
/// of the process, which may be megabytes.
const REST: u64 = 50;
/// When stats may look again.
static NEXT_NS: AtomicU64 = AtomicU64::new(0);

/// The same where it is one number of many: what was found, as far as is known, if the last look was a moment ago.
pub(crate) fn close_now_and_then() -> u64 {
    let began_ns = thread::monotonic_ns();
    if began_ns < NEXT_NS.load(Ordering::Relaxed) {
        return FOUND.load(Ordering::Relaxed);
    }
    let found = close();
    let ended_ns = thread::monotonic_ns();
    // Two threads may both look, once.
    NEXT_NS.store(ended_ns + REST * (ended_ns - began_ns), Ordering::Relaxed);
    found
}

fn arenas() -> Vec<Range<usize>> {
    let mut found = Vec::new();
    vmatree::each_arena(Trap::Segv, &mut |base, len| found.push(base..base + len));
    found
}

/// Returns the open pages in `ranges` that no fault has opened.
fn look(ranges: &[Range<usize>]) -> Vec<Range<usize>> {
    let Ok(maps) = by_std::read_to_string("/proc/self/maps") else { return Vec::new() };
    let mut found = Vec::new();
    for open in maps.lines().filter_map(open_range) {
        for range in ranges {
            let (mut at, end) = (open.start.max(range.start), open.end.min(range.end));
            while at < end {
                at = look_at(at, end, &mut found);
            }
        }
    }
    found
}

/// Parses a line of `/proc/self/maps`; `None`: closed to loads and stores.
fn open_range(line: &str) -> Option<Range<usize>> {
    let (range, rest) = line.split_once(' ')?;
    let (start, end) = range.split_once('-')?;
    let number = |s| usize::from_str_radix(s, 16).ok();
    if rest.starts_with("--") { None } else { Some(number(start)?..number(end)?) }
}

/// Looks at the pages from `at` on that lie in one extent and one vma; returns where they end.
fn look_at(at: usize, end: usize, found: &mut Vec<Range<usize>>) -> usize {
    let Ok(slot) = Slot::enter_patiently() else { return end };
    let mut next = ((at / EXTENT_SIZE + 1) * EXTENT_SIZE).min(end);
    // Nothing is allocated in a section: who unmaps waits for it.
    let mut open = [true; EXTENT_PAGES];
    let is_mapped = vmatree::with_vma(&slot, at, |vma| {
        next = next.min(vma.end);
        for (i, page) in (at..next).step_by(PAGE_SIZE).enumerate() {
            open[i] = vma.extent(at).is_none_or(|e| !e.maybe_mapped(Extent::page_index(page)));
        }
    });
    drop(slot);
    if is_mapped.is_none() {
        // No mapping of ours is there: closed, if nobody has opened it. The next page may be one's.
        next = at + PAGE_SIZE;
    }
    for page in (at..next).step_by(PAGE_SIZE).zip(&open).filter(|(_, open)| **open).map(|(page, _)| page) {
        match found.last_mut().filter(|run| run.end == page) {
            Some(run) => run.end = page + PAGE_SIZE,
            None => found.push(page..page + PAGE_SIZE),
        }
    }
    next
}

#[cfg(test)]
mod tests {
    use super::open_range;

    #[test]
    fn closed_ranges_are_none() {
        assert_eq!(open_range("1000-3000 r--s 00000000 00:01 17 /memfd:x"), Some(0x1000..0x3000));
        assert_eq!(open_range("1000-3000 -w-p 00000000 00:00 0"), Some(0x1000..0x3000));
        assert_eq!(open_range("1000-3000 ---s 00000000 00:01 17 /memfd:x"), None);
        assert_eq!(open_range("nonsense"), None);
    }
}
