//! The folio word and the delegation's bits alone, under loom: the rules the walk is built on.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p softfault-mm --release --test 'loom_*'`
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "support/loom.rs"]
mod support;

use softfault_mm::delegation::{MinorVerdict, Telltale};
use softfault_mm::folio::{DIRTY, FolioWord, REFERENCED, State, WAITERS, Wake};
use softfault_mm::ops::Prot;
use softfault_mm::sync::{AtomicU64, Ordering};
use softfault_mm::types::VmFlags;
use std::sync::Arc;
use support::{Broken, Futex, Setup, World, check, delegation, spawn};

/// A page's word with two words of content, written one after the other without any order of their own.
struct Page {
    word: FolioWord,
    bytes: [AtomicU64; 2],
    futex: Futex,
}

impl Page {
    fn new() -> Arc<Self> {
        Arc::new(Self { word: FolioWord::new(), bytes: [AtomicU64::new(0), AtomicU64::new(0)], futex: Futex::new() })
    }
    fn write(&self, value: u64) {
        self.bytes[0].store(value, Ordering::Relaxed);
        self.bytes[1].store(value, Ordering::Relaxed);
    }
    fn read(&self) -> [u64; 2] {
        [self.bytes[0].load(Ordering::Relaxed), self.bytes[1].load(Ordering::Relaxed)]
    }
    fn leave(&self, wake: Wake) {
        if wake == Wake::Needed {
            self.futex.wake();
        }
    }
}

#[test]
fn one_page_has_one_filler() {
    check(3, || {
        let p = Page::new();
        let fill = |p: &Page| {
            let Ok(before) = p.word.try_claim() else { return None };
            p.write(1);
            p.leave(p.word.publish(0));
            Some(before.version())
        };
        let t = spawn({
            let p = p.clone();
            move || fill(&p)
        });
        let here = fill(&p);
        let there = t.join().expect("the other filler");
        assert!(here.is_some() != there.is_some(), "filled by {here:?} and {there:?}");
        assert_eq!(p.word.load().version(), 1, "one claim, one version");
    });
}

/// The evictor's punch and the next fill are seen by nobody who holds a pin from before.
#[test]
fn who_sees_uptodate_sees_the_bytes() {
    check(3, || {
        let p = Page::new();
        let t = spawn({
            let p = p.clone();
            move || {
                p.word.try_claim().expect("absent");
                p.write(1);
                p.leave(p.word.publish(0));
                if p.word.try_discard().is_ok() {
                    p.write(0);
                    p.leave(p.word.evicted(0));
                }
            }
        });
        if p.word.try_pin(0).is_ok() {
            assert_eq!(p.read(), [1, 1], "a pinned page is not whole");
            p.word.unpin();
        }
        t.join().expect("filler and evictor");
    });
}

/// What was done under a pin is seen by who takes the page afterwards.
#[test]
fn who_evicts_sees_what_was_written_under_the_pin() {
    check(3, || {
        let p = Page::new();
        p.word.try_claim().expect("absent");
        let _ = p.word.publish(0);
        let t = spawn({
            let p = p.clone();
            move || {
                if p.word.try_pin(DIRTY).is_ok() {
                    p.write(7);
                    p.word.unpin();
                }
            }
        });
        if p.word.try_writeback().is_ok() {
            assert_eq!(p.read(), [7, 7], "dirty, unpinned, and the bytes are not there");
            let _ = p.word.end_writeback(0);
        }
        t.join().expect("the writer");
    });
}

/// ```text
/// handler (write fault)            flusher and reclaimer
/// look: uptodate; +dirty
///                                  dirty -> writeback, protect, copy out, -> uptodate and clean
/// CONTINUE without MODE_WP         (erases the protection)
/// the instruction writes
///                                  clean -> evicting -> punch: the write is lost
/// ```
fn lost_write(pin: bool) {
    let flags = VmFlags::READ | VmFlags::WRITE | VmFlags::MAYWRITE | VmFlags::SHARED | VmFlags::WP_SYNC;
    let w = World::new(Setup {
        flags,
        nr_pages: 1,
        cached: 1,
        fill_window: 1,
        broken: if pin { Broken::No } else { Broken::NoPin },
    });
    let t = spawn(move || {
        w.write_back(0);
        w.evict(0, 1);
    });
    let word = w.word(0);
    let mut stored = false;
    if word.try_pin(DIRTY | REFERENCED).is_ok() {
        if !pin {
            word.unpin();
        }
        let _ = w.install(0, 0, Prot { write: true, wp: false });
        if pin {
            word.unpin();
        }
        stored = w.try_store(0, 0, 7);
    }
    t.join().expect("flusher and reclaimer");
    assert_eq!(w.settle(0), if stored { 7 } else { 5 }, "a store is missing from the store");
}

#[test]
fn with_the_pin_no_write_is_lost() {
    check(3, || lost_write(true));
}

#[test]
#[should_panic(expected = "a store is missing from the store")]
fn without_the_pin_a_write_is_lost() {
    check(3, || lost_write(false));
}

/// ```text
/// waiter                                owner
/// CAS +WAITERS (state as seen)
///                                       leaves the state, -WAITERS, sees WAITERS: wakes
/// sleeps while low half == marked       (or: it moved, look again)
/// ```
fn wait_until_filled(mark: bool, leave: fn(&FolioWord) -> Wake) {
    let p = Page::new();
    p.word.try_claim().expect("absent");
    let t = spawn({
        let p = p.clone();
        move || {
            while p.word.load().state() == State::Filling {
                let low = if mark { p.word.mark_waiter(State::Filling) } else { Some(p.word.load().low()) };
                if let Some(low) = low {
                    p.futex.wait(|| p.word.load().low() == low);
                }
            }
        }
    });
    p.leave(leave(&p.word));
    t.join().expect("the waiter");
    assert!(!p.word.load().has(WAITERS), "nobody waits any more");
}

#[test]
fn a_marked_waiter_never_sleeps_for_ever() {
    for leave in [
        (|w| w.publish(0)) as fn(&FolioWord) -> Wake,
        |w| w.abandon(),
        |w| w.fail(softfault_mm::types::FillError::Io(softfault_mm::errno::Errno::EIO)),
        |w| {
            w.mark_overdue();
            w.publish(0)
        },
    ] {
        check(3, move || wait_until_filled(true, leave));
    }
}

#[test]
#[should_panic(expected = "deadlock")]
fn without_the_mark_a_waiter_sleeps_for_ever() {
    check(3, || wait_until_filled(false, |w| w.publish(0)));
}

/// Two waiters of two states: who waits for an eviction is woken by the evictor, whatever comes after it.
#[test]
fn who_waits_for_an_eviction_is_woken_by_its_end() {
    check(2, || {
        let p = Page::new();
        p.word.try_claim().expect("absent");
        let _ = p.word.publish(0);
        p.word.try_discard().expect("nobody has a pin");
        let waiter = |p: Arc<Page>| {
            move || {
                while p.word.load().state() == State::Evicting {
                    if let Some(low) = p.word.mark_waiter(State::Evicting) {
                        p.futex.wait(|| p.word.load().low() == low);
                    }
                }
            }
        };
        let (a, b) = (spawn(waiter(p.clone())), spawn(waiter(p.clone())));
        p.leave(p.word.evicted(0));
        p.word.try_claim().expect("absent");
        a.join().expect("a waiter");
        b.join().expect("a waiter");
    });
}

/// While a flush keeps a page out of the cache nobody fills it; who wanted to is woken when it ends, and does.
#[test]
fn a_vacant_page_is_filled_afterwards() {
    check(3, || {
        let p = Page::new();
        let t = spawn({
            let p = p.clone();
            move || loop {
                let seen = match p.word.try_claim() {
                    Ok(_) => {
                        p.write(1);
                        p.leave(p.word.publish(0));
                        break;
                    }
                    Err(seen) => seen.state(),
                };
                if let Some(low) = p.word.mark_waiter(seen) {
                    p.futex.wait(|| p.word.load().low() == low);
                }
            }
        });
        for _ in 0..2 {
            if p.word.try_vacate().is_ok() {
                assert_eq!(p.read(), [0, 0], "filled while it was kept empty");
                p.leave(p.word.end_vacancy().expect("ours"));
            }
        }
        t.join().expect("the filler");
        assert!(p.word.load().is_mappable() && !p.word.load().has(WAITERS));
    });
}

/// Of three threads one tells; the others go on only when it has.
#[test]
fn exactly_one_tells() {
    check(2, || {
        let (d, told) = delegation(0);
        let futex = Arc::new(Futex::new());
        let touch = move |futex: Arc<Futex>| {
            move || loop {
                match d.begin(3) {
                    Telltale::Yours => {
                        told.0.fetch_add(1, Ordering::Relaxed);
                        d.finish(3, MinorVerdict::Continue);
                        futex.wake();
                    }
                    Telltale::Telling(seen) => {
                        futex.wait(|| d.word(3).expect("in range").load(Ordering::Relaxed) == seen);
                    }
                    Telltale::Told => break,
                    Telltale::Refused => panic!("nobody refused"),
                }
            }
        };
        let (a, b) = (spawn(touch(futex.clone())), spawn(touch(futex.clone())));
        touch(futex)();
        a.join().expect("a toucher");
        b.join().expect("a toucher");
        assert_eq!(told.0.load(Ordering::Relaxed), 1, "told more than once, or never");
    });
}

/// Sixteen pages share a word: making one untold must not be lost to its neighbours' progress.
#[test]
fn a_reset_is_not_lost_to_a_neighbour() {
    check(3, || {
        let (d, _) = delegation(0);
        assert_eq!(d.begin(0), Telltale::Yours);
        d.finish(0, MinorVerdict::Continue);
        let t = spawn(move || {
            assert_eq!(d.begin(1), Telltale::Yours);
            d.finish(1, MinorVerdict::Refuse);
        });
        d.reset(0);
        t.join().expect("the neighbour");
        assert_eq!(d.begin(0), Telltale::Yours, "page 0 is still told");
        assert_eq!(d.begin(1), Telltale::Refused, "page 1 is none of ours");
    });
}
