//! Stores that read whole blocks: what is claimed together, what fails together, and what is read for nothing.
#![cfg(not(loom))]
#![forbid(unsafe_code)]

mod support;

use softfault_mm::errno::Errno;
use softfault_mm::folio::State;
use softfault_mm::mapping::FailurePolicy;
use softfault_mm::page::PAGE_SHIFT;
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::types::{FaultFlags, FillError, VmFaultReason, VmFlags};
use softfault_mm::vmstat::Event;
use std::sync::atomic::Ordering;
use support::{Call, Content, MapSpec, ObjectSpec, World, arena_base, lock};

static PLAIN: ShmemVmOps = ShmemVmOps { mkwrite: false };

/// A world of one object of 18 pages in blocks of 4, mapped from `from` on.
fn world(object: ObjectSpec, from: usize) -> World {
    let w = World::new(&[object], 1);
    let flags = VmFlags::READ.union(VmFlags::SHARED).union(VmFlags::MAP_SINGLE);
    let nr = object.max_pages - from;
    let spec = MapSpec {
        arena: 0,
        at: from,
        nr,
        object: 0,
        pgoff: from as u64,
        flags,
        ops: &PLAIN,
        granule_pages: 0,
        delegation: None,
    };
    assert!(w.map(spec));
    w
}

fn blocks() -> ObjectSpec {
    ObjectSpec { read_align: 4, ..ObjectSpec::pages(18) }
}

fn at(p: usize) -> usize {
    arena_base(0) + (p << PAGE_SHIFT)
}

/// What the store was asked for since the last look.
fn reads(w: &World) -> Vec<(u64, u32)> {
    let log = std::mem::take(&mut *lock(&w.objects[0].store.log));
    log.into_iter().filter_map(|c| if let Call::Read(p, nr) = c { Some((p, nr)) } else { None }).collect()
}

fn states(w: &World, range: std::ops::Range<u64>, state: State) {
    for p in range {
        assert_eq!(w.word(0, p).load().state(), state, "page {p}");
    }
}

#[test]
fn a_touch_reads_its_block_whole() {
    let w = world(blocks(), 0);
    assert_eq!(w.read(at(6)), Content::pattern(0, 6));
    assert_eq!(reads(&w), [(4, 4)]);
    assert_eq!(w.read(at(17)), Content::pattern(0, 17));
    assert_eq!(reads(&w), [(16, 2)], "the last block ends where the object does");
    w.check_quiescent();
}

#[test]
fn a_mapping_that_begins_inside_a_block_reads_all_of_it() {
    let w = world(blocks(), 3);
    w.read(at(3));
    assert_eq!(reads(&w), [(0, 4)]);
    w.check_quiescent();
}

#[test]
fn a_fill_window_takes_other_blocks_whole_or_not_at_all() {
    let w = world(ObjectSpec { fill_window: 16, ..blocks() }, 0);
    w.read(at(5));
    assert_eq!(reads(&w), [(0, 16)]);
    assert_eq!(w.reclaim(0, 0, 9), 9);
    assert_eq!(w.reclaim(0, 10, 12), 2);
    w.read(at(5));
    assert_eq!(reads(&w), [(0, 8)], "page 9 is cached, and the rest of its block nobody asked for");
    w.check_quiescent();
}

#[test]
fn what_is_missing_of_a_block_is_claimed_and_the_rest_counted() {
    let w = world(blocks(), 0);
    w.read(at(5));
    assert_eq!(w.reclaim(0, 4, 5), 1);
    assert_eq!(w.reclaim(0, 6, 8), 2);
    assert_eq!(w.stat.event(Event::FILL_DISCARDED), 0);
    reads(&w);
    w.read(at(7));
    assert_eq!(reads(&w), [(6, 2)]);
    assert_eq!(w.stat.event(Event::FILL_DISCARDED), 2);
    states(&w, 5..8, State::Uptodate);
    states(&w, 4..5, State::Absent);
    w.check_quiescent();
}

#[test]
fn a_limit_gives_the_own_block_what_room_there_is() {
    let w = world(ObjectSpec { fill_window: 16, ..blocks() }, 0);
    w.account.limit_pages.store(3, Ordering::Relaxed);
    assert_eq!(w.read(at(5)), Content::pattern(0, 5));
    assert_eq!(reads(&w), [(5, 3)]);
    w.check_quiescent();
}

/// A store that checks a block knows of no page in it: one touch is one read and one verdict, and heals as a whole.
#[test]
fn a_block_fails_and_heals_whole() {
    let w = world(ObjectSpec { fill_window: 16, ..blocks() }, 0);
    // The fake says which page it is; a real one says the first that was asked for.
    lock(&w.objects[0].store.bad).insert(4, FillError::Corrupt);
    assert_eq!(w.fault(at(7), FaultFlags::USER) & VmFaultReason::ERROR, VmFaultReason::HWPOISON);
    assert_eq!(reads(&w), [(0, 16)], "one read: the page that was touched is among those that failed");
    states(&w, 0..4, State::Uptodate);
    states(&w, 4..8, State::Poisoned);
    states(&w, 8..16, State::Absent);
    w.read(at(9));
    states(&w, 8..16, State::Uptodate);
    reads(&w);
    lock(&w.objects[0].store.bad).clear();
    assert_eq!(w.read(at(6)), Content::pattern(0, 6));
    assert_eq!(reads(&w), [(4, 4)]);
    states(&w, 4..8, State::Uptodate);
    w.check_quiescent();
}

#[test]
fn a_block_that_fails_is_zeros_where_that_is_the_policy() {
    let w = world(ObjectSpec { policy: FailurePolicy::Zero, ..blocks() }, 0);
    lock(&w.objects[0].store.bad).insert(4, FillError::Io(Errno::EIO));
    assert_eq!(w.read(at(7)), 0);
    states(&w, 4..8, State::Uptodate);
    assert_eq!(reads(&w), [(4, 4)]);
    w.check_quiescent();
}
