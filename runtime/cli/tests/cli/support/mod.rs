//! Runs the program, and holds what it says against files.

pub(crate) mod schema;

use serde_json::Value;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// What a run said, and how it ended.
#[derive(Debug)]
pub(crate) struct Run {
    pub(crate) code: Option<i32>,
    pub(crate) out: String,
    pub(crate) err: String,
}

/// Runs the program in a folder.
pub(crate) fn softfault(folder: &Path, args: &[&str]) -> Run {
    let mut command = Command::new(env!("CARGO_BIN_EXE_softfault"));
    let output = command.current_dir(folder).args(args).stdin(Stdio::null()).output().expect("the program runs");
    let text = |bytes| String::from_utf8(bytes).expect("text");
    Run { code: output.status.code(), out: text(output.stdout), err: text(output.stderr) }
}

/// The same, of a run that does its work and has nothing to remark.
pub(crate) fn done(folder: &Path, args: &[&str]) -> String {
    let run = softfault(folder, args);
    assert_eq!((run.code, run.err.as_str()), (Some(0), ""), "{args:?}: {}", run.out);
    run.out
}

/// Runs a verb with `--json`, and returns its answer, which its schema describes.
pub(crate) fn json(folder: &Path, args: &[&str]) -> Value {
    let run = softfault(folder, &[args, &["--json"]].concat());
    let answer = answer(&run);
    assert_ne!(answer["kind"], "error", "{args:?}: {answer}");
    answer
}

/// Returns the answer of a run with `--json`: one line, which the schema of its kind describes.
pub(crate) fn answer(run: &Run) -> Value {
    assert_eq!(run.out.matches('\n').count(), 1, "one line: {run:?}");
    let value: Value = serde_json::from_str(&run.out).unwrap_or_else(|e| panic!("{e}: {run:?}"));
    let kind = value["kind"].as_str().unwrap_or_else(|| panic!("no kind: {value}")).replace(' ', "-");
    schema::check(&schema::read(&kind), &value).unwrap_or_else(|why| panic!("{kind}: {why}: {value}"));
    value
}

/// Holds a text against the file that has it; `SOFTFAULT_GOLDEN=write` writes the file instead, for a person to look at.
pub(crate) fn golden(name: &str, text: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name);
    if std::env::var_os("SOFTFAULT_GOLDEN").is_some_and(|v| v == "write") {
        std::fs::write(&path, text).expect("the golden file is written");
    }
    let wanted = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{name}: {e}"));
    assert_eq!(text, wanted, "{name} is not what the program says: SOFTFAULT_GOLDEN=write writes it anew");
}

/// The folder of the schemas.
pub(crate) fn schemas() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas")
}
