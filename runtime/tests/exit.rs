//! The end of the process: what was stored and not synced is in the file after exit(3), as that of the kernel's own shared
//! mappings is; whatever the threads of the program are doing, and whatever they hold.
#![allow(unsafe_code, reason = "touches arenas, and ends processes from signal handlers and forked children")]

mod common;

use common::{EXTENT, MODES, PAGE, child, ended, fork, install, map, store};
use softfault::{Arena, Delivery, Object, PageMut, PageRef, Prot, Runtime, RuntimeBuilder, Sharing, Store, StoreError};
#[cfg(debug_assertions)]
use softfault_mm::trace::{self, Point};
use std::path::Path;
use std::process::Output;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

const HOUR: Duration = Duration::from_secs(3600);
const NR: usize = 64;

/// A runtime that writes nothing unless it is asked.
fn lazy() -> RuntimeBuilder {
    common::setup();
    Runtime::builder().writeback(HOUR, HOUR)
}

/// A mapped file.
struct Mapped {
    rt: Runtime,
    object: Object,
    arena: Arena,
}

fn mapped(builder: RuntimeBuilder, path: &Path, mode: Delivery) -> Mapped {
    let rt = builder.build().expect("a runtime");
    let object = rt.open_file_rw(path).expect("the file");
    let arena = rt.arena(EXTENT).delivery(mode).build().expect("an arena");
    map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
    Mapped { rt, object, arena }
}

/// What page `p` is given.
fn byte_of(p: usize) -> u8 {
    1 + u8::try_from(p).expect("few pages")
}

/// Stores to every page.
fn fill(m: &Mapped) {
    for p in 0..NR {
        assert_eq!(store(&m.arena, p * PAGE, byte_of(p)), Ok(()));
    }
}

/// How many pages of the file have what [`fill`] stored.
fn written(bytes: &[u8]) -> usize {
    bytes.chunks(PAGE).enumerate().filter(|(p, page)| page[0] == byte_of(*p)).count()
}

/// Runs `body` over a file of zeros in a child, which ends by exit(3); returns what is in the file then.
fn after_exit(test: &str, key: &str, body: impl FnOnce(&Path)) -> Option<(Output, Vec<u8>)> {
    let path = common::path_of(&format!("{test}-{key}"));
    if std::env::var_os("SOFTFAULT_TEST_CHILD").is_none() {
        std::fs::write(&path, vec![0u8; NR * PAGE]).expect("a file");
    }
    let out = child(test, key, || body(&path))?;
    let bytes = std::fs::read(&path).expect("the file");
    std::fs::remove_file(&path).expect("removed");
    Some((out, bytes))
}

/// The modes that can be had here.
fn modes() -> Vec<Delivery> {
    let rt = common::runtime();
    MODES.into_iter().filter(|m| rt.delivery().is_available(*m)).collect()
}

/// exit(3), with everything alive.
fn exit_now(code: i32) -> ! {
    // SAFETY: ends the process; nothing of ours runs afterwards but the handlers that this is about.
    unsafe { libc::exit(code) }
}

#[test]
fn stores_are_in_the_file_after_exit() {
    for mode in modes() {
        let test = "stores_are_in_the_file_after_exit";
        let run = after_exit(test, &format!("{mode:?}"), |path| {
            let m = mapped(lazy(), path, mode);
            fill(&m);
            // One that a device may be storing to: it cannot be taken, and is written as it is.
            let pin = m.arena.pin(0..PAGE, softfault::Access::Write).expect("a pin");
            std::mem::forget((pin, m.object.clone()));
            exit_now(0);
        });
        let Some((out, bytes)) = run else { continue };
        ended(Some(out), Ok(0));
        assert_eq!(written(&bytes), NR, "{mode:?}: pages of the file that have what was stored");
    }
}

#[test]
fn an_exclusive_object_is_in_the_file_after_exit() {
    let (test, key) = ("an_exclusive_object_is_in_the_file_after_exit", "it");
    if !modes().contains(&Delivery::InThread) {
        return println!("skipped: exclusive objects need userfaultfd");
    }
    let run = after_exit(test, key, |path| {
        let rt = lazy().build().expect("a runtime");
        let object = rt.file_options().writable(true).with(|o| o.exclusive(true)).open(path).expect("the file");
        let arena = rt.arena(EXTENT).delivery(Delivery::InThread).build().expect("an arena");
        map(&arena, 0, &object, Prot::ReadWrite, Sharing::Private);
        let m = Mapped { rt, object, arena };
        fill(&m);
        exit_now(0);
    });
    if let Some((out, bytes)) = run {
        ended(Some(out), Ok(0));
        assert_eq!(written(&bytes), NR);
    }
}

#[test]
fn nothing_is_written_where_exit_is_not_to_wait() {
    let run = after_exit("nothing_is_written_where_exit_is_not_to_wait", "it", |path| {
        let m = mapped(lazy().exit_wait(Duration::ZERO), path, Delivery::Segv);
        fill(&m);
        exit_now(0);
    });
    if let Some((out, bytes)) = run {
        ended(Some(out), Ok(0));
        assert_eq!(written(&bytes), 0, "the option says that nothing is written");
    }
}

/// The handler of SIGALRM: exit(3) in the middle of whatever the thread is doing.
extern "C" fn leave(_: i32) {
    exit_now(7);
}

/// Every lock of ours may be held when a signal handler exits: that of the interrupted thread, too.
#[test]
fn exit_from_a_signal_handler_waits_for_no_lock() {
    let run = after_exit("exit_from_a_signal_handler_waits_for_no_lock", "it", |path| {
        let m = mapped(lazy(), path, Delivery::Segv);
        fill(&m);
        let rt = &m.rt;
        std::thread::scope(|s| {
            // The signal is for whoever takes it first; all of them are inside our calls most of the time.
            let churn = || {
                loop {
                    let arena = rt.arena(EXTENT).delivery(Delivery::Segv).build().expect("an arena");
                    let object = rt.anonymous(PAGE as u64).expect("an object");
                    map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
                }
            };
            s.spawn(churn);
            install(libc::SIGALRM, leave as *const () as usize, libc::SA_ONSTACK);
            // SAFETY: raises SIGALRM in a second, for which there is a handler.
            unsafe { libc::alarm(1) };
            churn();
        });
    });
    if let Some((out, bytes)) = run {
        ended(Some(out), Ok(7));
        assert_eq!(written(&bytes), NR);
    }
}

static NR_HUNG: AtomicUsize = AtomicUsize::new(0);

/// A store that never comes back from a write.
#[derive(Debug)]
struct Hangs;

impl Store for Hangs {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(0);
        Ok(())
    }
    fn write(&self, _pos_bytes: u64, _page: &PageRef<'_>) -> Result<(), StoreError> {
        NR_HUNG.fetch_add(1, Ordering::Relaxed);
        loop {
            std::thread::sleep(HOUR);
        }
    }
}

/// When the first store hangs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Hung {
    /// When the process exits.
    AtExit,
    /// Before: in what the runtime writes by itself.
    InTheFlusher,
    /// Before: in a page that is being taken out, of an exclusive object. No other leaves before it is written.
    InEviction,
}

/// Ends with stores that hang, more of them than there are fillers, in objects that are older than the file's.
fn exit_beside_hung(path: &Path, exclusive: bool, hung: Hung) -> ! {
    let interval = if hung == Hung::InTheFlusher { Duration::from_millis(20) } else { HOUR };
    let builder = lazy().writeback(interval, interval).fillers(2).exit_wait(Duration::from_secs(5));
    let rt = builder.build().expect("a runtime");
    let mapped = |object: Object| {
        let (mode, sharing) =
            if exclusive { (Delivery::InThread, Sharing::Private) } else { (Delivery::Segv, Sharing::Shared) };
        let arena = rt.arena(EXTENT).delivery(mode).build().expect("an arena");
        map(&arena, 0, &object, Prot::ReadWrite, sharing);
        Mapped { rt: rt.clone(), object, arena }
    };
    let hanging = || {
        let object = rt.object(PAGE as u64).writable(true).exclusive(exclusive).store(Box::new(Hangs));
        let m = mapped(object.expect("an object"));
        assert_eq!(store(&m.arena, 0, 1), Ok(()));
        m
    };
    let all: Vec<_> = (0..6).map(|_| hanging()).collect();
    if hung == Hung::InEviction {
        let object = all[0].object.clone();
        std::thread::spawn(move || object.evict(0..PAGE as u64));
    }
    if hung != Hung::AtExit {
        common::until("a store hangs", || NR_HUNG.load(Ordering::Relaxed) > 0);
    }
    let object = rt.file_options().writable(true).with(|o| o.exclusive(exclusive)).open(path);
    let m = mapped(object.expect("the file"));
    fill(&m);
    std::mem::forget(all);
    exit_now(0);
}

#[test]
fn stores_that_hang_keep_no_other_from_being_written() {
    for exclusive in [false, true] {
        if exclusive && !modes().contains(&Delivery::InThread) {
            println!("skipped: exclusive objects need userfaultfd");
            continue;
        }
        for hung in [Hung::AtExit, Hung::InTheFlusher, Hung::InEviction] {
            if hung == Hung::InEviction && !exclusive {
                continue;
            }
            let key = format!("{exclusive}-{hung:?}");
            let run = after_exit("stores_that_hang_keep_no_other_from_being_written", &key, |path| {
                exit_beside_hung(path, exclusive, hung)
            });
            let Some((out, bytes)) = run else { continue };
            ended(Some(out), Ok(0));
            assert_eq!(written(&bytes), NR, "exclusive {exclusive}, {hung:?}: pages that have what was stored");
        }
    }
}

/// What a pin keeps fillers from writing is written by the thread that sees to exit, which no exclusive store may keep.
#[test]
fn an_exclusive_store_that_hangs_keeps_no_ordinary_object_from_being_written() {
    if !modes().contains(&Delivery::InThread) {
        return println!("skipped: exclusive objects need userfaultfd");
    }
    let test = "an_exclusive_store_that_hangs_keeps_no_ordinary_object_from_being_written";
    let run = after_exit(test, "it", |path| {
        let rt = lazy().exit_wait(Duration::from_secs(8)).build().expect("a runtime");
        let hangs = rt.object(PAGE as u64).writable(true).exclusive(true).store(Box::new(Hangs)).expect("an object");
        let private = rt.arena(EXTENT).delivery(Delivery::InThread).build().expect("an arena");
        map(&private, 0, &hangs, Prot::ReadWrite, Sharing::Private);
        assert_eq!(store(&private, 0, 1), Ok(()));
        let object = rt.open_file_rw(path).expect("the file");
        let arena = rt.arena(EXTENT).delivery(Delivery::InThread).build().expect("an arena");
        map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let m = Mapped { rt: rt.clone(), object, arena };
        fill(&m);
        let pin = m.arena.pin(0..NR * PAGE, softfault::Access::Write).expect("a pin");
        std::mem::forget((pin, m.object.clone(), hangs, private));
        exit_now(0);
    });
    if let Some((out, bytes)) = run {
        ended(Some(out), Ok(0));
        assert_eq!(written(&bytes), NR, "pages of the file that have what was stored");
    }
}

static NR_READS: AtomicUsize = AtomicUsize::new(0);
static NR_WRITTEN: AtomicUsize = AtomicUsize::new(0);

/// A store that takes pages at once, and gives the first: the others' reads take for ever.
#[derive(Debug)]
struct ReadsSlowly;

impl Store for ReadsSlowly {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        if pos_bytes >= PAGE as u64 {
            NR_READS.fetch_add(1, Ordering::Relaxed);
            loop {
                std::thread::sleep(HOUR);
            }
        }
        page.as_mut_slice().fill(0);
        Ok(())
    }
    fn write(&self, _pos_bytes: u64, _page: &PageRef<'_>) -> Result<(), StoreError> {
        NR_WRITTEN.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A store that takes pages at once, and forgets them.
#[derive(Debug)]
struct TakesAll;

impl Store for TakesAll {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(0);
        Ok(())
    }
    fn write(&self, _pos_bytes: u64, _page: &PageRef<'_>) -> Result<(), StoreError> {
        Ok(())
    }
}

/// An object over `with`, mapped for stores.
fn stored_to(rt: &Runtime, with: Box<dyn Store>) -> (Object, Arena) {
    let object = rt.object((NR * PAGE) as u64).writable(true).fill_window_pages(1).store(with).expect("an object");
    let arena = rt.arena(EXTENT).delivery(Delivery::Segv).build().expect("an arena");
    map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
    (object, arena)
}

/// The program reads and stores as ever while it exits: an object always has a read in flight, and the number of dirty pages
/// never comes to rest.
fn busy(rt: &Runtime) {
    let (object, arena) = stored_to(rt, Box::new(ReadsSlowly));
    assert_eq!(store(&arena, 0, 1), Ok(()));
    std::thread::spawn(move || {
        let _ = common::load(&arena, 8 * PAGE);
        drop(object);
    });
    common::until("a read is in flight", || NR_READS.load(Ordering::Relaxed) > 0);
    let (object, arena) = stored_to(rt, Box::new(TakesAll));
    std::thread::spawn(move || {
        loop {
            for p in 0..NR {
                assert_eq!(store(&arena, p * PAGE, 1), Ok(()));
            }
            object.write_back(0..u64::MAX).expect("written");
        }
    });
    let moves = || rt.stats()["nr_dirty"];
    let before = moves();
    common::until("it stores", || moves() != before);
}

#[test]
fn a_program_that_reads_and_stores_meanwhile_does_not_hold_up_its_exit() {
    let test = "a_program_that_reads_and_stores_meanwhile_does_not_hold_up_its_exit";
    for exclusive in [false, true] {
        if exclusive && !modes().contains(&Delivery::InThread) {
            println!("skipped: exclusive objects need userfaultfd");
            continue;
        }
        for asks in [false, true] {
            let run = after_exit(test, &format!("{exclusive}-{asks}"), |path| {
                let rt = lazy().exit_wait(Duration::from_secs(20)).build().expect("a runtime");
                let object = rt.file_options().writable(true).with(|o| o.exclusive(exclusive)).open(path);
                let object = object.expect("the file");
                let mode = if exclusive { Delivery::InThread } else { Delivery::Segv };
                let arena = rt.arena(EXTENT).delivery(mode).build().expect("an arena");
                let sharing = if exclusive { Sharing::Private } else { Sharing::Shared };
                map(&arena, 0, &object, Prot::ReadWrite, sharing);
                let m = Mapped { rt, object, arena };
                fill(&m);
                busy(&m.rt);
                if asks {
                    assert_eq!(m.rt.write_back(Duration::from_secs(20)).ok(), Some(true), "it is not in time");
                    assert!(NR_WRITTEN.load(Ordering::Relaxed) > 0, "the object that is read was not written");
                    // SAFETY: ends the process without its handlers.
                    unsafe { libc::_exit(0) };
                }
                exit_now(0);
            });
            let Some((out, bytes)) = run else { continue };
            ended(Some(out), Ok(0));
            assert_eq!(written(&bytes), NR, "exclusive {exclusive}, asks {asks}: pages that have what was stored");
        }
    }
}

/// The last handle of an object is gone: who had it has not begun to write back, or is writing.
#[test]
#[cfg(debug_assertions)]
fn an_object_that_ends_is_in_the_file_after_exit() {
    for point in [Point::OBJECT_ENDS, Point::WRITEBACK_TAKEN] {
        let test = "an_object_that_ends_is_in_the_file_after_exit";
        let run = after_exit(test, &format!("{point:?}"), |path| {
            let m = mapped(lazy(), path, Delivery::Segv);
            std::mem::forget(m.rt.clone());
            fill(&m);
            trace::arm_gate(point);
            std::thread::spawn(move || drop(m));
            common::until("it ends", || trace::is_caught(point));
            std::thread::spawn(move || {
                std::thread::sleep(Duration::from_millis(300));
                trace::disarm(point);
            });
            exit_now(0);
        });
        let Some((out, bytes)) = run else { continue };
        ended(Some(out), Ok(0));
        assert_eq!(written(&bytes), NR, "{point:?}: pages of the file that have what was stored");
    }
}

/// The clock that all processes share.
fn now() -> Duration {
    let mut now = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: writes one structure of ours.
    assert_eq!(unsafe { libc::clock_gettime(libc::CLOCK_MONOTONIC, &raw mut now) }, 0);
    Duration::new(now.tv_sec.cast_unsigned(), u32::try_from(now.tv_nsec).expect("nanoseconds"))
}

#[test]
fn exit_waits_no_longer_than_it_may() {
    const MAY: Duration = Duration::from_millis(300);
    let run = child("exit_waits_no_longer_than_it_may", "it", || {
        let rt = lazy().exit_wait(MAY).build().expect("a runtime");
        let object = rt.object(PAGE as u64).writable(true).store(Box::new(Hangs)).expect("an object");
        let arena = rt.arena(EXTENT).delivery(Delivery::Segv).build().expect("an arena");
        map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
        assert_eq!(store(&arena, 0, 1), Ok(()));
        let began = Instant::now();
        assert_eq!(rt.write_back(Duration::from_millis(50)).ok(), Some(false), "a store that hangs");
        assert!(began.elapsed() >= Duration::from_millis(50), "it did not wait");
        println!("exits at {} ns", now().as_nanos());
        exit_now(3);
    });
    if run.is_none() {
        return;
    }
    let after = now();
    let said = ended(run, Ok(3));
    let at = said.lines().find_map(|l| l.split_once("exits at ")?.1.strip_suffix(" ns")?.parse().ok());
    let took = after - Duration::from_nanos(at.expect("when it began to exit"));
    // The store writes for hours: whoever does not wait is too early, and whoever waits as long as others may takes 30 s.
    assert!(took >= MAY, "exit waited for {took:?} alone, and may for {MAY:?}");
    assert!(took < Duration::from_secs(20), "exit took {took:?}, and may wait for {MAY:?}");
}

/// A forked child has the words of its parent's pages, and neither its memory nor its threads: it leaves at once.
#[test]
fn a_forked_child_that_exits_writes_nothing() {
    let run = after_exit("a_forked_child_that_exits_writes_nothing", "it", |path| {
        let m = mapped(lazy(), path, Delivery::Segv);
        fill(&m);
        let began = Instant::now();
        let status = fork(|| exit_now(5));
        assert!(libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 5, "{status:#x}");
        assert!(began.elapsed() < Duration::from_secs(15), "the child waited for a thread that it has not");
        let now = std::fs::read(path).expect("the file");
        assert_eq!(written(&now), 0, "the child wrote its parent's pages");
        // SAFETY: ends the child without its handlers.
        unsafe { libc::_exit(0) };
    });
    if let Some((out, _)) = run {
        ended(Some(out), Ok(0));
    }
}

#[test]
fn what_exit_does_can_be_asked_for() {
    for mode in modes() {
        let path = common::path_of(&format!("asked-{mode:?}"));
        std::fs::write(&path, vec![0u8; NR * PAGE]).expect("a file");
        let m = mapped(lazy(), &path, mode);
        fill(&m);
        assert_eq!(m.rt.write_back(Duration::from_secs(60)).ok(), Some(true), "{mode:?}");
        assert_eq!(written(&std::fs::read(&path).expect("the file")), NR, "{mode:?}: it is in the file, unsynced");
        std::fs::remove_file(&path).expect("removed");
    }
}
