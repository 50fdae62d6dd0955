//! `include/softfault.h` is what cbindgen makes of `src/`, and compiles cleanly as every C and C++ that it promises.

mod build;

use build::dir;
use std::path::PathBuf;
use std::process::Command;

/// The files that export something, in the order of the header.
const SOURCES: &[&str] = &[
    "consts.rs",
    "error.rs",
    "options.rs",
    "image_options.rs",
    "handle.rs",
    "runtime.rs",
    "object.rs",
    "object_cache.rs",
    "arena.rs",
    "pin.rs",
    "callbacks.rs",
    "handler/vm_fault.rs",
    "handler/store.rs",
    "handler/minor.rs",
    "stats.rs",
    "image.rs",
    "image_writer.rs",
    "image_ops.rs",
    "catalog.rs",
    "session.rs",
    "capture.rs",
    "working_set.rs",
];

fn header() -> PathBuf {
    dir().join("include/softfault.h")
}

fn generate() -> String {
    let config = cbindgen::Config::from_file(dir().join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in SOURCES {
        builder = builder.with_src(dir().join("src").join(name));
    }
    let mut text = Vec::new();
    builder.generate().expect("the header").write(&mut text);
    let text = String::from_utf8(text).expect("a header in UTF-8");
    text.lines().map(|line| as_c(line) + "\n").collect()
}

/// Bits in hexadecimal, as they are written everywhere else; the contract of a function in the words of C.
fn as_c(line: &str) -> String {
    let bits = [
        "VM_FAULT_",
        "FAULT_FLAG_",
        "OBJECT_",
        "ARENA_",
        "STORE_",
        "MINOR_HANDLER",
        "IMAGE_HAS_",
        "RESTORE_",
        "WRITER_",
    ];
    let number = line.strip_prefix("#define SOFTFAULT_").and_then(|rest| rest.split_once(' '));
    match number {
        Some((name, n)) if bits.iter().any(|b| name.starts_with(b)) => {
            let n: u32 = n.parse().unwrap_or_else(|e| panic!("{line}: {e}"));
            format!("#define SOFTFAULT_{name} {n:#x}")
        }
        _ => line.replace(" * # Safety", " * The caller promises:"),
    }
}

/// `SOFTFAULT_WRITE_HEADER=1 cargo test -p softfault-c --test header` writes it anew.
#[test]
fn the_header_is_what_the_source_says() {
    let want = generate();
    if std::env::var_os("SOFTFAULT_WRITE_HEADER").is_some() {
        std::fs::write(header(), &want).expect("the header is written");
    }
    let have = std::fs::read_to_string(header()).unwrap_or_default();
    let differ = want.lines().zip(have.lines()).position(|(a, b)| a != b);
    assert!(
        want == have,
        "include/softfault.h is stale (line {}): SOFTFAULT_WRITE_HEADER=1 cargo test -p softfault-c --test header",
        differ.unwrap_or_else(|| want.lines().count().min(have.lines().count())) + 1
    );
}

/// Compiles a file that includes the header twice.
fn compiles(compiler: &str, flags: &[&str], language: &str) {
    let Some(work) = build::work_dir("header") else { return };
    let source = work.join(format!("include.{language}"));
    std::fs::write(&source, "#include \"softfault.h\"\n#include \"softfault.h\"\nint main(void) { return 0; }\n")
        .expect("a source file");
    let mut command = Command::new(compiler);
    command.args(flags).args(build::STRICT).arg("-I").arg(dir().join("include"));
    build::ok(command.arg("-c").arg(&source).arg("-o").arg(work.join("include.o")));
}

#[test]
fn it_compiles_as_c() {
    let Some(cc) = build::compiler("CC", "cc") else { return };
    ["-std=c99", "-std=c11"].iter().for_each(|standard| compiles(&cc, &[standard], "c"));
}

#[test]
fn it_compiles_as_cpp() {
    let Some(cxx) = build::compiler("CXX", "c++") else { return };
    compiles(&cxx, &["-std=c++11"], "cpp");
}

#[test]
fn it_compiles_with_clang() {
    if let Some(clang) = build::compiler("CLANG", "clang") {
        ["-std=c99", "-std=c11"].iter().for_each(|standard| compiles(&clang, &[standard], "c"));
    }
    if let Some(clang) = build::compiler("CLANGXX", "clang++") {
        compiles(&clang, &["-std=c++11"], "cpp");
    }
}

/// The proof that the promise of `it_compiles_as_c` can fail.
#[test]
fn a_header_with_warnings_does_not_compile() {
    let Some(cc) = build::compiler("CC", "cc") else { return };
    let Some(work) = build::work_dir("header") else { return };
    let source = work.join("bad.c");
    std::fs::write(&source, "static int unused(int a) { return 0; }\nint main(void) { return 0; }\n").expect("a file");
    let out = build::run(Command::new(cc).args(build::STRICT).arg("-c").arg(&source).arg("-o").arg(work.join("bad.o")));
    assert!(!out.status.success());
}
