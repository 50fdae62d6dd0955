//! The examples of the languages above C: each is built and run, says that what it did was right, and runs its own tests.
//! A language whose toolchain is missing is skipped, said on standard error.
//!
//! `PYTHON` names another interpreter, `SOFTFAULT_NODE_MODULES` a folder `node_modules` with koffi. Nothing is downloaded
//! here: `.ci/languages` does that, where it may.

mod build;

use build::{Built, dir, ok, run, said};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

/// One build of the library, and one folder, for all of them.
const NAME: &str = "languages";

fn examples(language: &str) -> PathBuf {
    dir().parent().expect("the workspace").join("examples").join(language)
}

/// Returns the folder's files, without what tools leave in it.
fn files(from: &Path) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(from).unwrap_or_else(|e| panic!("{}: {e}", from.display())) {
        let path = entry.expect("an entry").path();
        let name = path.file_name().expect("a name").to_string_lossy().into_owned();
        if path.is_dir() && name != "node_modules" && name != "__pycache__" {
            found.extend(files(&path));
        } else if path.is_file() {
            found.push(path);
        }
    }
    found
}

/// Copies an example, so that nothing is written into the source: returns the copy.
fn copied(built: &Built, language: &str) -> PathBuf {
    let from = examples(language);
    let to = built.work.join(language);
    let _ = std::fs::remove_dir_all(&to);
    for file in files(&from) {
        let copy = to.join(file.strip_prefix(&from).expect("inside"));
        std::fs::create_dir_all(copy.parent().expect("a folder")).expect("a folder");
        std::fs::copy(&file, &copy).expect("a copy");
    }
    to
}

/// The shared library under the name that linkers ask for.
fn linker_name(built: &Built) -> PathBuf {
    let name = built.work.join("libsoftfault.so");
    let _ = std::fs::remove_file(&name);
    std::os::unix::fs::symlink(&built.shared, &name).expect("a link");
    name
}

/// Returns whether the command runs; says so if not.
fn has(what: &str, command: &mut Command) -> bool {
    let found = command.output().is_ok_and(|out| out.status.success());
    if !found {
        eprintln!("skipped: no {what} ({command:?})");
    }
    found
}

#[track_caller]
fn says(out: &str, lines: &[&str]) {
    for line in lines {
        assert!(out.contains(line), "it does not say {line:?}: {out}");
    }
}

const CXX_STANDARDS: [&str; 4] = ["-std=c++11", "-std=c++14", "-std=c++17", "-std=c++20"];

/// Every standard, by every compiler; twice in a program, from two files: nothing is defined more than once.
#[test]
fn the_header_for_cpp_compiles_without_a_warning() {
    let Some(built) = build::built(NAME) else { return };
    let work = &built.work;
    let uses = "#include <softfault.hpp>\n#include <softfault.hpp>\n";
    for (variable, name) in [("CXX", "c++"), ("CLANGXX", "clang++")] {
        let Some(cxx) = build::compiler(variable, name) else { continue };
        let first = work.join("first.cpp");
        let second = work.join("second.cpp");
        std::fs::write(&first, format!("{uses}int second();\nint main() {{ return second(); }}\n")).expect("a file");
        std::fs::write(&second, format!("{uses}int second() {{ softfault::arena arena; return arena ? 1 : 0; }}\n"))
            .expect("a file");
        for standard in CXX_STANDARDS {
            let mut compile = Command::new(&cxx);
            compile.arg(standard).args(build::STRICT).args(["-Wshadow", "-Wconversion", "-fsyntax-only", "-I"]);
            ok(compile.arg(dir().join("include")).args([&first, &second]));
        }
    }
    let Some(cxx) = build::compiler("CXX", "c++") else { return };
    let program = work.join("twice");
    let mut compile = Command::new(&cxx);
    compile.args(["-std=c++11", "-pthread", "-I"]).arg(dir().join("include"));
    compile.args([work.join("first.cpp"), work.join("second.cpp")]).arg("-o").arg(&program);
    built.link(&mut compile, build::Library::Shared);
    ok(&mut compile);
    ok(&mut Command::new(&program));
}

/// Builds the store that fails as it is told, which is C for every language; `None` without a compiler.
fn ill_store(built: &Built) -> Option<PathBuf> {
    static ILL: OnceLock<Option<PathBuf>> = OnceLock::new();
    let build = || {
        let library = built.work.join("libill_store.so");
        let mut compile = Command::new(build::compiler("CC", "cc")?);
        compile.args(["-std=c99", "-g", "-shared", "-fPIC"]).args(build::STRICT).arg("-I").arg(dir().join("include"));
        ok(compile.arg(dir().join("tests/languages/ill_store.c")).arg("-o").arg(&library));
        Some(library)
    };
    ILL.get_or_init(build).clone()
}

/// Errnos of a store, by reads, touches and syncs.
#[test]
fn causes_arrive_in_cpp() {
    let Some(cxx) = build::compiler("CXX", "c++") else { return };
    let Some(built) = build::built(NAME) else { return };
    let Some(store) = ill_store(built) else { return };
    for standard in CXX_STANDARDS {
        let program = built.work.join(format!("causes{standard}"));
        let mut compile = Command::new(&cxx);
        compile.args([standard, "-g", "-O1", "-pthread"]).args(build::STRICT).arg("-I").arg(dir().join("include"));
        compile.arg(dir().join("tests/languages/causes.cpp")).arg("-o").arg(&program).arg(&store);
        built.link(&mut compile, build::Library::Shared);
        ok(&mut compile);
        says(&ok(&mut Command::new(&program)), &["every cause arrived"]);
    }
}

#[test]
fn cpp() {
    if build::compiler("CXX", "c++").is_none() || !has("make", Command::new("make").arg("--version")) {
        return;
    }
    let Some(built) = build::built(NAME) else { return };
    let copy = copied(built, "cpp");
    let mut make = Command::new("make");
    make.arg("-C").arg(&copy).args([
        "clean",
        "run",
        "PKG_CONFIG=false",
        "CXXFLAGS=-O1 -g -Wall -Wextra -Wpedantic -Werror",
    ]);
    make.arg(format!("LIBDIR={}", built.work.display())).env_remove("MAKEFLAGS");
    make.arg(format!("SOFTFAULT_CFLAGS=-I{}", dir().join("include").display()));
    let lines = [
        "both sums are right",
        "every exception was caught where it belongs",
        "everything ended with the last",
        "both sessions are what was captured",
    ];
    says(&ok(&mut make), &lines);
}

#[test]
fn python() {
    let python = std::env::var("PYTHON").unwrap_or_else(|_| "python3".to_owned());
    let is_new = "import sys; sys.exit(sys.version_info < (3, 9))";
    if !has("Python 3.9 or later", Command::new(&python).args(["-c", is_new])) {
        return;
    }
    let Some(built) = build::built(NAME) else { return };
    let example = examples("python");
    let here = |command: &mut Command| {
        command.current_dir(&example).env("SOFTFAULT_LIBRARY", &built.shared).env("PYTHONDONTWRITEBYTECODE", "1");
    };
    let mut tests = Command::new(&python);
    here(tests.args(["-W", "error", "-m", "unittest", "-v"]));
    let store = ill_store(built);
    if let Some(store) = &store {
        tests.env("SOFTFAULT_ILL_STORE", store);
    }
    let out = run(&mut tests);
    let text = said(&out);
    assert!(out.status.success(), "{text}");
    assert!(text.contains("\nOK"), "it ran no test: {text}");
    for test in store.iter().flat_map(|_| ["test_reads_and_syncs", "test_touches"]) {
        assert!(text.contains(&format!("{test} (test_softfault.Causes")), "it did not run {test}: {text}");
        assert!(!text.contains("names no library"), "it was skipped: {text}");
    }
    // What it says where it is there; the tests run it.
    has("numpy: its tests were left out", Command::new(&python).args(["-c", "import numpy"]));
}

#[test]
fn go() {
    if !has("Go", Command::new("go").arg("version")) || build::compiler("CC", "cc").is_none() {
        return;
    }
    let Some(built) = build::built(NAME) else { return };
    linker_name(built);
    let copy = copied(built, "go");
    let go = |args: &[&str]| {
        let mut command = Command::new("go");
        command.args(args).current_dir(&copy).env("CGO_ENABLED", "1").env("GOFLAGS", "").env("GOPROXY", "off");
        command.env("GOCACHE", built.work.join("go-cache")).env("GOTOOLCHAIN", "local");
        let dir = dir().display();
        command.env("CGO_CFLAGS", format!("-I{dir}/include -I{dir}/tests/languages"));
        let work = built.work.display();
        command.env("CGO_LDFLAGS", format!("-L{work} -Wl,-rpath,{work}"));
        ok(&mut command)
    };
    go(&["vet", "./..."]);
    says(&go(&["run", "."]), &["both sums are right", "recovered: runtime error: invalid memory address"]);
    says(&go(&["test", "-count=1", "./..."]), &["ok"]);
    if ill_store(built).is_some() {
        go(&["vet", "-tags", "illstore", "./..."]);
        let causes = go(&["test", "-tags", "illstore", "-count=1", "-v", "-run", "^TestCauses$", "./softfault"]);
        says(&causes, &["--- PASS: TestCauses"]);
    }
}

#[test]
fn node() {
    let is_new = "process.exit(parseInt(process.versions.node) < 18 ? 1 : 0)";
    if !has("Node 18 or later", Command::new("node").args(["-e", is_new])) {
        return;
    }
    let modules = std::env::var_os("SOFTFAULT_NODE_MODULES").map(PathBuf::from);
    let modules = modules.unwrap_or_else(|| examples("node").join("node_modules"));
    let koffi = "require('koffi')";
    if !has("koffi", Command::new("node").args(["-e", koffi]).env("NODE_PATH", &modules)) {
        return;
    }
    let Some(built) = build::built(NAME) else { return };
    let copy = copied(built, "node");
    let store = ill_store(built);
    let node = |args: &[&str]| {
        let mut command = Command::new("node");
        command.args(args).current_dir(&copy).env("NODE_PATH", &modules).env("SOFTFAULT_LIBRARY", &built.shared);
        if let Some(store) = &store {
            command.env("SOFTFAULT_ILL_STORE", store);
        }
        ok(&mut command)
    };
    says(&node(&["quickstart.js"]), &["the sum is right"]);
    says(&node(&["--expose-gc", "--test", "softfault.test.js"]), &["# fail 0", "# skipped 0"]);
    if store.is_some() {
        says(&node(&["--test", "causes.test.js"]), &["# fail 0", "# pass 2"]);
    }
}

/// What the examples depend on is exact, and names no place to get it from.
#[test]
fn dependencies_are_exact() {
    let package = std::fs::read_to_string(examples("node").join("package.json")).expect("package.json");
    let koffi = package.lines().find(|l| l.contains("\"koffi\"")).expect("koffi");
    let version = koffi.split("\"koffi\": \"").nth(1).and_then(|v| v.split('"').next()).expect("a version");
    assert!(version.split('.').all(|n| n.parse::<u32>().is_ok()), "koffi's version is {version}");
    assert!(!examples("node").join("package-lock.json").exists(), "a lock file names registries");
    let module = std::fs::read_to_string(examples("go").join("go.mod")).expect("go.mod");
    assert!(!module.contains("require"), "{module}");
    let project = std::fs::read_to_string(examples("python").join("pyproject.toml")).expect("pyproject.toml");
    assert!(project.contains("dependencies = []"), "{project}");
}
