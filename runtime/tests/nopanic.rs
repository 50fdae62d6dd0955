//! No panic can be reached from the signal handler: `nopanic/` links it, and everything behind its trait objects, with a
//! panic handler that calls a function which does not exist.
//!
//! A panic there would be a deadlock with a backtrace: it allocates, locks and unwinds in the middle of somebody's load
//! instruction.

mod build;

use std::path::Path;

fn crate_dir() -> &'static Path {
    Path::new(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/nopanic"))
}

#[test]
fn the_handler_links_without_panics() {
    let Some(target) = build::target_dir("nopanic") else { return };
    let out = build::cargo_build(crate_dir(), &target, &["--release"]);
    assert!(
        out.status.success(),
        "a panic can be reached in a handler crate, or the build is broken:\n{}",
        build::said(&out)
    );
    let library = target.join("release/libsoftfault_nopanic.so");
    let names = std::fs::read(&library).expect("the library");
    let exported = b"nopanic_on_signal";
    assert!(names.windows(exported.len()).any(|w| w == exported), "{}: lacks the handler", library.display());
}

/// The proof that the test above can fail: a function that may index past an array's end.
#[test]
fn a_panic_does_not_link() {
    let Some(target) = build::target_dir("nopanic-bad") else { return };
    let out = build::cargo_build(crate_dir(), &target, &["--release", "--features", "bad"]);
    let text = build::said(&out);
    assert!(!out.status.success(), "it linked");
    assert!(text.contains("handler_can_panic"), "it failed for another reason:\n{text}");
}
