//! The feature `userfaultfd`, on and off, as its users meet it: an example is built both ways, its symbols are read, and
//! the one without it runs on SIGSEGV alone.

mod build;

use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol};
use softfault::VmFaultReason;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("runtime/ lies in the workspace")
}

/// Builds the quickstart example with the feature and without it; `None` where nothing may be built.
///
/// One after the other in one folder, so that what they share is built once.
fn quickstarts() -> Option<&'static [PathBuf; 2]> {
    static BUILT: OnceLock<Option<[PathBuf; 2]>> = OnceLock::new();
    let build = || {
        let target = build::target_dir("symbols")?;
        let one = |name: &str, args: &[&str]| {
            let mut all = vec!["--package", "softfault-examples", "--example", "quickstart", "--release"];
            all.extend(args);
            let out = build::cargo_build(root(), &target, &all);
            assert!(out.status.success(), "{}", build::said(&out));
            let program = target.join(name);
            std::fs::copy(target.join("release/examples/quickstart"), &program).expect("a copy of the program");
            program
        };
        Some([one("quickstart-with", &[]), one("quickstart-without", &["--no-default-features"])])
    };
    BUILT.get_or_init(build).as_ref()
}

/// Returns the program's symbols that contain `part`, as nm(1) shows them.
fn symbols(program: &Path, part: &str) -> Vec<String> {
    let bytes = std::fs::read(program).expect("the program");
    let file: ElfFile64<'_> = ElfFile64::parse(&*bytes).expect("an ELF file");
    let names: Vec<_> = file.symbols().filter_map(|s| s.name().ok().map(str::to_owned)).collect();
    assert!(names.iter().any(|n| n.contains("handle_mm_fault") || n.contains("do_user_addr_fault")), "no symbol table");
    names.into_iter().filter(|n| n.contains(part)).collect()
}

#[test]
fn the_bit_is_nothing_without_the_feature() {
    let want = if cfg!(feature = "userfaultfd") { 0x8000 } else { 0 };
    assert_eq!(VmFaultReason::UFFD_MINOR.0, want);
    const {
        assert!(cfg!(feature = "userfaultfd") != VmFaultReason::UFFD_MINOR.is_empty(), "a constant, for the compiler");
    }
}

#[test]
fn the_ordinary_build_has_handle_userfault() {
    let Some([program, _]) = quickstarts() else { return };
    let found = symbols(program, "handle_userfault");
    assert!(!found.is_empty(), "{} has no handle_userfault", program.display());
}

#[test]
fn without_the_feature_there_is_none_and_it_runs_on_sigsegv() {
    let Some([_, program]) = quickstarts() else { return };
    assert_eq!(symbols(program, "handle_userfault"), [""; 0]);

    let file = program.with_file_name("small.bin");
    let data: Vec<u8> = (0..(3u32 << 20) + 123).map(|i| u8::try_from(i / 7 % 251).unwrap_or(0)).collect();
    std::fs::write(&file, data).expect("a small file");
    let out = Command::new(program).arg(&file).output().expect("quickstart runs");
    let text = format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
    assert!(out.status.success(), "{}:\n{text}", out.status);
    for line in ["delivery Segv", "every byte is right", "every byte was as expected"] {
        assert!(text.contains(line), "it does not say {line:?}:\n{text}");
    }
    // The runtime, not the kernel, brought the pages in.
    let faults = text.lines().find_map(|l| l.trim().split_once(" faults;")).and_then(|(nr, _)| nr.parse::<u64>().ok());
    assert!(faults.is_some_and(|nr| nr > 0), "no fault reached the runtime:\n{text}");
}
