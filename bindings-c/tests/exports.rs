//! What the libraries export: every function of the header, and no other name that a program could meet.

mod build;

use object::read::archive::ArchiveFile;
use object::read::elf::ElfFile64;
use object::{Object, ObjectSymbol, SymbolScope};
use std::collections::BTreeSet;

/// Names that are in every archive made by rustc: the compiler's helpers and the language's runtime.
fn is_rust_runtime(name: &str) -> bool {
    // Mangled: nobody else has such names.
    let mangled = name.starts_with("_ZN") || name.starts_with("_R");
    let helper = HELPERS.contains(&name);
    mangled || helper || name.starts_with("DW.ref.rust_eh_personality")
}

/// compiler-rt's and the unwinder's, hidden or weak where they are; and the allocator shim of rustc.
const HELPERS: &[&str] = &["rust_eh_personality", "__rustc_debug_gdb_scripts_section__"];

fn shared_exports() -> Option<BTreeSet<String>> {
    let built = build::built("exports")?;
    let bytes = std::fs::read(&built.shared).expect("the shared library");
    let file: ElfFile64<'_> = ElfFile64::parse(&*bytes).expect("an ELF file");
    let defined = file.dynamic_symbols().filter(|s| s.is_definition());
    Some(defined.filter_map(|s| s.name().ok().map(str::to_owned)).collect())
}

#[test]
fn the_shared_library_exports_the_header() {
    let Some(exported) = shared_exports() else { return };
    let declared: BTreeSet<_> = build::declared().into_iter().collect();
    assert_eq!(exported, declared, "exported (left) and declared (right) are not the same");
}

#[test]
fn every_exported_name_has_the_prefix() {
    let Some(exported) = shared_exports() else { return };
    let strange: Vec<_> = exported.iter().filter(|name| !name.starts_with("softfault_")).collect();
    assert!(strange.is_empty(), "{strange:?}");
}

#[test]
fn the_archive_defines_no_other_global_name() {
    let Some(built) = build::built("exports") else { return };
    let bytes = std::fs::read(&built.archive).expect("the archive");
    let archive = ArchiveFile::parse(&*bytes).expect("an archive");
    let mut strange = BTreeSet::new();
    let mut ours = BTreeSet::new();
    for member in archive.members() {
        let member = member.expect("a member");
        let name = String::from_utf8_lossy(member.name()).into_owned();
        let Ok(file) = ElfFile64::<object::Endianness>::parse(member.data(&*bytes).expect("its bytes")) else {
            continue;
        };
        // What the compiler's own library has is hidden where it is linked, and weak where another one has it, too.
        let compilers = name.contains("compiler_builtins");
        for symbol in file.symbols().filter(|s| s.is_definition() && s.is_global()) {
            let text = symbol.name().unwrap_or("");
            if text.starts_with("softfault_") {
                ours.insert(text.to_owned());
            } else if !is_rust_runtime(text)
                && symbol.scope() != SymbolScope::Linkage
                && !(compilers && symbol.is_weak())
            {
                strange.insert(format!("{name}: {text}"));
            }
        }
    }
    assert_eq!(ours, build::declared().into_iter().collect(), "the archive and the header differ");
    assert!(strange.is_empty(), "{strange:#?}");
}

/// The proof that the tests above can fail.
#[test]
fn a_plain_name_is_not_rusts() {
    assert!(["malloc", "arena_map", "softfault", "rust_helper"].iter().all(|name| !is_rust_runtime(name)));
    assert!(
        ["_ZN4core3fmt5Write9write_fmt17h0E", "_RNvCs1_7___rustc12___rust_alloc"].iter().all(|n| is_rust_runtime(n))
    );
}
