//! `include/softfault.h` is what cbindgen makes of `src/`, and compiles cleanly as every C and C++ that it promises.

use std::path::{Path, PathBuf};

/// The files that export something, in the order of the header.
const SOURCES: &[&str] = &[
    "consts.rs",
    "error.rs",
    "options.rs",
    "handle.rs",
    "runtime.rs",
    "object.rs",
    "object_cache.rs",
    "arena.rs",
    "pin.rs",
    "handler.rs",
    "store.rs",
    "vm_ops.rs",
    "minor.rs",
    "stats.rs",
];

fn dir() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn header() -> PathBuf {
    dir().join("include/softfault.h")
}

fn generate() -> String {
    let config = cbindgen::Config::from_file(dir().join("cbindgen.toml")).expect("cbindgen.toml");
    let mut builder = cbindgen::Builder::new().with_config(config);
    for name in SOURCES {
        let path = dir().join("src").join(name);
        if path.exists() {
            builder = builder.with_src(path);
        }
    }
    let mut text = Vec::new();
    builder.generate().expect("the header").write(&mut text);
    let text = String::from_utf8(text).expect("a header in UTF-8");
    text.lines().map(|line| as_c(line) + "\n").collect()
}

/// Bits in hexadecimal, as they are written everywhere else; the contract of a function in the words of C.
fn as_c(line: &str) -> String {
    let bits = ["VM_FAULT_", "FAULT_FLAG_", "OBJECT_", "ARENA_", "STORE_", "MINOR_HANDLER"];
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
        differ.unwrap_or(want.lines().count().min(have.lines().count())) + 1
    );
}
