//! Write-back and `sync`: what is written, when, in which runs, and what a program is told when it cannot be.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "a system call into pinned arena memory")]

mod common;
mod disk;

use common::{EXTENT, PAGE, Rng, TempFile, arena, bytes, child, each_mode, load, map, same, setup, store, until};
use disk::{Behaviour, Disk, Event, VolatileStore};
use softfault::{Access, Arena, Delivery, Error, Object, Prot, Runtime, Sharing};
use std::ops::Range;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const NR: usize = 256;
const HOUR: Duration = Duration::from_secs(3600);

/// Nothing is written but what is asked for.
fn quiet() -> Runtime {
    setup();
    Runtime::builder().writeback(HOUR, HOUR).fill_window_pages(1).build().expect("runtime")
}

struct World {
    disk: Arc<Disk>,
    object: Object,
    a: Arena,
    _rt: Runtime,
}

fn world(mode: Delivery, behaviour: Behaviour) -> World {
    let rt = quiet();
    let disk = Disk::new(&vec![7; NR * PAGE], behaviour);
    let store = Box::new(VolatileStore(Arc::clone(&disk)));
    let object = rt.object((NR * PAGE) as u64).writable(true).store(store).expect("object");
    let a = arena(&rt, mode, EXTENT);
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    World { disk, object, a, _rt: rt }
}

/// The pages that were written since the events were cleared, in order.
fn written(disk: &Disk) -> Vec<Range<u64>> {
    let pages = |e: &Event| match e {
        Event::Write(pos, len, true) => Some(pos / PAGE as u64..(pos + *len as u64).div_ceil(PAGE as u64)),
        _ => None,
    };
    disk.events().iter().filter_map(pages).collect()
}

fn page(p: usize) -> Range<u64> {
    (p * PAGE) as u64..((p + 1) * PAGE) as u64
}

#[test]
fn every_kind_of_write_is_found_and_nothing_else() {
    each_mode("kinds", |_, mode| {
        let w = world(mode, Behaviour::default());
        let b = arena(&w._rt, mode, EXTENT);
        map(&b, 0, &w.object, Prot::ReadWrite, Sharing::Shared);
        let file = TempFile::new(PAGE);
        let source = std::fs::File::open(file.path()).expect("open");
        let mut model = vec![7; NR * PAGE];
        for round in 0..3u8 {
            // Mapped for loads before: the stores are noted by the kernel alone, where it can.
            let _ = (bytes(&w.a, 0..NR * PAGE), bytes(&b, 0..NR * PAGE));
            w.object.sync_all().expect("sync_all");
            w.disk.clear_events();
            let mut put = |p: usize| {
                model[p * PAGE + 5] = round + 1;
                p * PAGE + 5
            };
            assert_eq!(store(&w.a, put(3), round + 1), Ok(()));
            assert_eq!(store(&b, put(50), round + 1), Ok(()));
            w.object.write_at(put(99) as u64, &[round + 1]).expect("write_at");
            w.a.write_at(put(120), &[round + 1]).expect("Arena::write_at");
            let pin = w.a.pin(200 * PAGE..201 * PAGE, Access::Write).expect("pin");
            // SAFETY: a pinned page, which nobody else touches.
            let n = unsafe { libc::pread(source.as_raw_fd(), pin.as_ptr().cast(), PAGE, 0) };
            assert_eq!(n, PAGE.cast_signed(), "read(2) into pinned memory");
            model[200 * PAGE..201 * PAGE].copy_from_slice(&file.data);
            w.object.sync_all().expect("sync_all");
            // A pinned page may be written by a device at any time: it is, as it is now, and stays dirty.
            drop(pin);
            same("durable", &w.disk.durable(), &model);
            let pages: Vec<_> = written(&w.disk).into_iter().flatten().collect();
            let want = if mode == Delivery::Segv { vec![] } else { vec![3, 50, 99, 120, 200] };
            // By protection a granule is exposed as a whole, and counts as written as a whole.
            assert!(mode == Delivery::Segv || pages == want, "{mode:?}: {pages:?} were written");
            assert!([3, 50, 99, 120, 200].iter().all(|p| pages.contains(p)), "{mode:?}: {pages:?}");
        }
        w.object.sync_all().expect("sync_all");
        w.disk.clear_events();
        w.object.sync_all().expect("sync_all");
        assert_eq!(written(&w.disk), [], "{mode:?}: clean pages were written again");
    });
}

#[test]
fn runs_are_long_and_ascending() {
    each_mode("runs", |_, mode| {
        let w = world(mode, Behaviour::default());
        let mut order: Vec<usize> = (0..NR).collect();
        let mut rng = Rng(3);
        (0..NR).for_each(|i| order.swap(i, rng.below(NR)));
        for p in order {
            assert_eq!(store(&w.a, p * PAGE, 1), Ok(()));
        }
        w.disk.clear_events();
        w.object.sync_all().expect("sync_all");
        let runs = written(&w.disk);
        assert!(runs.len() <= 2, "{mode:?}: {runs:?}");
        assert!(runs.windows(2).all(|r| r[0].end <= r[1].start), "{mode:?}: {runs:?}");
        assert_eq!(runs.iter().map(|r| r.end - r.start).sum::<u64>(), NR as u64);
        assert_eq!(w.disk.events().last(), Some(&Event::Flush(true)), "the flush comes last");
    });
}

#[test]
fn a_range_is_synced_alone() {
    each_mode("range", |_, mode| {
        let w = world(mode, Behaviour::default());
        for p in [10, 20, 30] {
            w.object.write_at((p * PAGE) as u64, &[1]).expect("write_at");
        }
        w.disk.clear_events();
        w.object.sync(page(20)).expect("sync");
        let alone = std::iter::once(20..21);
        assert!(written(&w.disk).into_iter().eq(alone), "{:?}", written(&w.disk));
        w.object.barrier().expect("barrier");
        assert_eq!(written(&w.disk), [20..21, 10..11, 30..31]);
    });
}

#[test]
fn a_flush_that_fails_fails_every_sync_until_one_succeeds() {
    each_mode("flush_fails", |_, mode| {
        let w = world(mode, Behaviour::default());
        // Page 5 stays in the cache, page 9 has left it when the flush fails.
        for p in [5, 9] {
            w.object.write_at((p * PAGE) as u64, &[1; PAGE]).expect("write_at");
        }
        w.disk.fail_flush(0);
        assert!(matches!(w.object.sync(page(5)), Err(Error::Flush { .. })), "{mode:?}");
        w.disk.clear_events();
        w.object.sync(page(5)).expect("what is cached is written again");
        assert!(written(&w.disk).contains(&(5..6)), "{mode:?}: dirty again");
        assert!(w.disk.durable()[5 * PAGE..6 * PAGE] == [1; PAGE]);
        w.object.sync_all().expect("sync_all");

        w.object.write_at((9 * PAGE) as u64, &[2; PAGE]).expect("write_at");
        w.disk.fail_flush(0);
        // Written back, evicted, and only then flushed: by a sync of another page.
        let gone = written_back_and_gone(&w, 9);
        w.object.write_at((11 * PAGE) as u64, &[2; PAGE]).expect("write_at");
        let r = w.object.sync(page(11));
        assert!(matches!(r, Err(Error::Flush { .. })), "{mode:?}: {r:?}");
        w.object.sync(page(11)).expect("page 11 is there");
        assert!(gone, "{mode:?}: pressure");
        {
            for _ in 0..2 {
                let r = w.object.sync(page(9));
                let named = matches!(&r, Err(Error::Lost { ranges, .. }) if *ranges == [page(9)]);
                assert!(named, "{mode:?}: {r:?}");
            }
            assert_eq!(w.object.lost(), [page(9)]);
            w.object.write_at((9 * PAGE) as u64, &[3; PAGE]).expect("write_at");
            w.object.sync(page(9)).expect("written again");
            assert_eq!(w.object.lost(), []);
        }
        assert!(w.disk.durable()[11 * PAGE..12 * PAGE] == [2; PAGE]);
    });
}

/// Has reclaim, by a small limit, write one page back and drop it.
fn written_back_and_gone(w: &World, p: usize) -> bool {
    w._rt.set_cache_limit((64 * PAGE) as u64);
    for round in 0..20 {
        for q in 64..NR {
            let _ = load(&w.a, q * PAGE + round);
        }
        if !w.object.is_cached((p * PAGE) as u64) {
            break;
        }
    }
    w._rt.set_cache_limit(u64::MAX >> 1);
    !w.object.is_cached((p * PAGE) as u64)
}

#[test]
fn a_store_that_does_not_take_a_page_is_told_of_and_asked_again() {
    each_mode("write_fails", |_, mode| {
        let w = world(mode, Behaviour { seed: 5, write_error_in: 2, ..Behaviour::default() });
        for p in 0..40 {
            w.object.write_at((p * 3 * PAGE) as u64, &[p as u8; PAGE]).expect("write_at");
        }
        let mut failures = 0;
        while let Err(e) = w.object.sync_all() {
            assert!(matches!(&e, Error::Writeback { range, .. } if range.start.is_multiple_of(3 * PAGE as u64)), "{e}");
            failures += 1;
            assert!(failures < 1000);
        }
        assert!(failures > 0);
        (0..40).for_each(|p| assert!(w.disk.durable()[p * 3 * PAGE..(p * 3 + 1) * PAGE] == [p as u8; PAGE]));
    });
}

#[test]
fn held_pages_wait() {
    each_mode("held", |_, mode| {
        let w = world(mode, Behaviour::default());
        let held = w.object.hold_dirty(page(4)).expect("hold");
        assert!(matches!(w.object.hold_dirty(page(4)), Err(Error::Held { .. })), "held twice");
        assert_eq!(held.range(), page(4));
        for p in [3, 4, 5] {
            assert_eq!(store(&w.a, p * PAGE, 9), Ok(()));
        }
        w.disk.clear_events();
        w.object.barrier().expect("a barrier passes over what is held");
        let r = w.object.sync(page(4));
        assert!(matches!(&r, Err(Error::Held { range, .. }) if *range == page(4)), "{mode:?}: {r:?}");
        assert!(written_back_and_gone(&w, 3), "{mode:?}: pressure");
        assert!(w.object.is_cached((4 * PAGE) as u64), "{mode:?}: a held page left the cache");
        assert!(!written(&w.disk).iter().any(|r| r.contains(&4)), "{mode:?}: written though held");
        drop(held);
        w.object.sync(page(4)).expect("sync");
        assert_eq!(w.disk.durable()[4 * PAGE], 9);
    });
}

#[test]
fn holes_ends_and_invalidation() {
    each_mode("holes", |_, mode| {
        let w = world(mode, Behaviour::default());
        (0..NR).for_each(|p| assert_eq!(store(&w.a, p * PAGE + 1, 1), Ok(())));
        w.object.punch_hole(100..(10 * PAGE + 50) as u64).expect("punch_hole");
        let got = bytes(&w.a, 0..11 * PAGE);
        assert!(got[..100].iter().any(|b| *b != 0) && got[100..10 * PAGE + 50].iter().all(|b| *b == 0), "{mode:?}");
        assert_eq!(got[10 * PAGE + 50], 7, "{mode:?}");
        w.object.set_len((NR / 2 * PAGE + 9) as u64).expect("set_len");
        w.object.set_len((NR * PAGE) as u64).expect("set_len");
        let end = NR / 2 * PAGE + 9;
        assert!(bytes(&w.a, end..NR * PAGE).iter().all(|b| *b == 0), "{mode:?}: behind the old end");
        assert_eq!(load(&w.a, end - 1), Ok(7));
        // What was not written back is kept; what was, is read anew.
        let all = w.object.invalidate(0..(NR * PAGE) as u64).expect("invalidate");
        assert!(all.kept > 0, "{mode:?}: {all:?}");
        assert_eq!(load(&w.a, 20 * PAGE + 1), Ok(1), "{mode:?}: a store was dropped");
        w.object.sync_all().expect("sync_all");
        until("nothing is kept", || w.object.invalidate(0..(NR * PAGE) as u64).expect("invalidate").kept == 0);
        assert_eq!(w.object.cached_pages(), 0);
        same("read anew", &bytes(&w.a, 0..NR * PAGE), &w.disk.durable());
    });
}

/// A write that the store has begun and not put in its place; ends however the test does.
struct Stalled<'a>(&'a Disk);

impl<'a> Stalled<'a> {
    fn next_write(disk: &'a Disk) -> Self {
        disk.stall_next_write();
        Self(disk)
    }
    fn wait(&self) {
        until("a write stalls", || self.0.has_stalled());
    }
}

impl Drop for Stalled<'_> {
    fn drop(&mut self) {
        self.0.let_go();
    }
}

/// ```text
/// sync                                     another
/// the store copies a pinned page
///                                          a store to it, sync: the newer bytes are written and flushed
/// and puts its copy there
/// ```
#[test]
fn a_pinned_page_is_written_by_one_sync_at_a_time() {
    each_mode("pinned", |_, mode| {
        let w = world(mode, Behaviour::default());
        let pin = w.a.pin(0..PAGE, Access::Write).expect("pin");
        assert_eq!(store(&w.a, 9, 1), Ok(()));
        std::thread::scope(|s| {
            let stalled = Stalled::next_write(&w.disk);
            let first = s.spawn(|| w.object.sync(page(0)));
            stalled.wait();
            assert_eq!(store(&w.a, 9, 2), Ok(()));
            let second = s.spawn(|| w.object.sync(page(0)));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!second.is_finished(), "{mode:?}: synced beside an older write of the page");
            drop(stalled);
            assert!(matches!((first.join(), second.join()), (Ok(Ok(())), Ok(Ok(())))), "{mode:?}");
            assert_eq!(w.disk.durable()[9], 2, "{mode:?}: synced, and as it was before");
        });
        drop(pin);
    });
}

/// ```text
/// sync                                     set_len
/// measures a pinned page by the old end
///                                          zeroes the page's tail, cuts the store
/// the store is longer again, and has the old bytes
/// ```
#[test]
fn a_pinned_page_that_is_being_written_is_not_cut() {
    each_mode("cut", |_, mode| {
        let w = world(mode, Behaviour::default());
        let (page_at, end) = (20 * PAGE, 20 * PAGE + 100);
        let pin = w.a.pin(page_at..page_at + PAGE, Access::Write).expect("pin");
        assert_eq!(store(&w.a, page_at + 50, 1), Ok(()));
        assert_eq!(store(&w.a, page_at + 500, 2), Ok(()));
        std::thread::scope(|s| {
            let stalled = Stalled::next_write(&w.disk);
            let syncer = s.spawn(|| w.object.sync(page(20)));
            stalled.wait();
            let cutter = s.spawn(|| w.object.set_len(end as u64));
            std::thread::sleep(Duration::from_millis(100));
            assert!(!cutter.is_finished(), "{mode:?}: cut beside a write measured by the old end");
            drop(stalled);
            assert!(matches!((syncer.join(), cutter.join()), (Ok(Ok(())), Ok(Ok(())))), "{mode:?}");
        });
        drop(pin);
        w.object.sync_all().expect("sync_all");
        assert_eq!(w.disk.durable().len(), end, "{mode:?}: the store ends where the object does");
        w.object.set_len((NR * PAGE) as u64).expect("set_len");
        let _ = w.object.evict(0..(NR * PAGE) as u64).expect("evict");
        assert_eq!((load(&w.a, page_at + 50), load(&w.a, page_at + 500)), (Ok(1), Ok(0)), "{mode:?}: cut, and back");
    });
}

/// The same where the older bytes are those of write-back, and signals wake who waits for it again and again.
#[test]
fn a_sync_waits_for_older_bytes_through_any_number_of_signals() {
    each_mode("signals", |_, mode| {
        let w = world(mode, Behaviour::default());
        assert_eq!(store(&w.a, 9, 1), Ok(()));
        static SIGNALS: AtomicU64 = AtomicU64::new(0);
        extern "C" fn count(_: i32) {
            SIGNALS.fetch_add(1, Ordering::SeqCst);
        }
        SIGNALS.store(0, Ordering::SeqCst);
        // SAFETY: plain data, for which zeros are values.
        let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
        action.sa_sigaction = count as *const () as usize;
        // No SA_RESTART: each of them ends a sleep.
        // SAFETY: a handler of one atomic instruction.
        assert_eq!(unsafe { libc::sigaction(libc::SIGUSR2, &raw const action, std::ptr::null_mut()) }, 0);
        let thread = AtomicU64::new(0);
        std::thread::scope(|s| {
            let stalled = Stalled::next_write(&w.disk);
            let first = s.spawn(|| w.object.sync(page(0)));
            stalled.wait();
            assert_eq!(store(&w.a, 9, 2), Ok(()));
            let second = s.spawn(|| {
                // SAFETY: always sound.
                thread.store(unsafe { libc::pthread_self() }, Ordering::SeqCst);
                w.object.sync(page(0))
            });
            until("it runs", || thread.load(Ordering::SeqCst) != 0);
            // More than a sync has patience.
            while !second.is_finished() && SIGNALS.load(Ordering::SeqCst) < 3_000 {
                // SAFETY: the thread is joined below.
                unsafe { libc::pthread_kill(thread.load(Ordering::SeqCst), libc::SIGUSR2) };
                std::thread::sleep(Duration::from_micros(50));
            }
            assert!(!second.is_finished(), "{mode:?}: synced beside an older write of the page");
            drop(stalled);
            assert!(matches!((first.join(), second.join()), (Ok(Ok(())), Ok(Ok(())))), "{mode:?}");
            assert_eq!(w.disk.durable()[9], 2, "{mode:?}: synced, and as it was before");
        });
    });
}

#[test]
fn old_dirty_pages_are_written_though_nobody_asks() {
    each_mode("flusher", |_, mode| {
        setup();
        let soon = Duration::from_millis(10);
        let rt = Runtime::builder().writeback(soon, soon).build().expect("runtime");
        let file = TempFile::new(8 * PAGE);
        let object = rt.open_file_rw(file.path()).expect("open");
        let a = arena(&rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        assert_eq!(load(&a, 3 * PAGE), Ok(file.data[3 * PAGE]));
        assert_eq!(store(&a, 3 * PAGE, 0xab), Ok(()));
        until("written", || std::fs::read(file.path()).expect("read")[3 * PAGE] == 0xab);
        assert_eq!(store(&a, 5 * PAGE, 0xcd), Ok(()));
        drop((a, object));
        assert_eq!(std::fs::read(file.path()).expect("read")[5 * PAGE], 0xcd, "{mode:?}: written by drop");
    });
}

// ---- kill -9 -----------------------------------------------------------------------------------------------------------

/// A number in the middle of each page of the file.
const WORD: usize = 1024;

#[test]
fn a_killed_process_loses_nothing_that_it_synced() {
    for mode in common::MODES {
        for kill in 0..4u64 {
            // The child has its parent's files by their names.
            let key = format!("{mode:?}-{kill}");
            let base = common::path_of(&format!("kill-{key}"));
            let (data, log) = (base.with_extension("data"), base.with_extension("log"));
            if std::env::var_os("SOFTFAULT_TEST_CHILD").is_none() {
                std::fs::write(&data, vec![0; NR * PAGE]).expect("write");
                std::fs::write(&log, vec![0; NR * 8]).expect("write");
            }
            let out = child("a_killed_process_loses_nothing_that_it_synced", &key, || {
                write_until_killed(mode, kill, &data, &log)
            });
            let Some(out) = out else { continue };
            if common::said(&out).contains("skipped") {
                continue;
            }
            assert_eq!(out.status.signal(), Some(libc::SIGKILL), "{}", common::said(&out));
            let (data_now, log_now) = (std::fs::read(&data).expect("read"), std::fs::read(&log).expect("read"));
            let word = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("eight"));
            let mut synced = 0;
            for p in 0..NR {
                let (got, safe) = (word(&data_now, p * PAGE + WORD), word(&log_now, p * 8));
                assert!(got >= safe, "{key}: page {p} is {got}, though {safe} was synced");
                synced += u64::from(safe > 0);
            }
            assert!(synced > 0, "{key}: nothing was synced");
            let _ = (std::fs::remove_file(&data), std::fs::remove_file(&log));
        }
    }
}

/// The parent's kill comes at any moment: in the middle of a store, of a write, of a flush, of the note of what was synced.
#[test]
fn a_process_killed_at_any_moment_loses_nothing_that_it_said_was_synced() {
    let test = "a_process_killed_at_any_moment_loses_nothing_that_it_said_was_synced";
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).map_or(1, |d| d.as_nanos() as u64);
    let seed = std::env::var("SOFTFAULT_KILL_SEED").ok().and_then(|v| v.parse().ok()).unwrap_or(now) | 1;
    println!("SOFTFAULT_KILL_SEED={seed}");
    let mut rng = Rng(seed);
    for mode in common::MODES {
        let mut newer = None;
        for kills in 0..20 {
            let key = format!("{mode:?}-any-{kills}");
            let base = common::path_of(&key);
            let (data, log) = (base.with_extension("data"), base.with_extension("log"));
            if std::env::var_os("SOFTFAULT_TEST_CHILD").is_none() {
                std::fs::write(&data, vec![0; NR * PAGE]).expect("write");
                std::fs::write(&log, vec![0; NR * 8]).expect("write");
            }
            let nap = Duration::from_micros(rng.below(15_000) as u64);
            let kill = |child: &mut std::process::Child| {
                let began = std::time::Instant::now();
                let is_synced = || std::fs::read(&log).expect("read").iter().any(|b| *b != 0);
                while !is_synced() && child.try_wait().expect("wait").is_none() {
                    assert!(began.elapsed() < Duration::from_secs(30), "{key}: nothing is ever synced");
                    std::thread::sleep(Duration::from_millis(1));
                }
                std::thread::sleep(nap);
                let _ = child.kill();
            };
            let body = || write_and_note(mode, kills, &data, &log);
            let Some(out) = common::child_beside(test, &key, kill, body) else { continue };
            if common::said(&out).contains("skipped") {
                break;
            }
            assert_eq!(out.status.signal(), Some(libc::SIGKILL), "{}", common::said(&out));
            let (data_now, log_now) = (std::fs::read(&data).expect("read"), std::fs::read(&log).expect("read"));
            let word = |b: &[u8], at: usize| u64::from_le_bytes(b[at..at + 8].try_into().expect("eight"));
            for p in 0..NR {
                let (got, safe) = (word(&data_now, p * PAGE + WORD), word(&log_now, p * 8));
                assert!(got >= safe, "{key}, seed {seed}: page {p} is {got}, though {safe} was synced");
                *newer.get_or_insert(0) += u64::from(got > safe);
            }
            let _ = (std::fs::remove_file(&data), std::fs::remove_file(&log));
        }
        assert!(newer != Some(0), "{mode:?}: no page was ever newer than what was synced: nothing is shown");
    }
}

/// Stores to pages at random for ever, and has `sync` run beside it with what was stored: one number a page.
fn store_beside(
    mode: Delivery,
    seed: u64,
    data: &std::path::Path,
    writeback: Duration,
    sync: impl FnOnce(&Object, &[AtomicU64], Rng),
) {
    setup();
    let limit = (64 * PAGE) as u64;
    let rt = Runtime::builder().cache_limit(limit).writeback(writeback, writeback).build().expect("runtime");
    if !rt.delivery().is_available(mode) {
        println!("skipped: {}", rt.delivery());
        return;
    }
    let object = rt.open_file_rw(data).expect("open");
    let a = arena(&rt, mode, EXTENT);
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    let done: Vec<AtomicU64> = (0..NR).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|s| {
        s.spawn(|| {
            let mut rng = Rng(seed + 1);
            for value in 1u64.. {
                let p = rng.below(NR);
                let at = a.as_ptr().wrapping_add(p * PAGE + WORD).cast::<u64>();
                // SAFETY: inside the arena and the object; aligned.
                unsafe { at.write_volatile(value) };
                done[p].store(value, Ordering::SeqCst);
            }
        });
        sync(&object, &done, Rng(seed + 100));
    });
}

fn values(done: &[AtomicU64]) -> Vec<u64> {
    done.iter().map(|d| d.load(Ordering::SeqCst)).collect()
}

/// Stores, syncs, and notes what was synced, until it is killed.
fn write_and_note(mode: Delivery, seed: u64, data: &std::path::Path, log: &std::path::Path) {
    let log = std::fs::File::options().write(true).open(log).expect("log");
    store_beside(mode, seed, data, Duration::from_millis(5), |object, done, mut rng| {
        loop {
            let first = if rng.below(3) == 0 { 0 } else { rng.below(NR) };
            let pages = first..if first == 0 { NR } else { first + 1 + rng.below(NR - first) };
            let before = values(&done[pages.clone()]);
            object.sync((pages.start * PAGE) as u64..(pages.end * PAGE) as u64).expect("sync");
            for (p, value) in pages.zip(before) {
                log.write_all_at(&value.to_le_bytes(), p as u64 * 8).expect("log");
            }
        }
    });
}

/// Stores, syncs, and notes in a file of its own what was synced, until it kills itself in the middle.
fn write_until_killed(mode: Delivery, seed: u64, data: &std::path::Path, log: &std::path::Path) {
    let log = std::fs::File::options().write(true).open(log).expect("log");
    store_beside(mode, seed, data, Duration::from_millis(1), |object, done, mut rng| {
        for round in 0.. {
            let before = values(done);
            object.sync_all().expect("sync_all");
            // The writer may not have run yet.
            let some = before.iter().any(|v| *v > 0);
            for (p, value) in before.into_iter().enumerate() {
                log.write_all_at(&value.to_le_bytes(), p as u64 * 8).expect("log");
            }
            if some && round > 2 && rng.below(3) == 0 {
                // SAFETY: the end of this process.
                unsafe { libc::raise(libc::SIGKILL) };
            }
        }
    });
}
