//! Everything that a Rust program can do is in the table of `README.md`: with its C function, or with why there is none.
//!
//! What is public is read from the source: the types that `runtime/src/lib.rs` exports, their functions, fields and
//! variants.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("bindings-c/ lies in the workspace").to_owned()
}

fn read(name: &str) -> String {
    std::fs::read_to_string(root().join(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// Returns the names in the `pub use` lines of the crate, and those that its public modules have besides.
fn exported() -> BTreeSet<String> {
    let lib = read("runtime/src/lib.rs");
    let mut names = BTreeSet::new();
    for line in lib.lines().filter(|l| l.starts_with("pub use")) {
        let last = line.trim_end_matches(';').rsplit("::").next().unwrap_or("");
        let names_of = last.trim_matches(['{', '}']).split(',').map(|n| n.trim().to_owned());
        names.extend(names_of.filter(|n| n.starts_with(char::is_uppercase)));
    }
    // In public modules, and not exported at the top.
    names.extend(["Access", "Audit", "Offender", "Finding", "StageLatency"].map(str::to_owned));
    assert!(names.len() > 25, "{names:?}");
    names
}

fn files() -> Vec<String> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join("runtime/src"), root().join("runtime/platform/src/store")];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).expect("a folder") {
            let path = entry.expect("an entry").path();
            if path.is_dir() {
                dirs.push(path);
            } else if path.extension().is_some_and(|e| e == "rs") {
                found.push(path.strip_prefix(root()).expect("inside").display().to_string());
            }
        }
    }
    found.extend(
        ["model/delegation", "model/mapping", "base/types", "model/vma"].map(|m| format!("runtime/mm/src/{m}.rs")),
    );
    found
}

/// Returns `Type::item` for what the file says of exported types.
fn items(text: &str, exported: &BTreeSet<String>) -> Vec<String> {
    let word = |s: &str| s.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>();
    let mut found = Vec::new();
    // The block that we are in: its type, and how its items begin.
    let mut block: Option<(String, &[&str])> = None;
    for line in text.lines() {
        if line.starts_with("#[cfg(test)]") {
            break;
        }
        if !line.starts_with(' ') {
            if line.starts_with('}') {
                block = None;
            }
            let line = line.trim_start_matches("pub ").trim_start_matches("unsafe ");
            for (keyword, begins) in [
                ("impl", &["pub fn ", "pub unsafe fn ", "pub const fn "] as &[&str]),
                ("trait", &["fn "]),
                ("struct", &["pub "]),
                ("enum", &[""]),
            ] {
                let Some(rest) = line.strip_prefix(keyword) else { continue };
                let rest = if rest.starts_with('<') {
                    rest.split_once("> ").map_or("", |(_, r)| r)
                } else {
                    rest.trim_start()
                };
                let name = word(rest);
                if exported.contains(&name) && line.ends_with('{') && !line.contains(" for ") {
                    block = Some((name, begins));
                }
            }
            continue;
        }
        let Some((name, begins)) = &block else { continue };
        let Some(item) = line.strip_prefix("    ").filter(|l| !l.starts_with([' ', '#', '/', '}', ')'])) else {
            continue;
        };
        let item = begins.iter().find_map(|b| item.strip_prefix(b)).map(word);
        let is_item = |i: &String| !i.is_empty() && !["fn", "unsafe", "const", "crate", "pub"].contains(&i.as_str());
        found.extend(item.filter(is_item).map(|item| format!("{name}::{item}")));
    }
    found
}

#[test]
fn every_public_item_is_in_the_table() {
    let exported = exported();
    let all: BTreeSet<_> = files().iter().flat_map(|f| items(&read(f), &exported)).collect();
    assert!(all.len() > 150, "{} items: {all:?}", all.len());
    let table = read("bindings-c/README.md");
    let whole = |item: &str| item.split("::").next().is_some_and(|t| table.contains(&format!("`{t}::*`")));
    let missing: Vec<_> = all.iter().filter(|i| !whole(i) && !table.contains(&format!("`{i}`"))).collect();
    assert!(missing.is_empty(), "bindings-c/README.md says nothing of {missing:#?}");
}

/// What the table says is exported is.
#[test]
fn the_table_names_functions_that_exist() {
    let header = read("bindings-c/include/softfault.h");
    let table = read("bindings-c/README.md");
    let words = table.split(|c: char| !c.is_alphanumeric() && c != '_');
    let strange: BTreeSet<_> = words
        .filter(|w| (w.starts_with("softfault_") || w.starts_with("SOFTFAULT_")) && !w.ends_with('_'))
        .filter(|w| !header.contains(w) && !["SOFTFAULT_WRITE_HEADER"].contains(w))
        .collect();
    assert!(strange.is_empty(), "no such names in the header: {strange:?}");
}

#[test]
fn items_are_found() {
    let exported: BTreeSet<_> = ["A", "B", "C", "D"].map(str::to_owned).into();
    let text = "pub struct A {\n    pub x: u32,\n    y: u32,\n}\nimpl A {\n    pub fn f(&self) {}\n    fn g() {}\n}\n\
                pub enum B {\n    /// Doc.\n    One,\n    Two {\n        z: u32,\n    },\n}\n\
                pub unsafe trait C: Send {\n    fn h(&self);\n}\nimpl<'a> D<'a> {\n    pub unsafe fn i() {}\n}\n\
                impl C for A {\n    fn h(&self) {}\n}\nstruct E {\n    pub n: u32,\n}\n";
    assert_eq!(items(text, &exported), ["A::x", "A::f", "B::One", "B::Two", "C::h", "D::i"]);
}
