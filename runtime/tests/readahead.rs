//! Readahead and advice over the real kernel: who reads what, and how often a thread waits for it.
//!
//! One test at a time: the fillers are the process's, and nothing is read ahead while they are behind.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;
mod disk;

use common::{EXTENT, Knobs, PAGE, TempFile, arena, each_mode, load, map, runtime, same, serial, store, until};
use disk::{Behaviour, Disk, Event, VolatileStore};
use softfault::{Access, Advice, Arena, Delivery, Error, Object, Prot, Runtime, Sharing};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

const NR: usize = 2048;

fn mapped(rt: &Runtime, mode: Delivery, nr: usize) -> (Arena, Object, Arc<Knobs>) {
    let (object, knobs) = common::knob_object(rt, (nr * PAGE) as u64, true);
    let a = rt.arena(nr * PAGE).delivery(mode).native_extents(false).granule(PAGE).build().unwrap();
    map(&a, 0, &object, Prot::Read, Sharing::Shared);
    (a, object, knobs)
}

fn touch(a: &Arena, page: usize) {
    assert_eq!(load(a, page * PAGE), Ok(common::byte_of(0, (page * PAGE) as u64)), "page {page}");
}

/// Waits until the fillers have done what they were given: a page is cached or absent, never on its way.
fn settle(rt: &Runtime, object: &Object) {
    until("the fillers are done", || rt.stats()["nr_cached_pages"] == object.cached_pages());
}

#[test]
fn a_scan_is_read_by_the_fillers() {
    let _serial = serial();
    each_mode("a_scan_is_read_by_the_fillers", |rt, mode| {
        let (a, object, knobs) = mapped(rt, mode, NR);
        (0..NR).for_each(|p| touch(&a, p));
        let stats = rt.stats();
        let (major, ahead) = (stats["pgmajfault"], stats["readahead_pages"]);
        assert!(ahead > 0 && stats["readahead_hits"] > 0, "nothing was read ahead\n{stats}");
        // How often the scan outruns the fillers is a matter of time; the next test leaves them theirs.
        settle(rt, &object);
        assert_eq!(object.cached_pages(), NR as u64);
        // The store's own count: the runtime's comes a moment after the page.
        assert_eq!(knobs.bytes.load(Ordering::SeqCst), NR * PAGE, "each page is read once");
        let by_fault = NR as u64 - ahead;
        println!(
            "{mode:?}: {major} major faults of {}, {by_fault} of {NR} pages read by them, {} reads",
            stats["pgfault"],
            knobs.nr_reads()
        );
    });
}

#[test]
fn a_scan_that_leaves_the_fillers_time_waits_twice() {
    let _serial = serial();
    each_mode("a_scan_that_leaves_the_fillers_time_waits_twice", |rt, mode| {
        for (what, order) in [("up", (0..NR).collect::<Vec<_>>()), ("down", (0..NR).rev().collect())] {
            let (a, object, _) = mapped(rt, mode, NR);
            let before = rt.stats();
            for p in order {
                touch(&a, p);
                if p % 8 == 0 {
                    settle(rt, &object);
                }
            }
            let after = rt.stats();
            let n = |name: &str| after[name] - before[name];
            assert!(n("pgmajfault") <= 4, "{mode:?} {what}: {} major faults\n{after}", n("pgmajfault"));
            assert!(
                n("readahead_pages") >= (NR * 9 / 10) as u64,
                "{mode:?} {what}: the fillers read the rest\n{after}"
            );
        }
    });
}

#[test]
fn strides_are_read_ahead_and_little_else() {
    let _serial = serial();
    each_mode("strides_are_read_ahead_and_little_else", |rt, mode| {
        let (a, object, _) = mapped(rt, mode, NR);
        let stops = NR / 50;
        for i in 0..stops {
            touch(&a, i * 50);
            settle(rt, &object);
        }
        let stats = rt.stats();
        assert!(stats["pgmajfault"] <= 4, "{} major faults for {stops} stops\n{stats}", stats["pgmajfault"]);
        assert!(object.cached_pages() <= stops as u64 + 3 * 16, "{} pages for {stops} stops", object.cached_pages());
    });
}

#[test]
fn random_touches_settle_on_one_page() {
    let _serial = serial();
    each_mode("random_touches_settle_on_one_page", |rt, mode| {
        let nr = 1 << 16;
        let (a, object, _) = mapped(rt, mode, nr);
        let mut rng = common::Rng(0x2545_f491_4f6c_dd1d);
        (0..250).for_each(|_| touch(&a, rng.below(nr)));
        settle(rt, &object);
        let (cached, touches) = (object.cached_pages(), 500);
        (0..touches).for_each(|_| touch(&a, rng.below(nr)));
        settle(rt, &object);
        let more = object.cached_pages() - cached;
        assert!(more < touches + touches / 4, "{more} pages for {touches} touches");
        assert!(rt.stats()["mmap_miss"] > 100);
    });
}

#[test]
fn off_reads_the_aligned_window_and_nothing_ahead() {
    let _serial = serial();
    common::setup();
    let rt = Runtime::builder().readahead_pages(0).build().unwrap();
    let (a, object, _) = mapped(&rt, rt.delivery().chosen, 64);
    touch(&a, 21);
    assert_eq!((0..64).filter(|p| object.is_cached(p * PAGE as u64)).collect::<Vec<_>>(), (16..32).collect::<Vec<_>>());
    (0..64).for_each(|p| touch(&a, p));
    assert_eq!(rt.stats()["readahead_pages"], 0);
}

#[test]
fn a_scan_by_calls_is_read_ahead() {
    let _serial = serial();
    let rt = runtime();
    let (object, knobs) = common::knob_object(&rt, (NR * PAGE) as u64, false);
    let mut buf = vec![0; 3000];
    let mut at = 0;
    while at < object.len() {
        let n = object.read_at(at, &mut buf).unwrap();
        same("read_at", &buf[..n], &common::content(0, at..at + n as u64));
        at += n as u64;
    }
    let stats = rt.stats();
    assert!(stats["readahead_hits"] > 0 && stats["readahead_pages"] > 0, "{stats}");
    assert_eq!(knobs.bytes.load(Ordering::SeqCst), NR * PAGE, "each page is read once");
}

#[test]
fn readahead_stops_at_the_cache_limit() {
    let _serial = serial();
    common::setup();
    let rt = Runtime::builder().cache_limit(72 * PAGE as u64).build().unwrap();
    let (object, _) = common::knob_object(&rt, 256 * PAGE as u64, false);
    object.advise(0..object.len(), Advice::WillNeed).unwrap();
    settle(&rt, &object);
    // The background reclaimer may have made some room since.
    assert!((64..=72).contains(&object.cached_pages()), "as many as there is room for: {}", object.cached_pages());
    let mut buf = [0; 10];
    assert_eq!(object.read_at(100 * PAGE as u64, &mut buf).unwrap(), 10, "who needs a page gets another's room");
    assert!(object.cached_pages() <= 72);
}

#[test]
fn a_page_that_fails_ahead_fails_nobody_until_it_is_touched() {
    let _serial = serial();
    let rt = runtime();
    let (object, knobs) = common::knob_object(&rt, 64 * PAGE as u64, false);
    knobs.fail(40, 1);
    object.advise(0..object.len(), Advice::WillNeed).unwrap();
    settle(&rt, &object);
    assert!(object.is_cached(39 * PAGE as u64) && !object.is_cached(40 * PAGE as u64));
    assert_eq!(rt.stats()["pgpoison"], 0, "nobody asked for it");
    object.read_at(40 * PAGE as u64, &mut [0; 1]).unwrap_err();
    knobs.recover();
    object.read_at(40 * PAGE as u64, &mut [0; 1]).unwrap();
}

#[test]
fn advice_on_an_arena() {
    let _serial = serial();
    each_mode("advice_on_an_arena", |rt, mode| {
        let (a, object, _) = mapped(rt, mode, NR);
        let bytes = |from: usize, to: usize| from * PAGE..to * PAGE;
        a.advise(bytes(0, 512), Advice::Random).unwrap();
        (0..512).step_by(7).for_each(|p| touch(&a, p));
        assert_eq!(object.cached_pages(), 512usize.div_ceil(7) as u64, "Random: what is touched");
        a.advise(bytes(512, 1024), Advice::Sequential).unwrap();
        touch(&a, 512);
        settle(rt, &object);
        assert!((512..512 + 64).all(|p| object.is_cached(p * PAGE as u64)), "Sequential: 64 pages from the first on");
        a.advise(bytes(1500, 1600), Advice::WillNeed).unwrap();
        until("WillNeed", || (1500..1600).all(|p| object.is_cached(p * PAGE as u64)));
        assert!(!object.is_cached(1600 * PAGE as u64));
        settle(rt, &object);
        a.advise(bytes(0, NR), Advice::Normal).unwrap();
        (0..NR).step_by(13).for_each(|p| touch(&a, p));
    });
}

/// Where faults are counted one by one: nothing is mapped around a touch, or read ahead.
fn counted(rt: &Runtime, mode: Delivery, disk: &Arc<Disk>) -> (Arena, Object) {
    let builder = rt.object(disk.content().len() as u64).writable(true).fill_window_pages(1);
    let object = builder.store(Box::new(VolatileStore(Arc::clone(disk)))).unwrap();
    let a = rt.arena(object.len() as usize).delivery(mode).native_extents(false).fault_around(false);
    let a = a.granule(PAGE).build().unwrap();
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    (a, object)
}

/// Loads from each page and asserts that each raised a fault, or that none did.
fn each_faults(rt: &Runtime, a: &Arena, pages: Range<usize>, want: bool, what: &str) {
    for p in pages {
        let faults = || rt.stats()["pgfault"];
        let before = faults();
        load(a, p * PAGE).unwrap();
        if want {
            // A monitor counts a little after it has woken whom it serves.
            until(what, || faults() == before + 1);
        } else {
            assert_eq!(faults(), before, "{what}: page {p} raised a fault");
        }
    }
}

const HOUR: Duration = Duration::from_secs(3600);

fn quiet() -> Runtime {
    common::setup();
    Runtime::builder().writeback(HOUR, HOUR).build().unwrap()
}

fn pages(from: usize, to: usize) -> Range<usize> {
    from * PAGE..to * PAGE
}

#[test]
fn populate_read_maps() {
    let _serial = serial();
    each_mode("populate_read_maps", |_, mode| {
        let rt = quiet();
        let disk = Disk::new(&common::content(0, 0..EXTENT as u64), Behaviour::default());
        let (a, object) = counted(&rt, mode, &disk);
        a.advise(pages(10, 26), Advice::PopulateRead).unwrap();
        assert_eq!(object.cached_pages(), 16, "{mode:?}: these and no others");
        each_faults(&rt, &a, 10..26, false, "PopulateRead has mapped it");
        each_faults(&rt, &a, 26..28, true, "outside of the range");
        assert_eq!(rt.stats()["nr_dirty"], 0, "{mode:?}: as loads would");
    });
}

#[test]
fn populate_write_maps_and_dirties() {
    let _serial = serial();
    each_mode("populate_write_maps_and_dirties", |_, mode| {
        let rt = quiet();
        let before = common::content(0, 0..EXTENT as u64);
        let disk = Disk::new(&before, Behaviour::default());
        let (a, object) = counted(&rt, mode, &disk);
        a.advise(pages(10, 26), Advice::PopulateWrite).unwrap();
        assert_eq!(object.cached_pages(), 16, "{mode:?}: these and no others");
        each_faults(&rt, &a, 10..26, false, "PopulateWrite has mapped it");
        let faults = rt.stats()["pgfault"];
        for p in 10..26 {
            assert_eq!(store(&a, p * PAGE + 1, 9), Ok(()));
        }
        assert_eq!(rt.stats()["pgfault"], faults, "{mode:?}: a store afterwards raises no fault");
        a.advise(pages(30, 40), Advice::PopulateWrite).unwrap();
        disk.clear_events();
        object.sync(30 * PAGE as u64..40 * PAGE as u64).unwrap();
        let written =
            disk.events().iter().map(|e| if let Event::Write(_, len, true) = e { *len } else { 0 }).sum::<usize>();
        assert_eq!(written, 10 * PAGE, "{mode:?}: they are dirty, though nobody stored to them");
        same("no byte was changed", &disk.content()[30 * PAGE..40 * PAGE], &before[30 * PAGE..40 * PAGE]);
    });
}

#[test]
fn dont_need_unmaps_and_keeps() {
    let _serial = serial();
    each_mode("dont_need_unmaps_and_keeps", |_, mode| {
        let rt = quiet();
        let disk = Disk::new(&common::content(0, 0..EXTENT as u64), Behaviour::default());
        for by_object in [false, true] {
            let (a, object) = counted(&rt, mode, &disk);
            a.advise(pages(10, 30), Advice::PopulateRead).unwrap();
            disk.clear_events();
            // A page that a monitor serves stays pinned for a moment.
            until("DontNeed", || match by_object {
                true => object.advise(10 * PAGE as u64..26 * PAGE as u64, Advice::DontNeed).is_ok(),
                false => a.advise(pages(10, 26), Advice::DontNeed).is_ok(),
            });
            assert_eq!(object.cached_pages(), 20, "{mode:?}: they stay cached");
            each_faults(&rt, &a, 26..30, false, "outside of the range");
            each_faults(&rt, &a, 10..26, true, "DontNeed has unmapped it");
            assert_eq!(disk.events(), [], "{mode:?}: the store was not asked");
        }
    });
}

#[test]
fn page_out_writes_what_is_dirty_and_drops_it() {
    let _serial = serial();
    each_mode("page_out_writes_what_is_dirty_and_drops_it", |_, mode| {
        let rt = quiet();
        let disk = Disk::new(&common::content(0, 0..EXTENT as u64), Behaviour::default());
        for by_object in [false, true] {
            let (a, object) = counted(&rt, mode, &disk);
            a.advise(pages(8, 32), Advice::PopulateRead).unwrap();
            for p in 10..20 {
                assert_eq!(store(&a, p * PAGE + 5, 100 + u8::from(by_object)), Ok(()));
            }
            disk.clear_events();
            until("PageOut", || {
                match by_object {
                    true => object.advise(10 * PAGE as u64..26 * PAGE as u64, Advice::PageOut).unwrap(),
                    false => a.advise(pages(10, 26), Advice::PageOut).unwrap(),
                }
                (10..26).all(|p| !object.is_cached(p * PAGE as u64))
            });
            assert_eq!(object.cached_pages(), 8, "{mode:?}: the others stay");
            let now = disk.content();
            for p in 10..20 {
                assert_eq!(now[p * PAGE + 5], 100 + u8::from(by_object), "{mode:?}: page {p} was written first");
                assert_eq!(load(&a, p * PAGE + 5), Ok(100 + u8::from(by_object)), "{mode:?}: page {p}, read again");
            }
        }
    });
}

#[test]
fn cold_pages_are_the_first_to_go() {
    let _serial = serial();
    each_mode("cold_pages_are_the_first_to_go", |_, mode| {
        for by_object in [false, true] {
            let rt = quiet();
            let disk = Disk::new(&common::content(0, 0..EXTENT as u64), Behaviour::default());
            let (a, object) = counted(&rt, mode, &disk);
            let nr = 512;
            a.advise(pages(0, nr), Advice::PopulateRead).unwrap();
            // Neither the oldest nor the youngest.
            let cold = 200..328;
            match by_object {
                true => object.advise((cold.start * PAGE) as u64..(cold.end * PAGE) as u64, Advice::Cold).unwrap(),
                false => a.advise(pages(cold.start, cold.end), Advice::Cold).unwrap(),
            }
            assert_eq!(object.cached_pages(), nr as u64, "{mode:?}: until room is needed they stay");
            rt.set_cache_limit(((nr - 32) * PAGE) as u64);
            until("room is made", || object.cached_pages() <= nr as u64 - 32);
            let gone: Vec<_> = (0..nr).filter(|p| !object.is_cached((p * PAGE) as u64)).collect();
            assert!(gone.iter().all(|p| cold.contains(p)), "{mode:?}: {gone:?} have gone, cold are {cold:?}");
        }
    });
}

#[test]
fn advice_that_cannot_be_followed() {
    let _serial = serial();
    let rt = runtime();
    let mode = rt.delivery().chosen;
    let file = TempFile::new(EXTENT);
    let object = rt.open_file(file.path()).unwrap();
    let a = arena(&rt, mode, 2 * EXTENT);
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Private);
    let half_mapped = a.advise(0..2 * EXTENT, Advice::WillNeed);
    assert!(matches!(half_mapped, Err(Error::NotMapped { op: "Arena::advise", .. })), "{half_mapped:?}");
    assert!(matches!(a.advise(1..PAGE, Advice::Random), Err(Error::Argument { .. })));
    assert_eq!(a.advise(0..PAGE, Advice::DontNeed).map_err(|e| e.to_string()), Ok(()), "it drops private copies");
    a.advise(0..PAGE, Advice::PopulateWrite).unwrap();
    #[expect(clippy::reversed_empty_ranges, reason = "the mistake that is refused")]
    let backwards = object.advise(9..3, Advice::WillNeed);
    assert!(matches!(backwards, Err(Error::Argument { arg: "range.end", .. })), "{backwards:?}");
    assert!(matches!(object.advise(0..9, Advice::PopulateWrite), Err(Error::Denied { .. })));
    let pin = a.pin(0..PAGE, Access::Read).unwrap();
    a.advise(0..EXTENT, Advice::Sequential).unwrap();
    drop(pin);
    let anonymous = rt.anonymous(EXTENT as u64).unwrap();
    anonymous.advise(0..EXTENT as u64, Advice::WillNeed).unwrap();
    assert_eq!(anonymous.cached_pages(), 0, "nothing is read ahead where there is nothing to read");
}

#[test]
fn advice_on_an_object() {
    let _serial = serial();
    let rt = runtime();
    let (object, knobs) = common::knob_object(&rt, (NR * PAGE) as u64, false);
    object.advise(0..0, Advice::Random).unwrap();
    for p in (0..500u64).step_by(5) {
        object.read_at(p * PAGE as u64, &mut [0; 1]).unwrap();
    }
    assert_eq!(object.cached_pages(), 100, "Random: what is asked for");
    object.advise(0..0, Advice::Normal).unwrap();
    let reads = knobs.reads.load(Ordering::SeqCst);
    object.advise(600 * PAGE as u64..1112 * PAGE as u64, Advice::WillNeed).unwrap();
    settle(&rt, &object);
    assert_eq!(object.cached_pages(), 100 + 512);
    assert!(knobs.nr_reads() - reads <= 9, "in reads of 64 pages");
    object.advise(600 * PAGE as u64..1112 * PAGE as u64, Advice::PageOut).unwrap();
    assert_eq!(object.cached_pages(), 100);
    object.advise(1200 * PAGE as u64..1300 * PAGE as u64, Advice::PopulateRead).unwrap();
    assert!((1200..1300).all(|p| object.is_cached(p * PAGE as u64)));
}
