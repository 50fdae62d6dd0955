//! What the kernel has by its version, its settings, and the device of userfaultfd.

use super::machine::{Machine, Status};
use crate::finding::Finding;
use std::fs::File;

/// From which version on there is what; without the first, the runtime has SIGSEGV alone.
const HAS: [((u32, u32), &str); 5] = [
    ((5, 14), "faults in the faulting thread by userfaultfd"),
    ((6, 1), "huge pages made of cached ones (MADV_COLLAPSE)"),
    ((6, 6), "a monitor, and direct I/O on tmpfs"),
    ((6, 7), "first stores noted without a fault; before it each first store to a shared page is one"),
    ((6, 9), "userfaultfds that survive a program which closes descriptors it does not know"),
];
const CAP_SYS_PTRACE: u64 = 1 << 19;
/// What Linux has by default, and about what two arenas of a thousand pieces leave room for.
const MAP_COUNT: u64 = 65_530;

pub(crate) fn version(machine: &Machine) -> Vec<Finding> {
    let release = machine.read("proc/sys/kernel/osrelease").unwrap_or_default();
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map_while(|n| n.parse().ok());
    let (Some(major), Some(minor)) = (numbers.next(), numbers.next()) else {
        let mend = "mount /proc, or look at uname -r: Linux 5.14 is needed, 6.9 has everything";
        return vec![Finding::note("the kernel's version is not known", mend)];
    };
    let mut findings: Vec<_> = HAS
        .iter()
        .filter(|(since, _)| (major, minor) < *since)
        .map(|(since, what)| {
            let says = format!("Linux {release} lacks {what}");
            let mend = format!("Linux {}.{}", since.0, since.1);
            if *since == HAS[0].0 { Finding::problem(says, mend) } else { Finding::note(says, mend) }
        })
        .collect();
    if findings.is_empty() {
        findings.push(Finding::ok(format!("Linux {release} has everything that the runtime uses")));
    }
    findings
}

pub(crate) fn sysctls(machine: &Machine) -> Vec<Finding> {
    let mut findings = Vec::new();
    let caps = machine.of_process("status").and_then(|s| Status(s).mask("CapEff")).unwrap_or(0);
    match machine.number("proc/sys/vm/unprivileged_userfaultfd") {
        Some(0) if caps & CAP_SYS_PTRACE == 0 => findings.push(Finding::note(
            "vm.unprivileged_userfaultfd is 0 and there is no CAP_SYS_PTRACE: arenas cannot have kernel_access",
            "sysctl -w vm.unprivileged_userfaultfd=1, or setcap cap_sys_ptrace+ep PROGRAM",
        )),
        Some(_) => {}
        None => findings.push(Finding::problem(
            "there is no vm.unprivileged_userfaultfd: the kernel was built without userfaultfd, or hides /proc/sys",
            "a kernel with CONFIG_USERFAULTFD=y; until then faults arrive by SIGSEGV",
        )),
    }
    if let Some(count) = machine.number("proc/sys/vm/max_map_count").filter(|n| *n < MAP_COUNT) {
        findings.push(Finding::problem(
            format!(
                "vm.max_map_count is {count}: the kernel's mappings run out, and extents are taken back for others"
            ),
            format!("sysctl -w vm.max_map_count={MAP_COUNT}"),
        ));
    }
    if machine.number("proc/sys/vm/overcommit_memory") == Some(2) {
        findings.push(Finding::note(
            "vm.overcommit_memory is 2: what is in use counts against the commit limit, 39 MiB before the first page",
            "sysctl -w vm.overcommit_memory=0, or let vm.overcommit_ratio have room for the cache",
        ));
    }
    let shmem = machine.read("sys/kernel/mm/transparent_hugepage/shmem_enabled").unwrap_or_default();
    let chosen = shmem.split('[').nth(1).and_then(|s| s.split(']').next()).unwrap_or_default();
    if ["always", "within_size", "force"].contains(&chosen) {
        findings.push(Finding::note(
            format!("shmem_enabled is {chosen}: the kernel makes 2 MiB of 4 KiB, and the runtime fills by small pages itself"),
            "echo advise > /sys/kernel/mm/transparent_hugepage/shmem_enabled",
        ));
    }
    if findings.is_empty() {
        findings.push(Finding::ok("the settings of the kernel are as they should be"));
    }
    findings
}

/// The runtime opens userfaultfds by the system call; the device is for other programs, and for people who grant it.
pub(crate) fn device(machine: &Machine) -> Vec<Finding> {
    let path = machine.path("dev/userfaultfd");
    vec![match File::options().read(true).write(true).open(&path) {
        Ok(_) => Finding::ok("/dev/userfaultfd opens; the runtime uses the system call, which it does not replace"),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Finding::note(
            "there is no /dev/userfaultfd; the runtime needs none, a monitor of another program may",
            "a kernel from 6.1 on with CONFIG_USERFAULTFD=y, and a container that is given the device",
        ),
        Err(e) => Finding::note(
            format!("/dev/userfaultfd does not open ({e}); the runtime needs none, a monitor of another program may"),
            "chmod or setfacl the device for the program's user",
        ),
    }]
}
