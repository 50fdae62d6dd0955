//! How faults arrive here, as the runtime has found out by trying.

use crate::finding::Finding;
use softfault::{Delivery, DeliveryReport, Runtime};

pub(crate) fn look() -> Vec<Finding> {
    match Runtime::new() {
        Ok(runtime) => judge(runtime.delivery()),
        Err(e) => vec![no_runtime(&e.to_string())],
    }
}

/// Says that there is no runtime at all.
fn no_runtime(why: &str) -> Finding {
    Finding::problem(format!("no runtime can be made: {why}"), "what is said there; see the limits below")
}

fn judge(report: &DeliveryReport) -> Vec<Finding> {
    let mut findings = Vec::new();
    let why = |mode| report.finding(mode).map(|f| f.why.clone()).unwrap_or_default();
    findings.push(match report.chosen {
        Delivery::Segv => Finding::problem(
            format!("faults arrive by SIGSEGV, which exposes whole granules: {}", why(Delivery::InThread)),
            "permit userfaultfd(2): Linux 5.14, and a filter of system calls that lets it through",
        ),
        mode => Finding::ok(format!("faults arrive by {mode:?}: {}", why(mode))),
    });
    findings.push(match report.kernel_access {
        Some(mode) => Finding::ok(format!("system calls on arenas are served by {mode:?}: {}", why(mode))),
        None => Finding::note(
            format!("no arena can have kernel_access: {}", why(Delivery::Monitor)),
            "give the program CAP_SYS_PTRACE, or: sysctl -w vm.unprivileged_userfaultfd=1; or pin what calls are given",
        ),
    });
    findings
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;
    use softfault::delivery::Finding as Mode;

    fn report(in_thread: Result<(), &str>, monitor: Result<(), &str>) -> DeliveryReport {
        let mode =
            |mode, is: Result<(), &str>| Mode { mode, available: is.is_ok(), why: is.err().unwrap_or("opens").into() };
        let chosen = if in_thread.is_ok() { Delivery::InThread } else { Delivery::Segv };
        let kernel_access = monitor.is_ok().then_some(Delivery::Monitor);
        let findings = vec![mode(Delivery::InThread, in_thread), mode(Delivery::Monitor, monitor)];
        DeliveryReport { findings, chosen, kernel_access }
    }

    #[test]
    fn each_lack_is_named_with_its_reason_and_its_mend() {
        let found = judge(&report(Ok(()), Ok(())));
        assert!(found.iter().all(|f| f.level == Level::Ok), "{found:?}");
        let found = judge(&report(Err("no such system call here"), Err("EPERM")));
        assert_eq!(found.iter().map(|f| f.level).collect::<Vec<_>>(), [Level::Problem, Level::Note]);
        assert!(found[0].says.contains("no such system call here") && found[1].says.contains("EPERM"), "{found:?}");
        assert!(found[1].mend.as_ref().is_some_and(|m| m.contains("vm.unprivileged_userfaultfd=1")), "{found:?}");
        assert_eq!(no_runtime("RLIMIT_AS").level, Level::Problem);
    }
}
