//! What exit(3), and [`Runtime::write_back`](crate::Runtime::write_back), have written: everything that was stored before. Who
//! asks, and how it is waited for, is in [`softfault_platform::exit`].
//!
//! A thread of its own sees to it, and not the flusher, which may sit in a store that hangs when the process exits. What such
//! a store takes of the time is not to be the others':
//! ```text
//! this thread                                       fillers, more of them while all are busy
//! scans every object, and hands it out  --------->  one each: writes what is dirty, or hangs
//! writes again what no filler has any more (what was pinned, or busy for a moment): that ends
//! nothing gets on any more: what is left hangs, or fails; waits for it
//! ```
//! The thread allocates nothing in a round: who exits may hold the allocator's lock.
//!
//! # Context: exit's writer; the rest, control plane

use super::flusher::Writables;
use super::state::Flushing;
use super::writeout;
use crate::error::{Error, Result};
use crate::process::helper;
use softfault_mm::filemap;
use softfault_mm::host::Env;
use softfault_mm::mapping::Mapping;
use softfault_mm::memcontrol::CacheAccount;
use softfault_platform::exit::Seat;
use softfault_platform::host::Host;
use softfault_platform::sys::{Errno, futex};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// The thread, and what it sleeps on: 1 stops it.
#[derive(Debug)]
pub(crate) struct LastWriter {
    bell: Arc<AtomicU32>,
    seat: Arc<Seat>,
    thread: helper::Thread,
}

impl LastWriter {
    /// Starts it; exit(3) waits for it as long as `exit_wait`.
    pub(crate) fn start(
        objects: Arc<Writables>,
        account: &'static CacheAccount<'static>,
        exit_wait: Duration,
    ) -> Result<Self> {
        let op = "Runtime::build";
        let bell = Arc::<AtomicU32>::default();
        let wait_ms = u32::try_from(exit_wait.as_millis()).unwrap_or(u32::MAX);
        let seat = Seat::take(Arc::as_ptr(&bell).addr(), wait_ms).map_err(|e| match e {
            Errno::EBUSY => Error::Exhausted { op, what: "runtimes (256)" },
            errno => Error::System { op, call: "atexit", errno },
        })?;
        let seat = Arc::new(seat);
        let its = Arc::clone(&seat);
        let thread = helper::Thread::start("softfault-exit", Arc::clone(&bell), move |stop| {
            its.sit();
            run(stop, &objects, account, &its);
        });
        let thread = thread.map_err(|source| Error::Io {
            op: "Runtime::build: start the thread that writes at exit",
            path: None,
            source,
        })?;
        Ok(Self { bell, seat, thread })
    }

    /// Has everything written that was stored before the call; `false`: it was not in time.
    pub(crate) fn write_back(&self, timeout: Duration) -> bool {
        self.seat.write_back(u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX))
    }
}

impl Drop for LastWriter {
    fn drop(&mut self) {
        let bell = Arc::clone(&self.bell);
        self.thread.end(|| futex::wake_word(&bell));
    }
}

fn run(stop: &AtomicU32, objects: &Writables, account: &CacheAccount<'_>, seat: &Seat) {
    // Acquire pairs with `Thread::tell`.
    while stop.load(Ordering::Acquire) == 0 {
        match seat.wanted() {
            Some(round) => {
                write_everything(Host::detached().env(), objects, account, round);
                seat.made(round);
            }
            // Whoever asks wakes again and again.
            None => _ = futex::wait_word(stop, 0, u64::MAX),
        }
    }
}

/// How long a store that failed before is tried at the first chunk that it does not take.
const LAST_TRY: Duration = Duration::from_millis(200);
/// How often the end of writes that others have begun is looked for, a millisecond apart.
const LOOKS: u32 = 5_000;
/// How long nothing may get on before what is left counts as hanging.
const STALL: Duration = Duration::from_secs(1);

/// Writes everything that was stored before the call, as a sync does but for the flush: what the kernel would have of its own
/// shared mappings when the process has ended. Errors are counted; nobody is left to be told.
fn write_everything(env: Env<'_>, objects: &Writables, account: &CacheAccount<'_>, round: u32) {
    for id in objects.ids() {
        objects.with(env, id, |flushing, m| {
            if flushing.is_persistent() && !m.exclusive && !m.failing.is_set() {
                writeout::harvest(env, m, &(0..m.nr_pages()));
                hand_out(env, m);
            }
        });
    }
    write_idle(env, objects, account, round);
    // Exclusive objects are written by their own rules, which fillers do not know; then what hangs, then what fails.
    let kinds: [fn(&Mapping<'_>) -> bool; 3] =
        [|m| m.exclusive && !m.failing.is_set(), |m| !m.failing.is_set(), |_| true];
    for is_due in kinds {
        for id in objects.ids() {
            objects.with(env, id, |flushing, m| {
                if is_due(m) {
                    write_once(flushing, m, account, round);
                }
            });
        }
    }
    // What fillers, threads that reclaim for themselves, and those that are dropping an object are writing.
    for _ in 0..LOOKS {
        if account.nr_writeback.load(Ordering::Relaxed) == 0 && !objects.is_ending() {
            break;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Has a filler write what is dirty of an object. Without one, or room in its queue, it is written here.
fn hand_out(env: Env<'_>, m: &Mapping<'_>) {
    if m.failing.nr_dirty() == 0 {
        return;
    }
    // The object is held already, so it can be held once more.
    let claim = filemap::try_hold_pages(m, 0, m.nr_pages());
    if let Some(Err(claim)) = claim.map(|claim| env.park.submit_writeback(claim)) {
        filemap::release(m, claim);
    }
}

/// Writes the objects that nobody else has, until they all are written, or nothing gets on any more.
fn write_idle(env: Env<'_>, objects: &Writables, account: &CacheAccount<'_>, round: u32) {
    let counts = || [&account.nr_dirty, &account.nr_writeback].map(|count| count.load(Ordering::Relaxed));
    let (mut since, mut seen) = (Instant::now(), counts());
    loop {
        let mut left = false;
        for id in objects.ids() {
            objects.with(env, id, |flushing, m| {
                if m.exclusive || m.failing.is_set() || flushing.is_written_in(round) {
                    return;
                }
                // One claim is ours. A filler that has another may hang with it, and we would with the filler.
                if m.users.load(Ordering::Relaxed) > 1 {
                    left = true;
                } else {
                    write_once(flushing, m, account, round);
                }
            });
        }
        let now = counts();
        if now != seen {
            (since, seen) = (Instant::now(), now);
        }
        if !left || since.elapsed() > STALL {
            return;
        }
        std::thread::sleep(Duration::from_millis(1));
    }
}

/// Writes what is dirty of an object, chunk by chunk, once a round. What is busy for a moment (a frame of an exclusive page
/// that the kernel looks at, or that is in a list of another processor's for as long as that one has other things to do) is
/// tried again for as long as some of it gets on, and [`STALL`] more: nobody will try it later. After a chunk that cannot be
/// written the others are tried once each.
fn write_once(flushing: &Flushing, m: &Mapping<'_>, account: &CacheAccount<'_>, round: u32) {
    if !flushing.is_persistent() || flushing.is_written_in(round) {
        return;
    }
    flushing.set_written_in(round);
    let mut patience = if m.failing.is_set() { LAST_TRY } else { STALL };
    for (from, to) in m.nodes.runs(0, m.nr_pages(), 1) {
        let nr_dirty = || account.nr_dirty.load(Ordering::Relaxed);
        let (mut since, mut seen) = (Instant::now(), nr_dirty());
        while writeout::write_back(flushing, &(from..to)).is_err() {
            let now = nr_dirty();
            // Fewer alone: what the program stores meanwhile is not what is waited for.
            if now < seen {
                (since, seen) = (Instant::now(), now);
            }
            if since.elapsed() >= patience {
                patience = Duration::ZERO;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
