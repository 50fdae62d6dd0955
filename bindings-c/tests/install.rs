//! What `make install` lays out: found by pkg-config, and enough to build the C examples, which check what they did.

mod build;

use build::{dir, ok, run, said};
use std::path::{Path, PathBuf};
use std::process::Command;

fn has(program: &str) -> bool {
    let found = Command::new(program).arg("--version").output().is_ok_and(|out| out.status.success());
    if !found {
        eprintln!("skipped: no {program}");
    }
    found
}

/// Installs into a folder; `None`, said why, where it cannot be.
fn installed(name: &str) -> Option<PathBuf> {
    if !has("make") {
        return None;
    }
    let built = build::built("install")?;
    // One folder a test: they run at the same time.
    let here = built.work.join(name);
    let prefix = here.join("prefix");
    let _ = std::fs::remove_dir_all(&prefix);
    // The Makefile takes the names that cargo gives.
    let target = here.join("target");
    std::fs::create_dir_all(&target).expect("a folder");
    std::fs::copy(&built.shared, target.join("libsoftfault.so")).expect("the shared library");
    std::fs::copy(&built.archive, target.join("libsoftfault.a")).expect("the archive");
    let mut make = Command::new("make");
    make.arg("-C").arg(dir()).arg("install").arg(format!("PREFIX={}", prefix.display()));
    ok(make.arg(format!("TARGET={}", target.display())).env_remove("MAKEFLAGS"));
    Some(prefix)
}

fn pkg_config(prefix: &Path, args: &[&str]) -> Vec<String> {
    let mut command = Command::new("pkg-config");
    let text = ok(command.args(args).arg("softfault").env("PKG_CONFIG_PATH", prefix.join("lib/pkgconfig")));
    text.split_whitespace().map(str::to_owned).collect()
}

#[test]
fn pkg_config_finds_it() {
    let Some(prefix) = installed("pkg-config") else { return };
    if !has("pkg-config") {
        return;
    }
    assert_eq!(pkg_config(&prefix, &["--modversion"]), [env!("CARGO_PKG_VERSION")]);
    let Some(cc) = build::compiler("CC", "cc") else { return };
    let program = prefix.join("quickstart");
    let source = dir().parent().expect("the workspace").join("examples/c/quickstart.c");
    for extra in [&["--libs"] as &[&str], &["--static", "--libs"]] {
        let mut compile = Command::new(&cc);
        compile.args(["-std=c99", "-D_GNU_SOURCE"]).arg(&source).arg("-o").arg(&program);
        ok(compile.args(pkg_config(&prefix, &["--cflags"])).args(pkg_config(&prefix, extra)));
        let said = ok(Command::new(&program).env("LD_LIBRARY_PATH", prefix.join("lib")));
        assert!(said.contains("every byte was as expected"), "{said}");
    }
}

/// The soname is the ABI's: a program asks for that file, whatever the patch version.
#[test]
fn a_program_asks_for_the_abi() {
    let Some(prefix) = installed("soname") else { return };
    let abi = concat!("libsoftfault.so.", env!("CARGO_PKG_VERSION_MAJOR"), ".", env!("CARGO_PKG_VERSION_MINOR"));
    let full = concat!("libsoftfault.so.", env!("CARGO_PKG_VERSION"));
    assert_eq!(std::fs::read_link(prefix.join("lib/libsoftfault.so")).expect("a link"), Path::new(abi));
    assert_eq!(std::fs::read_link(prefix.join("lib").join(abi)).expect("a link"), Path::new(full));
    let bytes = std::fs::read(prefix.join("lib").join(full)).expect("the library");
    let soname = [b"\0", abi.as_bytes(), b"\0"].concat();
    assert!(bytes.windows(soname.len()).any(|w| w == soname), "the library's soname is not {abi}");
}

#[test]
fn the_c_examples_verify_what_they_did() {
    let Some(built) = build::built("install") else { return };
    if !has("make") || build::compiler("CC", "cc").is_none() {
        return;
    }
    let examples = dir().parent().expect("the workspace").join("examples/c");
    // In a copy: the folder itself may be read-only, and stays clean.
    let copy = built.work.join("c");
    std::fs::create_dir_all(&copy).expect("a folder");
    for entry in std::fs::read_dir(&examples).expect("examples/c") {
        let path = entry.expect("an entry").path();
        if path.extension().is_some_and(|e| e == "c") || path.ends_with("Makefile") {
            std::fs::copy(&path, copy.join(path.file_name().expect("a name"))).expect("a copy");
        }
    }
    let mut make = Command::new("make");
    make.arg("-C").arg(&copy).args(["clean", "run", "PKG_CONFIG=false"]).env_remove("MAKEFLAGS");
    make.arg(format!("LIBDIR={}", built.work.display()));
    make.arg(format!("SOFTFAULT_CFLAGS=-I{}", dir().join("include").display()));
    let out = run(&mut make);
    let text = said(&out);
    assert!(out.status.success(), "{text}");
    for line in ["every byte was as expected", "every bit is right", "every word is in its place"] {
        assert!(text.contains(line), "it does not say {line:?}: {text}");
    }
}
