//! Reclaim beside what it may not disturb, and what may not disturb it: objects that go away under it, objects with limits
//! of their own, stores that fail or take their time.
#![allow(clippy::cast_possible_truncation, reason = "64-bit offsets of small objects")]

mod common;
mod disk;

use common::{EXTENT, PAGE, bytes, content, fill_the_table, load, map, same, serial, setup, store, until};
use disk::{Behaviour, Disk, VolatileStore};
use softfault::{
    Access, Advice, Delivery, Errno, Object, PageMut, PageRef, Prot, Runtime, Sharing, Store, StoreError, VmFaultReason,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const HOUR: Duration = Duration::from_secs(3600);

/// A runtime in which nothing is written back but by reclaim.
fn quiet(limit_bytes: usize) -> Runtime {
    setup();
    let builder = Runtime::builder().cache_limit(limit_bytes as u64).writeback(HOUR, HOUR);
    builder.fill_window_pages(8).build().expect("runtime")
}

fn disk_of(len: usize, behaviour: Behaviour) -> Arc<Disk> {
    Disk::new(&content(1, 0..len as u64), behaviour)
}

/// A read-only object over a disk of its own.
fn object_of(rt: &Runtime, len: usize) -> Object {
    let store = Box::new(VolatileStore(disk_of(len, Behaviour::default())));
    rt.object(len as u64).store(store).expect("object")
}

/// What was written leaves the cache only when the store has flushed it: somebody has to ask for that.
#[test]
fn an_object_with_a_limit_of_its_own_over_a_store_that_must_flush_first() {
    let _serial = serial();
    common::each_mode("a limit, and a store that must flush", |_, mode| {
        let rt = quiet(64 << 20);
        let disk = disk_of(EXTENT, Behaviour { rereads_unflushed: false, ..Behaviour::default() });
        let builder = rt.object(EXTENT as u64).writable(true).cache_limit((64 * PAGE) as u64);
        let object = builder.store(Box::new(VolatileStore(Arc::clone(&disk)))).expect("object");
        let arena = rt.arena(EXTENT).delivery(mode).build().expect("arena");
        map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let mut model = content(1, 0..EXTENT as u64);
        for p in 0..256 {
            assert_eq!(store(&arena, p * PAGE + 17, 0xee), Ok(()), "{mode:?}: page {p}");
            model[p * PAGE + 17] = 0xee;
        }
        assert!(object.cached_pages() <= 64);
        same("what was stored", &bytes(&arena, 0..EXTENT), &model);
        object.sync_all().expect("sync_all");
        same("what is durable", &disk.durable(), &model);
    });
}

/// The store takes long for the pages of an object at its own limit, while another object gets on.
#[test]
fn an_object_at_a_limit_of_its_own_waits_for_a_slow_store() {
    let _serial = serial();
    common::each_mode("a limit, and a slow store", |_, mode| {
        let rt = quiet(256 * PAGE);
        let slow = Behaviour { delay_in: 1, delay: Duration::from_millis(200), ..Behaviour::default() };
        let builder = rt.object(EXTENT as u64).writable(true).fill_window_pages(64).cache_limit((64 * PAGE) as u64);
        let object = builder.store(Box::new(VolatileStore(disk_of(EXTENT, slow)))).expect("object");
        let arena = rt.arena(EXTENT).delivery(mode).build().expect("arena");
        map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
        let (beside, _) = common::knob_object(&rt, 2 * EXTENT as u64, true);
        for p in 0..64 {
            assert_eq!(object.write_at((p * PAGE) as u64, &[0xee]).expect("write_at"), 1);
        }
        let done = AtomicBool::new(false);
        std::thread::scope(|s| {
            let _stop = common::StopOnDrop(&done);
            let syncer = s.spawn(|| object.sync_all());
            s.spawn(|| {
                while !done.load(Ordering::SeqCst) {
                    beside.populate(0..2 * EXTENT as u64).expect("populate");
                }
            });
            until("the store has them", || rt.stats()["nr_writeback"] > 0 || syncer.is_finished());
            assert_eq!(load(&arena, 65 * PAGE), Ok(common::byte_of(1, 65 * PAGE as u64)), "{mode:?}");
            syncer.join().expect("no panic").expect("sync_all");
        });
    });
}

/// Zeros; writes wait while the flag is set.
struct HangingStore(Arc<AtomicBool>);

impl Store for HangingStore {
    fn read(&self, _: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(0);
        Ok(())
    }
    fn write(&self, _: u64, _: &PageRef<'_>) -> Result<(), StoreError> {
        while self.0.load(Ordering::SeqCst) {
            std::thread::sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// What is dirty of an object whose store hangs stays where it is, and the pages of others come and go: read by whoever needs them,
/// or by a filler, of which the store that hangs has some.
#[test]
fn a_store_that_hangs_with_a_quarter_of_the_cache_keeps_nobody_else_waiting() {
    let _serial = serial();
    // The second has more in hand than all fillers of the process could write.
    for (limit, in_handler) in [(4 * EXTENT, true), (48 * EXTENT, false)] {
        beside_a_store_that_hangs(limit, in_handler);
    }
}

fn beside_a_store_that_hangs(limit: usize, in_handler: bool) {
    let rt = quiet(limit);
    let hangs = Arc::new(AtomicBool::new(true));
    let builder = rt.object((limit / 4) as u64).writable(true);
    let hung = builder.store(Box::new(HangingStore(Arc::clone(&hangs)))).expect("object");
    for p in 0..limit / 4 / PAGE {
        assert_eq!(hung.write_at((p * PAGE) as u64, &[1]).expect("write_at"), 1);
    }
    let (beside, _) = common::knob_object(&rt, 2 * limit as u64, in_handler);
    let done = AtomicBool::new(false);
    std::thread::scope(|s| {
        s.spawn(|| {
            // For hangs alone.
            for _ in 0..60_000 {
                if done.load(Ordering::SeqCst) {
                    return;
                }
                std::thread::sleep(Duration::from_millis(1));
            }
            hangs.store(false, Ordering::SeqCst);
        });
        let _stop = common::StopOnDrop(&done);
        for _ in 0..2 {
            beside.populate(0..2 * limit as u64).expect("populate");
        }
        let stats = rt.stats();
        assert!(hangs.swap(false, Ordering::SeqCst), "the others have waited for the store that hangs: {stats}");
    });
}

/// Pages that cannot go are left where they are, and the reclaimer leaves it at that.
#[test]
fn a_cache_full_of_what_cannot_go_is_left_alone() {
    let _serial = serial();
    let len = EXTENT;
    let rt = quiet(len);
    let object = rt.anonymous(len as u64).expect("object");
    let mode = if rt.delivery().is_available(Delivery::InThread) { Delivery::InThread } else { Delivery::Segv };
    let arena = rt.arena(len).delivery(mode).build().expect("arena");
    map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
    for p in 0..len / PAGE {
        assert_eq!(store(&arena, p * PAGE, 1), Ok(()));
    }
    let looks = || (rt.stats()["pgdeactivate"], rt.stats()["pgscan_kswapd"]);
    until("nobody looks any more", || {
        let before = looks();
        std::thread::sleep(Duration::from_millis(100));
        looks() == before
    });
    assert_eq!(rt.stats()["pgdeactivate"], 0, "zapped, and cannot go");
    // When something went, there is reason to look again.
    let scanned = rt.stats()["pgscan_kswapd"];
    let beside = rt.object(len as u64).handler_store(Box::new(Zeros)).expect("object");
    object.set_len((len - 64 * PAGE) as u64).expect("set_len");
    beside.populate(0..256 * PAGE as u64).expect("populate");
    until("it is woken", || rt.stats()["pgscan_kswapd"] > scanned);
}

#[derive(Debug)]
struct Zeros;

impl Store for Zeros {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(0);
        Ok(())
    }
}

#[expect(unsafe_code, reason = "a store that runs in the faulting thread")]
// SAFETY: stores to the page alone.
unsafe impl softfault::HandlerStore for Zeros {}

/// Fills all that it is asked for, and fails.
#[derive(Debug)]
struct FillsAndFails;

impl Store for FillsAndFails {
    fn read(&self, _pos_bytes: u64, page: &mut PageMut<'_>) -> Result<(), StoreError> {
        page.as_mut_slice().fill(0xee);
        Err(StoreError::Io(Errno::EIO))
    }
}

#[test]
fn windows_that_fail_take_no_memory() {
    let _serial = serial();
    setup();
    let limit = 4 * EXTENT;
    let builder = Runtime::builder().cache_limit(limit as u64).readahead_pages(0).fill_window_pages(512);
    let rt = builder.build().expect("runtime");
    let len = 16 * limit;
    let object = rt.object(len as u64).store(Box::new(FillsAndFails)).expect("object");
    let mode = if rt.delivery().is_available(Delivery::InThread) { Delivery::InThread } else { Delivery::Segv };
    let arena = rt.arena(len).delivery(mode).build().expect("arena");
    map(&arena, 0, &object, Prot::Read, Sharing::Shared);
    // One page of each window: the others are not read again, and so not counted again.
    for at in (0..len).step_by(EXTENT) {
        assert_eq!(load(&arena, at), Err(libc::SIGBUS), "at {at:#x}");
    }
    let allocated = rt.stats()["cache_bytes_allocated"];
    assert!(allocated <= (limit + (4 << 20)) as u64, "{allocated} bytes, and the limit is {limit}");
}

/// A granule in the middle of others cannot be hidden alone where the kernel is out of vmas; and not with all of its vma,
/// of which a system call uses a part.
#[test]
#[expect(unsafe_code, reason = "reads into an arena by a system call")]
fn a_pin_is_not_hidden_with_its_vma_when_the_table_of_mappings_is_full() {
    let out = common::child("a_pin_is_not_hidden_with_its_vma_when_the_table_of_mappings_is_full", "Segv", || {
        let rt = quiet(64 << 20);
        let len = 4 * EXTENT;
        let store_of = Box::new(VolatileStore(disk_of(len, Behaviour::default())));
        let object = rt.object(len as u64).writable(true).store(store_of).expect("object");
        let arena = rt.arena(len).delivery(Delivery::Segv).build().expect("arena");
        map(&arena, 0, &object, Prot::ReadWrite, Sharing::Shared);
        object.populate(0..len as u64).expect("populate");
        let _ = bytes(&arena, 2 * EXTENT..4 * EXTENT);
        let pin = arena.pin(0..16 * PAGE, Access::Write).expect("pin");
        let file = common::TempFile::new(16 * PAGE);
        let fd = std::fs::File::open(file.path()).expect("open");
        let _full = fill_the_table();
        let middle = (3 * EXTENT) as u64;
        object.evict(middle..middle + PAGE as u64).expect("evict");
        let at = pin.as_ptr().cast();
        // SAFETY: the pin's range, to which nobody has a reference.
        let n = unsafe { libc::pread(std::os::fd::AsRawFd::as_raw_fd(&fd), at, 16 * PAGE, 0) };
        assert_eq!(n, (16 * PAGE).cast_signed(), "{}", std::io::Error::last_os_error());
        same("read into the pin", &bytes(&arena, 0..16 * PAGE), &file.data);
        same("the rest", &bytes(&arena, 2 * EXTENT..4 * EXTENT), &content(1, 2 * EXTENT as u64..4 * EXTENT as u64));
    });
    common::ended(out, Ok(0));
}

#[cfg(debug_assertions)]
mod stopped {
    use super::*;
    use softfault_mm::trace::{Point, arm_gate, disarm, is_caught};

    /// Opens the gate also when the test fails, so that nobody stands there for ever.
    pub(super) struct Gate(Point);

    impl Gate {
        pub(super) fn arm(point: Point) -> Self {
            arm_gate(point);
            Self(point)
        }
        pub(super) fn until_caught(&self) {
            until("somebody comes by", || is_caught(self.0));
        }
    }

    impl Drop for Gate {
        fn drop(&mut self) {
            disarm(self.0);
        }
    }

    /// Gives the others time to do what they must not do. It can only make a failure be seen, never cause one.
    pub(super) fn linger() {
        std::thread::sleep(Duration::from_millis(20));
    }

    /// Nobody maps the object, so nothing waits for reclaim's section before its number is withdrawn.
    #[test]
    fn an_object_dropped_with_a_page_in_reclaims_hand() {
        let _serial = serial();
        let rt = quiet(2 * EXTENT);
        let first = object_of(&rt, EXTENT);
        first.populate(0..EXTENT as u64).expect("populate");
        let beside = object_of(&rt, 2 * EXTENT);
        let gate = Gate::arm(Point::EVICT_TAKEN);
        std::thread::scope(|s| {
            let presser = s.spawn(|| beside.populate(0..2 * EXTENT as u64).expect("populate"));
            gate.until_caught();
            let dropper = s.spawn(move || drop(first));
            linger();
            drop(gate);
            assert!(presser.join().is_ok() && dropper.join().is_ok());
        });
        until("pages counted are pages cached", || rt.stats()["nr_cached_pages"] == beside.cached_pages());
        beside.evict(0..2 * EXTENT as u64).expect("evict");
        if !rt.delivery().is_available(Delivery::InThread) {
            println!("nothing is handed over: {}", rt.delivery());
            return;
        }
        // The first free range, which was the dropped object's.
        let next = object_of(&rt, EXTENT);
        next.populate(0..EXTENT as u64).expect("populate");
        let arena = rt.arena(EXTENT).delivery(Delivery::InThread).build().expect("arena");
        map(&arena, 0, &next, Prot::Read, Sharing::Shared);
        assert_eq!(arena.promote(0..EXTENT).expect("promote"), 1, "an eviction that nobody ends");
    }

    /// Everything is pinned but what a reclaimer has in hand, which does not run for longer than a thread would look for room by
    /// itself: the thread waits for that one, and is not told that there is no memory.
    #[test]
    fn a_full_cache_waits_for_pages_in_another_reclaimers_hand() {
        const LIMIT: usize = 128 * PAGE;
        const IN_HAND: usize = 4 * PAGE;
        let _serial = serial();
        common::each_mode("in another's hand", |_, mode| {
            let rt = quiet(64 << 20);
            let object = object_of(&rt, EXTENT);
            let arena = rt.arena(EXTENT).delivery(mode).build().expect("arena");
            map(&arena, 0, &object, Prot::Read, Sharing::Shared);
            object.populate(0..LIMIT as u64).expect("populate");
            let pin = arena.pin(0..LIMIT - IN_HAND, Access::Read).expect("pin");
            // Entries that name nothing any more: by the length of the queues no page is missing from them.
            let gone = object_of(&rt, EXTENT);
            gone.populate(0..6 * PAGE as u64).expect("populate");
            gone.advise(0..6 * PAGE as u64, Advice::Cold).expect("advise");
            gone.evict(0..6 * PAGE as u64).expect("evict");
            let gate = Gate::arm(Point::EVICT_PUNCH);
            std::thread::scope(|s| {
                let reclaimer = s.spawn(|| object.evict((LIMIT - IN_HAND) as u64..LIMIT as u64));
                gate.until_caught();
                rt.set_cache_limit(LIMIT as u64);
                let toucher = s.spawn(|| load(&arena, LIMIT));
                // Longer than it took until a thread was told, and a monitored one.
                let held = if mode == Delivery::Monitor { 2_500 } else { 600 };
                std::thread::sleep(Duration::from_millis(held));
                let early = toucher.is_finished();
                drop(gate);
                let touched = toucher.join().expect("the thread that touches");
                assert_eq!(touched, Ok(content(1, LIMIT as u64..LIMIT as u64 + 1)[0]), "{mode:?}: told of no memory");
                assert!(!early, "{mode:?}: there was no room yet");
                assert_eq!(reclaimer.join().expect("the reclaimer").expect("evict"), IN_HAND as u64 / PAGE as u64);
            });
            drop(pin);
            assert_eq!(rt.stats().reason(VmFaultReason::OOM), 0, "{mode:?}: {}", rt.stats());
        });
    }

    /// The flusher looks at an object that the program lets go of, and the runtime with it: drop returns when everything is
    /// in the store, and nothing ends on the flusher's thread.
    #[test]
    fn an_object_dropped_while_the_flusher_looks_at_it() {
        let _serial = serial();
        setup();
        let builder = Runtime::builder().cache_limit(64 << 20).writeback(Duration::from_millis(1), HOUR);
        let rt = builder.build().expect("runtime");
        // Nobody else waits for helpers, or joins them.
        let other = quiet(64 << 20);
        let disk = disk_of(EXTENT, Behaviour::default());
        let object = rt.object(EXTENT as u64).writable(true).store(Box::new(VolatileStore(Arc::clone(&disk))));
        let object = object.expect("object");
        let gate = Gate::arm(Point::FLUSHER_HOLDS);
        gate.until_caught();
        assert_eq!(object.write_at(17, &[0xee]).expect("write_at"), 1);
        let mut model = content(1, 0..EXTENT as u64);
        model[17] = 0xee;
        std::thread::scope(|s| {
            let dropper = s.spawn(|| {
                drop((object, rt));
                disk.content() == model
            });
            linger();
            drop(gate);
            assert!(dropper.join().expect("no panic"), "drop has returned, and the store has not what was written");
        });
        drop(other);
    }
}
