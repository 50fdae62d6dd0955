//! Extents handed to the kernel: first touches there never reach a handler, and they come back when they must.
#![allow(unsafe_code, reason = "fills the process's table of mappings")]
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{
    EXTENT, KnobStore, Knobs, PAGE, arena, byte_of, bytes, child, content, each_userfaultfd, ended, knob_object, load,
    map, runtime, same, serial, store, until,
};
use softfault::{Access, Arena, Delivery, Prot, Runtime, Sharing};
use std::sync::Arc;

/// Handler entries and monitor messages: whatever reached the runtime.
fn arrivals(rt: &Runtime) -> u64 {
    // A monitor counts a little after it has woken whom it serves.
    std::thread::sleep(std::time::Duration::from_millis(2));
    rt.stats()["handler_entry"] + rt.stats()["monitor_msg"]
}

fn first_touches(a: &Arena, from: usize, nr: usize) {
    let mut rng = common::Rng(9);
    for _ in 0..nr {
        let at = rng.below(nr * PAGE);
        assert_eq!(load(a, from + at), Ok(byte_of(0, at as u64)));
    }
    (0..nr).for_each(|p| assert_eq!(load(a, from + p * PAGE), Ok(byte_of(0, (p * PAGE) as u64))));
}

#[test]
fn first_touches_in_native_extents_reach_nobody() {
    let _serial = serial();
    each_userfaultfd("native", |rt, mode| {
        let len = 3 * EXTENT;
        let knobs = Arc::new(Knobs::default());
        let object = rt.object(len as u64).writable(true).handler_store(Box::new(KnobStore(knobs))).unwrap();
        object.populate(0..len as u64).unwrap();
        for (prot, sharing) in [
            (Prot::Read, Sharing::Shared),
            (Prot::Read, Sharing::Private),
            (Prot::ReadWrite, Sharing::Private),
            (Prot::ReadWrite, Sharing::Shared),
        ] {
            let a = rt.arena(len).delivery(mode).native_extents(false).build().unwrap();
            map(&a, 0, &object, prot, sharing);
            let (promoted, demoted) = (rt.stats()["extent_promote"], rt.stats()["extent_demote"]);
            // Trapped, promoted, demoted, promoted again.
            for _ in 0..2 {
                assert_eq!(a.promote(0..len).unwrap(), 3, "{mode:?} {prot:?} {sharing:?}");
                assert_eq!(a.native_extents(), 3);
                assert_eq!(a.demote(0..len).unwrap(), 3);
                assert_eq!(a.native_extents(), 0);
            }
            assert_eq!(a.promote(0..len).unwrap(), 3);
            assert_eq!(rt.stats()["extent_promote"] - promoted, 9);
            assert_eq!(rt.stats()["extent_demote"] - demoted, 6);
            let before = arrivals(rt);
            first_touches(&a, 0, len / PAGE);
            if prot == Prot::ReadWrite {
                (0..1536).for_each(|p| store(&a, p * PAGE, byte_of(0, (p * PAGE) as u64)).unwrap());
            }
            assert_eq!(arrivals(rt), before, "{mode:?} {prot:?} {sharing:?}: the kernel alone");
            // And back: what is mapped stays, what is not traps again.
            a.demote(EXTENT..2 * EXTENT).unwrap();
            assert_eq!(a.native_extents(), 2);
            if sharing == Sharing::Shared {
                a.zap(EXTENT..2 * EXTENT).unwrap();
                assert_eq!(load(&a, EXTENT), Ok(byte_of(0, EXTENT as u64)));
                assert!(arrivals(rt) > before, "{mode:?}: trapped again");
            }
            same("content", &bytes(&a, 0..len), &content(0, 0..len as u64));
        }
    });
}

#[test]
fn extents_go_native_on_their_own() {
    let _serial = serial();
    each_userfaultfd("auto", |rt, mode| {
        let (object, _) = knob_object(rt, 4 * EXTENT as u64, true);
        let a = arena(rt, mode, 4 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        object.populate(0..object.len()).unwrap();
        assert_eq!(a.native_extents(), 0, "arenas are born trapped");
        assert_eq!(load(&a, 0), Ok(byte_of(0, 0)));
        // A monitor settles the words after it has woken whom it serves.
        until("the first touch takes its complete neighbours along", || a.native_extents() == 4);
        let before = arrivals(rt);
        first_touches(&a, 0, 4 * EXTENT / PAGE);
        assert_eq!(arrivals(rt), before, "{mode:?}");
    });
}

#[test]
fn what_never_goes_native() {
    let _serial = serial();
    each_userfaultfd("never", |rt, mode| {
        let len = 2 * EXTENT as u64;
        let (object, _) = knob_object(rt, len - 5, true);
        object.populate(0..len).unwrap();
        let a = arena(rt, mode, 8 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        assert_eq!(a.promote(0..8 * EXTENT).unwrap(), 1, "the last extent is not whole");
        a.unmap(0..2 * EXTENT).unwrap();
        a.map(PAGE, &object, 0, EXTENT, Prot::Read, Sharing::Shared).unwrap();
        assert_eq!(a.promote(0..8 * EXTENT).unwrap(), 0, "not congruent");
        a.unmap(0..8 * EXTENT).unwrap();
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        object.evict(0..PAGE as u64).unwrap();
        assert_eq!(a.promote(0..8 * EXTENT).unwrap(), 0, "a page is missing");
        assert_eq!((load(&a, 0), load(&a, EXTENT)), (Ok(byte_of(0, 0)), Ok(byte_of(0, EXTENT as u64))));
    });
}

#[test]
fn eviction_and_unmap_take_extents_back() {
    let _serial = serial();
    each_userfaultfd("back", |rt, mode| {
        let len = 2 * EXTENT;
        let (object, _) = knob_object(rt, len as u64, true);
        let arenas = [arena(rt, mode, len), arena(rt, mode, len)];
        arenas.iter().for_each(|a| map(a, 0, &object, Prot::Read, Sharing::Shared));
        object.populate(0..len as u64).unwrap();
        arenas.iter().for_each(|a| assert_eq!(a.promote(0..len).unwrap(), 2));
        assert_eq!(object.evict(10 * PAGE as u64..11 * PAGE as u64).unwrap(), 1);
        arenas.iter().for_each(|a| assert_eq!(a.native_extents(), 1, "every arena over the chunk"));
        arenas.iter().for_each(|a| assert_eq!(load(a, 10 * PAGE), Ok(byte_of(0, 10 * PAGE as u64)), "not zeros"));
        // A hole in a native extent.
        let a = &arenas[0];
        a.unmap(EXTENT + 5 * PAGE..EXTENT + 6 * PAGE).unwrap();
        assert_eq!(load(a, EXTENT + 5 * PAGE), Err(libc::SIGSEGV));
        assert_eq!(load(a, EXTENT + 6 * PAGE), Ok(byte_of(0, (EXTENT + 6 * PAGE) as u64)));
        a.protect(0..EXTENT, Prot::None).unwrap();
        assert!(a.fault_in(7 * PAGE..8 * PAGE, Access::Read).is_err(), "not to be read");
        assert_eq!(load(a, 7 * PAGE), Err(libc::SIGSEGV));
        a.protect(0..EXTENT, Prot::Read).unwrap();
        assert_eq!(load(a, 7 * PAGE), Ok(byte_of(0, 7 * PAGE as u64)));
        // A shorter object.
        object.populate(0..len as u64).unwrap();
        arenas[1].promote(0..len).unwrap();
        object.set_len(EXTENT as u64).unwrap();
        assert_eq!(load(&arenas[1], EXTENT), Err(libc::SIGBUS), "past the new end, not zeros");
    });
}

#[test]
fn stores_in_a_tracked_extent_are_kept() {
    let _serial = serial();
    each_userfaultfd("tracked", |rt, mode| {
        let knobs = Arc::new(Knobs::default());
        let builder = rt.object(EXTENT as u64).writable(true);
        let object = builder.handler_store(Box::new(KnobStore(knobs))).unwrap();
        let a = rt.arena(EXTENT).delivery(mode).native_extents(false).build().unwrap();
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        object.populate(0..EXTENT as u64).unwrap();
        let mut want = content(0, 0..EXTENT as u64);
        for round in 0..4u8 {
            assert_eq!(a.promote(0..EXTENT).unwrap(), 1);
            (0..512).step_by(3).for_each(|p| {
                store(&a, p * PAGE + usize::from(round), round).unwrap();
                want[p * PAGE + usize::from(round)] = round;
            });
            assert_eq!(a.demote(0..EXTENT).unwrap(), 1);
            (1..512).step_by(3).for_each(|p| {
                store(&a, p * PAGE + usize::from(round), round).unwrap();
                want[p * PAGE + usize::from(round)] = round;
            });
            object.evict(0..EXTENT as u64).unwrap();
            a.zap(0..EXTENT).unwrap();
            same("after a round", &bytes(&a, 0..EXTENT), &want);
        }
    });
}

#[test]
fn the_budget_returns_to_its_start() {
    let _serial = serial();
    let keeper = runtime();
    let start = keeper.stats()["vma_budget_left"];
    each_userfaultfd("budget", |rt, mode| {
        let len = 8 * EXTENT;
        let (object, _) = knob_object(rt, len as u64, true);
        object.populate(0..len as u64).unwrap();
        // Every order of coming and going: alternate extents, runs, from the middle, by drop and by unmap.
        for way in 0..4 {
            let a = rt.arena(len).delivery(mode).native_extents(false).build().unwrap();
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            for e in [0usize, 4, 2, 7, 5, 1] {
                assert_eq!(a.promote(e * EXTENT..(e + 1) * EXTENT).unwrap(), 1);
            }
            assert!(rt.stats()["vma_budget_left"] < start, "{mode:?}: native runs between trapped ones cost vmas");
            match way {
                0 => {
                    for e in [4usize, 0, 7, 1, 2, 5] {
                        a.demote(e * EXTENT..(e + 1) * EXTENT).unwrap();
                    }
                    assert_eq!(rt.stats()["vma_budget_left"], start, "{mode:?}: one by one");
                }
                1 => {
                    a.demote(0..len).unwrap();
                    assert_eq!(rt.stats()["vma_budget_left"], start, "{mode:?}: at once");
                }
                2 => a.unmap(0..len).unwrap(),
                _ => {}
            }
            drop(a);
            assert_eq!(rt.stats()["vma_budget_left"], start, "{mode:?}: way {way}");
        }
    });
}

#[test]
fn demotion_with_the_table_of_mappings_full() {
    for mode in [Delivery::InThread, Delivery::Monitor] {
        let out = child("demotion_with_the_table_of_mappings_full", &format!("{mode:?}"), || {
            let max = std::fs::read_to_string("/proc/sys/vm/max_map_count").unwrap();
            let max: usize = max.trim().parse().unwrap();
            if max > 200_000 {
                return println!("skipped: vm.max_map_count is {max}: filling it takes too long");
            }
            let rt = runtime();
            if !rt.delivery().is_available(mode) {
                return println!("skipped: {}", rt.delivery());
            }
            let len = 5 * EXTENT;
            let (object, _) = knob_object(&rt, len as u64, true);
            let a = rt.arena(len).delivery(mode).native_extents(false).build().unwrap();
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            object.populate(0..len as u64).unwrap();
            assert_eq!(a.promote(EXTENT..4 * EXTENT).unwrap(), 3);
            // One long mapping with alternating protection: each page is a vma.
            let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS | libc::MAP_NORESERVE;
            // SAFETY: a fresh mapping.
            let at = unsafe { libc::mmap(std::ptr::null_mut(), 2 * max * PAGE, libc::PROT_NONE, flags, -1, 0) };
            assert_ne!(at, libc::MAP_FAILED);
            let mut nr = 0;
            for i in (1..2 * max).step_by(2) {
                // SAFETY: a page of the mapping above.
                if unsafe { libc::mprotect(at.wrapping_byte_add(i * PAGE), PAGE, libc::PROT_READ) } != 0 {
                    break;
                }
                nr += 1;
            }
            assert!(nr < max, "the table is full: {}", std::io::Error::last_os_error());
            // The middle of the native run alone would split it: no mapping is left for that.
            a.demote(2 * EXTENT..3 * EXTENT).unwrap();
            assert!(a.native_extents() < 3);
            assert_eq!(object.evict(2 * EXTENT as u64..2 * EXTENT as u64 + PAGE as u64).unwrap(), 1);
            assert_eq!(load(&a, 2 * EXTENT), Ok(byte_of(0, 2 * EXTENT as u64)), "read again, not zeros");
            common::evict(&object, 0..len as u64, 5 * 512);
            for p in (0..len).step_by(PAGE) {
                assert_eq!(load(&a, p), Ok(byte_of(0, p as u64)));
            }
            println!("full");
        });
        let text = ended(out, Ok(0));
        assert!(text.is_empty() || text.contains("full") || text.contains("skipped"), "{text}");
    }
}
