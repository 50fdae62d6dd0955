//! Living with others: plug-ins that are loaded and closed, a debugger, valgrind. The languages' own signal handling is in
//! `languages.rs`. What is missing here is skipped, said on standard error.

mod build;

use build::{Built, Library, STRICT, compiler, dir, ok, run, said};
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Command;

/// See signal(7).
const SIGABRT: i32 = 6;
const SIGSEGV: i32 = 11;

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success());
    if !found {
        eprintln!("skipped: no {program}");
    }
    found
}

fn compile(built: &Built, source: &Path, link: Option<Library>) -> Option<PathBuf> {
    let cc = compiler("CC", "cc")?;
    let program = built.work.join(source.file_stem().expect("a name"));
    let mut command = Command::new(cc);
    command.args(["-std=c99", "-D_GNU_SOURCE", "-g", "-O1", "-pthread"]).args(STRICT);
    command.arg("-I").arg(dir().join("include")).arg(source).arg("-o").arg(&program);
    match link {
        Some(library) => built.link(&mut command, library),
        None => drop(command.arg("-ldl")),
    }
    ok(&mut command);
    Some(program)
}

fn example(name: &str) -> PathBuf {
    dir().parent().expect("the workspace").join("examples/c").join(name)
}

/// Handlers of signals and threads outlive `dlclose`: the library is linked with `-z nodelete`.
#[test]
fn dlclose_leaves_the_library_where_its_handlers_are() {
    let Some(built) = build::built("neighbours") else { return };
    let Some(program) = compile(built, &dir().join("tests/neighbours/dlopen.c"), None) else { return };
    let text = ok(Command::new(&program).arg(&built.shared));
    assert!(text.contains("the library stays as long as its handlers"), "{text}");
}

/// Pages of the files below.
const NR: usize = 64;

/// Runs a program that stores to every byte of a file and ends; returns how many bytes of the file are what it stored.
fn stored(built: &Built, program: &Path, how: &str) -> usize {
    let file = built.work.join("at-exit");
    std::fs::write(&file, vec![0u8; NR * 4096]).expect("a file");
    ok(Command::new(program).arg(&file).arg(how));
    std::fs::read(&file).expect("the file").iter().filter(|b| **b == b'x').count()
}

/// As the kernel's own shared mappings have it: however the program ends by exit(3), its stores are in the file.
#[test]
fn what_was_stored_is_in_the_file_after_exit() {
    let Some(built) = build::built("neighbours") else { return };
    for library in [Library::Shared, Library::Static] {
        let Some(program) = compile(built, &dir().join("tests/neighbours/exit.c"), Some(library)) else { return };
        for (how, want) in [("return", NR), ("exit", NR), ("late", NR), ("_exit", NR), ("off", 0)] {
            assert_eq!(stored(built, &program, how), want * 4096, "{library:?}, {how}");
        }
    }
    let Some(cxx) = compiler("CXX", "c++") else { return };
    let program = built.work.join("exit-cpp");
    let mut command = Command::new(cxx);
    command.args(["-std=c++11", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", "-I"]).arg(dir().join("include"));
    command.arg(dir().join("tests/neighbours/exit.cpp")).arg("-o").arg(&program);
    built.link(&mut command, Library::Shared);
    ok(&mut command);
    assert_eq!(stored(built, &program, "std::exit"), NR * 4096);
}

/// A page that cannot be had under the policy `Abort`, and an exception that leaves a callback, end the process at once, and
/// neither unwinds through the library nor leaves a thread waiting.
#[test]
fn failures_that_end_the_process_end_it() {
    let Some(cxx) = compiler("CXX", "c++") else { return };
    let Some(built) = build::built("neighbours") else { return };
    let program = built.work.join("ending");
    let mut command = Command::new(cxx);
    command.args(["-std=c++11", "-g", "-pthread", "-Wall", "-Wextra", "-Werror", "-I"]).arg(dir().join("include"));
    command.arg(dir().join("tests/neighbours/ending.cpp")).arg("-o").arg(&program);
    built.link(&mut command, Library::Shared);
    ok(&mut command);
    // Words of Rust's about an exception in a handler may not fit on its stack: then that is what ends it.
    for (way, says, by) in [
        ("abort", "cannot be filled", &[SIGABRT] as &[i32]),
        ("throw", "", &[SIGABRT]),
        ("throw-in-handler", "", &[SIGABRT, SIGSEGV]),
    ] {
        // Its own killer, should it hang.
        let out = run(Command::new("timeout").args(["-s", "KILL", "60"]).arg(&program).arg(way));
        let text = said(&out);
        let signal = out.status.signal().or_else(|| out.status.code().map(|c| c - 128));
        assert!(signal.is_some_and(|s| by.contains(&s)) && text.contains(says), "{way}: {:?}: {text}", out.status);
    }
}

/// Runs `program` under gdb, which kills it if it has not ended when the commands have; `temp` is its temporary folder.
fn gdb(program: &Path, temp: &Path, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set startup-with-shell off"]);
    // Not every container permits personality(2).
    gdb.args(["-iex", "set disable-randomization off", "-iex", "set confirm off"]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    said(&run(gdb.arg(program).env("TMPDIR", temp)))
}

/// The setting that the README tells.
const GDB_SETTING: &str = "handle SIGBUS SIGSEGV nostop noprint pass";

#[test]
fn gdb_runs_a_program_that_faults() {
    if !has("gdb") {
        return;
    }
    let Some(built) = build::built("neighbours") else { return };
    let Some(program) = compile(built, &example("quickstart.c"), Some(Library::Shared)) else { return };
    let temp = built.work.join("temp");
    let _ = std::fs::remove_dir_all(&temp);
    std::fs::create_dir_all(&temp).expect("a folder");
    let alone = gdb(&program, &temp, &["run"]);
    if alone.contains("ptrace: Operation not permitted") || alone.contains("Could not trace the inferior") {
        eprintln!("skipped: nothing may be traced here: {alone}");
        return;
    }
    assert!(alone.contains("received signal SIG"), "it does not stop without the setting: {alone}");
    let left: Vec<_> = std::fs::read_dir(&temp).expect("the folder").flatten().map(|e| e.path()).collect();
    assert!(left.is_empty(), "a quickstart that is killed leaves its file behind: {left:?}");

    let readme = std::fs::read_to_string(dir().join("README.md")).expect("README.md");
    assert!(readme.contains(GDB_SETTING), "README.md does not say: {GDB_SETTING}");
    let print = ["frame function main", "print ((unsigned char *)base)[7]"];
    let (before, after) = (["break softfault_object_free", "run"], ["break softfault_stats_read", "continue"]);
    let set = [&[GDB_SETTING] as &[&str], &before, &print, &after, &print, &["delete", "continue"]].concat();
    let set = gdb(&program, &temp, &set);
    // The file's eighth byte, before a touch and after it.
    for line in ["Cannot access memory at address", "$1 = 49", "every byte was as expected", "exited normally"] {
        assert!(set.contains(line), "it does not say {line:?}: {set}");
    }
    assert!(!set.contains("received signal"), "{set}");

    // From a callback that runs in the handler, on a stack of the library's, the way back leads to who touched the page.
    let Some(program) = compile(built, &example("custom_fault.c"), Some(Library::Shared)) else { return };
    let trace = gdb(&program, &temp, &[GDB_SETTING, "break fault", "run", "backtrace"]);
    let called = trace.find("<signal handler called>");
    let touched = called.and_then(|at| trace.get(at..)).is_some_and(|below| below.contains("main ("));
    assert!(touched, "the frames end before who touched the page: {trace}");
}

/// The settings that the README tells.
const VALGRIND_SETTINGS: [&str; 2] = ["--vex-iropt-register-updates=allregs-at-mem-access", "--leak-check=no"];

#[test]
fn valgrind_runs_programs_that_fault() {
    if !has("valgrind") {
        return;
    }
    let Some(built) = build::built("neighbours") else { return };
    let readme = std::fs::read_to_string(dir().join("README.md")).expect("README.md");
    assert!(readme.contains(&VALGRIND_SETTINGS.join(" ")), "README.md does not say: {VALGRIND_SETTINGS:?}");
    for (name, args, right) in [
        ("custom_fault", &[] as &[&str], "every bit is right"),
        ("out_of_core", &["8", "2"], "every word is in its place"),
    ] {
        let Some(program) = compile(built, &example(&format!("{name}.c")), Some(Library::Shared)) else { return };
        // Its own killer: nothing of a run that goes wrong is to eat the machine.
        let mut valgrind = Command::new("timeout");
        valgrind.args(["-s", "KILL", "120", "valgrind"]).args(VALGRIND_SETTINGS).arg(&program).args(args);
        let text = ok(&mut valgrind);
        assert!(text.contains(right), "it does not say {right:?}: {text}");
    }
}
