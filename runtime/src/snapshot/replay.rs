//! Replaying a working set: what a program touched first, when it was recorded, is read before it is touched again.
//!
//! Window by window, early to late, and in each in the order of the image: runs are read whole, up to 2 MiB at once. It is done by
//! a thread of the replay's own, which claims and reads by itself: it takes no filler, and no place in the fillers' queue, so that
//! a page that somebody waits for is never behind one that nobody has asked for yet. While fillers have more to do than they get
//! done it reads nothing; and it makes no room: where the cache is full, it ends.
//!
//! # Context: control plane; the thread is a helper

use super::state::Replayed;
use crate::error::{Error, Result, image as image_error};
use crate::object::Object;
use crate::process::helper::Thread;
use softfault_image::Image;
use softfault_image::workingset::{Window, WorkingSet};
use softfault_mm::ctx::Ctx;
use softfault_mm::fault;
use softfault_mm::filemap;
use softfault_mm::page::EXTENT_PAGES;
use softfault_platform::host::{self, Host};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// How long the thread leaves the disk and the processor to fillers that are behind.
const PAUSE: Duration = Duration::from_micros(500);

/// A replay that goes on until it has ended, or is dropped.
#[derive(Debug)]
pub(super) struct Replay(Thread);

impl Replay {
    /// Begins to read the pages of a set, which is of this image, into the object.
    ///
    /// # Errors
    /// [`Error::Image`]: the set is of another image. [`Error::Io`]: the thread cannot be started.
    pub(super) fn begin(
        op: &'static str,
        image: &Image,
        object: &Object,
        set: &WorkingSet,
        replayed: &Arc<Replayed>,
    ) -> Result<Self> {
        set.check_is_of(image).map_err(image_error(op))?;
        let runs: Vec<_> = set.windows().iter().flat_map(Window::runs).collect();
        let (object, replayed) = (object.clone(), Arc::clone(replayed));
        let run = move |stop: &AtomicU32| {
            replay(stop, &object, &runs, &replayed);
            // Release pairs with `Replayed::has_ended`.
            replayed.ended.store(true, Ordering::Release);
        };
        let thread = Thread::start_helper("softfault-replay", run);
        thread.map(Self).map_err(|source| Error::Io { op, path: None, source })
    }
}

impl Drop for Replay {
    fn drop(&mut self) {
        // It looks between two reads.
        self.0.end(|| ());
    }
}

/// Reads runs of pages, as far as they are missing, until it is told to end or there is no room.
///
/// # Context: the replay's thread
fn replay(stop: &AtomicU32, object: &Object, runs: &[std::ops::Range<u64>], replayed: &Replayed) {
    let (mapping, host) = (object.inner.mapping(), Host::detached());
    let mut ctx = Ctx::thread(0);
    ctx.is_helper = true;
    for run in runs {
        let mut at = run.start;
        while at < run.end.min(mapping.nr_pages()) {
            // Acquire pairs with `Thread::tell`.
            while host::is_starved() && stop.load(Ordering::Acquire) == 0 {
                std::thread::sleep(PAUSE);
            }
            if stop.load(Ordering::Acquire) != 0 {
                return;
            }
            // Not past the extent, as a claim.
            let end = (at / EXTENT_PAGES as u64 + 1) * EXTENT_PAGES as u64;
            match filemap::claim_run(mapping, at, at, end.min(run.end)) {
                Ok(Some(claim)) => {
                    at = (claim.pgoff() + u64::from(claim.nr())).max(at + 1);
                    replayed.pages.fetch_add(claim.nr().into(), Ordering::Relaxed);
                    fault::fill_here(host.env(), &ctx, claim.into_ahead());
                }
                // It is cached, or somebody else reads it.
                Ok(None) => at += 1,
                Err(_) => return,
            }
        }
    }
}
