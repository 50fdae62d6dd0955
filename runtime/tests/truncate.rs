//! Holes, ends and flushes that fail or take long: what was written stays, what is owed to the store is remembered, and
//! nobody waits for who waits for him.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]
#![allow(unsafe_code, reason = "an allocator that can be held up")]

mod common;

use common::{EXTENT, PAGE, arena, bytes, child, each_mode, ended, load, map, same, setup, store, until};
use softfault::{
    Access, Advice, Arena, Delivery, Errno, Error, Object, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError,
};
use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

// ---- a store ---------------------------------------------------------------------------------------------------------

/// A store in memory that fails as often as it is told to. Once made it allocates nothing.
#[derive(Debug)]
struct Slab {
    bytes: Mutex<Vec<u8>>,
    len: AtomicU64,
    /// How many of the next flushes, punches and changes of the end fail.
    flush_fails: AtomicU32,
    punch_fails: AtomicU32,
    set_len_fails: AtomicU32,
    /// A flush, or a change of the end, that is under way waits while this is set.
    holds_flush: AtomicBool,
    holds_end: AtomicBool,
    nr_flushes: AtomicU32,
    nr_ends: AtomicU32,
    rereads: bool,
}

const EIO: StoreError = StoreError::Io(Errno::EIO);

fn fails(times: &AtomicU32) -> bool {
    times.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |n| n.checked_sub(1)).is_ok()
}

fn wait_while(held: &AtomicBool) {
    while held.load(Ordering::SeqCst) {
        std::thread::yield_now();
    }
}

impl Slab {
    fn new(pages: usize, rereads: bool) -> Arc<Self> {
        Arc::new(Self {
            bytes: Mutex::new(vec![7; pages * PAGE]),
            len: AtomicU64::new((pages * PAGE) as u64),
            flush_fails: AtomicU32::new(0),
            punch_fails: AtomicU32::new(0),
            set_len_fails: AtomicU32::new(0),
            holds_flush: AtomicBool::new(false),
            holds_end: AtomicBool::new(false),
            nr_flushes: AtomicU32::new(0),
            nr_ends: AtomicU32::new(0),
            rereads,
        })
    }
    fn with<R>(&self, f: impl FnOnce(&mut [u8]) -> R) -> R {
        f(&mut self.bytes.lock().unwrap_or_else(PoisonError::into_inner))
    }
    fn at(&self, at: usize) -> u8 {
        self.with(|b| b[at])
    }
    fn len(&self) -> usize {
        self.len.load(Ordering::SeqCst) as usize
    }
}

struct SlabStore(Arc<Slab>);

impl Store for SlabStore {
    fn read(&self, pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        let from = pos_bytes as usize;
        let to = from + page.len_bytes();
        if to > self.0.len() {
            return Err(StoreError::Short);
        }
        self.0.with(|b| page.as_mut_slice().copy_from_slice(&b[from..to]));
        Ok(())
    }
    fn write(&self, pos_bytes: u64, pages: &PageRef<'_>) -> Result<(), StoreError> {
        let from = pos_bytes as usize;
        self.0.with(|b| pages.copy_to(0, &mut b[from..from + pages.len_bytes()]));
        Ok(())
    }
    fn flush(&self) -> Result<(), StoreError> {
        self.0.nr_flushes.fetch_add(1, Ordering::SeqCst);
        if std::thread::current().name() == Some("softfault-flush") {
            COUNTS.set(true);
        }
        wait_while(&self.0.holds_flush);
        if fails(&self.0.flush_fails) { Err(EIO) } else { Ok(()) }
    }
    fn punch(&self, pos_bytes: u64, len_bytes: u64) -> Result<(), StoreError> {
        if fails(&self.0.punch_fails) {
            return Err(EIO);
        }
        self.0.with(|b| b[pos_bytes as usize..(pos_bytes + len_bytes) as usize].fill(0));
        Ok(())
    }
    fn set_len(&self, len_bytes: u64) -> Result<(), StoreError> {
        if fails(&self.0.set_len_fails) {
            return Err(EIO);
        }
        let old = self.0.len.swap(len_bytes, Ordering::SeqCst) as usize;
        self.0.with(|b| b[(len_bytes as usize).min(old)..old].fill(0));
        self.0.nr_ends.fetch_add(1, Ordering::SeqCst);
        wait_while(&self.0.holds_end);
        Ok(())
    }
    fn rereads_unflushed(&self) -> bool {
        self.0.rereads
    }
}

struct World {
    slab: Arc<Slab>,
    object: Object,
    a: Arena,
    _rt: Runtime,
}

/// An object over a slab, of which nothing is written but what is asked for.
fn world(mode: Delivery, pages: usize, deadline: Option<Duration>) -> World {
    setup();
    let rt = Runtime::builder().writeback(HOUR, HOUR).fill_window_pages(1).build().expect("runtime");
    let slab = Slab::new(pages, true);
    let builder = rt.object((pages * PAGE) as u64).writable(true);
    let builder = if let Some(d) = deadline { builder.deadline(d) } else { builder };
    let object = builder.store(Box::new(SlabStore(Arc::clone(&slab)))).expect("object");
    let a = arena(&rt, mode, (pages * PAGE).next_multiple_of(EXTENT));
    map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
    World { slab, object, a, _rt: rt }
}

fn page(p: usize) -> Range<u64> {
    (p * PAGE) as u64..((p + 1) * PAGE) as u64
}

fn pages(r: Range<usize>) -> Range<u64> {
    (r.start * PAGE) as u64..(r.end * PAGE) as u64
}

impl World {
    fn write(&self, range: Range<usize>, value: u8) {
        for p in range {
            self.object.write_at((p * PAGE) as u64, &[value; PAGE]).expect("write_at");
        }
    }
    /// Gives pages to the store, without a flush, and drops them.
    fn page_out(&self, range: Range<usize>) {
        self.object.advise(pages(range.clone()), Advice::PageOut).expect("PageOut");
        assert!(range.into_iter().all(|p| !self.object.is_cached((p * PAGE) as u64)), "still cached");
    }
    fn check(&self, what: &str, range: Range<usize>, value: u8) {
        let want = vec![value; range.len() * PAGE];
        same(&format!("{what}: {range:?}"), &bytes(&self.a, range.start * PAGE..range.end * PAGE), &want);
    }
}

// ---- an allocator that another thread has -----------------------------------------------------------------------------

thread_local! {
    /// This thread's calls of the allocator wait for the other thread to touch a page first.
    static WAITS: Cell<bool> = const { Cell::new(false) };
}

static ASKED: AtomicBool = AtomicBool::new(false);

thread_local! {
    /// This thread's calls of the allocator are counted: it is the flusher, from its first flush on.
    static COUNTS: Cell<bool> = const { Cell::new(false) };
}

static COUNTED: AtomicU32 = AtomicU32::new(0);

/// A program's thread may touch a page while it has malloc's lock; here it does so whenever the watched thread wants
/// that lock.
fn malloc_is_taken() {
    if COUNTS.try_with(Cell::get).unwrap_or(false) {
        COUNTED.fetch_add(1, Ordering::SeqCst);
    }
    if WAITS.try_with(Cell::get).unwrap_or(false) {
        ASKED.store(true, Ordering::SeqCst);
        wait_while(&ASKED);
    }
}

struct Taken;

#[global_allocator]
static ALLOCATOR: Taken = Taken;

// SAFETY: the system's allocator, after a while.
unsafe impl GlobalAlloc for Taken {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        malloc_is_taken();
        // SAFETY: the caller's contract.
        unsafe { System.alloc(layout) }
    }
    unsafe fn dealloc(&self, ptr: *mut u8, layout: Layout) {
        malloc_is_taken();
        // SAFETY: the caller's contract.
        unsafe { System.dealloc(ptr, layout) }
    }
}

/// Runs `f`; each time that it wants the allocator another thread touches `page(how often it did)` first.
fn while_malloc_is_taken(w: &World, page: impl Fn(usize) -> usize + Sync, f: impl FnOnce()) -> usize {
    let (done, touched) = (AtomicBool::new(false), AtomicU32::new(0));
    std::thread::scope(|s| {
        s.spawn(|| {
            while !done.load(Ordering::SeqCst) {
                if ASKED.load(Ordering::SeqCst) {
                    let n = touched.fetch_add(1, Ordering::SeqCst) as usize;
                    assert!(load(&w.a, page(n) * PAGE).is_ok());
                    ASKED.store(false, Ordering::SeqCst);
                }
                std::thread::yield_now();
            }
        });
        WAITS.set(true);
        f();
        WAITS.set(false);
        done.store(true, Ordering::SeqCst);
    });
    touched.into_inner() as usize
}

/// Runs `f` in a process that is ended if it hangs.
fn watched(test: &str, f: impl Fn(Delivery)) {
    for mode in common::MODES {
        let key = format!("{mode:?}");
        ended(
            child(test, &key, || {
                if common::runtime().delivery().is_available(mode) {
                    f(mode);
                }
            }),
            Ok(0),
        );
    }
}

const MANY: usize = 4096;

#[test]
fn a_flush_wants_no_memory_while_faults_wait_for_it() {
    watched("a_flush_wants_no_memory_while_faults_wait_for_it", |mode| {
        let w = world(mode, MANY, None);
        w.write(0..MANY, 1);
        w.page_out(0..MANY);
        // What is touched is cached from then on, and not kept from anybody.
        let n = while_malloc_is_taken(&w, |n| n, || w.object.sync_all().expect("sync_all"));
        assert!(n < MANY, "{n} calls of the allocator");
        // One that fails, with every other page lost: as many ranges as there can be.
        let other = |f: &dyn Fn(usize)| (0..MANY).step_by(2).for_each(f);
        w.page_out(0..MANY);
        other(&|p| w.write(p..p + 1, 2));
        w.page_out(0..MANY);
        w.slab.flush_fails.store(1, Ordering::SeqCst);
        let n =
            while_malloc_is_taken(&w, |n| 2 * n, || assert!(matches!(w.object.sync_all(), Err(Error::Flush { .. }))));
        assert!(n < MANY / 4, "{n} calls of the allocator");
        assert!(w.object.lost().len() >= MANY / 2 - n, "{} are lost", w.object.lost().len());
    });
}

#[test]
fn a_hole_wants_no_memory_while_faults_wait_for_it() {
    watched("a_hole_wants_no_memory_while_faults_wait_for_it", |mode| {
        for fails in [0, 1] {
            let w = world(mode, 64, None);
            w.write(0..64, 1);
            w.page_out(0..8);
            w.slab.punch_fails.store(fails, Ordering::SeqCst);
            while_malloc_is_taken(
                &w,
                |n| n % 64,
                || assert_eq!(w.object.punch_hole(pages(0..64)).is_err(), fails == 1),
            );
            w.check("after the hole", 0..64, fails as u8);
        }
    });
}

#[test]
fn the_flusher_that_reclaim_waits_for_wants_no_memory() {
    watched("the_flusher_that_reclaim_waits_for_wants_no_memory", |mode| {
        let limit = (128 * PAGE) as u64;
        let often = Duration::from_millis(1);
        let rt = Runtime::builder().cache_limit(limit).writeback(often, often).build().expect("runtime");
        // What it has written it does not give before a flush: to drop a page reclaim needs one.
        let slab = Slab::new(512, false);
        let below = Box::new(SlabStore(Arc::clone(&slab)));
        let object = rt.object((512 * PAGE) as u64).writable(true).store(below).expect("object");
        let a = arena(&rt, mode, EXTENT);
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        for round in 1..4 {
            (0..512).for_each(|p| assert_eq!(store(&a, p * PAGE, round), Ok(())));
        }
        assert!(slab.nr_flushes.load(Ordering::SeqCst) > 2);
        assert_eq!(COUNTED.load(Ordering::SeqCst), 0, "calls of the allocator by the flusher");
        drop((a, object));
    });
}

// ---- holes that cannot be made ---------------------------------------------------------------------------------------

#[test]
fn a_hole_that_fails_leaves_what_was_written() {
    each_mode("hole", |_, mode| {
        let w = world(mode, 16, None);
        let all_written = |what: &str, value| {
            w.check(what, 0..8, value);
            w.object.sync_all().expect("sync_all");
            assert!((0..8).all(|p| w.slab.at(p * PAGE) == value), "{what}: to the store");
        };
        w.write(0..8, 1);
        let pin = w.a.pin(5 * PAGE..6 * PAGE, Access::Read).expect("pin");
        let r = w.object.punch_hole(pages(0..8));
        assert!(matches!(r, Err(Error::Denied { .. })), "{mode:?}: {r:?}");
        drop(pin);
        all_written("a pin", 1);
        // Dirty, clean, and not cached; what is stored meanwhile too.
        w.write(0..8, 2);
        w.object.sync(pages(3..4)).expect("sync");
        w.page_out(4..5);
        w.slab.punch_fails.store(1, Ordering::SeqCst);
        let r = w.object.punch_hole(pages(0..8));
        assert!(matches!(r, Err(Error::Writeback { .. })), "{mode:?}: {r:?}");
        all_written("the store", 2);
        w.write(0..8, 3);
        w.object.punch_hole(pages(0..8)).expect("punch_hole");
        all_written("the hole", 0);
    });
}

#[test]
fn a_loss_is_not_forgotten_for_a_hole_that_failed() {
    each_mode("lost", |_, mode| {
        let w = world(mode, 16, None);
        w.write(2..3, 1);
        w.page_out(2..3);
        w.slab.flush_fails.store(1, Ordering::SeqCst);
        assert!(matches!(w.object.sync_all(), Err(Error::Flush { .. })), "{mode:?}");
        let lost = |what| {
            let r = w.object.sync_all();
            assert!(matches!(&r, Err(Error::Lost { ranges, .. }) if *ranges == [page(2)]), "{mode:?}: {what}: {r:?}");
            assert_eq!(w.object.lost(), [page(2)]);
        };
        lost("at first");
        w.slab.punch_fails.store(1, Ordering::SeqCst);
        assert!(w.object.punch_hole(page(2)).is_err());
        lost("after a hole that failed");
        // A flush that fails over it takes nothing more away.
        w.object.punch_hole(page(2)).expect("punch_hole");
        w.object.sync_all().expect("sync_all");
        assert_eq!(w.object.lost(), []);
        // The hole itself can be lost, like a write.
        w.object.punch_hole(page(3)).expect("punch_hole");
        w.slab.flush_fails.store(1, Ordering::SeqCst);
        assert!(w.object.sync_all().is_err());
        assert_eq!(w.object.lost(), [page(3)]);
        w.object.forget_lost(page(3));
        w.object.sync_all().expect("forgotten");
    });
}

// ---- ends ------------------------------------------------------------------------------------------------------------

#[test]
fn an_end_that_was_set_half_way_is_set_by_the_next_call() {
    each_mode("half", |_, mode| {
        for grows in [false, true] {
            let w = world(mode, 2, None);
            w.write(0..2, 1);
            w.object.sync_all().expect("sync_all");
            let pin = w.a.pin(PAGE..2 * PAGE, Access::Read).expect("pin");
            let r = w.object.set_len(PAGE as u64);
            assert!(matches!(r, Err(Error::Denied { .. })), "{mode:?}: {r:?}");
            drop(pin);
            if !grows {
                w.object.set_len(PAGE as u64).expect("set_len");
                assert_eq!((w.object.cached_pages(), w.slab.len()), (1, PAGE), "{mode:?}");
            }
            w.object.set_len(2 * PAGE as u64).expect("set_len");
            w.check("behind the old end", 1..2, 0);
            w.check("before it", 0..1, 1);
        }
    });
}

#[test]
fn a_store_that_did_not_follow_is_told_again() {
    each_mode("told", |_, mode| {
        let w = world(mode, 2, None);
        w.write(0..2, 1);
        w.object.sync_all().expect("sync_all");
        w.slab.set_len_fails.store(1, Ordering::SeqCst);
        let r = w.object.set_len(PAGE as u64);
        assert!(matches!(r, Err(Error::Writeback { .. })), "{mode:?}: {r:?}");
        assert_eq!(w.slab.len(), 2 * PAGE);
        w.object.set_len(PAGE as u64).expect("set_len");
        assert_eq!(w.slab.len(), PAGE);
        // Or by who syncs, or grows the object.
        w.object.set_len(2 * PAGE as u64).expect("set_len");
        w.write(1..2, 2);
        w.slab.set_len_fails.store(1, Ordering::SeqCst);
        assert!(w.object.set_len(PAGE as u64).is_err());
        w.object.sync_all().expect("sync_all");
        assert_eq!(w.slab.len(), PAGE);
        w.object.set_len(2 * PAGE as u64).expect("set_len");
        w.check("behind the old end", 1..2, 0);
        w.write(1..2, 2);
        w.object.sync_all().expect("sync_all");
        w.slab.set_len_fails.store(1, Ordering::SeqCst);
        assert!(w.object.set_len(PAGE as u64).is_err());
        w.object.set_len(2 * PAGE as u64).expect("set_len");
        w.check("behind the old end", 1..2, 0);
        assert_eq!(w.slab.at(PAGE), 0);
    });
}

#[test]
fn nothing_is_durable_while_the_store_ends_elsewhere() {
    each_mode("end", |_, mode| {
        let w = world(mode, 4, None);
        w.write(0..4, 1);
        w.slab.flush_fails.store(1, Ordering::SeqCst);
        w.slab.set_len_fails.store(9, Ordering::SeqCst);
        let mut failures = 0;
        while w.object.sync_all().is_err() {
            failures += 1;
            assert!(w.slab.set_len_fails.load(Ordering::SeqCst) > 0 || failures < 4, "{mode:?}");
        }
        assert_eq!(w.slab.set_len_fails.load(Ordering::SeqCst), 0, "{mode:?}: told after {failures}");
    });
}

#[test]
fn a_flush_that_fails_while_the_end_moves_does_not_move_it_back() {
    each_mode("moves", |_, mode| {
        for (from, to) in [(2, 4), (4, 2)] {
            let w = world(mode, 4, None);
            w.object.set_len((from * PAGE) as u64).expect("set_len");
            w.write(0..1, 1);
            w.slab.holds_end.store(true, Ordering::SeqCst);
            let before = w.slab.nr_ends.load(Ordering::SeqCst);
            w.slab.flush_fails.store(1, Ordering::SeqCst);
            std::thread::scope(|s| {
                // Growing stops between the store's end and the object's, shrinking the other way round.
                let a = s.spawn(|| w.object.set_len((to * PAGE) as u64));
                until("the store is told", || w.slab.nr_ends.load(Ordering::SeqCst) > before);
                let b = s.spawn(|| w.object.sync_all());
                // With the race this flush is over before the end is; without, it waits for that.
                std::thread::sleep(Duration::from_millis(50));
                w.slab.holds_end.store(false, Ordering::SeqCst);
                a.join().expect("set_len").expect("set_len");
                let _ = b.join().expect("sync_all");
            });
            assert_eq!((w.object.len() as usize, w.slab.len()), (to * PAGE, to * PAGE), "{mode:?}");
            assert!((0..to).all(|p| load(&w.a, p * PAGE).is_ok()), "{mode:?}: the store is short");
        }
    });
}

// ---- flushes that take long ------------------------------------------------------------------------------------------

#[test]
fn a_long_flush_is_no_late_fill() {
    each_mode("late", |_, mode| {
        let w = world(mode, 16, Some(Duration::from_millis(20)));
        w.write(0..4, 1);
        w.page_out(0..4);
        w.slab.holds_flush.store(true, Ordering::SeqCst);
        std::thread::scope(|s| {
            let sync = s.spawn(|| w.object.sync_all());
            until("the flush", || w.slab.nr_flushes.load(Ordering::SeqCst) > 0);
            let touch = s.spawn(|| load(&w.a, PAGE));
            let call = s.spawn(|| w.object.read_at(2 * PAGE as u64, &mut [0; 8]));
            // Longer than the deadline of a fill.
            std::thread::sleep(Duration::from_millis(200));
            w.slab.holds_flush.store(false, Ordering::SeqCst);
            assert_eq!(touch.join().expect("load"), Ok(1), "{mode:?}");
            assert!(matches!(call.join().expect("read_at"), Ok(8)), "{mode:?}");
            sync.join().expect("sync").expect("sync");
        });
        // Nor is it a pin: who cuts or punches waits.
        w.write(4..6, 1);
        w.page_out(4..6);
        let seen = w.slab.nr_flushes.load(Ordering::SeqCst);
        w.slab.holds_flush.store(true, Ordering::SeqCst);
        std::thread::scope(|s| {
            let sync = s.spawn(|| w.object.sync_all());
            until("the flush", || w.slab.nr_flushes.load(Ordering::SeqCst) > seen);
            let punch = s.spawn(|| w.object.punch_hole(pages(4..5)));
            std::thread::sleep(Duration::from_millis(2500));
            w.slab.holds_flush.store(false, Ordering::SeqCst);
            punch.join().expect("punch_hole").expect("punch_hole");
            sync.join().expect("sync").expect("sync");
        });
        w.check("a hole", 4..5, 0);
        assert_eq!(store(&w.a, 5 * PAGE, 9), Ok(()));
    });
}
