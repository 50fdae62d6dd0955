//! Recording which pages a session touches first, and when: exactly, page by page.
//!
//! The vtable of the recorded session's object notes each page that a fault finds, by one `fetch_or` in the bitmap of the window:
//! also those of calls that pin or read. What is read ahead, or by a replay, is no fault. There are two bitmaps, which take turns;
//! both are allocated before the session is made:
//! ```text
//! a fault, in its section            the thread that ends a window
//! which one has its turn?
//!                                    gives the turn to the other
//! fetch_or in the first
//!                                    waits until every section that was entered before has been left
//!                                    takes the bits of the first
//! ```
//! So no touch is lost, and none is noted in a window that was over before it came.
//!
//! # Context: control plane; [`RecordedVmOps`] is called in handlers

use crate::error::{Error, Result, image as image_error};
use crate::process::helper::Thread;
use crossbeam_utils::sync::{Parker, Unparker};
use softfault_image::workingset::{Resolution, WorkingSet};
use softfault_image::{Image, Result as ImageResult};
use softfault_mm::mapping::Mapping;
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::types::VmFaultReason;
use softfault_mm::vma::{VmFault, VmOps};
use softfault_platform::section;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// The shortest window: the thread that ends them is to cost nothing.
const WINDOW_MIN: Duration = Duration::from_millis(1);
/// Once there are so many windows, each is twice as long as the one before: the set has room for 4,096.
const WINDOWS_EVEN: usize = 2048;

/// The bitmaps of a recording.
#[derive(Debug)]
struct Bits {
    is_on: AtomicBool,
    /// Which bitmap has its turn.
    turn: AtomicUsize,
    maps: [Box<[AtomicU64]>; 2],
}

impl Bits {
    fn new(nr_pages: u64) -> Self {
        let map = || (0..nr_pages.div_ceil(64)).map(|_| AtomicU64::new(0)).collect();
        Self { is_on: AtomicBool::new(false), turn: AtomicUsize::new(0), maps: [map(), map()] }
    }

    /// Notes that a page was touched.
    ///
    /// # Context: handler, inside a section
    fn note(&self, pgoff: u64) {
        if !self.is_on.load(Ordering::Relaxed) {
            return;
        }
        // SeqCst pairs with `Bits::take`, after the section's entry: who enters later notes in the other one.
        let map = self.maps.get(self.turn.load(Ordering::SeqCst));
        if let Some(word) = map.and_then(|m| m.get((pgoff / 64) as usize)) {
            // Relaxed: who takes the bits waits for our section.
            word.fetch_or(1 << (pgoff % 64), Ordering::Relaxed);
        }
    }

    /// Ends a window, and gives `f` its bits: which word, and what is in it.
    fn take(&self, f: &mut dyn FnMut(u64, u64)) {
        let old = self.turn.load(Ordering::Relaxed);
        // SeqCst pairs with `Bits::note`, and comes before the loads of `synchronize`.
        self.turn.store(1 - old.min(1), Ordering::SeqCst);
        section::synchronize();
        let map = self.maps.get(old).map_or(&[][..], |m| m);
        for (i, word) in (0u64..).zip(map) {
            // A look first: most of it was never touched, and is not to become memory.
            if word.load(Ordering::Relaxed) != 0 {
                f(i, word.swap(0, Ordering::Relaxed));
            }
        }
    }
}

/// The vtable of an object whose touches are recorded.
#[derive(Debug)]
struct RecordedVmOps {
    bits: Arc<Bits>,
    inner: ShmemVmOps,
}

impl VmOps for RecordedVmOps {
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        let reason = self.inner.fault(vmf);
        // The page is there, or its private copy is.
        if reason.intersects(VmFaultReason::LOCKED | VmFaultReason::DONE_COW) {
            self.bits.note(vmf.pgoff());
        }
        reason
    }
    fn map_pages(&self, vmf: &mut VmFault<'_>, start: u64, end: u64) -> VmFaultReason {
        self.inner.map_pages(vmf, start, end)
    }
    fn get_folio_noalloc(&self, mapping: &Mapping<'_>, pgoff: u64) -> bool {
        self.inner.get_folio_noalloc(mapping, pgoff)
    }
}

/// What the thread that ends windows has.
#[derive(Debug)]
struct Windows {
    bits: Arc<Bits>,
    set: WorkingSet,
    began: Instant,
    last_ns: u64,
}

impl Windows {
    /// Ends a window.
    fn cut(&mut self) -> ImageResult<()> {
        let now_ns = u64::try_from(self.began.elapsed().as_nanos()).unwrap_or(u64::MAX);
        let mut pages = Vec::new();
        self.bits.take(&mut |i, word| pages.extend((0..64).filter(|n| word & 1 << n != 0).map(|n| i * 64 + n)));
        let last_ns = std::mem::replace(&mut self.last_ns, now_ns);
        // A window in which nothing was touched says nothing.
        if pages.is_empty() { Ok(()) } else { self.set.push(last_ns..now_ns, pages) }
    }
}

/// A recording that goes on until it is ended, or dropped.
#[derive(Debug)]
pub(super) struct Recording {
    bits: Arc<Bits>,
    windows: Arc<Mutex<Windows>>,
    window: Duration,
    thread: Option<(Thread, Unparker)>,
}

impl Recording {
    /// Readies a recording of an image's pages, in windows of this length.
    ///
    /// # Errors
    /// [`Error::Image`]: the image has no content digest, by which a working set is known.
    pub(super) fn new(op: &'static str, image: &Image, window: Duration) -> Result<Self> {
        let set = WorkingSet::of(image, Resolution::PAGE).map_err(image_error(op))?;
        let bits = Arc::new(Bits::new(image.nr_pages()));
        let windows = Windows { bits: Arc::clone(&bits), set, began: Instant::now(), last_ns: 0 };
        let windows = Arc::new(Mutex::new(windows));
        Ok(Self { bits, windows, window: window.max(WINDOW_MIN), thread: None })
    }

    /// Returns the vtable of the object whose touches are to be recorded.
    pub(super) fn ops(&self) -> Box<dyn VmOps> {
        Box::new(RecordedVmOps { bits: Arc::clone(&self.bits), inner: ShmemVmOps::default() })
    }

    /// Begins.
    ///
    /// # Errors
    /// [`Error::Io`]: the thread that ends windows cannot be started.
    pub(super) fn begin(&mut self, op: &'static str) -> Result<()> {
        let parker = Parker::new();
        let unparker = parker.unparker().clone();
        let (windows, window) = (Arc::clone(&self.windows), self.window);
        lock(&self.windows).began = Instant::now();
        let run = move |stop: &AtomicU32| run(stop, &parker, &windows, window);
        let thread = Thread::start("softfault-record", Arc::default(), run);
        let thread = thread.map_err(|source| Error::Io { op, path: None, source })?;
        self.thread = Some((thread, unparker));
        // Relaxed: the program gets the session afterwards.
        self.bits.is_on.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Ends: returns what was touched.
    ///
    /// # Errors
    /// [`Error::Image`]: there are more windows than a set may have.
    pub(super) fn end(mut self, op: &'static str) -> Result<WorkingSet> {
        self.end_thread();
        let mut windows = lock(&self.windows);
        windows.cut().map_err(image_error(op))?;
        Ok(windows.set.clone())
    }

    fn end_thread(&mut self) {
        if let Some((mut thread, unparker)) = self.thread.take() {
            thread.end(|| unparker.unpark());
        }
    }
}

impl Drop for Recording {
    fn drop(&mut self) {
        // Relaxed: what is noted meanwhile is of no use to anybody.
        self.bits.is_on.store(false, Ordering::Relaxed);
        self.end_thread();
    }
}

fn lock(windows: &Mutex<Windows>) -> MutexGuard<'_, Windows> {
    windows.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends windows until it is told to end itself.
fn run(stop: &AtomicU32, parker: &Parker, windows: &Mutex<Windows>, window: Duration) {
    let mut window = window;
    let mut nr = 0;
    // Acquire pairs with `Thread::tell`.
    while stop.load(Ordering::Acquire) == 0 {
        parker.park_timeout(window);
        // What cannot be pushed is told by the last window, which cannot be either.
        let _ = lock(windows).cut();
        nr += 1;
        if nr >= WINDOWS_EVEN {
            window = window.saturating_mul(2);
        }
    }
}
