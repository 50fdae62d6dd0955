//! The walk against itself and against reclaim, under loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p softfault-mm --release --test 'loom_*'`
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "support/loom.rs"]
mod support;

use softfault_mm::types::VmFlags;
use support::{Broken, Setup, World, check, spawn};

/// Shared, writable, one page a fault; `wp`: how first stores are learnt of.
fn shared(wp: VmFlags) -> VmFlags {
    VmFlags::READ | VmFlags::WRITE | VmFlags::MAYWRITE | VmFlags::SHARED | VmFlags::RAND_READ | wp
}

fn one_page(cached: usize, broken: Broken) -> Setup {
    Setup { flags: shared(VmFlags::WP_SYNC), nr_pages: 1, cached, broken }
}

/// ```text
/// reader A            reader B (another arena)
/// absent: claims
///                     filling: sleeps, or absent: claims
/// fills, wakes
///                     maps
/// ```
#[test]
fn fault_against_fault() {
    check(2, || {
        let w = World::new(one_page(0, Broken::No));
        let t = spawn(move || assert_eq!(w.load(1, 0), 5));
        assert_eq!(w.load(0, 0), 5);
        t.join().expect("the other reader");
        assert_eq!(w.settle(0), 5);
    });
}

/// Two stores to one page of one arena: both land, whoever installs.
#[test]
fn write_fault_against_write_fault() {
    check(2, || {
        let w = World::new(one_page(1, Broken::No));
        let t = spawn(move || w.store(0, 0, 7));
        w.store(0, 0, 7);
        t.join().expect("the other writer");
        assert_eq!(w.settle(0), 7, "a store is missing from the store");
    });
}

/// ```text
/// writer                              filler                 flusher and reclaimer
/// looks at the word: not cached
///                                     publishes
/// finds it cached after all: pins it
/// maps it writable, writes
///                                                            sees it clean: drops it
/// ```
/// The second look must mark the page dirty as the first would have.
fn write_fault_against_fill() {
    let w = World::new(one_page(0, Broken::No));
    let t = spawn(move || w.fill(0));
    w.store(0, 0, 7);
    t.join().expect("the filler");
    assert_eq!(w.settle(0), 7, "a store is missing from the store");
}

#[test]
fn a_store_that_meets_a_filler_is_noted() {
    check(2, write_fault_against_fill);
}

/// ```text
/// handler (read fault)                evictor                 filler
/// looks at the word: uptodate
///                                     punches; absent
///                                                             claims, writes the first byte
/// installs
/// the instruction reads a half-filled page
/// ```
fn stale_look_against_refill(broken: Broken) {
    let w = World::new(one_page(1, broken));
    let t = spawn(move || {
        w.evict(0, 1);
        w.fill(0);
    });
    assert_eq!(w.load(0, 0), 5);
    t.join().expect("evictor and filler");
    assert_eq!(w.settle(0), 5);
}

#[test]
fn a_stale_look_never_maps_a_page_being_refilled() {
    check(2, || stale_look_against_refill(Broken::No));
}

#[test]
#[should_panic(expected = "met a partial or absent page")]
fn without_the_pin_a_stale_look_maps_a_page_being_refilled() {
    check(2, || stale_look_against_refill(Broken::NoPin));
}

/// ```text
/// handler (write fault)               flusher and reclaimer
/// looks: uptodate; +dirty
///                                     dirty -> writeback, protects, copies out, -> uptodate and clean
/// installs, writable
/// the instruction writes
///                                     clean -> evicting -> punch: the write is lost
/// ```
fn write_against_write_back_and_evict(wp: VmFlags, broken: Broken) {
    let w = World::new(Setup { flags: shared(wp), nr_pages: 1, cached: 1, broken });
    let t = spawn(move || {
        w.write_back(0);
        w.evict(0, 1);
    });
    w.store(0, 0, 7);
    t.join().expect("flusher and reclaimer");
    assert_eq!(w.settle(0), 7, "a store is missing from the store");
}

#[test]
fn a_store_survives_write_back_and_evict() {
    check(2, || write_against_write_back_and_evict(VmFlags::WP_SYNC, Broken::No));
}

#[test]
#[should_panic(expected = "a store is missing from the store")]
fn without_the_pin_a_store_is_lost() {
    check(2, || write_against_write_back_and_evict(VmFlags::WP_SYNC, Broken::NoPin));
}
