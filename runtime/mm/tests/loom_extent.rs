//! Promotion against eviction and write-back, under loom. An extent has two pages here.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p softfault-mm --release --test 'loom_*'`
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "support/loom.rs"]
mod support;

use softfault_mm::extent::{Extent, ExtentState};
use softfault_mm::folio::State;
use softfault_mm::huge_memory::{demote_run, promote_run};
use softfault_mm::khugepaged::{Collapse, collapse_chunk};
use softfault_mm::ops::{Installed, Prot};
use softfault_mm::page::{EXTENT_PAGES, PAGE_SIZE};
use softfault_mm::rmap::has_user_pins;
use softfault_mm::sync::{Ordering, fence};
use softfault_mm::truncate::{i_size_write, truncate_pagecache};
use softfault_mm::types::VmFlags;
use std::sync::Arc;
use support::{Broken, Setup, World, check, spawn};

fn setup(flags: VmFlags, broken: Broken) -> Setup {
    Setup {
        flags: flags | VmFlags::READ | VmFlags::NATIVE_OK,
        nr_pages: EXTENT_PAGES,
        cached: EXTENT_PAGES,
        fill_window: 1,
        broken,
    }
}

/// ```text
/// promoter                         evictor
/// reads the words: all uptodate
///                                  page -> evicting; extent native? no
/// UNREGISTER; native
///                                  punch
/// a thread reads the hole: the kernel fills it with zeros, unasked
/// ```
fn promote_against_evict(broken: Broken) {
    let w = World::new(setup(VmFlags::SHARED, broken));
    let t = spawn(move || w.evict(0, 1));
    let _ = promote_run(&w.vmas[0], 0, w.vmas[0].start, 1);
    // Native or not, a load of the page the evictor wants must find all of it, or fault.
    let _ = w.try_load(0, 0);
    t.join().expect("the evictor");
    let _ = w.try_load(0, 0);
}

#[test]
fn promotion_and_eviction_exclude_each_other() {
    check(3, || promote_against_evict(Broken::No));
}

#[test]
#[should_panic(expected = "of a native extent")]
fn without_the_chunk_word_a_native_extent_loses_a_page() {
    check(3, || promote_against_evict(Broken::NoChunk));
}

/// The chunk's other arena: demoted by the evictor first, while this one tries to promote.
#[test]
fn demotion_comes_before_eviction() {
    check(2, || {
        let w = World::new(setup(VmFlags::SHARED, Broken::No));
        assert_eq!(promote_run(&w.vmas[1], 0, w.vmas[1].start, 1), 1, "nobody is in the way");
        let t = spawn(move || w.evict(0, EXTENT_PAGES));
        let _ = promote_run(&w.vmas[0], 0, w.vmas[0].start, 1);
        let _ = w.try_load(1, 0);
        t.join().expect("the evictor");
        let _ = (w.try_load(0, 0), w.try_load(1, 0));
    });
}

/// ```text
/// promoter (shared writable)       flusher
/// marks all pages dirty
///                                  dirty -> writeback, protects, copies out, -> uptodate and clean
/// UNREGISTER (drops the protection)
/// a native store, unseen
/// REGISTER(WP), protects
///                                  clean: later dropped, the store is lost
/// ```
/// The pages stay pinned until the extent is handed over, so that no write-back begins meanwhile.
#[test]
fn a_native_store_survives_write_back() {
    check(3, || {
        let flags = VmFlags::SHARED | VmFlags::WRITE | VmFlags::MAYWRITE | VmFlags::WP_ASYNC;
        let w = World::new(setup(flags, Broken::No));
        let f = spawn(move || w.write_back(0));
        let s = spawn(move || w.try_store(0, 0, 7));
        let promoted = promote_run(&w.vmas[0], 0, w.vmas[0].start, 1);
        f.join().expect("the flusher");
        let stored = s.join().expect("the writer");
        if promoted == 1 {
            assert_eq!(demote_run(&w.vmas[0], 0, w.vmas[0].start, 1), Ok(1));
        }
        let want = if stored { 7 } else { 5 };
        assert_eq!(w.settle(0), want, "a store is missing from the store");
    });
}

/// ```text
/// promoter                         truncate
/// counts native, reads the end     lowers the end, demotes what is native, drops
/// UNREGISTER; native               (until nothing is left)
/// ```
#[test]
fn no_extent_past_the_end_stays_native() {
    check(2, || {
        let w = World::new(setup(VmFlags::SHARED, Broken::No));
        let t = spawn(move || {
            i_size_write(w.mapping, PAGE_SIZE as u64);
            while truncate_pagecache(w.env(), w.mapping, 0, EXTENT_PAGES as u64) > 0 {
                let _ = demote_run(&w.vmas[0], 0, w.vmas[0].start, 1);
                loom::thread::yield_now();
            }
        });
        let _ = promote_run(&w.vmas[0], 0, w.vmas[0].start, 1);
        t.join().expect("truncate");
        assert_eq!(w.vmas[0].extents[0].state(), ExtentState::Trapped, "the kernel serves an extent past the end");
        assert_eq!(w.word(1).load().state(), State::Absent, "a page past the end is cached");
        assert_eq!(w.try_load(0, 1), None, "a page past the end is mapped");
    });
}

/// A store that the kernel noted in a tracked extent is still noted after the extent was taken back.
#[test]
fn a_tracked_store_survives_demotion() {
    check(2, || {
        let flags = VmFlags::SHARED | VmFlags::WRITE | VmFlags::MAYWRITE | VmFlags::WP_ASYNC;
        let w = World::new(setup(flags, Broken::No));
        assert_eq!(promote_run(&w.vmas[0], 0, w.vmas[0].start, 1), 1, "nobody is in the way");
        let t = spawn(move || {
            w.write_back(0);
            assert_eq!(demote_run(&w.vmas[0], 0, w.vmas[0].start, 1), Ok(1));
        });
        let stored = w.try_store(0, 0, 7);
        t.join().expect("the control plane");
        let want = if stored { 7 } else { 5 };
        assert_eq!(w.settle(0), want, "a store is missing from the store");
    });
}

/// A fault that still looks at its window must not cost the demoter its turn: who skips an extent leaves it native.
#[test]
fn a_window_never_makes_begin_fail() {
    check(3, || {
        let e = Arc::new(Extent::new());
        assert!(e.begin(ExtentState::Trapped));
        e.finish(ExtentState::Native);
        let other = Arc::clone(&e);
        let t = spawn(move || {
            let _ = other.next_window();
        });
        assert!(e.begin(ExtentState::Native), "nobody else wants the extent");
        e.finish(ExtentState::Trapped);
        t.join().expect("the fault");
        // The state is not read here: loom may put the window's CAS behind the store in finish(), which C++ forbids
        // (an exchange follows at once the value that it read).
    });
}

/// Two promoters: one begins.
#[test]
fn one_promoter_wins() {
    check(3, || {
        let w = World::new(setup(VmFlags::SHARED, Broken::No));
        let t = spawn(move || promote_run(&w.vmas[0], 0, w.vmas[0].start, 1));
        let here = promote_run(&w.vmas[0], 0, w.vmas[0].start, 1);
        let there = t.join().expect("the other promoter");
        assert_eq!(here + there, 1, "promoted {here} and {there} times");
        assert_eq!(w.mapping.chunks[0].nr_native(), 1);
    });
}

/// Who looks for the other before it has said that it is there itself.
#[derive(Clone, Copy, PartialEq, Eq)]
enum LooksFirst {
    Nobody,
    Pinner,
    Collapser,
}

/// ```text
/// who pins                         collapser
/// counts the pin                   COLLAPSING
/// COLLAPSING? waits                a pin is counted? then not
/// maps its page: it stays          takes every mapping away
/// ```
/// Each looks after it has announced itself, so one of them sees the other.
fn pin_against_collapse(looks_first: LooksFirst) {
    let w = World::new(setup(VmFlags::SHARED, Broken::No));
    let chunk = &w.mapping.chunks[0];
    let t = spawn(move || {
        if looks_first != LooksFirst::Collapser {
            return collapse_chunk(w.env(), w.mapping, 0, 0) == Collapse::Done;
        }
        let free = !has_user_pins(w, w.mapping, 0);
        let begun = chunk.begin_collapse();
        if begun && free {
            w.mapping.a_ops.collapse(0).expect("the kernel does it");
        }
        if begun {
            chunk.end_collapse(free);
        }
        begun && free
    });
    let wait = || {
        while chunk.is_collapsing() {
            loom::thread::yield_now();
        }
    };
    if looks_first == LooksFirst::Pinner {
        wait();
    }
    w.vmas[0].extents[0].count_user_pin(true);
    // The count and the look are SeqCst, which loom takes for less; in Pin::new a wait for all sections lies between them.
    fence(Ordering::SeqCst);
    if looks_first != LooksFirst::Pinner {
        wait();
    }
    w.word(0).try_pin(0).expect("cached");
    assert_eq!(w.install(0, 0, Prot { write: false, wp: false }), Installed::All);
    let collapsed = t.join().expect("the collapser");
    assert!(w.try_load(0, 0).is_some(), "a pinned page is not mapped any more");
    assert_eq!(chunk.is_huge(), collapsed);
}

#[test]
fn a_pin_and_a_collapse_exclude_each_other() {
    check(3, || pin_against_collapse(LooksFirst::Nobody));
}

#[test]
#[should_panic(expected = "a pinned page is not mapped any more")]
fn a_pin_that_looks_before_it_is_counted_is_collapsed() {
    check(3, || pin_against_collapse(LooksFirst::Pinner));
}

#[test]
#[should_panic(expected = "a pinned page is not mapped any more")]
fn a_collapse_that_looks_before_it_has_begun_takes_a_pinned_page_away() {
    check(3, || pin_against_collapse(LooksFirst::Collapser));
}

/// Exposures by protection are bounded, and others are hidden (`platform::crowd`):
/// ```text
/// a fault                                  who hides
///                                          takes the hint
/// hint (set already: no)
/// exposes, under the kernel's lock
///                                          hides, under the kernel's lock
/// hint
/// ```
/// A page that is exposed without its hint would never be hidden again, nor written back.
fn expose_against_hide(hint_first: bool) {
    let extent: &'static Extent = Box::leak(Box::new(Extent::new()));
    // mprotect(2), and the lock of the process's mappings.
    let exposed: &'static _ = Box::leak(Box::new(loom::sync::Mutex::new(true)));
    extent.note_install(0, 1);
    let set = move |yes| *exposed.lock().expect("the kernel's lock") = yes;
    let fault = spawn(move || {
        extent.note_install(0, 1);
        set(true);
        extent.note_mapped(0, 1);
    });
    if hint_first {
        let _ = extent.take_mapped(0, 1);
        set(false);
    } else {
        set(false);
        let _ = extent.take_mapped(0, 1);
    }
    fault.join().expect("the fault");
    let is_exposed = *exposed.lock().expect("the kernel's lock");
    assert!(!is_exposed || extent.maybe_mapped(0), "exposed without a hint");
}

#[test]
fn what_is_exposed_while_others_hide_has_its_hint() {
    check(3, || expose_against_hide(true));
}

#[test]
#[should_panic(expected = "exposed without a hint")]
fn a_hint_that_is_taken_after_the_page_is_hidden_is_one_too_few() {
    check(3, || expose_against_hide(false));
}
