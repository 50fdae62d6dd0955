//! `softfault heatmap`, `timeline` and `bench restore`, on what a session has really recorded.

use crate::support::{answer, done, golden, json, softfault};
use softfault::{Restore, Runtime};
use softfault_image::workingset::{Resolution, WorkingSet};
use softfault_image::{Image, PAGE_SIZE, Prot, Region, Writer};
use std::fs;
use std::path::Path;
use std::time::Duration;
use tempfile::TempDir;

/// An image of two regions, `text` and `heap`.
fn image(path: &Path) {
    let mut w = Writer::create(path, 1024).expect("create");
    let bytes = |pages: u64| pages * PAGE_SIZE as u64;
    let region = |name: &str, address, first, pages, prot| Region {
        name: name.into(),
        address,
        offset: bytes(first),
        len_bytes: bytes(pages),
        prot,
    };
    w.region(region("text", 0x40_0000, 0, 512, Prot::READ)).expect("a region");
    w.region(region("heap", 0x7f00_0000_0000, 512, 512, Prot::READ | Prot::WRITE)).expect("a region");
    for page in 0..1024 {
        w.write(page, &[u8::try_from(page % 250).expect("small") + 1; PAGE_SIZE]).expect("write");
    }
    w.finish().expect("finish");
}

/// `heap.sfi`, and `first.sws`, whose times are known.
fn recorded() -> TempDir {
    let folder = tempfile::tempdir().expect("a folder");
    image(&folder.path().join("heap.sfi"));
    let image = Image::open(folder.path().join("heap.sfi")).expect("open");
    let mut set = WorkingSet::of(&image, Resolution::PAGE).expect("a digest");
    set.push(0..2_000_000, (0..64).chain([600])).expect("push");
    set.push(2_000_000..4_000_000, 512..540).expect("push");
    set.push(9_000_000..10_000_000, [100, 1023]).expect("push");
    set.save(folder.path().join("first.sws")).expect("save");
    folder
}

fn pretty(value: &serde_json::Value) -> String {
    serde_json::to_string_pretty(value).expect("text") + "\n"
}

#[test]
fn a_heatmap_shows_pages_by_time() {
    let folder = recorded();
    let args = ["heatmap", "first.sws", "--image", "heap.sfi", "--rows", "16", "--columns", "20", "--svg", "first.svg"];
    golden("heatmap.txt", &done(folder.path(), &args));
    golden("heatmap.svg", &fs::read_to_string(folder.path().join("first.svg")).expect("read"));
    let said = json(folder.path(), &["heatmap", "first.sws", "--rows", "4", "--columns", "2"]);
    golden("heatmap.json", &pretty(&said));
    assert_eq!(softfault(folder.path(), &["heatmap", "first.sws", "--rows", "0"]).code, Some(2));
}

#[test]
fn a_timeline_shows_each_window() {
    let folder = recorded();
    golden("timeline.txt", &done(folder.path(), &["timeline", "first.sws", "--image", "heap.sfi"]));
    golden("timeline.json", &pretty(&json(folder.path(), &["timeline", "first.sws"])));
}

/// What a session writes is what the verbs read.
#[test]
fn a_session_writes_what_is_shown() {
    let folder = recorded();
    let runtime = Runtime::builder().cache_limit(64 << 20).build().expect("a runtime");
    let opened = runtime.open_image(folder.path().join("heap.sfi")).expect("open");
    let session = Restore::new(&opened).record(Duration::from_millis(1)).build().expect("a session");
    let heap = session.region("heap").expect("a region");
    let mut bytes = [0; 8];
    for page in [3, 4, 9] {
        heap.arena().read_at(heap.range().start + page * PAGE_SIZE, &mut bytes).expect("a page");
    }
    let set = session.mark().expect("marked").expect("recorded");
    set.save(folder.path().join("events.sws")).expect("save");
    let said = json(folder.path(), &["timeline", "events.sws", "--image", "heap.sfi"]);
    let windows = said["windows"].as_array().expect("windows");
    let of = |name: &str| {
        let regions = windows.iter().flat_map(|w| w["regions"].as_array().expect("regions"));
        regions.filter(|r| r["name"] == name).map(|r| r["pages"].as_u64().expect("a number")).sum::<u64>()
    };
    assert_eq!((said["pages"].as_u64(), of("heap"), of("text")), (Some(3), 3, 0), "{said}");
}

#[test]
fn recordings_that_are_corrupt_or_of_another_image_are_refused() {
    let folder = recorded();
    Writer::create(folder.path().join("other.sfi"), 8).expect("create").finish().expect("finish");
    let mut bytes = fs::read(folder.path().join("first.sws")).expect("read");
    bytes[100] ^= 1;
    fs::write(folder.path().join("bad.sws"), bytes).expect("write");
    for verb in ["heatmap", "timeline"] {
        let run = softfault(folder.path(), &[verb, "bad.sws", "--json"]);
        assert_eq!((run.code, &answer(&run)["name"]), (Some(3), &"corrupt".into()), "{verb}: {}", run.err);
        assert_eq!(softfault(folder.path(), &[verb, "first.sws", "--image", "other.sfi"]).code, Some(5), "{verb}");
    }
}

/// How long it takes is the machine's affair; which steps there are is not.
#[test]
fn a_restore_is_measured_step_by_step() {
    let folder = recorded();
    let steps = |args: &[&str]| {
        let said = json(folder.path(), &[&["bench", "restore", "heap.sfi", "--runs", "2"], args].concat());
        assert_eq!(said["resident_bytes"], 1024 * PAGE_SIZE, "{said}");
        let steps = said["steps"].as_array().expect("steps").iter();
        steps.map(|s| s["step"].as_str().expect("text").to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(steps(&["--cold"]), ["open", "ready", "first", "complete", "end", "read"]);
    let all = steps(&["--working-set", "first.sws"]);
    assert_eq!(all, ["open", "ready", "first", "complete", "end", "set", "replayed", "read"]);
    let text = done(folder.path(), &["bench", "restore", "heap.sfi", "--runs", "1"]);
    assert!(text.starts_with("heap.sfi: 4.0 MiB of memory, hot, 1 run; us"), "{text}");
}

#[test]
fn a_restore_of_a_corrupt_image_ends_with_its_exit_code() {
    let folder = recorded();
    let path = folder.path().join("heap.sfi");
    let mut bytes = fs::read(&path).expect("read");
    let at = bytes.windows(64).position(|w| w == [78; 64]).expect("page 77 lies there as it is");
    bytes[at] ^= 1;
    fs::write(&path, bytes).expect("write");
    let run = softfault(folder.path(), &["bench", "restore", "heap.sfi", "--runs", "1", "--json"]);
    assert_eq!((run.code, &answer(&run)["name"]), (Some(3), &"corrupt".into()), "{}", run.err);
    let run = softfault(folder.path(), &["bench", "restore", "none.sfi"]);
    assert_eq!(run.code, Some(1), "{}", run.err);
}
