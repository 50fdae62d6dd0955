//! A kernel that moves pages and does not count them (Linux 6.18, where it meets other work on a page): pages of exclusive
//! objects are neither lost, nor zeros, nor another page's bytes.
//!
//! `.ci/real-hosts` has the kernel do it by itself, under `stores_beside_an_agent`; here each MOVE is told wrong.
#![cfg(all(feature = "userfaultfd", debug_assertions))]
#![allow(clippy::cast_possible_truncation, reason = "patterns of small objects")]

mod common;

use common::{PAGE, TempFile, arena, bytes, same, serial, setup, store, until};
use softfault::{Arena, Delivery, Object, Prot, Runtime, Sharing};
use softfault_platform::sys::inject;
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
/// More than a run of frames, and no multiple of one.
const NR: usize = 150;
const LEN: usize = NR * PAGE;

/// MOVEs are told wrong for as long as this lives.
struct Forgetful;

impl Forgetful {
    fn new() -> Self {
        inject::forget_moves(true);
        Self
    }
}

impl Drop for Forgetful {
    fn drop(&mut self) {
        inject::forget_moves(false);
    }
}

/// Maps an exclusive object over a file that has a pattern; `None`, having said why: it cannot be had here.
fn world(what: &str, writable: bool) -> Option<(Runtime, TempFile, Object, Arena)> {
    setup();
    let rt = Runtime::builder().cache_limit(64 << 20).writeback(HOUR, HOUR).build().expect("runtime");
    if let Some(finding) = rt.delivery().finding(Delivery::InThread).filter(|f| !f.available) {
        println!("{what} skipped: {}", finding.why);
        return None;
    }
    let file = TempFile::new(LEN);
    let object = rt.file_options().writable(writable).with(|o| o.exclusive(true)).open(file.path()).expect("open");
    let arena = arena(&rt, Delivery::InThread, LEN);
    arena.map(0, &object, 0, LEN, Prot::ReadWrite, Sharing::Private).expect("map");
    Some((rt, file, object, arena))
}

/// Stores to every page, another byte in each round; returns what the object holds then.
fn store_to_all(arena: &Arena, mut want: Vec<u8>, round: usize) -> Vec<u8> {
    for page in 0..NR {
        let at = page * PAGE + 100 * round + page % 50;
        // Never what is there: a page that is as the store has it may go.
        let value = want[at] ^ ((page + round) as u8 | 0x40);
        store(arena, at, value).unwrap_or_else(|signo| panic!("round {round}: a store to page {page} raised {signo}"));
        want[at] = value;
    }
    want
}

#[test]
fn pages_that_come_and_go_uncounted_are_whole() {
    let _serial = serial();
    let Some((_rt, file, object, arena)) = world("come and go", true) else { return };
    let mut want = std::fs::read(file.path()).expect("read");
    let _forgetful = Forgetful::new();
    for round in 0..3 {
        same(&format!("round {round}: filled"), &bytes(&arena, 0..LEN), &want);
        want = store_to_all(&arena, want, round);
        until("the cache is empty", || {
            object.evict(0..LEN as u64).expect("evict");
            object.cached_pages() == 0
        });
        same(&format!("round {round}: the file after the eviction"), &std::fs::read(file.path()).expect("read"), &want);
    }
    assert_eq!(object.lost(), [], "nothing is named as lost");
}

/// What is taken out and has nowhere to go is moved back.
#[test]
fn pages_that_go_back_uncounted_are_whole() {
    let _serial = serial();
    let Some((_rt, file, object, arena)) = world("go back", false) else { return };
    let mut want = std::fs::read(file.path()).expect("read");
    for round in 0..3 {
        want = store_to_all(&arena, want, round);
        let forgetful = Forgetful::new();
        assert_eq!(object.evict(0..LEN as u64).expect("evict"), 0, "nothing can go");
        drop(forgetful);
        same(&format!("round {round}: after the eviction"), &bytes(&arena, 0..LEN), &want);
    }
}
