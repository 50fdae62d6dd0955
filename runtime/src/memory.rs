//! How much memory the process may use: the machine's, or its memory cgroup's.

use softfault_mm::page::PAGE_SHIFT;
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

/// Returns the default cache limit: half of [`total_bytes`].
pub(crate) fn default_limit_bytes() -> u64 {
    total_bytes() / 2
}

/// Returns the bytes of the process's page tables; 0 where `/proc` does not say.
pub(crate) fn page_table_bytes() -> u64 {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let kib = status.lines().find_map(|l| l.strip_prefix("VmPTE:")?.trim().strip_suffix("kB")?.trim().parse().ok());
    kib.map_or(0, |kib: u64| kib << 10)
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
