//! Huge pages in the background: complete chunks are collapsed, ahead of need. Linux: `khugepaged`.
//!
//! A control-plane thread, started with the first object that asks for it: it locks and allocates as the program does, and
//! no fault ever waits for it. What it does to a chunk is in [`softfault_mm::khugepaged`].
//!
//! A chunk is collapsed when it was complete in two rounds running: a scan that passes through the cache is not worth the
//! copying. While reclaim is behind, nothing is.

use crate::arena::ArenaInner;
use crate::error::{Error, Result, parent_only};
use crate::object::{Object, ObjectBuilder, ObjectInner};
use crate::process::helper;
use softfault_mm::huge_memory;
use softfault_mm::khugepaged::{self, Collapse};
use softfault_mm::mapping::Mapping;
use softfault_mm::page::{EXTENT_PAGES, EXTENT_SIZE, PAGE_SHIFT, chunk_of};
use softfault_platform::host::{self, Host};
use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Condvar, Mutex, PoisonError, Weak};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// Time between two rounds. Linux: `scan_sleep_millisecs`, where a round is of all processes.
const SCAN_SLEEP: Duration = Duration::from_millis(100);
/// Chunks collapsed in one round at most: about half of the time between rounds. Linux: `pages_to_scan`.
const CHUNKS_A_ROUND: usize = 8;
/// The pause after the kernel has refused doubles up to this. Linux: `alloc_sleep_millisecs`.
const ALLOC_SLEEP_MAX: Duration = Duration::from_secs(60);

type Objects = Mutex<Vec<Weak<ObjectInner>>>;

#[derive(Debug, Default)]
struct Shared {
    objects: Objects,
    stop: Mutex<bool>,
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
    pub(crate) fn add(&self, object: &Arc<ObjectInner>) -> Result<()> {
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
        objects.push(Arc::downgrade(object));
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

impl ObjectInner {
    /// Collapses up to `left` chunks that are complete for the second time; `true`: the kernel has refused one.
    fn collapse_round(self: &Arc<Self>, left: &mut usize) -> bool {
        let mapping = self.mapping();
        for (i, chunk) in mapping.chunks.iter().enumerate() {
            if *left == 0 || mapping.account.excess() > 0 {
                break;
            }
            let complete = chunk.nr_uptodate() >= EXTENT_PAGES as u64 && !chunk.is_huge();
            if !complete || !chunk.mark_seen() {
                continue;
            }
            match self.collapse_chunk((i * EXTENT_PAGES) as u64) {
                Collapse::Done => *left -= 1,
                Collapse::Refused(_) => return true,
                Collapse::Already | Collapse::Incomplete | Collapse::Busy => {}
            }
        }
        false
    }

    fn collapse_chunk(self: &Arc<Self>, first: u64) -> Collapse {
        let done = khugepaged::collapse_chunk(Host::detached().env(), self.mapping(), 0, first);
        if done == Collapse::Done {
            for arena in self.arenas() {
                arena.map_huge(self, first);
            }
        }
        done
    }

    /// Forgets the marks of an object that is going away.
    pub(crate) fn forget_huge(mapping: &Mapping<'_>) {
        let marked = mapping.chunks.iter().filter(|c| c.clear_huge()).count();
        mapping.account.nr_huge.fetch_sub(marked as u64, Ordering::Relaxed);
    }

    /// Waits until no chunk of pages `from..to` is being collapsed: the caller has counted a pin, and no collapse begins.
    pub(crate) fn wait_for_collapse(&self, from: u64, to: u64) {
        let chunks = self.mapping().chunks.iter();
        let range = chunk_of(from) as usize..=chunk_of(to.saturating_sub(1)) as usize;
        for chunk in chunks.skip(*range.start()).take(range.count()) {
            while chunk.is_collapsing() {
                std::thread::sleep(Duration::from_micros(200));
            }
        }
    }
}

impl ArenaInner {
    /// Maps the native extents over a huge page of `object` that the kernel does not map by one entry at a touch: in
    /// private mappings the page table of the time before stays.
    fn map_huge(&self, object: &Arc<ObjectInner>, first: u64) {
        let vmas = self.vmas();
        for v in vmas.iter().filter(|v| Arc::ptr_eq(&v.object, object) && v.is_private()) {
            let Some(range) = crate::arena::vma::range_of(v, first, first + EXTENT_PAGES as u64) else { continue };
            if range.start.is_multiple_of(EXTENT_SIZE) && range.len() == EXTENT_SIZE {
                huge_memory::map_huge(&self.vma_of(v), 0, self.address(range.start), 1);
            }
        }
    }
}

impl ObjectBuilder {
    /// Keeps 2 MiB of the object that are cached whole as one huge page, mapped by one entry where the extent is native,
    /// and dropped whole; a thread of the runtime collapses them in the background, [`Object::collapse`] at once.
    ///
    /// Not for objects whose shared stores are noted page by page or fault (writable ones, but anonymous memory without
    /// swap; [`synchronous_writes`](ObjectBuilder::synchronous_writes), `page_mkwrite`): there it has no effect, and
    /// `thp_unsupported` of [`Stats`](crate::Stats) counts the object. A pin keeps the whole huge page cached.
    /// `nr_shmem_hugepages` and `thp_*` say what came of it.
    #[must_use]
    pub fn huge_pages(mut self, yes: bool) -> Self {
        self.huge_pages = yes;
        self
    }
}

impl Object {
    /// Makes the complete chunks (2 MiB) of the byte range huge pages, now: as `MADV_COLLAPSE`. Returns how many of the
    /// chunks that lie in the range are huge pages then.
    ///
    /// Chunks are left as they are that are not cached whole, that a pin touches, or that the kernel refuses
    /// (`thp_collapse_alloc_failed` counts those); all chunks of an object that was not made with
    /// [`huge_pages`](crate::ObjectBuilder::huge_pages), or cannot have them.
    ///
    /// # Errors
    /// [`Error::Denied`] in a forked child.
    pub fn collapse(&self, range: Range<u64>) -> Result<u64> {
        parent_only("Object::collapse")?;
        if !self.inner.huge {
            return Ok(0);
        }
        let chunk = EXTENT_SIZE as u64;
        let end = range.end.min(self.inner.len_max as u64);
        let mut nr = 0;
        let mut at = range.start.checked_next_multiple_of(chunk).unwrap_or(u64::MAX);
        while at.checked_add(chunk).is_some_and(|next| next <= end) {
            let first = at >> PAGE_SHIFT;
            // A page that a fault holds for a moment is let go in the next.
            let mut patience = 100;
            let mut became = self.inner.collapse_chunk(first);
            while became == Collapse::Busy && patience > 0 {
                std::thread::sleep(Duration::from_micros(100));
                // The background may be at it: that is no pin.
                self.inner.wait_for_collapse(first, first + 1);
                patience -= 1;
                became = self.inner.collapse_chunk(first);
            }
            nr += u64::from(matches!(became, Collapse::Done | Collapse::Already));
            at += chunk;
        }
        Ok(nr)
    }
}
