//! `Capture`: an image that is being written, of memory that goes on changing.
//!
//! # Context: control plane

use super::helpers::Helpers;
use super::state::{State, failed};
use super::{end, walk};
use crate::error::{self, CaptureFailure, Error, Result};
use crate::object::capture as calls;
use crate::process::helper;
use softfault_image::{Digest, Writer};
use softfault_platform::area;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{self, Receiver, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

/// Values beside the memory, by name.
type Keys = Vec<(String, Vec<u8>)>;

/// An image that is being written: of memory as it was at the cut, while threads go on storing to it.
///
/// Dropped without [`Capture::commit`], it is cancelled, and there is no image.
#[derive(Debug)]
#[must_use = "a capture that is dropped is cancelled"]
pub struct Capture {
    keys: Mutex<Keys>,
    inner: Inner,
}

#[derive(Debug)]
enum Inner {
    Running(Running),
    /// `None`: it is committed.
    Written(Option<Box<Written>>),
}

/// An image that has all its pages.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) writer: Writer,
    pub(super) nr_pages: u64,
    pub(super) held: Duration,
}

/// A capture whose threads run.
#[derive(Debug)]
struct Running {
    state: Arc<State>,
    /// Tells the walker to finish, with these values; dropped, that there is to be no image.
    commit: Option<Sender<Keys>>,
    /// What the walker came to.
    outcome: Arc<Mutex<Option<Result<Digest>>>>,
    walker: Option<JoinHandle<()>>,
    helpers: Option<Helpers>,
}

/// How far a capture is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct CaptureProgress {
    /// Pages of the image that are written.
    pub done_pages: u64,
    /// Pages of the image.
    pub nr_pages: u64,
    /// Pages whose old bytes were kept for a store to them: the others the walker has copied, or will.
    pub saved_pages: u64,
    /// Those of them that went to the file beside the image, because the memory for them was full.
    pub spilled_pages: u64,
    /// Pages that were protected while stores waited.
    pub last_pages: u64,
    /// How long stores waited for the cut, at most.
    pub held: Duration,
}

impl Capture {
    /// Starts the walker, after the cut.
    pub(super) fn start(helpers: Option<Helpers>, state: Arc<State>, writer: Writer) -> Result<Self> {
        let (commit, committed) = mpsc::channel();
        let (theirs, outcome) = (Arc::clone(&state), Arc::<Mutex<_>>::default());
        let said = Arc::clone(&outcome);
        let mut running = Running { state, commit: Some(commit), outcome, walker: None, helpers };
        let walker = helper::spawn("softfault-walk", move || {
            let written = write(&theirs, writer, &committed);
            *said.lock().unwrap_or_else(PoisonError::into_inner) = Some(written);
        });
        // Dropped where there is no thread, it is cancelled.
        let op = "CaptureBuilder::begin: start a thread";
        running.walker = Some(walker.map_err(|source| Error::Io { op, path: None, source })?);
        Ok(Self { keys: Mutex::default(), inner: Inner::Running(running) })
    }

    /// Of what has been read already.
    pub(super) fn written(written: Written) -> Self {
        Self { keys: Mutex::default(), inner: Inner::Written(Some(Box::new(written))) }
    }

    /// Keeps a value beside the memory, of the moment of the cut: what the closure found.
    ///
    /// # Context: program, filler
    pub fn key(&self, key: &str, value: &[u8]) {
        self.keys.lock().unwrap_or_else(PoisonError::into_inner).push((key.to_owned(), value.to_vec()));
    }

    /// Returns how far it is.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn progress(&self) -> CaptureProgress {
        match &self.inner {
            Inner::Running(running) => running.progress(),
            Inner::Written(written) => {
                let (nr_pages, held) = written.as_ref().map_or((0, Duration::ZERO), |w| (w.nr_pages, w.held));
                CaptureProgress {
                    done_pages: nr_pages,
                    nr_pages,
                    saved_pages: 0,
                    spilled_pages: 0,
                    last_pages: 0,
                    held,
                }
            }
        }
    }

    /// Waits until the image is whole, durable, and there under its name; returns its digest.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Capture`], [`Error::Image`]: there is no image.
    pub fn commit(mut self) -> Result<Digest> {
        let keys = std::mem::take(&mut *self.keys.lock().unwrap_or_else(PoisonError::into_inner));
        match &mut self.inner {
            Inner::Running(running) => {
                // If nobody listens, the walker has an error.
                running.commit.take().map(|commit| commit.send(keys));
                running.finish()
            }
            Inner::Written(written) => match written.take() {
                Some(written) => finish(written.writer, &keys),
                None => Err(failed("Capture::commit", CaptureFailure::Cancelled, None)),
            },
        }
    }

    /// Gives the capture up: there will be no image.
    ///
    /// # Context: program
    pub fn cancel(self) {
        drop(self);
    }
}

impl Running {
    fn progress(&self) -> CaptureProgress {
        let (s, load) = (&self.state, |w: &std::sync::atomic::AtomicU64| w.load(Ordering::Relaxed));
        CaptureProgress {
            done_pages: load(&s.done),
            nr_pages: s.nr_pages,
            saved_pages: area::saved(s.number()),
            spilled_pages: load(&s.spilled),
            last_pages: load(&s.last),
            held: Duration::from_nanos(load(&s.held_ns)),
        }
    }

    fn finish(&mut self) -> Result<Digest> {
        drop(self.commit.take());
        let _ = self.walker.take().map(JoinHandle::join);
        let written = self.outcome.lock().unwrap_or_else(PoisonError::into_inner).take();
        let cancelled = || Err(failed("Capture::commit", CaptureFailure::Cancelled, None));
        end::end(&self.state);
        if let Some(helpers) = self.helpers.take() {
            helpers.end(&self.state);
        }
        written.unwrap_or_else(cancelled)
    }
}

/// Writes the pages, ends the capture, and makes the image whole when it is committed. On the walker.
fn write(state: &State, mut writer: Writer, committed: &Receiver<Keys>) -> Result<Digest> {
    softfault_platform::host::mask_signals();
    let walked = walk::walk(state, &mut writer);
    // Stores are what they were from here on, whenever the image is committed.
    end::end(state);
    walked?;
    let Ok(keys) = committed.recv() else {
        return Err(failed("Capture::commit", CaptureFailure::Cancelled, None));
    };
    finish(writer, &keys)
}

/// Makes an image whole that has all its pages.
fn finish(mut writer: Writer, keys: &[(String, Vec<u8>)]) -> Result<Digest> {
    keys.iter().for_each(|(key, value)| writer.key(key, value));
    writer.finish().map_err(error::image("Capture::commit"))
}

impl Drop for Capture {
    fn drop(&mut self) {
        if let Inner::Written(written) = &mut self.inner
            && softfault_platform::child::in_child()
        {
            // The file is the parent's to remove.
            std::mem::forget(written.take());
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if softfault_platform::child::in_child() {
            // Its threads are not here, and what they hold is the parent's.
            std::mem::forget((self.walker.take(), self.helpers.take(), Arc::clone(&self.state)));
            return;
        }
        if self.helpers.is_some() {
            self.state.cancelled.store(true, Ordering::Relaxed);
            calls::fail(self.state.number());
            let _ = self.finish();
        }
    }
}
