//! Write-back in the background. Linux: the flusher threads, `wb_workfn`.
//!
//! What reclaim needs written is written by fillers. But where a store gives what it took only after a flush, reclaim, and
//! with it a fault, waits for this thread: in a round it allocates nothing, and the lock of the list is a leaf under which
//! nobody does.
//!
//! What is written when the process exits is [`exit`](super::exit)'s, which has a thread of its own: this one may be in a store
//! that hangs.
//!
//! # Context: the flusher; the rest, control plane

use super::state::Flushing;
use super::{flush, writeout};
use crate::error::{Error, Result};
use crate::masked::{self, Masked};
use crate::process::helper;
use softfault_mm::failpoint;
use softfault_mm::filemap;
use softfault_mm::host::Env;
use softfault_mm::mapping::Mapping;
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::vmscan;
use softfault_platform::host;
use softfault_platform::sys::{Errno, futex};
use softfault_platform::thp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

/// An object that may have dirty pages. There is no reference to it here: that might be the last one, and end the object on
/// this thread, and with it perhaps the runtime, which waits for this very thread.
#[derive(Debug)]
struct Writable {
    /// The object's number; `flushing` may outlive the mapping that has it, too.
    id: u32,
    flushing: Arc<Flushing>,
}

impl Writable {
    /// Returns whether the object lives. Its number is its own for as long as it does.
    fn is_alive(&self) -> bool {
        !self.flushing.has_ended()
    }
}

/// Objects that may have dirty pages.
#[derive(Debug, Default)]
pub(crate) struct Writables {
    list: masked::Mutex<Vec<Writable>>,
    /// Objects whose last handle is gone, and which are being written back by who had it: an exit waits for them.
    ending: AtomicU32,
}

/// An object is being written back for the last time, until the value is dropped.
#[derive(Debug)]
pub(crate) struct Ending(Arc<Writables>);

impl Ending {
    /// Ends the object for the flusher. It is counted before it has ended, so that an exit that passes it over waits for it:
    /// ```text
    /// drops the object                         exit
    /// counts it
    /// it has ended
    ///                                          passes it over, and waits for those that are counted
    /// ```
    pub(crate) fn begin(objects: &Arc<Writables>, flushing: &Flushing) -> Self {
        objects.ending.fetch_add(1, Ordering::Relaxed);
        flushing.end();
        Self(Arc::clone(objects))
    }
}

impl Drop for Ending {
    fn drop(&mut self) {
        // Release pairs with `is_ending`: what was written is.
        self.0.ending.fetch_sub(1, Ordering::Release);
    }
}

impl Writables {
    fn list(&self) -> Masked<'_, Vec<Writable>> {
        masked::lock(&self.list)
    }

    /// Adds an object; those that have ended go when the list grows.
    ///
    /// # Context: control plane
    pub(crate) fn add(&self, flushing: Arc<Flushing>) {
        let (mut room, mut dead) = (Vec::new(), Vec::new());
        let mut list = self.list();
        while list.len() == list.capacity() {
            let nr = list.len();
            if nr < room.capacity() {
                for w in list.drain(..) {
                    if w.is_alive() { room.push(w) } else { dead.push(w) }
                }
                std::mem::swap(&mut *list, &mut room);
                break;
            }
            drop(list);
            room = Vec::with_capacity(2 * nr + 4);
            dead = Vec::with_capacity(2 * nr + 4);
            list = self.list();
        }
        list.push(Writable { id: flushing.mapping().id, flushing });
        // The lock is given back before what is freed is freed: nobody frees memory under it.
        drop(list);
    }

    /// Returns the object with this number, on which the caller has a claim.
    ///
    /// If it lives now, it lived when its number was looked up, and the claim is on it: what is lent stays until the claim
    /// is gone, and the caller's reference is not the last one. Else the number may be another's.
    fn claimed(&self, id: u32) -> Option<Arc<Flushing>> {
        self.list().iter().find(|w| w.id == id && w.is_alive()).map(|w| Arc::clone(&w.flushing))
    }

    /// Returns the numbers of the objects that are there. One that is passed over because the list changed meanwhile is met
    /// in the next round.
    pub(super) fn ids(&self) -> impl Iterator<Item = u32> {
        let id = |w: &Writable| w.is_alive().then_some(w.id);
        (0..).map_while(move |place| self.list().get(place).map(id)).flatten()
    }

    /// Returns whether an object is being written back by who had its last handle.
    pub(super) fn is_ending(&self) -> bool {
        // Acquire pairs with `Ending::drop`: what was written is.
        self.ending.load(Ordering::Acquire) != 0
    }

    /// Runs `f` on the object with this number, and with what a flush needs of it, unless it is being ended.
    pub(super) fn with(&self, env: Env<'_>, id: u32, f: impl FnOnce(&Flushing, &Mapping<'_>)) {
        with_object(env, id, |m| {
            failpoint!(FLUSHER_HOLDS);
            if let Some(flushing) = self.claimed(id) {
                f(&flushing, m);
            }
        });
    }
}

/// The thread and what stops it.
#[derive(Debug)]
pub(crate) struct Flusher {
    account: &'static CacheAccount<'static>,
    thread: helper::Thread,
}

/// When dirty pages are written though nobody asks.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Policy {
    /// How often the mappings are scanned for stores.
    pub(crate) interval: Duration,
    /// A dirty page is written after about this long. Linux: `dirty_expire_centisecs`.
    pub(crate) expire: Duration,
    /// More dirty pages than this share of the cache (in percent) are written at once. Linux: `dirty_background_ratio`.
    pub(crate) background_percent: u64,
    /// Writers wait while more than this share of the cache is dirty. Linux: `dirty_ratio`.
    pub(crate) limit_percent: u64,
    /// How long exit(3) waits until everything is written; 0: not at all, and nothing is.
    pub(crate) exit_wait: Duration,
}

impl Default for Policy {
    fn default() -> Self {
        Self {
            interval: Duration::from_millis(500),
            expire: Duration::from_secs(5),
            background_percent: 10,
            limit_percent: 40,
            exit_wait: Duration::from_secs(30),
        }
    }
}

impl Flusher {
    /// Starts the thread that looks after `objects`.
    ///
    /// # Errors
    /// [`Error::Io`] where it cannot be started.
    pub(crate) fn start(
        objects: Arc<Writables>,
        account: &'static CacheAccount<'static>,
        policy: Policy,
    ) -> Result<Self> {
        let thread = helper::Thread::start("softfault-flush", Arc::default(), move |stop| {
            run(stop, &objects, account, policy);
        });
        let failed = |source| Error::Io { op: "Runtime::build: start the flusher", path: None, source };
        Ok(Self { account, thread: thread.map_err(failed)? })
    }
}

/// Waits for the next round; `None`: stop. `Some(true)`: somebody waits for it.
fn next_round(stop: &AtomicU32, account: &CacheAccount<'_>, interval: Duration, got_on: bool) -> Option<bool> {
    let key = account.flush_key();
    // Pages that cannot be written (held, pinned, a store that fails) are tried again later, not at once.
    let at_once = got_on && account.is_dirty_full();
    // Acquire, here and below, pairs with `Thread::tell`.
    let rung = if stop.load(Ordering::Acquire) == 0 && !at_once {
        let interval_ns = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX);
        futex::wait(key.addr, key.seen, interval_ns) != Err(Errno::ETIMEDOUT)
    } else {
        true
    };
    (stop.load(Ordering::Acquire) == 0).then_some(rung)
}

/// Runs `f` on the object with this number, unless it is being ended: who ends it waits for `f`.
///
/// It takes no reference to the whole object: if that were the last one, the object would be dropped here, and later than its
/// owner thinks.
fn with_object(env: Env<'_>, id: u32, f: impl FnOnce(&Mapping<'_>)) {
    let mut claim = None;
    env.mm.with_rmap(&mut |r| claim = r.mapping(id).and_then(|m| filemap::try_hold_pages(m, 0, 0)));
    let Some(claim) = claim else { return };
    env.spend(claim, |m, claim| {
        f(m);
        filemap::release(m, claim);
    });
}

/// Flushes the stores for which reclaim waits.
fn flush_wanted(env: Env<'_>, objects: &Writables) {
    for place in 0.. {
        let Some(id) = objects.list().get(place).map(|w| w.id) else { break };
        objects.with(env, id, |flushing, m| {
            if m.flush_wanted.load(Ordering::Relaxed) != 0 {
                // An error is counted, and the pages are dirty again or lost; who syncs is told.
                let _ = flush::flush(flushing);
            }
        });
    }
}

/// How long a store that fails is left alone.
const RETRY: Duration = Duration::from_millis(50);

/// Tries a store that fails once more, and lets go of what the object has cached beyond its share: those pages are clean, and
/// may be stored to before anybody knows.
fn retry_failing(env: Env<'_>, m: &Mapping<'_>) {
    let _ = writeout::write_known_dirty(env, m);
    if m.failing.is_set() && m.is_over_own_limit() && !m.exclusive {
        vmscan::reclaim_range(env, m, 0, 0, m.nr_pages());
    }
}

fn run(stop: &AtomicU32, objects: &Writables, account: &CacheAccount<'_>, policy: Policy) {
    let mut written = Instant::now();
    let mut since = Instant::now();
    let mut tried = Instant::now();
    let mut got_on = false;
    while let Some(rung) = next_round(stop, account, policy.interval, got_on) {
        got_on = false;
        // A scan costs with the size of the mappings, so it is not made for every writer that waits.
        let scan = since.elapsed() >= policy.interval;
        let host = host::Host::detached();
        let old = written.elapsed() >= policy.expire;
        for id in objects.ids() {
            // An exclusive object's pages say only when asked, one by one, whether they were stored to: when they are to be
            // written for their age.
            with_object(host.env(), id, |m| {
                if if m.exclusive { old } else { scan } {
                    writeout::harvest(host.env(), m, &(0..m.nr_pages()));
                }
            });
        }
        if scan {
            since = Instant::now();
            thp::look();
        }
        let background = account.limit().saturating_mul(policy.background_percent) / 100;
        let many = rung || account.nr_writable() > background;
        // Those whose stores fail come last, and not each time that somebody rings: a store that takes its time over an error
        // must not keep the others waiting.
        let fails = |m: &Mapping<'_>| m.failing.is_set();
        let retry = tried.elapsed() >= RETRY;
        for id in objects.ids().filter(|_| many || old) {
            // Errors leave the pages dirty and are counted; who syncs is told.
            with_object(host.env(), id, |m| {
                let wrote = || writeout::write_known_dirty(host.env(), m).is_ok_and(|written| written > 0);
                got_on |= !fails(m) && wrote();
            });
        }
        for id in objects.ids().filter(|_| retry && (many || old)) {
            with_object(host.env(), id, |m| {
                if fails(m) {
                    tried = Instant::now();
                    retry_failing(host.env(), m);
                }
            });
        }
        flush_wanted(host.env(), objects);
        if many || old {
            written = Instant::now();
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let account = self.account;
        self.thread.end(|| futex::wake_all(account.ring_flusher()));
    }
}
