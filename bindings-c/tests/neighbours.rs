//! Living with others: plug-ins that are loaded and closed, a debugger, valgrind. The languages' own signal handling is in
//! `languages.rs`. What is missing here is skipped, said on standard error.

mod build;

use build::{Built, Library, STRICT, compiler, dir, ok, run, said};
use std::path::{Path, PathBuf};
use std::process::Command;

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
    let Some(built) = build::built("neighbours-dlopen") else { return };
    let Some(program) = compile(built, &dir().join("tests/neighbours/dlopen.c"), None) else { return };
    let text = ok(Command::new(&program).arg(&built.shared));
    assert!(text.contains("the library stays as long as its handlers"), "{text}");
}

fn gdb(program: &Path, commands: &[&str]) -> String {
    let mut gdb = Command::new("gdb");
    gdb.args(["-nx", "-batch", "-iex", "set debuginfod enabled off", "-iex", "set startup-with-shell off"]);
    // Not every container permits personality(2).
    gdb.args(["-iex", "set disable-randomization off", "-iex", "set confirm off"]);
    for command in commands {
        gdb.args(["-ex", command]);
    }
    said(&run(gdb.arg(program)))
}

/// The setting that the README tells.
const GDB_SETTING: &str = "handle SIGBUS SIGSEGV nostop noprint pass";

#[test]
fn gdb_runs_a_program_that_faults() {
    if !has("gdb") {
        return;
    }
    let Some(built) = build::built("neighbours-gdb") else { return };
    let Some(program) = compile(built, &example("quickstart.c"), Some(Library::Shared)) else { return };
    let alone = gdb(&program, &["run"]);
    if alone.contains("ptrace: Operation not permitted") || alone.contains("Could not trace the inferior") {
        eprintln!("skipped: nothing may be traced here: {alone}");
        return;
    }
    assert!(alone.contains("received signal SIG"), "it does not stop without the setting: {alone}");

    let readme = std::fs::read_to_string(dir().join("README.md")).expect("README.md");
    assert!(readme.contains(GDB_SETTING), "README.md does not say: {GDB_SETTING}");
    let set = gdb(&program, &[GDB_SETTING, "break softfault_stats_read", "run", "delete", "continue"]);
    for line in ["Breakpoint 1, ", "every byte was as expected", "exited normally"] {
        assert!(set.contains(line), "it does not say {line:?}: {set}");
    }
    assert!(!set.contains("received signal"), "{set}");
}
