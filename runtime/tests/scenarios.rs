//! The same scenarios over each way a fault can arrive, on the real kernel.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small files")]

mod common;

use common::{
    EXTENT, PAGE, Rng, TempFile, arena, byte_of, bytes, child, content, each_mode, ended, knob_object, limit, load,
    map, runtime, same, store,
};
use softfault::{Access, Advice, Arena, Error, Prot, Sharing, VmFaultReason};
use std::sync::Barrier;

const SEGV: i32 = libc::SIGSEGV;
const BUS: i32 = libc::SIGBUS;

#[test]
fn at_least_one_mode_can_be_had() {
    each_mode("nothing", |rt, mode| assert!(rt.delivery().is_available(mode)));
}

#[test]
fn file_read_only() {
    let file = TempFile::new((5 << 20) + 1234);
    each_mode("file_read_only", |rt, mode| {
        let object = rt.open_file(file.path()).unwrap();
        assert_eq!(object.len(), file.data.len() as u64);
        let a = arena(rt, mode, 8 << 20);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        // In random order first, so that windows meet mapped pages.
        let mut rng = Rng(7);
        for _ in 0..2_000 {
            let at = rng.below(file.data.len());
            assert_eq!(load(&a, at), Ok(file.data[at]), "byte {at:#x}");
        }
        same("file", &bytes(&a, 0..file.data.len()), &file.data);
        assert_eq!(store(&a, 0, 1), Err(SEGV), "a store to a read-only mapping");
        assert_eq!(load(&a, 0), Ok(file.data[0]), "and the page is as it was");
        assert_eq!(rt.stats()["pgpgin"], object.cached_pages(), "each page was read once");
    });
}

#[test]
fn shared_writable() {
    each_mode("shared_writable", |rt, mode| {
        let len = 64 * PAGE as u64;
        let knobs = std::sync::Arc::new(common::Knobs::default());
        let object = rt.object(len).writable(true).store(Box::new(common::KnobStore(knobs))).unwrap();
        let (a, b) = (arena(rt, mode, EXTENT), arena(rt, mode, EXTENT));
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        map(&b, 0, &object, Prot::Read, Sharing::Shared);
        for p in (0..64).step_by(3) {
            // A load first on every other one: the store then meets a page that is mapped already.
            if p % 2 == 0 {
                assert_eq!(load(&a, p * PAGE + 5), Ok(byte_of(0, (p * PAGE + 5) as u64)));
            }
            assert_eq!(store(&a, p * PAGE + 5, 0), Ok(()), "page {p}");
        }
        let mut want = content(0, 0..len);
        (0..64).step_by(3).for_each(|p| want[p * PAGE + 5] = 0);
        same("through the writer", &bytes(&a, 0..len as usize), &want);
        same("through the reader", &bytes(&b, 0..len as usize), &want);
        let mut got = vec![0; len as usize];
        assert_eq!(object.read_at(0, &mut got).unwrap(), got.len());
        same("through read_at", &got, &want);
        assert_eq!(store(&b, 0, 1), Err(SEGV), "the reader may not store");
        let gone = object.evict(0..len).unwrap();
        assert!(gone <= 42, "{gone} of 64 pages went, of which 22 are written");
        same("what was written stays", &bytes(&a, 0..len as usize), &want);
    });
}

#[test]
fn private_copies() {
    let file = TempFile::new(40 * PAGE + 99);
    each_mode("private_copies", |rt, mode| {
        let object = rt.open_file(file.path()).unwrap();
        let (a, b) = (arena(rt, mode, EXTENT), arena(rt, mode, EXTENT));
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        map(&b, 0, &object, Prot::Read, Sharing::Shared);
        let mut want = file.data.clone();
        // Uncached, cached by the other mapping, and mapped already.
        for p in 0..40 {
            match p % 3 {
                1 => assert_eq!(load(&b, p * PAGE), Ok(file.data[p * PAGE])),
                2 => assert_eq!(load(&a, p * PAGE), Ok(file.data[p * PAGE])),
                _ => {}
            }
            assert_eq!(store(&a, p * PAGE + 1, 255), Ok(()), "page {p}");
            want[p * PAGE + 1] = 255;
        }
        same("the copy", &bytes(&a, 0..want.len()), &want);
        same("the object", &bytes(&b, 0..want.len()), &file.data);
        let mut through = vec![0; want.len()];
        a.read_at(0, &mut through).unwrap();
        same("read_at sees the copy", &through, &want);
        object.evict(0..object.len()).unwrap();
        same("the copy outlives eviction", &bytes(&a, 0..want.len()), &want);
    });
}

#[test]
fn a_private_store_to_an_uncached_page_goes_past_the_cache() {
    let file = TempFile::new(8 * PAGE);
    common::each_userfaultfd("past_the_cache", |rt, mode| {
        let object = rt.open_file(file.path()).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
        assert_eq!(store(&a, 3 * PAGE, 9), Ok(()));
        assert_eq!(object.cached_pages(), 0, "the cache was not filled");
        // A monitor counts after it has answered.
        common::until("the copy is counted", || rt.stats().reason(VmFaultReason::DONE_COW) == 1);
        assert_eq!(load(&a, 3 * PAGE + 1), Ok(file.data[3 * PAGE + 1]), "the rest is the store's");
        assert_eq!(load(&a, 3 * PAGE), Ok(9));
    });
}

#[test]
fn anonymous_memory() {
    each_mode("anonymous_memory", |rt, mode| {
        let object = rt.anonymous(6 << 20).unwrap();
        let a = arena(rt, mode, 6 << 20);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        for p in (0..1536).step_by(5) {
            assert_eq!(load(&a, p * PAGE + 8), Ok(0));
            assert_eq!(store(&a, p * PAGE + 8, p as u8 | 1), Ok(()));
        }
        for p in 0..1536 {
            assert_eq!(load(&a, p * PAGE + 8), Ok(if p % 5 == 0 { p as u8 | 1 } else { 0 }), "page {p}");
        }
        assert_eq!(object.evict(0..object.len()).unwrap(), 0, "its content is nowhere else");
    });
}

#[test]
fn user_stores_in_the_handler_and_on_a_filler() {
    each_mode("user_stores", |rt, mode| {
        for in_handler in [true, false] {
            let len = 3 * EXTENT as u64 + 777;
            let (object, knobs) = knob_object(rt, len, in_handler);
            let a = arena(rt, mode, 4 * EXTENT);
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            same("store", &bytes(&a, 0..len as usize), &content(0, 0..len));
            assert_eq!(
                knobs.bytes.load(std::sync::atomic::Ordering::SeqCst) as u64,
                len,
                "no byte was asked for twice"
            );
        }
    });
}

#[test]
fn offsets_of_arena_and_object() {
    let file = TempFile::new(5 << 20);
    each_mode("offsets", |rt, mode| {
        let object = rt.open_file(file.path()).unwrap();
        let a = arena(rt, mode, 8 << 20);
        // Congruent and not congruent modulo 2 MiB, and crossing an extent's border.
        let pieces = [(0, 3 * PAGE, 5 * PAGE), (EXTENT, EXTENT, EXTENT), (3 * EXTENT - 9 * PAGE, 77 * PAGE, 30 * PAGE)];
        for (at, from, len) in pieces {
            a.map(at, &object, from as u64, len, Prot::Read, Sharing::Shared).unwrap();
        }
        for (at, from, len) in pieces {
            same("piece", &bytes(&a, at..at + len), &file.data[from..from + len]);
            let mut got = vec![0; len - 100];
            a.read_at(at + 50, &mut got).unwrap();
            same("read_at", &got, &file.data[from + 50..from + len - 50]);
        }
        assert_eq!(load(&a, 5 * PAGE), Err(SEGV), "behind the first piece");
    });
}

#[test]
fn the_end_of_the_object() {
    each_mode("end", |rt, mode| {
        for len in [1, PAGE - 1, PAGE, PAGE + 1, 7 * PAGE + 100, EXTENT - PAGE, EXTENT + 1] {
            let file = TempFile::new(len);
            let object = rt.open_file(file.path()).unwrap();
            let a = arena(rt, mode, 2 * EXTENT + 16 * PAGE);
            let mapped = (len.next_multiple_of(PAGE) + 3 * PAGE).min(len.next_multiple_of(EXTENT));
            a.map(0, &object, 0, mapped, Prot::Read, Sharing::Shared).unwrap();
            let whole = len.next_multiple_of(PAGE);
            assert_eq!(load(&a, whole), Err(BUS), "{len} bytes: the first page past the end");
            assert_eq!(load(&a, mapped - 1), Err(BUS), "{len} bytes: the last page mapped");
            same("content", &bytes(&a, 0..len), &file.data);
            assert!(bytes(&a, len..whole).iter().all(|b| *b == 0), "{len} bytes: the rest of the last page is zero");
            assert_eq!(load(&a, whole), Err(BUS), "and again");
            let mut buf = [0; 16];
            let Err(Error::Fault { reason, .. }) = a.read_at(whole, &mut buf) else { panic!("read_at past the end") };
            assert!(reason.intersects(VmFaultReason::SIGBUS));
        }
    });
}

#[test]
fn an_object_of_no_bytes() {
    each_mode("no_bytes", |rt, mode| {
        let file = TempFile::new(0);
        let object = rt.open_file(file.path()).unwrap();
        assert!(object.is_empty());
        let a = arena(rt, mode, EXTENT);
        a.map(0, &object, 0, 2 * PAGE, Prot::Read, Sharing::Shared).unwrap();
        assert_eq!((load(&a, 0), load(&a, PAGE)), (Err(BUS), Err(BUS)));
        assert_eq!(object.read_at(0, &mut [0; 8]).unwrap(), 0);
        let Err(Error::Argument { arg, .. }) = a.map(EXTENT / 2, &object, 0, 0, Prot::Read, Sharing::Shared) else {
            panic!("a mapping of no bytes")
        };
        assert_eq!(arg, "range.end");
    });
}

#[test]
fn the_end_moves() {
    each_mode("end_moves", |rt, mode| {
        let knobs = std::sync::Arc::new(common::Knobs::default());
        let builder = rt.object(10 * PAGE as u64).max_len(EXTENT as u64);
        let object = builder.handler_store(Box::new(common::KnobStore(knobs))).unwrap();
        let a = arena(rt, mode, EXTENT);
        a.map(0, &object, 0, 64 * PAGE, Prot::Read, Sharing::Shared).unwrap();
        assert_eq!(load(&a, 10 * PAGE), Err(BUS));
        object.set_len(20 * PAGE as u64).unwrap();
        assert_eq!(load(&a, 10 * PAGE), Ok(byte_of(0, 10 * PAGE as u64)), "it grew");
        object.set_len(5 * PAGE as u64 + 10).unwrap();
        assert_eq!(load(&a, 10 * PAGE), Err(BUS), "it shrank");
        assert_eq!(load(&a, 5 * PAGE + 9), Ok(byte_of(0, 5 * PAGE as u64 + 9)));
        assert_eq!(load(&a, 5 * PAGE + 10), Ok(0), "the tail is zero");
        assert_eq!(load(&a, 6 * PAGE), Err(BUS));
    });
}

fn check(a: &Arena, data: &[u8], mapped: impl Fn(usize) -> bool) {
    for p in 0..data.len() / PAGE {
        let want = if mapped(p) { Ok(data[p * PAGE + 3]) } else { Err(SEGV) };
        assert_eq!(load(a, p * PAGE + 3), want, "page {p}");
    }
}

#[test]
fn unmap_and_split() {
    let file = TempFile::new(2 * EXTENT);
    each_mode("unmap", |rt, mode| {
        let object = rt.open_file(file.path()).unwrap();
        let a = arena(rt, mode, 2 * EXTENT);
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        check(&a, &file.data, |_| true);
        let hole = |p: usize| (100..110).contains(&p);
        a.unmap(100 * PAGE..110 * PAGE).unwrap();
        check(&a, &file.data, |p| !hole(p));
        a.unmap(0..PAGE).unwrap();
        a.unmap(500 * PAGE..530 * PAGE).unwrap();
        let gone = |p: usize| hole(p) || p == 0 || (500..530).contains(&p);
        check(&a, &file.data, |p| !gone(p));
        a.map(104 * PAGE, &object, 0, PAGE, Prot::Read, Sharing::Shared).unwrap();
        assert_eq!(load(&a, 104 * PAGE + 3), Ok(file.data[3]), "something else in the hole");
        a.unmap(0..2 * EXTENT).unwrap();
        check(&a, &file.data, |_| false);
        a.unmap(0..2 * EXTENT).unwrap();
        map(&a, 0, &object, Prot::Read, Sharing::Shared);
        check(&a, &file.data, |_| true);
    });
}

#[test]
fn protect_up_and_down() {
    each_mode("protect", |rt, mode| {
        let object = rt.anonymous(EXTENT as u64).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        (0..30).for_each(|p| store(&a, p * PAGE, p as u8 + 1).unwrap());
        a.protect(10 * PAGE..20 * PAGE, Prot::Read).unwrap();
        for p in 0..30 {
            let want = if (10..20).contains(&p) { Err(SEGV) } else { Ok(()) };
            assert_eq!(store(&a, p * PAGE + 1, 9), want, "page {p}");
            assert_eq!(load(&a, p * PAGE), Ok(p as u8 + 1), "page {p}");
        }
        a.protect(12 * PAGE..14 * PAGE, Prot::None).unwrap();
        let refused =
            |r: Result<(), Error>| matches!(r, Err(Error::Fault { offset, .. }) if offset == 12 * PAGE as u64);
        assert!(refused(a.fault_in(11 * PAGE..15 * PAGE, Access::Read)), "{mode:?}: resident, and not to be read");
        assert!(refused(a.advise(11 * PAGE..15 * PAGE, Advice::PopulateRead)), "{mode:?}: the same by advice");
        assert_eq!((load(&a, 12 * PAGE), load(&a, 14 * PAGE)), (Err(SEGV), Ok(15)));
        a.protect(0..EXTENT, Prot::ReadWrite).unwrap();
        for p in 0..30 {
            assert_eq!(load(&a, p * PAGE), Ok(p as u8 + 1), "page {p}: nothing was lost");
            assert_eq!(store(&a, p * PAGE + 2, 7), Ok(()), "page {p}");
        }
        // Pages that nobody touched before the protection came.
        a.protect(100 * PAGE..101 * PAGE, Prot::Read).unwrap();
        assert_eq!((store(&a, 100 * PAGE, 1), load(&a, 100 * PAGE)), (Err(SEGV), Ok(0)));
    });
}

#[test]
fn several_arenas_objects_and_vmas() {
    let file = TempFile::new(100 * PAGE);
    each_mode("several", |rt, mode| {
        let object = rt.open_file(file.path()).unwrap();
        let arenas: Vec<_> = (0..4).map(|_| arena(rt, mode, EXTENT)).collect();
        for a in &arenas {
            map(a, 0, &object, Prot::Read, Sharing::Shared);
            same("each arena", &bytes(a, 0..100 * PAGE), &file.data);
        }
        assert_eq!(object.cached_pages(), 100, "one copy of each page");
        assert_eq!(rt.stats()["pgpgin"], 100, "read once");
        // Many vmas over several objects in one granule, one page each, offset by a different amount.
        let anonymous = rt.anonymous(100 * PAGE as u64).unwrap();
        let a = arena(rt, mode, EXTENT);
        for p in 0..100 {
            let (o, prot) = if p % 2 == 0 { (&object, Prot::Read) } else { (&anonymous, Prot::ReadWrite) };
            a.map(p * 2 * PAGE, o, ((p * 7) % 100 * PAGE) as u64, PAGE, prot, Sharing::Shared).unwrap();
        }
        for p in 0..100 {
            let want = if p % 2 == 0 { file.data[(p * 7) % 100 * PAGE] } else { 0 };
            assert_eq!(load(&a, p * 2 * PAGE), Ok(want), "vma {p}");
            assert_eq!(load(&a, (p * 2 + 1) * PAGE), Err(SEGV), "between vmas {p}");
        }
        drop(arenas);
        assert_eq!(load(&a, 0), Ok(file.data[0]), "the object outlives arenas");
    });
}

#[test]
fn touching_what_is_not_mapped() {
    each_mode("not_mapped", |rt, mode| {
        let a = arena(rt, mode, 2 * EXTENT);
        for at in [0, 1, EXTENT, 2 * EXTENT - 1] {
            assert_eq!((load(&a, at), store(&a, at, 1)), (Err(SEGV), Err(SEGV)), "{at:#x}");
        }
        let address = a.as_ptr() as usize;
        drop(a);
        assert_eq!(common::load_at(address), Err(SEGV), "an arena that is gone");
    });
}

#[test]
fn ten_thousand_mappings_of_ten_thousand_objects() {
    for mode in common::MODES {
        let out = child("ten_thousand_mappings_of_ten_thousand_objects", &format!("{mode:?}"), || {
            limit(libc::RLIMIT_NOFILE, 1024);
            let rt = runtime();
            if !rt.delivery().is_available(mode) {
                println!("skipped {mode:?}: {}", rt.delivery());
                return;
            }
            let a = arena(&rt, mode, 10_000 * 4 * PAGE);
            let fill = |i: usize| {
                let knobs = std::sync::Arc::new(common::Knobs::default());
                knobs.seed.store(i as u64 * 3, std::sync::atomic::Ordering::SeqCst);
                rt.object(100 + i as u64 % PAGE as u64).handler_store(Box::new(common::KnobStore(knobs))).unwrap()
            };
            let objects: Vec<_> = (0..10_000).map(fill).collect();
            for (i, o) in objects.iter().enumerate() {
                map(&a, i * 4 * PAGE, o, Prot::Read, Sharing::Shared);
            }
            for i in (0..10_000).rev() {
                assert_eq!(load(&a, i * 4 * PAGE + 99), Ok(byte_of(i as u64 * 3, 99)), "object {i}");
            }
            let nr_fds = std::fs::read_dir("/proc/self/fd").unwrap().count();
            assert!(nr_fds < 32, "{nr_fds} descriptors");
            drop(objects);
            a.unmap(0..a.len()).unwrap();
            println!("mapped");
        });
        let text = ended(out, Ok(0));
        assert!(text.is_empty() || text.contains("mapped") || text.contains("skipped"), "{text}");
    }
}

#[test]
fn two_threads_on_one_page_fill_it_once() {
    each_mode("fill_once", |rt, mode| {
        for in_handler in [true, false] {
            let nr = 200;
            let knobs = std::sync::Arc::new(common::Knobs::default());
            let builder = rt.object((nr * PAGE) as u64).fill_window_pages(1);
            let boxed = Box::new(common::KnobStore(std::sync::Arc::clone(&knobs)));
            let object = if in_handler { builder.handler_store(boxed) } else { builder.store(boxed) }.unwrap();
            let (a, b) = (arena(rt, mode, EXTENT), arena(rt, mode, EXTENT));
            map(&a, 0, &object, Prot::Read, Sharing::Shared);
            map(&b, 0, &object, Prot::Read, Sharing::Shared);
            let together = Barrier::new(3);
            std::thread::scope(|s| {
                for who in [&a, &a, &b] {
                    let together = &together;
                    s.spawn(move || {
                        for p in 0..nr {
                            together.wait();
                            assert_eq!(load(who, p * PAGE + 77), Ok(byte_of(0, (p * PAGE + 77) as u64)));
                        }
                    });
                }
            });
            assert_eq!(knobs.nr_reads(), nr, "one read a page");
        }
    });
}

#[test]
fn reading_and_writing_by_calls() {
    each_mode("calls", |rt, mode| {
        let object = rt.anonymous(20 * PAGE as u64).unwrap();
        let a = arena(rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        a.map(EXTENT / 2, &object, 0, 20 * PAGE, Prot::ReadWrite, Sharing::Private).unwrap();
        let data = content(5, 0..3 * PAGE as u64);
        object.write_at(100, &data).unwrap();
        same("written to the object", &bytes(&a, 100..100 + data.len()), &data);
        a.write_at(10 * PAGE - 50, &data).unwrap();
        let mut got = vec![0; data.len()];
        assert_eq!(object.read_at(10 * PAGE as u64 - 50, &mut got).unwrap(), data.len());
        same("written to the arena", &got, &data);
        a.write_at(EXTENT / 2 + 5 * PAGE, &data).unwrap();
        object.read_at(5 * PAGE as u64, &mut got).unwrap();
        assert!(got != data, "a private write stays private");
        a.read_at(EXTENT / 2 + 5 * PAGE, &mut got).unwrap();
        same("and is read back", &got, &data);
        assert_eq!(object.write_at(20 * PAGE as u64 - 10, &data).unwrap(), 10, "short at the end");
        assert_eq!(object.read_at(20 * PAGE as u64 - 10, &mut got).unwrap(), 10);
    });
}

#[test]
#[expect(unsafe_code, reason = "the buffer is arena memory")]
fn the_buffer_may_lie_in_an_arena() {
    each_mode("buffers", |rt, mode| {
        let (object, _) = knob_object(rt, 12 * PAGE as u64, true);
        let buffer = rt.anonymous(EXTENT as u64).unwrap();
        let a = arena(rt, mode, 2 * EXTENT);
        map(&a, 0, &buffer, Prot::ReadWrite, Sharing::Shared);
        a.map(EXTENT, &object, 0, 12 * PAGE, Prot::Read, Sharing::Shared).unwrap();
        // Pages of the buffer that nobody has touched: the copy faults.
        // SAFETY: mapped writable, and nobody else looks while the slice lives.
        let into = unsafe { std::slice::from_raw_parts_mut(a.as_ptr().wrapping_add(700), 9 * PAGE) };
        assert_eq!(object.read_at(33, into).unwrap(), 9 * PAGE);
        same("into an arena", into, &content(0, 33..33 + 9 * PAGE as u64));
        // SAFETY: mapped readable, never written.
        let from = unsafe { a.as_slice(EXTENT + 5..EXTENT + 5 + 6 * PAGE) };
        assert_eq!(buffer.write_at(100 * PAGE as u64 + 1, from).unwrap(), 6 * PAGE);
        same("out of an arena", &bytes(&a, 100 * PAGE + 1..106 * PAGE + 1), &content(0, 5..5 + 6 * PAGE as u64));
        // The page that is read lies in the buffer itself.
        // SAFETY: as above; the object is read by a call while the slice is alive, which is why bytes go by a chunk.
        let own = unsafe { std::slice::from_raw_parts_mut(a.as_ptr().wrapping_add(300 * PAGE), PAGE) };
        own.fill(3);
        assert_eq!(buffer.read_at(301 * PAGE as u64, own).unwrap(), PAGE);
        assert!(own.iter().all(|b| *b == 0));
    });
}

#[test]
fn errors_name_the_argument_and_change_nothing() {
    each_mode("errors", |rt, mode| {
        let (object, _) = knob_object(rt, 10 * PAGE as u64, true);
        let a = arena(rt, mode, EXTENT);
        let argument = |r: softfault::Result<()>| match r {
            Err(Error::Argument { arg, .. }) => arg,
            other => panic!("not an argument error: {other:?}"),
        };
        let map = |at, from, len| a.map(at, &object, from, len, Prot::Read, Sharing::Shared);
        assert_eq!(argument(map(1, 0, PAGE)), "range.start");
        assert_eq!(argument(map(0, 1, PAGE)), "object_offset");
        assert_eq!(argument(map(0, 0, 0)), "range.end");
        assert_eq!(argument(map(0, 0, EXTENT + 1)), "range.end");
        assert_eq!(argument(map(0, 0, usize::MAX)), "len_bytes");
        assert_eq!(argument(map(EXTENT - PAGE, 0, 2 * PAGE)), "range.end");
        assert_eq!(argument(map(0, EXTENT as u64, PAGE)), "object_offset + len_bytes");
        assert_eq!(argument(map(0, !0xfff, PAGE)), "object_offset + len_bytes");
        assert_eq!(argument(a.unmap(0..1)), "range.end");
        assert_eq!(argument(a.protect(7..PAGE, Prot::Read)), "range.start");
        let shared_store = a.map(0, &object, 0, PAGE, Prot::ReadWrite, Sharing::Shared);
        assert!(matches!(shared_store, Err(Error::Denied { op: "Arena::map", .. })), "{shared_store:?}");
        let bare = a.protect(0..PAGE, Prot::Read);
        assert!(matches!(&bare, Err(Error::NotMapped { range, .. }) if *range == (0..PAGE)), "{bare:?}");
        assert_eq!(load(&a, 0), Err(SEGV), "nothing was mapped by any of these");
        map(PAGE, 0, 2 * PAGE).unwrap();
        let twice = map(2 * PAGE, 0, 4 * PAGE);
        assert!(matches!(&twice, Err(Error::Occupied { range }) if *range == (PAGE..3 * PAGE)), "{twice:?}");
        let denied = a.protect(PAGE..2 * PAGE, Prot::ReadWrite);
        assert!(matches!(denied, Err(Error::Denied { op: "Arena::protect", .. })), "{denied:?}");
        let partly = a.protect(PAGE..5 * PAGE, Prot::None);
        assert!(matches!(partly, Err(Error::NotMapped { .. })), "{partly:?}");
        assert!(matches!(object.write_at(0, b"x"), Err(Error::Denied { .. })));
        assert!(matches!(object.set_len(u64::MAX), Err(Error::Argument { arg: "len_bytes", .. })));
        assert!(matches!(a.write_at(PAGE, b"x"), Err(Error::Denied { .. })));
        assert!(matches!(a.read_at(0, &mut [0; 8]), Err(Error::NotMapped { .. })));
        assert!(matches!(a.read_at(EXTENT - 4, &mut [0; 8]), Err(Error::Argument { .. })));
        assert!(matches!(rt.arena(0).delivery(mode).build(), Err(Error::Argument { arg: "len_bytes", .. })));
        let deadline = rt.object(1).deadline(std::time::Duration::from_millis(5));
        let timed = deadline.handler_store(Box::new(common::KnobStore(std::sync::Arc::default())));
        assert!(matches!(timed, Err(Error::Argument { arg: "deadline (ms)", .. })));
        assert_eq!(load(&a, PAGE), Ok(byte_of(0, 0)), "the mapping is as it was");
        assert_eq!(load(&a, 3 * PAGE), Err(SEGV));
    });
}

#[test]
fn kernel_access_needs_a_monitor() {
    let rt = runtime();
    for mode in [softfault::Delivery::InThread, softfault::Delivery::Segv] {
        let r = rt.arena(EXTENT).delivery(mode).kernel_access(true).build();
        assert!(matches!(&r, Err(Error::Delivery { mode: m, .. }) if *m == mode), "{r:?}");
    }
    match rt.arena(EXTENT).kernel_access(true).build() {
        Ok(a) => assert_eq!(a.delivery(), softfault::Delivery::Monitor),
        Err(Error::Delivery { why, .. }) => assert!(!why.is_empty(), "says why"),
        Err(e) => panic!("{e}"),
    }
}
