//! How much memory the process may use: the machine's, or its memory cgroup's.
//!
//! # Context: control plane

use crate::by_std;
use crate::error::{Error, Result};
use crate::lease::Table;
use softfault_mm::lru::Lruvec;
use softfault_mm::page::{EXTENT_SIZE, PAGE_SHIFT};
use softfault_mm::sync::AtomicU64;
use softfault_platform::sys::file;
use softfault_platform::vmatree;
use std::path::Path;

/// The smallest limit of a cache, or of an object with one of its own, in pages: what one thread may need at once.
pub(crate) const LIMIT_MIN_PAGES: u64 = 64;

/// Returns a limit in pages.
pub(crate) fn limit_pages(bytes: u64) -> u64 {
    (bytes >> PAGE_SHIFT).max(LIMIT_MIN_PAGES)
}

/// Returns the smaller of the machine's memory and the limits of the process's memory cgroup and those above it.
pub(crate) fn total_bytes() -> u64 {
    let groups = by_std::read_to_string("/proc/self/cgroup").unwrap_or_default();
    total_bytes_of(Path::new("/sys/fs/cgroup"), &groups, machine_bytes())
}

fn total_bytes_of(root: &Path, groups: &str, machine: u64) -> u64 {
    group_limit_bytes(root, groups).map_or(machine, |limit| limit.min(machine))
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

/// Refuses, before it is made, a file of `bytes` that the process may not make: trying would be `SIGXFSZ`.
pub(crate) fn check_file_size(op: &'static str, what: &'static str, bytes: u64) -> Result<()> {
    let limit = file::rlimit_fsize();
    if limit < bytes { Err(Error::Limit { op, what, limit, needed: bytes }) } else { Ok(()) }
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
pub(crate) fn may_lock_everything() -> bool {
    const CAP_IPC_LOCK: u32 = 14;
    let status = by_std::read_to_string("/proc/self/status").unwrap_or_default();
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
    let status = by_std::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix(name)?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0, |kib: u64| kib << 10)
}

/// Returns the default cache limit: half of [`total_bytes`].
pub(crate) fn default_limit_bytes() -> u64 {
    half(total_bytes())
}

/// The other half is the program's, for everything else.
fn half(total_bytes: u64) -> u64 {
    total_bytes / 2
}

/// Returns the bytes of the process's page tables; 0 where `/proc` does not say.
pub(crate) fn page_table_bytes() -> u64 {
    status_bytes("VmPTE:")
}

/// Returns whether the kernel can swap memory of this process out: the machine has swap, and no group of the process's is
/// forbidden to use it (`memory.swap.max`, version 2; version 1 cannot forbid it).
pub(crate) fn can_swap() -> bool {
    softfault_platform::sys::mlock::swap_bytes() > 0 && swap_limit_bytes() != Some(0)
}

fn swap_limit_bytes() -> Option<u64> {
    let groups = by_std::read_to_string("/proc/self/cgroup").ok()?;
    let own = groups.lines().find_map(|line| line.strip_prefix("0::"))?;
    smallest(Path::new("/sys/fs/cgroup"), own, &["memory.swap.max"])
}

fn machine_bytes() -> u64 {
    let info = by_std::read_to_string("/proc/meminfo").unwrap_or_default();
    let total = info.lines().find_map(|l| l.strip_prefix("MemTotal:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    total.map_or(1 << 30, |kib: u64| kib << 10)
}

/// Reads the limits of every group from those that `groups` names (`/proc/self/cgroup`) upwards, below `root`: `memory.max` and
/// `memory.high` (version 2), `memory.limit_in_bytes` (version 1). Above `memory.high` the kernel lets nobody die and throttles
/// everybody, for as long as that takes: a cache that goes beyond is slower than a smaller one.
fn group_limit_bytes(root: &Path, groups: &str) -> Option<u64> {
    let limit = |line: &str| {
        let mut parts = line.splitn(3, ':');
        let (_, controllers, path) = (parts.next()?, parts.next()?, parts.next()?);
        if controllers.is_empty() {
            smallest(root, path, &["memory.max", "memory.high"])
        } else if controllers.split(',').any(|c| c == "memory") {
            smallest(&root.join("memory"), path, &["memory.limit_in_bytes"])
        } else {
            None
        }
    };
    groups.lines().filter_map(limit).min()
}

fn smallest(mount: &Path, path: &str, files: &[&str]) -> Option<u64> {
    let own = mount.join(path.trim_start_matches('/'));
    let up = own.ancestors().take_while(|dir| dir.starts_with(mount));
    let limit = |path: &Path| by_std::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    up.flat_map(|dir| files.iter().filter_map(move |file| limit(&dir.join(file)))).min()
}

#[cfg(test)]
mod tests {
    use super::{group_limit_bytes, half, total_bytes_of};
    use std::fs;
    use std::path::PathBuf;

    /// Files of groups, as the kernel shows them.
    struct Groups(PathBuf);

    impl Groups {
        fn new(name: &str, files: &[(&str, &str)]) -> Self {
            let root = std::env::temp_dir().join(format!("softfault-groups-{name}-{}", std::process::id()));
            for (path, text) in files {
                let path = root.join(path);
                fs::create_dir_all(path.parent().expect("a folder")).expect("a folder");
                fs::write(path, format!("{text}\n")).expect("a file");
            }
            Self(root)
        }
    }

    impl Drop for Groups {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    #[test]
    fn the_smallest_limit_of_any_group_above_holds() {
        let g = Groups::new(
            "max",
            &[
                ("a/memory.max", "max"),
                ("a/b/memory.max", "8000000"),
                ("a/b/c/memory.max", "max"),
                ("other/memory.max", "1"),
            ],
        );
        assert_eq!(group_limit_bytes(&g.0, "0::/a/b/c\n"), Some(8_000_000));
        assert_eq!(group_limit_bytes(&g.0, "0::/a\n"), None);
    }

    #[test]
    fn where_the_kernel_begins_to_throttle_is_a_limit() {
        let g = Groups::new(
            "high",
            &[("a/memory.high", "5000000"), ("a/b/memory.max", "9000000"), ("a/b/memory.high", "max")],
        );
        assert_eq!(group_limit_bytes(&g.0, "0::/a/b\n"), Some(5_000_000));
    }

    #[test]
    fn half_of_the_smaller_one_is_the_caches() {
        let g = Groups::new("half", &[("a/memory.max", "8000000"), ("a/b/memory.high", "5000000")]);
        let half_of = |groups: &str, machine| half(total_bytes_of(&g.0, groups, machine));
        assert_eq!(half_of("0::/a\n", 1 << 40), 4_000_000, "of memory.max");
        assert_eq!(half_of("0::/a/b\n", 1 << 40), 2_500_000, "of memory.high");
        assert_eq!(half_of("0::/a\n", 6_000_000), 3_000_000, "of the machine's, where that is less");
        assert_eq!(half_of("0::/other\n", 6_000_000), 3_000_000, "of the machine's, without a group");
    }

    #[test]
    fn version_1_is_read_where_its_controller_is() {
        let g = Groups::new("v1", &[("memory/a/memory.limit_in_bytes", "7000000"), ("a/memory.max", "1")]);
        assert_eq!(group_limit_bytes(&g.0, "5:cpu,cpuacct:/x\n4:memory:/a\n"), Some(7_000_000));
    }
}
