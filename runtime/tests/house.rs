//! The fences that no compiler keeps: who imports whom, where libc and `unsafe` may stand, how long a file may be.
//!
//! Pure reading of the workspace's own source. Each complaint names file and line. The layers are read from the module
//! documentation of the two lower crates, so that what is documented is what holds.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// Files of `runtime/src` that may contain `unsafe`; each says why in its `expect(unsafe_code, reason = ..)`.
const UNSAFE_IN_RUNTIME: &[&str] = &[
    "arena.rs",
    "arena/delegate.rs",
    "arena/end.rs",
    "arena/map.rs",
    "arena/owed.rs",
    "arena/pin.rs",
    "arena/publish.rs",
    "arena/replace.rs",
    "arena/unmap.rs",
    "arena/vma.rs",
    "arena/zap.rs",
    "cache/kswapd.rs",
    "cache/space.rs",
    "cache/swap.rs",
    "calibrate.rs",
    "lease.rs",
    "object.rs",
    "object/builder.rs",
    "object/exclusive/on.rs",
    "object/io.rs",
    "process/opened.rs",
    "process/registry.rs",
    "runtime.rs",
];

/// Files of `bindings-c/src` that may contain `unsafe`: whoever exports something does, or takes pointers from outside.
const UNSAFE_IN_BINDINGS: &[&str] = &[
    "arena.rs",
    "args.rs",
    "callbacks.rs",
    "error.rs",
    "handler/minor.rs",
    "handler/mod.rs",
    "handler/store.rs",
    "handler/vm_fault.rs",
    "object.rs",
    "object_cache.rs",
    "options.rs",
    "pin.rs",
    "runtime.rs",
    "stats.rs",
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

/// One file: its name in the workspace, its text, and its code without comments and literals, line by line.
struct Source {
    name: String,
    text: String,
    code: Vec<String>,
}

impl Source {
    fn new(name: &str, text: &str) -> Self {
        let code = strip(text).lines().map(str::to_owned).collect();
        Self { name: name.to_owned(), text: text.to_owned(), code }
    }

    /// Returns the code before the file's tests, with line numbers from 1.
    fn lines(&self) -> impl Iterator<Item = (usize, &str)> {
        self.code.iter().take(self.nr_before_tests()).enumerate().map(|(i, l)| (i + 1, l.as_str()))
    }

    fn nr_before_tests(&self) -> usize {
        let is_test = |l: &String| {
            let l = l.trim_start();
            l.starts_with("#[cfg(test)]") || l.starts_with("#[cfg(all(test")
        };
        let is_module = |i: usize| self.code.iter().skip(i + 1).take(2).any(|l| l.trim_start().starts_with("mod "));
        (0..self.code.len()).find(|i| is_test(&self.code[*i]) && is_module(*i)).unwrap_or(self.code.len())
    }

    fn complain(&self, line: usize, what: &str) -> String {
        format!("{}:{line}: {what}", self.name)
    }
}

/// Returns `text` with comments, strings and character literals blanked; lines stay lines.
fn strip(text: &str) -> String {
    let s: Vec<char> = text.chars().collect();
    let mut out = String::with_capacity(text.len());
    let mut i = 0;
    let at = |i: usize| s.get(i).copied().unwrap_or('\0');
    // Copies nothing but line ends of `s[from..to]`.
    let blank = |out: &mut String, from: usize, to: usize| {
        out.extend(s[from..to.min(s.len())].iter().map(|c| if *c == '\n' { '\n' } else { ' ' }));
    };
    while i < s.len() {
        let end = match (at(i), at(i + 1)) {
            ('/', '/') => (i..s.len()).find(|j| s[*j] == '\n').unwrap_or(s.len()),
            ('/', '*') => block_comment_end(&s, i),
            ('r', '"' | '#') if !is_word(at(i.wrapping_sub(1))) => raw_string_end(&s, i).unwrap_or(i),
            ('"', _) => string_end(&s, i, '"'),
            ('\'', '\\') => string_end(&s, i, '\''),
            ('\'', _) if at(i + 2) == '\'' => i + 3,
            _ => i,
        };
        if end == i {
            out.push(s[i]);
            i += 1;
        } else {
            blank(&mut out, i, end);
            i = end;
        }
    }
    out
}

fn block_comment_end(s: &[char], start: usize) -> usize {
    let (mut depth, mut i) = (0, start);
    while i + 1 < s.len() {
        match (s[i], s[i + 1]) {
            ('/', '*') => depth += 1,
            ('*', '/') => depth -= 1,
            _ => {
                i += 1;
                continue;
            }
        }
        i += 2;
        if depth == 0 {
            return i;
        }
    }
    s.len()
}

fn string_end(s: &[char], start: usize, quote: char) -> usize {
    let mut i = start + 1;
    while i < s.len() && s[i] != quote {
        i += if s[i] == '\\' { 2 } else { 1 };
    }
    i + 1
}

fn raw_string_end(s: &[char], start: usize) -> Option<usize> {
    let hashes = s[start + 1..].iter().take_while(|c| **c == '#').count();
    let open = start + 1 + hashes;
    if s.get(open) != Some(&'"') {
        return None;
    }
    let closes = |i: &usize| s[*i] == '"' && (1..=hashes).all(|h| s.get(i + h) == Some(&'#'));
    Some((open + 1..s.len()).find(closes).map_or(s.len(), |i| i + 1 + hashes))
}

fn is_word(c: char) -> bool {
    c.is_alphanumeric() || c == '_'
}

/// Returns what follows each occurrence of `word` as a whole word in `line`.
fn after_word<'a>(line: &'a str, word: &'a str) -> impl Iterator<Item = &'a str> {
    line.match_indices(word).filter_map(move |(i, _)| {
        let before = line[..i].chars().next_back().unwrap_or(' ');
        let rest = &line[i + word.len()..];
        (!is_word(before) && !rest.starts_with(is_word)).then_some(rest)
    })
}

fn has_word(line: &str, word: &str) -> bool {
    after_word(line, word).next().is_some()
}

/// Reads the layers from a crate's documentation: the first `text` block behind "The floors", one rank a line; what
/// follows the first two spaces is a remark.
fn layers(lib: &str) -> BTreeMap<String, usize> {
    let block = lib.split("The floors").nth(1).and_then(|s| s.split("```text").nth(1));
    let lines = block.and_then(|s| s.split("```").next()).unwrap_or("").lines();
    let names = |line: &str| -> Vec<String> {
        let line = line.trim_start_matches("//!").trim();
        line.split("  ").next().unwrap_or("").split_whitespace().map(str::to_owned).collect()
    };
    lines
        .map(names)
        .filter(|n| !n.is_empty())
        .enumerate()
        .flat_map(|(r, n)| n.into_iter().map(move |m| (m, r)))
        .collect()
}

/// Returns the crate's own modules that a line names: `crate::x`, `crate::{x, y::Z}`.
fn imports(line: &str) -> Vec<String> {
    let word = |s: &str| s.trim_start().chars().take_while(|c| is_word(*c)).collect::<String>();
    let mut found = Vec::new();
    for rest in after_word(line, "crate") {
        let Some(rest) = rest.strip_prefix("::") else { continue };
        match rest.strip_prefix('{') {
            Some(group) => found.extend(split_group(group).into_iter().map(word)),
            None => found.push(word(rest)),
        }
    }
    found
}

/// Splits the inside of a `use` group at its own commas.
fn split_group(group: &str) -> Vec<&str> {
    let (mut depth, mut from, mut parts) = (0, 0, Vec::new());
    for (i, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' if depth == 0 => {
                parts.push(&group[from..i]);
                return parts;
            }
            '}' => depth -= 1,
            ',' if depth == 0 => {
                parts.push(&group[from..i]);
                from = i + 1;
            }
            _ => {}
        }
    }
    parts.push(&group[from..]);
    parts
}

/// A module imports only from lower layers, and from itself.
fn check_layers(source: &Source, module: &str, layers: &BTreeMap<String, usize>) -> Vec<String> {
    let Some(mine) = layers.get(module) else {
        return vec![source.complain(1, &format!("module `{module}` has no place among the layers in lib.rs"))];
    };
    let mut bad = Vec::new();
    let lines: Vec<_> = source.lines().collect();
    for (i, (nr, line)) in lines.iter().enumerate() {
        // A group may go on over several lines.
        let open = line.contains("crate::{") && !line.contains('}');
        let rest = lines[i..].iter().map(|(_, l)| *l).take(if open { 40 } else { 1 });
        for name in imports(&rest.collect::<Vec<_>>().join(" ")) {
            // A macro, or a name that the crate re-exports, is no module.
            let Some(theirs) = layers.get(&name) else { continue };
            if name != module && theirs > mine {
                bad.push(source.complain(*nr, &format!("`{module}` imports `{name}`, which is above it")));
            }
        }
    }
    bad
}

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

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("runtime/ lies in the workspace").to_owned()
}

/// Reads every Rust file below `dir`.
fn sources(dir: &str) -> Vec<Source> {
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

fn report(bad: &[String]) {
    assert!(bad.is_empty(), "\n{}\n", bad.join("\n"));
}

/// Checks the layers of one lower crate.
fn crate_layers(dir: &str) {
    let files = sources(dir);
    let lib = files.iter().find(|s| s.name == format!("{dir}/lib.rs")).expect("a lib.rs");
    let layers = layers(&lib.text);
    assert!(layers.len() > 5, "{dir}/lib.rs: its documentation has no list of layers");
    // A module is named without its floor, and is on it.
    let mut layers = layers;
    for source in &files {
        let inner = source.name.trim_start_matches(dir).trim_start_matches('/');
        let Some((floor, module)) = inner.split_once('/') else { continue };
        let module = module.split(['/', '.']).next().unwrap_or(module);
        if let Some(rank) = layers.get(floor).copied() {
            layers.entry(module.to_owned()).or_insert(rank);
        }
    }
    let mut bad = Vec::new();
    for source in files.iter().filter(|s| s.name != lib.name) {
        let inner = source.name.trim_start_matches(dir).trim_start_matches('/');
        let module = inner.split(['/', '.']).next().unwrap_or(inner);
        if inner == format!("{module}/mod.rs") {
            continue;
        }
        bad.extend(check_layers(source, module, &layers));
    }
    report(&bad);
}

#[test]
fn mm_imports_only_lower_modules() {
    crate_layers("runtime/mm/src");
}

#[test]
fn platform_imports_only_lower_modules() {
    crate_layers("runtime/platform/src");
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
    for name in ["runtime", "runtime/mm", "bindings-c", "examples", "benches"].map(|d| format!("{d}/Cargo.toml")) {
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
    let mut bad: Vec<String> = sources("runtime/mm/src").iter().flat_map(check_no_unsafe).collect();
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
    let dirs = ["runtime/mm", "runtime/platform", "runtime/src", "runtime/tests", "bindings-c", "examples", "benches"];
    report(&dirs.iter().flat_map(|d| sources(d)).flat_map(|s| check_size_and_docs(&s)).collect::<Vec<_>>());
}

/// Each fence, on a snippet that breaks it.
mod can_fail {
    use super::*;

    fn source(text: &str) -> Source {
        Source::new("snippet.rs", text)
    }

    #[test]
    fn comments_and_literals_are_no_code() {
        let code =
            strip("a // unsafe\n/* unsafe /* */ unsafe */ b \"unsafe \\\" unsafe\" c r#\"unsafe\"# '\\'' '\"' 'x d");
        assert!(!code.contains("unsafe"), "{code}");
        assert_eq!(code.split_whitespace().collect::<Vec<_>>(), ["a", "b", "c", "'x", "d"]);
        assert_eq!(code.lines().count(), 2);
    }

    #[test]
    fn an_upward_import_is_named_with_its_line() {
        let lib = "//! The floors\n//! ```text\n//! low         the lowest\n//! mid other\n//! high\n//! ```\n";
        let layers = layers(lib);
        assert_eq!(layers.len(), 4);
        let check = |text| check_layers(&source(text), "mid", &layers);
        assert_eq!(check("use crate::low::A;\nuse crate::mid::B;\n"), [""; 0]);
        assert_eq!(check("\nuse crate::high::A;"), ["snippet.rs:2: `mid` imports `high`, which is above it"]);
        assert_eq!(check("use crate::{low::{A, B}, high::C};").len(), 1);
        assert_eq!(check("use crate::{\n    low::A,\n    high::C,\n};").len(), 1);
        assert_eq!(check("// crate::high\n#[cfg(test)]\nmod tests {\n    use crate::high::A;\n}"), [""; 0]);
        assert_eq!(check_layers(&source(""), "stranger", &layers).len(), 1);
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
