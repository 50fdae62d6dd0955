//! What the fences are made of: the source as lines and as modules, and the floors.

pub(crate) mod contexts;
pub(crate) mod floors;
pub(crate) mod functions;
pub(crate) mod impls;
pub(crate) mod imports;
pub(crate) mod modules;
pub(crate) mod orderings;
pub(crate) mod source;

use source::Source;
use std::fs;
use std::path::{Path, PathBuf};

pub(crate) fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("runtime/ lies in the workspace").to_owned()
}

/// Reads every Rust file below `dir`.
pub(crate) fn sources(dir: &str) -> Vec<Source> {
    let mut found = Vec::new();
    let mut dirs = vec![root().join(dir)];
    while let Some(at) = dirs.pop() {
        for entry in fs::read_dir(&at).unwrap_or_else(|e| panic!("{}: {e}", at.display())) {
            let path = entry.expect("a directory entry").path();
            if path.is_dir() {
                if path.file_name().is_some_and(|n| n != "target") {
                    dirs.push(path);
                }
            } else if path.extension().is_some_and(|e| e == "rs") {
                let text = fs::read_to_string(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
                let name = path.strip_prefix(root()).unwrap_or(&path).display().to_string();
                found.push(Source::new(&name, &text));
            }
        }
    }
    assert!(!found.is_empty(), "no Rust file below {dir}");
    found
}

pub(crate) fn report(bad: &[String]) {
    assert!(bad.is_empty(), "\n{}\n", bad.join("\n"));
}
