//! Reclaim, write-back, fills and hand-overs, each stopped in the middle of a step while others store, load, map, unmap,
//! sync and truncate: nothing that was written is lost, and nothing is read that was not written.
#![cfg(debug_assertions)]
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;
mod disk;

use common::{EXTENT, PAGE, bytes, content, fill_the_table, load, map, same, serial, setup, store, until};
use disk::{Behaviour, Disk, InHandler, VolatileStore};
use softfault::{Access, Arena, Delivery, Error, Object, Prot, Runtime, Sharing};
use softfault_mm::trace::{Point, arm_gate, disarm, is_caught};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);
/// Every so many pages one is written.
const STRIDE: usize = 8;

/// Opens the gate also when the test fails, so that nobody stands there for ever.
struct Gate(Point);

impl Gate {
    fn arm(point: Point) -> Self {
        arm_gate(point);
        Self(point)
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        disarm(self.0);
    }
}

/// Gives the others time to do what they must not do. It can only make a failure be seen, never cause one.
fn linger() {
    std::thread::sleep(Duration::from_millis(3));
}

/// A runtime in which nothing happens by itself but reclaim.
fn quiet(limit_bytes: usize) -> Runtime {
    setup();
    let builder = Runtime::builder().cache_limit(limit_bytes as u64).writeback(HOUR, HOUR);
    builder.fill_window_pages(8).build().expect("runtime")
}

fn each(what: &str, f: impl Fn(Delivery)) {
    common::each_mode(what, |_, mode| f(mode));
}

fn plain_disk() -> Arc<Disk> {
    Disk::new(&content(1, 0..EXTENT as u64), Behaviour::default())
}

/// One object over a disk, two arenas that share it, and what every byte should be.
struct World {
    rt: Runtime,
    mode: Delivery,
    disk: Arc<Disk>,
    object: Object,
    a: Arena,
    b: Arena,
    model: Mutex<Vec<u8>>,
    /// What acts leave alone: past the end while it is moved.
    end: AtomicUsize,
    /// The disk fails, now and then or when it is told to.
    fails: bool,
}

const ROOM: u64 = 64 << 20;

impl World {
    fn new(mode: Delivery) -> Self {
        Self::over(mode, Behaviour::default())
    }

    fn over(mode: Delivery, behaviour: Behaviour) -> Self {
        Self::build(mode, behaviour, false)
    }

    fn build(mode: Delivery, behaviour: Behaviour, in_handler: bool) -> Self {
        let rt = quiet(ROOM as usize);
        let bytes = content(1, 0..EXTENT as u64);
        let fails = behaviour.write_error_in + behaviour.flush_error_in > 0;
        let disk = Disk::new(&bytes, behaviour);
        let store = VolatileStore(Arc::clone(&disk));
        let builder = rt.object(EXTENT as u64).writable(true).retries(50, Duration::ZERO);
        let object =
            if in_handler { builder.handler_store(Box::new(InHandler(store))) } else { builder.store(Box::new(store)) };
        let object = object.expect("object");
        let [a, b] = [(); 2].map(|()| rt.arena(EXTENT).delivery(mode).native_extents(false).build().expect("arena"));
        map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
        map(&b, 0, &object, Prot::ReadWrite, Sharing::Shared);
        Self { rt, mode, disk, object, a, b, model: Mutex::new(bytes), end: AtomicUsize::new(EXTENT), fails }
    }

    fn end(&self) -> usize {
        self.end.load(Ordering::SeqCst)
    }

    /// A byte to each of some pages, by `put(offset, value)`.
    fn write(&self, round: usize, put: impl Fn(usize, u8)) {
        for p in (round % STRIDE..self.end() / PAGE).step_by(STRIDE) {
            let (at, value) = (p * PAGE + 17, ((round + p) % 251) as u8 + 1);
            // At once with the model: what a failing disk loses is written again from there.
            let mut model = self.model.lock().expect("model");
            put(at, value);
            model[at] = value;
        }
    }
    fn write_by(&self, arena: &Arena, round: usize) {
        self.write(round, |at, value| assert_eq!(store(arena, at, value), Ok(()), "a store to {at:#x}"));
    }
    fn model(&self) -> Vec<u8> {
        self.model.lock().expect("model").clone()
    }

    /// Makes everything durable as a program does over a disk that fails: it tries again, and writes again what was lost.
    fn sync_all(&self) {
        for _ in 0..1_000 {
            match self.object.sync_all() {
                Ok(()) => return,
                Err(Error::Lost { ranges, .. }) => {
                    for r in ranges {
                        let model = self.model.lock().expect("model");
                        let lost = &model[r.start as usize..r.end as usize];
                        assert_eq!(self.object.write_at(r.start, lost).expect("write_at"), lost.len());
                    }
                }
                Err(Error::Writeback { .. } | Error::Flush { .. }) if self.fails => {}
                Err(e) => panic!("sync_all: {e}"),
            }
        }
        panic!("sync_all never succeeds");
    }

    /// Has reclaim write a page back and drop it, for room; nothing is flushed.
    fn write_back_and_drop(&self, p: usize) {
        self.rt.set_cache_limit((64 * PAGE) as u64);
        until("reclaimed", || {
            // By calls: whoever serves faults may stand at a gate.
            (256..EXTENT / PAGE).for_each(|q| {
                self.object.read_at((q * PAGE) as u64, &mut [0]).expect("read_at");
            });
            !self.object.is_cached((p * PAGE) as u64)
        });
        self.rt.set_cache_limit(ROOM);
    }

    /// Compares what every way of reading gives, and what gets to the disk.
    fn check(&self, what: &str) {
        let model = self.model();
        for (i, arena) in [&self.a, &self.b].into_iter().enumerate() {
            same(&format!("{what}: arena {i}"), &bytes(arena, 0..EXTENT), &model);
        }
        let mut got = vec![0; EXTENT];
        assert_eq!(self.object.read_at(0, &mut got).expect("read_at"), EXTENT);
        same(&format!("{what}: by calls"), &got, &model);
        self.sync_all();
        same(&format!("{what}: durable"), &self.disk.durable(), &model);
    }
}

/// What is stopped at a point.
fn drive(w: &World, point: Point) {
    let all = 0..EXTENT as u64;
    match point {
        Point::LOOKUP_PIN | Point::PINNED_MAP | Point::MAP_UNPIN | Point::FILL_CLAIMED | Point::FILL_PUBLISH => {
            // The page was evicted by `prepare`.
            let _ = load(&w.a, 0);
        }
        Point::WRITEBACK_TAKEN | Point::WRITEBACK_PROTECTED | Point::WRITEBACK_WRITTEN => {
            // As `sync_all`, but it passes over what is held.
            let r = w.object.barrier();
            assert!(r.is_ok() || w.fails, "{point:?}: {r:?}");
        }
        Point::FLUSH_SETTLED | Point::FLUSH_DONE => {
            if w.fails {
                w.disk.fail_flush(0);
            }
            let r = w.object.barrier();
            assert!(r.is_err() == w.fails, "{point:?}: {r:?}");
        }
        Point::UNMAP_MARKED => {
            // For room: by the queues.
            w.rt.set_cache_limit((EXTENT / 2) as u64);
            until("there is room", || w.object.cached_pages() <= (EXTENT / PAGE / 2) as u64);
            w.rt.set_cache_limit(ROOM);
        }
        Point::PROMOTE_COUNTED | Point::PROMOTE_CHECKED => {
            w.b.promote(0..EXTENT).expect("promote");
        }
        Point::DEMOTE_REGISTERED => {
            w.b.demote(0..EXTENT).expect("demote");
        }
        Point::TRUNCATE_DROP => {
            // What is cut off is not there in the model either.
            w.object.set_len(w.end() as u64).expect("set_len");
            w.object.set_len(EXTENT as u64).expect("set_len");
        }
        _ => {
            w.object.evict(all).expect("evict");
        }
    }
}

/// Brings the world into a state in which the point is come by: some pages dirty, some clean, mapped and not.
fn prepare(w: &World, point: Point, round: usize) {
    w.object.populate(0..EXTENT as u64).expect("populate");
    w.sync_all();
    let _ = bytes(&w.a, 0..EXTENT);
    w.write_by(&w.b, round);
    match point {
        Point::LOOKUP_PIN | Point::PINNED_MAP | Point::MAP_UNPIN | Point::FILL_CLAIMED | Point::FILL_PUBLISH => {
            w.sync_all();
            until("the first pages are gone", || {
                w.object.evict(0..(16 * PAGE) as u64).expect("evict");
                (0..16).all(|p| !w.object.is_cached(p * PAGE as u64))
            });
        }
        Point::DEMOTE_REGISTERED => {
            w.b.promote(0..EXTENT).expect("promote");
        }
        Point::TRUNCATE_DROP => {
            let mut model = w.model.lock().expect("model");
            w.end.store(EXTENT - 4 * PAGE, Ordering::SeqCst);
            w.object.write_at(w.end() as u64, &[0xcc; 4 * PAGE]).expect("write_at");
            model[w.end()..].fill(0);
        }
        _ => {}
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Act {
    Store,
    StoreElsewhere,
    WriteAt,
    Load,
    Private,
    Unmap,
    Dropped,
    Zap,
    Protect,
    Promote,
    Sync,
    Evict,
    Punch,
    Truncate,
    Hold,
    Pin,
    Invalidate,
}

const ACTS: [Act; 17] = [
    Act::Store,
    Act::StoreElsewhere,
    Act::WriteAt,
    Act::Load,
    Act::Private,
    Act::Unmap,
    Act::Dropped,
    Act::Zap,
    Act::Protect,
    Act::Promote,
    Act::Sync,
    Act::Evict,
    Act::Punch,
    Act::Truncate,
    Act::Hold,
    Act::Pin,
    Act::Invalidate,
];

impl World {
    /// What another thread does meanwhile.
    fn act(&self, act: Act, round: usize) {
        let whole = 0..EXTENT;
        match act {
            Act::Store => self.write_by(&self.a, round),
            Act::StoreElsewhere => self.write_by(&self.b, round),
            Act::WriteAt => self.write(round, |at, value| {
                assert_eq!(self.object.write_at(at as u64, &[value]).expect("write_at"), 1);
            }),
            Act::Load => same("read meanwhile", &bytes(&self.a, 0..self.end()), &self.model()[..self.end()]),
            Act::Private => self.act_private(round),
            Act::Unmap => {
                self.write_by(&self.a, round);
                self.a.unmap(whole).expect("unmap");
                self.map(&self.a, Sharing::Shared);
            }
            Act::Dropped => {
                let c = self.rt.arena(EXTENT).delivery(self.mode).build().expect("arena");
                self.map(&c, Sharing::Shared);
                self.write_by(&c, round);
            }
            Act::Zap => {
                self.write_by(&self.a, round);
                self.zap(&self.a);
            }
            Act::Protect => {
                self.write_by(&self.a, round);
                self.a.protect(whole.clone(), Prot::Read).expect("protect");
                self.a.protect(whole, Prot::ReadWrite).expect("protect");
            }
            Act::Promote => {
                self.a.promote(whole.clone()).expect("promote");
                self.write_by(&self.a, round);
                self.a.demote(whole).expect("demote");
            }
            Act::Sync => {
                self.write_by(&self.a, round);
                let model = self.model();
                self.sync_all();
                same("synced meanwhile", &self.disk.durable()[..self.end()], &model[..self.end()]);
            }
            Act::Evict => {
                self.write_by(&self.a, round);
                self.object.evict(0..EXTENT as u64).expect("evict");
            }
            Act::Punch => {
                let hole = 100 * PAGE + 5..200 * PAGE + 7;
                self.object.punch_hole(hole.start as u64..hole.end as u64).expect("punch_hole");
                self.model.lock().expect("model")[hole.clone()].fill(0);
                same("the hole", &bytes(&self.a, hole.clone()), &vec![0; hole.len()]);
            }
            Act::Truncate => {
                let end = EXTENT / 2 + 77;
                self.object.set_len(end as u64).expect("set_len");
                self.object.set_len(EXTENT as u64).expect("set_len");
                self.model.lock().expect("model")[end..].fill(0);
            }
            Act::Hold => {
                let held = self.object.hold_dirty(0..EXTENT as u64).expect("hold_dirty");
                self.disk.clear_events();
                self.write_by(&self.a, round);
                let r = self.object.barrier();
                assert!(r.is_ok() || self.fails, "barrier: {r:?}");
                let written = self.disk.events().iter().any(|e| matches!(e, disk::Event::Write(..)));
                assert!(!written, "written though held");
                drop(held);
            }
            Act::Pin => {
                let pin = self.a.pin(0..64 * PAGE, Access::Write).expect("pin");
                let at = pin.as_ptr() as usize + 33;
                assert_eq!(common::store_at(at, 0xa5), Ok(()));
                self.model.lock().expect("model")[33] = 0xa5;
            }
            Act::Invalidate => self.act_invalidate(round),
        }
    }

    /// What was written here stays. What somebody else writes to the store is seen, if we had nothing of the page then.
    fn act_invalidate(&self, round: usize) {
        self.write_by(&self.a, round);
        self.object.invalidate(0..EXTENT as u64).expect("invalidate");
        let (page, value) = (300 * PAGE..301 * PAGE, (round % 250) as u8 + 2);
        let drop_page = || self.object.invalidate(page.start as u64..page.end as u64).expect("invalidate").kept == 0;
        until("nothing is kept", || {
            self.sync_all();
            drop_page()
        });
        self.disk.change_outside(page.start, &[value; PAGE]);
        self.model.lock().expect("model")[page.clone()].fill(value);
        assert!(drop_page(), "a page that nobody touches is kept");
        same("changed below", &bytes(&self.a, page), &[value; PAGE]);
    }

    /// The whole of it, wherever its end is now.
    fn map(&self, arena: &Arena, sharing: Sharing) {
        arena.map(0, &self.object, 0, EXTENT, Prot::ReadWrite, sharing).expect("map");
    }

    fn zap(&self, arena: &Arena) {
        // Another thread's fault may hold a pin for a moment.
        until("zapped", || match arena.zap(0..EXTENT) {
            Ok(()) => true,
            Err(Error::System { .. }) => false,
            Err(e) => panic!("zap: {e}"),
        });
    }

    /// A private clone: what it did not write is the object's, what it wrote stays its own.
    fn act_private(&self, round: usize) {
        let c = self.rt.arena(EXTENT).delivery(self.mode).build().expect("arena");
        self.map(&c, Sharing::Private);
        let mut want = self.model();
        want.truncate(self.end());
        for p in (round % 5..self.end() / PAGE).step_by(5) {
            let at = p * PAGE + 40;
            assert_eq!(store(&c, at, 0xee), Ok(()));
            want[at] = 0xee;
        }
        same("a private clone", &bytes(&c, 0..self.end()), &want);
        self.object.evict(0..EXTENT as u64).expect("evict");
        same("a private clone after eviction", &bytes(&c, 0..self.end()), &want);
    }
}

/// Stops `drive` at the point while `act` runs in another thread; `false`: nobody comes by there in this mode.
fn stopped_at(w: &World, point: Point, act: Act, round: usize) -> bool {
    prepare(w, point, round);
    let gate = Gate::arm(point);
    let done = AtomicBool::new(false);
    let caught = std::thread::scope(|s| {
        let driver = s.spawn(|| {
            drive(w, point);
            done.store(true, Ordering::SeqCst);
        });
        until("caught or done", || is_caught(point) || done.load(Ordering::SeqCst) || driver.is_finished());
        let caught = is_caught(point);
        let actor = s.spawn(|| w.act(act, round + 1));
        if caught {
            linger();
        }
        drop(gate);
        let both = [driver.join(), actor.join()];
        assert!(both.iter().all(Result::is_ok), "{:?}: {act:?} while stopped at {point:?}", w.mode);
        caught
    });
    w.end.store(EXTENT, Ordering::SeqCst);
    w.check(&format!("{:?}, {act:?} at {point:?}, round {round}", w.mode));
    caught
}

/// Every act at each of the points; at least one mode comes by each of them.
fn matrix(points: &[Point]) {
    matrix_over(points, &Behaviour::default(), false, &[]);
}

/// The same over a disk of some behaviour, which fails (where it is `told_to`: the flushes that are driven), and without some
/// of the acts.
fn matrix_over(points: &[Point], behaviour: &Behaviour, told_to: bool, without: &[Act]) {
    let _serial = serial();
    for point in points {
        let caught = AtomicBool::new(false);
        each(&format!("{point:?}"), |mode| {
            let mut w = World::over(mode, behaviour.clone());
            w.fails |= told_to;
            for (round, act) in ACTS.into_iter().enumerate().filter(|(_, act)| !without.contains(act)) {
                let c = stopped_at(&w, *point, act, round * 3);
                caught.fetch_or(c, Ordering::SeqCst);
            }
        });
        assert!(caught.into_inner(), "nobody came by {point:?}");
    }
}

#[test]
fn reclaim_stopped_between_its_looks() {
    if !cfg!(feature = "userfaultfd") {
        println!("skipped: without userfaultfd nothing is looked at");
        return;
    }
    matrix(&[Point::UNMAP_LOOKED, Point::UNMAP_ZAPPED]);
}

#[test]
fn reclaim_for_room_stopped_before_it_unmaps() {
    // What is held does not leave, and by protection that may be all of it.
    matrix_over(&[Point::UNMAP_MARKED], &Behaviour::default(), false, &[Act::Hold]);
}

#[test]
fn truncation_stopped_before_it_drops() {
    matrix(&[Point::TRUNCATE_DROP]);
}

#[test]
fn a_flush_stopped_in_each_step() {
    matrix(&[Point::FLUSH_SETTLED, Point::FLUSH_DONE]);
}

#[test]
fn a_flush_that_fails_stopped_in_each_step() {
    let points = [Point::FLUSH_SETTLED, Point::FLUSH_DONE];
    matrix_over(&points, &Behaviour::default(), true, &[]);
    // What the disk forgets is gone from its cache, too: a hole that is not there any more is reported, and reads as before.
    let reverts = Behaviour { reverts: true, ..Behaviour::default() };
    matrix_over(&points, &reverts, true, &[Act::Punch, Act::Truncate]);
}

/// Over a disk that is slow, fails and answers in any order.
#[test]
fn write_back_to_a_bad_disk_stopped_in_each_step() {
    let bad = Behaviour {
        read_error_in: 10,
        write_error_in: 10,
        flush_error_in: 10,
        delay_in: 20,
        delay: Duration::from_micros(100),
        ..Behaviour::default()
    };
    matrix_over(&[Point::WRITEBACK_PROTECTED, Point::WRITEBACK_WRITTEN], &bad, false, &[]);
}

#[test]
fn reclaim_stopped_around_the_punch() {
    matrix(&[Point::EVICT_PUNCH, Point::EVICT_DONE]);
}

#[test]
fn write_back_stopped_in_each_step() {
    matrix(&[Point::WRITEBACK_TAKEN, Point::WRITEBACK_PROTECTED, Point::WRITEBACK_WRITTEN]);
}

#[test]
fn a_fill_stopped_in_each_step() {
    matrix(&[Point::LOOKUP_PIN, Point::FILL_CLAIMED, Point::FILL_PUBLISH, Point::PINNED_MAP, Point::MAP_UNPIN]);
}

#[test]
fn a_hand_over_stopped_in_each_step() {
    if !cfg!(feature = "userfaultfd") {
        println!("skipped: without userfaultfd nothing is handed over");
        return;
    }
    matrix(&[Point::PROMOTE_COUNTED, Point::PROMOTE_CHECKED, Point::DEMOTE_REGISTERED]);
}

/// ```text
/// flush                                    others
/// the store has flushed
///                                          store to pages that it covered, and write them back: they owe the next one
/// what it covered owes nothing more
/// ```
#[test]
fn what_is_written_back_before_the_verdict_of_a_flush_owes_the_next_one() {
    let _serial = serial();
    each("before the verdict", |mode| {
        let w = World::new(mode);
        w.object.populate(0..EXTENT as u64).expect("populate");
        // What a failed flush takes away differs from round to round.
        for round in 0..4 {
            w.write_by(&w.a, 2 * round * STRIDE);
            let gate = Gate::arm(Point::FLUSH_DONE);
            std::thread::scope(|s| {
                let first = s.spawn(|| w.object.sync_all());
                until("caught", || is_caught(Point::FLUSH_DONE));
                w.write_by(&w.a, (2 * round + 1) * STRIDE);
                w.disk.clear_events();
                w.disk.fail_flush(0);
                let second = s.spawn(|| w.object.sync_all());
                let is_written = |p: usize| {
                    let at = (p * PAGE) as u64;
                    let covers = |e: &disk::Event| matches!(e, disk::Event::Write(pos, len, true) if (*pos..*pos + *len as u64).contains(&at));
                    w.disk.events().iter().any(covers)
                };
                until("written back", || (0..EXTENT / PAGE).step_by(STRIDE).all(is_written));
                linger();
                drop(gate);
                assert!(matches!(first.join(), Ok(Ok(()))), "{mode:?}: the first");
                let second = second.join().expect("the second");
                assert!(matches!(second, Err(Error::Flush { .. })), "{mode:?}: {second:?}");
            });
            w.check(&format!("{mode:?}, round {round}"));
        }
    });
}

/// ```text
/// flush                                    others
/// the store fails, and forgets
///                                          read a page that had left the cache: the old bytes
/// what is cached is written again
/// ```
#[test]
fn a_page_that_a_failing_flush_may_have_lost_is_waited_for() {
    let _serial = serial();
    each("lost meanwhile", |mode| {
        let w = World::over(mode, Behaviour { reverts: true, ..Behaviour::default() });
        for (round, stores) in [false, true, false, true].into_iter().enumerate() {
            let (p, value) = (5, round as u8 + 100);
            let page = (p * PAGE) as u64..((p + 1) * PAGE) as u64;
            let want = vec![value; PAGE];
            assert_eq!(w.object.write_at(page.start, &want).expect("write_at"), PAGE);
            w.model.lock().expect("model")[p * PAGE..(p + 1) * PAGE].copy_from_slice(&want);
            w.write_back_and_drop(p);
            w.object.write_at(11 * PAGE as u64, &[value; PAGE]).expect("write_at");
            w.model.lock().expect("model")[11 * PAGE..12 * PAGE].copy_from_slice(&want);
            w.disk.fail_flush(0);
            let gate = Gate::arm(Point::FLUSH_DONE);
            std::thread::scope(|s| {
                let flusher = s.spawn(|| w.object.sync(11 * PAGE as u64..12 * PAGE as u64));
                until("caught", || is_caught(Point::FLUSH_DONE));
                let (a, at) = (&w.a, p * PAGE + 17);
                let other = s.spawn(move || if stores { store(a, at, value) } else { load(a, at).map(drop) });
                linger();
                assert!(!other.is_finished(), "{mode:?}: touched while nobody knows whether it is lost");
                drop(gate);
                assert!(matches!(other.join(), Ok(Ok(()))));
                let r = flusher.join().expect("the flusher");
                assert!(matches!(r, Err(Error::Flush { .. })), "{mode:?}: {r:?}");
            });
            // A store of somebody who does not know of it is no new writing of the page.
            let r = w.object.sync(page.clone());
            let named = matches!(&r, Err(Error::Lost { ranges, .. }) if *ranges == [page.clone()]);
            assert!(named, "{mode:?}, stores {stores}: {r:?}");
            w.sync_all();
            w.check(&format!("{mode:?}, stores {stores}"));
        }
    });
}

/// A page that is pinned for long is written as it is. Who holds it meanwhile waits for that.
#[test]
fn a_hold_waits_for_a_pinned_page_that_is_being_written() {
    let _serial = serial();
    each("held while pinned", |mode| {
        let w = World::new(mode);
        let pin = w.a.pin(0..PAGE, Access::Write).expect("pin");
        assert_eq!(common::store_at(pin.as_ptr() as usize + 33, 0xa5), Ok(()));
        w.model.lock().expect("model")[33] = 0xa5;
        let gate = Gate::arm(Point::SETTLE_DIRECT);
        std::thread::scope(|s| {
            let syncer = s.spawn(|| w.object.barrier());
            until("caught", || is_caught(Point::SETTLE_DIRECT));
            let holder = s.spawn(|| {
                let held = w.object.hold_dirty(0..PAGE as u64).expect("hold_dirty");
                w.disk.clear_events();
                held
            });
            linger();
            assert!(!holder.is_finished(), "{mode:?}: held, and about to be written");
            drop(gate);
            assert!(matches!(syncer.join(), Ok(Ok(()))));
            let held = holder.join().expect("the holder");
            assert!(
                !w.disk.events().iter().any(|e| matches!(e, disk::Event::Write(..))),
                "{mode:?}: written though held"
            );
            drop(held);
        });
        drop(pin);
        w.check(&format!("{mode:?}"));
    });
}

/// ```text
/// first store to a private mapping         others
/// has read the store's bytes
///                                          fill the page, write it, write it back (and drop it)
/// copies what it has read: old bytes
/// ```
#[test]
fn a_private_copy_of_a_page_that_moved_on_is_made_anew() {
    let _serial = serial();
    common::each_userfaultfd("a private copy", |_, mode| {
        // Only a store that may be called in the handler is read past the cache.
        let w = World::build(mode, Behaviour::default(), true);
        for (round, drops) in [false, true].into_iter().enumerate() {
            let c = w.rt.arena(EXTENT).delivery(mode).build().expect("arena");
            map(&c, 0, &w.object, Prot::ReadWrite, Sharing::Private);
            let at = (40 + 16 * round) * PAGE;
            let gate = Gate::arm(Point::COW_STAGED);
            std::thread::scope(|s| {
                let copier = s.spawn(|| store(&c, at + 40, 0xee));
                until("caught", || is_caught(Point::COW_STAGED));
                w.object.write_at(at as u64, &[0xab; 100]).expect("write_at");
                w.model.lock().expect("model")[at..at + 100].fill(0xab);
                if drops {
                    // The copier is in a section: nothing may wait for those.
                    w.write_back_and_drop(at / PAGE);
                }
                drop(gate);
                assert!(matches!(copier.join(), Ok(Ok(()))));
            });
            let mut want = w.model()[at..at + PAGE].to_vec();
            want[40] = 0xee;
            same(&format!("{mode:?}, drops {drops}: the copy"), &bytes(&c, at..at + PAGE), &want);
        }
        w.check(&format!("{mode:?}"));
    });
}

/// ```text
/// unmap, protect                           others
/// the arena has other vmas now, or none
///                                          still in a walk of the old ones; or store to what is mapped
/// wait for the walks; what was noted of stores is collected
/// ```
#[test]
fn stores_while_a_mapping_goes_away_are_kept() {
    let _serial = serial();
    each("goes away", |mode| {
        let w = World::new(mode);
        for (round, protects) in [false, true].into_iter().enumerate() {
            w.object.populate(0..EXTENT as u64).expect("populate");
            w.write_by(&w.a, round);
            // Mapped and clean: the kernel notes the next store, where it can.
            w.sync_all();
            let gate = Gate::arm(Point::UNMAP_DRAIN);
            let kept = std::thread::scope(|s| {
                let changer =
                    s.spawn(|| if protects { w.a.protect(0..EXTENT, Prot::Read) } else { w.a.unmap(0..EXTENT) });
                until("caught", || is_caught(Point::UNMAP_DRAIN));
                let mut kept = 0;
                for p in (round..EXTENT / PAGE).step_by(STRIDE) {
                    let at = p * PAGE + 99;
                    match store(&w.a, at, 0x77) {
                        Ok(()) => {
                            w.model.lock().expect("model")[at] = 0x77;
                            kept += 1;
                        }
                        Err(signo) => assert_eq!(signo, libc::SIGSEGV, "{mode:?}: {p}"),
                    }
                    let got = load(&w.a, at);
                    let want = Ok(w.model.lock().expect("model")[at]);
                    assert!(got == want || (got == Err(libc::SIGSEGV) && !protects), "{mode:?}: {p}: {got:?}");
                }
                drop(gate);
                assert!(matches!(changer.join(), Ok(Ok(()))));
                kept
            });
            assert!(kept > 0 || mode == Delivery::Segv, "{mode:?}: no store got through: nothing is shown");
            w.sync_all();
            same(&format!("{mode:?}, protects {protects}: durable"), &w.disk.durable(), &w.model());
            w.a.unmap(0..EXTENT).expect("unmap");
            w.object.evict(0..EXTENT as u64).expect("evict");
            map(&w.a, 0, &w.object, Prot::ReadWrite, Sharing::Shared);
            w.check(&format!("{mode:?}, protects {protects}"));
        }
    });
}

/// An object whose pages reclaim has in hand goes away; its range of the cache becomes another object's.
#[test]
fn an_object_dropped_while_reclaim_holds_its_entries() {
    let _serial = serial();
    let points = [Point::UNMAP_MARKED, Point::UNMAP_ZAPPED, Point::EVICT_PUNCH, Point::WRITEBACK_TAKEN];
    for point in points {
        each(&format!("dropped at {point:?}"), |mode| {
            let rt = quiet(64 * PAGE);
            let disk_of = || Disk::new(&content(1, 0..EXTENT as u64), Behaviour::default());
            let object_of = |disk: &Arc<Disk>| {
                let store = Box::new(VolatileStore(Arc::clone(disk)));
                rt.object(EXTENT as u64).writable(true).store(store).expect("object")
            };
            let (first, other) = (disk_of(), disk_of());
            let (object, beside) = (object_of(&first), object_of(&other));
            let [a, b] = [(); 2].map(|()| rt.arena(EXTENT).delivery(mode).build().expect("arena"));
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            map(&b, 0, &beside, Prot::Read, Sharing::Shared);
            let mut model = content(1, 0..EXTENT as u64);
            for p in 0..60 {
                assert_eq!(store(&a, p * PAGE + 17, 0xee), Ok(()));
                model[p * PAGE + 17] = 0xee;
            }
            let gate = Gate::arm(point);
            std::thread::scope(|s| {
                // Pressure by another object's pages.
                let presser = s.spawn(|| same("beside", &bytes(&b, 0..EXTENT), &content(1, 0..EXTENT as u64)));
                until("caught or done", || is_caught(point) || presser.is_finished());
                let dropper = s.spawn(move || drop((a, object)));
                linger();
                drop(gate);
                assert!(presser.join().is_ok() && dropper.join().is_ok(), "{mode:?}: dropped at {point:?}");
            });
            same(&format!("{mode:?}: written by drop, {point:?}"), &first.content(), &model);
            let next = object_of(&first);
            let c = rt.arena(EXTENT).delivery(mode).build().expect("arena");
            map(&c, 0, &next, Prot::ReadWrite, Sharing::Shared);
            same(&format!("{mode:?}: afterwards, {point:?}"), &bytes(&c, 0..EXTENT), &model);
            let cached = next.cached_pages() + beside.cached_pages();
            until("pages counted are pages cached", || {
                rt.stats()["nr_cached_pages"] == next.cached_pages() + beside.cached_pages()
            });
            assert!(cached <= 64);
        });
    }
}

/// As above, where reclaim has taken a page and looks for its neighbours: it does not find the object any more when it wants
/// to drop what it took.
#[test]
fn an_object_withdrawn_while_reclaim_has_taken_its_pages() {
    let _serial = serial();
    setup();
    let rt = quiet(64 * PAGE);
    let object_of = || rt.object(EXTENT as u64).store(Box::new(VolatileStore(plain_disk()))).expect("object");
    for round in 0..3 {
        let (object, beside) = (object_of(), object_of());
        // Never mapped, so that nothing has to be taken back before it is withdrawn; the first in the queues.
        object.populate(0..(60 * PAGE) as u64).expect("populate");
        // A filler reads: what the call has waited for is there, and the rest of its window is when it has come.
        let seen = AtomicU64::new(0);
        until("its window is there", || {
            std::thread::sleep(Duration::from_millis(20));
            let now = object.cached_pages();
            seen.swap(now, Ordering::SeqCst) == now
        });
        let (gate, before) = (Gate::arm(Point::EVICT_TAKEN), object.cached_pages());
        std::thread::scope(|s| {
            let presser = s.spawn(|| beside.populate(0..(200 * PAGE) as u64).expect("populate"));
            until("caught", || is_caught(Point::EVICT_TAKEN));
            assert!(object.cached_pages() < before, "round {round}: a page of another object was taken");
            let dropper = s.spawn(move || drop(object));
            linger();
            assert!(!dropper.is_finished(), "round {round}: the object is gone under reclaim's hands");
            drop(gate);
            assert!(presser.join().is_ok() && dropper.join().is_ok());
        });
        until("pages counted are pages cached", || rt.stats()["nr_cached_pages"] == beside.cached_pages());
        if cfg!(feature = "userfaultfd") {
            nothing_counts_in_its_place(&rt);
        }
        drop(beside);
        assert_eq!(rt.stats()["nr_cached_pages"], 0, "round {round}");
    }
}

/// The next object in the range of a former one begins with nothing counted: its extents can be handed over.
fn nothing_counts_in_its_place(rt: &Runtime) {
    let mode = Delivery::InThread;
    if !rt.delivery().is_available(mode) {
        return;
    }
    rt.set_cache_limit((64 << 20) as u64);
    let next = rt.object(EXTENT as u64).store(Box::new(VolatileStore(plain_disk()))).expect("object");
    let a = rt.arena(EXTENT).delivery(mode).native_extents(false).build().expect("arena");
    map(&a, 0, &next, Prot::Read, Sharing::Shared);
    next.populate(0..EXTENT as u64).expect("populate");
    assert_eq!(a.promote(0..EXTENT).expect("promote"), 1, "an eviction of the former object's is still counted");
    drop((a, next));
    rt.set_cache_limit((64 * PAGE) as u64);
}

#[test]
fn native_extents_and_a_full_table_of_mappings() {
    for mode in [Delivery::InThread, Delivery::Monitor] {
        let out = common::child("native_extents_and_a_full_table_of_mappings", &format!("{mode:?}"), || {
            let rt = quiet(5 * EXTENT);
            if !rt.delivery().is_available(mode) {
                println!("skipped: {}", rt.delivery());
                return;
            }
            let len = 4 * EXTENT;
            let disk = Disk::new(&content(1, 0..len as u64), Behaviour::default());
            let store_of = Box::new(VolatileStore(Arc::clone(&disk)));
            let object = rt.object(len as u64).writable(true).store(store_of).expect("object");
            let a = rt.arena(len).delivery(mode).build().expect("arena");
            map(&a, 0, &object, Prot::ReadWrite, Sharing::Shared);
            object.populate(0..len as u64).expect("populate");
            // A neighbour that stays trapped, so that taking one back splits or joins kernel mappings.
            assert!(a.promote(0..EXTENT).expect("promote") + a.promote(2 * EXTENT..3 * EXTENT).expect("promote") > 0);
            let mut model = content(1, 0..len as u64);
            for p in (0..len / PAGE).step_by(3) {
                assert_eq!(store(&a, p * PAGE + 9, 0xdd), Ok(()));
                model[p * PAGE + 9] = 0xdd;
            }
            let _full = fill_the_table();
            // It may fail, and it may not; what was stored is there in any case.
            let synced = object.sync_all();
            let evicted = object.evict(0..len as u64);
            println!("{mode:?}: sync {synced:?}, evict {evicted:?}, {} native", a.native_extents());
            rt.set_cache_limit(EXTENT as u64);
            for p in 0..len / PAGE {
                let want = model[p * PAGE + 9];
                assert_eq!(load(&a, p * PAGE + 9), Ok(want), "{mode:?}: page {p}");
            }
            assert!(synced.is_err() || disk.durable() == model, "{mode:?}: synced, and not durable");
        });
        common::ended(out, Ok(0));
    }
}

/// Pages of an exclusive object that come together are in place before they are in the cache, one after the other, and the program
/// stores to them without a fault: what a sync, or an end of the process, acknowledges has those stores.
#[test]
fn stores_to_pages_that_are_still_arriving_are_synced() {
    let _serial = serial();
    setup();
    let rt = quiet(ROOM as usize);
    if !rt.delivery().is_available(Delivery::InThread) {
        return println!("skipped: exclusive objects need userfaultfd");
    }
    let path = common::path_of("arriving");
    for by_sync in [true, false] {
        std::fs::write(&path, vec![0u8; 8 * PAGE]).expect("a file");
        let object = rt.file_options().writable(true).with(|o| o.exclusive(true)).open(&path).expect("the file");
        let arena = rt.arena(EXTENT).delivery(Delivery::InThread).build().expect("an arena");
        arena.map(0, &object, 0, 8 * PAGE, Prot::ReadWrite, Sharing::Private).expect("map");
        let gate = Gate::arm(Point::FILL_PUBLISH);
        std::thread::scope(|s| {
            s.spawn(|| load(&arena, 0));
            until("the pages are in place", || is_caught(Point::FILL_PUBLISH));
            assert_eq!(store(&arena, PAGE, 9), Ok(()), "a page that is in place does not fault");
            let (rt, object) = (&rt, &object);
            let acknowledged = s.spawn(move || {
                if by_sync {
                    object.sync_all().expect("sync_all");
                    true
                } else {
                    rt.write_back(Duration::from_secs(60)).expect("write_back")
                }
            });
            // Long enough for whoever does not wait to be through, and short beside the second for which exit does.
            std::thread::sleep(Duration::from_millis(if by_sync { 50 } else { 150 }));
            drop(gate);
            assert!(acknowledged.join().expect("acknowledges"), "in time");
            let file = std::fs::read(&path).expect("the file");
            assert_eq!(file.get(PAGE), Some(&9), "by sync {by_sync}: a store before it is not there");
        });
    }
    let _ = std::fs::remove_file(&path);
}
