//! The fences that no compiler keeps: who imports whom, where libc and `unsafe` may stand, how long a file may be.
//!
//! Pure reading of the workspace's own source. Each complaint names file and line. The floors of each crate are a table in
//! `fence/floors.rs`.

#[path = "fence/mod.rs"]
mod fence;

use fence::floors::{HOUSES, House};
use fence::modules::Crate;
use fence::source::{Source, after_word, has_word};
use fence::{contexts, functions, impls, imports, orderings, report, root, sources};
use std::fs;
use std::sync::OnceLock;

/// Files of `runtime/src` that may contain `unsafe`; each says why in its `expect(unsafe_code, reason = ..)`.
const UNSAFE_IN_RUNTIME: &[&str] = &[
    "arena.rs",
    "arena/builder.rs",
    "arena/bytes.rs",
    "arena/delegation.rs",
    "arena/dont_need.rs",
    "arena/end.rs",
    "arena/exclusive.rs",
    "arena/direct.rs",
    "arena/fault_in.rs",
    "arena/map.rs",
    "arena/owed.rs",
    "arena/protect.rs",
    "arena/publish.rs",
    "arena/record.rs",
    "arena/zap.rs",
    "cache/frames.rs",
    "cache/kswapd.rs",
    "cache/space.rs",
    "cache/start.rs",
    "cache/swap.rs",
    "calibrate.rs",
    "lease.rs",
    "mapped.rs",
    "object/builder.rs",
    "object/end.rs",
    "object/exclusive/off.rs",
    "object/exclusive/on.rs",
    "object/io.rs",
    "object/make.rs",
    "object/state.rs",
    "process/opened.rs",
    "process/registry.rs",
    "snapshot/capture/end.rs",
    "snapshot/here.rs",
];

/// Files of `bindings-c/src` that may contain `unsafe`: whoever exports something does, or takes pointers from outside.
const UNSAFE_IN_BINDINGS: &[&str] = &[
    "arena.rs",
    "args.rs",
    "callbacks.rs",
    "capture.rs",
    "catalog.rs",
    "error.rs",
    "handler/minor.rs",
    "handler/mod.rs",
    "handler/store.rs",
    "handler/vm_fault.rs",
    "image.rs",
    "image_ops.rs",
    "image_options.rs",
    "image_writer.rs",
    "object.rs",
    "object_cache.rs",
    "options.rs",
    "pin.rs",
    "runtime.rs",
    "session.rs",
    "stats.rs",
    "working_set.rs",
];

/// Lines of a file before its tests; tests themselves may be longer.
const MAX_LINES: usize = 600;

/// What makes system calls that no test can have fail, unless it goes by `by_std`.
const BY_STD: &[&str] = &[
    "std::fs::read",
    "std::fs::remove",
    "std::fs::write",
    "use std::fs;",
    "File::open",
    "File::create",
    "OpenOptions::open",
    "thread::spawn",
    ".spawn(",
    ".metadata()",
];

/// What a handler crate never says, tests excepted.
const NEVER: &[&str] = &["todo!", "dbg!", "unimplemented!", "unreachable!", "panic!", ".unwrap()", ".expect("];

/// Code names a crate only where it may; `follow`: only with one of these behind it.
fn check_crate(source: &Source, name: &str, follow: &[&str]) -> Vec<String> {
    let bad = |line: &str| after_word(line, name).any(|rest| !follow.iter().any(|f| rest.starts_with(f)));
    let lines = source.code.iter().enumerate().filter(|(_, l)| bad(l));
    let only = if follow.is_empty() { String::new() } else { format!(" except `{name}{}`", follow.join("`, `")) };
    lines.map(|(i, _)| source.complain(i + 1, &format!("must not name `{name}`{only}"))).collect()
}

fn check_no_unsafe(source: &Source) -> Vec<String> {
    let lines = source.code.iter().enumerate().filter(|(_, l)| has_word(l, "unsafe"));
    lines.map(|(i, _)| source.complain(i + 1, "`unsafe` is not allowed in this file")).collect()
}

fn check_words(source: &Source, words: &[&str]) -> Vec<String> {
    let mut bad = Vec::new();
    for (nr, line) in source.lines() {
        bad.extend(words.iter().filter(|w| line.contains(**w)).map(|w| source.complain(nr, &format!("says `{w}`"))));
    }
    bad
}

fn check_never(source: &Source) -> Vec<String> {
    check_words(source, NEVER)
}

fn check_size_and_docs(source: &Source) -> Vec<String> {
    let mut bad = Vec::new();
    let nr = source.nr_before_tests();
    if nr > MAX_LINES && !source.name.contains("/tests/") {
        bad.push(source.complain(MAX_LINES + 1, &format!("{nr} lines before its tests, at most {MAX_LINES}")));
    }
    if !source.text.starts_with("//!") && !source.text.starts_with("#![doc = include_str!(") {
        bad.push(source.complain(1, "has no module documentation"));
    }
    bad
}

/// A manifest may depend on libc only for tests, the platform's excepted.
fn check_manifest(name: &str, text: &str) -> Vec<String> {
    let mut section = "";
    let mut bad = Vec::new();
    for (i, line) in text.lines().enumerate() {
        if line.starts_with('[') {
            section = line;
        }
        if section.contains("dependencies") && !section.contains("dev-") && line.starts_with("libc") {
            bad.push(format!("{name}:{}: libc belongs to runtime/platform alone", i + 1));
        }
    }
    bad
}

/// Returns each house with its crate as it lies in the workspace.
fn crates() -> &'static [(&'static House, Crate)] {
    static CRATES: OnceLock<Vec<(&'static House, Crate)>> = OnceLock::new();
    let read = |name: &str| fs::read_to_string(root().join(name)).ok();
    CRATES.get_or_init(|| HOUSES.iter().map(|h| (h, Crate::read(h.root, &read))).collect())
}

#[test]
fn every_file_is_read() {
    let mut bad: Vec<_> = crates().iter().flat_map(|(_, c)| c.bad.iter().cloned()).collect();
    let is_read =
        |s: &Source| crates().iter().any(|(_, c)| c.files().contains(s.name.as_str()) || c.tests.contains(&s.name));
    for (house, _) in crates() {
        let forgotten = sources(house.dir()).into_iter().filter(|s| !is_read(s));
        bad.extend(forgotten.map(|s| s.complain(1, "belongs to no module of a crate")));
    }
    report(&bad);
}

#[test]
fn no_import_leads_to_a_higher_floor() {
    report(&crates().iter().flat_map(|(h, c)| imports::check_floors(h, c)).collect::<Vec<_>>());
}

/// Returns the names on each floor that a crate's documentation speaks of: the first `text` block behind "The floors", what
/// follows the first two spaces of a line being a remark.
fn documented_floors(lib: &str) -> Vec<Vec<&str>> {
    let block = lib.split("The floors").nth(1).and_then(|s| s.split("```text").nth(1));
    let lines = block.and_then(|s| s.split("```").next()).unwrap_or("").lines();
    let names = |line| str::trim_start_matches(line, "//!").trim().split("  ").next().unwrap_or("").split_whitespace();
    lines.map(|l| names(l).collect()).filter(|names: &Vec<_>| !names.is_empty()).collect()
}

#[test]
fn floors_are_those_of_the_documentation() {
    for (house, _) in crates() {
        let lib = fs::read_to_string(root().join(house.root)).expect("a root");
        let documented = documented_floors(&lib);
        assert!(documented.is_empty() || documented == house.floors, "{}: {documented:?}", house.root);
    }
    let documented = |dir| documented_floors(&fs::read_to_string(root().join(dir)).expect("a root")).len();
    assert!(documented("runtime/mm/src/lib.rs") > 5 && documented("runtime/platform/src/lib.rs") > 5);
}

#[test]
fn no_files_import_each_other_in_a_circle() {
    report(&crates().iter().flat_map(|(h, c)| imports::check_circles(h, c)).collect::<Vec<_>>());
}

#[test]
fn methods_stand_with_their_type() {
    report(&crates().iter().flat_map(|(h, c)| impls::check_impls(h, c)).collect::<Vec<_>>());
}

#[test]
fn functions_say_where_they_may_be_called() {
    report(&crates().iter().flat_map(|(h, c)| contexts::check_contexts(h, c)).collect::<Vec<_>>());
}

#[test]
fn functions_are_short() {
    report(&crates().iter().flat_map(|(h, c)| functions::check_functions(h, c)).collect::<Vec<_>>());
}

#[test]
fn orderings_name_their_other_half() {
    let known = orderings::known_functions(crates().iter().map(|(_, c)| c));
    let mut bad = Vec::new();
    for (house, krate) in crates().iter().filter(|(h, _)| h.orderings) {
        for source in sources(house.dir()) {
            bad.extend(orderings::check_orderings(house, krate, &source, &known));
        }
    }
    report(&bad);
}

#[test]
fn crates_see_only_what_lies_below() {
    let mut bad = Vec::new();
    for s in sources("runtime/mm/src") {
        bad.extend(["softfault", "softfault_platform", "libc"].iter().flat_map(|c| check_crate(&s, c, &[])));
    }
    for s in sources("runtime/platform/src") {
        bad.extend(check_crate(&s, "softfault", &[]));
    }
    for s in sources("examples") {
        bad.extend(["softfault_mm", "softfault_platform", "libc"].iter().flat_map(|c| check_crate(&s, c, &[])));
    }
    for s in sources("runtime/cli") {
        bad.extend(["softfault_mm", "softfault_platform", "libc"].iter().flat_map(|c| check_crate(&s, c, &[])));
    }
    for s in sources("bindings-c/src") {
        bad.extend(["softfault_mm", "softfault_platform", "libc"].iter().flat_map(|c| check_crate(&s, c, &[])));
    }
    for s in sources("benches") {
        // Floors and peers are raw system calls: they use the platform's.
        bad.extend(check_crate(&s, "softfault_platform", &["::sys"]));
        // What the simulation of replacement measures is what runs.
        bad.extend(check_crate(&s, "softfault_mm", &["::workingset"]));
    }
    report(&bad);
}

/// Returns the rows of the README's table of differences, without their tests' names, and those.
fn differences(readme: &str) -> Vec<(String, Vec<(String, String)>)> {
    let section = readme.split("## What is different from mmap").nth(1).and_then(|s| s.split("\n## ").next());
    let rows = section.unwrap_or("").lines().filter(|l| l.starts_with("| ")).skip(1);
    let row = |line: &str| {
        let what = line.trim_start_matches("| ").split(" |").next().unwrap_or("").to_owned();
        let last = line.trim_end_matches(" |").rsplit("| ").next().unwrap_or("");
        let names = last.split('`').skip(1).step_by(2).filter_map(|n| n.split_once("::"));
        (what, names.map(|(file, test)| (file.to_owned(), test.to_owned())).collect())
    };
    rows.map(row).collect()
}

/// What the README says of mmap is what some test has seen.
#[test]
fn every_difference_from_mmap_has_its_test() {
    let readme = fs::read_to_string(root().join("README.md")).expect("README.md");
    let rows = differences(&readme);
    assert!(rows.len() >= 12, "the table has {} rows", rows.len());
    let mut bad = Vec::new();
    for (what, tests) in rows {
        if tests.is_empty() {
            bad.push(format!("README.md: `{what}` names no test"));
        }
        for (file, test) in tests {
            let has = |dir: &str, indent: &str, name: &str| {
                let text = fs::read_to_string(root().join(dir).join(format!("{file}.rs"))).unwrap_or_default();
                text.contains(&format!("\n{indent}#[test]\n{indent}fn {name}()"))
            };
            let is_there = match test.strip_prefix("tests::") {
                Some(name) => has("runtime/src", "    ", name),
                None => has("runtime/tests", "", &test) || has("bindings-c/tests", "", &test),
            };
            if !is_there {
                bad.push(format!("README.md: `{what}`: there is no test {file}::{test}"));
            }
        }
    }
    report(&bad);
}

#[test]
fn libc_is_named_in_sys_alone() {
    let mut bad = Vec::new();
    for dir in ["runtime/platform/src", "runtime/src", "benches"] {
        for s in sources(dir).iter().filter(|s| !s.name.starts_with("runtime/platform/src/sys/")) {
            bad.extend(check_crate(s, "libc", &[]));
        }
    }
    for name in ["runtime", "runtime/mm", "bindings-c", "examples", "examples/warm_start", "benches"]
        .map(|d| format!("{d}/Cargo.toml"))
    {
        let text = fs::read_to_string(root().join(&name)).expect("a manifest");
        bad.extend(check_manifest(&name, &text));
    }
    report(&bad);
}

#[test]
fn the_standard_librarys_calls_can_be_made_to_fail() {
    let all = ["runtime/src", "runtime/platform/src"].map(sources);
    let others = all.iter().flatten().filter(|s| s.name != "runtime/src/by_std.rs");
    report(&others.flat_map(|s| check_words(s, BY_STD)).collect::<Vec<_>>());
}

#[test]
fn unsafe_stands_only_where_it_may() {
    let none = ["runtime/mm/src", "runtime/cli"].map(sources);
    let mut bad: Vec<String> = none.iter().flatten().flat_map(check_no_unsafe).collect();
    let mut used = Vec::new();
    for s in sources("runtime/src") {
        let inner = s.name.trim_start_matches("runtime/src/");
        let found = check_no_unsafe(&s);
        if !UNSAFE_IN_RUNTIME.contains(&inner) {
            bad.extend(found);
        } else if !found.is_empty() {
            used.push(inner.to_owned());
            if !s.code.iter().any(|l| l.contains("expect(unsafe_code") || l.trim_start().starts_with("unsafe_code")) {
                bad.push(s.complain(1, "has `unsafe` but no expect(unsafe_code) that says why"));
            }
        }
    }
    for s in sources("bindings-c/src") {
        let inner = s.name.trim_start_matches("bindings-c/src/");
        let found = check_no_unsafe(&s);
        match UNSAFE_IN_BINDINGS.contains(&inner) {
            true if found.is_empty() => bad.push(s.complain(1, "listed in house.rs, and has no `unsafe` (any more)")),
            true => {}
            false => bad.extend(found),
        }
    }
    let stale = UNSAFE_IN_RUNTIME.iter().filter(|f| !used.iter().any(|u| u == *f));
    bad.extend(stale.map(|f| format!("runtime/src/{f}:1: listed in house.rs, and has no `unsafe` (any more)")));
    report(&bad);
}

#[test]
fn handler_crates_do_not_give_up() {
    let files = sources("runtime/mm/src").into_iter().chain(sources("runtime/platform/src"));
    report(&files.flat_map(|s| check_never(&s)).collect::<Vec<_>>());
}

#[test]
fn files_are_short_and_documented() {
    let dirs = [
        "runtime/mm",
        "runtime/platform",
        "runtime/src",
        "runtime/tests",
        "runtime/cli",
        "bindings-c",
        "examples",
        "benches",
    ];
    report(&dirs.iter().flat_map(|d| sources(d)).flat_map(|s| check_size_and_docs(&s)).collect::<Vec<_>>());
}

/// Each fence, on a snippet that breaks it.
mod can_fail {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("snippet.rs", text)
    }

    #[test]
    fn a_forbidden_crate_is_named_with_its_line() {
        let s = source("\nuse softfault_platform::sys::mem;\nuse softfault_platform::host;\n");
        let bad = check_crate(&s, "softfault_platform", &["::sys"]);
        assert_eq!(bad, ["snippet.rs:3: must not name `softfault_platform` except `softfault_platform::sys`"]);
        assert_eq!(check_crate(&source("let x = libc::EIO;"), "libc", &[]).len(), 1);
        assert_eq!(check_crate(&source("let my_libc = \"libc\";"), "libc", &[]), [""; 0]);
        assert_eq!(check_crate(&s, "softfault", &[]), [""; 0], "a longer name is another crate");
    }

    #[test]
    fn unsafe_code_is_named_with_its_line() {
        let s = source("#![forbid(unsafe_code)]\nfn f() {\n    unsafe { g() }\n}\n");
        assert_eq!(check_no_unsafe(&s), ["snippet.rs:3: `unsafe` is not allowed in this file"]);
    }

    #[test]
    fn giving_up_is_named_with_its_line_except_in_tests() {
        let s = source(
            "fn f() {\n    g().unwrap();\n    todo!()\n}\n#[cfg(all(test, not(loom)))]\nmod tests { fn t() { h().unwrap() } }\n",
        );
        assert_eq!(check_never(&s), ["snippet.rs:2: says `.unwrap()`", "snippet.rs:3: says `todo!`"]);
    }

    #[test]
    fn long_and_undocumented_files_are_named() {
        let long = "//! Long.\n".to_owned() + &"fn f() {}\n".repeat(MAX_LINES);
        assert_eq!(check_size_and_docs(&source(&long)), ["snippet.rs:601: 601 lines before its tests, at most 600"]);
        let tested = "//! Short.\n#[cfg(test)]\nmod tests {\n".to_owned() + &"fn f() {}\n".repeat(MAX_LINES) + "}\n";
        assert_eq!(check_size_and_docs(&source(&tested)), [""; 0]);
        assert_eq!(check_size_and_docs(&source("fn f() {}\n")), ["snippet.rs:1: has no module documentation"]);
    }

    #[test]
    fn a_manifest_may_name_libc_for_tests_only() {
        let bad =
            check_manifest("Cargo.toml", "[dependencies]\nlibc.workspace = true\n[dev-dependencies]\nlibc = \"1\"\n");
        assert_eq!(bad, ["Cargo.toml:2: libc belongs to runtime/platform alone"]);
    }
}
