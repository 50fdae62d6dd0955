//! The walk against itself and against reclaim, under loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p softfault-mm --release --test 'loom_*'`
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "support/loom.rs"]
mod support;

use softfault_mm::folio::State;
use softfault_mm::sync::{AtomicU32, Ordering, fence};
use softfault_mm::truncate::{i_size_write, truncate_pagecache};
use softfault_mm::types::{VmFaultReason, VmFlags};
use std::sync::Arc;
use support::{Broken, Setup, World, check, spawn};

/// Shared, writable, one page a fault; `wp`: how first stores are learnt of.
fn shared(wp: VmFlags) -> VmFlags {
    VmFlags::READ | VmFlags::WRITE | VmFlags::MAYWRITE | VmFlags::SHARED | VmFlags::MAP_SINGLE | wp
}

fn one_page(cached: usize, broken: Broken) -> Setup {
    Setup { flags: shared(VmFlags::WP_SYNC), nr_pages: 1, cached, fill_window: 1, broken }
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

/// ```text
/// reader                              filler                 kill()
/// being filled: about to sleep
///                                                            a signal is pending
/// leaves; its handler touches the page: sleeps
///                                     publishes, wakes
/// walks on, returns; the instruction again
/// ```
/// In every order: nobody sleeps for ever, and both see the page.
#[test]
fn a_wait_that_is_left_for_a_signal() {
    check(2, || {
        let w = World::new(one_page(0, Broken::No));
        let filler = spawn(move || w.fill(0));
        let killer = spawn(move || w.signal());
        assert_eq!(w.load(0, 0), 5);
        filler.join().expect("the filler");
        killer.join().expect("who sent the signal");
        assert_eq!(w.settle(0), 5);
    });
}

/// Why a thread that has a claim is not interrupted.
#[test]
#[should_panic(expected = "deadlock")]
fn a_handler_that_waits_for_the_claim_below_it() {
    check(2, || {
        let w = World::new(one_page(0, Broken::No));
        w.fill_interrupted(0);
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

/// Nothing the evictor does comes after the page is absent: it may be whole again by then.
#[test]
fn a_refault_survives_the_evictor() {
    check(2, || {
        let w = World::new(one_page(1, Broken::No));
        let t = spawn(move || w.evict(0, 1));
        assert_eq!(w.load(0, 0), 5);
        assert_eq!(w.load(0, 0), 5);
        t.join().expect("the evictor");
        assert_eq!(w.load(0, 0), 5);
        assert_eq!(w.settle(0), 5);
    });
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
    let w = World::new(Setup { flags: shared(wp), nr_pages: 1, cached: 1, fill_window: 1, broken });
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

/// The same with asynchronous protection, where the kernel notes the store.
#[test]
fn a_store_survives_write_back_and_evict_when_the_kernel_notes_it() {
    check(2, || {
        let w = World::new(Setup {
            flags: shared(VmFlags::WP_ASYNC),
            nr_pages: 1,
            cached: 1,
            fill_window: 1,
            broken: Broken::No,
        });
        let t = spawn(move || w.write_back(0));
        w.store(0, 0, 7);
        t.join().expect("the flusher");
        assert_eq!(w.settle(0), 7, "a store is missing from the store");
    });
}

/// Two faults whose fill windows overlap: each page is read once, and charged once.
#[test]
fn fill_windows_share_the_pages_between_them() {
    check(2, || {
        let flags = VmFlags::READ | VmFlags::SHARED | VmFlags::MAP_SINGLE;
        let w = World::new(Setup { flags, nr_pages: 2, cached: 0, fill_window: 2, broken: Broken::No });
        let t = spawn(move || assert_eq!(w.load(1, 1), 5));
        assert_eq!(w.load(0, 0), 5);
        t.join().expect("the other reader");
        for p in 0..2 {
            assert_eq!(w.word(p).load().version(), 1, "page {p} was claimed more than once");
        }
        assert_eq!((w.settle(0), w.settle(1)), (5, 5));
    });
}

/// A page that is dropped as soon as it is published is counted once and uncounted once.
#[test]
fn counts_are_exact_in_the_end() {
    check(3, || {
        let w = World::new(one_page(0, Broken::No));
        let t = spawn(move || w.evict(0, 1));
        w.fill(0);
        t.join().expect("the reclaimer");
        assert_eq!(w.settle(0), 5);
    });
}

/// ```text
/// fault                               truncate
/// looks at the end: within
///                                     lowers it, drops the pages past it, finds none left
/// claims, fills, publishes
///                                     (grown again: the page shows what was cut off)
/// ```
/// Who publishes looks at the end once more; who truncates sees every claim made before.
fn truncate_against_fault(cached: usize) {
    let w = World::new(one_page(cached, Broken::No));
    let t = spawn(move || {
        i_size_write(w.mapping, 0);
        while truncate_pagecache(w.env(), w.mapping, 0, 1) > 0 {
            loom::thread::yield_now();
        }
    });
    let r = w.fault(0, 0);
    assert_eq!(r & VmFaultReason::ERROR & !VmFaultReason::SIGBUS, VmFaultReason::empty(), "{r:?}");
    t.join().expect("truncate");
    assert_eq!(w.word(0).load().state(), State::Absent, "a page past the end is cached");
    assert_eq!(w.try_load(0, 0), None, "a page past the end is mapped");
    assert_eq!(w.settle(0), 5);
}

#[test]
fn nothing_past_the_end_stays_cached() {
    check(2, || truncate_against_fault(1));
}

#[test]
fn nothing_past_the_end_becomes_cached() {
    check(2, || truncate_against_fault(0));
}

/// A window: two neighbours are mapped by one fault while one of them is dropped and filled again.
fn window_against_refill(broken: Broken) {
    let flags = VmFlags::READ | VmFlags::SHARED;
    let w = World::new(Setup { flags, nr_pages: 2, cached: 2, fill_window: 1, broken });
    let t = spawn(move || {
        w.evict(1, 2);
        w.fill(1);
    });
    assert_eq!(w.load(0, 0), 5);
    let _ = w.try_load(0, 1);
    t.join().expect("evictor and filler");
    let _ = w.try_load(0, 1);
    assert_eq!((w.settle(0), w.settle(1)), (5, 5));
}

#[test]
fn a_window_maps_only_what_it_pinned() {
    check(2, || window_against_refill(Broken::No));
}

/// ```text
/// toucher A           toucher B
/// untold: telling
///                     telling: sleeps (or told: maps)
/// calls the delegate; told; wakes
/// ```
#[cfg(feature = "userfaultfd")]
fn first_touch_against(cached: usize, other: fn(&'static World)) {
    let flags = VmFlags::READ | VmFlags::SHARED | VmFlags::MAP_SINGLE | VmFlags::UFFD_MINOR;
    let w = World::new(Setup { flags, nr_pages: 1, cached, fill_window: 1, broken: Broken::No });
    let t = spawn(move || other(w));
    touch(w);
    t.join().expect("the other thread");
    assert_eq!(w.settle(0), 5);
}

#[cfg(feature = "userfaultfd")]
fn touch(w: &World) {
    assert_eq!(w.load(0, 0), 5);
    let told = w.told.0.load(Ordering::Relaxed);
    assert_eq!(told, 1, "the page was mapped after its delegate was told {told} times");
}

#[cfg(feature = "userfaultfd")]
#[test]
fn one_of_two_first_touches_tells() {
    check(2, || first_touch_against(1, touch));
}

/// The page becomes cached between the look and the pin: it is told all the same.
#[cfg(feature = "userfaultfd")]
#[test]
fn a_page_that_is_just_being_filled_is_told() {
    check(2, || first_touch_against(0, |w| w.fill(0)));
}

/// ```text
/// reader                              unmapper
/// CAS its slot word: inside
/// load the published entry            clear the published entry
///                                     load each slot word: inside? wait
/// use the vma; leave                  free the vma
/// ```
/// Either the reader finds no vma or the unmapper waits. The platform's four accesses are `SeqCst`; loom has that only
/// as a fence, so the model has a fence between the two accesses of each side, and without it must fail.
fn section_against_unmap(fenced: bool) {
    let slot = Arc::new(AtomicU32::new(0));
    let published = Arc::new(AtomicU32::new(1));
    let freed = Arc::new(AtomicU32::new(0));
    let t = spawn({
        let (slot, published, freed) = (slot.clone(), published.clone(), freed.clone());
        move || {
            assert!(slot.compare_exchange(0, 1, Ordering::AcqRel, Ordering::Relaxed).is_ok(), "the slot is its own");
            if fenced {
                fence(Ordering::SeqCst);
            }
            if published.load(Ordering::Acquire) == 1 {
                assert_eq!(freed.load(Ordering::Relaxed), 0, "a vma was freed inside a section");
                assert_eq!(freed.load(Ordering::Relaxed), 0, "a vma was freed inside a section");
            }
            slot.store(0, Ordering::Release);
        }
    });
    published.store(0, Ordering::Release);
    if fenced {
        fence(Ordering::SeqCst);
    }
    while slot.load(Ordering::Acquire) != 0 {
        loom::thread::yield_now();
    }
    freed.store(1, Ordering::Relaxed);
    t.join().expect("the reader");
}

#[test]
fn unmap_waits_for_sections() {
    check(3, || section_against_unmap(true));
}

#[test]
#[should_panic(expected = "a vma was freed inside a section")]
fn without_the_order_unmap_misses_a_section() {
    check(3, || section_against_unmap(false));
}
