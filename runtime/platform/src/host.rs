//! What the walk asks of its host, for the thread that runs it: sections, sleeping, and the queues to the helpers.
//!
//! # Context: handler; what sleeps for long is for the helpers, and for threads outside of sections

use crate::child;
use crate::section::{self, Refused, Slot};
use crate::sys::{Errno, futex, signal, thread};
use crate::vmatree::{self, Lists};
use crate::{batches, bell, crowd, leave, staging, stalls};
use core::cell;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use softfault_mm::claim::{Claim, Telling};
use softfault_mm::ctx::Ctx;
use softfault_mm::delegation::Delegation;
use softfault_mm::host::{AddressSpace, Batch, Env, Park, Rmap, Woken};
use softfault_mm::mapping::Mapping;
use softfault_mm::ops::{Staged, WaitKey};
use softfault_mm::stall::Stall;
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

/// Readies the queues, once a process.
///
/// # Context: control plane, under the caller's lock
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
///
/// # Context: control plane, or the helper thread
pub fn count_helper(alive: bool) {
    // Release pairs with `submit`, `submit_telling` and `submit_writeback`: who counts on a helper finds its queues ready.
    if alive {
        HELPERS.fetch_add(1, Ordering::Release);
    } else {
        HELPERS.fetch_sub(1, Ordering::Release);
    }
}

/// Whether the monitor wants to know when a job is done.
static WATCHED: AtomicBool = AtomicBool::new(false);

/// Has the monitor's bell rung when a job is done, or not.
///
/// # Context: control plane
pub fn watch_jobs(yes: bool) {
    // SeqCst pairs with `job_done`: who watches looks at what waits afterwards, and the bell rings or the job was done before.
    WATCHED.store(yes, Ordering::SeqCst);
}

/// Says that a job is done. Helpers call it after each.
///
/// # Context: a helper thread
pub fn job_done() {
    // SeqCst pairs with `watch_jobs`.
    if WATCHED.load(Ordering::SeqCst) {
        bell::ring();
    }
}

/// Returns whether work is queued while no helper is free: those there are sit in stores that do not return.
///
/// # Context: handler
#[must_use]
pub fn is_starved() -> bool {
    let queued = |ends: &[AtomicU64; 2]| {
        let [head, tail] = ends;
        head.load(Ordering::Relaxed) != tail.load(Ordering::Relaxed)
    };
    // SeqCst pairs with `next_job`, which counts itself before it sleeps.
    SLEEPERS.load(Ordering::SeqCst) == 0 && (queued(&FILLS_ENDS) || queued(&TELLS_ENDS) || queued(&WRITES_ENDS))
}

/// Returns how many jobs were ever taken from the queues: whether helpers get on.
///
/// # Context: handler
#[must_use]
pub fn jobs_taken() -> u64 {
    let [fills, _] = &FILLS_ENDS;
    let [tells, _] = &TELLS_ENDS;
    let [writes, _] = &WRITES_ENDS;
    let taken = |head: &AtomicU64| head.load(Ordering::Relaxed);
    taken(fills).wrapping_add(taken(tells)).wrapping_add(taken(writes))
}

/// Sleeps until work is submitted that no helper is free for, or `stop` is non-zero. For the thread that starts more.
///
/// # Context: the thread that starts helpers
pub fn wait_for_starvation(stop: &AtomicU32) {
    // SeqCst pairs with `cry_for_help`: a cry after this look moves the word. Acquire of `stop` pairs with `Pool::drop`.
    let seen = STARVED.load(Ordering::SeqCst);
    if stop.load(Ordering::Acquire) == 0 && !is_starved() {
        let _ = futex::wait_word(&STARVED, seen, u64::MAX);
    }
}

/// Takes the next job, sleeping until there is one or `stop` is non-zero.
///
/// # Context: a helper thread
pub fn next_job(stop: &AtomicU32) -> Option<Job> {
    loop {
        // SeqCst pairs with `ring`: work that comes after this look moves the bell.
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
        // SeqCst pairs with `ring`: either the submitter sees a sleeper, or the bell has moved and the wait returns.
        SLEEPERS.fetch_add(1, Ordering::SeqCst);
        let _ = futex::wait_word(&BELL, bell, u64::MAX);
        SLEEPERS.fetch_sub(1, Ordering::SeqCst);
    }
}

/// Wakes the helpers: there is work, or reason to stop.
///
/// # Context: handler
pub fn ring() {
    // SeqCst pairs with `next_job`: see there.
    BELL.fetch_add(1, Ordering::SeqCst);
    if SLEEPERS.load(Ordering::SeqCst) != 0 {
        futex::wake_word(&BELL);
    } else {
        cry_for_help();
    }
}

/// Wakes the thread that starts helpers.
fn cry_for_help() {
    // SeqCst pairs with `wait_for_starvation`.
    STARVED.fetch_add(1, Ordering::SeqCst);
    futex::wake_word(&STARVED);
}

/// Wakes every helper, and the thread that starts them: there is reason to stop.
///
/// # Context: handler
pub fn ring_all() {
    ring();
    cry_for_help();
}

/// Masks the program's asynchronous signals on a helper thread: their handlers may touch arenas, which is refused
/// here, or jump away with a claim. The C library's own (32 and 33: cancellation, setuid) stay open.
///
/// # Context: a helper thread
pub fn mask_signals() {
    let library = signal::mask_bit(32) | signal::mask_bit(33);
    signal::set_mask(signal::HANDLER_MASK & !library);
}

/// Keeps the program's asynchronous signals from the calling thread while it lives.
///
/// A thread that has a claim, a vacancy or a lock which a fault can want must not be interrupted: a handler of the program's
/// that touches that very page waits for the thread it interrupted, for ever.
/// ```text
/// read_at: claims page 5, reads the store
///     SIGALRM: the program's handler loads from page 5: it is being filled, wait for the owner, who is below us
/// ```
/// So control-plane code makes one before it claims, and drops it when all is published. The signals of instructions stay
/// open. It stays on the thread that made it, and guards on one thread end in the opposite order of their beginnings.
#[derive(Debug)]
#[must_use = "signals are open again when it is dropped"]
pub struct Uninterrupted {
    outside: u64,
    not_send: PhantomData<*const ()>,
}

impl Uninterrupted {
    /// Masks them.
    ///
    /// # Context: control plane
    pub fn new() -> Self {
        // A thread that calls setuid(2) waits until every other has taken this signal of the C library's, whose handler makes one
        // system call; a helper has a guard while it waits for work.
        let setuid = signal::mask_bit(33);
        Self { outside: signal::block(signal::HANDLER_MASK & !setuid), not_send: PhantomData }
    }

    /// Runs `f` with the signals open that were when this guard was made: the caller has nothing that a fault could want.
    ///
    /// # Context: control plane
    pub fn opened<R>(&self, f: impl FnOnce() -> R) -> R {
        let ours = signal::set_mask(self.outside);
        let r = f();
        signal::set_mask(ours);
        r
    }

    /// Lets signals come that have waited: between two pieces of work, with nothing in the caller's hands.
    ///
    /// # Context: control plane
    pub fn breathe(&self) {
        self.opened(|| ());
    }
}

impl Default for Uninterrupted {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Uninterrupted {
    fn drop(&mut self) {
        signal::set_mask(self.outside);
    }
}

/// The host of one thread's walk, or of a call that claims pages. Outside handlers the program's asynchronous signals wait
/// while it lives, but for the sleeps of [`Park::wait`].
///
/// The slot is in a cell of its own because sleeping gives it up and takes another.
#[derive(Debug)]
pub struct Host {
    // Dropped before `uninterrupted`: a handler that comes then finds this thread outside.
    slot: cell::RefCell<Option<Slot>>,
    /// `None`: in a handler, on a walk stack, with every signal masked.
    uninterrupted: Option<Uninterrupted>,
    /// User code runs, and may fault.
    is_open: cell::Cell<bool>,
    /// What the walk wants to sleep on, in a handler, when it holds nothing any more.
    waits_for: cell::Cell<Option<(WaitKey, u64)>>,
}

impl Host {
    fn make(slot: Option<Slot>, uninterrupted: Option<Uninterrupted>) -> Self {
        let (is_open, waits_for) = (cell::Cell::new(false), cell::Cell::new(None));
        Self { slot: cell::RefCell::new(slot), uninterrupted, is_open, waits_for }
    }

    /// Returns the host of a walk outside handlers.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn new(slot: Slot) -> Self {
        Self::make(Some(slot), Some(Uninterrupted::new()))
    }

    /// The same for a thread of the program, which enters.
    ///
    /// # Context: control plane, outside of sections
    ///
    /// # Errors
    /// [`Slot::enter_patiently`]'s.
    pub fn enter() -> Result<Self, Refused> {
        let uninterrupted = Uninterrupted::new();
        Ok(Self::make(Some(Slot::enter_patiently()?), Some(uninterrupted)))
    }

    /// Returns the context of a call, outside handlers: it may sleep.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn ctx(&self) -> Ctx<'static> {
        let mut ctx = Ctx::thread(self.with_slot(Slot::stripe).unwrap_or(0));
        ctx.is_helper = section::is_helper();
        ctx
    }

    /// Returns the host of a walk in a handler.
    ///
    /// # Context: handler
    #[must_use]
    pub fn in_handler(slot: Slot) -> Self {
        Self::make(Some(slot), None)
    }

    /// Returns the host of code that looks nothing up by address (`read_at`, fillers): it holds no slot.
    ///
    /// # Context: control plane
    #[must_use]
    pub fn detached() -> Self {
        Self::make(None, Some(Uninterrupted::new()))
    }

    /// Returns what the walk needs.
    ///
    /// # Context: handler
    #[must_use]
    pub fn env(&self) -> Env<'_> {
        Env { mm: self, park: self }
    }

    /// Returns what the walk in a handler wants to sleep on before it goes on, and for how long.
    ///
    /// # Context: handler
    #[must_use]
    pub fn waits_for(&self) -> Option<(WaitKey, u64)> {
        self.waits_for.get()
    }

    /// Lets signals come that have waited, outside handlers; see [`Uninterrupted::breathe`].
    ///
    /// # Context: control plane
    pub fn breathe(&self) {
        self.uninterrupted.iter().for_each(Uninterrupted::breathe);
    }

    fn with_slot<R>(&self, f: impl FnOnce(&Slot) -> R) -> Option<R> {
        let slot = self.slot.try_borrow().ok()?;
        slot.as_ref().map(f)
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
        // that jumps away would leave it entered for ever. Both kinds of host see to that.
        let slot = self.slot.try_borrow().ok()?;
        vmatree::with_vma(slot.as_ref()?, address, f)
    }
    fn with_claim<'f>(&self, claim: &Claim, f: &mut (dyn FnMut(&Mapping<'_>) + 'f)) {
        if let Some(m) = vmatree::mapping(claim.mapping_id()) {
            f(m);
        }
    }
    fn with_telling<'f>(&self, telling: &Telling, f: &mut (dyn FnMut(&Delegation<'_>, &Mapping<'_>) + 'f)) {
        let found = (vmatree::delegation(telling.delegation_id()), vmatree::mapping(telling.claim().mapping_id()));
        if let (Some(d), Some(m)) = found {
            f(d, m);
        }
    }
    fn with_rmap<'f>(&self, f: &mut (dyn FnMut(&dyn Rmap) + 'f)) -> bool {
        let mut entered = self.with_slot(|slot| slot.section(|| f(&Lists::new(slot)))).is_some();
        if !entered && let Ok(slot) = Slot::enter_patiently() {
            slot.section(|| f(&Lists::new(&slot)));
            entered = true;
        }
        entered
    }
    fn make_room(&self) -> Option<WaitKey> {
        let made = self.with_slot(crowd::make_room).unwrap_or_else(|| Err(crowd::Crowded::now()));
        made.err().map(|crowded| crowded.key)
    }
    fn with_batch<'f>(&self, cache: usize, f: &mut (dyn FnMut(&mut Batch) + 'f)) -> bool {
        // A handler of the program's that jumps away would keep the batch for ever: none comes, see `Host`.
        batches::with_batch(cache, f)
    }
    fn reclaim_ticket(&self) -> u64 {
        batches::ticket()
    }
    fn has_reclaim_from_before(&self, cache: usize, ticket: u64) -> bool {
        batches::has_one_from_before(cache, ticket)
    }
    fn have_sections_settled(&self) -> bool {
        // In a child none of the threads that were in one is left.
        child::in_child() || section::try_synchronize()
    }
    fn in_user_code<'f>(&self, may_fault: bool, f: &mut (dyn FnMut() + 'f)) {
        if self.uninterrupted.is_some() || !may_fault || self.is_open.replace(true) {
            return f();
        }
        // The frame of a nested fault would begin at the top of the alternate stack, over that of the fault which we serve.
        let altstack = signal::disable_altstack();
        signal::set_mask(signal::HANDLER_MASK);
        f();
        signal::set_mask(signal::EVERY_SIGNAL);
        signal::restore_altstack(&altstack);
        self.is_open.set(false);
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
    fn now_ns(&self) -> u64 {
        thread::monotonic_ns()
    }
    fn wait(&self, _ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Woken {
        let Some(uninterrupted) = &self.uninterrupted else {
            // The trap does it, see `leave`.
            self.waits_for.set(Some((key, timeout_ns)));
            return Woken::NotNow;
        };
        let mut result = Ok(());
        // Asynchronous signals may come while we sleep: nothing of ours is held that their handlers could leak or want.
        self.without_slot(|| result = uninterrupted.opened(|| wait_out(key, timeout_ns)));
        if result == Err(Errno::ETIMEDOUT) { Woken::TimedOut } else { Woken::LookAgain }
    }
    fn nap(&self, ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Woken {
        if self.uninterrupted.is_some() {
            return self.wait(ctx, key, timeout_ns);
        }
        // It keeps what it has seen, and comes back: so it may leave however often.
        if signal::pending() & !ctx.mask != 0 {
            leave::count();
            return Woken::NotNow;
        }
        if futex::wait(key.addr, key.seen, timeout_ns) == Err(Errno::ETIMEDOUT) {
            return Woken::TimedOut;
        }
        Woken::LookAgain
    }
    fn take_stall(&self, addr: usize) -> Option<Stall> {
        stalls::take(addr)
    }
    fn keep_stall(&self, addr: usize, stall: Stall) {
        stalls::keep(addr, stall);
    }
    fn wake(&self, addr: usize) {
        futex::wake_all(addr);
    }
    fn submit(&self, claim: Claim) -> Result<(), Claim> {
        // Acquire pairs with `count_helper`.
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
        // Acquire pairs with `count_helper`.
        if HELPERS.load(Ordering::Acquire) == 0 {
            return Err(telling);
        }
        tells().push(telling.into_words()).map_err(Telling::from_words)?;
        ring();
        Ok(())
    }
    fn submit_writeback(&self, claim: Claim) -> Result<(), Claim> {
        // Acquire pairs with `count_helper`.
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

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;

    /// A full cache may stay so for ever, and the signal may be the one that is to end the program.
    #[test]
    fn a_signal_ends_each_nap_however_long_that_goes_on() {
        const SIGUSR1: i32 = 10;
        let (naps, last) = std::thread::spawn(|| {
            // It is for this thread, which takes it with it when it ends.
            signal::block(signal::mask_bit(SIGUSR1));
            signal::raise(SIGUSR1);
            let host = Host::make(None, None);
            let ctx = Ctx::handler(0, false, 0, None);
            let word = AtomicU32::new(0);
            let key = WaitKey { addr: core::ptr::from_ref(&word).addr(), seen: 0 };
            let began = std::time::Instant::now();
            let mut naps = 0;
            while began.elapsed().as_millis() < 2_500 && host.nap(&ctx, key, 1_000_000) == Woken::NotNow {
                naps += 1;
            }
            (naps, host.nap(&ctx, key, 1_000_000))
        })
        .join()
        .unwrap_or((0, Woken::TimedOut));
        assert_eq!(last, Woken::NotNow, "after {naps} naps it is refused");
    }
}
