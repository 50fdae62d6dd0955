//! The program itself: its help, its exit codes, what it writes for packagers, and where it speaks.

use crate::support::{answer, done, golden, json, schema, schemas, softfault};
use std::collections::BTreeSet;
use std::fs;

/// Returns the verbs below a verb, out of its help.
fn below(path: &[&str]) -> Vec<String> {
    let help = done(&std::env::temp_dir(), &[path, &["--help"]].concat());
    let list = help.split("Commands:\n").nth(1).and_then(|s| s.split("\n\n").next()).unwrap_or("");
    let names = list.lines().filter(|l| l.starts_with("  ") && !l.starts_with("   "));
    names.filter_map(|l| l.split_whitespace().next()).filter(|n| *n != "help").map(str::to_owned).collect()
}

/// Returns every verb that does something.
fn verbs() -> Vec<Vec<String>> {
    let (mut found, mut open) = (Vec::new(), vec![Vec::new()]);
    while let Some(path) = open.pop() {
        let words: Vec<_> = path.iter().map(String::as_str).collect();
        let names = below(&words);
        if names.is_empty() {
            found.push(path);
        } else {
            open.extend(names.into_iter().map(|n| [path.clone(), vec![n]].concat()));
        }
    }
    found.sort();
    found
}

#[test]
fn each_verb_has_help_with_examples() {
    let verbs = verbs();
    assert!(verbs.len() >= 12, "{verbs:?}");
    for verb in &verbs {
        let words: Vec<_> = verb.iter().map(String::as_str).collect();
        let help = done(&std::env::temp_dir(), &[&words[..], &["--help"]].concat());
        let example = format!("Examples:\n  softfault {}", verb.join(" "));
        assert!(help.contains(&example), "{verb:?} has no example of itself:\n{help}");
    }
    golden("help.txt", &done(&std::env::temp_dir(), &["--help"]));
}

#[test]
fn each_verb_that_answers_has_a_schema_and_each_schema_a_verb() {
    let answers = verbs().into_iter().filter(|v| v[0] != "generate").map(|v| v.join("-"));
    let wanted: BTreeSet<_> = answers.chain(["error".to_owned()]).collect();
    let names = fs::read_dir(schemas()).expect("schemas").map(|e| e.expect("an entry").path());
    let found: BTreeSet<_> = names.map(|p| p.file_stem().expect("a name").to_string_lossy().into_owned()).collect();
    assert_eq!(found, wanted);
    for kind in found {
        assert_eq!(schema::read(&kind)["properties"]["kind"]["const"], kind.replacen('-', " ", 1), "{kind}");
    }
}

#[test]
fn the_schema_test_can_fail() {
    let schema = schema::read("error");
    let good = serde_json::json!({"kind": "error", "code": 3, "name": "corrupt", "error": "x"});
    schema::check(&schema, &good).expect("as it is");
    for (name, value) in
        [("code", serde_json::json!("3")), ("name", "odd".into()), ("more", 1.into()), ("code", (-1).into())]
    {
        let mut bad = good.clone();
        bad[name] = value;
        assert!(schema::check(&schema, &bad).is_err(), "{bad}");
    }
    let mut bad = good;
    bad.as_object_mut().expect("an object").remove("error");
    assert!(schema::check(&schema, &bad).is_err(), "{bad}");
}

#[test]
fn man_pages_and_completions_know_every_verb() {
    let folder = tempfile::tempdir().expect("a folder");
    done(folder.path(), &["generate", "man", "man1"]);
    for verb in verbs() {
        let name = format!("softfault-{}.1", verb.join("-"));
        let page = fs::read_to_string(folder.path().join("man1").join(&name)).unwrap_or_else(|e| panic!("{name}: {e}"));
        assert!(page.contains(".TH") && page.contains("Examples"), "{name}:\n{page}");
    }
    for shell in ["bash", "zsh", "fish"] {
        let script = done(folder.path(), &["generate", "completions", shell]);
        for verb in verbs() {
            let last = verb.last().expect("a word");
            assert!(script.contains(last.as_str()), "{shell}: {last}");
        }
    }
}

#[test]
fn what_goes_wrong_is_said_on_standard_error() {
    let folder = tempfile::tempdir().expect("a folder");
    let run = softfault(folder.path(), &["image", "inspect", "none.sfi"]);
    assert_eq!((run.code, run.out.as_str()), (Some(1), ""));
    assert!(run.err.starts_with("softfault: open none.sfi: "), "{}", run.err);
    let said = answer(&softfault(folder.path(), &["image", "inspect", "none.sfi", "--json"]));
    assert_eq!((&said["code"], &said["name"]), (&1.into(), &"failed".into()));
    assert_eq!(json(folder.path(), &["image", "tag", "."])["tags"], serde_json::json!({}));
    assert_eq!(softfault(folder.path(), &["image", "inspct"]).code, Some(2));
    let run = softfault(folder.path(), &["image", "inspct", "--json"]);
    assert_eq!(
        (run.code, &answer(&run)["name"]),
        (Some(2), &"usage".into()),
        "JSON, though no verb was found: {run:?}"
    );
    assert!(done(folder.path(), &["image", "--help", "--json"]).contains("Usage:"), "help is for people");
    assert_eq!(softfault(folder.path(), &["image", "inspect", "x.sfi", "--diff", "y"]).code, Some(2));
    assert_eq!(softfault(folder.path(), &["image", "inspect", "x", "--from", "criu"]).code, Some(2));
}

/// `softfault ... | head -1` is no failure.
#[test]
fn who_reads_may_stop_reading() {
    use std::process::{Command, Stdio};
    let mut child = Command::new(env!("CARGO_BIN_EXE_softfault"))
        .args(["generate", "completions", "bash"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program runs");
    drop(child.stdout.take());
    let output = child.wait_with_output().expect("it ends");
    assert_eq!((output.status.code(), output.stderr.len()), (Some(0), 0), "{output:?}");
}
