//! No panic can be reached from the callbacks' adaptors, and from what callbacks may call in a signal handler: `nopanic/`
//! links `src/handler` with a panic handler that calls a function which does not exist.

mod build;

use build::cargo;
use std::path::PathBuf;
use std::process::Output;

fn link(name: &str, args: &[&str]) -> Option<(Output, PathBuf)> {
    let target = build::work_dir(name)?;
    let args = [&["--release"], args].concat();
    Some((cargo::cargo_build(&build::dir().join("tests/nopanic"), &target, &args), target))
}

#[test]
fn the_adaptors_link_without_panics() {
    let Some((out, target)) = link("nopanic", &[]) else { return };
    assert!(out.status.success(), "a panic can be reached, or the build is broken:\n{}", build::said(&out));
    let library = std::fs::read(target.join("release/libsoftfault_c_nopanic.so")).expect("the library");
    for exported in ["nopanic_c_vm_ops", "nopanic_c_store", "nopanic_c_minor", "softfault_filemap_fill_with"] {
        assert!(library.windows(exported.len()).any(|w| w == exported.as_bytes()), "the library lacks {exported}");
    }
}

/// The proof that the test above can fail: a function that may index past an array's end.
#[test]
fn a_panic_does_not_link() {
    let Some((out, _)) = link("nopanic-bad", &["--features", "bad"]) else { return };
    let text = build::said(&out);
    assert!(!out.status.success(), "it linked");
    assert!(text.contains("handler_can_panic"), "it failed for another reason:\n{text}");
}
