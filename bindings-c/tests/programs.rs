//! The C tests: one program of several files, which calls every function of the header, with its errors; against both
//! libraries, over each delivery, and under AddressSanitizer.

mod build;

use build::{Built, Library, STRICT, compiler, declared, dir, ok, run, said};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::Command;

fn sources() -> Vec<PathBuf> {
    let files = std::fs::read_dir(dir().join("tests/c")).expect("tests/c").map(|e| e.expect("an entry").path());
    let mut files: Vec<_> = files.filter(|p| p.extension().is_some_and(|e| e == "c")).collect();
    files.sort();
    files
}

fn compile(built: &Built, cc: &str, library: Library, name: &str, flags: &[&str]) -> PathBuf {
    let program = built.work.join(name);
    let mut command = Command::new(cc);
    command.args(["-std=c99", "-g", "-pthread"]).args(STRICT).args(flags);
    command.arg("-I").arg(dir().join("include")).args(sources()).arg("-o").arg(&program);
    built.link(&mut command, library);
    ok(&mut command);
    program
}

/// Runs the program over one delivery; `None`: the library says that it cannot be had here.
fn run_over(program: &Path, delivery: &str) {
    let files = program.with_extension(format!("{delivery}.files"));
    // What a run that was killed has left would be in the way.
    let _ = std::fs::remove_dir_all(&files);
    std::fs::create_dir_all(&files).expect("a folder for the program's files");
    let mut command = Command::new(program);
    command.arg(delivery).arg(&files);
    let out = run(&mut command);
    let text = said(&out);
    let _ = std::fs::remove_dir_all(&files);
    if text.contains("is not available") && delivery != "auto" && delivery != "segv" {
        eprintln!("skipped over {delivery}: {text}");
        return;
    }
    assert!(out.status.success() && text.contains("every check passed"), "{command:?}: {text}");
}

fn runs_over_every_delivery(library: Library, name: &str) {
    let Some(cc) = compiler("CC", "cc") else { return };
    let Some(built) = build::built("programs") else { return };
    let program = compile(built, &cc, library, name, &[]);
    for delivery in ["auto", "inthread", "segv", "monitor"] {
        run_over(&program, delivery);
    }
}

#[test]
fn c_programs_run_with_the_shared_library() {
    runs_over_every_delivery(Library::Shared, "c-shared");
}

#[test]
fn c_programs_run_with_the_archive() {
    runs_over_every_delivery(Library::Static, "c-static");
}

/// Its handlers come first and ours go in front of them; its checks of the C side see faulting arenas as memory.
#[test]
fn c_programs_run_under_address_sanitizer() {
    let Some(cc) = compiler("CC", "cc") else { return };
    let Some(built) = build::built("programs") else { return };
    let probe = built.work.join("probe.c");
    std::fs::write(&probe, "int main(void) { return 0; }\n").expect("a program");
    let out = run(Command::new(&cc).args(["-fsanitize=address", "-o"]).arg(built.work.join("probe")).arg(&probe));
    if !out.status.success() {
        eprintln!("skipped: {cc} has no AddressSanitizer: {}", said(&out));
        return;
    }
    let flags = ["-fsanitize=address", "-fno-omit-frame-pointer", "-O1"];
    let program = compile(built, &cc, Library::Shared, "c-asan", &flags);
    for delivery in ["auto", "segv"] {
        run_over(&program, delivery);
    }
}

#[test]
fn every_function_is_called_by_a_c_test() {
    let text: String = sources().iter().map(|p| std::fs::read_to_string(p).expect("a C file")).collect();
    let words: BTreeSet<_> = text.split(|c: char| !c.is_alphanumeric() && c != '_').collect();
    let missing: Vec<_> = declared().into_iter().filter(|name| !words.contains(name.as_str())).collect();
    assert!(missing.is_empty(), "no C test names {missing:?}");
}
