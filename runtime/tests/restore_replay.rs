//! Replays of working sets: in the order of the recording, in long reads, and never in front of a page that somebody waits for.
#![cfg(debug_assertions)]
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small images")]

mod common;

use common::{PAGE, content, load_at, setup, until};
use softfault::image::workingset::{Resolution, WorkingSet};
use softfault::image::{Image, Prot, Region, Writer};
use softfault::{Error, Restore, Runtime};
use softfault_mm::trace::{Point, arm_gate, disarm, is_caught};
use std::path::Path;

const PAGES: usize = 1536;

fn write(path: &Path, seed: u64) -> Vec<u8> {
    let all = content(seed, 0..(PAGES * PAGE) as u64);
    let mut w = Writer::create(path, PAGES as u64).expect("create");
    let (prot, len_bytes) = (Prot::READ | Prot::WRITE, all.len() as u64);
    w.region(Region { name: "memory".into(), address: 1 << 44, offset: 0, len_bytes, prot }).expect("region");
    w.write(0, &all).expect("write");
    w.finish().expect("finish");
    all
}

/// Opens the gate also when the test fails, so that nobody stands there for ever.
struct Gate(Point);

impl Drop for Gate {
    fn drop(&mut self) {
        disarm(self.0);
    }
}

/// One test, since a gate stops whoever comes by.
#[test]
fn a_replay_goes_window_by_window_and_in_front_of_nobody() {
    setup();
    let folder = tempfile::tempdir().expect("folder");
    let path = folder.path().join("a.sfi");
    let all = write(&path, 1);
    let mut set = WorkingSet::of(&Image::open(&path).expect("open"), Resolution::PAGE).expect("set");
    // First what lies behind; and the two differ in length.
    set.push(0..1000, 1028..1128).expect("window");
    set.push(1000..2000, (8..48).chain(100..104)).expect("window");

    let rt = Runtime::builder().fillers(1).build().expect("runtime");
    let image = rt.open_image(&path).expect("open");
    arm_gate(Point::FILL_PUBLISH);
    let session = Restore::new(&image).replay(set.clone()).build().expect("session");
    // Behind the session, so that it is opened before: the session's end waits for the replay.
    let gate = Gate(Point::FILL_PUBLISH);
    until("the replay has read", || is_caught(gate.0));
    let stats = rt.stats();
    assert_eq!(stats["image_raw_pages"], 100, "the first window, whole, and nothing else\n{stats}");
    assert_eq!(stats["fill_calls"], 1, "one long read\n{stats}");
    // The replay stands still, and has the one filler's place if it has any. Somebody misses a page meanwhile.
    let base = session.regions()[0].as_ptr() as usize;
    assert_eq!(load_at(base + 700 * PAGE + 5), Ok(all[700 * PAGE + 5]), "a page that is waited for comes first");
    assert!(is_caught(gate.0), "the replay went on by itself");
    assert!(!session.progress().replay_ended);
    assert!(!image.object().is_cached((8 * PAGE) as u64), "the second window came before the first had");
    drop(gate);
    until("the replay has ended", || session.progress().replay_ended);
    assert_eq!(session.progress().replayed, 144);
    let majors = rt.stats()["pgmajfault"];
    for p in (1028..1128).chain(8..48).chain(100..104) {
        assert!(image.object().is_cached((p * PAGE) as u64), "page {p}");
        assert_eq!(load_at(base + p * PAGE + 9), Ok(all[p * PAGE + 9]), "page {p}");
    }
    assert_eq!(rt.stats()["pgmajfault"], majors, "a page of the set was not there");
    drop(session);

    // A replay is no touch, and a set is of one image.
    image.object().evict(0..u64::MAX).expect("evict");
    let millisecond = std::time::Duration::from_millis(1);
    let session = Restore::new(&image).replay(set.clone()).record(millisecond).build().expect("session");
    until("the replay has ended", || session.progress().replay_ended);
    let base = session.regions()[0].as_ptr() as usize;
    assert_eq!(load_at(base + 1030 * PAGE), Ok(all[1030 * PAGE]));
    let recorded = session.mark().expect("mark").expect("a set");
    let pages: Vec<u64> = recorded.windows().iter().flat_map(|w| w.runs().flatten()).collect();
    assert_eq!(pages, [1030]);
    let other = folder.path().join("b.sfi");
    write(&other, 2);
    let refused = Restore::new(&rt.open_image(&other).expect("open")).replay(set.clone()).build();
    assert!(matches!(refused, Err(Error::Image { .. })), "{refused:?}");
    drop(session);

    // It makes no room: what is there stays.
    let rt = Runtime::builder().cache_limit(64 * PAGE as u64).build().expect("runtime");
    let session = Restore::new(&rt.open_image(&path).expect("open")).replay(set).build().expect("session");
    until("the replay has ended", || session.progress().replay_ended);
    assert!(rt.stats()["nr_cached_pages"] <= 64);
    assert_eq!(rt.stats()["allocstall"], 0, "the replay made room");
}
