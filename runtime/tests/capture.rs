//! Captures while threads store: what is in the image is of one moment, and each rule is needed for that.
#![cfg(feature = "userfaultfd")]
#![allow(unsafe_code, reason = "stores to arenas by address")]
#![allow(clippy::cast_possible_truncation, reason = "patterns and addresses; 64-bit only")]

use softfault::image::Image;
use softfault::mm::cut::naive;
use softfault::mm::trace::{self, Point};
use softfault::{Access, Arena, Capture, CaptureFailure, Error, Object, Prot, Runtime, Sharing};
use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

const PAGE: usize = 4096;

/// A folder of its own, an arena over an object, and the test's turn: captures and their rules are the process's.
struct Bench {
    rt: Runtime,
    arena: Arena,
    object: Object,
    folder: PathBuf,
    _turn: MutexGuard<'static, ()>,
}

impl Drop for Bench {
    fn drop(&mut self) {
        naive::set(0);
        [Point::CAPTURE_ADMITTED, Point::CAPTURE_WALKED, Point::CAPTURE_SPILLING].into_iter().for_each(trace::disarm);
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

impl Bench {
    /// `None`: capturable arenas cannot be had here.
    fn new(name: &str, nr: usize, make: impl Fn(&Runtime, &Path) -> Object) -> Option<Self> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        naive::set(0);
        let folder = std::env::temp_dir().join(format!("softfault-capture-{name}-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&folder);
        std::fs::create_dir_all(&folder).expect("a folder");
        let rt = Runtime::builder().cache_limit(256 << 20).build().expect("a runtime");
        let arena = match rt.arena(nr * PAGE).capturable(true).build() {
            Ok(arena) => arena,
            Err(Error::Delivery { why, .. }) => {
                println!("skipped: {why}");
                return None;
            }
            Err(error) => panic!("{error}"),
        };
        let object = make(&rt, &folder);
        arena.map(0, &object, 0, nr * PAGE, Prot::ReadWrite, Sharing::Shared).expect("room");
        Some(Self { rt, arena, object, folder, _turn: turn })
    }
    fn anonymous(name: &str, nr: usize) -> Option<Self> {
        Self::new(name, nr, |rt, _| rt.anonymous((nr * PAGE) as u64).expect("memory"))
    }
    fn file(name: &str, nr: usize) -> Option<Self> {
        Self::new(name, nr, |rt, folder| {
            let path = folder.join("file");
            std::fs::write(&path, vec![0u8; nr * PAGE]).expect("room");
            rt.open_file_rw(&path).expect("it is there")
        })
    }
    fn begin(&self, name: &str) -> Capture {
        let never = || Ok::<(), Infallible>(());
        self.rt.capture().arena(&self.arena).begin(self.folder.join(name), never).expect("a cut")
    }
    fn store(&self, page: usize, byte: u8) {
        store(&self.arena, page * PAGE, byte);
    }
    /// The bytes that an image has.
    fn image(&self, name: &str) -> Vec<u8> {
        let image = Image::open(self.folder.join(name)).expect("an image");
        let mut bytes = vec![0u8; image.nr_pages() as usize * PAGE];
        image.reader().read(0, &mut bytes).expect("it is whole");
        bytes
    }
}

fn store(arena: &Arena, at: usize, byte: u8) {
    // SAFETY: mapped for stores by each test.
    unsafe { arena.as_ptr().wrapping_add(at).write_volatile(byte) }
}

fn word(arena: &Arena, at: usize) -> &AtomicU64 {
    // SAFETY: mapped for stores by each test, aligned, and every access of it is atomic.
    unsafe { &*arena.as_ptr().wrapping_add(at).cast() }
}

fn until(what: &str, f: impl Fn() -> bool) {
    for _ in 0..20_000 {
        if f() {
            return;
        }
        std::thread::sleep(Duration::from_micros(500));
    }
    panic!("{what}: never");
}

#[test]
fn an_image_has_what_was_there_at_the_cut() {
    for make in [Bench::anonymous, Bench::file] {
        let Some(b) = make("plain", 600) else { return };
        (0..600).for_each(|p| b.store(p, p as u8));
        trace::arm_gate(Point::CAPTURE_WALKED);
        let capture = b.begin("one.sfi");
        until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
        // The walker has half of page 0; every page is stored to before it goes on.
        (0..600).for_each(|p| b.store(p, !(p as u8)));
        trace::disarm(Point::CAPTURE_WALKED);
        let digest = capture.commit().expect("an image");
        let bytes = b.image("one.sfi");
        for p in 0..600 {
            assert_eq!(bytes[p * PAGE], p as u8, "page {p} as it was at the cut");
        }
        assert_eq!(Image::open(b.folder.join("one.sfi")).expect("it").file_digest(), Some(digest));
        let again = b.begin("two.sfi");
        again.commit().expect("an image");
        assert!(b.image("two.sfi").chunks(PAGE).enumerate().all(|(p, page)| page[0] == !(p as u8)), "the second one");
    }
}

/// Without it the second half of a copy is younger than the first, and counts.
#[test]
fn a_torn_copy_is_discarded() {
    let Some(b) = Bench::anonymous("torn", 512) else { return };
    let fill = |byte: u8| (0..PAGE).step_by(8).for_each(|at| store(&b.arena, at, byte));
    fill(1);
    trace::arm_gate(Point::CAPTURE_WALKED);
    let capture = b.begin("torn.sfi");
    until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
    fill(2);
    trace::disarm(Point::CAPTURE_WALKED);
    capture.commit().expect("an image");
    assert!(b.image("torn.sfi")[..PAGE].iter().step_by(8).all(|byte| *byte == 1), "one moment's bytes");
}

/// A store that saw a phase before the cut, and opens its page after it, would be in the image unnoticed: so it is waited for.
#[test]
fn a_lift_is_over_before_the_cut() {
    for broken in [0, naive::NO_GRACE] {
        let Some(b) = Bench::anonymous("lift", 512) else { return };
        b.store(7, 1);
        // In the cache, and not mapped: a store that had to fill its page would look again.
        b.object.write_at(400 * PAGE as u64, &[1; PAGE]).expect("room");
        naive::set(broken);
        std::thread::scope(|s| {
            trace::arm_gate(Point::CAPTURE_ADMITTED);
            // Far from the first, so it is not mapped: a fault that is let through as nothing is captured, and stands still.
            let late = s.spawn(|| b.store(400, 5));
            until("the store", || trace::is_caught(Point::CAPTURE_ADMITTED));
            if broken == 0 {
                let begun = s.spawn(|| b.begin("lift.sfi"));
                std::thread::sleep(Duration::from_millis(50));
                assert!(!begun.is_finished(), "the cut waits for who was let through before it");
                trace::disarm(Point::CAPTURE_ADMITTED);
                begun.join().expect("a cut").commit().expect("an image");
                late.join().expect("a store");
                // It was let through, and may find its page protected again by the time it is made.
                let byte = b.image("lift.sfi")[400 * PAGE];
                assert!([1, 5].contains(&byte), "{byte}: the store lies before the cut or after it");
            } else {
                trace::arm_gate(Point::CAPTURE_WALKED);
                let capture = b.begin("lift.sfi");
                until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
                trace::disarm(Point::CAPTURE_ADMITTED);
                late.join().expect("a store");
                trace::disarm(Point::CAPTURE_WALKED);
                capture.commit().expect("an image");
                assert_eq!(b.image("lift.sfi")[400 * PAGE], 5, "the rule makes the difference: a store after the cut");
            }
        });
    }
}

/// Threads that store through several mappings, each in an order that the image has to keep: a chain of pages, each of which gets a
/// number only when the page before has it, through all threads.
fn chains(b: &Bench, nr: usize, other: Option<&Arena>, captures: u32) -> u32 {
    const WRITERS: usize = 3;
    let (stop, mut broken) = (AtomicBool::new(false), 0);
    std::thread::scope(|s| {
        for writer in 0..WRITERS {
            let stop = &stop;
            let arena = if writer == 1 { other.unwrap_or(&b.arena) } else { &b.arena };
            s.spawn(move || {
                // Pages writer, writer + WRITERS, ..., in an order that jumps about.
                let own = nr / WRITERS;
                let mut turn = 1u64;
                while !stop.load(Ordering::Relaxed) {
                    for i in 0..own {
                        let page = (i * 37 % own) * WRITERS + writer;
                        let (first, last) = (word(arena, page * PAGE), word(arena, page * PAGE + PAGE - 8));
                        first.store(turn, Ordering::Release);
                        last.store(turn, Ordering::Release);
                    }
                    turn += 1;
                }
            });
        }
        for round in 0..captures {
            let name = format!("chain-{round}.sfi");
            let capture = b.begin(&name);
            capture.commit().expect("an image");
            let bytes = b.image(&name);
            std::fs::remove_file(b.folder.join(&name)).expect("it is there");
            broken += u32::from(!is_one_moment(&bytes, nr, WRITERS));
            std::thread::sleep(Duration::from_millis(5));
        }
        stop.store(true, Ordering::Relaxed);
    });
    broken
}

/// Whether the numbers of each writer's chain fall from one turn to the one before once, and no page is torn otherwise.
fn is_one_moment(bytes: &[u8], nr: usize, writers: usize) -> bool {
    let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight"));
    (0..writers).all(|writer| {
        let own = nr / writers;
        let mut seen = Vec::new();
        for i in 0..own {
            let page = (i * 37 % own) * writers + writer;
            seen.push(number(page * PAGE));
            seen.push(number(page * PAGE + PAGE - 8));
        }
        let falls = seen.windows(2).filter(|w| w[0] != w[1]).count();
        let first = seen[0];
        falls <= 1 && seen.iter().all(|n| *n == first || *n + 1 == first)
    })
}

#[test]
fn threads_store_all_the_time_and_each_image_is_of_one_moment() {
    for make in [Bench::anonymous, Bench::file] {
        let Some(b) = make("chains", 1023) else { return };
        assert_eq!(chains(&b, 1023, None, 6), 0, "images of several moments");
    }
}

#[test]
fn stores_through_a_second_arena() {
    for broken in [0, naive::ONE_VMA] {
        let Some(b) = Bench::anonymous("second", 1023) else { return };
        let other = b.rt.arena(1023 * PAGE).capturable(true).build().expect("an arena");
        other.map(0, &b.object, 0, 1023 * PAGE, Prot::ReadWrite, Sharing::Shared).expect("room");
        naive::set(broken);
        let torn = chains(&b, 1023, Some(&other), if broken == 0 { 4 } else { 10 });
        assert_eq!(torn > 0, broken != 0, "{torn} images of several moments");
    }
}

/// A store by a call, a hole and a lower end after the cut: the image has what was there.
#[test]
fn what_calls_change_after_the_cut_is_kept() {
    for broken in [0, naive::NO_PRESERVE, naive::NO_WRITE_AT] {
        let Some(b) = Bench::anonymous("calls", 1024) else { return };
        (0..1000).for_each(|p| b.store(p, 7));
        naive::set(broken);
        trace::arm_gate(Point::CAPTURE_WALKED);
        let capture = b.begin("calls.sfi");
        until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
        b.object.write_at(100 * PAGE as u64, &[9; 2 * PAGE]).expect("room");
        b.object.punch_hole(200 * PAGE as u64..300 * PAGE as u64).expect("nobody pins it");
        // Never touched: a hole in nothing.
        b.object.punch_hole(1001 * PAGE as u64..1010 * PAGE as u64).expect("nobody pins it");
        b.object.set_len(900 * PAGE as u64).expect("nobody pins it");
        trace::disarm(Point::CAPTURE_WALKED);
        capture.commit().expect("an image");
        let bytes = b.image("calls.sfi");
        let wrong = |pages: std::ops::Range<usize>| pages.filter(|p| bytes[p * PAGE] != 7).count();
        let (written, cut) = (wrong(100..102), wrong(200..300) + wrong(900..1000));
        assert_eq!(written > 0, broken == naive::NO_WRITE_AT, "{written} pages that a call has stored to");
        assert_eq!(cut > 0, broken == naive::NO_PRESERVE, "{cut} pages that went");
        assert!(bytes[1000 * PAGE..].iter().all(|byte| *byte == 0), "what was never touched");
    }
}

/// More pages than there are frames are stored to while the walker stands still: they go to the file beside the image.
#[test]
fn saved_bytes_that_have_no_room_go_to_the_file() {
    let Some(b) = Bench::anonymous("spill", 2048) else { return };
    (0..2048).for_each(|p| b.store(p, p as u8));
    trace::arm_gate(Point::CAPTURE_WALKED);
    let never = || Ok::<(), Infallible>(());
    let builder = b.rt.capture().arena(&b.arena).budget(0);
    let capture = builder.begin(b.folder.join("spill.sfi"), never).expect("a cut");
    until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
    (0..2048).for_each(|p| b.store(p, 0xff));
    assert!(capture.progress().spilled_pages > 1000, "{:?}", capture.progress());
    trace::disarm(Point::CAPTURE_WALKED);
    capture.commit().expect("an image");
    let bytes = b.image("spill.sfi");
    (0..2048).for_each(|p| assert_eq!(bytes[p * PAGE], p as u8, "page {p}"));
}

#[test]
fn the_closure_runs_while_stores_wait_and_may_refuse() {
    let Some(b) = Bench::anonymous("closure", 512) else { return };
    b.store(3, 1);
    let seen = AtomicU64::new(0);
    let load = || {
        seen.store(u64::from(word(&b.arena, 3 * PAGE).load(Ordering::Relaxed) as u8), Ordering::Relaxed);
        Ok::<(), Infallible>(())
    };
    b.rt.capture().arena(&b.arena).begin(b.folder.join("a.sfi"), load).expect("a cut").cancel();
    assert_eq!(seen.load(Ordering::Relaxed), 1, "loads are served");
    let refused = b.rt.capture().arena(&b.arena).begin(b.folder.join("a.sfi"), || Err("not now"));
    assert!(matches!(refused, Err(Error::Capture { failure: CaptureFailure::AtCut, .. })), "{refused:?}");
    let calls = || b.object.write_at(0, &[1]).map(drop);
    let refused = b.rt.capture().arena(&b.arena).begin(b.folder.join("a.sfi"), calls);
    assert!(matches!(refused, Err(Error::Capture { failure: CaptureFailure::AtCut, .. })), "{refused:?}");
    let panics = || -> Result<(), Infallible> { panic!("in the closure") };
    let refused = b.rt.capture().arena(&b.arena).begin(b.folder.join("a.sfi"), panics);
    assert!(matches!(refused, Err(Error::Capture { failure: CaptureFailure::AtCut, .. })), "{refused:?}");
    assert_eq!(std::fs::read_dir(&b.folder).expect("it").count(), 0, "no image, and nothing of one");
    b.store(3, 2);
    b.begin("a.sfi").commit().expect("an image");
    assert_eq!(b.image("a.sfi")[3 * PAGE], 2);
}

/// A closure that waits for a thread which waits for the cut: the stores are let through, three times, and it is given up.
#[test]
fn a_cut_that_waits_for_a_store_is_given_up() {
    let Some(b) = Bench::anonymous("deadlock", 512) else { return };
    b.store(3, 1);
    let (go, done) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|s| {
        s.spawn(|| {
            until("the closure", || go.load(Ordering::SeqCst) > 0);
            b.store(3, 2);
            done.store(1, Ordering::SeqCst);
        });
        let waits = || {
            go.fetch_add(1, Ordering::SeqCst);
            until("the store", || done.load(Ordering::SeqCst) > 0);
            Ok::<(), Infallible>(())
        };
        let capture = b.rt.capture().arena(&b.arena).begin(b.folder.join("late.sfi"), waits).expect("the second cut");
        capture.commit().expect("an image");
    });
    assert!(go.load(Ordering::SeqCst) >= 2, "the first cut was given up");
    assert_eq!(b.image("late.sfi")[3 * PAGE], 2, "the store that was waited for came before the cut");
}

#[test]
fn pins_for_writing_come_before_or_after() {
    let Some(b) = Bench::anonymous("pins", 512) else { return };
    let never = || Ok::<(), Infallible>(());
    let pin = b.arena.pin(0..PAGE, Access::Write).expect("room");
    let refused = b.rt.capture().arena(&b.arena).wait(false).begin(b.folder.join("p.sfi"), never);
    assert!(matches!(refused, Err(Error::Pinned { .. })), "{refused:?}");
    std::thread::scope(|s| {
        let begun = s.spawn(|| b.begin("p.sfi"));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!begun.is_finished(), "it waits for the pin");
        drop(pin);
        begun.join().expect("a cut").commit().expect("an image");
    });
}

#[test]
fn secrets_are_left_out_and_mappings_are_kept() {
    let Some(b) = Bench::anonymous("exclude", 512) else { return };
    (0..512).for_each(|p| b.store(p, 5));
    let never = || Ok::<(), Infallible>(());
    let builder = b.rt.capture().arena(&b.arena).exclude(&b.arena, 10 * PAGE..20 * PAGE).key("who", b"me");
    let capture = builder.begin(b.folder.join("x.sfi"), never).expect("a cut");
    capture.key("when", b"now");
    capture.commit().expect("an image");
    let bytes = b.image("x.sfi");
    assert!(bytes[10 * PAGE..20 * PAGE].iter().all(|byte| *byte == 0), "left out");
    assert_eq!((bytes[9 * PAGE], bytes[20 * PAGE]), (5, 5));
    let image = Image::open(b.folder.join("x.sfi")).expect("it is there");
    assert_eq!((image.key("who"), image.key("when")), (Some(&b"me"[..]), Some(&b"now"[..])));
    assert_eq!(image.regions()[0].address, b.arena.as_ptr().addr() as u64);
}

/// A file's pages are dirty by what their protection has noted: that stays, and what is stored later is synced.
#[test]
fn a_file_stored_to_after_a_capture_is_synced() {
    let Some(b) = Bench::file("synced", 64) else { return };
    (0..64).for_each(|p| b.store(p, 1));
    b.object.sync(0..64 * PAGE as u64).expect("the disk is well");
    b.begin("f.sfi").commit().expect("an image");
    (0..64).for_each(|p| b.store(p, 2));
    b.object.sync(0..64 * PAGE as u64).expect("the disk is well");
    let bytes = std::fs::read(b.folder.join("file")).expect("it is there");
    assert!(bytes.chunks(PAGE).all(|page| page[0] == 2), "what was stored after the capture");
}

/// What was mapped for stores before a capture is so after it: the next stores do not fault.
#[test]
fn anonymous_memory_faults_no_more_afterwards() {
    for broken in [0, naive::KEEP_WP] {
        let Some(b) = Bench::anonymous("after", 512) else { return };
        (0..512).for_each(|p| b.store(p, 1));
        naive::set(broken);
        b.begin("a.sfi").commit().expect("an image");
        let before = b.rt.stats()["pgfault"];
        (0..512).for_each(|p| b.store(p, 2));
        let faults = b.rt.stats()["pgfault"] - before;
        assert_eq!(faults > 0, broken != 0, "{faults} faults");
    }
}

/// Saver and walker both stand still, as on a disk that hangs: stores that wait for room are let through all the same, and the
/// capture is given up. What the saver has in hand it puts away before another capture has the object's bits.
#[test]
fn a_disk_that_hangs_holds_no_store() {
    let Some(b) = Bench::anonymous("hangs", 512) else { return };
    (0..512).for_each(|p| b.store(p, 1));
    let never = || Ok::<(), Infallible>(());
    let points = [Point::CAPTURE_WALKED, Point::CAPTURE_SPILLING];
    points.into_iter().for_each(trace::arm_gate);
    let capture = b.rt.capture().arena(&b.arena).budget(0).begin(b.folder.join("hangs.sfi"), never).expect("a cut");
    std::thread::scope(|s| {
        let stores = s.spawn(|| (0..512).for_each(|p| b.store(p, 2)));
        let lets_through = (0..20_000).any(|_| {
            std::thread::sleep(Duration::from_micros(500));
            stores.is_finished()
        });
        trace::disarm(Point::CAPTURE_WALKED);
        if !lets_through {
            trace::disarm(Point::CAPTURE_SPILLING);
        }
        assert!(lets_through, "stores wait for a disk that hangs");
        assert!(trace::is_caught(Point::CAPTURE_SPILLING), "the saver has a frame in hand");
        let ended = s.spawn(|| capture.commit());
        let second = s.spawn(|| b.begin("second.sfi"));
        std::thread::sleep(Duration::from_millis(50));
        let is_early = second.is_finished();
        trace::disarm(Point::CAPTURE_SPILLING);
        assert!(!is_early, "the object's bits are the first capture's until its saver has put its frame away");
        let ended = ended.join().expect("no panic");
        assert!(matches!(ended, Err(Error::Capture { failure: CaptureFailure::Spill, .. })), "{ended:?}");
        second.join().expect("a cut").commit().expect("an image");
    });
    assert!(b.image("second.sfi").chunks(PAGE).all(|page| page[0] == 2), "the second one is whole");
    assert!(!b.folder.join("hangs.sfi").exists(), "no image of the first");
}

/// An object's bits are one capture's at a time: the next one waits until the first one's pages are written, or says no.
#[test]
fn a_second_capture_of_an_object_waits_for_the_first() {
    let Some(b) = Bench::anonymous("twice", 512) else { return };
    (0..512).for_each(|p| b.store(p, 1));
    let never = || Ok::<(), Infallible>(());
    trace::arm_gate(Point::CAPTURE_WALKED);
    let first = b.rt.capture().arena(&b.arena).wait(false).begin(b.folder.join("1.sfi"), never).expect("a cut");
    until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
    assert_eq!(first.progress().done_pages, 0, "begin returns before the pages are copied");
    (0..512).for_each(|p| b.store(p, 2));
    assert!(first.progress().saved_pages > 500, "{:?}", first.progress());
    let refused = b.rt.capture().arena(&b.arena).wait(false).begin(b.folder.join("2.sfi"), never);
    assert!(matches!(refused, Err(Error::Denied { .. })), "{refused:?}");
    std::thread::scope(|s| {
        let second = s.spawn(|| b.begin("2.sfi"));
        std::thread::sleep(Duration::from_millis(20));
        assert!(!second.is_finished(), "it waits for the first");
        trace::disarm(Point::CAPTURE_WALKED);
        // Before the first one is committed.
        second.join().expect("a cut").commit().expect("an image");
    });
    first.commit().expect("an image");
    assert!(b.image("1.sfi").chunks(PAGE).all(|page| page[0] == 1), "as it was at the first cut");
    assert!(b.image("2.sfi").chunks(PAGE).all(|page| page[0] == 2), "as it was at the second");
}

/// What is left out may end anywhere, and a budget may be any number.
#[test]
fn ranges_and_budgets_are_bounded() {
    let Some(b) = Bench::anonymous("bounds", 512) else { return };
    (0..512).for_each(|p| b.store(p, 5));
    let never = || Ok::<(), Infallible>(());
    let builder = b.rt.capture().arena(&b.arena).exclude(&b.arena, 500 * PAGE + 1..usize::MAX).exclude(&b.arena, 7..7);
    builder.budget(usize::MAX).begin(b.folder.join("b.sfi"), never).expect("a cut").commit().expect("an image");
    let bytes = b.image("b.sfi");
    assert!(bytes[500 * PAGE..].iter().all(|byte| *byte == 0), "left out to the end");
    assert_eq!((bytes[0], bytes[499 * PAGE]), (5, 5), "nothing else is");
}

#[test]
fn captures_are_counted() {
    let Some(b) = Bench::anonymous("counted", 512) else { return };
    (0..512).for_each(|p| b.store(p, 1));
    let read = || {
        let stats = b.rt.stats();
        ["captures", "capture_saved_pages", "capture_walked_pages", "capture_held_ns"]
            .map(|name| stats[format!("process_{name}").as_str()])
    };
    let before = read();
    trace::arm_gate(Point::CAPTURE_WALKED);
    let capture = b.begin("c.sfi");
    until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
    (100..200).for_each(|p| b.store(p, 2));
    assert!(b.rt.stats()["process_capture_frame_bytes"] > 0, "frames are made before the cut");
    trace::disarm(Point::CAPTURE_WALKED);
    capture.commit().expect("an image");
    let after = read();
    let by = |i: usize| after[i] - before[i];
    assert_eq!(
        (by(0), by(1), by(2)),
        (1, 100, 412),
        "captures, pages that stores had kept, pages that the walker copied"
    );
    assert!(by(3) > 0, "stores may have waited");
    assert_eq!(b.rt.stats()["process_capture_frame_bytes"], 0, "and go with the capture");
}

/// Over a parent the pages that differ are written, whoever has kept them.
#[test]
fn what_differs_from_the_parent_is_written() {
    let Some(b) = Bench::anonymous("over", 1024) else { return };
    (0..1024).for_each(|p| (0..PAGE).step_by(512).for_each(|at| store(&b.arena, p * PAGE + at, (p as u8) | 1)));
    b.begin("parent.sfi").commit().expect("an image");
    [5, 600].into_iter().for_each(|p| b.store(p, 0xee));
    let parent = Image::open(b.folder.join("parent.sfi")).expect("an image");
    let never = || Ok::<(), Infallible>(());
    trace::arm_gate(Point::CAPTURE_WALKED);
    let builder = b.rt.capture().arena(&b.arena).over(std::sync::Arc::new(parent));
    let capture = builder.begin(b.folder.join("child.sfi"), never).expect("a cut");
    until("the walker", || trace::is_caught(Point::CAPTURE_WALKED));
    (400..700).for_each(|p| b.store(p, 0xdd));
    trace::disarm(Point::CAPTURE_WALKED);
    capture.commit().expect("an image");
    let len = |name: &str| std::fs::metadata(b.folder.join(name)).expect("it is there").len();
    assert!(len("child.sfi") < len("parent.sfi") / 4, "{} of {}", len("child.sfi"), len("parent.sfi"));
    let bytes = b.image("child.sfi");
    for p in 0..1024 {
        let want = if [5, 600].contains(&p) { 0xee } else { (p as u8) | 1 };
        assert_eq!(bytes[p * PAGE], want, "page {p}");
    }
}
