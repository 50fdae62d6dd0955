//! Write-back in the background. Linux: the flusher threads, `wb_workfn`.
//!
//! A control-plane thread: it locks and allocates as the program does, and no fault ever waits for it. What reclaim needs
//! written is written by fillers.

use crate::error::{Error, Result};
use crate::object::ObjectInner;
use softfault_mm::memcontrol::CacheAccount;
use softfault_platform::host;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Objects that may have dirty pages.
pub(crate) type Writables = Mutex<Vec<Weak<ObjectInner>>>;

#[derive(Debug, Default)]
struct Bell {
    rung: Mutex<Rung>,
    bell: Condvar,
}

#[derive(Debug, Default)]
struct Rung {
    stop: bool,
    now: bool,
}

/// The thread and what stops it.
#[derive(Debug)]
pub(crate) struct Flusher {
    bell: Arc<Bell>,
    thread: Option<JoinHandle<()>>,
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
}

impl Default for Policy {
    fn default() -> Self {
        Self { interval: Duration::from_millis(500), expire: Duration::from_secs(5), background_percent: 10 }
    }
}

impl Flusher {
    pub(crate) fn start(
        objects: Arc<Writables>,
        account: &'static CacheAccount<'static>,
        policy: Policy,
    ) -> Result<Self> {
        let bell = Arc::new(Bell::default());
        let theirs = Arc::clone(&bell);
        let thread = std::thread::Builder::new()
            .name("softfault-flush".into())
            .spawn(move || {
                host::mask_signals();
                run(&theirs, &objects, account, policy);
            })
            .map_err(|source| Error::Io { op: "Runtime::build: start the flusher", source })?;
        Ok(Self { bell, thread: Some(thread) })
    }
}

/// Waits for the next round; `false`: stop.
fn next_round(bell: &Bell, interval: Duration) -> bool {
    let mut rung = bell.rung.lock().unwrap_or_else(PoisonError::into_inner);
    let until = Instant::now() + interval;
    loop {
        if rung.stop {
            return false;
        }
        let left = until.saturating_duration_since(Instant::now());
        if rung.now || left.is_zero() {
            rung.now = false;
            return true;
        }
        rung = bell.bell.wait_timeout(rung, left).unwrap_or_else(PoisonError::into_inner).0;
    }
}

fn run(bell: &Bell, objects: &Writables, account: &CacheAccount<'_>, policy: Policy) {
    let mut written = Instant::now();
    while next_round(bell, policy.interval) {
        let alive = || {
            let mut list = objects.lock().unwrap_or_else(PoisonError::into_inner);
            list.retain(|w| w.strong_count() > 0);
            list.iter().filter_map(Weak::upgrade).collect::<Vec<_>>()
        };
        let list = alive();
        if list.is_empty() {
            continue;
        }
        let host = host::Host::detached();
        // An exclusive object's pages say only when asked, one by one, whether they were stored to: when they are to be
        // written.
        for object in list.iter().filter(|o| !o.is_exclusive()) {
            object.harvest(host.env(), &(0..object.mapping().nr_pages()));
        }
        let background = account.limit() / 100 * policy.background_percent;
        let many = account.nr_dirty.load(Ordering::Relaxed) > background;
        let old = written.elapsed() >= policy.expire;
        for object in &list {
            // Reclaim can drop an exclusive object's pages dirty or not: they are written early for their age alone.
            if old || (many && !object.is_exclusive()) {
                // Errors leave the pages dirty and are counted; who syncs is told.
                let _ = object.write_back("write-back", &(0..object.mapping().nr_pages()));
            }
            if object.mapping().flush_wanted.load(Ordering::Relaxed) != 0 {
                let _ = object.flush("write-back");
            }
        }
        if many || old {
            written = Instant::now();
        }
    }
}

impl Drop for Flusher {
    fn drop(&mut self) {
        let thread = self.thread.take();
        if softfault_platform::child::in_child() {
            std::mem::forget((thread, Arc::clone(&self.bell)));
            return;
        }
        self.bell.rung.lock().unwrap_or_else(PoisonError::into_inner).stop = true;
        self.bell.bell.notify_all();
        // The last object may have gone on that very thread.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}
