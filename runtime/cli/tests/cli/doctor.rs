//! `softfault doctor`: each fault, injected, is found and has its mend.

use crate::support::{Run, answer, golden, softfault};
use serde_json::Value;
use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use tempfile::TempDir;

/// A machine on which nothing is wrong, in a folder.
fn healthy() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let limits = "Limit                     Soft Limit           Hard Limit           Units     \n\
        Max file size             unlimited            unlimited            bytes     \n\
        Max data size             unlimited            unlimited            bytes     \n\
        Max open files            1048576              1048576              files     \n\
        Max locked memory         unlimited            unlimited            bytes     \n\
        Max address space         unlimited            unlimited            bytes     \n";
    let files = [
        ("proc/sys/kernel/osrelease", "6.18.2-generic\n"),
        ("proc/sys/vm/unprivileged_userfaultfd", "1\n"),
        ("proc/sys/vm/max_map_count", "65530\n"),
        ("proc/sys/vm/overcommit_memory", "0\n"),
        ("sys/kernel/mm/transparent_hugepage/shmem_enabled", "always within_size advise [never] deny force\n"),
        ("dev/userfaultfd", ""),
        ("proc/self/status", STATUS),
        ("proc/self/task/100/status", STATUS),
        ("proc/self/limits", limits),
        ("proc/meminfo", "MemTotal:       16777216 kB\nMemFree:        1 kB\n"),
        ("proc/self/cgroup", "0::/app/worker\n"),
        ("sys/fs/cgroup/app/worker/memory.max", "max\n"),
        ("sys/fs/cgroup/app/worker/memory.current", "1048576\n"),
        ("sys/fs/cgroup/app/memory.max", "8589934592\n"),
        ("proc/swaps", "Filename Type Size Used Priority\n/swapfile file 1 0 -2\n"),
        ("proc/self/mountinfo", "1 1 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /mnt/ram rw - tmpfs none rw\n"),
    ];
    for (name, text) in files {
        set(folder.path(), name, text);
    }
    folder
}

const STATUS: &str = "Name:\tworker\nPid:\t100\nSigBlk:\t0000000000000000\nSigIgn:\t0000000000001000\n\
    CapEff:\t0000000000000000\nSeccomp:\t0\nSeccomp_filters:\t0\n";

fn set(root: &Path, name: &str, text: &str) {
    let path = root.join(name);
    fs::create_dir_all(path.parent().expect("a folder")).expect("folders");
    fs::write(path, text).expect("write");
}

fn doctor(root: &Path, args: &[&str]) -> Run {
    let root = root.to_str().expect("text");
    softfault(Path::new("/"), &[&["doctor", "--root", root], args].concat())
}

/// What reads files alone, so that it is the same everywhere.
const FILES: [&str; 14] = [
    "--only", "kernel", "--only", "sysctls", "--only", "device", "--only", "seccomp", "--only", "limits", "--only",
    "memory", "--only", "swap",
];

/// Returns the findings of a level.
fn found(run: &Run, level: &str) -> Vec<String> {
    let said = answer(run);
    let all = said["findings"].as_array().expect("findings");
    let of = all.iter().filter(|f| f["level"] == level);
    of.map(|f| format!("{}: {}", f["check"].as_str().expect("text"), f["says"].as_str().expect("text"))).collect()
}

/// Injects a fault, and expects one finding more than on a healthy machine.
fn injected(check: &str, file: &str, text: Option<&str>, level: &str, says: &str) {
    injected_with(check, file, text, level, says, &[]);
}

fn injected_with(check: &str, file: &str, text: Option<&str>, level: &str, says: &str, more: &[&str]) {
    let folder = healthy();
    let args = [&["--json", "--only", check], more].concat();
    assert_eq!(found(&doctor(folder.path(), &args), "problem"), [""; 0], "{check}: healthy");
    assert_eq!(found(&doctor(folder.path(), &args), "note"), [""; 0], "{check}: healthy");
    match text {
        Some(text) => set(folder.path(), file, text),
        None => fs::remove_file(folder.path().join(file)).expect("remove"),
    }
    let run = doctor(folder.path(), &args);
    let list = found(&run, level);
    assert!(list.len() == 1 && list[0].contains(says), "{file} = {text:?}: {}", run.out);
    assert_eq!(run.code, Some(if level == "problem" { 6 } else { 0 }), "{file}");
    let said = answer(&run);
    let unmended = said["findings"].as_array().expect("findings").iter().filter(|f| f["level"] != "ok");
    assert!(unmended.filter(|f| f["mend"] == Value::Null).count() == 0, "{file}: no mend: {said}");
}

#[test]
fn a_healthy_machine_has_no_findings() {
    let folder = healthy();
    let run = doctor(folder.path(), &[&FILES[..], &["--only", "signals"]].concat());
    assert_eq!(run.code, Some(0), "{}", run.out);
    golden("doctor-healthy.txt", &run.out);
}

#[test]
fn what_is_found_is_said_with_its_mend() {
    let folder = healthy();
    set(folder.path(), "proc/sys/kernel/osrelease", "5.10.0\n");
    set(folder.path(), "proc/sys/vm/unprivileged_userfaultfd", "0\n");
    set(folder.path(), "proc/self/limits", "Max open files 256 4096 files\nMax locked memory 65536 65536 bytes\n");
    fs::remove_file(folder.path().join("proc/swaps")).expect("remove");
    let run = doctor(folder.path(), &[&FILES[..], &["--cache", "8G", "--swap", "/mnt/ram/swap"]].concat());
    assert_eq!(run.code, Some(6), "{}", run.out);
    golden("doctor-ill.txt", &run.out);
}

#[test]
fn faults_of_the_kernel_are_found() {
    let release = "proc/sys/kernel/osrelease";
    injected("kernel", release, Some("6.8.1\n"), "note", "6.8.1 lacks userfaultfds that survive");
    injected("kernel", release, None, "note", "not known");
    injected("sysctls", "proc/sys/vm/unprivileged_userfaultfd", Some("0\n"), "note", "no CAP_SYS_PTRACE");
    injected("sysctls", "proc/sys/vm/unprivileged_userfaultfd", None, "problem", "without userfaultfd");
    injected("sysctls", "proc/sys/vm/max_map_count", Some("1000\n"), "problem", "max_map_count is 1000");
    injected("sysctls", "proc/sys/vm/overcommit_memory", Some("2\n"), "note", "commit limit");
    let shmem = "sys/kernel/mm/transparent_hugepage/shmem_enabled";
    injected(
        "sysctls",
        shmem,
        Some("[always] within_size advise never deny force\n"),
        "note",
        "shmem_enabled is always",
    );
    injected("device", "dev/userfaultfd", None, "note", "there is no /dev/userfaultfd");
}

#[test]
fn a_device_that_does_not_open_is_found() {
    let folder = healthy();
    fs::remove_file(folder.path().join("dev/userfaultfd")).expect("remove");
    fs::create_dir(folder.path().join("dev/userfaultfd")).expect("a folder does not open to be written");
    let list = found(&doctor(folder.path(), &["--json", "--only", "device"]), "note");
    assert!(list.len() == 1 && list[0].contains("does not open"), "{list:?}");
}

#[test]
fn a_capability_makes_up_for_a_setting() {
    let folder = healthy();
    set(folder.path(), "proc/sys/vm/unprivileged_userfaultfd", "0\n");
    set(folder.path(), "proc/self/status", &STATUS.replace("CapEff:\t0000000000000000", "CapEff:\t0000000000080000"));
    assert_eq!(found(&doctor(folder.path(), &["--json", "--only", "sysctls"]), "note"), [""; 0]);
}

#[test]
fn filters_and_limits_are_found() {
    let filtered = STATUS.replace("Seccomp:\t0\nSeccomp_filters:\t0", "Seccomp:\t2\nSeccomp_filters:\t3");
    injected("seccomp", "proc/self/status", Some(&filtered), "note", "has 3 filters");
    injected("seccomp", "proc/self/status", Some("Seccomp:\t1\n"), "problem", "strict");
    injected("seccomp", "proc/self/status", None, "note", "not known");
    let limits = |text| injected("limits", "proc/self/limits", Some(text), "problem", "RLIMIT_");
    limits("Max open files 1023 4096 files\n");
    limits("Max address space 1073741824 unlimited bytes\n");
    limits("Max data size 1048576 unlimited bytes\n");
    let note = |text, says| injected("limits", "proc/self/limits", Some(text), "note", says);
    note("Max address space 1099511627776 unlimited bytes\n", "RLIMIT_AS is 1.0 TiB");
    note("Max file size 1048576 unlimited bytes\n", "RLIMIT_FSIZE is 1.0 MiB");
    note("Max locked memory 65536 65536 bytes\n", "lock_cache needs 4.0 GiB");
    injected("limits", "proc/self/limits", None, "note", "not known");
}

#[test]
fn the_memory_group_is_held_against_the_cache() {
    let group = "sys/fs/cgroup/app/worker/memory.high";
    injected_with(
        "memory",
        group,
        Some("1073741824\n"),
        "problem",
        "/sys/fs/cgroup/app/worker/memory.high",
        &["--cache", "2G"],
    );
    injected_with("memory", group, Some("1073741824\n"), "note", "less than a quarter", &["--cache", "900M"]);
    let used = "sys/fs/cgroup/app/worker/memory.current";
    injected("memory", used, Some("6442450944\n"), "note", "uses 6.0 GiB already");
    injected("memory", "proc/meminfo", None, "note", "not known");
    // The first hierarchy of groups.
    let folder = healthy();
    set(folder.path(), "proc/self/cgroup", "4:cpu,cpuacct:/x\n3:memory:/old\n0::/app/worker\n");
    set(folder.path(), "sys/fs/cgroup/memory/old/memory.limit_in_bytes", "2147483648\n");
    let said = found(&doctor(folder.path(), &["--json", "--only", "memory"]), "ok");
    assert!(said[0].contains("1.0 GiB of 2.0 GiB that /sys/fs/cgroup/memory/old/memory.limit_in_bytes"), "{said:?}");
}

#[test]
fn swap_in_memory_or_behind_a_server_is_found() {
    let mounts = "proc/self/mountinfo";
    injected("swap", "proc/swaps", Some("Filename Type Size Used Priority\n"), "note", "has no swap");
    let swap = ["--swap", "/srv/app/swap"];
    let with = |kind: &str, level, says| {
        let text = format!("1 1 8:1 / / rw - ext4 /dev/sda rw\n2 1 0:5 / /srv rw,noatime shared:1 - {kind} none rw\n");
        injected_with("swap", mounts, Some(&text), level, says, &swap);
    };
    with("tmpfs", "problem", "lies in memory");
    with("nfs4", "note", "lies on nfs4");
    with("fuse.sshfs", "note", "lies on fuse.sshfs");
    injected_with("swap", mounts, None, "note", "not known", &swap);
}

#[test]
fn threads_that_block_our_signals_are_named() {
    let other =
        STATUS.replace("Pid:\t100", "Pid:\t101").replace("SigBlk:\t0000000000000000", "SigBlk:\t0000000000000440");
    injected(
        "signals",
        "proc/self/task/101/status",
        Some(&other),
        "problem",
        "thread 101 (worker) blocks SIGBUS and SIGSEGV",
    );
    let ignores = STATUS.replace("SigIgn:\t0000000000001000", "SigIgn:\t0000000000000040");
    injected("signals", "proc/self/task/100/status", Some(&ignores), "problem", "ignores SIGBUS");
    let folder = healthy();
    let run = doctor(folder.path(), &["--json", "--only", "signals", "--pid", "7"]);
    assert!(run.code == Some(6) && found(&run, "problem")[0].contains("process 7"), "{}", run.out);
}

/// Runs the program by a shell that lowers what it has first.
fn after(shell: &str, args: &str) -> Run {
    let program = env!("CARGO_BIN_EXE_softfault");
    let script = format!("{shell} \"{program}\" doctor --json {args}");
    let output = Command::new("sh").args(["-c", &script]).stdin(Stdio::null()).output().expect("a shell");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

#[test]
fn limits_of_this_very_process_are_found() {
    let run = after("ulimit -n 64;", "--only limits");
    let found = found(&run, "problem");
    assert!(found.iter().any(|f| f.contains("RLIMIT_NOFILE is 64")), "{found:?}");
}

#[test]
fn a_runtime_that_cannot_be_made_is_a_problem_and_no_crash() {
    let run = after("ulimit -v 200000;", "--only delivery --only costs");
    let found = found(&run, "problem");
    assert!(run.code == Some(6) && found[0].contains("no runtime can be made: "), "{run:?}");
}

/// coreutils can start a program with signals blocked: what a careless supervisor does.
#[test]
fn signals_that_were_inherited_blocked_are_found() {
    let has = Command::new("env").args(["--block-signal=USR1", "true"]).output().is_ok_and(|o| o.status.success());
    if !has {
        println!("skipped: env knows no --block-signal");
        return;
    }
    let run = after("exec env --block-signal=BUS", "--only signals");
    assert!(run.code == Some(6) && found(&run, "problem")[0].contains("blocks SIGBUS"), "{run:?}");
}

#[test]
fn direct_io_is_tried_on_the_file() {
    let of = |file: &str| softfault(Path::new("/"), &["doctor", "--json", "--only", "direct-io", file]);
    // No file of /proc can be read so.
    let run = of("/proc/version");
    assert!(run.code == Some(0) && found(&run, "note")[0].contains("proc serves no direct I/O"), "{run:?}");
    let run = of("/nowhere/at/all");
    assert!(run.code == Some(6) && found(&run, "problem")[0].contains("cannot be read"), "{run:?}");
}

/// What is measured differs everywhere; that it is there does not.
#[test]
fn this_machine_is_looked_at_whole() {
    let run = softfault(
        Path::new("/"),
        &["doctor", "--json", env!("CARGO_MANIFEST_DIR"), "--only", "delivery", "--only", "costs"],
    );
    let said = answer(&run);
    let costs = said["findings"].as_array().expect("findings").iter().filter(|f| f["check"] == "costs");
    let costs: Vec<_> = costs.map(|f| f["says"].as_str().expect("text")).collect();
    assert!(costs.iter().any(|c| c.starts_with("Segv: a cached page costs")), "{said}");
}
