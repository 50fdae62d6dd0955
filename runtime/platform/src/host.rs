//! What the walk asks of its host, for the thread that runs it: sections, sleeping, and the queues to the helpers.

use crate::section::Slot;
use crate::sys::{Errno, fd, file, futex, signal, thread};
use crate::vmatree::{self, Lists};
use crate::{reclaim, stack, staging};
use core::cell;
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU32, Ordering};
use softfault_mm::claim::{Claim, Telling};
use softfault_mm::ctx::Ctx;
use softfault_mm::delegation::Delegation;
use softfault_mm::host::{AddressSpace, Batch, Env, Park, Rmap, Woken};
use softfault_mm::mapping::Mapping;
use softfault_mm::ops::{Staged, WaitKey};
use softfault_mm::sync::{AtomicU64, Cell, Ring};
use softfault_mm::types::VmFaultReason;
use softfault_mm::vma::Vma;

/// How much may be queued to the fillers, and to the delegates' workers.
const QUEUE_LEN: usize = 1024;

static FILLS: [Cell<2>; QUEUE_LEN] = [const { Cell::new() }; QUEUE_LEN];
static FILLS_ENDS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static WRITES: [Cell<2>; QUEUE_LEN] = [const { Cell::new() }; QUEUE_LEN];
static WRITES_ENDS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
static TELLS: [Cell<4>; QUEUE_LEN] = [const { Cell::new() }; QUEUE_LEN];
static TELLS_ENDS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];
/// Moves with every submission; helpers sleep on it.
static BELL: AtomicU32 = AtomicU32::new(0);
/// Helpers that take from the queues: without any, nothing may be queued.
static HELPERS: AtomicU32 = AtomicU32::new(0);
/// Helpers asleep on the bell.
static SLEEPERS: AtomicU32 = AtomicU32::new(0);
/// Moves when work is submitted while no helper sleeps.
static STARVED: AtomicU32 = AtomicU32::new(0);
static READY: AtomicU32 = AtomicU32::new(0);

fn fills() -> Ring<'static, 2> {
    Ring::new(&FILLS, &FILLS_ENDS[0], &FILLS_ENDS[1])
}
fn writes() -> Ring<'static, 2> {
    Ring::new(&WRITES, &WRITES_ENDS[0], &WRITES_ENDS[1])
}
fn tells() -> Ring<'static, 4> {
    Ring::new(&TELLS, &TELLS_ENDS[0], &TELLS_ENDS[1])
}

/// Readies the queues, once a process. Control plane, under the caller's lock.
pub fn init() {
    if READY.swap(1, Ordering::Relaxed) == 0 {
        fills().init();
        writes().init();
        tells().init();
    }
}

/// Work for a helper thread.
#[derive(Debug)]
pub enum Job {
    /// Read the claimed pages.
    Fill(Claim),
    /// Call the delegate.
    Tell(Telling),
    /// Write the dirty ones among the pages that the claim names.
    Writeback(Claim),
}

/// Announces (`true`) or retires a helper thread that calls [`next_job`].
pub fn count_helper(alive: bool) {
    if alive {
        HELPERS.fetch_add(1, Ordering::Release);
    } else {
        HELPERS.fetch_sub(1, Ordering::Release);
    }
}

/// Whether the monitor wants to know when a job is done.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// The monitor's bell, an eventfd, once there is one; and what such a number names.
static BELL_FD: AtomicI32 = AtomicI32::new(-1);
static BELL_IS: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Returns the eventfd that wakes the monitor, making it at first use, or anew where the program has closed it. Control
/// plane under the caller's lock, and the monitor.
///
/// It lives as long as the process: a helper that is abandoned inside a store may still write to it, and must not find
/// a file of the program's under its number.
///
/// # Errors
/// `EMFILE`, `ENOMEM`.
pub fn monitor_bell() -> Result<i32, Errno> {
    let bell = BELL_FD.load(Ordering::Acquire);
    if bell >= 0 && fd::names(bell, bell_is()) {
        return Ok(bell);
    }
    let bell = fd::raise(file::eventfd()?);
    let [dev, ino] = &BELL_IS;
    let is = fd::identity(bell)?;
    dev.store(is.0, Ordering::Relaxed);
    ino.store(is.1, Ordering::Relaxed);
    // Release pairs with the Acquire here and in ring_monitor(): every eventfd is the same inode to the kernel, so what was
    // noted of one that is gone holds for this one, too.
    BELL_FD.store(bell, Ordering::Release);
    Ok(bell)
}

fn bell_is() -> (u64, u64) {
    let [dev, ino] = &BELL_IS;
    (dev.load(Ordering::Relaxed), ino.load(Ordering::Relaxed))
}

/// Has the bell rung when a job is done, or not.
pub fn watch_jobs(yes: bool) {
    WATCHED.store(yes, Ordering::SeqCst);
}

/// Wakes the monitor.
pub fn ring_monitor() {
    let bell = BELL_FD.load(Ordering::Acquire);
    // Eight bytes in a file of the program's would be eight bytes of that file.
    if bell >= 0 && fd::names(bell, bell_is()) {
        let _ = file::write(bell, &1u64.to_ne_bytes());
    }
}

/// Says that a job is done. Helpers call it after each.
pub fn job_done() {
    if WATCHED.load(Ordering::SeqCst) {
        ring_monitor();
    }
}

/// Returns whether work is queued while no helper is free: those there are sit in stores that do not return.
#[must_use]
pub fn is_starved() -> bool {
    let queued = |ends: &[AtomicU64; 2]| {
        let [head, tail] = ends;
        head.load(Ordering::Relaxed) != tail.load(Ordering::Relaxed)
    };
    SLEEPERS.load(Ordering::SeqCst) == 0 && (queued(&FILLS_ENDS) || queued(&TELLS_ENDS) || queued(&WRITES_ENDS))
}

/// Returns how many jobs were ever taken from the queues: whether helpers get on.
#[must_use]
pub fn jobs_taken() -> u64 {
    let [fills, _] = &FILLS_ENDS;
    let [tells, _] = &TELLS_ENDS;
    let [writes, _] = &WRITES_ENDS;
    let taken = |head: &AtomicU64| head.load(Ordering::Relaxed);
    taken(fills).wrapping_add(taken(tells)).wrapping_add(taken(writes))
}

/// Sleeps until work is submitted that no helper is free for, or `stop` is non-zero. For the thread that starts more.
pub fn wait_for_starvation(stop: &AtomicU32) {
    let seen = STARVED.load(Ordering::SeqCst);
    if stop.load(Ordering::Acquire) == 0 && !is_starved() {
        let _ = futex::wait_word(&STARVED, seen, u64::MAX);
    }
}

/// Takes the next job, sleeping until there is one or `stop` is non-zero.
pub fn next_job(stop: &AtomicU32) -> Option<Job> {
    loop {
        let bell = BELL.load(Ordering::SeqCst);
        let job = fills().pop().map(|w| Job::Fill(Claim::from_words(w)));
        let job = job.or_else(|| tells().pop().map(|w| Job::Tell(Telling::from_words(w))));
        let job = job.or_else(|| writes().pop().map(|w| Job::Writeback(Claim::from_words(w))));
        if job.is_some() {
            // Two submitters may both have seen this helper asleep: one of their jobs is left, and nobody else comes.
            if is_starved() {
                cry_for_help();
            }
            return job;
        }
        if stop.load(Ordering::Acquire) != 0 {
            return None;
        }
        // SeqCst with ring(): either the submitter sees a sleeper, or the bell has moved and the wait returns.
        SLEEPERS.fetch_add(1, Ordering::SeqCst);
        let _ = futex::wait_word(&BELL, bell, u64::MAX);
        SLEEPERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Wakes the helpers: there is work, or reason to stop.
///
/// # Context: handler
pub fn ring() {
    BELL.fetch_add(1, Ordering::SeqCst);
    if SLEEPERS.load(Ordering::SeqCst) != 0 {
        futex::wake_word(&BELL);
    } else {
        cry_for_help();
    }
}

/// Wakes the thread that starts helpers.
fn cry_for_help() {
    STARVED.fetch_add(1, Ordering::SeqCst);
    futex::wake_word(&STARVED);
}

/// Wakes every helper, and the thread that starts them: there is reason to stop.
pub fn ring_all() {
    ring();
    cry_for_help();
}

/// Masks the program's asynchronous signals on a helper thread: their handlers may touch arenas, which is refused
/// here, or jump away with a claim. The C library's own (32 and 33: cancellation, setuid) stay open.
pub fn mask_signals() {
    let library = signal::mask_bit(32) | signal::mask_bit(33);
    signal::set_mask(signal::HANDLER_MASK & !library);
}

/// The host of one thread's walk.
///
/// The slot is in a cell of its own because sleeping gives it up and takes another.
#[derive(Debug)]
pub struct Host {
    slot: cell::RefCell<Option<Slot>>,
    handler: bool,
    footing: cell::Cell<Footing>,
}

/// What a handler runs on, and which signals are open meanwhile.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Footing {
    /// On the alternate stack; every signal is masked, as the kernel entered us.
    Closed,
    /// On the alternate stack; the signals of instructions are open: user code may run, and fault.
    Open,
    /// On a walk stack; every signal is masked.
    Walk,
}

impl Host {
    /// Returns the host of the calling thread's walk.
    #[must_use]
    pub fn new(slot: Slot, handler: bool) -> Self {
        Self { slot: cell::RefCell::new(Some(slot)), handler, footing: cell::Cell::new(Footing::Closed) }
    }

    /// Returns the host of code that looks nothing up by address (`read_at`, fillers): it holds no slot.
    #[must_use]
    pub fn detached() -> Self {
        Self { slot: cell::RefCell::new(None), handler: false, footing: cell::Cell::new(Footing::Closed) }
    }

    /// Returns what the walk needs.
    #[must_use]
    pub fn env(&self) -> Env<'_> {
        Env { mm: self, park: self }
    }

    fn with_slot<R>(&self, f: impl FnOnce(&Slot) -> R) -> Option<R> {
        let slot = self.slot.try_borrow().ok()?;
        slot.as_ref().map(f)
    }

    /// Lets code that follows fault: in a handler, outside the parts that run on a walk stack.
    fn open_signals(&self) {
        if self.handler && self.footing.get() == Footing::Closed {
            signal::set_mask(signal::HANDLER_MASK);
            self.footing.set(Footing::Open);
        }
    }

    /// Looks the vma up and runs `f` on it, in the section.
    fn walk<'f>(&self, address: usize, f: &mut (dyn FnMut(&Vma<'_>) -> VmFaultReason + 'f)) -> Option<VmFaultReason> {
        let slot = self.slot.try_borrow().ok()?;
        vmatree::with_vma(slot.as_ref()?, address, f)
    }

    /// Returns whether what is deep runs where we are; if not, we are about to go to a walk stack, and every signal is
    /// masked.
    #[inline]
    fn stays_here(&self) -> bool {
        if !self.handler {
            return true;
        }
        match self.footing.replace(Footing::Walk) {
            // A part of such a part.
            Footing::Walk => return true,
            Footing::Open => _ = signal::set_mask(signal::EVERY_SIGNAL),
            Footing::Closed => {}
        }
        false
    }

    /// Gives the slot up for the length of `f`.
    fn without_slot(&self, f: impl FnOnce()) {
        let Ok(mut slot) = self.slot.try_borrow_mut() else { return };
        let had = slot.take().is_some();
        f();
        if had {
            *slot = Slot::enter_patiently().ok();
        }
    }
}

impl AddressSpace for Host {
    fn with_vma<'f>(
        &self,
        address: usize,
        f: &mut (dyn FnMut(&Vma<'_>) -> VmFaultReason + 'f),
    ) -> Option<VmFaultReason> {
        // A section must not be interrupted: a handler of the program's that faults inside it would be refused, and one
        // that jumps away would leave it entered for ever. In our own handlers the mask is in force already.
        let mut r = None;
        if self.handler {
            self.on_walk_stack(&mut || r = self.walk(address, f));
            return r;
        }
        let outside = signal::block(signal::HANDLER_MASK);
        r = self.walk(address, f);
        signal::set_mask(outside);
        r
    }
    fn with_claim<'f>(&self, claim: &Claim, f: &mut (dyn FnMut(&Mapping<'_>) + 'f)) {
        if let Some(m) = vmatree::mapping(claim.mapping_id()) {
            // Only a store that touches arenas faults: the others spare themselves two system calls.
            if m.store_faults {
                self.open_signals();
            }
            f(m);
        }
    }
    fn with_telling<'f>(&self, telling: &Telling, f: &mut (dyn FnMut(&Delegation<'_>, &Mapping<'_>) + 'f)) {
        // The delegate may fault.
        self.open_signals();
        let found = (vmatree::delegation(telling.delegation_id()), vmatree::mapping(telling.claim().mapping_id()));
        if let (Some(d), Some(m)) = found {
            f(d, m);
        }
    }
    fn with_rmap<'f>(&self, f: &mut (dyn FnMut(&dyn Rmap) + 'f)) -> bool {
        let outside = if self.handler { 0 } else { signal::block(signal::HANDLER_MASK) };
        let mut entered = self.with_slot(|slot| slot.section(|| f(&Lists::new(slot)))).is_some();
        if !entered && let Ok(slot) = Slot::enter_patiently() {
            slot.section(|| f(&Lists::new(&slot)));
            entered = true;
        }
        if !self.handler {
            signal::set_mask(outside);
        }
        entered
    }
    fn with_batch<'f>(&self, f: &mut (dyn FnMut(&mut Batch) + 'f)) -> bool {
        let mut have = false;
        if self.handler {
            self.on_walk_stack(&mut || have = reclaim::with_batch(f));
            return have;
        }
        // A handler of the program's that jumps away would keep the batch for ever.
        let outside = signal::block(signal::HANDLER_MASK);
        have = reclaim::with_batch(f);
        signal::set_mask(outside);
        have
    }
    #[inline]
    fn on_walk_stack<'f>(&self, f: &mut (dyn FnMut() + 'f)) {
        if self.stays_here() {
            return f();
        }
        let hint = self.with_slot(Slot::stripe).unwrap_or(0);
        stack::on_walk_stack(hint, f);
        self.footing.set(Footing::Closed);
    }
    #[inline]
    fn on_read_stack<'f>(&self, f: &mut (dyn FnMut() + 'f)) -> bool {
        if self.stays_here() {
            f();
            return true;
        }
        let hint = self.with_slot(Slot::stripe).unwrap_or(0);
        let ran = stack::on_read_stack(hint, f);
        self.footing.set(Footing::Closed);
        ran
    }
    fn get_staged(&self) -> Option<Staged> {
        staging::get()
    }
    fn put_staged(&self, staged: Staged) {
        staging::put(&staged);
    }
}

/// Sleeps the whole time, however many signals come between.
fn wait_out(key: WaitKey, timeout_ns: u64) -> Result<(), Errno> {
    if timeout_ns == u64::MAX {
        return futex::wait(key.addr, key.seen, u64::MAX);
    }
    let end = thread::monotonic_ns().saturating_add(timeout_ns);
    loop {
        let left = end.saturating_sub(thread::monotonic_ns());
        if left == 0 {
            return Err(Errno::ETIMEDOUT);
        }
        match futex::wait(key.addr, key.seen, left) {
            Err(Errno::EINTR) => {}
            r => return r,
        }
    }
}

impl Park for Host {
    fn wait(&self, ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Woken {
        let mut result = Ok(());
        self.without_slot(|| {
            // Asynchronous signals may come while we sleep: nothing of ours is held that their handlers could leak.
            let ours = if self.handler { signal::set_mask(ctx.mask) } else { 0 };
            result = wait_out(key, timeout_ns);
            if self.handler {
                signal::set_mask(ours);
            }
        });
        if result == Err(Errno::ETIMEDOUT) { Woken::TimedOut } else { Woken::LookAgain }
    }
    fn wake(&self, addr: usize) {
        futex::wake_all(addr);
    }
    fn submit(&self, claim: Claim) -> Result<(), Claim> {
        if HELPERS.load(Ordering::Acquire) == 0 {
            return Err(claim);
        }
        fills().push(claim.into_words()).map_err(Claim::from_words)?;
        ring();
        Ok(())
    }
    fn is_congested(&self) -> bool {
        HELPERS.load(Ordering::Relaxed) == 0 || is_starved()
    }
    fn submit_telling(&self, telling: Telling) -> Result<(), Telling> {
        if HELPERS.load(Ordering::Acquire) == 0 {
            return Err(telling);
        }
        tells().push(telling.into_words()).map_err(Telling::from_words)?;
        ring();
        Ok(())
    }
    fn submit_writeback(&self, claim: Claim) -> Result<(), Claim> {
        if HELPERS.load(Ordering::Acquire) == 0 {
            return Err(claim);
        }
        writes().push(claim.into_words()).map_err(Claim::from_words)?;
        ring();
        Ok(())
    }
    fn relax(&self) {
        thread::sched_yield();
    }
}
