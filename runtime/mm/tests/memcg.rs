//! A thread in front of a limit: what it looks at, what it waits for, and what it is told in the end.
#![cfg(not(loom))]
#![forbid(unsafe_code)]
#![allow(clippy::cast_possible_truncation, reason = "64-bit")]

mod support;

use core::cell::Cell;
use softfault_mm::claim::{Claim, Telling};
use softfault_mm::ctx::Ctx;
use softfault_mm::fault;
use softfault_mm::filemap;
use softfault_mm::fill;
use softfault_mm::folio::{DIRTY, REFERENCED, State, UNMAPPED, UNSYNCED};
use softfault_mm::host::{Env, Park, Woken};
use softfault_mm::lru::Entry;
use softfault_mm::ops::WaitKey;
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::stall::Stall;
use softfault_mm::types::{FaultFlags, VmFaultReason, VmFlags};
use softfault_mm::vmscan;
use softfault_mm::writeback;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::{MapSpec, ObjectSpec, World, arena_base};

type R = VmFaultReason;

static PLAIN: ShmemVmOps = ShmemVmOps { mkwrite: false };
/// The limit of the object, in pages.
const LIMIT: u64 = 4;
/// What nobody has in the cache.
const MISSED: usize = arena_base(0) + (5 << 12);

/// A world of an object of `nr` pages, the first of which are mapped.
fn world_of(nr: u64) -> &'static World {
    world_with(ObjectSpec::pages(nr as usize))
}

fn world_with(object: ObjectSpec) -> &'static World {
    let w = Box::leak(Box::new(World::new(&[object], 1)));
    let flags = VmFlags::READ | VmFlags::SHARED | VmFlags::MAP_SINGLE;
    let (ops, delegation) = (&PLAIN, None);
    assert!(w.map(MapSpec { arena: 0, at: 0, nr: 8, object: 0, pgoff: 0, flags, ops, granule_pages: 0, delegation }));
    w
}

/// A world of an object of `nr` pages at a limit of its own, whose cached pages are all pinned.
fn world_of_pinned(nr: u64) -> &'static World {
    pin_all(world_of(nr))
}

fn pin_all(w: &'static World) -> &'static World {
    w.objects[0].mapping.own_limit.store(LIMIT, Ordering::Relaxed);
    w.populate(0, 0, LIMIT);
    (0..LIMIT).for_each(|p| _ = w.word(0, p).try_pin(0).expect("cached"));
    w
}

fn unpin(w: &World) {
    (0..LIMIT).for_each(|p| w.word(0, p).unpin());
    w.check_quiescent();
}

/// A thread that does not sleep where it is: it goes away, and keeps what it has seen until it comes back.
struct Handler {
    world: &'static World,
    stall: Cell<Stall>,
    now_ns: Cell<u64>,
}

impl Handler {
    fn new(world: &'static World) -> Self {
        Self { world, stall: Cell::default(), now_ns: Cell::new(0) }
    }

    /// Comes back for the page that is missed, a second later than before.
    fn look(&self) -> R {
        self.now_ns.set(self.now_ns.get() + 1_000_000_000);
        let env = Env { mm: self.world, park: self };
        let ctx = Ctx::handler(0, false, 0, None);
        fault::do_user_addr_fault(env, &ctx, MISSED, FaultFlags::USER).expect("the vma is there")
    }
}

impl Park for Handler {
    fn wait(&self, _ctx: &Ctx<'_>, _key: WaitKey, _timeout_ns: u64) -> Woken {
        Woken::NotNow
    }
    fn take_stall(&self, _addr: usize) -> Option<Stall> {
        Some(self.stall.take())
    }
    fn keep_stall(&self, _addr: usize, stall: Stall) {
        self.stall.set(stall);
    }
    fn now_ns(&self) -> u64 {
        self.now_ns.get()
    }
    fn wake(&self, addr: usize) {
        self.world.wake(addr);
    }
    fn submit(&self, claim: Claim) -> Result<(), Claim> {
        self.world.submit(claim)
    }
    fn submit_telling(&self, telling: Telling) -> Result<(), Telling> {
        self.world.submit_telling(telling)
    }
    fn relax(&self) {}
}

/// Write-back of another object of the cache ends some day, and is no room for this one.
#[test]
fn others_write_back_is_nothing_to_wait_for() {
    let w = world_of_pinned(8);
    let account = w.account;
    account.nr_writeback.fetch_add(1, Ordering::Relaxed);
    let naps = Arc::new(AtomicU64::new(0));
    let slept = Arc::clone(&naps);
    w.set_sleep(move |_| {
        if slept.fetch_add(1, Ordering::Relaxed) == 20_000 {
            // So that the thread is told at all.
            account.nr_writeback.fetch_sub(1, Ordering::Relaxed);
        }
        Woken::LookAgain
    });
    let r = fault::do_user_addr_fault(w.env(), &Ctx::handler(0, false, 0, None), MISSED, FaultFlags::USER);
    assert_eq!(r, Some(R::OOM));
    let naps = naps.load(Ordering::Relaxed);
    assert!(naps < 20_000, "it is told after {naps} naps, when the other object was written");
    account.nr_writeback.fetch_sub(1, Ordering::Relaxed);
    unpin(w);
}

/// A thread that goes away between two looks goes on with its stall however others of the cache get on meanwhile.
#[test]
fn others_progress_is_none_for_who_was_away() {
    let w = world_of_pinned(8);
    let handler = Handler::new(w);
    let is_told = (0..100).any(|_| {
        let r = handler.look();
        let _ = w.account.progressed();
        r == R::OOM
    });
    assert!(is_told, "after a hundred looks it goes round the object still");
    unpin(w);
}

/// With another limit there may be room: what was seen under the old one says nothing.
#[test]
fn another_limit_is_another_stall() {
    let w = world_of_pinned(8);
    let handler = Handler::new(w);
    for look in 0..100 {
        w.objects[0].mapping.own_limit.store(LIMIT - look % 2, Ordering::Relaxed);
        assert!(handler.look().intersects(R::RETRY), "look {look}: nothing was proved under this limit yet");
    }
    unpin(w);
}

/// Touches the page that is missed, in a thread that sleeps as [`World::set_sleep`] says.
fn miss(w: &World) -> R {
    fault::do_user_addr_fault(w.env(), &Ctx::handler(0, false, 0, None), MISSED, FaultFlags::USER)
        .expect("the vma is there")
}

/// What nobody has in the cache costs no time: an object may be a million times as large as its limit.
#[test]
fn an_object_with_few_pages_is_gone_round_three_times_before_a_nap() {
    const NR: u64 = 1 << 19;
    let w = world_of_pinned(NR);
    let mapping = w.objects[0].mapping;
    let passed = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&passed);
    w.set_sleep(move |_| {
        let _ = seen.compare_exchange(0, mapping.hand.load(Ordering::Relaxed), Ordering::Relaxed, Ordering::Relaxed);
        Woken::TimedOut
    });
    assert_eq!(miss(w), R::OOM);
    let rounds = passed.load(Ordering::Relaxed) / NR;
    assert!((3..=4).contains(&rounds), "the hand has been round {rounds} times before the first nap");
    unpin(w);
}

/// What another thread had in hand when the object was gone through is looked at when it has put that down.
#[test]
fn an_object_is_gone_through_again_when_others_have_put_down_what_they_had() {
    const WINDOWS: u64 = 64;
    let w = world_of(WINDOWS * 64);
    let mapping = w.objects[0].mapping;
    mapping.own_limit.store(WINDOWS, Ordering::Relaxed);
    for window in 0..WINDOWS {
        w.populate(0, window * 64 + 6, window * 64 + 7);
        w.word(0, window * 64 + 6).try_pin(0).expect("cached");
    }
    w.reclaims.store(true, Ordering::Relaxed);
    let put_down = Arc::new(AtomicU64::new(u64::MAX));
    let (mut naps, down) = (0, Arc::clone(&put_down));
    w.set_sleep(move |_| {
        naps += 1;
        if naps == 40 {
            // Where the hand comes last.
            let window = (mapping.hand.load(Ordering::Relaxed) / 64 + WINDOWS - 1) % WINDOWS;
            w.word(0, window * 64 + 6).unpin();
            down.store(window, Ordering::Relaxed);
            w.reclaims.store(false, Ordering::Relaxed);
        }
        Woken::TimedOut
    });
    assert_eq!(miss(w), R::MAJOR | R::LOCKED, "a page could go");
    let put_down = put_down.load(Ordering::Relaxed);
    (0..WINDOWS).filter(|window| *window != put_down).for_each(|window| w.word(0, window * 64 + 6).unpin());
    w.check_quiescent();
}

/// The object's own write-back makes room when it ends, however long that takes, if the store is not failing.
#[test]
fn the_own_write_back_is_waited_for() {
    let w = world_of_pinned(8);
    for p in 0..LIMIT {
        w.word(0, p).unpin();
        w.word(0, p).try_pin(DIRTY).expect("cached");
        w.word(0, p).unpin();
        w.word(0, p).try_writeback().expect("dirty");
    }
    let mut naps = 0;
    w.set_sleep(move |_| {
        naps += 1;
        if naps == 20_000 {
            (0..LIMIT).for_each(|p| assert!(!w.word(0, p).end_writeback(0).1));
        }
        Woken::TimedOut
    });
    assert_eq!(miss(w), R::MAJOR | R::LOCKED);
    w.check_quiescent();
}

/// The object's own pages are being written, or made durable, somewhere; where the hand happens to be there are others that are
/// merely busy.
#[test]
fn the_own_write_back_is_waited_for_wherever_it_is() {
    const WINDOWS: u64 = 4;
    for flushes in [false, true] {
        let w = world_of(WINDOWS * 64);
        let mapping = w.objects[0].mapping;
        mapping.own_limit.store(WINDOWS, Ordering::Relaxed);
        let pages = (0..WINDOWS).map(|window| window * 64 + 6);
        pages.clone().for_each(|p| w.populate(0, p, p + 1));
        let is_written = move |n: usize| !flushes && n == WINDOWS as usize - 1;
        for (n, word) in pages.clone().map(|p| w.word(0, p)).enumerate() {
            if is_written(n) {
                word.try_pin(DIRTY).expect("cached");
                word.unpin();
                word.try_writeback().expect("dirty");
            } else {
                word.set(UNMAPPED | UNSYNCED[0]);
            }
        }
        w.objects[0].store.rereads.store(flushes, Ordering::Relaxed);
        mapping.flushing.store(u32::from(flushes), Ordering::Relaxed);
        let mut naps = 0;
        w.set_sleep(move |_| {
            naps += 1;
            if naps == 20_000 {
                for (n, word) in pages.clone().map(|p| w.word(0, p)).enumerate() {
                    if is_written(n) {
                        assert!(!word.end_writeback(0).1);
                    } else {
                        word.clear(UNSYNCED[0]);
                    }
                }
                mapping.flushing.store(0, Ordering::Relaxed);
            }
            Woken::TimedOut
        });
        assert_eq!(miss(w), R::MAJOR | R::LOCKED, "a flush is under way: {flushes}");
        w.check_quiescent();
    }
}

/// Behind pages on probation that are missed again and again there are others that can go: whoever gives up has looked at
/// all of them.
#[test]
fn everything_on_probation_gets_its_verdict_before_anybody_gives_up() {
    const NR: u64 = 3 << 12;
    // Fewer than are judged as long as there is anything else.
    const HOT: u64 = 640;
    const COLD: u64 = 20;
    // Memory without swap: what is dirty stays.
    let w = world_with(ObjectSpec { dirty_goes: false, ..ObjectSpec::pages(NR as usize + 64) });
    w.account.limit_pages.store(NR, Ordering::Relaxed);
    w.populate(0, 64, NR + 64);
    let lru = &w.account.lru;
    for i in 0..HOT + COLD {
        let entry = lru.small.pop().or_else(|| lru.main.pop()).map(Entry).expect("every page stands in a queue");
        w.word(0, entry.pgoff()).set(UNMAPPED | if i < HOT { REFERENCED } else { 0 });
        assert!(lru.probation.push(entry.0), "there is room on probation");
    }
    for word in (64..NR + 64).map(|p| w.word(0, p)).filter(|word| !word.load().has(UNMAPPED)) {
        let old = word.try_pin(DIRTY).expect("cached");
        w.objects[0].mapping.account_dirtied(u64::from(!old.has(DIRTY)));
        word.unpin();
    }
    let handler = Handler::new(w);
    let looks = (0..1_000).map(|_| handler.look()).take_while(|r| r.intersects(R::RETRY)).count();
    assert!(looks < 1_000, "nothing is found");
    assert!(w.account.nr_pages.load(Ordering::Relaxed) < NR, "{COLD} pages could go, and {looks} looks found none");
}

/// A store that is slow is waited for, whatever becomes of other objects, of which somebody `tries` to write a page, or to drop
/// it, again and again, at each nap.
fn check_that_a_slow_write_is_waited_for(others: &[ObjectSpec], ready: fn(&World), tries: fn(&World, usize)) {
    let objects: Vec<_> = [&[ObjectSpec::pages(8)], others].concat();
    let w: &World = Box::leak(Box::new(World::new(&objects, 1)));
    let flags = VmFlags::READ | VmFlags::SHARED | VmFlags::MAP_SINGLE;
    let (ops, delegation) = (&PLAIN, None);
    assert!(w.map(MapSpec { arena: 0, at: 0, nr: 8, object: 0, pgoff: 0, flags, ops, granule_pages: 0, delegation }));
    w.account.limit_pages.store(LIMIT + others.len() as u64, Ordering::Relaxed);
    w.populate(0, 0, LIMIT);
    (1..objects.len()).for_each(|object| w.populate(object, 0, 1));
    let dirty = |object: usize, p: u64| {
        w.word(object, p).try_pin(DIRTY).expect("cached");
        w.objects[object].mapping.account_dirtied(1);
        w.word(object, p).unpin();
    };
    (0..LIMIT).for_each(|p| dirty(0, p));
    (1..objects.len()).for_each(|object| dirty(object, 0));
    ready(w);
    // The slow one: the store has the pages.
    (0..LIMIT).for_each(|p| assert!(w.word(0, p).try_writeback().is_ok()));
    w.objects[0].mapping.account_cleaned(LIMIT);
    w.account.writeback_begins(LIMIT, true);
    let mut naps = 0;
    w.set_sleep(move |_| {
        naps += 1;
        tries(w, naps);
        if naps == 20_000 {
            (0..LIMIT).for_each(|p| assert!(!w.word(0, p).end_writeback(0).1));
            w.account.writeback_ends(LIMIT, true);
        }
        Woken::TimedOut
    });
    assert_eq!(miss(w), R::MAJOR | R::LOCKED);
    (0..w.word(1, 0).load().pins()).for_each(|_| w.word(1, 0).unpin());
    w.check_quiescent();
}

fn writeout_of(w: &World, object: usize) {
    assert!(writeback::writeout(w.env(), w.objects[object].mapping, 0, 0, 8).is_err(), "the store takes nothing");
}

fn writeout(w: &World, _nap: usize) {
    writeout_of(w, 1);
}

/// As a filler does for reclaim.
fn write_exclusive(w: &World, _nap: usize) {
    let claim = filemap::try_hold_to_write(w.objects[1].mapping, 0, 1).expect("it does not end");
    vmscan::write_here(w.env(), 0, claim);
}

#[test]
fn a_slow_write_is_waited_for_beside_a_store_that_fails() {
    let ready = |w: &World| {
        support::lock(&w.objects[1].store.full).extend(0..8);
        while !w.objects[1].mapping.failing.is_set() {
            writeout_of(w, 1);
        }
    };
    check_that_a_slow_write_is_waited_for(&[ObjectSpec::pages(8)], ready, writeout);
}

/// A disk goes, and all files that are on it fail for the first few times, when the thread has waited for long.
#[test]
fn a_slow_write_is_waited_for_beside_stores_that_begin_to_fail() {
    const OTHERS: usize = 64;
    let ready = |w: &World| (1..=OTHERS).for_each(|object| _ = w.word(object, 0).try_pin(0).expect("cached"));
    let tries = |w: &World, nap: usize| {
        const FIRST: usize = 4_990;
        if nap == FIRST {
            for object in 1..=OTHERS {
                support::lock(&w.objects[object].store.full).extend(0..8);
                w.word(object, 0).unpin();
            }
        }
        if (FIRST..FIRST + 7 * OTHERS).contains(&nap) {
            writeout_of(w, 1 + nap % OTHERS);
        }
    };
    check_that_a_slow_write_is_waited_for(&[ObjectSpec::pages(8); OTHERS], ready, tries);
}

/// Memory that fails to be swapped is nobody's to call failing.
#[test]
fn a_slow_write_is_waited_for_beside_memory_that_cannot_be_swapped() {
    let ready = |w: &World| {
        support::lock(&w.objects[1].store.full).extend(0..8);
        w.objects[1].mapping.is_flushed.store(false, Ordering::Relaxed);
    };
    check_that_a_slow_write_is_waited_for(&[ObjectSpec::pages(8)], ready, writeout);
}

#[test]
fn a_slow_write_is_waited_for_beside_an_exclusive_object_that_fails() {
    let ready = |w: &World| w.objects[1].store.punch_fails.store(true, Ordering::Relaxed);
    let tries = |w: &World, nap| {
        w.word(1, 0).set(UNMAPPED);
        w.word(1, 0).clear(REFERENCED);
        write_exclusive(w, nap);
    };
    let other = ObjectSpec { exclusive: true, ..ObjectSpec::pages(8) };
    check_that_a_slow_write_is_waited_for(&[other], ready, tries);
}

/// What is pinned, or went meanwhile, was refused by nobody.
#[test]
fn a_slow_write_is_waited_for_beside_an_exclusive_object_whose_pages_are_pinned() {
    let other = ObjectSpec { exclusive: true, ..ObjectSpec::pages(8) };
    let ready = |w: &World| _ = w.word(1, 0).try_pin(0).expect("cached");
    check_that_a_slow_write_is_waited_for(&[other], ready, write_exclusive);
}

/// A world of four pages that fill the cache, or their object's limit if `own`, not pinned.
fn world_of_full(own: bool) -> &'static World {
    full(world_of_pinned(8), own)
}

fn full(w: &'static World, own: bool) -> &'static World {
    (0..LIMIT).for_each(|p| w.word(0, p).unpin());
    if !own {
        w.objects[0].mapping.own_limit.store(u64::MAX, Ordering::Relaxed);
        w.account.limit_pages.store(LIMIT, Ordering::Relaxed);
    }
    w
}

/// Misses a page while something takes until the nap `end`, when it is ended by `done`.
fn miss_until(w: &'static World, ctx: &Ctx<'_>, end: u64, done: impl FnOnce() + Send + 'static) -> R {
    let (mut naps, mut done) = (0, Some(done));
    w.set_sleep(move |_| {
        naps += 1;
        if let Some(done) = done.take_if(|_| naps == end) {
            done();
        }
        Woken::TimedOut
    });
    fault::do_user_addr_fault(w.env(), ctx, MISSED, FaultFlags::USER).expect("the vma is there")
}

const LONG: u64 = 20_000;

/// Has everything that is cached owe a flush of its store; returns what ends it.
fn owe_flush(w: &'static World) -> impl FnOnce() + Send + 'static {
    w.objects[0].store.rereads.store(false, Ordering::Relaxed);
    (0..LIMIT).for_each(|p| _ = w.word(0, p).set(UNSYNCED[0]));
    || (0..LIMIT).for_each(|p| w.word(0, p).clear(UNSYNCED[0]))
}

/// A store that takes its time to make pages durable is waited for as one that takes its time to write them, be it that nobody
/// has come to flush it yet.
#[test]
fn a_slow_flush_is_waited_for() {
    for own in [false, true] {
        for flushing in [0, 1] {
            let w = world_of_full(own);
            let flushed = owe_flush(w);
            w.objects[0].mapping.flushing.store(flushing, Ordering::Relaxed);
            let done = move || {
                flushed();
                w.objects[0].mapping.flushing.store(0, Ordering::Relaxed);
            };
            let ctx = Ctx::handler(0, false, 0, None);
            assert_eq!(miss_until(w, &ctx, LONG, done), R::MAJOR | R::LOCKED, "own limit: {own}, flushing: {flushing}");
            w.check_quiescent();
        }
    }
}

/// No flush makes room where nothing that could go waits for it.
#[test]
fn a_flush_of_what_cannot_go_is_not_waited_for() {
    for own in [false, true] {
        let w = world_of_full(own);
        (0..LIMIT).for_each(|p| _ = w.word(0, p).try_pin(0).expect("cached"));
        // Of a page that has left already.
        w.word(0, LIMIT).set(UNSYNCED[0]);
        w.objects[0].mapping.flushing.store(1, Ordering::Relaxed);
        let ctx = Ctx::handler(0, false, 0, None);
        let unpins = move || w.word(0, 0).unpin();
        assert_eq!(miss_until(w, &ctx, LONG, unpins), R::OOM, "own limit: {own}");
        w.objects[0].mapping.flushing.store(0, Ordering::Relaxed);
        unpin(w);
    }
}

/// A world whose room is for pages that their store is reading; returns what ends that.
fn world_of_filling(own: bool) -> (&'static World, impl FnOnce() + Send + 'static) {
    filling(world_of_full(own))
}

fn filling(w: &'static World) -> (&'static World, impl FnOnce() + Send + 'static) {
    let mapping = w.objects[0].mapping;
    assert_eq!(vmscan::reclaim_range(w.env(), mapping, 0, 0, LIMIT), LIMIT);
    let claim = filemap::claim_run(mapping, 0, 0, LIMIT).expect("there is room").expect("nothing is cached");
    assert_eq!(u64::from(claim.nr()), LIMIT);
    (w, move || _ = fill::read_claimed(mapping, w.env().park, 0, claim))
}

#[test]
fn a_slow_read_is_waited_for() {
    for own in [false, true] {
        let (w, read) = world_of_filling(own);
        let ctx = Ctx::handler(0, false, 0, None);
        assert_eq!(miss_until(w, &ctx, LONG, read), R::MAJOR | R::LOCKED, "own limit: {own}");
        w.check_quiescent();
    }
}

/// The pages in hand may be its own, or those of one that waits for it.
#[test]
fn a_thread_that_is_in_a_store_does_not_wait_for_stores() {
    for (own, helps) in [(false, false), (false, true), (true, false), (true, true)] {
        let (w, read) = world_of_filling(own);
        let mut ctx = Ctx::handler(0, !helps, 0, None);
        ctx.is_helper = helps;
        let reads = Arc::new(std::sync::Mutex::new(Some(read)));
        let late = Arc::clone(&reads);
        let done = move || support::lock(&late).take().expect("read once")();
        assert_eq!(miss_until(w, &ctx, LONG, done), R::OOM, "own limit: {own}, one of the runtime's threads: {helps}");
        let read = support::lock(&reads).take().expect("it was told before");
        read();
        w.check_quiescent();
    }
}

/// A sync, or a call that reads, is no fault: of a fault below it nobody can tell that the thread is in a store, and so in one
/// that touches arenas.
#[test]
fn a_store_that_touches_arenas_is_not_waited_for() {
    let world = |own| full(pin_all(world_with(ObjectSpec { store_faults: true, ..ObjectSpec::pages(8) })), own);
    let ctx = Ctx::handler(0, false, 0, None);
    for own in [false, true] {
        let (w, read) = filling(world(own));
        let reads = Arc::new(std::sync::Mutex::new(Some(read)));
        let late = Arc::clone(&reads);
        let done = move || support::lock(&late).take().expect("read once")();
        assert_eq!(miss_until(w, &ctx, LONG, done), R::OOM, "reads, own limit: {own}");
        support::lock(&reads).take().expect("it was told before")();
        w.check_quiescent();

        let w = world(own);
        let flushed = owe_flush(w);
        assert_eq!(miss_until(w, &ctx, LONG, owe_flush(w)), R::OOM, "makes durable, own limit: {own}");
        flushed();
        w.check_quiescent();
    }
    // Below the store's write: what it writes is in hand.
    for own in [false, true] {
        let w = world(own);
        (0..LIMIT).for_each(|p| {
            w.word(0, p).try_pin(DIRTY).expect("cached");
            w.word(0, p).unpin();
        });
        let told = Arc::new(AtomicU64::new(0));
        let said = Arc::clone(&told);
        w.objects[0].store.set_hook(move |_| {
            let r = miss_until(w, &Ctx::handler(0, false, 0, None), u64::MAX, || ());
            said.store(u64::from(r == R::OOM) + 1, Ordering::Relaxed);
        });
        writeback::writeout(w.env(), w.objects[0].mapping, 0, 0, LIMIT).expect("written");
        w.objects[0].store.clear_hook();
        assert_eq!(told.load(Ordering::Relaxed), 2, "writes, own limit: {own}");
        w.check_quiescent();
    }
}

/// Memory at a limit of its own, whose swap fails however often it is asked.
#[test]
fn the_own_write_back_is_not_waited_for_where_it_always_fails() {
    let w = world_of_full(true);
    let mapping = w.objects[0].mapping;
    mapping.is_flushed.store(false, Ordering::Relaxed);
    support::lock(&w.objects[0].store.full).extend(0..8);
    (0..LIMIT).for_each(|p| {
        w.word(0, p).try_pin(DIRTY).expect("cached");
        w.word(0, p).unpin();
    });
    (0..8)
        .for_each(|_| assert!(writeback::writeout(w.env(), mapping, 0, 0, LIMIT).is_err(), "the store takes nothing"));
    // The ninth time takes it for ever.
    (0..LIMIT).for_each(|p| assert!(w.word(0, p).try_writeback().is_ok()));
    let ends = move || (0..LIMIT).for_each(|p| assert!(!w.word(0, p).end_writeback(0).1));
    assert_eq!(miss_until(w, &Ctx::handler(0, false, 0, None), LONG, ends), R::OOM);
    ends();
    w.check_quiescent();
}

/// Entries of pages that went otherwise cost no nap each, but signals come in between.
#[test]
fn a_thread_lets_signals_in_before_it_is_through_with_void_entries() {
    const VOID: u64 = 4 << 20;
    let w = world_with(ObjectSpec { dirty_goes: false, ..ObjectSpec::pages(VOID as usize) });
    w.account.limit_pages.store(VOID / 2, Ordering::Relaxed);
    assert!(w.account.charge(VOID / 2), "there is room");
    let lru = &w.account.lru;
    let entry = Entry::new(w.objects[0].mapping.id, 7, w.word(0, 7).load());
    while lru.probation.push(entry.0) || lru.small.push(entry.0) {}
    let all = lru.len();
    let left = Arc::new(AtomicU64::new(0));
    let seen = Arc::clone(&left);
    w.set_sleep(move |_| {
        let _ = seen.compare_exchange(0, lru.len(), Ordering::Relaxed, Ordering::Relaxed);
        w.account.uncharge(VOID / 2);
        w.account.limit_pages.store(VOID, Ordering::Relaxed);
        Woken::LookAgain
    });
    assert_eq!(miss(w), R::MAJOR | R::LOCKED);
    let left = left.load(Ordering::Relaxed);
    assert!(left > 0, "it has looked at {all} void entries, and let no signal in");
}

/// A handler that is about to install pages has them pinned, for as long as the kernel keeps it waiting.
#[test]
fn pins_of_who_installs_pages_are_waited_for() {
    for own in [true, false] {
        let w = world_of_pinned(8);
        if !own {
            w.objects[0].mapping.own_limit.store(u64::MAX, Ordering::Relaxed);
            w.account.limit_pages.store(LIMIT, Ordering::Relaxed);
        }
        w.set_sleep(|_| Woken::TimedOut);
        let mut asked = 0;
        *support::lock(&w.sections) = Some(Box::new(move || {
            asked += 1;
            if asked == 100 {
                w.word(0, 1).unpin();
            }
            asked >= 100
        }));
        assert_eq!(miss(w), R::MAJOR | R::LOCKED, "own limit: {own}");
        (0..LIMIT).filter(|p| *p != 1).for_each(|p| w.word(0, p).unpin());
        w.check_quiescent();
    }
}

/// The pages that came last can go, and no other: fewer than there are in `small` where the others are in `main`.
fn check_that_the_last_are_found(nr: u64, is_filling: bool) {
    const COLD: u64 = 20;
    // Memory without swap: what is dirty stays.
    let w = world_with(ObjectSpec { dirty_goes: false, ..ObjectSpec::pages(nr as usize + 64) });
    let filling = u64::from(is_filling);
    w.account.limit_pages.store(nr + filling, Ordering::Relaxed);
    w.populate(0, 64, nr + 64);
    assert!(w.account.charge(filling), "there is room");
    for word in (64..nr + 64 - COLD).map(|p| w.word(0, p)) {
        word.try_pin(DIRTY).expect("cached");
        w.objects[0].mapping.account_dirtied(1);
        word.unpin();
    }
    let handler = Handler::new(w);
    let looks = (0..5_000).map(|_| handler.look()).take_while(|r| r.intersects(R::RETRY)).count();
    assert!(looks < 5_000, "nothing is found");
    let cached = w.account.nr_pages.load(Ordering::Relaxed) - filling;
    assert!(cached < nr, "{COLD} pages could go, and {looks} looks found none");
    w.account.uncharge(filling);
}

#[test]
fn the_pages_that_came_last_are_looked_at_before_anybody_gives_up() {
    check_that_the_last_are_found(3 << 12, false);
}

/// A page that a hung store is to read is no reason to look at a part of the cache only.
#[test]
fn everything_is_looked_at_though_something_is_under_way_for_long() {
    // More than are looked at before a thread has been patient for long enough.
    check_that_the_last_are_found(80 << 10, true);
}

/// What a store that hangs has in hand stays on probation, more of it than should be there: the others leave all the same.
#[test]
fn pages_that_a_store_has_in_hand_keep_no_others_in_the_cache() {
    const NR: u64 = 4096;
    const HUNG: u64 = 1024;
    let w = world_of(NR + 64);
    w.account.limit_pages.store(NR, Ordering::Relaxed);
    w.populate(0, 64, NR + 64);
    let lru = &w.account.lru;
    for _ in 0..HUNG {
        let entry = lru.small.pop().or_else(|| lru.main.pop()).map(Entry).expect("every page stands in a queue");
        let word = w.word(0, entry.pgoff());
        word.try_pin(DIRTY).expect("cached");
        word.unpin();
        word.try_writeback().expect("dirty");
        word.set(UNMAPPED);
        assert!(lru.probation.push(entry.0), "there is room on probation");
    }
    w.account.writeback_begins(HUNG, true);
    let mut naps = 0;
    w.set_sleep(move |_| {
        naps += 1;
        assert!(naps < 100, "nothing goes");
        Woken::TimedOut
    });
    assert_eq!(miss(w), R::MAJOR | R::LOCKED);
    w.account.writeback_ends(HUNG, true);
    (0..NR + 64)
        .filter(|p| w.word(0, *p).load().state() == State::Writeback)
        .for_each(|p| _ = w.word(0, p).end_writeback(0));
    w.check_quiescent();
}
