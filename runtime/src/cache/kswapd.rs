//! The background reclaimer: frees pages ahead of need, so that faulting threads find room. Linux: `kswapd`.
//!
//! It takes no lock, allocates nothing after start and never touches an arena.
//!
//! # Context: kswapd: no lock, no allocation after its start; starting and ending it, control plane

use crate::error::{Error, Result};
use crate::lease::Lease;
use crate::process::helper;
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::vmscan::{self, Look};
use softfault_mm::vmstat::{Event, VmStat};
use softfault_platform::host::Host;
use softfault_platform::sys::futex;
use softfault_platform::thp;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// The thread and what stops it.
#[derive(Debug)]
pub(crate) struct Kswapd {
    account: &'static CacheAccount<'static>,
    thread: helper::Thread,
}

impl Kswapd {
    /// Starts the reclaimer of one cache.
    ///
    /// # Safety
    /// The account outlives the value.
    #[expect(unsafe_code, reason = "the thread borrows the account until it is joined")]
    pub(crate) unsafe fn start(account: &Lease<CacheAccount<'static>>, stat: &'static VmStat) -> Result<Self> {
        // SAFETY: the caller's contract; `Drop` joins the thread.
        let account = unsafe { account.lend() };
        let thread = helper::Thread::start_helper("softfault-swap", move |stop| run(account, stat, stop));
        let failed = |source| Error::Io { op: "Runtime::build: start the reclaimer", path: None, source };
        Ok(Self { account, thread: thread.map_err(failed)? })
    }
}

/// How long it leaves things alone when nothing could be freed.
const BACKOFF: Duration = Duration::from_millis(5);

/// How often it looks at everything for nothing before it gives up. Linux: `MAX_RECLAIM_RETRIES`.
const RETRIES_MAX: u32 = 16;

/// How often it does so before it passes over what stores have in hand: some of that would have come back meanwhile.
const STUCK: u32 = 8;

fn run(account: &CacheAccount<'_>, stat: &VmStat, stop: &AtomicU32) {
    let host = Host::detached();
    let mut fruitless = 0u64;
    let mut failures = 0;
    let is_done = || account.excess() == 0 || account.has_given_up();
    // Acquire, here and below, pairs with `Thread::tell`.
    while stop.load(Ordering::Acquire) == 0 {
        if account.lru.is_crowded() {
            vmscan::prune(host.env(), account);
        }
        if is_done() {
            failures = 0;
            let key = account.doze();
            // It looks again after `doze`, because who passed the mark before that did not ring.
            if is_done() && stop.load(Ordering::Acquire) == 0 {
                let _ = futex::wait(key.addr, key.seen, u64::MAX);
            }
            let _ = account.rouse();
            thp::look();
            continue;
        }
        let look = Look { past: failures >= STUCK, ..Look::default() };
        let (done, _) = vmscan::shrink_batch(host.env(), account, stat, 0, look);
        stat.add(0, Event::PGSCAN_KSWAPD, done.scanned);
        fruitless = if done.freed > 0 { 0 } else { fruitless + done.scanned.max(8) };
        failures = if done.freed > 0 { 0 } else { failures };
        if done.scanned + done.stale == 0 || fruitless > account.limit().saturating_mul(2) {
            // Everything was looked at and is pinned, hot or being written: others may go on.
            fruitless = 0;
            failures += 1;
            if failures >= RETRIES_MAX {
                account.give_up();
            } else {
                std::thread::sleep(BACKOFF);
            }
        }
    }
}

impl Drop for Kswapd {
    fn drop(&mut self) {
        let account = self.account;
        self.thread.end_ringing(|| {
            let _ = account.rouse();
            futex::wake_all(account.bell_addr());
        });
    }
}
