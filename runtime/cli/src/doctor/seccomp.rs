//! Whether a filter of system calls is on.

use super::machine::{Machine, Status};
use crate::finding::Finding;

pub(crate) fn look(machine: &Machine) -> Vec<Finding> {
    let status = Status(machine.of_process("status").unwrap_or_default());
    let filters = status.number("Seccomp_filters");
    vec![match status.number("Seccomp") {
        Some(0) => Finding::ok(format!("{} has no filter of system calls", machine.who())),
        Some(1) => Finding::problem(
            format!("{} is in seccomp's strict mode, which permits read, write and exit", machine.who()),
            "start it without, or with a filter",
        ),
        Some(_) => Finding::note(
            format!(
                "{} has {} of system calls",
                machine.who(),
                filters.map_or_else(|| "a filter".into(), |n| crate::units::count(n, "filter"))
            ),
            "let it permit the calls that the README lists under `System calls`; where userfaultfd kills, build arenas with Delivery::Segv",
        ),
        None => Finding::note("whether there is a filter of system calls is not known", "mount /proc"),
    }]
}
