//! A thread in front of an object's own limit: what it waits for, and what it is told in the end.
#![cfg(not(loom))]
#![forbid(unsafe_code)]

mod support;

use core::cell::Cell;
use softfault_mm::claim::{Claim, Telling};
use softfault_mm::ctx::Ctx;
use softfault_mm::fault;
use softfault_mm::host::{Env, Park, Woken};
use softfault_mm::ops::WaitKey;
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::stall::Stall;
use softfault_mm::types::{FaultFlags, VmFaultReason, VmFlags};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use support::{MapSpec, ObjectSpec, World, arena_base};

type R = VmFaultReason;

static PLAIN: ShmemVmOps = ShmemVmOps { mkwrite: false };
/// The limit of the object, in pages.
const LIMIT: u64 = 4;
/// What nobody has in the cache.
const MISSED: usize = arena_base(0) + (5 << 12);

/// A world of an object at a limit of its own, whose cached pages are all pinned.
fn world_of_pinned_pages() -> &'static World {
    let w = Box::leak(Box::new(World::new(&[ObjectSpec::pages(8)], 1)));
    w.objects[0].mapping.own_limit.store(LIMIT, Ordering::Relaxed);
    let flags = VmFlags::READ | VmFlags::SHARED | VmFlags::MAP_SINGLE;
    let (ops, delegation) = (&PLAIN, None);
    assert!(w.map(MapSpec { arena: 0, at: 0, nr: 8, object: 0, pgoff: 0, flags, ops, granule_pages: 0, delegation }));
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
    fn stall(&self) -> Option<&Cell<Stall>> {
        Some(&self.stall)
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
    let w = world_of_pinned_pages();
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
    let w = world_of_pinned_pages();
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
    let w = world_of_pinned_pages();
    let handler = Handler::new(w);
    for look in 0..100 {
        w.objects[0].mapping.own_limit.store(LIMIT - look % 2, Ordering::Relaxed);
        assert!(handler.look().intersects(R::RETRY), "look {look}: nothing was proved under this limit yet");
    }
    unpin(w);
}
