//! How much memory the process may use: the machine's, or its memory cgroup's.

use crate::error::{Error, Result};
use crate::lease::Table;
use softfault_mm::lru::Lruvec;
use softfault_mm::page::{EXTENT_SIZE, PAGE_SHIFT};
use softfault_mm::sync::AtomicU64;
use softfault_platform::sys::file;
use softfault_platform::vmatree;
use std::fs;
use std::path::Path;

/// The smallest limit of a cache, or of an object with one of its own, in pages: what one thread may need at once.
pub(crate) const LIMIT_MIN_PAGES: u64 = 64;

/// Returns a limit in pages.
pub(crate) fn limit_pages(bytes: u64) -> u64 {
    (bytes >> PAGE_SHIFT).max(LIMIT_MIN_PAGES)
}

/// Returns the smaller of the machine's memory and the limits of the process's memory cgroup and those above it.
pub(crate) fn total_bytes() -> u64 {
    cgroup_limit_bytes().map_or_else(machine_bytes, |limit| limit.min(machine_bytes()))
}

/// Returns the bytes that the process has locked in memory; 0 where `/proc` does not say.
pub(crate) fn locked_bytes() -> u64 {
    status_bytes("VmLck:")
}

/// How many more bytes the process may map, and which limit says so.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Room {
    left: u64,
    what: &'static str,
    limit: u64,
}

/// Returns what `RLIMIT_AS` leaves, and, where what is mapped is locked (mlockall(2), `MCL_FUTURE`) and the process may not
/// lock what it likes, `RLIMIT_MEMLOCK`; the smaller one. `None`: neither limits anything.
fn room() -> Option<Room> {
    let room = |what, limit: u64, used: u64| {
        (limit != u64::MAX).then_some(Room { left: limit.saturating_sub(used), what, limit })
    };
    let space = room("RLIMIT_AS", file::rlimit_as(), status_bytes("VmSize:"));
    let is_locked = file::rlimit_memlock() != u64::MAX && is_locked_when_mapped() && !may_lock_everything();
    let what = "RLIMIT_MEMLOCK, with everything locked that is mapped (mlockall),";
    let locked = if is_locked { room(what, file::rlimit_memlock(), locked_bytes()) } else { None };
    [space, locked].into_iter().flatten().min_by_key(|r| r.left)
}

/// Refuses, before anything is made, what needs `bytes` of address space where there are fewer.
pub(crate) fn check_room(op: &'static str, bytes: u64) -> Result<()> {
    match room() {
        Some(Room { left, what, limit }) if left < bytes => {
            Err(Error::Limit { op, what, limit, needed: limit.saturating_add(bytes - left) })
        }
        _ => Ok(()),
    }
}

/// Returns about what a runtime, with queues for `limit_pages`, and a small object need; `others`: there are runtimes already.
pub(crate) fn runtime_bytes(limit_pages: u64, fillers: usize, others: bool) -> u64 {
    /// The standard library's, and its guard; of two threads of the runtime's own, and of fillers and others of the process.
    const THREAD_BYTES: u64 = (2 << 20) + (16 << 10);
    /// The walk stacks, the buffers, an object of a page and its arena, and what malloc wants for all that.
    const REST_BYTES: u64 = 32 << 20;
    let queues = 3 * 8 * Lruvec::len_for(limit_pages);
    let own = queues + 2 * THREAD_BYTES;
    if others {
        own
    } else {
        own + vmatree::table_bytes_min() as u64 + (fillers as u64 + 2) * THREAD_BYTES + REST_BYTES
    }
}

/// Returns whether what is mapped now counts as locked. Other threads that map or lock meanwhile may deceive it; then tables
/// are made for a smaller limit than there is, or none can be had and the error says why.
pub(crate) fn is_locked_when_mapped() -> bool {
    let before = locked_bytes();
    let probe = Table::<AtomicU64>::closed(EXTENT_SIZE / size_of::<AtomicU64>());
    probe.is_err() || locked_bytes() > before
}

/// Returns whether the process has `CAP_IPC_LOCK`.
fn may_lock_everything() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let caps = status.lines().find_map(|l| u64::from_str_radix(l.strip_prefix("CapEff:")?.trim(), 16).ok());
    caps.is_some_and(|caps| caps & (1 << CAP_IPC_LOCK) != 0)
}

/// Returns the part of what is left that one kind of table may take. All of them together leave three quarters to the program:
/// a sixteenth for the process's, one for the queues of a runtime, an eighth for a region of the cache.
pub(crate) fn address_space_share(parts: u64) -> usize {
    room().map_or(usize::MAX, |room| usize::try_from(room.left / parts).unwrap_or(usize::MAX))
}

/// Returns a number of bytes that `/proc/self/status` says; 0 where it does not.
fn status_bytes(name: &str) -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0, |kib: u64| kib << 10)
}

/// Returns the default cache limit: half of [`total_bytes`].
pub(crate) fn default_limit_bytes() -> u64 {
    total_bytes() / 2
}

/// Returns the bytes of the process's page tables; 0 where `/proc` does not say.
pub(crate) fn page_table_bytes() -> u64 {
    status_bytes("VmPTE:")
}

fn machine_bytes() -> u64 {
    let info = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    total.map_or(1 << 30, |kib: u64| kib << 10)
}

/// Reads `memory.max` (version 2) or `memory.limit_in_bytes` (version 1) of every group from the process's own upwards.
fn cgroup_limit_bytes() -> Option<u64> {
    let groups = fs::read_to_string("/proc/self/cgroup").ok()?;
    let limit = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.is_empty() {
            smallest(Path::new("/sys/fs/cgroup"), path, "memory.max")
        } else if controllers.split(',').any(|c| c == "memory") {
            smallest(Path::new("/sys/fs/cgroup/memory"), path, "memory.limit_in_bytes")
        } else {
            None
        }
    };
    groups.lines().filter_map(limit).min()
}

fn smallest(mount: &Path, path: &str, file: &str) -> Option<u64> {
    let own = mount.join(path.trim_start_matches('/'));
    let up = own.ancestors().take_while(|dir| dir.starts_with(mount));
    up.filter_map(|dir| fs::read_to_string(dir.join(file)).ok()?.trim().parse::<u64>().ok()).min()
}
