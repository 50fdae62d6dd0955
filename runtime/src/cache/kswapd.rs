//! The background reclaimer: frees pages ahead of need, so that faulting threads find room. Linux: `kswapd`.
//!
//! It takes no lock, allocates nothing after start and never touches an arena.
//!
//! # Context: kswapd: no lock, no allocation after its start; starting and ending it, control plane

use crate::error::{Error, Result};
use crate::lease::Lease;
use crate::process::helper;
use crossbeam_utils::Backoff;
use softfault_mm::memcontrol::CacheAccount;
use softfault_mm::vmscan;
use softfault_mm::vmstat::{Event, VmStat};
use softfault_platform::host::{self, Host};
use softfault_platform::section;
use softfault_platform::sys::futex;
use softfault_platform::thp;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// The thread and what stops it.
#[derive(Debug)]
pub(crate) struct Kswapd {
    account: &'static CacheAccount<'static>,
    stop: Arc<AtomicU32>,
    thread: Option<JoinHandle<()>>,
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
        let stop = Arc::new(AtomicU32::new(0));
        let stopped = Arc::clone(&stop);
        let (running, is_running) = helper::started();
        let thread = helper::spawn("softfault-swap", move || {
            host::mask_signals();
            section::register_helper();
            running.say();
            run(account, stat, &stopped);
            section::unregister_helper();
        });
        let thread =
            thread.map_err(|source| Error::Io { op: "Runtime::build: start the reclaimer", path: None, source })?;
        is_running.wait();
        Ok(Self { account, stop, thread: Some(thread) })
    }
}

/// How long it leaves things alone when nothing could be freed.
const BACKOFF: Duration = Duration::from_millis(5);

/// How often it looks at everything for nothing before it gives up. Linux: `MAX_RECLAIM_RETRIES`.
const RETRIES_MAX: u32 = 16;

fn run(account: &CacheAccount<'_>, stat: &VmStat, stop: &AtomicU32) {
    let host = Host::detached();
    let mut fruitless = 0u64;
    let mut failures = 0;
    let is_done = || account.excess() == 0 || account.has_given_up();
    // Acquire, here and below, pairs with `Kswapd::drop`.
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
        let done = vmscan::shrink(host.env(), account, stat, 0);
        stat.add(0, Event::PGSCAN_KSWAPD, done.scanned);
        fruitless = if done.freed > 0 { 0 } else { fruitless + done.scanned.max(8) };
        failures = if done.freed > 0 { 0 } else { failures };
        if done.scanned == 0 || fruitless > account.limit().saturating_mul(2) {
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
        let thread = self.thread.take();
        if softfault_platform::child::in_child() {
            std::mem::forget(thread);
            return;
        }
        // Release pairs with `kswapd::run`.
        self.stop.store(1, Ordering::Release);
        if let Some(thread) = thread {
            let backoff = Backoff::new();
            while !thread.is_finished() {
                let _ = self.account.rouse();
                futex::wake_all(self.account.bell_addr());
                backoff.snooze();
            }
            let _ = thread.join();
        }
    }
}
