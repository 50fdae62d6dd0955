//! What a drop-in for mmap needs of arenas: a place of one's own, exchanging what is mapped, dropping private copies, many.
#![allow(unsafe_code, reason = "loads from and stores to arenas by address")]
#![allow(clippy::cast_possible_truncation, reason = "bytes of small numbers")]

mod common;

use common::{EXTENT, PAGE, StopOnDrop, TempFile, arena, bytes, each_mode, load, map, runtime, same, store, until};
use softfault::{Access, Advice, Arena, Delivery, Error, Object, Prot, Runtime, Sharing};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

const PAGES: usize = 64;

/// An object all of whose pages begin with `byte`.
fn painted(rt: &Runtime, byte: u8) -> Object {
    let object = rt.object((PAGES * PAGE) as u64).writable(true).anonymous().expect("anonymous");
    let written = object.write_at(0, &vec![byte; PAGES * PAGE]).expect("write_at");
    assert_eq!(written, PAGES * PAGE);
    object
}

#[test]
fn an_arena_lies_where_it_is_asked_to() {
    each_mode("at", |rt, mode| {
        // Far below where the kernel puts what may be anywhere: other tests map there at any time.
        let address = 0x2000_0000_0000;
        let build = |address| rt.arena(2 * EXTENT).delivery(mode).at(address).build();
        let a = build(address).expect("nobody else asks for this place");
        assert_eq!(a.as_ptr() as usize, address);
        map(&a, 0, &painted(rt, 7), Prot::Read, Sharing::Shared);
        assert_eq!(load(&a, 0), Ok(7));
        match build(address + EXTENT) {
            Err(Error::AddressInUse { address: at, len_bytes, by }) => {
                assert_eq!((at, len_bytes), (address + EXTENT, 2 * EXTENT));
                // Which of the arena's mappings it is says the kernel: a part of it is mapped.
                assert!(by.contains("(0x200000"), "{by}: what is in the way is named by its address");
            }
            other => panic!("{other:?}, where an arena is"),
        }
        assert_eq!(load(&a, 0), Ok(7), "the refusal has changed something");
        for bad in [0, address + PAGE, (1 << 47) - EXTENT, usize::MAX & !(EXTENT - 1)] {
            assert!(matches!(build(bad), Err(Error::Argument { arg: "at", .. })), "{bad:#x}");
        }
    });
}

/// Loads all over the range until told to stop; returns how many pages were seen, and of which values.
fn watch(a: &Arena, stop: &AtomicBool, seen: &[AtomicUsize; 256]) {
    let mut page = 0;
    while !stop.load(Ordering::Relaxed) {
        let byte = load(a, page * PAGE).unwrap_or_else(|signo| panic!("page {page}: signal {signo}"));
        seen[usize::from(byte)].fetch_add(1, Ordering::Relaxed);
        page = (page + 7) % PAGES;
    }
}

#[test]
fn who_touches_a_range_that_is_replaced_sees_the_old_bytes_or_the_new() {
    each_mode("replace", |rt, mode| {
        for (sharing, around) in [(Sharing::Shared, true), (Sharing::Private, true), (Sharing::Shared, false)] {
            let a = rt.arena(EXTENT).delivery(mode).fault_around(around).build().expect("arena");
            let objects = [painted(rt, 11), painted(rt, 22)];
            map(&a, 0, &objects[0], Prot::ReadWrite, sharing);
            let (stop, seen) = (AtomicBool::new(false), [const { AtomicUsize::new(0) }; 256]);
            std::thread::scope(|s| {
                let _stop = StopOnDrop(&stop);
                for _ in 0..2 {
                    s.spawn(|| watch(&a, &stop, &seen));
                }
                let has_seen = |byte: usize| seen[byte].load(Ordering::Relaxed) > 0;
                // Until both were seen, however rarely the others run; who never sees one hangs, which nobody waits for.
                for round in (1..).take_while(|round| *round < 150 || !(has_seen(11) && has_seen(22))) {
                    assert!(round < 1_000_000, "{mode:?}: what is there is never seen");
                    a.replace(0, &objects[round % 2], 0, PAGES * PAGE, Prot::ReadWrite, sharing).expect("replace");
                    // What is there now is there for who comes now.
                    let want = [11, 22][round % 2];
                    assert_eq!(load(&a, (round % PAGES) * PAGE), Ok(want), "{mode:?}, round {round}");
                    if round % 8 == 0 {
                        // So that faults fill, and wait for a filler.
                        let _ = objects[round % 2].evict(0..(PAGES * PAGE) as u64);
                    }
                }
            });
            let others: usize =
                (0..256).filter(|b| *b != 11 && *b != 22).map(|b| seen[b].load(Ordering::Relaxed)).sum();
            assert_eq!(others, 0, "{mode:?}, {sharing:?}: bytes that were in neither object");
        }
    });
}

#[test]
fn stores_before_a_replacement_are_the_old_objects() {
    each_mode("stores", |rt, mode| {
        let (old, new) = (painted(rt, 1), painted(rt, 2));
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &old, Prot::ReadWrite, Sharing::Shared);
        for p in 0..PAGES {
            assert_eq!(store(&a, p * PAGE, 100 + p as u8), Ok(()));
        }
        // The middle: what is at both ends stays mapped.
        let (from, to) = (16 * PAGE, 48 * PAGE);
        a.replace(from, &new, from as u64, to - from, Prot::ReadWrite, Sharing::Shared).expect("replace");
        for p in 0..PAGES {
            let inside = (16..48).contains(&p);
            assert_eq!(load(&a, p * PAGE), Ok(if inside { 2 } else { 100 + p as u8 }), "{mode:?}: page {p}");
            let mut byte = [0];
            old.read_at((p * PAGE) as u64, &mut byte).expect("read_at");
            assert_eq!(byte, [100 + p as u8], "{mode:?}: a store to page {p} is lost");
            assert_eq!(store(&a, p * PAGE, 200), Ok(()));
            new.read_at((p * PAGE) as u64, &mut byte).expect("read_at");
            assert_eq!(byte, [if inside { 200 } else { 2 }], "{mode:?}: page {p}");
        }
        // Over a gap as well, and over everything, and then it can be unmapped as any other.
        a.unmap(0..8 * PAGE).expect("unmap");
        a.replace(0, &new, 0, PAGES * PAGE, Prot::Read, Sharing::Shared).expect("replace");
        assert_eq!(load(&a, 0), Ok(2));
        assert!(store(&a, 0, 1).is_err(), "{mode:?}: mapped for loads");
        a.unmap(0..PAGES * PAGE).expect("unmap");
        assert!(load(&a, 0).is_err());
    });
}

#[test]
fn a_replacement_that_is_refused_changes_nothing() {
    each_mode("refused", |rt, mode| {
        let (old, new) = (painted(rt, 1), painted(rt, 2));
        let file = TempFile::new(PAGES * PAGE);
        let read_only = rt.file_options().open(file.path()).expect("object");
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &old, Prot::ReadWrite, Sharing::Shared);
        assert_eq!(store(&a, PAGE, 9), Ok(()));
        let len = PAGES * PAGE;
        let pin = a.pin(0..PAGE, Access::Read).expect("pin");
        let r = a.replace(0, &new, 0, len, Prot::Read, Sharing::Shared);
        assert!(matches!(r, Err(Error::Pinned { .. })), "{r:?}");
        drop(pin);
        let r = a.replace(0, &read_only, 0, len, Prot::ReadWrite, Sharing::Shared);
        assert!(matches!(r, Err(Error::Denied { .. })), "{r:?}");
        let r = a.replace(1, &new, 0, len, Prot::Read, Sharing::Shared);
        assert!(matches!(r, Err(Error::Argument { op: "Arena::replace", .. })), "{r:?}");
        let r = a.replace(0, &new, 1 << 40, len, Prot::Read, Sharing::Shared);
        assert!(matches!(r, Err(Error::Argument { .. })), "{r:?}");
        assert_eq!((load(&a, 0), load(&a, PAGE)), (Ok(1), Ok(9)), "{mode:?}");
        old.sync_all().expect("sync");
    });
}

#[test]
fn private_copies_go_when_they_are_not_needed() {
    each_mode("dontneed", |rt, mode| {
        let file = TempFile::new(PAGES * PAGE);
        let object = rt.file_options().open(file.path()).expect("object");
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        for round in 0..3u8 {
            for p in 0..PAGES {
                assert_eq!(store(&a, p * PAGE, 250 + round), Ok(()));
                assert_eq!(load(&a, p * PAGE), Ok(250 + round));
            }
            a.advise(8 * PAGE..PAGES * PAGE, Advice::DontNeed).expect("DontNeed");
            for p in 0..PAGES {
                let want = if p < 8 { 250 + round } else { file.data[p * PAGE] };
                assert_eq!(load(&a, p * PAGE), Ok(want), "{mode:?}, round {round}: page {p}");
            }
            // Pages that leave the cache now leave no zeros below what is mapped.
            let _ = object.evict(0..(PAGES * PAGE) as u64);
            same("after an eviction", &bytes(&a, 8 * PAGE..PAGES * PAGE), &file.data[8 * PAGE..]);
            a.advise(0..PAGES * PAGE, Advice::PopulateRead).expect("PopulateRead");
        }
        // Whole extents, as the kernel maps them.
        let whole = TempFile::new(EXTENT);
        let object = rt.file_options().open(whole.path()).expect("object");
        let b = arena(rt, mode, EXTENT);
        map(&b, 0, &object, Prot::ReadWrite, Sharing::Private);
        b.fault_in(0..EXTENT, Access::Read).expect("fault_in");
        let _ = b.promote(0..EXTENT);
        assert_eq!(store(&b, 5 * PAGE, 9), Ok(()));
        b.advise(0..EXTENT, Advice::DontNeed).expect("DontNeed");
        same("an extent", &bytes(&b, 0..EXTENT), &whole.data);
        let r = b.zap(0..PAGE);
        assert!(matches!(r, Err(Error::Denied { .. })), "to zap says nothing of losing what was written: {r:?}");
    });
}

#[test]
fn many_arenas_and_many_mappings_in_one() {
    let rt = runtime();
    let object = painted(&rt, 5);
    // More than a process could have once. Of each a page is touched.
    let few = |nr: usize| -> Vec<Arena> {
        (0..nr)
            .map(|i| {
                let a = rt.arena(EXTENT).build().unwrap_or_else(|e| panic!("arena {i}: {e}"));
                a.map(0, &object, 0, PAGE, Prot::Read, Sharing::Shared).unwrap_or_else(|e| panic!("mapping {i}: {e}"));
                a
            })
            .collect()
    };
    let arenas = few(4_200);
    assert!(arenas.iter().step_by(97).all(|a| load(a, 0) == Ok(5)));
    drop(arenas);
    // One page each, of alternating pages, so that no two are one to the kernel.
    let nr = 8_000;
    let a = arena(&rt, Delivery::Auto, 2 * nr * PAGE);
    for i in 0..nr {
        a.map(2 * i * PAGE, &object, ((i % PAGES) * PAGE) as u64, PAGE, Prot::Read, Sharing::Shared)
            .unwrap_or_else(|e| panic!("mapping {i}: {e}"));
    }
    assert!((0..nr).step_by(61).all(|i| load(&a, 2 * i * PAGE) == Ok(5)));
    assert!(load(&a, PAGE).is_err());
}

/// What a foreign mprotect opens is found, and closed: it reads right afterwards.
#[test]
fn an_mprotect_of_the_programs_is_found_and_undone() {
    // In a process of its own: looked at are all arenas that it has.
    common::ended(common::child("an_mprotect_of_the_programs_is_found_and_undone", "alone", open_and_look), Ok(0));
}

fn open_and_look() {
    each_mode("mprotect", |rt, mode| {
        let file = TempFile::new(2 * EXTENT);
        let object = rt.file_options().open(file.path()).expect("object");
        let a = arena(rt, mode, 2 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        same("before", &bytes(&a, 0..PAGE), &file.data[..PAGE]);
        let found = || rt.stats().get("process_opened_pages").expect("a counter");
        let before = found();
        // SAFETY: loads stay permitted where they were.
        assert_eq!(unsafe { libc::mprotect(a.as_ptr().cast(), 2 * EXTENT, libc::PROT_READ) }, 0);
        if mode == Delivery::Segv {
            // Statistics look now and then.
            until("it is found", || found() > before);
        }
        let after = found();
        if mode == Delivery::Segv {
            // What was exposed beside the page that was touched is no more than its granule.
            assert!((1..=512).contains(&(1024 - (after - before))), "{} pages were found", after - before);
            let audit = rt.audit_threads().expect("audit");
            assert!(audit.offenders.iter().any(|o| o.why.contains("mprotect")), "{audit}");
        } else {
            assert_eq!(after, before, "{mode:?}: there it does no harm");
        }
        same(&format!("{mode:?}"), &bytes(&a, 0..2 * EXTENT), &file.data);
        let _ = rt.audit_threads().expect("it looks");
        assert_eq!(found(), after, "{mode:?}: what faults have opened is not foreign");
    });
}

#[test]
fn stores_before_a_replacement_reach_the_store() {
    each_mode("written", |rt, mode| {
        let file = TempFile::new(PAGES * PAGE);
        let (old, new) = (rt.open_file_rw(file.path()).expect("object"), painted(rt, 2));
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &old, Prot::ReadWrite, Sharing::Shared);
        // Mapped, protected and clean: a store leaves its note in the page table alone.
        a.fault_in(0..PAGES * PAGE, Access::Write).expect("fault_in");
        old.sync_all().expect("sync");
        for p in 0..PAGES {
            assert_eq!(store(&a, p * PAGE, 100 + p as u8), Ok(()));
        }
        a.replace(0, &new, 0, PAGES * PAGE, Prot::Read, Sharing::Shared).expect("replace");
        old.sync_all().expect("sync");
        let now = std::fs::read(file.path()).expect("read");
        for p in 0..PAGES {
            assert_eq!(now[p * PAGE], 100 + p as u8, "{mode:?}: the store to page {p} is lost");
        }
    });
}

/// An error names the call that was made.
#[test]
fn a_refused_replacement_is_named_so() {
    let rt = runtime();
    if !rt.delivery().is_available(Delivery::InThread) {
        println!("skipped: exclusive objects need userfaultfd");
        return;
    }
    let object = rt.object(PAGE as u64).exclusive(true).anonymous().expect("object");
    let a = arena(&rt, Delivery::InThread, EXTENT);
    let denied = a.replace(0, &object, 0, PAGE, Prot::Read, Sharing::Shared);
    assert!(matches!(denied, Err(Error::Denied { op: "Arena::replace", .. })), "{denied:?}");
    let denied = a.map(0, &object, 0, PAGE, Prot::Read, Sharing::Shared);
    assert!(matches!(denied, Err(Error::Denied { op: "Arena::map", .. })), "{denied:?}");
}
