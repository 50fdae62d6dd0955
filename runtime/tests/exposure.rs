//! Pages exposed here and there, by protection: each costs the process two of the kernel's mappings, of which it may have
//! `vm.max_map_count`. They are bounded; no touch is a signal, and the program's own mmap goes on working.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;

use common::{EXTENT, PAGE, child, ended, fill_the_table, load, setup, store, until};
use softfault::{Access, Arena, Delivery, Error, Object, Prot, Runtime, Sharing};
use std::io::{Seek, SeekFrom, Write};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicUsize, Ordering};

fn max_map_count() -> usize {
    std::fs::read_to_string("/proc/sys/vm/max_map_count").expect("max_map_count").trim().parse().expect("a number")
}

fn nr_mappings() -> usize {
    std::fs::read("/proc/self/maps").expect("/proc/self/maps").iter().filter(|b| **b == b'\n').count()
}

/// A sparse file in which every `STRIDE`th page says which it is.
const STRIDE: usize = 64;

struct World {
    rt: Runtime,
    object: Object,
    arena: Arena,
    nr: usize,
}

fn world(nr: usize, writable: bool, sharing: Sharing) -> World {
    setup();
    let path = std::env::temp_dir().join(format!("softfault-exposure-{}", std::process::id()));
    let mut file =
        std::fs::File::options().read(true).write(true).create(true).truncate(true).open(&path).expect("file");
    std::fs::remove_file(&path).expect("unlink");
    file.set_len((nr * PAGE) as u64).expect("set_len");
    for p in (0..nr).step_by(STRIDE) {
        file.seek(SeekFrom::Start((p * PAGE) as u64)).expect("seek");
        file.write_all(&[(p / STRIDE) as u8 | 1]).expect("write");
    }
    let rt = Runtime::builder().cache_limit(1 << 30).build().expect("runtime");
    let options = rt.file_options().writable(writable).with(|o| o.fill_window_pages(1).readahead_pages(0));
    let object = options.file(&file).expect("object");
    let arena = rt.arena(nr * PAGE).delivery(Delivery::Segv).build().expect("arena");
    let prot = if writable { Prot::ReadWrite } else { Prot::Read };
    arena.map(0, &object, 0, nr * PAGE, prot, sharing).expect("map");
    World { rt, object, arena, nr }
}

impl World {
    fn want(p: usize) -> u8 {
        if p.is_multiple_of(STRIDE) { (p / STRIDE) as u8 | 1 } else { 0 }
    }

    /// Every second page, in an order that jumps about.
    fn touch(&self, what: &str, steps: usize, mut each: impl FnMut(usize)) {
        let half = self.nr / 2;
        for i in 0..steps {
            let p = (i.wrapping_mul(0x9e37_79b1) % half) * 2;
            assert_eq!(load(&self.arena, p * PAGE), Ok(Self::want(p)), "{what}: page {p}, touch {i}");
            each(i);
        }
    }
}

fn bounded(what: &str) {
    let (nr, max) = (nr_mappings(), max_map_count());
    assert!(nr <= max / 4 * 3, "{what}: {nr} mappings of {max}");
    let more: Vec<_> = (0..64).map(|_| vec![1u8; 1 << 20]).collect();
    assert_eq!(more.len(), 64);
}

#[test]
fn far_more_pages_than_there_may_be_mappings() {
    for sharing in [Sharing::Shared, Sharing::Private] {
        let key = format!("{sharing:?}");
        ended(
            child("far_more_pages_than_there_may_be_mappings", &key, || {
                let w = world(2 * max_map_count(), false, sharing);
                let pin = w.arena.pin(0..PAGE, Access::Read).expect("pin");
                w.touch("touch", max_map_count() / 3 * 2, |i| {
                    if i % 16384 == 0 {
                        bounded("meanwhile");
                    }
                });
                bounded("afterwards");
                let stats = w.rt.stats();
                assert!(stats["process_exposed_vmas_hidden"] > 0, "{stats}");
                assert!(stats["process_exposed_vmas"] <= stats["process_exposed_vmas_max"] + 64, "{stats}");
                // What is pinned was not hidden: a system call finds it.
                let mut pipe = [0; 2];
                // SAFETY: writes two numbers.
                assert_eq!(unsafe { libc::pipe(pipe.as_mut_ptr()) }, 0);
                // SAFETY: the pinned page.
                assert_eq!(unsafe { libc::write(pipe[1], pin.as_ptr().cast(), PAGE) }, PAGE.cast_signed());
            }),
            Ok(0),
        );
    }
}

#[test]
fn stores_among_pages_that_are_exposed_for_loads() {
    let out = child("stores_among_pages_that_are_exposed_for_loads", "write", || {
        let w = world(2 * max_map_count(), true, Sharing::Shared);
        for p in (0..w.nr / 3 * 2).step_by(2) {
            assert_eq!(store(&w.arena, p * PAGE + 9, 7), Ok(()), "page {p}");
        }
        bounded("afterwards");
        w.object.sync_all().expect("sync");
        for p in (0..w.nr / 3 * 2).step_by(2 * 31) {
            assert_eq!(load(&w.arena, p * PAGE + 9), Ok(7), "page {p}");
            assert_eq!(load(&w.arena, p * PAGE), Ok(World::want(p)), "page {p}");
        }
    });
    ended(out, Ok(0));
}

#[test]
fn the_program_fills_the_table_before_and_meanwhile() {
    for key in ["before", "meanwhile"] {
        let out = child("the_program_fills_the_table_before_and_meanwhile", key, || {
            let w = world(max_map_count(), false, Sharing::Shared);
            if key == "meanwhile" {
                w.touch("before", 4096, |_| ());
            }
            let full = fill_the_table();
            w.touch("full", 1024, |_| ());
            drop(full);
            w.touch("empty again", 4096, |_| ());
        });
        ended(out, Ok(0));
    }
}

#[test]
fn many_threads() {
    let out = child("many_threads", "threads", || {
        let w = world(2 * max_map_count(), false, Sharing::Shared);
        let full = fill_the_table();
        std::thread::scope(|s| {
            drop(full);
            for t in 0..4 {
                let w = &w;
                s.spawn(move || w.touch("thread", 12_000 + t, |_| ()));
            }
        });
        bounded("afterwards");
        assert!(w.arena.len() >= EXTENT);
    });
    ended(out, Ok(0));
}

/// Every mapping is the program's but for those of the page that it has pinned, which nobody hides: there is no room to be
/// made. Returns what has the table.
fn take_everything(w: &World) -> common::FullTable {
    let mut full = fill_the_table();
    // What is kept for such a case is given up, and then the program has that, too.
    assert_eq!(load(&w.arena, 4 * EXTENT), Ok(World::want(4 * EXTENT / PAGE)));
    w.arena.zap(4 * EXTENT..4 * EXTENT + PAGE).expect("hidden again");
    full.take_what_is_free();
    full
}

/// What /proc says of a thread: S, it sleeps.
fn state_of(tid: i32) -> char {
    let stat = std::fs::read_to_string(format!("/proc/self/task/{tid}/stat")).expect("a thread");
    stat.rsplit(')').next().and_then(|rest| rest.trim_start().chars().next()).expect("a state")
}

static ALARMS: AtomicUsize = AtomicUsize::new(0);

extern "C" fn on_alarm(_: i32) {
    ALARMS.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn a_touch_without_room_sleeps_and_takes_signals_until_there_is_some() {
    let out = child("a_touch_without_room_sleeps_and_takes_signals_until_there_is_some", "", || {
        let w = world(max_map_count(), false, Sharing::Shared);
        let pin = w.arena.pin(0..PAGE, Access::Read).expect("pin");
        common::install(libc::SIGALRM, on_alarm as *const () as usize, libc::SA_ONSTACK);
        let (tid, begin, done) = (AtomicI32::new(0), AtomicBool::new(false), AtomicBool::new(false));
        std::thread::scope(|s| {
            let w = &w;
            // Before there is no mapping for its stack.
            s.spawn(|| {
                // SAFETY: no argument.
                tid.store(unsafe { libc::gettid() }, Ordering::SeqCst);
                until("everything is taken", || begin.load(Ordering::SeqCst));
                assert_eq!(load(&w.arena, 8 * EXTENT), Ok(World::want(8 * EXTENT / PAGE)));
                done.store(true, Ordering::SeqCst);
            });
            until("it runs", || tid.load(Ordering::SeqCst) != 0);
            let tid = tid.load(Ordering::SeqCst);
            let full = take_everything(w);
            begin.store(true, Ordering::SeqCst);
            let entered = w.rt.stats()["handler_entry"];
            until("it faults", || w.rt.stats()["handler_entry"] > entered);
            // It has been in vain for a while, and does not go round: each look finds a sleeper, but for some.
            let mut asleep = 0;
            for _ in 0..200 {
                asleep += usize::from(state_of(tid) == 'S');
                std::thread::sleep(std::time::Duration::from_micros(500));
            }
            assert!(!done.load(Ordering::SeqCst), "there was room");
            assert!(asleep > 20, "it goes round: asleep at {asleep} of 200 looks");
            for n in 1..=5 {
                // SAFETY: a signal to a thread of this process, which waits for us.
                unsafe { libc::syscall(libc::SYS_tgkill, std::process::id(), tid, libc::SIGALRM) };
                until("the handler ran", || ALARMS.load(Ordering::SeqCst) == n);
            }
            assert!(!done.load(Ordering::SeqCst), "there was room");
            drop(full);
        });
        assert!(done.load(Ordering::SeqCst));
        drop(pin);
    });
    ended(out, Ok(0));
}

#[test]
fn calls_make_room_as_touches_do() {
    for sharing in [Sharing::Shared, Sharing::Private] {
        let out = child("calls_make_room_as_touches_do", &format!("{sharing:?}"), || {
            let w = world(max_map_count(), true, sharing);
            // Mappings that are exposures: what can be had back.
            let expose = |full: &mut common::FullTable| {
                w.touch("exposed", 512, |_| ());
                full.take_what_is_free();
            };
            w.touch("before", 4096, |_| ());
            let mut full = fill_the_table();
            let at = |extent: usize, page: usize| extent * EXTENT + page * PAGE;
            for (i, access) in [Access::Read, Access::Write].into_iter().enumerate() {
                expose(&mut full);
                let pin = w.arena.pin(at(8 + i, 7)..at(8 + i, 9), access).expect("a pin");
                drop(pin);
            }
            expose(&mut full);
            w.arena.protect(at(12, 3)..at(12, 5), Prot::None).expect("protect");
            expose(&mut full);
            w.arena.protect(at(12, 3)..at(12, 5), Prot::ReadWrite).expect("protect");
            expose(&mut full);
            if sharing == Sharing::Shared {
                w.arena.zap(at(13, 3)..at(13, 5)).expect("zap");
                expose(&mut full);
            }
            w.arena.unmap(at(14, 3)..at(14, 5)).expect("unmap");
            expose(&mut full);
            w.arena.map(at(14, 3), &w.object, at(14, 3) as u64, 2 * PAGE, Prot::Read, sharing).expect("map");
            assert_eq!(load(&w.arena, at(14, 4)), Ok(World::want(at(14, 4) / PAGE)));
            drop(full);
            w.touch("afterwards", 512, |_| ());
        });
        ended(out, Ok(0));
    }
}

#[test]
fn calls_that_find_no_room_end_with_an_error() {
    let out = child("calls_that_find_no_room_end_with_an_error", "", || {
        let w = world(max_map_count(), false, Sharing::Shared);
        let pin = w.arena.pin(0..PAGE, Access::Read).expect("pin");
        let full = take_everything(&w);
        let range = 8 * EXTENT + 3 * PAGE..8 * EXTENT + 5 * PAGE;
        let refused = |r: Result<(), Error>| assert!(matches!(r, Err(Error::Exhausted { .. })), "{r:?}");
        refused(w.arena.pin(range.clone(), Access::Read).map(drop));
        refused(w.arena.fault_in(range.clone(), Access::Read));
        drop(full);
        drop(w.arena.pin(range, Access::Read).expect("now"));
        drop(pin);
    });
    ended(out, Ok(0));
}

/// Bytes that this thread has read, by /proc.
fn bytes_read() -> u64 {
    let io = std::fs::read_to_string("/proc/thread-self/io").expect("/proc");
    let line = io.lines().find_map(|l| l.strip_prefix("rchar: ")).expect("rchar");
    line.trim().parse().expect("a number")
}

/// To find what an mprotect(2) of the program's has opened every mapping of the process is looked at: not with every number.
#[test]
fn statistics_do_not_read_the_table_of_mappings_each_time() {
    let out = child("statistics_do_not_read_the_table_of_mappings_each_time", "", || {
        let w = world(max_map_count(), false, Sharing::Shared);
        w.touch("exposed", 8192, |_| ());
        let table = std::fs::read("/proc/self/maps").expect("maps").len() as u64;
        let before = bytes_read();
        for _ in 0..200 {
            assert!(w.rt.stats()["process_exposed_vmas"] > 4096);
        }
        let looks = (bytes_read() - before) / table;
        assert!(looks < 40, "200 readings of the statistics have read the table {looks} times");
    });
    ended(out, Ok(0));
}
