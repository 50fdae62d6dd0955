//! Huge pages in the background: complete chunks are collapsed, ahead of need. Linux: `khugepaged`.
//!
//! A control-plane thread, started with the first object that asks for it: it locks and allocates as the program does, and
//! no fault ever waits for it. What it does to a chunk is in [`softfault_mm::khugepaged`].
//!
//! A chunk is collapsed when it was complete in two rounds running: a scan that passes through the cache is not worth the
//! copying. While reclaim is behind, nothing is collapsed.
//!
//! The thread knows no object: it asks each, by [`CollapseRound`], to do its part of a round.
//!
//! # Context: control plane: it may wait and allocate, and no fault waits for it

use crate::error::{Error, Result};
use crate::process::helper;
use softfault_platform::host;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two rounds. Linux: `scan_sleep_millisecs`, where a round is of all processes.
const SCAN_SLEEP: Duration = Duration::from_millis(100);
/// Chunks collapsed in one round at most: about half of the time between rounds. Linux: `pages_to_scan`.
const CHUNKS_A_ROUND: usize = 8;
/// The pause after the kernel has refused doubles up to this. Linux: `alloc_sleep_millisecs`.
const ALLOC_SLEEP_MAX: Duration = Duration::from_secs(60);

/// What the thread looks after: an object, of which this floor knows no more.
pub(crate) trait CollapseRound: Send + Sync {
    /// Collapses up to `left` chunks that are complete for the second time, counting them down; `true`: the kernel has
    /// refused one, and others would fare no better for a while.
    ///
    /// # Context: the thread of huge pages, which may wait and allocate
    fn collapse_round(&self, left: &mut usize) -> bool;
}

#[derive(Debug, Default)]
struct Shared {
    /// The objects that are looked after. A leaf.
    objects: Mutex<Vec<Weak<dyn CollapseRound>>>,
    /// The thread is to end. A leaf.
    stop: Mutex<bool>,
    /// Rung when `stop` changes.
    bell: Condvar,
}

/// The thread, once there is a use for it, and what stops it.
#[derive(Debug, Default)]
pub(crate) struct Khugepaged {
    shared: Arc<Shared>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl Khugepaged {
    /// Looks after an object, starting the thread with the first one.
    ///
    /// # Errors
    /// [`Error::Io`] where the thread cannot be started.
    ///
    /// # Context: control plane
    pub(crate) fn add(&self, object: Weak<dyn CollapseRound>) -> Result<()> {
        let mut thread = self.thread.lock().unwrap_or_else(PoisonError::into_inner);
        if thread.is_none() {
            let shared = Arc::clone(&self.shared);
            let started = helper::spawn("softfault-huge", move || {
                host::mask_signals();
                run(&shared);
            });
            *thread =
                Some(started.map_err(|source| Error::Io { op: "object: start the collapser", path: None, source })?);
        }
        drop(thread);
        let mut objects = self.shared.objects.lock().unwrap_or_else(PoisonError::into_inner);
        objects.retain(|w| w.strong_count() > 0);
        objects.push(object);
        Ok(())
    }
}

impl Drop for Khugepaged {
    fn drop(&mut self) {
        let thread = self.thread.get_mut().unwrap_or_else(PoisonError::into_inner).take();
        if softfault_platform::child::in_child() {
            std::mem::forget((thread, Arc::clone(&self.shared)));
            return;
        }
        *self.shared.stop.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.shared.bell.notify_all();
        // The last object may have gone on that very thread.
        if let Some(thread) = thread
            && thread.thread().id() != std::thread::current().id()
        {
            let _ = thread.join();
        }
    }
}

/// Waits; `false`: stop.
fn pause(shared: &Shared, time: Duration) -> bool {
    let until = Instant::now() + time;
    let mut stop = shared.stop.lock().unwrap_or_else(PoisonError::into_inner);
    while !*stop {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return true;
        }
        stop = shared.bell.wait_timeout(stop, left).unwrap_or_else(PoisonError::into_inner).0;
    }
    false
}

fn run(shared: &Shared) {
    let mut sleep = SCAN_SLEEP;
    while pause(shared, sleep) {
        let objects: Vec<_> = {
            let list = shared.objects.lock().unwrap_or_else(PoisonError::into_inner);
            list.iter().filter_map(Weak::upgrade).collect()
        };
        let mut left = CHUNKS_A_ROUND;
        let refused = objects.iter().any(|o| o.collapse_round(&mut left));
        sleep = if refused { (sleep * 2).min(ALLOC_SLEEP_MAX) } else { SCAN_SLEEP };
    }
}
