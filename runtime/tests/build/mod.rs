//! Running cargo from a test, in a target folder of its own.

use std::path::{Path, PathBuf};
use std::process::{Command, Output};

/// Returns a target folder for `name` below this test's own; `None`, said on standard error, where nothing may be
/// written (the tests of one user run by another).
pub(crate) fn target_dir(name: &str) -> Option<PathBuf> {
    let dir = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let probe = dir.join("writable");
    match std::fs::create_dir_all(&dir).and_then(|()| std::fs::write(&probe, "")) {
        Ok(()) => Some(dir),
        Err(e) => {
            eprintln!("skipped: {}: {e}", dir.display());
            None
        }
    }
}

/// Runs `cargo build --locked` with `args`, in `dir`, into `target`.
///
/// What the outer cargo or CI says of flags and profiles is about the outer build, and does not reach this one.
pub(crate) fn cargo_build(dir: &Path, target: &Path, args: &[&str]) -> Output {
    let mut cargo = Command::new(env!("CARGO"));
    cargo.args(["build", "--locked", "--jobs", "2", "--target-dir"]).arg(target).args(args);
    for (name, _) in std::env::vars_os() {
        let text = name.to_string_lossy();
        let ours = text == "CARGO_TARGET_DIR"
            || text.ends_with("RUSTFLAGS")
            || ["CARGO_BUILD_", "CARGO_PROFILE_"].iter().any(|p| text.starts_with(p));
        if ours {
            cargo.env_remove(&name);
        }
    }
    cargo.current_dir(dir).output().expect("cargo runs")
}

/// Returns what a build said, for a failing assertion.
pub(crate) fn said(out: &Output) -> String {
    format!("{}\n{}", out.status, String::from_utf8_lossy(&out.stderr))
}
