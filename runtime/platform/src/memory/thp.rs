//! Where the kernel puts huge pages into a memfd though small ones are written: fills ask for small ones first. Linux:
//! `shmem_huge_global_enabled`.
//!
//! `/sys/kernel/mm/transparent_hugepage/shmem_enabled` decides, for the whole system, what becomes of a hole that is written to.
//! With `always`, `within_size` or `force` a write(2) or sendfile(2) of 4 KiB allocates 2 MiB, of which the cache's limit knows one
//! page; and its first punch splits it, which takes every mapping of the 512 pages away (Linux 6.18: 2,048 KiB allocated, by
//! fallocate(2) too; `advise` and `never`: 4 KiB).
//!
//! A fault is asked another question: never in a mapping that is `MADV_NOHUGEPAGE`. So the alias and the arenas are, but where an
//! object is to have huge pages; and while the system is set like that, a fill faults its pages in through the alias before a
//! descriptor is written to (45 us for 64 KiB, against 23 us without). The setting is read when a region is made, and by the
//! helper threads now and then: in between a change is not seen.
//!
//! # Context: handler, but for what says otherwise

use crate::sys::{Errno, file, mem};
use core::sync::atomic::{AtomicBool, Ordering};

/// Holes that are written to become huge pages.
static IS_FORCED: AtomicBool = AtomicBool::new(false);

/// Reads the system's setting; where there is none to read, what was known stands.
///
/// # Context: control plane, or a helper thread
pub fn look() {
    let Ok(fd) = file::open_rdonly(c"/sys/kernel/mm/transparent_hugepage/shmem_enabled") else { return };
    let mut text = [0u8; 128];
    let read = file::read(fd, &mut text);
    file::close(fd);
    if let Some(text) = read.ok().and_then(|n| text.get(..n)) {
        // Relaxed: a fill that finds it late is one of those before the change.
        IS_FORCED.store(forces(text), Ordering::Relaxed);
    }
}

/// Returns whether fills ask for small pages first.
///
/// # Context: handler
#[must_use]
pub fn is_forced() -> bool {
    IS_FORCED.load(Ordering::Relaxed)
}

/// Returns whether the choice in brackets makes huge pages of what nobody advised. (`advise [always] never`)
fn forces(text: &[u8]) -> bool {
    let chosen = text.iter().position(|b| *b == b'[').and_then(|i| text.get(i + 1..)).unwrap_or(&[]);
    [&b"always]"[..], b"within_size]", b"force]"].iter().any(|name| chosen.starts_with(name))
}

/// Has small pages allocated where holes are about to be filled; what is there stays. If it fails, the fill finds out.
///
/// # Context: handler
///
/// # Safety
/// The range is of the cache's alias, mapped for stores, and the caller's to fill.
#[inline]
pub unsafe fn allocate_small(addr: usize, len_bytes: usize) {
    if is_forced() {
        // SAFETY: the caller's contract; no byte changes, holes become zeros.
        let _ = unsafe { mem::madvise(addr, len_bytes, mem::MADV_POPULATE_WRITE) };
    }
}

/// Keeps huge pages out of a range, or lets them in again for who asks.
///
/// # Context: control plane
///
/// # Errors
/// The kernel's, but for one that does not know huge pages.
///
/// # Safety
/// The caller owns the range.
pub unsafe fn permit(addr: usize, len_bytes: usize, yes: bool) -> Result<(), Errno> {
    let advice = if yes { mem::MADV_HUGEPAGE } else { mem::MADV_NOHUGEPAGE };
    // SAFETY: the caller's contract; the advice changes no byte.
    match unsafe { mem::madvise(addr, len_bytes, advice) } {
        Err(Errno::EINVAL) => Ok(()),
        r => r,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_in_brackets_counts() {
        for (text, want) in [
            ("[always] within_size advise never deny force\n", true),
            ("always [within_size] advise never deny force\n", true),
            ("always within_size [advise] never deny force\n", false),
            ("always within_size advise [never] deny force\n", false),
            ("always within_size advise never [deny] force\n", false),
            ("always within_size advise never deny [force]\n", true),
            ("", false),
            ("[", false),
            ("always", false),
        ] {
            assert_eq!(forces(text.as_bytes()), want, "{text}");
        }
    }
}
