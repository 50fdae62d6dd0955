//! Building the libraries, and C programs against them, from a test.
#![allow(dead_code, reason = "each test binary uses a part of this")]

#[path = "../../../runtime/tests/build/mod.rs"]
pub(crate) mod cargo;

use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::OnceLock;

pub(crate) fn dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// What a program is linked against.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Library {
    Shared,
    Static,
}

/// Where the libraries are.
#[derive(Debug)]
pub(crate) struct Built {
    /// A folder for programs and their files.
    pub(crate) work: PathBuf,
    pub(crate) shared: PathBuf,
    pub(crate) archive: PathBuf,
}

/// Returns a folder of ours; `None`, said on standard error, where nothing may be written (the tests of one user run by
/// another).
pub(crate) fn work_dir(name: &str) -> Option<PathBuf> {
    cargo::target_dir(&format!("softfault-c/{name}"))
}

/// Builds both libraries into the folder that the tests themselves were built in, and lends copies to the tests of one
/// file, whose `name` it is.
pub(crate) fn built(name: &str) -> Option<&'static Built> {
    static BUILT: OnceLock<Option<Built>> = OnceLock::new();
    let build = || {
        let work = work_dir(name)?;
        let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("tmp/ lies in the target folder");
        let mut cargo = Command::new(env!("CARGO"));
        cargo.args(["build", "--locked", "--package", "softfault-c", "--target-dir"]).arg(target).current_dir(dir());
        if !cfg!(feature = "userfaultfd") {
            cargo.arg("--no-default-features");
        }
        let out = cargo.output().expect("cargo runs");
        assert!(out.status.success(), "{}", said(&out));
        // Copies, under the name that programs ask for: other tests may be building.
        let debug = target.join("debug");
        let major_minor = concat!(env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
        let shared = work.join(format!("libsoftfault.so.{major_minor}"));
        let archive = work.join("libsoftfault.a");
        for (from, to) in [("libsoftfault.so", &shared), ("libsoftfault.a", &archive)] {
            let from = debug.join(from);
            std::fs::copy(&from, to).unwrap_or_else(|e| panic!("{}: {e}", from.display()));
        }
        Some(Built { work, shared, archive })
    };
    BUILT.get_or_init(build).as_ref()
}

/// Returns the compiler in the variable, or else the one of that name, if there is one.
pub(crate) fn compiler(variable: &str, name: &str) -> Option<String> {
    let compiler = std::env::var(variable).unwrap_or_else(|_| name.to_owned());
    let runs = Command::new(&compiler).arg("--version").output().is_ok_and(|out| out.status.success());
    if !runs {
        eprintln!("skipped: no compiler {compiler} ({variable})");
    }
    runs.then_some(compiler)
}

pub(crate) const STRICT: [&str; 4] = ["-Wall", "-Wextra", "-Wpedantic", "-Werror"];

impl Built {
    /// Adds what links a program with the library.
    pub(crate) fn link(&self, compile: &mut Command, library: Library) {
        match library {
            Library::Shared => compile.arg(&self.shared).arg(format!("-Wl,-rpath,{}", self.work.display())),
            // `rustc --print native-static-libs`
            Library::Static => {
                compile.arg(&self.archive).args(["-lgcc_s", "-lutil", "-lrt", "-lpthread", "-lm", "-ldl"])
            }
        };
    }
}

pub(crate) fn run(command: &mut Command) -> Output {
    command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"))
}

pub(crate) fn said(out: &Output) -> String {
    let text = |bytes| String::from_utf8_lossy(bytes).into_owned();
    format!("{}\n{}\n{}", out.status, text(&out.stdout), text(&out.stderr))
}

#[track_caller]
pub(crate) fn ok(command: &mut Command) -> String {
    let out = run(command);
    assert!(out.status.success(), "{command:?}: {}", said(&out));
    String::from_utf8_lossy(&out.stdout).into_owned()
}

/// Returns the names of the functions that the header declares.
pub(crate) fn declared() -> Vec<String> {
    let header = std::fs::read_to_string(dir().join("include/softfault.h")).expect("the header");
    let mut names = Vec::new();
    let mut in_comment = false;
    for line in header.lines() {
        in_comment = in_comment || line.trim_start().starts_with("/*");
        let ended = line.contains("*/");
        let is_declaration = !in_comment && line.starts_with(|c: char| c.is_ascii_lowercase()) && line.contains('(');
        if is_declaration && !line.starts_with("typedef") {
            let before = line.split('(').next().unwrap_or("");
            let name = before.rsplit([' ', '*']).next().unwrap_or("");
            if name.starts_with("softfault_") {
                names.push(name.to_owned());
            }
        }
        in_comment = in_comment && !ended;
    }
    assert!(names.len() > 50, "the header declares {} functions", names.len());
    names
}
