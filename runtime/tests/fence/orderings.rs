//! Every ordering stronger than `Relaxed` names the function that holds its other half.
//!
//! In a comment of the same function, on the line or above it, or in the function's documentation: "pairs with" or "pair with",
//! and the functions in backticks. A name is that of a function, `file::function`, or `Type::function`.

use super::floors::House;
use super::modules::{Crate, Function};
use super::source::{Source, has_word};
use std::collections::BTreeSet;

const STRONG: [&str; 4] = ["Acquire", "Release", "AcqRel", "SeqCst"];

/// Names by which functions of the workspace may be called: `f`, `file::f`, `Type::f`.
pub(crate) fn known_functions<'a>(crates: impl Iterator<Item = &'a Crate>) -> BTreeSet<String> {
    let mut known = BTreeSet::new();
    for module in crates.flat_map(|c| &c.modules) {
        let stem = module.file.trim_end_matches("/mod.rs").trim_end_matches(".rs").rsplit('/').next().unwrap_or("");
        for f in &module.functions {
            known.insert(f.name.clone());
            known.insert(format!("{stem}::{}", f.name));
            known.extend(f.of.iter().map(|of| format!("{of}::{}", f.name)));
        }
    }
    known
}

/// Returns what a comment says is paired with, if it says so.
fn pairs_of(text: &str) -> Vec<String> {
    let Some(at) = ["pairs with", "pair with", "Pairs with", "Pair with"]
        .iter()
        .filter_map(|p| text.find(p).map(|i| i + p.len()))
        .min()
    else {
        return Vec::new();
    };
    let sentence = text[at..].split(". ").next().unwrap_or("");
    let names = sentence.split('`').skip(1).step_by(2);
    names.map(|n| n.trim_end_matches("()").to_owned()).filter(|n| !n.is_empty()).collect()
}

/// Complains of orderings that name no other half, and of names that are no functions.
pub(crate) fn check_orderings(house: &House, krate: &Crate, source: &Source, known: &BTreeSet<String>) -> Vec<String> {
    if !house.orderings {
        return Vec::new();
    }
    let functions: Vec<&Function> =
        krate.modules.iter().filter(|m| m.file == source.name).flat_map(|m| &m.functions).collect();
    let mut bad = Vec::new();
    for (nr, line) in source.lines() {
        if !STRONG.iter().any(|s| has_word(line, s)) || line.trim_start().starts_with("use ") {
            continue;
        }
        // The innermost function that the line is in.
        let inside = functions.iter().filter(|f| f.lines.0 <= nr && nr <= f.lines.2).max_by_key(|f| f.lines.1);
        let Some(f) = inside else { continue };
        let comments = source.comments(f.lines.0, nr);
        let pairs = pairs_of_all(&comments);
        if pairs.is_empty() {
            bad.push(source.complain(nr, "stronger than Relaxed, and names no function that holds the other half"));
        }
        let unknown = pairs.into_iter().filter(|p| !known.contains(p));
        bad.extend(unknown.map(|p| source.complain(nr, &format!("there is no function `{p}` to pair with"))));
    }
    bad
}

fn pairs_of_all(comments: &str) -> Vec<String> {
    // Each comment that begins anew, and each mention in it.
    let mut found = Vec::new();
    let mut rest = comments;
    while let Some(i) = rest.find("air with").or_else(|| rest.find("airs with")) {
        let i = rest.find("airs with").map_or(i, |j| j.min(i));
        found.extend(pairs_of(&format!("p{}", &rest[i..])));
        rest = &rest[i + 8..];
    }
    found
}

mod can_fail {
    use super::super::modules::made_up;
    use super::*;

    fn check(text: &str) -> Vec<String> {
        let house = House { root: "low.rs", orderings: true, ..House::NONE };
        let krate = made_up(&[("low.rs", text)]);
        let known = known_functions([&krate].into_iter());
        check_orderings(&house, &krate, &Source::new("low.rs", text), &known)
    }

    #[test]
    fn an_ordering_without_its_other_half_is_named() {
        let none = "stronger than Relaxed, and names no function that holds the other half";
        assert_eq!(check("fn f() {\n    W.load(Acquire);\n}"), [format!("low.rs:2: {none}")]);
        assert_eq!(check("// pairs with `f`\n\nfn g() {}\nfn f() { W.load(SeqCst) }"), [format!("low.rs:4: {none}")]);
        assert_eq!(check("fn f() {\n    // pairs with g\n    W.load(Acquire);\n}"), [format!("low.rs:3: {none}")]);
        assert_eq!(check("fn f() {\n    W.load(Acquire);\n    // pairs with `f`\n}"), [format!("low.rs:2: {none}")]);
    }

    #[test]
    fn a_name_that_is_no_function_is_named() {
        let gone = "low.rs:1: there is no function `low::gone` to pair with";
        assert_eq!(check("fn f() { W.load(Acquire); } // pairs with `low::gone`"), [gone]);
    }

    #[test]
    fn an_ordering_with_its_other_half_is_let_be() {
        assert_eq!(
            check(
                "fn f() {\n    // Acquire: pairs with `g`, and\n    // `low::g`.\n    W.load(Acquire);\n}\nfn g() {}"
            ),
            [""; 0]
        );
        assert_eq!(
            check("struct T;\nimpl T {\n    /// It pairs with `T::f`.\n    fn f() { W.load(SeqCst) }\n}"),
            [""; 0]
        );
        assert_eq!(check("fn f() { W.load(Relaxed) }\n// Acquire\nuse x::Acquire;"), [""; 0]);
        assert_eq!(check("#[cfg(test)]\nmod tests {\n fn f() { W.load(SeqCst) }\n}"), [""; 0]);
    }
}
