//! Threads that could not take a fault: the kernel kills a process whose thread faults while it blocks or ignores our signals.

use super::machine::{Machine, Status};
use crate::finding::Finding;

/// Our signals, and their bits in a mask.
const OURS: [(&str, u64); 2] = [("SIGBUS", 1 << 6), ("SIGSEGV", 1 << 10)];

pub(crate) fn look(machine: &Machine) -> Vec<Finding> {
    let threads = machine.threads();
    if threads.is_empty() {
        let mend = "is it running, and may this user look at /proc/PID?";
        return vec![Finding::problem(format!("the threads of {} cannot be looked at", machine.who()), mend)];
    }
    let mut findings: Vec<_> = threads.iter().filter_map(blocked).collect();
    // Dispositions are the process's: every thread says the same.
    findings.extend(threads.first().and_then(ignored));
    if findings.is_empty() {
        let threads = crate::units::count(threads.len() as u64, "thread");
        findings.push(Finding::ok(format!("SIGBUS and SIGSEGV reach {}, {threads}", machine.who())));
    }
    findings
}

fn named(mask: Option<u64>) -> Option<String> {
    let hit: Vec<_> = OURS.iter().filter(|(_, bit)| mask.unwrap_or(0) & bit != 0).map(|(name, _)| *name).collect();
    (!hit.is_empty()).then(|| hit.join(" and "))
}

fn blocked(status: &Status) -> Option<Finding> {
    let signals = named(status.mask("SigBlk"))?;
    let (pid, name) = (status.number("Pid").unwrap_or(0), status.field("Name").unwrap_or_default());
    Some(Finding::problem(
        format!("thread {pid} ({}) blocks {signals}: a fault of it kills the process", name.escape_debug()),
        "pthread_sigmask(3) with SIG_UNBLOCK in that thread, or in who started it; Runtime::audit_threads names them too",
    ))
}

fn ignored(status: &Status) -> Option<Finding> {
    let signals = named(status.mask("SigIgn"))?;
    Some(Finding::problem(
        format!("the process ignores {signals}: a fault kills it unless the runtime's handlers are installed again"),
        "signal(2) with SIG_DFL before the runtime is made, or Runtime::reinstall_handlers",
    ))
}
