//! `softfault workingset`, verb by verb, on sets of real images.

use crate::support::{answer, done, golden, json, softfault};
use serde_json::Value;
use softfault_image::workingset::{Resolution, WorkingSet};
use softfault_image::{Image, PAGE_SIZE, Writer};
use std::fs;
use std::path::Path;
use tempfile::TempDir;

/// Pages in groups of four: group `g` is filled with `seed + g`.
fn image(path: &Path, groups: &[u8]) {
    let mut w = Writer::create(path, 256).expect("create");
    for (at, value) in (0..).step_by(4).zip(groups) {
        w.write(at, &vec![*value; 4 * PAGE_SIZE]).expect("write");
    }
    w.finish().expect("finish");
}

fn record(image: &Path, path: &Path, windows: &[&[u64]], resolution: Resolution) {
    let mut set = WorkingSet::of(&Image::open(image).expect("open"), resolution).expect("a digest");
    for (nr, pages) in (0u64..).zip(windows) {
        set.push(nr * 2_500_000..(nr + 1) * 2_500_000, pages.iter().copied()).expect("push");
    }
    set.save(path).expect("save");
}

/// `old.sfi`, `new.sfi` with one group moved and one gone, and two recordings of the old one.
fn recorded() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    image(&at("old.sfi"), &[1, 2, 3, 4, 5]);
    image(&at("new.sfi"), &[1, 9, 2, 4, 5]);
    record(&at("old.sfi"), &at("a.sws"), &[&[0, 1, 4], &[8, 9, 10]], Resolution::PAGE);
    record(&at("old.sfi"), &at("b.sws"), &[&[0, 8], &[16]], Resolution::PAGE);
    record(&at("old.sfi"), &at("rounded.sws"), &[&[0]], Resolution::ROUNDED);
    folder
}

fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).expect("text") + "\n"
}

#[test]
fn inspect_says_what_was_touched_when() {
    let folder = recorded();
    golden("workingset-inspect.txt", &done(folder.path(), &["workingset", "inspect", "a.sws"]));
    golden("workingset-inspect.json", &pretty(&json(folder.path(), &["workingset", "inspect", "a.sws"])));
    let beside = ["workingset", "inspect", "--image", "old.sfi"];
    assert_eq!(softfault(folder.path(), &beside).code, Some(1), "there is none beside it yet");
    let old = Image::open(folder.path().join("old.sfi")).expect("open");
    WorkingSet::open(folder.path().join("a.sws")).expect("open").save_beside(&old).expect("save");
    assert_eq!(json(folder.path(), &beside)["pages"], 6);
    let other = ["workingset", "inspect", "a.sws", "--image", "new.sfi"];
    assert_eq!(softfault(folder.path(), &other).code, Some(5), "it is of other contents");
}

#[test]
fn a_set_that_has_grown_is_called_suspicious() {
    let folder = tempfile::tempdir().expect("a folder");
    let at = |name: &str| folder.path().join(name);
    Writer::create(at("a.sfi"), 40_000).expect("create").finish().expect("finish");
    let (many, few): (Vec<u64>, Vec<u64>) = ((0..20_000).collect(), (0..100).collect());
    record(&at("a.sfi"), &at("few.sws"), &[&few], Resolution::PAGE);
    record(&at("a.sfi"), &at("many.sws"), &[&many], Resolution::PAGE);
    let args = ["workingset", "inspect", "--image", "a.sfi", "--before", "few.sws", "many.sws"];
    assert!(json(folder.path(), &args)["suspicion"].as_str().is_some_and(|s| s.contains("from 100 to 20000 pages")));
    let args = ["workingset", "inspect", "--image", "a.sfi", "--before", "many.sws", "many.sws"];
    assert_eq!(json(folder.path(), &args)["suspicion"], Value::Null);
}

#[test]
fn merge_takes_what_enough_recordings_have() {
    let folder = recorded();
    let merge = ["workingset", "merge", "a.sws", "b.sws", "--out"];
    golden("workingset-merge.txt", &done(folder.path(), &[&merge[..], &["any.sws"]].concat()));
    let said = json(folder.path(), &[&merge[..], &["both.sws", "--at-least", "2"]].concat());
    assert_eq!((&said["pages"], &said["recordings"]), (&2.into(), &2.into()));
    let any = WorkingSet::open(folder.path().join("any.sws")).expect("open");
    assert_eq!(any.window(0).expect("one").runs().collect::<Vec<_>>(), [0..2, 4..5, 8..9], "as early as in any");
    let code = |more: &[&str]| softfault(folder.path(), &[&merge[..], more].concat()).code;
    assert_eq!(code(&["x.sws", "--at-least", "3"]), Some(2));
    assert_eq!(code(&["x.sws", "rounded.sws"]), Some(5), "resolutions are not mixed");
    assert!(!folder.path().join("x.sws").exists());
}

#[test]
fn compare_says_how_well_a_set_foretold() {
    let folder = recorded();
    golden("workingset-compare.txt", &done(folder.path(), &["workingset", "compare", "a.sws", "b.sws"]));
    golden("workingset-compare.json", &pretty(&json(folder.path(), &["workingset", "compare", "a.sws", "b.sws"])));
    assert_eq!(softfault(folder.path(), &["workingset", "compare", "a.sws", "rounded.sws"]).code, Some(5));
}

#[test]
fn carry_follows_pages_to_where_they_are_now() {
    let folder = recorded();
    let carry = ["workingset", "carry", "a.sws", "old.sfi", "new.sfi"];
    golden("workingset-carry.txt", &done(folder.path(), &[&carry[..], &["--out", "new.sws"]].concat()));
    let said = json(folder.path(), &carry);
    assert_eq!((&said["stayed"], &said["moved"], &said["lost"]), (&1.into(), &1.into(), &1.into()));
    let new = Image::open(folder.path().join("new.sfi")).expect("open");
    let beside = WorkingSet::find(&new).expect("readable").expect("beside the image");
    assert_eq!(beside, WorkingSet::open(folder.path().join("new.sws")).expect("open"));
    let wrong = ["workingset", "carry", "a.sws", "new.sfi", "old.sfi"];
    assert_eq!(softfault(folder.path(), &wrong).code, Some(5), "the set is not of that image");
}

#[test]
fn every_verb_has_an_exit_code_for_a_corrupt_set() {
    let folder = recorded();
    let mut bytes = fs::read(folder.path().join("a.sws")).expect("read");
    bytes[100] ^= 1;
    fs::write(folder.path().join("bad.sws"), bytes).expect("write");
    let cases: [&[&str]; 6] = [
        &["inspect", "bad.sws"],
        &["merge", "a.sws", "bad.sws", "--out", "new.sws"],
        &["compare", "bad.sws", "b.sws"],
        &["compare", "a.sws", "bad.sws"],
        &["carry", "bad.sws", "old.sfi", "new.sfi"],
        &["inspect", "old.sfi"],
    ];
    for args in cases {
        let run = softfault(folder.path(), &[&["workingset"], args, &["--json"]].concat());
        assert_eq!((run.code, &answer(&run)["name"]), (Some(3), &"corrupt".into()), "{args:?}: {}", run.err);
        assert!(!folder.path().join("new.sws").exists(), "{args:?}");
    }
}
