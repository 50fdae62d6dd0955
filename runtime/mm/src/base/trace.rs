//! Failpoints: named places inside each protocol step where a test may sleep, yield or count.
//!
//! Plain stress finds few of the races that the protocols answer: the windows are nanoseconds wide. A test widens one
//! by installing a hook that sleeps at its name. In release builds a failpoint is nothing; in debug builds it is one
//! relaxed load.
//!
//! # Context: handler ([`hit`], whose hook spins or yields and takes no lock); the rest: a test

/// Names a step: `failpoint!(FILL_PUBLISH)`. The hook runs here, in debug builds.
#[macro_export]
macro_rules! failpoint {
    ($name:ident) => {
        #[cfg(all(debug_assertions, not(loom)))]
        $crate::trace::hit($crate::trace::Point::$name);
    };
}

/// The steps that can be stopped at.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
#[expect(non_camel_case_types, reason = "names of places, as tests spell them")]
pub enum Point {
    /// A page was found uptodate, not pinned yet.
    LOOKUP_PIN,
    /// A run is pinned, the ioctl not made yet.
    PINNED_MAP,
    /// The ioctl has returned, what it has mapped is not noted once more yet.
    MAP_DONE,
    /// It is noted, the pins are still held.
    MAP_UNPIN,
    /// A run of pages was claimed, nothing read yet.
    FILL_CLAIMED,
    /// The store has answered, nothing published yet.
    FILL_PUBLISH,
    /// The chunk counts a native mapping, the words are not read yet.
    PROMOTE_COUNTED,
    /// The words are all uptodate, the extent not unregistered yet.
    PROMOTE_CHECKED,
    /// The extent is registered again, the chunk still counts it.
    DEMOTE_REGISTERED,
    /// Reclaim has made a page `evicting`, and goes on looking for its neighbours.
    EVICT_TAKEN,
    /// A page is `evicting`, not punched yet.
    EVICT_PUNCH,
    /// The hole is punched, the page is not `absent` yet.
    EVICT_DONE,
    /// A section was entered, nothing looked up yet.
    SECTION_ENTERED,
    /// A vma was unpublished, the sections not drained yet.
    UNMAP_DRAIN,
    /// The mapping is in place, the range not registered yet.
    MAP_REGISTER,
    /// Records that permit something else are published, the kernel's protection is as it was.
    PROTECT_PUBLISHED,
    /// What was mapped is closed and drained, what replaces it is not mapped yet.
    REPLACE_CLOSED,
    /// A range has no page of its own, the file is not mapped there yet.
    DIRECT_LOOKED,
    /// A page is `telling`, the delegate not called yet.
    DELEGATE_CALL,
    /// A staging page holds the bytes of a private copy, the version not checked again yet.
    COW_STAGED,
    /// A waiter is about to sleep.
    PARK,
    /// The end of the object was lowered, its pages are still there.
    TRUNCATE_DROP,
    /// A page is marked for unmapping, and still mapped.
    UNMAP_MARKED,
    /// The page-table entries were looked at, not zapped yet.
    UNMAP_LOOKED,
    /// The page is zapped, not looked at again yet.
    UNMAP_ZAPPED,
    /// A chunk is being collapsed, its words are not read yet.
    COLLAPSE_COUNTED,
    /// Its words are all uptodate, the kernel is not asked yet.
    COLLAPSE_CHECKED,
    /// The flusher has a claim on an object, and has not looked at it yet.
    FLUSHER_HOLDS,
    /// The last reference to an object is gone, nothing is written back yet.
    OBJECT_ENDS,
    /// Pages are `writeback`, their mappings still open to stores.
    WRITEBACK_TAKEN,
    /// The mappings are protected, the bytes not read yet.
    WRITEBACK_PROTECTED,
    /// The store has the bytes, the pages are still `writeback`.
    WRITEBACK_WRITTEN,
    /// A pinned page is not held, and about to be written as it is.
    SETTLE_DIRECT,
    /// Pages stay as they are for a flush, whose turn has not begun.
    FLUSH_SETTLED,
    /// The store has flushed or failed to, and nobody knows yet.
    FLUSH_DONE,
    /// A store was let through by the phase of a capture, its page is still protected.
    CAPTURE_ADMITTED,
    /// A store waits for a cut.
    CAPTURE_HELD,
    /// A page's bytes are copied for a capture, and not said to be saved yet.
    CAPTURE_COPIED,
    /// The walker has half of a page's bytes.
    CAPTURE_WALKED,
    /// The saver has a frame in hand, whose bytes are not in the file yet.
    CAPTURE_SPILLING,
    /// Stores wait, and the last pages are protected.
    CAPTURE_CUT,
    /// The cut is made, nothing is copied yet.
    CAPTURE_COPYING,
}

/// How many points there are.
pub const NR_POINTS: usize = Point::CAPTURE_COPYING as usize + 1;

#[cfg(all(debug_assertions, not(loom)))]
pub use armed::{arm_gate, arm_gate_after, arm_spin, disarm, hit, hits, is_caught};

#[cfg(all(debug_assertions, not(loom)))]
mod armed {
    use super::{NR_POINTS, Point};
    use core::sync::atomic::{AtomicU64, Ordering};

    const OFF: u64 = 0;
    const GATE: u64 = 1;
    const CAUGHT: u64 = 2;
    const SPIN: u64 = 3;
    /// Less those that pass before the gate is closed.
    const AFTER: u64 = 1 << 63;

    static ACTION: [AtomicU64; NR_POINTS] = [const { AtomicU64::new(OFF) }; NR_POINTS];
    static HITS: [AtomicU64; NR_POINTS] = [const { AtomicU64::new(0) }; NR_POINTS];

    fn action(point: Point) -> Option<&'static AtomicU64> {
        ACTION.get(point as usize)
    }

    /// Stops the next thread that comes by, until [`disarm`].
    ///
    /// # Context: a test
    pub fn arm_gate(point: Point) {
        // SeqCst pairs with `hit_slow`; speed is nothing here, and tests read counters beside it.
        if let Some(a) = action(point) {
            a.store(GATE, Ordering::SeqCst);
        }
    }

    /// Lets so many pass, and stops the next thread that comes by, until [`disarm`]. The point is one that one thread passes at a time.
    ///
    /// # Context: a test
    pub fn arm_gate_after(point: Point, passes: u32) {
        // SeqCst pairs with `hit_slow`.
        if let Some(a) = action(point) {
            a.store(AFTER + u64::from(passes), Ordering::SeqCst);
        }
    }

    /// Delays every thread that comes by for `turns` turns of a spin loop.
    ///
    /// # Context: a test
    pub fn arm_spin(point: Point, turns: u32) {
        // SeqCst pairs with `hit_slow`, as in `arm_gate`.
        if let Some(a) = action(point) {
            a.store(SPIN + u64::from(turns), Ordering::SeqCst);
        }
    }

    /// Lets everybody pass, whoever is caught included.
    ///
    /// # Context: a test
    pub fn disarm(point: Point) {
        // SeqCst pairs with `hit_slow`, which goes on.
        if let Some(a) = action(point) {
            a.store(OFF, Ordering::SeqCst);
        }
    }

    /// Returns whether a thread stands at the gate.
    ///
    /// # Context: a test
    #[must_use]
    pub fn is_caught(point: Point) -> bool {
        // SeqCst pairs with `hit_slow`: what the thread did before the gate is seen by who finds it caught.
        action(point).is_some_and(|a| a.load(Ordering::SeqCst) == CAUGHT)
    }

    /// Returns how often the point was passed while it was armed.
    ///
    /// # Context: a test
    #[must_use]
    pub fn hits(point: Point) -> u64 {
        // SeqCst pairs with `hit_slow`.
        HITS.get(point as usize).map_or(0, |h| h.load(Ordering::SeqCst))
    }

    /// Passes a point; only [`failpoint!`](crate::failpoint) calls this.
    ///
    /// # Context: handler
    #[inline]
    pub fn hit(point: Point) {
        if let Some(a) = action(point)
            && a.load(Ordering::Relaxed) != OFF
        {
            hit_slow(point, a);
        }
    }

    #[cold]
    fn hit_slow(point: Point, a: &AtomicU64) {
        // SeqCst pairs with `is_caught`, `hits`, `arm_gate`, `arm_gate_after`, `arm_spin` and `disarm`.
        if let Some(h) = HITS.get(point as usize) {
            h.fetch_add(1, Ordering::SeqCst);
        }
        let seen = a.load(Ordering::SeqCst);
        if seen > AFTER {
            a.store(seen - 1, Ordering::SeqCst);
            return;
        }
        let gate = if seen == AFTER { AFTER } else { GATE };
        if a.compare_exchange(gate, CAUGHT, Ordering::SeqCst, Ordering::SeqCst).is_ok() {
            while a.load(Ordering::SeqCst) == CAUGHT {
                core::hint::spin_loop();
            }
            return;
        }
        let turns = a.load(Ordering::SeqCst);
        if (SPIN + 1..AFTER).contains(&turns) {
            for _ in SPIN..turns {
                core::hint::spin_loop();
            }
        }
    }
}
