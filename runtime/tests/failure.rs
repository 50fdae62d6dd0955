//! Stores that fail: the page that cannot be had answers by its policy, everything else keeps working.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{
    EXTENT, KnobStore, Knobs, PAGE, arena, byte_of, child, each_mode, ended, knob_object, load, map, runtime, said,
    store, until,
};
use softfault::{Access, Error, FailurePolicy, Object, Prot, Runtime, Sharing, VmFaultReason};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const BUS: i32 = libc::SIGBUS;
const NR: usize = 64;

/// The reason that a call gave.
#[track_caller]
fn reason<T: std::fmt::Debug>(r: softfault::Result<T>) -> VmFaultReason {
    match r {
        Err(Error::Fault { reason, .. }) => reason,
        other => panic!("not a fault: {other:?}"),
    }
}

#[test]
fn only_the_bad_page_fails_and_it_heals() {
    each_mode("bad_page", |rt, mode| {
        for (how, bit) in [(1, VmFaultReason::SIGBUS), (2, VmFaultReason::SIGBUS), (3, VmFaultReason::HWPOISON)] {
            for in_handler in [true, false] {
                let (object, knobs) = knob_object(rt, (NR * PAGE) as u64, in_handler);
                let a = arena(rt, mode, EXTENT);
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                let bad = 21;
                knobs.fail(bad, how);
                for p in (0..NR).rev() {
                    let want = if p == bad { Err(BUS) } else { Ok(byte_of(0, (p * PAGE) as u64)) };
                    assert_eq!(load(&a, p * PAGE), want, "how {how}, in the handler {in_handler}, page {p}");
                }
                assert_eq!(load(&a, bad * PAGE + 9), Err(BUS), "each touch");
                assert!(reason(object.read_at((bad * PAGE) as u64, &mut [0; 8])).contains(bit), "read_at");
                assert!(reason(a.read_at(bad * PAGE - 4, &mut [0; 8])).contains(bit), "read_at of the arena");
                let fault_in = a.fault_in(bad * PAGE..(bad + 1) * PAGE, Access::Read);
                assert!(reason(fault_in).contains(bit), "fault_in");
                assert!(rt.stats().reason(bit) > 0 && rt.stats()["pgpoison"] > 0, "counted");
                knobs.recover();
                assert_eq!(load(&a, bad * PAGE), Ok(byte_of(0, (bad * PAGE) as u64)), "healed");
                let mut got = [0; 8];
                object.read_at((bad * PAGE) as u64, &mut got).unwrap();
                assert_eq!(got[0], byte_of(0, (bad * PAGE) as u64));
            }
        }
    });
}

#[test]
fn a_private_store_to_a_bad_page_fails_too() {
    each_mode("bad_private", |rt, mode| {
        let (object, knobs) = knob_object(rt, (NR * PAGE) as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        knobs.fail(5, 1);
        assert_eq!((store(&a, 5 * PAGE, 1), store(&a, 6 * PAGE, 1)), (Err(BUS), Ok(())));
        knobs.recover();
        assert_eq!(store(&a, 5 * PAGE, 1), Ok(()));
        assert_eq!((load(&a, 5 * PAGE), load(&a, 5 * PAGE + 1)), (Ok(1), Ok(byte_of(0, 5 * PAGE as u64 + 1))));
    });
}

#[test]
fn read_at_heals_what_a_touch_poisoned() {
    each_mode("heal_by_call", |rt, mode| {
        let (object, knobs) = knob_object(rt, (NR * PAGE) as u64, true);
        // No page is read before it is made to fail.
        object.advise(0..0, softfault::Advice::Random).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        knobs.fail(3, 1);
        assert_eq!(load(&a, 3 * PAGE), Err(BUS));
        knobs.recover();
        object.read_at(3 * PAGE as u64, &mut [0; 8]).unwrap();
        assert_eq!(load(&a, 3 * PAGE), Ok(byte_of(0, 3 * PAGE as u64)));
        knobs.fail(40, 3);
        assert_eq!(load(&a, 40 * PAGE), Err(BUS));
        knobs.recover();
        assert_eq!(object.heal(0..object.len()).unwrap(), 1, "one page was poisoned");
        assert_eq!(load(&a, 40 * PAGE), Ok(byte_of(0, 40 * PAGE as u64)));
    });
}

#[test]
fn retries_before_the_verdict() {
    each_mode("retries", |rt, mode| {
        let knobs = Arc::new(Knobs::default());
        let builder = rt.object(PAGE as u64).retries(3, Duration::from_micros(10));
        let object = builder.store(Box::new(KnobStore(Arc::clone(&knobs)))).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        knobs.fail(0, 1);
        assert_eq!(load(&a, 0), Err(BUS));
        // By Monitor the poison is met once more, by the signal that it raises.
        let reads = knobs.nr_reads();
        assert!(reads >= 4 && reads.is_multiple_of(4), "{reads} reads: the first and three more for each attempt");
    });
}

fn deadlined(rt: &Runtime, ms: u64) -> (Object, Arc<Knobs>) {
    let knobs = Arc::new(Knobs::default());
    let builder = rt.object((NR * PAGE) as u64).deadline(Duration::from_millis(ms)).fill_window_pages(1);
    let object = builder.store(Box::new(KnobStore(Arc::clone(&knobs)))).unwrap();
    (object, knobs)
}

#[test]
fn a_store_that_blocks_past_its_deadline() {
    each_mode("deadline", |rt, mode| {
        let (object, knobs) = deadlined(rt, 30);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "the store is well");
        knobs.block.store(true, Ordering::SeqCst);
        assert_eq!(load(&a, PAGE), Err(BUS), "the wait ends");
        until("the filler is in the store", || knobs.blocked.load(Ordering::SeqCst) == 1);
        assert_eq!(load(&a, PAGE), Err(BUS), "at once: the claim stands");
        assert!(reason(object.read_at(PAGE as u64, &mut [0; 8])).intersects(VmFaultReason::SIGBUS));
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "other pages keep working");
        assert_eq!(knobs.blocked.load(Ordering::SeqCst), 1, "nobody else was sent after it");
        assert!(rt.stats()["fill_overdue"] >= 1);
        knobs.block.store(false, Ordering::SeqCst);
        until("the page heals", || load(&a, PAGE).is_ok());
        assert_eq!(load(&a, PAGE), Ok(byte_of(0, PAGE as u64)));
    });
}

#[test]
fn an_abandoned_fill_never_overwrites_a_healed_page() {
    each_mode("abandoned", |rt, mode| {
        let knobs = Arc::new(Knobs::default());
        let builder = rt.object((NR * PAGE) as u64).deadline(Duration::from_millis(20)).writable(true);
        let object = builder.fill_window_pages(1).store(Box::new(KnobStore(Arc::clone(&knobs)))).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        knobs.block.store(true, Ordering::SeqCst);
        assert_eq!(load(&a, 0), Err(BUS));
        until("the filler is in the store", || knobs.blocked.load(Ordering::SeqCst) == 1);
        // The late filler still owns the page: nobody may write to it, by store or by call, until it is back.
        assert_eq!(store(&a, 0, 0x99), Err(BUS));
        assert!(object.write_at(0, &[0x99]).is_err());
        assert_eq!(object.heal(0..PAGE as u64).unwrap(), 0, "a claim is not poison");
        assert_eq!(load(&a, 0), Err(BUS));
        knobs.block.store(false, Ordering::SeqCst);
        until("the page heals", || store(&a, 0, 0x99).is_ok());
        // Whatever the filler had still to do it has done before the page was writable.
        until("the filler is back", || knobs.blocked.load(Ordering::SeqCst) == 0);
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!((load(&a, 0), load(&a, 1)), (Ok(0x99), Ok(byte_of(0, 1))));
        assert_eq!(knobs.nr_reads(), 1, "the late fill is the one that healed it");
    });
}

#[test]
fn an_object_dropped_under_a_blocked_store() {
    each_mode("dropped", |rt, mode| {
        let (object, knobs) = deadlined(rt, 10);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        knobs.block.store(true, Ordering::SeqCst);
        assert_eq!(load(&a, 0), Err(BUS));
        drop(a);
        let late = Arc::clone(&knobs);
        let releaser = std::thread::spawn(move || {
            std::thread::sleep(Duration::from_millis(30));
            late.block.store(false, Ordering::SeqCst);
        });
        drop(object);
        assert_eq!(knobs.blocked.load(Ordering::SeqCst), 0, "dropping waited for the claim");
        releaser.join().unwrap();
        // The range is used again: nothing of the old object may show.
        let (object, _) = knob_object(rt, (NR * PAGE) as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
    });
}

#[test]
fn policy_zero() {
    each_mode("zero", |rt, mode| {
        for in_handler in [true, false] {
            let knobs = Arc::new(Knobs::default());
            let builder = rt.object((NR * PAGE) as u64).on_failure(FailurePolicy::Zero);
            let boxed = Box::new(KnobStore(Arc::clone(&knobs)));
            let object = if in_handler { builder.handler_store(boxed) } else { builder.store(boxed) }.unwrap();
            let a = arena(rt, mode, EXTENT);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            knobs.fail(7, 1);
            for p in 0..NR {
                let want = if p == 7 { 0 } else { byte_of(0, (p * PAGE + 100) as u64) };
                assert_eq!(load(&a, p * PAGE + 100), Ok(want), "page {p}");
            }
            knobs.recover();
            assert_eq!(load(&a, 7 * PAGE), Ok(0), "and stays so");
        }
    });
}

#[test]
fn policy_abort() {
    for mode in common::MODES {
        for in_handler in [true, false] {
            let out = child("policy_abort", &format!("{mode:?}-{in_handler}"), || {
                let rt = runtime();
                if !rt.delivery().is_available(mode) {
                    println!("skipped: {}", rt.delivery());
                    std::process::abort();
                }
                let knobs = Arc::new(Knobs::default());
                let builder = rt.object((NR * PAGE) as u64).on_failure(FailurePolicy::Abort);
                let boxed = Box::new(KnobStore(Arc::clone(&knobs)));
                let object = if in_handler { builder.handler_store(boxed) } else { builder.store(boxed) }.unwrap();
                let a = arena(&rt, mode, EXTENT);
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                knobs.fail(13, 1);
                let _ = load(&a, 13 * PAGE);
            });
            let Some(out) = out else { continue };
            let text = said(&out);
            ended(Some(out), Err(libc::SIGABRT));
            let named = text.contains("softfault: object") && text.contains("13");
            assert!(named || text.contains("skipped"), "no message: {text}");
        }
    }
}

#[test]
fn the_cache_limit() {
    const LIMIT: usize = 64;
    let nr = 2 * NR;
    each_mode("limit", |_, mode| {
        let rt = Runtime::builder().cache_limit((LIMIT * PAGE) as u64).fill_window_pages(1).build().unwrap();
        let (object, _) = knob_object(&rt, (nr * PAGE) as u64, true);
        let a = arena(&rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        (0..LIMIT).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "page {p}"));
        let pin = a.pin(0..LIMIT * PAGE, Access::Read).unwrap();
        assert_eq!(load(&a, LIMIT * PAGE), Err(BUS), "over the limit, and nothing can leave");
        assert!(reason(object.read_at((LIMIT * PAGE) as u64, &mut [0; 8])).contains(VmFaultReason::OOM));
        assert!(rt.stats().reason(VmFaultReason::OOM) > 0);
        assert_eq!(rt.stats()["nr_cached_pages"], LIMIT as u64);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "what is there stays");
        drop(pin);
        (0..nr).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "page {p}"));
        assert!(rt.stats()["nr_cached_pages"] <= LIMIT as u64, "others left");
        rt.set_cache_limit(u64::MAX);
        (0..nr).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "page {p}"));
        assert_eq!(object.cached_pages(), nr as u64, "nothing leaves below the limit");
    });
}

#[test]
fn a_poisoned_page_heals_in_a_full_cache() {
    each_mode("heals when full", |_, mode| {
        let rt = Runtime::builder().cache_limit(64 * PAGE as u64).build().unwrap();
        let nr = 3 * NR;
        let bad = nr - 1;
        for in_handler in [true, false] {
            let (object, knobs) = knob_object(&rt, (nr * PAGE) as u64, in_handler);
            let a = arena(&rt, mode, EXTENT);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            let poison = || {
                knobs.fail(bad, 1);
                until("poisoned", || {
                    let _ = object.evict((bad * PAGE) as u64..(nr * PAGE) as u64);
                    object.read_at((bad * PAGE) as u64, &mut [0; 8]).is_err()
                });
                knobs.recover();
            };
            let mut everything = vec![0; nr * PAGE];
            // The pages before it fill the cache, and the background reclaimer may or may not have made room since.
            for round in 0..10 {
                poison();
                let read = object.read_at(0, &mut everything);
                assert_eq!(read.unwrap(), nr * PAGE, "{mode:?}, {in_handler}, round {round}: by a call");
                poison();
                for p in 0..nr {
                    let want = byte_of(0, (p * PAGE) as u64);
                    assert_eq!(load(&a, p * PAGE), Ok(want), "{mode:?}, {in_handler}, round {round}: page {p}");
                }
            }
        }
    });
}

#[test]
fn failures_and_limits_leave_no_charge_behind() {
    each_mode("charges", |rt, mode| {
        let (object, knobs) = knob_object(rt, (NR * PAGE) as u64, true);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        knobs.fail(21, 1);
        (0..3).for_each(|_| assert_eq!(load(&a, 21 * PAGE), Err(BUS)));
        assert_eq!(rt.stats()["nr_cached_pages"], object.cached_pages(), "pages counted are pages cached");
        drop(a);
        drop(object);
        assert_eq!(rt.stats()["nr_cached_pages"], 0);
    });
}

#[test]
fn hung_pages_do_not_use_the_fillers_up() {
    each_mode("hung", |rt, mode| {
        // More of them than there are fillers at the start.
        let hung: Vec<_> = (0..6).map(|_| deadlined(rt, 10)).collect();
        let arenas: Vec<_> = hung.iter().map(|_| arena(rt, mode, EXTENT)).collect();
        for ((object, knobs), a) in hung.iter().zip(&arenas) {
            map(a, 0, object, Prot::Read, Sharing::Shared);
            knobs.block.store(true, Ordering::SeqCst);
            assert_eq!(load(a, 0), Err(BUS), "its deadline passes");
        }
        let (healthy, _) = knob_object(rt, PAGE as u64, false);
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &healthy, Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)), "another object's page has a filler");
        for (_, knobs) in &hung {
            knobs.block.store(false, Ordering::SeqCst);
        }
        for a in &arenas {
            until("the page heals", || load(a, 0).is_ok());
        }
    });
}

#[derive(Debug)]
struct Panics;

impl softfault::Store for Panics {
    fn read(&self, pos_bytes: u64, page: &mut softfault::PageMut<'_>) -> Result<(), softfault::StoreError> {
        assert_ne!(pos_bytes, PAGE as u64, "the second page is this store's trouble");
        page.as_mut_slice().fill(5);
        Ok(())
    }
}

#[test]
fn a_store_that_panics_fails_its_page_alone() {
    each_mode("panics", |rt, mode| {
        let object = rt.object(4 * PAGE as u64).fill_window_pages(1).store(Box::new(Panics)).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!([0, 1, 2].map(|p| load(&a, p * PAGE)), [Ok(5), Err(BUS), Ok(5)]);
        assert!(object.read_at(PAGE as u64, &mut [0; 8]).is_err());
    });
}

#[test]
fn an_object_with_a_limit_of_its_own() {
    each_mode("own limit", |rt, mode| {
        let knobs = Arc::new(Knobs::default());
        let store = Box::new(KnobStore(Arc::clone(&knobs)));
        let limit = 128usize;
        let nr = 8 * limit;
        let object = rt.object((nr * PAGE) as u64).cache_limit((limit * PAGE) as u64).store(store).unwrap();
        let (other, _) = knob_object(rt, (nr * PAGE) as u64, true);
        let (a, b) = (arena(rt, mode, 4 * EXTENT), arena(rt, mode, 4 * EXTENT));
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        map(&b, 0, &other, Prot::Read, Sharing::Shared);
        (0..nr).for_each(|p| assert_eq!(load(&b, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64))));
        for _ in 0..2 {
            for p in 0..nr {
                assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "page {p}");
                assert!(object.cached_pages() <= limit as u64, "{} pages of {limit}", object.cached_pages());
            }
        }
        assert_eq!(other.cached_pages(), nr as u64, "others are not reclaimed for it");
        object.set_cache_limit((2 * limit * PAGE) as u64).unwrap();
        (0..nr).for_each(|p| assert_eq!(load(&a, p * PAGE), Ok(byte_of(0, (p * PAGE) as u64)), "page {p}"));
        assert!(object.cached_pages() > limit as u64);
        assert!(matches!(other.set_cache_limit(1 << 20), Err(Error::Denied { op: "Object::set_cache_limit", .. })));
    });
}

#[test]
fn a_page_past_a_new_end_that_was_watched_for_stores() {
    each_mode("watched", |rt, mode| {
        let knobs = Arc::new(Knobs::default());
        let object = rt.object((NR * PAGE) as u64).writable(true).handler_store(Box::new(KnobStore(knobs))).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        assert_eq!(load(&a, 7 * PAGE), Ok(byte_of(0, 7 * PAGE as u64)));
        // The kernel keeps a note in the page table that stores are to be watched.
        a.zap(0..EXTENT).unwrap();
        assert_eq!(object.evict(7 * PAGE as u64..8 * PAGE as u64).unwrap(), 1);
        // The store cannot take the length; the end moves all the same.
        let _ = object.set_len(7 * PAGE as u64);
        assert_eq!(load(&a, 7 * PAGE), Err(BUS), "{mode:?}");
        assert_eq!(load(&a, 6 * PAGE), Ok(byte_of(0, 6 * PAGE as u64)), "{mode:?}");
    });
}
