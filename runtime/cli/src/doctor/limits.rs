//! Limits of the process, and what they must be.

use super::machine::{Machine, Status};
use super::memory;
use crate::finding::Finding;
use crate::units::bytes;

/// Descriptors: those of the runtime, and of files at two each.
const NOFILE: u64 = 1024;
/// Address space: the process's tables and buffers, the stacks of its threads, and a cache's smallest region.
const ADDRESS_SPACE: u64 = 4 << 30;
/// Data in use before the first page: 39 MiB.
const DATA: u64 = 64 << 20;
const CAP_IPC_LOCK: u64 = 1 << 14;

pub(crate) fn look(machine: &Machine, cache: Option<u64>) -> Vec<Finding> {
    let Some(text) = machine.of_process("limits") else {
        return vec![Finding::note("the limits of the process are not known", "mount /proc, or look at ulimit -a")];
    };
    let mut findings = Vec::new();
    let below = |name, needed| soft(&text, name).filter(|soft| *soft < needed);
    if let Some(soft) = below("Max open files", NOFILE) {
        findings.push(Finding::problem(
            format!(
                "RLIMIT_NOFILE is {soft}; a file that is mapped takes two descriptors, an image one for each layer"
            ),
            format!("ulimit -n {NOFILE}, or as many as there are files, twice; LimitNOFILE= of a service"),
        ));
    }
    if let Some(soft) = below("Max address space", u64::MAX) {
        let says = format!("RLIMIT_AS is {}; a quarter of what is left is for tables and cache", bytes(soft));
        let mend = format!("ulimit -v unlimited; {} and the lengths of all arenas at least", bytes(ADDRESS_SPACE));
        findings.push(if soft < ADDRESS_SPACE { Finding::problem(says, mend) } else { Finding::note(says, mend) });
    }
    if let Some(soft) = below("Max data size", DATA) {
        let mend = format!("ulimit -d unlimited, or {} at least", bytes(DATA));
        findings.push(Finding::problem(format!("RLIMIT_DATA is {}", bytes(soft)), mend));
    }
    if let Some(soft) = below("Max file size", u64::MAX) {
        let says = format!(
            "RLIMIT_FSIZE is {}: what lies past it is not written back, nor is a longer swap file made",
            bytes(soft)
        );
        findings.push(Finding::note(says, "ulimit -f unlimited, or as long as the longest file"));
    }
    let caps = machine.of_process("status").and_then(|s| Status(s).mask("CapEff")).unwrap_or(0);
    let cache = cache.unwrap_or_else(|| memory::default_cache(machine));
    if let Some(soft) = below("Max locked memory", cache).filter(|_| caps & CAP_IPC_LOCK == 0) {
        findings.push(Finding::note(
            format!("RLIMIT_MEMLOCK is {}: lock_cache needs {}, and pins what they hold", bytes(soft), bytes(cache)),
            format!("ulimit -l {}, CAP_IPC_LOCK, or LimitMEMLOCK= of a service, if the program locks", cache >> 10),
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("no limit of the process is in the way"));
    }
    findings
}

/// Returns the soft limit of a line; `u64::MAX` for `unlimited`.
fn soft(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|l| l.strip_prefix(name))?;
    match rest.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX),
        number => number.parse().ok(),
    }
}
