//! What a process has taken in memory, before and after it maps and caches something.
//!
//! Counted from outside: anonymous memory by the kernel's walk of the page tables (`/proc/self/smaps_rollup`), which the
//! cached pages, being a memfd's, are not part of; page tables by `VmPTE`.

use crate::subject::Subject;
use softfault_benches::area::{ascending, check_sum};
use softfault_benches::{Error, MIB, PAGE, Result};

/// Counts, in a fresh process; returns the three figures.
pub(crate) fn count(len_bytes: usize) -> Result<String> {
    let subject = Subject::unbounded()?;
    let start = Taken::now()?;
    let arena = subject.patterned(len_bytes)?;
    let mapped = Taken::now()?;
    arena.fault_in()?;
    // Touched by nobody else, and mapped by 4 KiB pages or by whatever the kernel makes of a native extent.
    let order = ascending(len_bytes / PAGE);
    check_sum(arena.view().view().sum(&order), &order)?;
    let cached = Taken::now()?;
    let per_gib = |bytes: i64| bytes as f64 / len_bytes as f64 * (1024 * MIB) as f64;
    Ok(format!(
        "{} {} {}",
        per_gib(mapped.anonymous_bytes - start.anonymous_bytes),
        per_gib(cached.anonymous_bytes - mapped.anonymous_bytes),
        per_gib(cached.page_table_bytes - start.page_table_bytes)
    ))
}

/// What the process has taken so far.
#[derive(Clone, Copy, Debug)]
struct Taken {
    anonymous_bytes: i64,
    page_table_bytes: i64,
}

impl Taken {
    fn now() -> Result<Self> {
        Ok(Self {
            anonymous_bytes: kib("/proc/self/smaps_rollup", "Anonymous:")? * 1024,
            page_table_bytes: kib("/proc/self/status", "VmPTE:")? * 1024,
        })
    }
}

fn kib(file: &str, key: &str) -> Result<i64> {
    let text = std::fs::read_to_string(file).unwrap_or_default();
    let line = text.lines().find_map(|l| l.strip_prefix(key));
    let number = line.and_then(|l| l.trim().trim_end_matches("kB").trim().parse().ok());
    number.ok_or_else(|| Error::Absent(format!("{file} has no {key}")))
}
