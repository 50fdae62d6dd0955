//! Huge pages: collapsed, mapped by one entry, dropped whole, and never at the price of a byte.
#![allow(unsafe_code, reason = "system calls on arena memory")]
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{
    EXTENT, KnobStore, Knobs, PAGE, Rng, StopOnDrop, arena, byte_of, bytes, content, each_mode, each_userfaultfd, load,
    map, same, serial, setup, store, until,
};
use softfault::{Access, Arena, Delivery, Object, Prot, Runtime, Sharing};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

const CHUNK: u64 = EXTENT as u64;

/// A read-only object of computed content that is to have huge pages.
fn huge_object(rt: &Runtime, chunks: u64) -> Object {
    let store = Box::new(KnobStore(Arc::new(Knobs::default())));
    rt.object(chunks * CHUNK).huge_pages(true).fill_window_pages(512).handler_store(store).expect("object")
}

/// Fills the object and collapses all of it; `false`, and says so: the kernel refuses.
fn collapsed(rt: &Runtime, object: &Object) -> bool {
    object.populate(0..object.len()).expect("populate");
    let nr = object.collapse(0..object.len()).expect("collapse");
    let refused = rt.stats()["thp_collapse_alloc_failed"];
    if nr < object.len() / CHUNK && refused > 0 {
        println!("skipped: the kernel refused {refused} collapses");
        return false;
    }
    assert_eq!(nr, object.len() / CHUNK, "every chunk is complete and nothing is in the way");
    true
}

/// Extents of the arena that the kernel maps by one entry, from `/proc/self/smaps`.
fn pmd_mapped(a: &Arena) -> usize {
    let arena = a.as_ptr() as usize..a.as_ptr() as usize + a.len();
    let mut inside = false;
    let mut kib = 0;
    for line in std::fs::read_to_string("/proc/self/smaps").expect("smaps").lines() {
        let range = line.split_once(' ').and_then(|(range, _)| range.split_once('-'));
        let range =
            range.and_then(|(a, b)| Some((usize::from_str_radix(a, 16).ok()?, usize::from_str_radix(b, 16).ok()?)));
        if let Some((start, _)) = range {
            inside = arena.contains(&start);
        }
        if let Some(value) = line.strip_prefix("ShmemPmdMapped:").filter(|_| inside) {
            kib += value.trim().trim_end_matches(" kB").parse::<usize>().expect("a number");
        }
    }
    kib / 2048
}

fn touch_all(a: &Arena) {
    for at in (0..a.len()).step_by(PAGE) {
        assert_eq!(load(a, at), Ok(byte_of(0, at as u64)), "at {at:#x}");
    }
}

fn allocated(rt: &Runtime) -> u64 {
    rt.stats()["cache_bytes_allocated"]
}

#[test]
fn native_extents_over_huge_pages_are_mapped_by_one_entry() {
    let _serial = serial();
    each_userfaultfd("mapped", |rt, mode| {
        for (prot, sharing) in
            [(Prot::Read, Sharing::Shared), (Prot::Read, Sharing::Private), (Prot::ReadWrite, Sharing::Private)]
        {
            // What happens first: the collapse, the mapping page by page, or the promotion.
            for order in 0..3 {
                let what = format!("{mode:?} {prot:?} {sharing:?} order {order}");
                let object = huge_object(rt, 3);
                let a = rt.arena(3 * EXTENT).delivery(mode).native_extents(false).build().unwrap();
                map(&a, 0, &object, prot, sharing);
                if order > 0 {
                    object.populate(0..object.len()).unwrap();
                    touch_all(&a);
                }
                if order == 2 {
                    assert_eq!(a.promote(0..a.len()).unwrap(), 3, "{what}");
                }
                // A monitor drops its pins a little after it has woken whom it serves: `collapse` waits for that.
                if !collapsed(rt, &object) {
                    return;
                }
                assert_eq!(rt.stats()["nr_shmem_hugepages"], 3, "{what}");
                if order < 2 {
                    assert_eq!(pmd_mapped(&a), 0, "{what}: trapped");
                    touch_all(&a);
                    assert_eq!(a.promote(0..a.len()).unwrap(), 3, "{what}");
                }
                touch_all(&a);
                assert_eq!(pmd_mapped(&a), 3, "{what}");
                for _ in 0..2 {
                    assert_eq!(a.demote(0..a.len()).unwrap(), 3, "{what}");
                    touch_all(&a);
                    assert_eq!(a.promote(0..a.len()).unwrap(), 3, "{what}");
                    touch_all(&a);
                    assert_eq!(pmd_mapped(&a), 3, "{what}: and back");
                }
                same(&what, &bytes(&a, 0..a.len()), &content(0, 0..object.len()));
                drop((a, object));
                assert_eq!(rt.stats()["nr_shmem_hugepages"], 0, "{what}: gone with the object");
            }
        }
        assert_eq!(rt.stats()["thp_fault_fallback"], 0);
    });
}

#[test]
fn eviction_gives_all_memory_back() {
    let _serial = serial();
    each_mode("evict", |rt, mode| {
        let object = huge_object(rt, 3);
        let arenas = [Sharing::Shared, Sharing::Private].map(|sharing| {
            let a = arena(rt, mode, 3 * EXTENT);
            map(&a, 0, &object, Prot::Read, sharing);
            a
        });
        if !collapsed(rt, &object) {
            return;
        }
        arenas.iter().for_each(touch_all);
        assert_eq!(allocated(rt), 3 * CHUNK);
        common::evict(&object, 0..2 * CHUNK, 1024);
        assert_eq!(allocated(rt), CHUNK, "{mode:?}: two chunks, dropped whole");
        let s = rt.stats();
        assert_eq!((s["thp_steal"], s["thp_split_page"], s["nr_shmem_hugepages"]), (2, 0, 1), "{mode:?}");
        common::evict(&object, 2 * CHUNK + 4096..2 * CHUNK + 3 * 4096, 2);
        assert_eq!(allocated(rt), CHUNK - 2 * 4096, "{mode:?}: two pages of the third");
        let s = rt.stats();
        assert_eq!((s["thp_steal"], s["thp_split_page"], s["nr_shmem_hugepages"]), (2, 1, 0), "{mode:?}");
        arenas.iter().for_each(touch_all);
        common::evict(&object, 0..3 * CHUNK, 1536);
        assert_eq!(allocated(rt), 0);
        arenas.iter().for_each(|a| same("read again", &bytes(a, 0..a.len()), &content(0, 0..3 * CHUNK)));
    });
}

/// Whether a system call can read the page at `at`.
fn kernel_reads(a: &Arena, at: usize) -> bool {
    let (reader, writer) = std::io::pipe().expect("pipe");
    let from = (a.as_ptr() as usize + at) as *const libc::c_void;
    // SAFETY: the kernel checks the address.
    let n = unsafe { libc::write(std::os::fd::AsRawFd::as_raw_fd(&writer), from, 16) };
    drop(reader);
    n == 16
}

#[test]
fn a_pin_stays_mapped() {
    let _serial = serial();
    each_mode("pin", |rt, mode| {
        for native in [false, true] {
            let object = huge_object(rt, 2);
            let a = rt.arena(2 * EXTENT).delivery(mode).native_extents(native).build().unwrap();
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            object.populate(0..object.len()).unwrap();
            // Pinned before: nothing is collapsed over it.
            let pin = a.pin(EXTENT + 5 * PAGE..EXTENT + 6 * PAGE, Access::Read).unwrap();
            let nr = object.collapse(0..object.len()).unwrap();
            if rt.stats()["thp_collapse_alloc_failed"] > 0 {
                return println!("skipped: the kernel refuses");
            }
            assert_eq!(nr, 1, "{mode:?}: the other chunk");
            assert!(kernel_reads(&a, EXTENT + 5 * PAGE), "{mode:?}");
            drop(pin);
            assert_eq!(object.collapse(0..object.len()).unwrap(), 2, "{mode:?}");
            // Pinned after: no part of the huge page goes.
            let pin = a.pin(EXTENT + 5 * PAGE..EXTENT + 6 * PAGE, Access::Read).unwrap();
            assert_eq!(object.evict(CHUNK..CHUNK + 4096).unwrap(), 0, "{mode:?}: the kernel would unmap all of it");
            assert_eq!(object.evict(0..2 * CHUNK).unwrap(), 512, "{mode:?}: the other chunk");
            assert!(kernel_reads(&a, EXTENT + 5 * PAGE), "{mode:?}");
            assert_eq!(load(&a, EXTENT), Ok(byte_of(0, CHUNK)));
            drop(pin);
            common::evict(&object, CHUNK..2 * CHUNK, 512);
            assert_eq!(allocated(rt), 0, "{mode:?}");
        }
    });
}

#[test]
fn stores_to_anonymous_memory_are_kept() {
    let _serial = serial();
    each_mode("anonymous", |rt, mode| {
        let object = rt.object(2 * CHUNK).huge_pages(true).anonymous().unwrap();
        let a = arena(rt, mode, 2 * EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let mut want = vec![0u8; 2 * EXTENT];
        let write = |want: &mut Vec<u8>, round: usize| {
            for p in (round..1024).step_by(3) {
                store(&a, p * PAGE + round, round as u8 + 1).unwrap();
                want[p * PAGE + round] = round as u8 + 1;
            }
        };
        write(&mut want, 0);
        if !collapsed(rt, &object) {
            return;
        }
        write(&mut want, 1);
        let promoted = a.promote(0..a.len()).unwrap() + a.native_extents();
        write(&mut want, 2);
        if mode != Delivery::Segv {
            assert!(promoted >= 2);
            assert_eq!(pmd_mapped(&a), 2, "{mode:?}: nobody notes stores to what is nowhere else");
        }
        a.demote(0..a.len()).unwrap();
        write(&mut want, 3);
        let mut got = vec![0u8; 2 * EXTENT];
        object.read_at(0, &mut got).unwrap();
        same("through the cache", &got, &want);
        same("through the arena", &bytes(&a, 0..a.len()), &want);
    });
}

#[test]
fn objects_with_noted_stores_stay_small() {
    let _serial = serial();
    each_mode("noted", |rt, mode| {
        let knobs = Box::new(KnobStore(Arc::new(Knobs::default())));
        let object = rt.object(CHUNK).huge_pages(true).writable(true).handler_store(knobs).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        store(&a, 7 * PAGE, 99).unwrap();
        object.populate(0..CHUNK).unwrap();
        assert_eq!(object.collapse(0..CHUNK).unwrap(), 0, "{mode:?}: the note of the store would go with the mapping");
        object.evict(0..CHUNK).unwrap();
        assert_eq!(load(&a, 7 * PAGE), Ok(99), "{mode:?}");
        assert_eq!(rt.stats()["nr_shmem_hugepages"], 0);
    });
}

#[test]
fn private_copies_survive() {
    let _serial = serial();
    each_userfaultfd("copies", |rt, mode| {
        let object = huge_object(rt, 1);
        let a = rt.arena(EXTENT).delivery(mode).native_extents(false).build().unwrap();
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        object.populate(0..CHUNK).unwrap();
        let mut want = content(0, 0..CHUNK);
        let write = |want: &mut Vec<u8>, page: usize| {
            store(&a, page * PAGE, 200).unwrap();
            want[page * PAGE] = 200;
        };
        write(&mut want, 3);
        if !collapsed(rt, &object) {
            return;
        }
        same("after the collapse", &bytes(&a, 0..EXTENT), &want);
        write(&mut want, 4);
        assert_eq!(a.promote(0..EXTENT).unwrap(), 1);
        assert!(rt.stats()["thp_fault_fallback"] > 0, "{mode:?}: it says that this extent is mapped by pages");
        write(&mut want, 5);
        same("native", &bytes(&a, 0..EXTENT), &want);
        a.demote(0..EXTENT).unwrap();
        common::evict(&object, 0..CHUNK, 512);
        assert_eq!(allocated(rt), 0, "{mode:?}");
        same("evicted", &bytes(&a, 0..EXTENT), &want);
    });
}

#[test]
fn a_shorter_object_has_a_shorter_huge_page() {
    let _serial = serial();
    each_mode("truncate", |rt, mode| {
        let object = huge_object(rt, 2);
        let a = arena(rt, mode, 2 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        if !collapsed(rt, &object) {
            return;
        }
        touch_all(&a);
        object.set_len(CHUNK / 2 + 100).unwrap();
        assert_eq!(load(&a, EXTENT / 2 + 99), Ok(byte_of(0, CHUNK / 2 + 99)));
        assert_eq!(load(&a, EXTENT / 2 + 100), Ok(0), "{mode:?}: the tail of the last page");
        assert_eq!(load(&a, EXTENT / 2 + PAGE), Err(libc::SIGBUS), "{mode:?}");
        assert_eq!(rt.stats()["nr_shmem_hugepages"], 0);
        assert_eq!(allocated(rt), CHUNK / 2 + PAGE as u64);
    });
}

#[test]
fn complete_chunks_are_collapsed_in_the_background() {
    let _serial = serial();
    each_userfaultfd("background", |rt, mode| {
        let probe = huge_object(rt, 1);
        if !collapsed(rt, &probe) {
            return;
        }
        drop(probe);
        let object = huge_object(rt, 2);
        let a = arena(rt, mode, 2 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        touch_all(&a);
        until("both chunks are huge pages", || rt.stats()["nr_shmem_hugepages"] == 2);
        until("and mapped so", || {
            touch_all(&a);
            a.native_extents() == 2 && pmd_mapped(&a) == 2
        });
    });
}

#[test]
fn readers_see_every_byte_while_chunks_change() {
    let _serial = serial();
    each_userfaultfd("readers", |rt, mode| {
        let object = huge_object(rt, 4);
        if !collapsed(rt, &object) {
            return;
        }
        let arenas =
            [(Sharing::Shared, true), (Sharing::Shared, false), (Sharing::Private, true)].map(|(s, native)| {
                let a = rt.arena(4 * EXTENT).delivery(mode).native_extents(native).build().unwrap();
                map(&a, 0, &object, Prot::Read, s);
                a
            });
        let stop = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let stopper = StopOnDrop(&stop);
            for (i, a) in arenas.iter().enumerate() {
                let stop = &stop;
                scope.spawn(move || {
                    let mut rng = Rng(77 + i as u64);
                    while !stop.load(Ordering::SeqCst) {
                        let at = rng.below(4 * EXTENT);
                        assert_eq!(load(a, at), Ok(byte_of(0, at as u64)), "arena {i} at {at:#x}");
                    }
                });
            }
            let mut rng = Rng(5);
            for round in 0..60 {
                let chunk = rng.below(4) as u64 * CHUNK;
                match round % 4 {
                    0 => drop(object.evict(chunk..chunk + CHUNK).unwrap()),
                    1 => drop(object.evict(chunk + 4096..chunk + 8192).unwrap()),
                    _ => {
                        object.populate(0..4 * CHUNK).unwrap();
                        object.collapse(chunk..chunk + CHUNK).unwrap();
                    }
                }
                // And the pin of a page that a system call reads, at any moment.
                let at = rng.below(1024) * PAGE;
                let pin = arenas[1].pin(at..at + PAGE, Access::Read).unwrap();
                object.collapse(0..4 * CHUNK).unwrap();
                assert!(kernel_reads(&arenas[1], at), "{mode:?}: pinned at {at:#x}");
                drop(pin);
            }
            drop(stopper);
        });
        let s = rt.stats();
        assert!(s["thp_collapse_alloc"] > 4, "{s}");
    });
}

#[test]
fn a_bounded_cache_reclaims_huge_pages() {
    let _serial = serial();
    setup();
    let rt = Runtime::builder().cache_limit(8 * CHUNK).build().unwrap();
    let (hot, cold) = (huge_object(&rt, 6), huge_object(&rt, 16));
    if !collapsed(&rt, &hot) {
        return;
    }
    for mode in [Delivery::InThread, Delivery::Segv] {
        if !rt.delivery().is_available(mode) {
            continue;
        }
        let arenas = [arena(&rt, mode, 6 * EXTENT), arena(&rt, mode, 16 * EXTENT)];
        map(&arenas[0], 0, &hot, Prot::Read, Sharing::Shared);
        map(&arenas[1], 0, &cold, Prot::Read, Sharing::Shared);
        for round in 0..3 {
            for a in &arenas {
                for at in (0..a.len()).step_by(PAGE) {
                    assert_eq!(load(a, at), Ok(byte_of(0, at as u64)), "{mode:?} round {round} at {at:#x}");
                }
                assert!(allocated(&rt) <= 8 * CHUNK + (4 << 20), "{mode:?}: {} bytes", allocated(&rt));
            }
            hot.populate(0..4 * CHUNK).unwrap();
            hot.collapse(0..6 * CHUNK).unwrap();
        }
    }
    let s = rt.stats();
    assert!(s["thp_steal"] > 0, "dropped whole:\n{s}");
    // Everything can go: no page is lost to the queues.
    rt.set_cache_limit(CHUNK / 2);
    until("all but the limit went", || rt.stats()["nr_cached_pages"] <= 256);
    until("and was given back", || allocated(&rt) <= CHUNK / 2 + (64 << 10));
    assert_eq!(rt.stats()["nr_shmem_hugepages"], 0);
}

#[test]
fn readers_of_a_bounded_cache_see_every_byte() {
    let _serial = serial();
    setup();
    let rt = Runtime::builder().cache_limit(6 * CHUNK).build().unwrap();
    let mode = if rt.delivery().is_available(Delivery::InThread) { Delivery::InThread } else { Delivery::Segv };
    let store = Box::new(KnobStore(Arc::new(Knobs::default())));
    let object = rt.object(12 * CHUNK).huge_pages(true).fill_window_pages(16).handler_store(store).unwrap();
    let arenas = [Sharing::Shared, Sharing::Private].map(|sharing| {
        let a = arena(&rt, mode, 12 * EXTENT);
        map(&a, 0, &object, Prot::Read, sharing);
        a
    });
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let stopper = StopOnDrop(&stop);
        for i in 0..4 {
            let (a, stop) = (&arenas[i % 2], &stop);
            scope.spawn(move || {
                let mut rng = Rng(11 + i as u64);
                while !stop.load(Ordering::SeqCst) {
                    // Half of the loads in a third of the object.
                    let within = if rng.below(2) == 0 { 4 } else { 12 };
                    let at = rng.below(within * EXTENT);
                    assert_eq!(load(a, at), Ok(byte_of(0, at as u64)), "thread {i} at {at:#x}");
                }
            });
        }
        for round in 0..36 {
            let chunk = (round % 12) * CHUNK;
            object.populate(chunk..chunk + CHUNK).unwrap();
            object.collapse(chunk..chunk + CHUNK).unwrap();
            assert!(allocated(&rt) <= 6 * CHUNK + (32 << 20), "{} bytes", allocated(&rt));
        }
        drop(stopper);
    });
    let s = rt.stats();
    if s["thp_collapse_alloc"] == 0 {
        return println!("skipped: no chunk was collapsed:\n{s}");
    }
    rt.set_cache_limit(CHUNK / 2);
    until("all but the limit went", || rt.stats()["nr_cached_pages"] <= 256);
    until("and was given back", || allocated(&rt) <= CHUNK / 2 + (64 << 10));
    assert_eq!(rt.stats()["nr_shmem_hugepages"], 0);
}

/// Steps of a collapse held still while something else comes by.
#[cfg(debug_assertions)]
mod gates {
    use super::*;
    use softfault_mm::trace::{Point, arm_gate, disarm, is_caught};

    /// Runs `during` while a collapse of the object's only chunk stands at `point`; returns how many chunks are huge then.
    fn while_collapsing(object: &Object, point: Point, during: impl FnOnce()) -> u64 {
        arm_gate(point);
        std::thread::scope(|scope| {
            let collapser = scope.spawn(|| object.collapse(0..CHUNK).unwrap());
            until("the collapser is caught", || is_caught(point) || collapser.is_finished());
            let outcome = std::panic::catch_unwind(std::panic::AssertUnwindSafe(during));
            disarm(point);
            let nr = collapser.join().unwrap();
            outcome.unwrap_or_else(|e| std::panic::resume_unwind(e));
            nr
        })
    }

    #[test]
    fn nothing_leaves_a_chunk_that_is_being_collapsed() {
        let _serial = serial();
        each_mode("collapse-evict", |rt, mode| {
            for point in [Point::COLLAPSE_COUNTED, Point::COLLAPSE_CHECKED] {
                let object = huge_object(rt, 1);
                let a = rt.arena(EXTENT).delivery(mode).native_extents(false).build().unwrap();
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                object.populate(0..CHUNK).unwrap();
                touch_all(&a);
                let nr = while_collapsing(&object, point, || {
                    let gone = object.evict(3 * 4096..4 * 4096).unwrap();
                    assert_eq!(gone, 0, "{mode:?} {point:?}: the kernel would fill the hole with zeros");
                    assert_eq!(load(&a, 3 * PAGE), Ok(byte_of(0, 3 * 4096)), "reading goes on");
                });
                assert!(nr == 1 || rt.stats()["thp_collapse_alloc_failed"] > 0, "{mode:?} {point:?}");
                same("content", &bytes(&a, 0..EXTENT), &content(0, 0..CHUNK));
            }
        });
    }

    #[test]
    fn who_pins_waits_for_the_collapse_or_keeps_it_off() {
        let _serial = serial();
        each_mode("collapse-pin", |rt, mode| {
            for point in [Point::COLLAPSE_COUNTED, Point::COLLAPSE_CHECKED] {
                let object = huge_object(rt, 1);
                let a = rt.arena(EXTENT).delivery(mode).native_extents(false).build().unwrap();
                map(&a, 0, &object, Prot::Read, Sharing::Shared);
                object.populate(0..CHUNK).unwrap();
                touch_all(&a);
                arm_gate(point);
                std::thread::scope(|scope| {
                    let collapser = scope.spawn(|| object.collapse(0..CHUNK).unwrap());
                    until("the collapser is caught", || is_caught(point) || collapser.is_finished());
                    let pinned = scope.spawn(|| a.pin(5 * PAGE..6 * PAGE, Access::Read).unwrap());
                    // It would be done long before, if it did not wait.
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    let waits = !pinned.is_finished();
                    disarm(point);
                    let _pin = pinned.join().unwrap();
                    assert!(waits, "{mode:?} {point:?}: its pages would be unmapped below it");
                    collapser.join().unwrap();
                    assert!(kernel_reads(&a, 5 * PAGE), "{mode:?} {point:?}");
                });
            }
        });
    }
}

#[test]
fn an_object_that_cannot_have_them_is_counted() {
    let _serial = serial();
    setup();
    let rt = Runtime::builder().swap(std::env::temp_dir(), 4 * CHUNK).build().unwrap();
    let store = || Box::new(KnobStore(Arc::new(Knobs::default())));
    let asked = || rt.object(CHUNK).huge_pages(true);
    let unsupported = || rt.stats()["thp_unsupported"];
    let readable = asked().handler_store(store()).unwrap();
    assert_eq!(unsupported(), 0, "a read-only one can");
    let cannot = [
        ("writable", asked().writable(true).handler_store(store()).unwrap()),
        ("stores fault", asked().synchronous_writes(true).handler_store(store()).unwrap()),
        ("anonymous, swapped", asked().anonymous().unwrap()),
    ];
    assert_eq!(unsupported(), cannot.len() as u64);
    for (what, object) in &cannot {
        object.populate(0..CHUNK).unwrap();
        assert_eq!(object.collapse(0..CHUNK).unwrap(), 0, "{what}");
    }
    rt.object(CHUNK).writable(true).handler_store(store()).unwrap();
    assert_eq!(unsupported(), cannot.len() as u64, "who did not ask is not counted");
    assert_eq!(rt.stats()["nr_shmem_hugepages"], 0);
    drop(readable);
    let rt = Runtime::new().unwrap();
    rt.object(CHUNK).huge_pages(true).anonymous().unwrap();
    assert_eq!(rt.stats()["thp_unsupported"], 0, "anonymous memory that stays can");
}
