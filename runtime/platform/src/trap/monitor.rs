//! Messages of a userfaultfd, for accesses that a signal cannot serve: the kernel's own, and a guest's.
//!
//! One thread serves every monitored arena, so it never waits for one page: what needs a store or a delegate goes to
//! the helpers, and the access is kept in a list and looked at again when a helper has finished something. User code
//! runs on this thread only if it is handler-safe.
//!
//! # Context: the monitor thread: as a handler, outside of signals

use crate::bell;
use crate::host::{self, Host};
use crate::mmu::uffd::UffdMmu;
use crate::section::Slot;
use crate::sys::uffd::{Filled, PageFaultMsg, bits};
use crate::sys::{Errno, fd, file, mem, thread};
use crate::vmatree::{self, Trap};
use core::cell::Cell;
use softfault_mm::claim::{Claim, Telling};
use softfault_mm::ctx::Ctx;
use softfault_mm::fault::{self, Env};
use softfault_mm::host::{Park, Woken};
use softfault_mm::ops::WaitKey;
use softfault_mm::page::{PAGE_SIZE, page_align_down};
use softfault_mm::stall::Stall;
use softfault_mm::types::{FaultFlags, VmFaultReason};
use softfault_mm::vmstat::Event;

/// Accesses that may wait at once; more are woken, and come again as new messages.
const NR_PENDING: usize = 1024;
/// How long the list waits for a helper's word before it is looked at anyway.
const LOOK_AGAIN_MS: i32 = 20;
/// How long the thread sleeps when nothing waits: between a look at a number and poll(2) the program may close it and open another
/// file, which is never ready.
const IDLE_MS: i32 = 1_000;

/// An access that waits for a fill, a delegate or another thread.
#[derive(Clone, Copy, Debug, Default)]
struct Pending {
    /// The page's address; 0: the entry is free.
    page: usize,
    flags: FaultFlags,
    since_ns: u64,
    /// The bits of the attempts so far.
    before: VmFaultReason,
    /// How long it has found no room.
    stall: Stall,
}

/// The park of a thread that must not sleep: it says "not now", or that the time is over.
struct Impatient<'h> {
    host: &'h Host,
    age_ns: u64,
    stall: Cell<Stall>,
}

impl Park for Impatient<'_> {
    fn wait(&self, _ctx: &Ctx<'_>, _key: WaitKey, timeout_ns: u64) -> Woken {
        if self.age_ns >= timeout_ns { Woken::TimedOut } else { Woken::NotNow }
    }
    fn nap(&self, _ctx: &Ctx<'_>, _key: WaitKey, _timeout_ns: u64) -> Woken {
        // The access is looked at again soon, and goes on from its stall.
        Woken::NotNow
    }
    fn take_stall(&self, _addr: usize) -> Option<Stall> {
        Some(self.stall.take())
    }
    fn keep_stall(&self, _addr: usize, stall: Stall) {
        self.stall.set(stall);
    }
    fn now_ns(&self) -> u64 {
        thread::monotonic_ns()
    }
    fn wake(&self, addr: usize) {
        self.host.wake(addr);
    }
    fn submit(&self, claim: Claim) -> Result<(), Claim> {
        self.host.submit(claim)
    }
    fn is_congested(&self) -> bool {
        self.host.is_congested()
    }
    fn submit_telling(&self, telling: Telling) -> Result<(), Telling> {
        self.host.submit_telling(telling)
    }
    fn submit_writeback(&self, claim: Claim) -> Result<(), Claim> {
        self.host.submit_writeback(claim)
    }
    fn relax(&self) {}
}

/// Serves messages until `stop` is set; the bell is rung then, and when a helper has finished something.
///
/// Runs on its own thread, which must be a registered helper.
///
/// # Context: the monitor thread
///
/// # Errors
/// The kernel's, when the descriptor can no longer be read: see [`give_up`].
pub fn serve(mmu: &UffdMmu, stop: &core::sync::atomic::AtomicU32) -> Result<(), Errno> {
    let mut messages = [PageFaultMsg::default(); 16];
    let mut pending = [Pending::default(); NR_PENDING];
    let mut waiting = 0usize;
    // From before the first message on: a helper may be done before this thread looks again.
    let _watching = Watching::new();
    let mut hears = bell::get().ok();
    let mut has_read = false;
    loop {
        // Whatever else the number names by now may never be ready. Who has just read from it has looked.
        let is_ours = has_read || mmu.uffd().take_back().map(|()| true).or_else(put_off)?;
        let timeout = if waiting > 0 || hears.is_none() || !is_ours { LOOK_AGAIN_MS } else { IDLE_MS };
        let polled = if is_ours { mmu.uffd().fd() } else { -1 };
        let ready = match file::poll_in([polled, hears.unwrap_or(-1)], timeout) {
            Err(Errno::EINTR) => 0,
            // RLIMIT_NOFILE is below the two of them: what is read is looked at unasked.
            Err(Errno::EINVAL) => put_off(Errno::EAGAIN).map(|()| 3)?,
            r => r.or_else(put_off)?,
        };
        // Acquire pairs with `Monitor::drop`.
        if stop.load(core::sync::atomic::Ordering::Acquire) != 0 {
            return Ok(());
        }
        if ready & 1 == 0 {
            bell::hush();
            // Whatever cannot be had now is asked for again: nobody's page depends on a bell.
            hears = bell::get().ok();
        }
        waiting = 0;
        for entry in pending.iter_mut().filter(|p| p.page != 0) {
            if serve_one(mmu, entry) {
                entry.page = 0;
            } else {
                waiting += 1;
            }
        }
        let nr = if ready & 1 != 0 { mmu.uffd().read(&mut messages).or_else(put_off)? } else { 0 };
        has_read = nr > 0;
        for message in messages.iter().take(nr).filter(|m| m.event == bits::EVENT_PAGEFAULT) {
            let mut new = pending_of(message);
            if serve_one(mmu, &mut new) {
                continue;
            }
            match pending.iter_mut().find(|p| p.page == 0) {
                Some(entry) => *entry = new,
                None => mmu.uffd().wake(new.page, PAGE_SIZE),
            }
            waiting += 1;
        }
    }
}

/// The process has no number left, or the kernel no memory, for now: whoever waits for a page waits a little longer.
fn put_off<T: Default>(e: Errno) -> Result<T, Errno> {
    if !matches!(e, Errno::EMFILE | Errno::ENFILE | Errno::ENOMEM | Errno::EAGAIN) {
        return Err(e);
    }
    thread::sleep_ns(u64::from(LOOK_AGAIN_MS.unsigned_abs()) * 1_000_000);
    Ok(T::default())
}

/// Has helpers ring the bell, until dropped.
struct Watching;

impl Watching {
    fn new() -> Self {
        host::watch_jobs(true);
        Self
    }
}

impl Drop for Watching {
    fn drop(&mut self) {
        host::watch_jobs(false);
    }
}

/// Ends monitored arenas of which the messages can no longer be read: whoever waits for a page, and whoever touches one
/// from now on, gets SIGSEGV. Without it the first would wait for ever; and once the context goes, holes are zeros.
///
/// # Context: the monitor thread
pub fn give_up() {
    vmatree::each_arena(Trap::Monitor, &mut |base, len_bytes| {
        // SAFETY: the arena's own range; nothing that is protected so is read any more.
        let _ = unsafe { mem::mprotect(base, len_bytes, mem::PROT_NONE) };
    });
    fd::let_go();
}

fn pending_of(message: &PageFaultMsg) -> Pending {
    let mut flags = FaultFlags::ALLOW_RETRY;
    if message.flags & (bits::PAGEFAULT_FLAG_WRITE | bits::PAGEFAULT_FLAG_WP) != 0 {
        flags |= FaultFlags::WRITE;
    }
    Pending {
        page: page_align_down(message.address),
        flags,
        since_ns: thread::monotonic_ns(),
        before: VmFaultReason::empty(),
        stall: Stall::default(),
    }
}

/// Plants poison over nothing, or over the note that stores are to be watched: poison replaces no entry.
fn poison(mmu: &UffdMmu, page: usize) -> bool {
    let plant = || mmu.uffd().poison(page, PAGE_SIZE);
    match plant() {
        // Lifting the protection drops the note. A page that was mapped meanwhile counts as written from then on.
        Filled::Exists => {
            mmu.has_wp() && mmu.uffd().writeprotect(page, PAGE_SIZE, false).is_ok() && plant() == Filled::All
        }
        r => r == Filled::All,
    }
}

/// Resolves one access, or plants poison, so that neither a thread nor a system call waits for ever; `false`: it has
/// to wait.
fn serve_one(mmu: &UffdMmu, access: &mut Pending) -> bool {
    let Ok(slot) = Slot::enter_patiently() else { return false };
    // The context of a handler: this thread may not call what sleeps.
    let ctx = Ctx::handler(slot.stripe(), false, 0, None);
    let stat = slot.section(|| {
        let arena = vmatree::arena_of(access.page)?;
        vmatree::arena_info(&slot, arena).map(|(_, stat)| vmatree::outlives_fault(stat))
    });
    let host = Host::new(slot);
    let age_ns = thread::monotonic_ns().saturating_sub(access.since_ns);
    let park = Impatient { host: &host, age_ns, stall: Cell::new(access.stall) };
    let env = Env { mm: &host, park: &park };
    let r = fault::resume_user_addr_fault(env, &ctx, access.page, access.flags, access.before, false);
    access.stall = park.stall.get();
    if let Some(bits) = r.filter(|r| r.intersects(VmFaultReason::RETRY)) {
        access.before = bits;
        access.flags |= FaultFlags::TRIED;
        return false;
    }
    if let Some(stat) = stat {
        stat.add(ctx.stripe, Event::MONITOR_MSG, 1);
    }
    if r.is_some_and(|r| r.intersects(VmFaultReason::ERROR)) {
        super::blame::note(&host, &ctx, access.page);
    }
    let failed = r.is_none_or(|r| r.intersects(VmFaultReason::ERROR));
    if failed && poison(mmu, access.page) {
        if let Some(stat) = stat {
            stat.add(ctx.stripe, Event::MONITOR_POISON, 1);
        }
        return true;
    }
    // Also when the page was mapped already, or the range is the kernel's by now: who waits looks again.
    mmu.uffd().wake(access.page, PAGE_SIZE);
    true
}
