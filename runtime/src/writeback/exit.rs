//! What exit(3), and [`Runtime::write_back`](crate::Runtime::write_back), have written: everything that was stored before. Who
//! asks, and how it is waited for, is in [`softfault_platform::exit`].
//!
//! A thread of its own sees to it, and not the flusher, which may sit in a store that hangs when the process exits. What such
//! a store takes of the time is not to be the others':
//! ```text
//! this thread                                       fillers, more of them while all are busy
//! scans every object, and hands it out  --------->  one each: writes what is dirty, or hangs
//! writes again what no filler has any more (what was pinned, or busy for a moment): that ends
//! nothing gets on any more: tries what fails, and then waits for what hangs
//! ```
//! Of an exclusive object a filler writes copies of the pages, as the flusher does: reclaim alone has it take them out.
//!
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
use softfault_mm::writeback;
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
                write_everything(Host::detached().env(), objects, round);
                wait_for_others(objects, account);
                seat.made(round);
            }
            // Whoever asks wakes again and again.
            None => _ = futex::wait_word(stop, 0, u64::MAX),
        }
    }
}

/// How long a store that failed before is tried at the first chunk that it does not take.
const LAST_TRY: Duration = Duration::from_millis(200);
/// How many pages of an object a filler is handed, 2 TiB; what lies behind them is written here.
const HANDED_MAX: u64 = 1 << 29;
/// How often the end of writes that others have begun is looked for, a millisecond apart.
const LOOKS: u32 = 5_000;
/// How long nothing may get on before what is left counts as hanging.
const STALL: Duration = Duration::from_secs(1);

/// Writes everything that was stored before the call, as a sync does but for the flush: what the kernel would have of its own
/// shared mappings when the process has ended. Errors are counted; nobody is left to be told.
fn write_everything(env: Env<'_>, objects: &Writables, round: u32) {
    for id in objects.ids() {
        objects.with(env, id, |flushing, m| {
            if flushing.is_persistent() && !m.failing.is_set() {
                writeout::harvest(env, m, &(0..m.nr_pages()));
                hand_out(env, m);
            }
            flushing.measure_from(m.failing.nr_dirty());
        });
    }
    write_idle(env, objects, round);
    // No filler has those that fail. What hangs is the last: a filler hangs with it already, and so may we.
    write_each(env, objects, round, |m| m.failing.is_set());
    write_each(env, objects, round, |_| true);
}

/// Writes each object that `is_due`, unless it was written in this round.
fn write_each(env: Env<'_>, objects: &Writables, round: u32, is_due: fn(&Mapping<'_>) -> bool) {
    for id in objects.ids() {
        objects.with(env, id, |flushing, m| {
            if is_due(m) {
                write_once(flushing, m, round);
            }
        });
    }
}

/// Waits for what fillers, threads that reclaim for themselves, and those that are dropping an object are writing.
fn wait_for_others(objects: &Writables, account: &CacheAccount<'_>) {
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
    let claim = filemap::try_hold_to_write(m, 0, m.nr_pages().min(HANDED_MAX));
    if let Some(Err(claim)) = claim.map(|claim| env.park.submit_writeback(claim.into_staying())) {
        filemap::release_written(m, claim);
    }
}

/// Writes the objects that nobody else is writing, until they all are written, or none that somebody else has gets on
/// any more.
///
/// It ends whatever the program does meanwhile: what it reads is not waited for, what it stores to other objects says nothing
/// of those that are left, and each of these gets on no more often than it has dirty pages.
fn write_idle(env: Env<'_>, objects: &Writables, round: u32) {
    let mut since = Instant::now();
    loop {
        let (mut left, mut got_on) = (false, false);
        for id in objects.ids() {
            objects.with(env, id, |flushing, m| {
                if m.failing.is_set() || !flushing.is_persistent() || flushing.is_written_in(round) {
                    return;
                }
                // A filler is at it already. If that filler hangs in the store, we would hang too.
                if writeback::is_under_way(m) {
                    left = true;
                    got_on |= flushing.got_on(m.failing.nr_dirty());
                } else {
                    write_once(flushing, m, round);
                    // Writing it may have taken long, and during that time the others had no chance to get on.
                    got_on = true;
                }
            });
        }
        if got_on {
            since = Instant::now();
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
fn write_once(flushing: &Flushing, m: &Mapping<'_>, round: u32) {
    if !flushing.is_persistent() || flushing.is_written_in(round) {
        return;
    }
    flushing.set_written_in(round);
    let mut patience = if m.failing.is_set() { LAST_TRY } else { STALL };
    for (from, to) in m.nodes.runs(0, m.nr_pages(), 1) {
        let mut since = Instant::now();
        // An exclusive object's pages count as dirty when they have been asked, which the first try does.
        flushing.measure_from(u64::MAX);
        // Where the store that fills them hangs it is not waited for.
        writeout::wait_for_arrivals(Host::detached().env(), m, &(from..to), patience);
        while writeout::write_back_here(flushing, &(from..to)).is_err() {
            if flushing.got_on(m.failing.nr_dirty()) {
                since = Instant::now();
            }
            if since.elapsed() >= patience {
                patience = Duration::ZERO;
                break;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}
