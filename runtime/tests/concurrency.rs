//! Races, each made wide by a failpoint where it is a few instructions narrow. `races.md` of the design has their story.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{
    EXTENT, KnobStore, Knobs, PAGE, Rng, arena, byte_of, bytes, child, content, each_mode, each_userfaultfd, ended,
    knob_object, load, map, runtime, same, serial, until,
};
use softfault::{Prot, Sharing};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const SEGV: i32 = libc::SIGSEGV;

#[test]
fn sixty_four_threads_on_one_extent() {
    let _serial = serial();
    each_mode("64_threads", |rt, mode| {
        for in_handler in [true, false] {
            let (object, knobs) = knob_object(rt, EXTENT as u64, in_handler);
            let a = arena(rt, mode, EXTENT);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            std::thread::scope(|s| {
                for t in 0..64 {
                    let a = &a;
                    s.spawn(move || {
                        let mut rng = Rng(t * 77 + 1);
                        for _ in 0..300 {
                            let at = rng.below(EXTENT);
                            assert_eq!(load(a, at), Ok(byte_of(0, at as u64)), "byte {at:#x}");
                        }
                    });
                }
            });
            let asked = knobs.bytes.load(Ordering::SeqCst);
            assert_eq!(asked as u64, object.cached_pages() * PAGE as u64, "no page was read twice");
        }
    });
}

#[test]
fn threads_that_end_after_a_fault() {
    let _serial = serial();
    each_mode("thread_exit", |rt, mode| {
        let (object, _) = knob_object(rt, EXTENT as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        for round in 0..100 {
            let threads: Vec<_> = (0..8)
                .map(|t| {
                    let (a, p) = (a.clone(), (round * 8 + t) % 512);
                    std::thread::spawn(move || load(&a, p * PAGE) == Ok(byte_of(0, (p * PAGE) as u64)))
                })
                .collect();
            assert!(threads.into_iter().all(|t| t.join().unwrap()));
        }
        a.unmap(0..EXTENT).unwrap();
        assert_eq!(load(&a, 0), Err(SEGV));
    });
}

#[test]
fn a_process_that_ends_during_a_fault() {
    for mode in common::MODES {
        for in_handler in [true, false] {
            let out = child("a_process_that_ends_during_a_fault", &format!("{mode:?}-{in_handler}"), || {
                let rt = runtime();
                if !rt.delivery().is_available(mode) {
                    println!("skipped: {}", rt.delivery());
                    return;
                }
                let (object, knobs) = knob_object(&rt, EXTENT as u64, in_handler);
                let a = arena(&rt, mode, EXTENT);
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                knobs.block.store(true, Ordering::SeqCst);
                let stuck = a.clone();
                std::thread::spawn(move || load(&stuck, 0));
                until("somebody is in the store", || knobs.blocked.load(Ordering::SeqCst) == 1);
            });
            ended(out, Ok(0));
        }
    }
}

#[test]
fn no_window_in_map_unmap_and_protect() {
    let _serial = serial();
    each_mode("windows", |rt, mode| {
        let (object, _) = knob_object(rt, 16 * PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        let (stop, good, other) = (AtomicBool::new(false), AtomicUsize::new(0), AtomicUsize::new(0));
        std::thread::scope(|s| {
            s.spawn(|| {
                let mut rng = Rng(11);
                while !stop.load(Ordering::Relaxed) {
                    let at = rng.below(16 * PAGE);
                    match load(&a, at) {
                        Ok(b) if b == byte_of(0, at as u64) => good.fetch_add(1, Ordering::Relaxed),
                        Ok(b) => panic!("{mode:?}: read {b:#x} where {:#x} is stored", byte_of(0, at as u64)),
                        Err(SEGV) => other.fetch_add(1, Ordering::Relaxed),
                        Err(signo) => panic!("{mode:?}: signal {signo} for a page that exists"),
                    };
                }
            });
            let stopper = common::StopOnDrop(&stop);
            for round in 0..2_000 {
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                if round % 3 == 0 {
                    a.protect(0..8 * PAGE, Prot::None).unwrap();
                    a.protect(0..16 * PAGE, Prot::Read).unwrap();
                }
                if round % 100 == 0 {
                    // The toucher gets in at least this often, on a busy machine too.
                    let had = good.load(Ordering::Relaxed);
                    until("a good read", || good.load(Ordering::Relaxed) > had);
                }
                if round % 2 == 0 {
                    a.unmap(3 * PAGE..5 * PAGE).unwrap();
                }
                a.unmap(0..16 * PAGE).unwrap();
            }
            drop(stopper);
        });
        println!("{mode:?}: {} good reads, {} refused", good.into_inner(), other.into_inner());
    });
}

#[test]
fn readers_beside_promotion_demotion_and_eviction() {
    let _serial = serial();
    each_userfaultfd("extents", |rt, mode| {
        let nr = 2 * EXTENT;
        let (object, _) = knob_object(rt, nr as u64, true);
        let arenas = [arena(rt, mode, nr), arena(rt, mode, nr)];
        arenas.iter().for_each(|a| map(a, 0, &object, Prot::Read, Sharing::Shared));
        #[cfg(debug_assertions)]
        let _armed = gates::Spins::arm(&[
            (gates::Point::PROMOTE_COUNTED, 30_000),
            (gates::Point::PROMOTE_CHECKED, 30_000),
            (gates::Point::DEMOTE_REGISTERED, 30_000),
            (gates::Point::EVICT_PUNCH, 30_000),
        ]);
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            for (t, a) in arenas.iter().enumerate() {
                let stop = &stop;
                s.spawn(move || {
                    let mut rng = Rng(t as u64 + 3);
                    while !stop.load(Ordering::Relaxed) {
                        let at = rng.below(nr);
                        assert_eq!(load(a, at), Ok(byte_of(0, at as u64)), "{mode:?}: byte {at:#x}");
                    }
                });
            }
            let (arenas, object, stop) = (&arenas, &object, &stop);
            s.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    arenas.iter().for_each(|a| {
                        a.promote(0..nr).unwrap();
                    });
                    std::thread::yield_now();
                }
            });
            let stopper = common::StopOnDrop(stop);
            let mut promoted = 0;
            for round in 0..60 {
                object.populate(0..nr as u64).unwrap();
                promoted += arenas[0].promote(0..nr).unwrap() + arenas[0].native_extents();
                if round % 3 == 0 {
                    arenas[1].demote(0..EXTENT).unwrap();
                }
                object.evict((round % 7) * 50 * PAGE as u64..nr as u64).unwrap();
            }
            drop(stopper);
            assert!(promoted > 0, "some extents were native");
        });
        let stats = rt.stats();
        assert!(stats["extent_promote"] > 0 && stats["extent_demote"] > 0 && stats["pgsteal"] > 0, "{stats}");
        arenas.iter().for_each(|a| same("afterwards", &bytes(a, 0..nr), &content(0, 0..nr as u64)));
    });
}

#[test]
fn a_store_made_while_pages_are_dropped_is_kept() {
    let _serial = serial();
    each_mode("write_evict", |rt, mode| {
        let knobs = Arc::new(Knobs::default());
        let object = rt.object(EXTENT as u64).writable(true).handler_store(Box::new(KnobStore(knobs))).unwrap();
        let a = rt.arena(EXTENT).delivery(mode).native_extents(false).build().unwrap();
        let at = |p: usize| (p * 12 * PAGE + 9) as u64;
        let stop = AtomicBool::new(false);
        std::thread::scope(|s| {
            s.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    object.evict(0..EXTENT as u64).unwrap();
                }
            });
            s.spawn(|| {
                let mut rng = Rng(5);
                while !stop.load(Ordering::Relaxed) {
                    // Cached by calls: windows find neighbours to map, whose stores the kernel notes alone.
                    object.read_at(rng.below(EXTENT) as u64, &mut [0]).unwrap();
                }
            });
            let stopper = common::StopOnDrop(&stop);
            for round in 0..100usize {
                let value = (round % 250) as u8 + 1;
                map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
                (0..40).for_each(|p| common::store(&a, p * 12 * PAGE + 9, value).unwrap());
                (0..40).for_each(|p| assert_eq!(load(&a, p * 12 * PAGE + 9), Ok(value), "round {round} page {p}"));
                a.unmap(0..EXTENT).unwrap();
                for p in 0..40 {
                    let mut got = [0];
                    object.read_at(at(p), &mut got).unwrap();
                    assert_eq!(got[0], value, "round {round} page {p}: lost");
                }
            }
            drop(stopper);
        });
    });
}

#[cfg(debug_assertions)]
mod gates {
    use super::*;
    use softfault::{Access, Arena, MinorDelegate, MinorFault, MinorVerdict, Object};
    pub(crate) use softfault_mm::trace::Point;
    use softfault_mm::trace::{arm_gate, arm_spin, disarm, hits, is_caught};
    use std::time::Duration;

    /// Failpoints that delay whoever comes by, until dropped; each must have been passed by then.
    pub(crate) struct Spins(Vec<(Point, u64)>);

    impl Spins {
        pub(crate) fn arm(points: &[(Point, u32)]) -> Self {
            points.iter().for_each(|(p, turns)| arm_spin(*p, *turns));
            Self(points.iter().map(|(p, _)| (*p, hits(*p))).collect())
        }
    }

    impl Drop for Spins {
        fn drop(&mut self) {
            self.0.iter().for_each(|(p, _)| disarm(*p));
            if !std::thread::panicking() {
                self.0.iter().for_each(|(p, before)| assert!(hits(*p) > *before, "{p:?} was never passed"));
            }
        }
    }

    /// Opens the gate also when the test fails, so that nobody stands there for ever.
    struct Gate(Point);

    impl Gate {
        fn arm(point: Point) -> Self {
            arm_gate(point);
            Self(point)
        }
        fn wait(&self) {
            until("somebody is caught", || is_caught(self.0));
        }
    }

    impl Drop for Gate {
        fn drop(&mut self) {
            disarm(self.0);
        }
    }

    /// Gives the others time to do what they must not do. It can only make a failure be seen, never cause one.
    fn linger() {
        std::thread::sleep(Duration::from_millis(15));
    }

    fn single(rt: &softfault::Runtime, in_handler: bool) -> (Object, Arc<Knobs>) {
        let knobs = Arc::new(Knobs::default());
        let builder = rt.object(EXTENT as u64).fill_window_pages(1);
        let boxed = Box::new(KnobStore(Arc::clone(&knobs)));
        (if in_handler { builder.handler_store(boxed) } else { builder.store(boxed) }.unwrap(), knobs)
    }

    /// Catches a fault at `point` while another thread unmaps. `inside`: in a section, so unmap must wait.
    fn unmap_against(what: &str, point: Point, inside: bool, prepare: &(dyn Fn(&Arena, &Object) + Sync), write: bool) {
        let modes = if point == Point::DELEGATE_CALL { &common::MODES[..1] } else { &common::MODES[..] };
        let _serial = serial();
        common::each_of(what, modes, |rt, mode| {
            let (object, _) = single(rt, true);
            let a = arena(rt, mode, EXTENT);
            let (prot, sharing) =
                if write { (Prot::ReadWrite, Sharing::Private) } else { (Prot::Read, Sharing::Shared) };
            map(&a, 0, &object, prot, sharing);
            prepare(&a, &object);
            let (gate, done) = (Gate::arm(point), AtomicBool::new(false));
            std::thread::scope(|s| {
                let toucher = s.spawn(|| if write { common::store(&a, 7, 1).map(|()| 1) } else { load(&a, 7) });
                gate.wait();
                s.spawn(|| {
                    a.unmap(0..EXTENT).unwrap();
                    done.store(true, Ordering::SeqCst);
                });
                if inside {
                    linger();
                    assert!(!done.load(Ordering::SeqCst), "{what}, {mode:?}: unmapped under a walk at {point:?}");
                } else {
                    until("unmap does not wait", || done.load(Ordering::SeqCst));
                }
                drop(gate);
                let got = toucher.join().unwrap();
                let want = if write { 1 } else { byte_of(0, 7) };
                assert!(got == Ok(want) || got == Err(SEGV), "{what}, {mode:?}: {got:?}");
                until("unmapped", || done.load(Ordering::SeqCst));
            });
            assert_eq!(load(&a, 7), Err(SEGV));
            // Somebody else's pages at the same place.
            let next = rt.anonymous(EXTENT as u64).unwrap();
            map(&a, 0, &next, Prot::ReadWrite, Sharing::Shared);
            drop(object);
            assert_eq!(load(&a, 7), Ok(0), "{what}, {mode:?}");
        });
    }

    #[test]
    fn unmap_waits_for_a_walk_that_has_just_begun() {
        unmap_against("section", Point::SECTION_ENTERED, true, &|_, _| (), false);
    }
    #[test]
    fn unmap_waits_for_a_walk_that_has_looked_but_not_pinned() {
        unmap_against("lookup", Point::LOOKUP_PIN, true, &|_, _| (), false);
    }
    #[test]
    fn unmap_waits_for_a_walk_that_has_pinned_but_not_mapped() {
        let cached = |_: &Arena, o: &Object| o.populate(0..EXTENT as u64 / 2).unwrap();
        unmap_against("pinned", Point::PINNED_MAP, true, &cached, false);
        unmap_against("mapped", Point::MAP_UNPIN, true, &cached, false);
    }
    #[test]
    fn unmap_waits_for_a_walk_that_has_claimed() {
        unmap_against("claimed", Point::FILL_CLAIMED, true, &|_, _| (), false);
    }
    #[test]
    fn unmap_does_not_wait_for_a_fill() {
        unmap_against("publish", Point::FILL_PUBLISH, false, &|_, _| (), false);
    }
    #[test]
    fn unmap_against_a_private_store() {
        let _ = Access::Read;
        unmap_against("private", Point::SECTION_ENTERED, true, &|_, _| (), true);
    }
    /// A mapping that the kernel has and userfaultfd has not yet: a touch must not be served by the kernel, with zeros.
    #[test]
    fn nothing_is_read_from_a_mapping_that_is_not_registered_yet() {
        let _serial = serial();
        each_mode("map_register", |rt, mode| {
            for (prot, sharing) in [(Prot::Read, Sharing::Shared), (Prot::ReadWrite, Sharing::Private)] {
                let (object, _) = single(rt, true);
                let a = arena(rt, mode, EXTENT);
                let gate = Gate::arm(Point::MAP_REGISTER);
                std::thread::scope(|s| {
                    let mapper = s.spawn(|| map(&a, 0, &object, prot, sharing));
                    gate.wait();
                    let toucher = s.spawn(|| load(&a, 7));
                    linger();
                    let early = toucher.is_finished();
                    drop(gate);
                    mapper.join().unwrap();
                    let got = toucher.join().unwrap();
                    assert!(
                        got == Err(SEGV) || (!early && got == Ok(byte_of(0, 7))),
                        "{mode:?}: {got:?}, early {early}"
                    );
                });
                same("mapped", &bytes(&a, 0..EXTENT), &content(0, 0..EXTENT as u64));
            }
        });
    }
    #[test]
    fn a_delegate_that_does_not_return_is_outlived_by_unmap() {
        struct Go;
        impl MinorDelegate for Go {
            fn minor_fault(&self, _: &MinorFault<'_>) -> MinorVerdict {
                MinorVerdict::Continue
            }
        }
        let delegated = |a: &Arena, o: &Object| {
            o.populate(0..EXTENT as u64 / 2).unwrap();
            a.delegate_minor(0..EXTENT, Box::new(Go)).unwrap();
        };
        let rt = runtime();
        if rt.delivery().is_available(softfault::Delivery::InThread) {
            unmap_against("delegate", Point::DELEGATE_CALL, false, &delegated, false);
        } else {
            println!("skipped: {}", rt.delivery());
        }
    }

    #[test]
    fn a_half_filled_page_is_never_seen() {
        let _serial = serial();
        each_mode("half_filled", |rt, mode| {
            for in_handler in [true, false] {
                let (object, _) = single(rt, in_handler);
                let (a, b) = (arena(rt, mode, EXTENT), arena(rt, mode, EXTENT));
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                map(&b, 0, &object, Prot::Read, Sharing::Private);
                let seen = AtomicUsize::new(0);
                let gate = Gate::arm(Point::FILL_PUBLISH);
                std::thread::scope(|s| {
                    let (a, b, seen) = (&a, &b, &seen);
                    let touch = move |who: &Arena| {
                        let got = load(who, 9);
                        seen.fetch_add(1, Ordering::SeqCst);
                        got
                    };
                    let first = s.spawn(move || touch(a));
                    gate.wait();
                    let second = s.spawn(move || touch(b));
                    linger();
                    assert_eq!(seen.load(Ordering::SeqCst), 0, "{mode:?}: read before it was published");
                    assert!(!object.is_cached(0));
                    drop(gate);
                    let want = Ok(byte_of(0, 9));
                    assert_eq!((first.join().unwrap(), second.join().unwrap()), (want, want), "{mode:?}");
                });
            }
        });
    }

    #[test]
    fn a_stale_look_does_not_map_a_page_that_was_dropped_and_filled_again() {
        let _serial = serial();
        each_mode("stale", |rt, mode| {
            let (object, knobs) = single(rt, true);
            let a = rt.arena(EXTENT).delivery(mode).fault_around(false).build().unwrap();
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            object.populate(0..PAGE as u64).unwrap();
            // The page is uptodate; the fault has looked, and not pinned.
            let gate = Gate::arm(Point::LOOKUP_PIN);
            std::thread::scope(|s| {
                let toucher = s.spawn(|| load(&a, 3));
                gate.wait();
                assert_eq!(object.evict(0..PAGE as u64).unwrap(), 1, "a look is not a pin");
                knobs.seed.store(100, Ordering::SeqCst);
                drop(gate);
                assert_eq!(toucher.join().unwrap(), Ok(byte_of(100, 3)), "{mode:?}");
            });
        });
    }

    #[test]
    fn a_pinned_page_is_not_evicted() {
        let _serial = serial();
        for point in [Point::PINNED_MAP, Point::MAP_UNPIN] {
            each_mode("pinned", |rt, mode| {
                let (object, _) = single(rt, true);
                let a = rt.arena(EXTENT).delivery(mode).fault_around(false).build().unwrap();
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                object.populate(0..PAGE as u64).unwrap();
                let gate = Gate::arm(point);
                std::thread::scope(|s| {
                    let toucher = s.spawn(|| load(&a, 3));
                    gate.wait();
                    assert_eq!(object.evict(0..PAGE as u64).unwrap(), 0, "{mode:?}: dropped under a pin");
                    drop(gate);
                    assert_eq!(toucher.join().unwrap(), Ok(byte_of(0, 3)));
                });
                until("the pin is dropped", || object.evict(0..PAGE as u64).unwrap() == 1);
                assert_eq!(load(&a, 3), Ok(byte_of(0, 3)));
            });
        }
    }

    #[test]
    fn a_page_that_is_being_dropped_is_waited_for() {
        let _serial = serial();
        for point in [Point::EVICT_PUNCH, Point::EVICT_DONE] {
            each_mode("evicting", |rt, mode| {
                let (object, knobs) = single(rt, true);
                let a = arena(rt, mode, EXTENT);
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                assert_eq!(load(&a, 3), Ok(byte_of(0, 3)));
                knobs.seed.store(50, Ordering::SeqCst);
                let gate = Gate::arm(point);
                let touched = AtomicBool::new(false);
                std::thread::scope(|s| {
                    let evictor = s.spawn(|| common::evict(&object, 0..PAGE as u64, 1));
                    gate.wait();
                    let toucher = s.spawn(|| {
                        let got = load(&a, 3);
                        touched.store(true, Ordering::SeqCst);
                        got
                    });
                    linger();
                    let early = touched.load(Ordering::SeqCst);
                    drop(gate);
                    evictor.join().unwrap();
                    let got = toucher.join().unwrap();
                    // Still mapped until it is punched: then the old page, whole; else the new one.
                    let old = early && point == Point::EVICT_PUNCH && got == Ok(byte_of(0, 3));
                    assert!(old || (!early && got == Ok(byte_of(50, 3))), "{mode:?} {point:?}: {got:?}, early {early}");
                });
                assert_eq!(load(&a, 3), Ok(byte_of(50, 3)));
            });
        }
    }

    #[test]
    fn promotion_and_eviction_exclude_each_other() {
        let _serial = serial();
        each_userfaultfd("promote_evict", |rt, mode| {
            let (object, _) = knob_object(rt, EXTENT as u64, true);
            let a = rt.arena(EXTENT).delivery(mode).native_extents(false).build().unwrap();
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            for point in [Point::PROMOTE_COUNTED, Point::PROMOTE_CHECKED] {
                object.populate(0..EXTENT as u64).unwrap();
                let gate = Gate::arm(point);
                std::thread::scope(|s| {
                    let promoter = s.spawn(|| a.promote(0..EXTENT).unwrap());
                    gate.wait();
                    let evictor = s.spawn(|| object.evict(0..EXTENT as u64).unwrap());
                    linger();
                    drop(gate);
                    assert_eq!(promoter.join().unwrap(), 1, "{point:?}");
                    let dropped = evictor.join().unwrap();
                    assert!(dropped == 0 || a.native_extents() == 0, "{point:?}: dropped below a native extent");
                });
                same("native or not", &bytes(&a, 0..EXTENT), &content(0, 0..EXTENT as u64));
                a.demote(0..EXTENT).unwrap();
            }
            object.populate(0..EXTENT as u64).unwrap();
            let gate = Gate::arm(Point::EVICT_PUNCH);
            std::thread::scope(|s| {
                let evictor = s.spawn(|| object.evict(0..EXTENT as u64).unwrap());
                gate.wait();
                // The evictor may hold locks that a promoter waits for; in no case do both happen.
                let promoter = s.spawn(|| a.promote(0..EXTENT).unwrap());
                linger();
                drop(gate);
                assert_eq!((promoter.join().unwrap(), evictor.join().unwrap()), (0, 512));
            });
            same("afterwards", &bytes(&a, 0..EXTENT), &content(0, 0..EXTENT as u64));
        });
    }

    #[test]
    fn a_mapping_that_becomes_writable_while_pages_are_dropped() {
        let _serial = serial();
        each_mode("becomes_writable", |rt, mode| {
            let knobs = Arc::new(Knobs::default());
            let builder = rt.object(2 * EXTENT as u64).writable(true);
            let object = builder.handler_store(Box::new(KnobStore(knobs))).unwrap();
            let a = rt.arena(2 * EXTENT).delivery(mode).native_extents(false).build().unwrap();
            object.populate(0..2 * EXTENT as u64).unwrap();
            // Eviction has decided that nobody can write, and is at work in the first chunk.
            let gate = Gate::arm(Point::EVICT_PUNCH);
            std::thread::scope(|s| {
                let evictor = s.spawn(|| object.evict(0..2 * EXTENT as u64).unwrap());
                gate.wait();
                // The mapping may wait for the eviction, or the eviction give up: the store stays.
                let writer = s.spawn(|| {
                    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
                    // A load maps the neighbours; the store to one of them is noted by the kernel alone.
                    assert_eq!(load(&a, EXTENT + PAGE), Ok(byte_of(0, (EXTENT + PAGE) as u64)));
                    common::store(&a, EXTENT + 2 * PAGE, 0xee).unwrap();
                });
                linger();
                drop(gate);
                evictor.join().unwrap();
                writer.join().unwrap();
            });
            assert_eq!(load(&a, EXTENT + 2 * PAGE), Ok(0xee), "{mode:?}: the store was dropped with its page");
        });
    }
}

/// A thread stores to what `protect` permits already, and the kernel not yet: it waits for the thread that changes it, however
/// long that one does not run.
#[cfg(debug_assertions)]
#[test]
fn a_store_that_protect_permits_waits_until_the_kernel_does() {
    use softfault_mm::trace::{Point, arm_gate, disarm, is_caught};
    struct Open;
    impl Drop for Open {
        fn drop(&mut self) {
            disarm(Point::PROTECT_PUBLISHED);
        }
    }
    let _serial = serial();
    each_mode("protect stopped", |rt, mode| {
        let object = rt.anonymous(EXTENT as u64).expect("anonymous");
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(0));
        assert_eq!(common::store(&a, 0, 7), Err(SEGV), "{mode:?}: nothing is under way that might permit it");
        let gate = Open;
        arm_gate(Point::PROTECT_PUBLISHED);
        std::thread::scope(|s| {
            let changer = s.spawn(|| a.protect(0..EXTENT, Prot::ReadWrite));
            until("it is in the middle", || is_caught(Point::PROTECT_PUBLISHED));
            let storer = s.spawn(|| common::store(&a, 0, 7));
            // It can only make a failure be seen: of a store by protection the kernel knows nothing, and it goes through.
            std::thread::sleep(std::time::Duration::from_millis(200));
            drop(gate);
            assert_eq!(storer.join().expect("the storer"), Ok(()), "{mode:?}: the store is permitted");
            changer.join().expect("the changer").expect("protect");
        });
        assert_eq!(load(&a, 0), Ok(7));
    });
}
