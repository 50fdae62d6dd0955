//! The memory that the process may have, against the limit of its cache.

use super::machine::{Machine, Status};
use crate::finding::Finding;
use crate::units::bytes;
use std::path::Path;

/// What bounds the memory of a process.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Bound {
    bytes: u64,
    by: String,
}

/// Returns the limit that a runtime has if nobody gives it one: half of what the process may have.
pub(crate) fn default_cache(machine: &Machine) -> u64 {
    bound(machine).map_or(0, |b| b.bytes / 2)
}

pub(crate) fn group(machine: &Machine, cache: Option<u64>) -> Vec<Finding> {
    let Some(bound) = bound(machine) else {
        return vec![Finding::note(
            "how much memory there is is not known",
            "mount /proc, and give each runtime a limit",
        )];
    };
    let (cache, who) = match cache {
        Some(bytes) => (bytes, "the cache that was asked for has"),
        None => (bound.bytes / 2, "by default the cache has"),
    };
    let (all, by) = (bytes(bound.bytes), &bound.by);
    let says = format!("{who} {} of {all} that {by} permits", bytes(cache));
    let half = format!("RuntimeBuilder::cache_limit of {} or less, or a higher {by}", bytes(bound.bytes / 2));
    let mut findings = vec![if cache >= bound.bytes {
        Finding::problem(format!("{says}: the process is killed or throttled before the runtime reclaims"), half)
    } else if cache > bound.bytes / 4 * 3 {
        Finding::note(format!("{says}: less than a quarter is left for everything else"), half)
    } else {
        Finding::ok(says)
    }];
    let used = own_group(machine).and_then(|(root, group)| machine.number(&format!("{root}{group}/memory.current")));
    if let Some(used) = used.filter(|used| cache < bound.bytes && used.saturating_add(cache) > bound.bytes) {
        findings.push(Finding::note(
            format!("the memory group uses {} already, of {all}: the cache does not fit beside it", bytes(used)),
            "a smaller cache, or a group of its own for the program",
        ));
    }
    findings
}

/// Returns the smallest of the machine's memory and the limits of the groups above the process.
fn bound(machine: &Machine) -> Option<Bound> {
    let info = Status(machine.read("proc/meminfo")?);
    let whole = Bound { bytes: info.number("MemTotal")? << 10, by: "the machine".into() };
    let files = match own_group(machine) {
        Some((root, _)) if root.ends_with("/memory") => ["memory.limit_in_bytes", "memory.soft_limit_in_bytes"],
        _ => ["memory.max", "memory.high"],
    };
    let Some((root, group)) = own_group(machine) else { return Some(whole) };
    let above =
        Path::new(&group).ancestors().map(|g| format!("{root}{}", g.display().to_string().trim_end_matches('/')));
    let limits = above.flat_map(|folder| {
        files.map(|file| {
            let limit = machine.number(&format!("{folder}/{file}"));
            limit.map(|bytes| Bound { bytes, by: format!("/{folder}/{file}") })
        })
    });
    limits.flatten().chain([whole]).min_by_key(|b| b.bytes)
}

/// Returns where the memory groups lie, and which is the process's.
fn own_group(machine: &Machine) -> Option<(&'static str, String)> {
    let groups = machine.of_process("cgroup")?;
    let old = groups.lines().find_map(|l| {
        let (names, path) = l.split_once(':')?.1.split_once(':')?;
        names.split(',').any(|n| n == "memory").then(|| path.to_owned())
    });
    if let Some(path) = old {
        return Some(("sys/fs/cgroup/memory", path));
    }
    groups.lines().find_map(|l| l.strip_prefix("0::")).map(|path| ("sys/fs/cgroup", path.to_owned()))
}
