//! The walk of one fault, bit by bit: who produces each reason bit, and what is left behind.
#![cfg(not(loom))]
#![forbid(unsafe_code)]

mod support;

use softfault_mm::ctx::Ctx;
use softfault_mm::errno::Errno;
use softfault_mm::extent::ExtentState;
use softfault_mm::failing::Asked;
use softfault_mm::filemap;
use softfault_mm::folio::{DIRTY, DSYNCED, OVERDUE, REFERENCED, State, UNMAPPED};
use softfault_mm::host::{AddressSpace, BATCH, Batch, Woken};
use softfault_mm::mapping::FailurePolicy;
use softfault_mm::ops::Installed;
use softfault_mm::page::{EXTENT_PAGES, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::rmap;
use softfault_mm::shmem::{self, ShmemVmOps};
use softfault_mm::types::{FaultFlags, FillError, VmFaultReason, VmFlags};
use softfault_mm::vma::{VmFault, VmOps};
use softfault_mm::vmscan;
use softfault_mm::vmstat::Event;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::{Call, Content, MapSpec, ObjectSpec, World, arena_base, lock};

type R = VmFaultReason;

const READ: FaultFlags = FaultFlags::USER;
const WRITE: FaultFlags = FaultFlags::WRITE;

const RO: VmFlags = VmFlags::READ.union(VmFlags::SHARED);
const RW: VmFlags = VmFlags::READ.union(VmFlags::WRITE).union(VmFlags::MAYWRITE);
const SHARED: VmFlags = RW.union(VmFlags::SHARED).union(VmFlags::WP_SYNC);
/// One page a fault, so that a test knows which.
const SINGLE: VmFlags = VmFlags::MAP_SINGLE;

static PLAIN: ShmemVmOps = ShmemVmOps { mkwrite: false };

fn spec(flags: VmFlags, nr: usize) -> MapSpec {
    MapSpec { arena: 0, at: 0, nr, object: 0, pgoff: 0, flags, ops: &PLAIN, granule_pages: 0, delegation: None }
}

/// A world of one object, mapped whole with `flags`.
fn world(object: ObjectSpec, flags: VmFlags) -> World {
    let w = World::new(&[object], 2);
    assert!(w.map(spec(flags, object.max_pages)));
    w
}

/// Address of page `p`.
fn at(p: usize) -> usize {
    arena_base(0) + (p << PAGE_SHIFT)
}

fn state(w: &World, p: u64) -> State {
    w.word(0, p).load().state()
}

// --- Each bit ---------------------------------------------------------------------------------------------------------

#[test]
fn major_is_a_page_from_the_store_and_minor_one_from_the_cache() {
    let w = world(ObjectSpec::pages(4), RO | SINGLE);
    assert_eq!(w.fault(at(1), READ), R::MAJOR | R::LOCKED);
    assert_eq!(w.read(at(1)), Content::pattern(0, 1));
    w.kernel.zap(at(1));
    assert_eq!(w.fault(at(1), READ), R::LOCKED, "cached: the store is not asked");
    assert_eq!((w.stat.event(Event::PGMAJFAULT), w.stat.event(Event::PGMINFAULT)), (1, 1));
    assert_eq!(w.stat.event(Event::PGFAULT), 2);
    assert_eq!(w.stat.reason_count(R::MAJOR), 1, "each bit is counted where it is produced");
    w.check_quiescent();
}

#[test]
fn oom_is_a_limit_below_what_cannot_go() {
    let w = world(ObjectSpec::pages(4), RO | SINGLE);
    w.account.limit_pages.store(1, Ordering::Relaxed);
    assert_eq!(w.fault(at(0), READ), R::MAJOR | R::LOCKED);
    w.word(0, 0).try_pin(0).expect("cached");
    assert_eq!(w.fault(at(1), READ), R::OOM, "the only page is in use");
    assert_eq!(state(&w, 1), State::Absent, "nothing is claimed beyond the limit");
    w.word(0, 0).unpin();
    w.check_quiescent();
    assert_eq!(w.fault(at(1), READ), R::MAJOR | R::LOCKED, "reclaim makes room");
    assert_eq!(state(&w, 0), State::Absent);
    w.check_quiescent();
}

#[test]
fn a_poisoned_page_heals_in_a_full_cache() {
    for ra_pages in [0, 16] {
        let w = world(ObjectSpec { ra_pages, ..ObjectSpec::pages(2) }, RO | SINGLE);
        lock(&w.objects[0].store.bad).insert(1, FillError::Io(Errno::EIO));
        assert_eq!(w.fault(at(1), READ), R::MAJOR | R::SIGBUS);
        lock(&w.objects[0].store.bad).clear();
        w.account.limit_pages.store(1, Ordering::Relaxed);
        w.read(at(0));
        assert_eq!(w.fault(at(1), READ), R::MAJOR | R::LOCKED, "to make room is not to ask the store");
        w.check_quiescent();
    }
}

#[test]
fn a_fault_in_a_full_cache_reclaims_by_itself() {
    let flags = RW | VmFlags::SHARED | VmFlags::WP_ASYNC;
    let w = world(ObjectSpec { handler_safe: false, ..ObjectSpec::pages(64) }, flags);
    w.account.limit_pages.store(4, Ordering::Relaxed);
    for turn in 0..3u8 {
        for p in 0..64 {
            w.access(&Ctx::handler(0, false, 0, None), at(p), Some(turn));
            assert!(w.account.nr_pages.load(Ordering::Relaxed) <= 4, "the limit holds");
        }
        for p in (0..64).rev() {
            assert_eq!(w.read(at(p)), turn, "page {p}");
        }
    }
    assert!(w.stat.event(Event::PGSTEAL) > 100 && w.stat.event(Event::PGPGOUT) > 100);
    w.check_quiescent();
}

/// A batch is filled from both ends, by what is to be written and by what is taken out of an exclusive object, while a
/// block of a third object, whose punch costs much, has it grow.
#[test]
fn a_batch_that_is_filled_from_both_ends_has_an_end() {
    let specs = [ObjectSpec::pages(BATCH), ObjectSpec { exclusive: true, ..ObjectSpec::pages(3 * BATCH) }];
    // The order of what is on probation: object, first page, last page.
    let queues: [&[(usize, u64, u64)]; 2] = [&[(0, 0, 1), (1, 0, 190)], &[(1, 0, 63), (0, 0, 64)]];
    for queue in queues {
        let w = World::new(&specs, 9);
        w.account.limit_pages.store(2048, Ordering::Relaxed);
        for arena in 0..9 {
            assert!(w.map(MapSpec { arena, ..spec(SHARED, BATCH) }), "many mappings: taken by blocks");
        }
        for (object, from, to) in queue {
            w.populate(*object, *from, *to);
        }
        // All but the first page of the block are to be written.
        let m = w.objects[0].mapping;
        for p in (1..BATCH as u64).filter(|p| m.is_cached(*p)) {
            w.word(0, p).try_pin(DIRTY).expect("cached");
            m.account_dirtied(1);
            w.word(0, p).unpin();
        }
        w.drain_queues();
        for (object, from, to) in queue {
            w.put_on_probation(*object, *from, *to);
        }
        let before = w.cached().len() as u64;
        let done = vmscan::shrink(w.env(), w.account, w.stat, 0);
        assert_eq!(before - w.cached().len() as u64, done.freed, "{queue:?}");
        assert!(done.freed >= 63, "{queue:?}: {done:?}");
        w.run_fillers();
        w.check_quiescent();
        assert_eq!(w.drain_queues(), w.cached(), "{queue:?}: every cached page stands in one queue, once");
    }
}

/// ```text
/// who takes a page out                      reclaim
/// evicting; the store is asked
///                                           pops its entry: the page is leaving, so the entry is void
/// the store fails: the page stays
/// ```
/// What no queue names never leaves, though the store is well again.
#[test]
fn a_page_that_stays_after_all_stands_in_a_queue() {
    let specs = [ObjectSpec { exclusive: true, ..ObjectSpec::pages(4) }];
    // The entries are gone, or come when it is over.
    for popped in [true, false] {
        let w: &'static World = Box::leak(Box::new(World::new(&specs, 1)));
        let (m, disk) = (w.objects[0].mapping, w.objects[0].store);
        w.populate(0, 0, 4);
        disk.punch_fails.store(true, Ordering::Relaxed);
        if popped {
            disk.set_hook(|_| vmscan::prune(w.env(), w.account));
        }
        assert_eq!(vmscan::evict_exclusive(w.env(), m, 0, 4, true), 0, "the store takes nothing");
        disk.clear_hook();
        disk.punch_fails.store(false, Ordering::Relaxed);
        assert_eq!(w.cached().len(), 4);
        assert_eq!(w.drain_queues(), w.cached(), "every cached page stands in one queue, once; popped: {popped}");
        assert_eq!(vmscan::evict_exclusive(w.env(), m, 0, 4, true), 4, "it has healed");
        w.check_quiescent();
    }
}

/// The same where reclaim itself has popped the entries.
#[test]
fn a_page_that_reclaim_cannot_drop_stands_in_a_queue() {
    for exclusive in [false, true] {
        let w = World::new(&[ObjectSpec { exclusive, ..ObjectSpec::pages(4) }], 1);
        w.account.limit_pages.store(4, Ordering::Relaxed);
        w.populate(0, 0, 4);
        w.drain_queues();
        w.put_on_probation(0, 0, 4);
        w.objects[0].store.punch_fails.store(true, Ordering::Relaxed);
        let freed = (0..8).map(|_| vmscan::shrink(w.env(), w.account, w.stat, 0).freed).sum::<u64>();
        assert_eq!(freed, 0, "the store drops nothing");
        assert_eq!(w.drain_queues(), w.cached(), "every cached page stands in one queue, once; exclusive: {exclusive}");
        w.check_quiescent();
    }
}

/// A world of an object with a limit of four pages of its own, which are cached.
fn world_with_own_limit() -> &'static World {
    let w = Box::leak(Box::new(World::new(&[ObjectSpec::pages(8)], 1)));
    w.objects[0].mapping.own_limit.store(4, Ordering::Relaxed);
    assert!(w.map(spec(SHARED | SINGLE, 8)));
    w.populate(0, 0, 4);
    w
}

#[test]
fn an_own_limit_waits_for_pages_that_are_being_written() {
    let w = world_with_own_limit();
    let account = w.account;
    for p in 0..4 {
        w.word(0, p).try_pin(DIRTY).expect("cached");
        w.word(0, p).unpin();
        w.word(0, p).try_writeback().expect("dirty");
    }
    let naps = Arc::new(AtomicU64::new(0));
    let slept = Arc::clone(&naps);
    w.set_sleep(move |_| {
        // Another object gets on all the time, and cuts the naps short; the store takes longer.
        let _ = account.progressed();
        if slept.fetch_add(1, Ordering::Relaxed) == 6_000 {
            (0..4).for_each(|p| assert!(!w.word(0, p).end_writeback(0).1));
        }
        Woken::LookAgain
    });
    assert_eq!(w.fault(at(5), READ), R::MAJOR | R::LOCKED);
    assert!(naps.load(Ordering::Relaxed) > 6_000);
    w.check_quiescent();
}

#[test]
fn an_own_limit_waits_for_pages_that_are_being_filled() {
    let w = world_with_own_limit();
    let m = w.objects[0].mapping;
    assert_eq!(w.reclaim(0, 0, 4), 4);
    let claim = filemap::claim_run(m, 0, 0, 4).expect("room").expect("absent");
    let (mut claim, mut naps) = (Some(claim), 0);
    w.set_sleep(move |_| {
        naps += 1;
        if naps == 100
            && let Some(claim) = claim.take()
        {
            filemap::read_claimed(m, w, 0, claim).expect("the store is well");
        }
        Woken::LookAgain
    });
    assert_eq!(w.fault(at(5), READ), R::MAJOR | R::LOCKED);
    w.check_quiescent();
}

/// The same for the limit of the whole cache: a slow store that fills all of it is no reason for OOM.
#[test]
fn a_cache_waits_for_pages_that_are_being_filled() {
    let w = Box::leak(Box::new(World::new(&[ObjectSpec::pages(8)], 1)));
    w.account.limit_pages.store(4, Ordering::Relaxed);
    assert!(w.map(spec(SHARED | SINGLE, 8)));
    let (w, m) = (&*w, w.objects[0].mapping);
    let claim = filemap::claim_run(m, 0, 0, 4).expect("room").expect("absent");
    let (mut claim, mut naps) = (Some(claim), 0);
    w.set_sleep(move |_| {
        naps += 1;
        if naps == 1_000
            && let Some(claim) = claim.take()
        {
            filemap::read_claimed(m, w, 0, claim).expect("the store is well");
        }
        Woken::LookAgain
    });
    assert_eq!(w.fault(at(5), READ), R::MAJOR | R::LOCKED);
    w.check_quiescent();
}

#[test]
fn an_own_limit_of_pinned_pages_is_oom_however_others_get_on() {
    let w = world_with_own_limit();
    let account = w.account;
    (0..4).for_each(|p| _ = w.word(0, p).try_pin(0).expect("cached"));
    w.set_sleep(move |_| {
        let _ = account.progressed();
        Woken::LookAgain
    });
    assert_eq!(w.fault(at(5), READ), R::OOM);
    (0..4).for_each(|p| w.word(0, p).unpin());
    w.check_quiescent();
}

/// What nobody pays for takes no memory: a store may have filled any part of a window before it fails.
#[test]
fn a_read_that_fails_leaves_no_memory_behind() {
    for ahead in [false, true] {
        let w = World::new(&[ObjectSpec::pages(8)], 1);
        let m = w.objects[0].mapping;
        lock(&w.objects[0].store.bad).insert(3, FillError::Io(Errno::EIO));
        let claim = filemap::claim_run(m, 0, 0, 8).expect("room").expect("absent");
        let claim = if ahead { claim.into_ahead() } else { claim };
        assert_eq!(filemap::read_claimed(m, &w, 0, claim), Err(FillError::Io(Errno::EIO)));
        let there: Vec<_> = (0..8).filter(|p| w.kernel.alias(0, *p).is_some()).collect();
        assert_eq!(there, [0, 1, 2], "ahead: {ahead}");
        w.check_quiescent();
    }
}

/// The claim is what keeps the cache: once it is released, the object may be dropped, and the runtime with it.
#[test]
fn the_reclaimer_is_woken_before_the_claim_is_released() {
    let w = world(ObjectSpec::pages(64), RO | SINGLE);
    w.account.limit_pages.store(64, Ordering::Relaxed);
    let _ = w.account.doze();
    for p in 0..64 {
        // `World::wake` looks whether anybody holds an object.
        w.read(at(p));
    }
    assert!(!w.account.rouse(), "it was woken");
    w.check_quiescent();
}

#[test]
fn a_limit_shortens_the_fill_window_before_it_refuses() {
    let w = world(ObjectSpec { fill_window: 4, ..ObjectSpec::pages(4) }, RO);
    w.account.limit_pages.store(3, Ordering::Relaxed);
    assert_eq!(w.read(at(0)), Content::pattern(0, 0));
    assert_eq!(w.account.nr_pages.load(Ordering::Relaxed), 3);
    assert_eq!(state(&w, 3), State::Absent);
    w.check_quiescent();
}

#[test]
fn oom_is_also_a_page_whose_pins_are_exhausted() {
    let w = world(ObjectSpec::pages(1), RO | SINGLE);
    w.read(at(0));
    w.kernel.zap(at(0));
    let mut pins = 0;
    while w.word(0, 0).try_pin(0).is_ok() {
        pins += 1;
    }
    assert_eq!(w.fault(at(0), READ), R::OOM, "{pins} pins");
    for _ in 0..pins {
        w.word(0, 0).unpin();
    }
    assert_eq!(w.fault(at(0), READ), R::LOCKED);
}

/// Takes every pin that page 0 has; drop them by [`put_pins`].
fn take_pins(w: &World) -> usize {
    (0..).take_while(|_| w.word(0, 0).try_pin(0).is_ok()).count()
}

fn put_pins(w: &World, nr: usize) {
    (0..nr).for_each(|_| w.word(0, 0).unpin());
}

#[test]
fn a_store_is_found_though_the_page_has_no_pin_left() {
    let w = world(ObjectSpec::pages(1), RW | VmFlags::SHARED | VmFlags::WP_ASYNC | SINGLE);
    w.read(at(0));
    w.access(&Ctx::handler(0, false, 0, None), at(0), Some(7));
    assert!(!w.word(0, 0).load().has(DIRTY), "the kernel alone knows of the store");
    let pins = take_pins(&w);
    assert_eq!(w.write_back(0, 0, 1, true), Ok(0), "{pins} pins: it may be stored to all the time");
    assert!(w.word(0, 0).load().has(DIRTY), "{pins} pins, and the store is lost");
    put_pins(&w, pins);
    assert_eq!(w.write_back(0, 0, 1, true), Ok(1));
    assert_eq!(lock(&w.objects[0].store.content).page(0)[0], 7);
    w.check_quiescent();
}

#[test]
fn a_flush_that_fails_loses_no_page_that_has_no_pin_left() {
    let w = world(ObjectSpec::pages(1), RW | VmFlags::SHARED | VmFlags::WP_ASYNC | SINGLE);
    w.access(&Ctx::handler(0, false, 0, None), at(0), Some(7));
    assert_eq!(w.write_back(0, 0, 1, true), Ok(1));
    let pins = take_pins(&w);
    assert_eq!(w.sync(0, false), [0u64; 0], "{pins} pins: it is cached, and no page is lost");
    put_pins(&w, pins);
    assert_eq!(w.write_back(0, 0, 1, true), Ok(1), "it is dirty again");
    w.check_quiescent();
}

/// Takes page 0 out of its mapping, as reclaim does.
fn unmap(w: &World) {
    let mapping = w.objects[0].mapping;
    w.word(0, 0).try_unmap().expect("idle");
    w.with_rmap(&mut |r| {
        let batch = &mut Batch::new();
        rmap::try_to_unmap(r, mapping, &[(0, 0)], &mut batch.zaps);
    });
    w.word(0, 0).unpin();
}

/// What was said of the entries was of another process's: the note is gone with the zap, and nobody knows whether there was one.
#[test]
fn a_zapped_page_of_which_nobody_vouches_is_dirty() {
    for lies in [false, true] {
        let w = world(ObjectSpec::pages(1), RW | VmFlags::SHARED | VmFlags::WP_ASYNC | SINGLE);
        w.read(at(0));
        if lies {
            w.access(&Ctx::handler(0, false, 0, None), at(0), Some(7));
            w.kernel.tells_anothers.store(true, Ordering::Relaxed);
        }
        unmap(&w);
        assert_eq!(w.word(0, 0).load().has(DIRTY), lies, "tells another's: {lies}");
        w.kernel.tells_anothers.store(false, Ordering::Relaxed);
        assert_eq!(w.write_back(0, 0, 1, true), Ok(u64::from(lies)));
        w.check_quiescent();
    }
}

/// ```text
/// reclaim                                   another
/// looks, by the number as it was: another's
/// zaps; looks again: another's
///                                           finds that out, and takes another number
/// is the number ours? it is, by now
/// ```
#[test]
fn a_zapped_page_is_dirty_if_the_number_was_exchanged_after_the_looks() {
    let w = world(ObjectSpec::pages(1), RW | VmFlags::SHARED | VmFlags::WP_ASYNC | SINGLE);
    w.read(at(0));
    w.access(&Ctx::handler(0, false, 0, None), at(0), Some(7));
    let kernel = w.kernel;
    kernel.tells_anothers.store(true, Ordering::Relaxed);
    kernel.after_look(move || {
        kernel.after_look(move || {
            kernel.asked.fetch_add(1, Ordering::Relaxed);
            kernel.tells_anothers.store(false, Ordering::Relaxed);
        });
    });
    unmap(&w);
    assert!(!kernel.tells_anothers.load(Ordering::Relaxed), "both looks were made");
    assert!(w.word(0, 0).load().has(DIRTY), "the looks were another's, and the store is lost");
    assert_eq!(w.write_back(0, 0, 1, true), Ok(1));
    w.check_quiescent();
}

/// ```text
/// reclaim                                   who maps                            another
/// looks: nothing is mapped
///                                           pins: REFERENCED; [bit]
/// forgets the bit; zaps
/// looks: somebody came -> dirty
///                                           maps
///                                                                               stores; the kernel reclaims
///                                                                               scans: empty, no bit; but dirty
///                                           bit; unpins
/// ```
/// A page that is pinned is not written back, so it stays dirty until the bit is there again.
#[test]
fn what_is_noted_before_a_zap_and_mapped_after_it_is_dirty_until_it_is_noted_again() {
    let w = world(ObjectSpec::pages(1), RW | VmFlags::SHARED | VmFlags::WP_ASYNC | SINGLE);
    w.read(at(0));
    w.kernel.zap(at(0));
    w.extent(0, 0).note_zapped(0, 1);
    let (word, extent) = (w.word(0, 0), w.extent(0, 0));
    w.kernel.after_look(move || {
        word.try_pin(REFERENCED).expect("cached");
        extent.note_install(0, 1);
    });
    unmap(&w);
    assert_eq!(w.install(at(0)), Installed::All);
    w.access(&Ctx::handler(0, false, 0, None), at(0), Some(7));
    w.kernel.empty(at(0), at(1));
    assert_eq!(w.write_back(0, 0, 1, true), Ok(0), "who maps it is not done");
    assert!(word.load().has(DIRTY), "a scan passes over the store");
    extent.note_mapped(0, 1);
    word.unpin();
    assert_eq!(w.write_back(0, 0, 1, true), Ok(1));
    assert_eq!(lock(&w.objects[0].store.content).page(0)[0], 7);
    w.check_quiescent();
}

/// The kernel refuses to unmap a page (it is short of memory, say): that it is mapped must not be forgotten, or what becomes of
/// its entry later says nothing of a store.
#[test]
fn a_page_that_could_not_be_unmapped_is_known_to_be_mapped() {
    let w = world(ObjectSpec::pages(1), RW | VmFlags::SHARED | VmFlags::WP_ASYNC | SINGLE);
    w.read(at(0));
    w.kernel.refuse(1);
    unmap(&w);
    w.kernel.refuse(0);
    assert!(w.extent(0, 0).maybe_mapped(0), "it is mapped, and nobody knows");
    let _ = w.write_back(0, 0, 1, true);
    w.access(&Ctx::handler(0, false, 0, None), at(0), Some(7));
    w.kernel.empty(at(0), at(1));
    assert_eq!(w.write_back(0, 0, 1, true), Ok(1), "a store to it is not found");
    assert_eq!(lock(&w.objects[0].store.content).page(0)[0], 7);
    w.check_quiescent();
}

#[test]
fn sigbus_is_a_page_past_the_end() {
    let object = ObjectSpec { len_bytes: PAGE_SIZE as u64 + 1, fill_window: 4, ..ObjectSpec::pages(4) };
    let w = world(object, SHARED);
    assert_eq!(w.fault(at(2), READ), R::SIGBUS);
    assert_eq!(w.fault(at(2), WRITE), R::SIGBUS);
    assert_eq!(w.read(at(1)), Content::pattern(0, 1), "the last page exists, though it is used by one byte");
    let log = lock(&w.objects[0].store.log).clone();
    assert_eq!(log, [Call::Read(0, 2)], "a window ends where the object does");
    w.check_quiescent();
}

#[test]
fn truncate_takes_pages_away_and_growing_brings_zeros() {
    let w = world(ObjectSpec::pages(4), SHARED);
    assert_eq!(w.access(&Ctx::handler(0, false, 0, None), at(3), Some(7)).0, Some(7));
    w.truncate(0, 2 << PAGE_SHIFT);
    assert_eq!(w.fault(at(3), READ), R::SIGBUS);
    w.truncate(0, 4 << PAGE_SHIFT);
    assert_eq!(w.read(at(3)), 0);
    w.check_quiescent();
}

#[test]
fn sigbus_is_a_store_that_failed_and_the_next_touch_heals() {
    let w = world(ObjectSpec::pages(4), RO | SINGLE);
    for error in [FillError::Io(Errno::EIO), FillError::Short] {
        lock(&w.objects[0].store.bad).insert(1, error);
        assert_eq!(w.fault(at(1), READ), R::MAJOR | R::SIGBUS);
        assert_eq!(state(&w, 1), State::Poisoned);
        assert_eq!(w.word(0, 1).load().error(), error, "the word keeps the reason");
        assert!(w.kernel.alias(0, 1).is_none(), "what the store left half-written is gone");
        w.check_quiescent();
    }
    lock(&w.objects[0].store.bad).clear();
    assert_eq!(w.fault(at(1), READ), R::MAJOR | R::LOCKED, "the first touch after the store recovered");
    assert_eq!(w.read(at(1)), Content::pattern(0, 1));
    assert_eq!(w.stat.event(Event::PGPOISON), 2);
    w.check_quiescent();
}

#[test]
fn hwpoison_is_content_that_fails_its_check() {
    let w = world(ObjectSpec::pages(4), RO | SINGLE);
    lock(&w.objects[0].store.bad).insert(1, FillError::Corrupt);
    assert_eq!(w.fault(at(1), READ), R::MAJOR | R::HWPOISON);
    w.check_quiescent();
}

#[test]
fn hwpoison_is_also_a_pinned_page_that_cannot_be_installed() {
    let w = world(ObjectSpec::pages(4), RO);
    w.read(at(1));
    w.kernel.zap(at(1));
    w.kernel.answer(Some(Installed::Broken));
    assert_eq!(w.fault(at(1), READ), R::LOCKED | R::HWPOISON);
    w.check_quiescent();
}

#[test]
fn the_kernels_other_answers_are_no_errors_of_the_page() {
    let w = world(ObjectSpec::pages(4), RO);
    w.read(at(1));
    w.kernel.zap(at(1));
    let answers = [(Installed::Again, R::NOPAGE), (Installed::Gone, R::NOPAGE), (Installed::NoMemory, R::OOM)];
    for (answer, bit) in answers {
        w.kernel.answer(Some(answer));
        assert_eq!(w.fault(at(1), READ), R::LOCKED | bit, "{answer:?}");
        w.check_quiescent();
    }
}

#[test]
fn sigsegv_is_an_access_that_the_vma_does_not_permit() {
    let w = world(ObjectSpec::pages(4), RO);
    assert_eq!(w.fault(at(0), WRITE), R::SIGSEGV);
    w.protect(at(0), at(1), false, false);
    assert_eq!(w.fault(at(0), READ), R::SIGSEGV);
    assert_eq!(w.objects[0].store.calls(|_| true), 0, "the store is not asked for what is not permitted");
    let ctx = Ctx::handler(0, false, 0, None);
    let outside = softfault_mm::fault::do_user_addr_fault(w.env(), &ctx, at(4), READ);
    assert_eq!(outside, None, "no vma: the fault is somebody else's");
}

#[test]
fn nopage_is_a_page_that_somebody_mapped_meanwhile() {
    for flags in [RO, RO | SINGLE, RW, SHARED] {
        let w = world(ObjectSpec::pages(1), flags);
        w.read(at(0));
        assert!(w.fault(at(0), READ).intersects(R::NOPAGE), "{flags:?}");
        assert!(w.stat.event(Event::MAP_EEXIST) > 0);
        w.check_quiescent();
    }
}

#[test]
fn locked_comes_with_the_folio_pinned() {
    let w = world(ObjectSpec::pages(1), SHARED);
    w.read(at(0));
    let ctx = Ctx::handler(0, false, 0, None);
    for (flags, dirty) in [(READ, false), (WRITE, true)] {
        let r = AddressSpace::with_vma(&w, at(0), &mut |vma| {
            let mut vmf = VmFault::new(&ctx, vma, at(0), flags);
            let r = shmem::fault(&mut vmf);
            let word = vmf.folio.expect("LOCKED comes with a folio");
            assert_eq!((word.load().pins(), word.load().has(DIRTY)), (1, dirty), "one CAS pins and marks");
            word.unpin();
            r
        });
        assert_eq!(r, Some(R::LOCKED));
    }
}

#[test]
fn retry_is_what_may_not_wait() {
    let w = world(ObjectSpec { staging: true, ..ObjectSpec::pages(2) }, RO | SINGLE);
    w.map(MapSpec { arena: 1, ..spec(RW, 2) });
    assert_eq!(w.fault(at(0), READ | FaultFlags::RETRY_NOWAIT), R::RETRY);
    assert_eq!(w.fault(arena_base(1), WRITE | FaultFlags::RETRY_NOWAIT), R::RETRY);
    assert_eq!(w.objects[0].store.calls(|_| true), 0);
    w.check_quiescent();
    w.read(at(0));
    w.kernel.zap(at(0));
    assert_eq!(w.fault(at(0), READ | FaultFlags::RETRY_NOWAIT), R::LOCKED, "what is cached needs no wait");
}

#[test]
fn retry_comes_back_when_no_filler_has_room() {
    let w = world(ObjectSpec { handler_safe: false, ..ObjectSpec::pages(1) }, RO);
    *lock(&w.queue) = None;
    assert_eq!(w.fault(at(0), READ), R::MAJOR | R::RETRY, "the instruction runs again, and traps again");
    assert!(w.relaxed.load(Ordering::Relaxed) > 0, "gave way between the attempts");
    assert_eq!(state(&w, 0), State::Absent);
    w.check_quiescent();
}

#[test]
fn fallback_is_consumed_and_counted() {
    let w = world(ObjectSpec::pages(4), RO | SINGLE | VmFlags::NATIVE_OK);
    let r = w.fault(at(0), READ);
    assert_eq!(r, R::MAJOR | R::LOCKED, "no huge mapping is no error of the access");
    assert_eq!(w.stat.reason_count(R::FALLBACK), 2, "one for each attempt");
}

#[test]
fn a_complete_extent_is_handed_over_and_taken_back_before_reclaim() {
    let nr = EXTENT_PAGES;
    let w = world(ObjectSpec { fill_window: 512, ..ObjectSpec::pages(nr) }, RO | VmFlags::NATIVE_OK);
    assert_eq!(w.fault(at(9), READ), R::MAJOR | R::NOPAGE, "the kernel resolves it when the instruction runs again");
    assert_eq!(w.read(at(9)), Content::pattern(0, 9));
    let chunk = &w.objects[0].mapping.chunks[0];
    assert_eq!((chunk.nr_native(), w.stat.event(Event::EXTENT_PROMOTE)), (1, 1));
    assert_eq!(w.evict(0, 3, 4, true), 1);
    assert_eq!(chunk.nr_native(), 0, "nothing leaves the cache under a native extent");
    assert_eq!(w.read(at(3)), Content::pattern(0, 3));
    w.check_quiescent();
}

#[test]
fn a_writable_extent_is_tracked_and_all_of_it_is_dirty() {
    let flags = RW | VmFlags::SHARED | VmFlags::WP_ASYNC | VmFlags::NATIVE_OK;
    let w = world(ObjectSpec { fill_window: 512, ..ObjectSpec::pages(EXTENT_PAGES) }, flags);
    assert_eq!(w.fault(at(0), READ), R::MAJOR | R::NOPAGE);
    assert!(w.objects[0].mapping.folios.iter().all(|f| f.load().has(DIRTY)), "in between nobody noted stores");
    assert_eq!(w.extent(0, 0).state(), ExtentState::Tracked);
    w.check_quiescent();
}

#[test]
fn done_cow_is_a_private_copy_past_the_cache() {
    let w = world(ObjectSpec { staging: true, ..ObjectSpec::pages(2) }, RW);
    assert_eq!(w.fault(at(1) + 5, WRITE), R::MAJOR | R::DONE_COW);
    assert_eq!(state(&w, 1), State::Absent, "the cache is not filled for one private page");
    assert!(w.kernel.is_private(at(1)));
    assert_eq!(w.read(at(1)), Content::pattern(0, 1));
    assert_eq!(w.stat.event(Event::PGCOW_STAGED), 1);
    w.check_quiescent();
}

#[test]
fn a_cached_page_is_not_staged() {
    let w = world(ObjectSpec { staging: true, ..ObjectSpec::pages(2) }, RW | SINGLE);
    w.read(at(0));
    w.kernel.zap(at(0));
    assert_eq!(w.fault(at(0), WRITE), R::LOCKED, "mapped read-only, the kernel copies");
    assert_eq!(w.objects[0].store.calls(|c| matches!(c, Call::Staged(_))), 0);
    assert!(!w.word(0, 0).load().has(DIRTY), "a private store does not touch the object");
}

#[test]
fn a_staged_read_that_fails_is_the_stores_error() {
    let w = world(ObjectSpec { staging: true, ..ObjectSpec::pages(2) }, RW);
    lock(&w.objects[0].store.bad).insert(0, FillError::Io(Errno::EIO));
    assert_eq!(w.fault(at(0), WRITE), R::MAJOR | R::SIGBUS);
    w.check_quiescent();
}

/// ```text
/// private store                       others
/// looks: absent
///                                     fill, write (dirty)
/// notes the version
/// reads the first half of the store
///                                     write back, evict: absent, same version
/// reads the second half
/// same version: a torn copy
/// ```
/// The version counts only if the page was absent when it was noted.
#[test]
fn a_staged_copy_is_never_torn() {
    let w = world(ObjectSpec { staging: true, ..ObjectSpec::pages(1) }, RW);
    w.map(MapSpec { arena: 1, ..spec(SHARED, 1) });
    let w: &'static World = Box::leak(Box::new(w));
    w.set_outside(|| {
        w.access(&Ctx::thread(0), arena_base(1), Some(0xAA));
        w.access(&Ctx::thread(0), arena_base(1) + PAGE_SIZE - 1, Some(0xAA));
    });
    w.objects[0].store.set_hook(move |call| {
        if matches!(call, Call::Staged(_)) {
            w.evict(0, 0, 1, true);
        }
    });
    let (byte, seen) = w.access(&Ctx::handler(0, false, 0, None), at(0) + 9, Some(1));
    assert_eq!(byte, Some(1), "{seen:?}");
    assert_eq!(
        (w.read(at(0)), w.read(at(0) + PAGE_SIZE - 1)),
        (0xAA, 0xAA),
        "half of the page is older than the other"
    );
    w.check_quiescent();
}

/// The same, with the page filled and dropped between the two halves of the read: the version has moved.
#[test]
fn a_staged_copy_is_void_when_the_page_was_cached_meanwhile() {
    let w = world(ObjectSpec { staging: true, ..ObjectSpec::pages(1) }, RW);
    w.map(MapSpec { arena: 1, ..spec(SHARED, 1) });
    let w: &'static World = Box::leak(Box::new(w));
    w.objects[0].store.set_hook(move |call| {
        if matches!(call, Call::Staged(_)) {
            w.access(&Ctx::thread(0), arena_base(1), Some(0xAA));
            w.access(&Ctx::thread(0), arena_base(1) + PAGE_SIZE - 1, Some(0xAA));
            assert_eq!(w.evict(0, 0, 1, true), 1);
        }
    });
    assert_eq!(w.access(&Ctx::handler(0, false, 0, None), at(0) + 9, Some(1)).0, Some(1));
    assert_eq!(
        (w.read(at(0)), w.read(at(0) + PAGE_SIZE - 1)),
        (0xAA, 0xAA),
        "half of the page is older than the other"
    );
    w.check_quiescent();
}

#[test]
fn needdsync_makes_the_block_durable_before_the_first_store() {
    let w = world(ObjectSpec::pages(2), SHARED | VmFlags::SYNC);
    assert_eq!(w.fault(at(0), WRITE), R::MAJOR | R::NEEDDSYNC | R::LOCKED);
    let log = lock(&w.objects[0].store.log).clone();
    assert_eq!(log, [Call::Read(0, 1), Call::Dsync(0)]);
    assert!(w.word(0, 0).load().has(DSYNCED));
    w.kernel.zap(at(0));
    assert_eq!(w.fault(at(0), WRITE) & R::NEEDDSYNC, R::empty(), "once while the page is cached");
    assert_eq!(w.fault(at(1), READ), R::MAJOR | R::LOCKED, "a load needs no durability");
    w.check_quiescent();
}

#[test]
fn a_store_that_cannot_be_made_durable_does_not_happen() {
    let w = world(ObjectSpec::pages(1), SHARED | VmFlags::SYNC);
    w.objects[0].store.dsync_fails.store(true, Ordering::Relaxed);
    assert_eq!(w.fault(at(0), WRITE), R::MAJOR | R::NEEDDSYNC | R::SIGBUS);
    assert!(!w.kernel.is_mapped(at(0)));
    assert!(!w.word(0, 0).load().has(DIRTY));
    w.check_quiescent();
}

#[test]
fn who_may_not_wait_leaves_no_needdsync_behind() {
    let w = world(ObjectSpec::pages(1), SHARED | VmFlags::SYNC);
    w.read(at(0));
    let r = w.fault(at(0), WRITE | FaultFlags::RETRY_NOWAIT);
    assert_eq!(r, R::NEEDDSYNC | R::RETRY);
    w.check_quiescent();
}

// --- Stores ----------------------------------------------------------------------------------------------------------

#[test]
fn a_first_store_to_a_protected_page_lifts_the_protection_under_a_pin() {
    let w = world(ObjectSpec::pages(2), SHARED);
    w.read(at(0));
    assert!(w.kernel.is_protected(at(0)), "mapped by a load: the first store must trap");
    assert_eq!(w.fault(at(0), WRITE), R::LOCKED);
    assert!(!w.kernel.is_protected(at(0)) && w.word(0, 0).load().has(DIRTY));
    assert_eq!(w.stat.event(Event::UFFD_WP), 1);
    w.check_quiescent();
}

#[test]
fn a_wrong_hint_costs_one_trap_more() {
    let w = world(ObjectSpec::pages(1), SHARED);
    w.read(at(0));
    w.kernel.zap(at(0));
    let (byte, _) = w.access(&Ctx::handler(0, false, 0, None), at(0), Some(3));
    assert_eq!(byte, Some(3), "the hint said mapped, and it was not");
    w.check_quiescent();
}

#[test]
fn a_granule_is_exposed_at_once_and_dirty_as_a_whole() {
    let w = World::new(&[ObjectSpec { fill_window: 8, ..ObjectSpec::pages(8) }], 1);
    w.map(MapSpec { granule_pages: 4, ..spec(SHARED | VmFlags::GRANULE, 8) });
    w.read(at(1));
    let mapped = |p: usize| w.kernel.is_mapped(at(p));
    assert!((0..4).all(mapped) && !(4..8).any(mapped), "one granule, no more");
    assert!((0..4).all(|p| w.kernel.is_protected(at(p))));
    w.kernel.zap(at(6));
    assert_eq!(w.access(&Ctx::handler(0, false, 0, None), at(6), Some(1)).0, Some(1));
    assert!((4..8).all(|p| w.word(0, p).load().has(DIRTY)), "all that was opened to stores counts as written");
    assert!(!(0..4).any(|p| w.word(0, p).load().has(DIRTY)));
    w.check_quiescent();
}

#[derive(Debug)]
struct Refusing;

impl VmOps for Refusing {
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        shmem::fault(vmf)
    }
    fn has_page_mkwrite(&self) -> bool {
        true
    }
    fn page_mkwrite(&self, _vmf: &mut VmFault<'_>) -> VmFaultReason {
        VmFaultReason::SIGBUS
    }
}

#[test]
fn page_mkwrite_can_refuse_both_kinds_of_first_store() {
    let w = World::new(&[ObjectSpec::pages(2)], 1);
    w.map(MapSpec { ops: &Refusing, ..spec(SHARED, 2) });
    assert_eq!(w.fault(at(0), WRITE) & R::ERROR, R::SIGBUS);
    assert!(!w.kernel.is_mapped(at(0)), "not mapped yet: stays so");
    w.read(at(1));
    assert_eq!(w.fault(at(1), WRITE) & R::ERROR, R::SIGBUS);
    assert!(w.kernel.is_protected(at(1)), "mapped already: stays protected");
    assert_eq!((w.kernel.unprotects(), w.stat.event(Event::PAGE_MKWRITE)), (0, 2));
    w.check_quiescent();
}

// --- Windows ---------------------------------------------------------------------------------------------------------

#[test]
fn windows_map_what_is_cached_around_a_touch() {
    let w = world(ObjectSpec { fill_window: 64, ..ObjectSpec::pages(64) }, RO);
    w.read(at(20));
    let mapped: Vec<usize> = (0..64).filter(|p| w.kernel.is_mapped(at(*p))).collect();
    assert_eq!(mapped, (0..64).collect::<Vec<_>>(), "what the fault has read is mapped with it");
    assert_eq!(w.stat.event(Event::PGMAPPED_AROUND), 63);
    let random = world(ObjectSpec { fill_window: 64, ..ObjectSpec::pages(64) }, RO | SINGLE);
    random.read(at(20));
    assert_eq!((0..64).filter(|p| random.kernel.is_mapped(at(*p))).count(), 1, "MAP_SINGLE: one page a fault");
}

#[test]
fn a_window_maps_nothing_past_the_end() {
    let w = world(ObjectSpec { fill_window: 8, ..ObjectSpec::pages(8) }, RO);
    w.map(MapSpec { arena: 1, ..spec(RO, 8) });
    w.read(arena_base(1));
    // Truncate has lowered the end; the pages past it are still cached.
    softfault_mm::truncate::i_size_write(w.objects[0].mapping, 4 << PAGE_SHIFT);
    w.read(at(1));
    let mapped: Vec<usize> = (0..8).filter(|p| w.kernel.is_mapped(at(*p))).collect();
    assert_eq!(mapped, [0, 1, 2, 3]);
}

#[test]
fn one_bad_page_in_a_window_poisons_only_itself() {
    let w = world(ObjectSpec { fill_window: 8, ..ObjectSpec::pages(8) }, RO | SINGLE);
    lock(&w.objects[0].store.bad).insert(3, FillError::Io(Errno::EIO));
    assert_eq!(w.read(at(5)), Content::pattern(0, 5), "the bad neighbour is not what was touched");
    assert_eq!(w.read(at(0)), Content::pattern(0, 0));
    assert_eq!(w.fault(at(3), READ), R::MAJOR | R::SIGBUS);
    let states: Vec<State> = (0..8).map(|p| state(&w, p)).collect();
    for (p, s) in states.iter().enumerate() {
        assert_eq!(*s == State::Poisoned, p == 3, "page {p} is {s:?}");
    }
    for p in [1, 2, 4, 6, 7] {
        assert_eq!(w.read(at(p)), Content::pattern(0, p as u64), "page {p}");
    }
    w.check_quiescent();
}

// --- Failures --------------------------------------------------------------------------------------------------------

#[test]
fn policy_zero_reads_as_zeros() {
    let w = world(ObjectSpec { policy: FailurePolicy::Zero, ..ObjectSpec::pages(2) }, RO | SINGLE);
    lock(&w.objects[0].store.bad).insert(1, FillError::Io(Errno::EIO));
    assert_eq!(w.fault(at(1), READ), R::MAJOR | R::LOCKED);
    assert_eq!(w.read(at(1)), 0);
    assert_eq!((w.stat.event(Event::FILL_ERRORS), w.stat.event(Event::PGPOISON)), (1, 0));
    w.check_quiescent();
}

fn slow(deadline_ns: u64) -> ObjectSpec {
    ObjectSpec { handler_safe: false, deadline_ns, ..ObjectSpec::pages(1) }
}

#[test]
fn an_abandoned_fill_keeps_its_claim_and_completes() {
    let w = world(slow(1), RO);
    let slept = Arc::new(AtomicU64::new(0));
    let n = slept.clone();
    w.set_sleep(move |_| {
        n.fetch_add(1, Ordering::Relaxed);
        Woken::TimedOut
    });
    assert_eq!(w.fault(at(0), READ), R::MAJOR | R::SIGBUS, "the deadline ends the waiting");
    let word = w.word(0, 0);
    assert_eq!(word.load().state(), State::Filling);
    assert!(word.load().has(OVERDUE));
    assert!(word.try_claim().is_err(), "nobody else fills a page whose first filler may still write to it");
    assert_eq!(w.fault(at(0), READ), R::SIGBUS, "overdue: answered at once");
    assert_eq!(slept.load(Ordering::Relaxed), 1);
    assert_eq!(w.stat.event(Event::FILL_OVERDUE), 1);
    // The late filler returns: the page is whole, and nobody scribbles over it afterwards.
    w.run_fillers();
    assert_eq!(word.load().state(), State::Uptodate);
    assert!(!word.load().has(OVERDUE));
    assert_eq!(w.read(at(0)), Content::pattern(0, 0));
    assert_eq!(w.objects[0].store.calls(|c| matches!(c, Call::Read(..))), 1, "filled once");
    w.check_quiescent();
}

#[test]
fn a_deadline_is_for_fills_and_not_for_evictions() {
    let w = world(slow(1), RO);
    w.read(at(0));
    w.word(0, 0).try_discard().expect("nobody has a pin");
    w.kernel.zap(at(0));
    let word = w.word(0, 0);
    let mut turn = 0;
    let account = w.account;
    let chunk = &w.objects[0].mapping.chunks[0];
    let w: &'static World = Box::leak(Box::new(w));
    w.set_sleep(move |_| {
        turn += 1;
        match turn {
            // A reclaimer that is preempted for longer than the deadline.
            1 => Woken::TimedOut,
            2 => {
                let _ = word.evicted(0);
                account.uncharge(1);
                chunk.sub_uptodate(1);
                Woken::LookAgain
            }
            _ => {
                w.run_fillers();
                Woken::LookAgain
            }
        }
    });
    let r = w.fault(at(0), READ);
    assert_eq!(r & R::ERROR, R::empty(), "the page is well, and its reclaimer slow: {r:?}");
    w.check_quiescent();
}

#[test]
fn a_punch_that_fails_leaves_the_page_as_it_was() {
    let w = world(ObjectSpec::pages(1), SHARED);
    w.access(&Ctx::thread(0), at(0), Some(9));
    let o = w.objects[0];
    o.store.punch_fails.store(true, Ordering::Relaxed);
    assert_eq!(w.discard(0, 0, 1), 0);
    assert!(w.word(0, 0).load().has(DIRTY), "still there, and still the only place where the store is");
    w.check_quiescent();
    assert_eq!(w.evict(0, 0, 1, true), 0);
    assert!(!w.word(0, 0).load().has(UNMAPPED), "it is an ordinary page again");
    o.store.punch_fails.store(false, Ordering::Relaxed);
    assert_eq!(w.evict(0, 0, 1, true), 1);
    assert_eq!(w.read(at(0)), 9);
    w.check_quiescent();
}

#[test]
fn a_nested_handler_leaves_the_store_to_a_filler() {
    let w = world(ObjectSpec::pages(1), RO);
    let r = softfault_mm::fault::do_user_addr_fault(w.env(), &Ctx::handler(0, true, 0, None), at(0), READ);
    let r = r.expect("the vma is there");
    assert!(r.contains(R::MAJOR) && !r.intersects(R::ERROR | R::RETRY), "{r:?}");
    assert_eq!(w.stat.event(Event::FILL_CALLS), 1);
    w.check_quiescent();
}

// --- Custom vtables --------------------------------------------------------------------------------------------------

#[derive(Debug)]
struct Computed(AtomicU64);

impl VmOps for Computed {
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        let p = u8::try_from(vmf.pgoff()).expect("small");
        filemap::fill_with(vmf, &mut |bytes| {
            self.0.fetch_add(1, Ordering::Relaxed);
            bytes.fill(100 + p);
        })
    }
}

#[test]
fn a_vtable_may_compute_its_pages() {
    static OPS: Computed = Computed(AtomicU64::new(0));
    let w = World::new(&[ObjectSpec::pages(2)], 2);
    w.map(MapSpec { ops: &OPS, ..spec(SHARED, 2) });
    w.map(MapSpec { ops: &OPS, arena: 1, ..spec(RO, 2) });
    assert_eq!((w.read(at(1)), w.read(arena_base(1) + PAGE_SIZE)), (101, 101));
    assert_eq!(OPS.0.load(Ordering::Relaxed), 1, "computed once, mapped twice");
    assert_eq!(w.objects[0].store.calls(|_| true), 0);
    assert_eq!(w.fault(at(0), WRITE), R::LOCKED);
    assert!(w.word(0, 0).load().has(DIRTY), "a computed page that is stored to is dirty");
    w.check_quiescent();
}

// --- Delegation ------------------------------------------------------------------------------------------------------

mod delegated {
    use super::*;
    #[cfg(feature = "userfaultfd")]
    use softfault_mm::delegation::MinorError;
    use softfault_mm::delegation::{Delegation, MinorDelegate, MinorFault, MinorVerdict};
    use softfault_mm::sync::AtomicU32;
    #[cfg(feature = "userfaultfd")]
    use std::collections::VecDeque;
    use std::sync::Mutex;

    type Decide = fn(&MinorFault<'_>) -> MinorVerdict;

    struct Delegate {
        decide: Mutex<Decide>,
        told: AtomicU64,
    }

    impl MinorDelegate for Delegate {
        fn minor_fault(&self, fault: &MinorFault<'_>) -> MinorVerdict {
            self.told.fetch_add(1, Ordering::Relaxed);
            let decide = *lock(&self.decide);
            decide(fault)
        }
    }

    impl Delegate {
        fn new(decide: Decide) -> &'static Self {
            Box::leak(Box::new(Self { decide: Mutex::new(decide), told: AtomicU64::new(0) }))
        }
        fn told(&self) -> u64 {
            self.told.load(Ordering::Relaxed)
        }
    }

    fn map(w: &World, delegate: &'static Delegate, flags: VmFlags, handler_safe: bool) {
        let told: &'static [AtomicU32] = Box::leak(vec![AtomicU32::new(0), AtomicU32::new(0)].into());
        let d = Delegation { id: 0, base: at(0), told, delegate, handler_safe };
        let d: &'static Delegation<'static> = Box::leak(Box::new(d));
        assert!(w.map(MapSpec { delegation: Some(d), ..spec(flags | VmFlags::UFFD_MINOR, 4) }));
    }

    #[cfg(feature = "userfaultfd")]
    const FIRST: VmFlags = VmFlags::UFFD_LOOKUP_FIRST;

    #[cfg(not(feature = "userfaultfd"))]
    #[test]
    fn without_the_feature_nobody_is_told() {
        let w = World::new(&[ObjectSpec::pages(4)], 1);
        let d = Delegate::new(|_| MinorVerdict::Refuse);
        map(&w, d, RO, true);
        assert_eq!(w.read(at(0)), Content::pattern(0, 0));
        assert_eq!((d.told(), R::UFFD_MINOR), (0, R::empty()));
        w.check_quiescent();
    }

    #[cfg(feature = "userfaultfd")]
    #[test]
    fn uffd_minor_tells_the_first_touch_of_each_page() {
        for (design, bit) in [(VmFlags::default(), R::UFFD_MINOR), (FIRST, R::empty())] {
            let w = World::new(&[ObjectSpec { fill_window: 4, ..ObjectSpec::pages(4) }], 1);
            let d = Delegate::new(|_| MinorVerdict::Continue);
            map(&w, d, RO | design, true);
            let r = w.fault(at(1), READ);
            assert_eq!(r, R::MAJOR | R::LOCKED | bit, "{design:?}: filled, told, mapped");
            assert_eq!(w.read(at(1)), Content::pattern(0, 1));
            assert!(!w.kernel.is_mapped(at(0)), "cached, but untold: no window maps it");
            w.kernel.zap(at(1));
            assert_eq!(w.fault(at(1), READ), R::LOCKED, "told once");
            assert_eq!(w.evict(0, 1, 2, true), 1);
            w.read(at(1));
            assert_eq!(d.told(), 1, "reclaim does not make a page untold");
            w.read(at(0));
            assert_eq!(d.told(), 2);
            assert_eq!(w.stat.event(Event::UFFD_MINOR_TOLD), 2);
            w.check_quiescent();
        }
    }

    #[test]
    fn a_window_maps_only_what_was_told() {
        let w = World::new(&[ObjectSpec { fill_window: 4, ..ObjectSpec::pages(4) }], 2);
        let d = Delegate::new(|_| MinorVerdict::Continue);
        map(&w, d, RO, true);
        w.map(MapSpec { arena: 1, ..spec(RO, 4) });
        w.read(arena_base(1));
        let ctx = Ctx::handler(0, false, 0, None);
        let r = AddressSpace::with_vma(&w, at(0), &mut |vma| {
            let told = vma.delegation.expect("delegated");
            assert_eq!(told.begin(2), softfault_mm::delegation::Telltale::Yours);
            told.finish(2, MinorVerdict::Continue);
            // The walk opens no window over a delegated range; a vtable may.
            PLAIN.map_pages(&mut VmFault::new(&ctx, vma, at(0), READ), 0, 4)
        });
        assert_eq!(r, Some(R::empty()), "the touched page is untold");
        assert_eq!((0..4).filter(|p| w.kernel.is_mapped(at(*p))).collect::<Vec<_>>(), [2]);
        w.check_quiescent();
    }

    #[cfg(feature = "userfaultfd")]
    #[test]
    fn a_refused_page_is_sigbus_and_a_delayed_one_is_asked_again() {
        for design in [VmFlags::default(), FIRST] {
            let w = World::new(&[ObjectSpec::pages(4)], 1);
            let d = Delegate::new(|_| MinorVerdict::Refuse);
            map(&w, d, RO | design, true);
            assert_eq!(w.fault(at(0), READ) & R::ERROR, R::SIGBUS, "{design:?}");
            assert_eq!(w.fault(at(0), READ) & R::ERROR, R::SIGBUS);
            assert_eq!(d.told(), 1, "refused for good");
            *lock(&d.decide) = |_| MinorVerdict::Delay;
            assert!(w.fault(at(1), READ).intersects(R::RETRY), "the instruction runs again");
            let asked = d.told();
            assert!(asked > 2, "asked {asked} times");
            *lock(&d.decide) = |_| MinorVerdict::Continue;
            assert_eq!(w.read(at(1)), Content::pattern(0, 1));
            w.check_quiescent();
        }
    }

    #[cfg(feature = "userfaultfd")]
    #[test]
    fn a_delegate_that_is_not_handler_safe_is_called_by_a_worker() {
        let w = World::new(&[ObjectSpec::pages(4)], 1);
        let d = Delegate::new(|_| MinorVerdict::Continue);
        map(&w, d, RO, false);
        // The first attempt submits the telling, the second finds `telling` and sleeps; the worker runs meanwhile.
        assert_eq!(w.read(at(0)), Content::pattern(0, 0));
        assert_eq!(d.told(), 1);
        *lock(&w.tellings) = None;
        assert!(w.fault(at(1), READ).intersects(R::RETRY), "no worker: again, later");
        assert_eq!(d.told(), 1);
        *lock(&w.tellings) = Some(VecDeque::new());
        assert_eq!(w.read(at(1)), Content::pattern(0, 1), "the page was left untold, not telling");
        w.check_quiescent();
    }

    #[cfg(feature = "userfaultfd")]
    #[test]
    fn nobody_is_told_of_a_page_past_the_end() {
        for design in [VmFlags::default(), FIRST] {
            let w = World::new(&[ObjectSpec::pages(4)], 2);
            let d = Delegate::new(|_| MinorVerdict::Continue);
            map(&w, d, RO | design, true);
            w.map(MapSpec { arena: 1, ..spec(RO, 4) });
            w.read(arena_base(1));
            // Truncate has lowered the end; the page is still there.
            softfault_mm::truncate::i_size_write(w.objects[0].mapping, 0);
            assert_eq!(w.fault(at(0), READ), R::SIGBUS, "{design:?}");
            assert_eq!(d.told(), 0, "{design:?}");
        }
    }

    #[cfg(feature = "userfaultfd")]
    #[test]
    fn who_may_not_wait_leaves_no_page_telling() {
        for design in [VmFlags::default(), FIRST] {
            let w = World::new(&[ObjectSpec::pages(4)], 2);
            let d = Delegate::new(|_| MinorVerdict::Continue);
            map(&w, d, RO | design, true);
            w.map(MapSpec { arena: 1, ..spec(RO, 4) });
            w.read(arena_base(1));
            assert!(w.fault(at(0), READ | FaultFlags::RETRY_NOWAIT).intersects(R::RETRY), "{design:?}");
            assert_eq!(d.told(), 0);
            w.check_quiescent();
            assert_eq!(w.read(at(0)), Content::pattern(0, 0));
            assert_eq!(d.told(), 1);
        }
    }

    #[cfg(feature = "userfaultfd")]
    #[test]
    fn a_delegate_may_read_and_rewrite_a_page_that_is_mapped_nowhere() {
        let flip: Decide = |fault| {
            let mut byte = [0];
            assert_eq!(fault.read(PAGE_SIZE, &mut byte), Err(MinorError::Range));
            assert_eq!(fault.read(7, &mut byte), Ok(()));
            assert_eq!(byte[0], Content::pattern(0, fault.pgoff()));
            match fault.rewrite(&mut |bytes| bytes.iter_mut().for_each(|b| *b = !*b)) {
                Ok(()) => MinorVerdict::Continue,
                Err(e) => {
                    assert_eq!(e, MinorError::Busy);
                    MinorVerdict::Refuse
                }
            }
        };
        let w = World::new(&[ObjectSpec::pages(4)], 2);
        let d = Delegate::new(flip);
        map(&w, d, RO, true);
        assert_eq!(w.read(at(2)), !Content::pattern(0, 2));
        assert!(w.word(0, 2).load().has(DIRTY), "what the delegate wrote is nowhere else");
        w.map(MapSpec { arena: 1, ..spec(RO, 4) });
        assert_eq!(w.fault(at(3), READ) & R::ERROR, R::SIGBUS, "another arena may map it: nobody rewrites it");
        w.check_quiescent();
    }
}

/// What its store does not take leaves room to read by, the less the more there is of it, and at once again as it shrinks.
#[test]
fn what_is_stuck_leaves_room_to_read_by() {
    let w = World::new(&[ObjectSpec::pages(8)], 1);
    let m = w.objects[0].mapping;
    m.is_flushed.store(true, Ordering::Relaxed);
    w.account.dirty_limit.store(100, Ordering::Relaxed);
    m.note_failure(Asked::Write, FillError::Io(Errno::ENOSPC));
    let limit_at = |dirty| {
        m.account_dirtied(dirty);
        let limit = m.own_limit();
        m.account_cleaned(dirty);
        limit
    };
    // Its share is 50: twice that, or 25 more than is dirty, but no more than 150.
    assert_eq!([0, 75, 100, 125, 140, 150].map(limit_at), [100, 100, 125, 150, 150, 150]);
    m.note_success(Asked::Write);
    assert_eq!(m.own_limit(), u64::MAX);
}

/// Between an unmapping and the second note of an install a page is mapped whose hint says that nothing ever was: a store to
/// it is found all the same, among neighbours that were never touched and others with their hints.
#[test]
fn a_store_is_found_where_the_hint_of_its_page_is_gone() {
    let w = world(ObjectSpec::pages(8), RW | VmFlags::SHARED | VmFlags::WP_ASYNC | SINGLE);
    let store = |byte| {
        for p in [1, 3, 6] {
            assert_eq!(w.access(&Ctx::handler(0, false, 0, None), at(p), Some(byte)).0, Some(byte));
        }
    };
    store(0xaa);
    assert_eq!(w.write_back(0, 0, 8, true), Ok(3));
    assert_eq!(w.write_back(0, 0, 8, true), Ok(0), "nothing was stored since, and what was never mapped is clean");
    store(0xbb);
    w.extent(0, 0).note_zapped(3, 1);
    assert_eq!(w.write_back(0, 0, 8, true), Ok(3), "page 3 is mapped, and was stored to");
    w.check_quiescent();
}
