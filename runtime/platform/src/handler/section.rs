//! Fault sections: who is inside a walk right now, how deep, and how to wait until nobody is.
//!
//! A thread that resolves a fault occupies one word for as long as the handler runs:
//! ```text
//!  63    48 47                      3 2   1 0
//! +--------+-------------------------+-----+-+
//! | number | thread pointer, or none |depth|S|     S: inside a section
//! +--------+-------------------------+-----+-+
//! ```
//! The words stand in 256 buckets of one cache line, chosen by the thread pointer: entering is one look at a line and
//! one CAS, nested faults find their own thread there, and no thread-local is touched.
//!
//! Unmap waits for sections, not for handlers:
//! ```text
//! reader                                  unmapper
//! CAS word: S (SeqCst)                    clear the published entry (SeqCst)
//! load the published entry (SeqCst)       load each word (SeqCst): S set? wait until the word changes
//! ```
//! All four are SeqCst, so at least one of them sees the other: either the reader finds no vma, or the unmapper waits.
//! The number moves with every entry, so a thread that faults again and again does not look like one that stays.
//! A section is never held over a sleep, a fill or a delegate; before a sleep the word is given up altogether, so that
//! an asynchronous signal handler that jumps away leaves nothing behind.
//!
//! # Context: handler

use crate::sys::thread;
use core::marker::PhantomData;
use core::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

const BUCKETS: usize = 256;
const WAYS: usize = 8;
const SECTION: u64 = 1;
const DEPTH_SHIFT: u32 = 1;
const DEPTH_MASK: u64 = 3 << DEPTH_SHIFT;
const TP_MASK: u64 = 0x0000_ffff_ffff_fff8;
const NUMBER_SHIFT: u32 = 48;

/// How deep faults may nest: a handler, and one fault of a store that the handler called.
const DEPTH_MAX: u64 = 2;
/// Every how many entries a fault is timed for the histogram.
const SAMPLE_EVERY: u64 = 32;

#[repr(align(64))]
struct Bucket([AtomicU64; WAYS]);

static WORDS: [Bucket; BUCKETS] = [const { Bucket([const { AtomicU64::new(0) }; WAYS]) }; BUCKETS];

/// Threads that must never fault on an arena (fillers, monitor), by thread pointer.
static HELPERS: [AtomicUsize; 128] = [const { AtomicUsize::new(0) }; 128];

/// How many entries of [`HELPERS`] were ever used.
static NR_HELPERS: AtomicUsize = AtomicUsize::new(0);

/// The calling thread's word while it resolves a fault.
#[derive(Debug)]
pub struct Slot {
    word: &'static AtomicU64,
    /// What to restore on leaving: the free word, or the outer fault's.
    outer: u64,
    stripe: usize,
    /// The word is the thread's: entering a section on another thread would end this one's.
    not_send: PhantomData<*const ()>,
}

/// Why a thread could not enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refused {
    /// Nine threads of one bucket fault at once: give way and try again.
    Crowded,
    /// A third fault inside two others.
    TooDeep,
    /// A fault inside a section: the runtime's own code touched an arena.
    InSection,
}

fn bucket_of(tp: usize) -> (usize, &'static Bucket) {
    // Thread control blocks lie at the same offset of stacks of like size: the high bits tell threads apart.
    let h = (tp >> 6).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    (h, WORDS.get(h % BUCKETS).unwrap_or(&WORDS[0]))
}

impl Slot {
    /// Occupies a word for the calling thread, outside any section.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// See [`Refused`].
    #[inline]
    pub fn enter() -> Result<Self, Refused> {
        let tp = thread::thread_pointer();
        let (stripe, bucket) = bucket_of(tp);
        let key = tp as u64 & TP_MASK;
        let mut free = None;
        for word in &bucket.0 {
            let seen = word.load(Ordering::Relaxed);
            if seen & TP_MASK == key {
                return Self::nest(word, seen, stripe);
            }
            if seen & TP_MASK == 0 && free.is_none() {
                free = Some((word, seen));
            }
        }
        let (word, seen) = free.ok_or(Refused::Crowded)?;
        let number = (seen >> NUMBER_SHIFT).wrapping_add(1) << NUMBER_SHIFT;
        let mine = number | key | (1 << DEPTH_SHIFT);
        // Relaxed: nothing is published by occupying; the section bit is what orders.
        match word.compare_exchange(seen, mine, Ordering::Relaxed, Ordering::Relaxed) {
            Ok(_) => Ok(Self { word, outer: number, stripe, not_send: PhantomData }),
            Err(_) => Err(Refused::Crowded),
        }
    }

    fn nest(word: &'static AtomicU64, seen: u64, stripe: usize) -> Result<Self, Refused> {
        if seen & SECTION != 0 {
            return Err(Refused::InSection);
        }
        if (seen & DEPTH_MASK) >> DEPTH_SHIFT >= DEPTH_MAX {
            return Err(Refused::TooDeep);
        }
        // The word is this thread's own: nobody else writes it.
        word.store(seen + (1 << DEPTH_SHIFT), Ordering::Relaxed);
        Ok(Self { word, outer: seen, stripe, not_send: PhantomData })
    }

    /// Enters, giving way while the bucket is crowded. Not for handlers that could return instead.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// [`Refused::TooDeep`], [`Refused::InSection`].
    pub fn enter_patiently() -> Result<Self, Refused> {
        loop {
            match Self::enter() {
                Err(Refused::Crowded) => thread::sched_yield(),
                r => return r,
            }
        }
    }

    /// Returns the stripe of the counters that this thread uses.
    ///
    /// # Context: handler
    #[must_use]
    pub fn stripe(&self) -> usize {
        self.stripe
    }

    /// Returns whether another fault of this thread is under way below this one.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_nested(&self) -> bool {
        self.outer & DEPTH_MASK != 0
    }

    /// Returns whether this entry is one of those that are timed.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_sampled(&self) -> bool {
        is_sampled_number(self.word.load(Ordering::Relaxed) >> NUMBER_SHIFT)
    }

    /// Runs `f` inside a section.
    ///
    /// # Context: handler
    #[inline]
    pub fn section<R>(&self, f: impl FnOnce() -> R) -> R {
        // SeqCst pairs with `synchronize`. It comes before the loads of published entries: see the module's drawing.
        let before = self.word.fetch_or(SECTION, Ordering::SeqCst);
        let _leave = Leave { word: self.word, before };
        f()
    }
}

/// Picks one number in [`SAMPLE_EVERY`], of any arithmetic progression.
///
/// One fault moves its word's number by as much as it has sections, often by 4: a plain remainder would then time one
/// fault in eight, or none at all. Multiplying by the golden ratio spreads every stride.
const fn is_sampled_number(number: u64) -> bool {
    (number.wrapping_mul(0x9e37) & 0xffff) < (1 << 16) / SAMPLE_EVERY
}

/// Ends a section also when a debug assertion unwinds.
struct Leave {
    word: &'static AtomicU64,
    before: u64,
}

impl Drop for Leave {
    fn drop(&mut self) {
        // The number moves, so that a waiting unmapper sees a change even if this thread enters again at once.
        let next = self.before.wrapping_add(1 << NUMBER_SHIFT);
        // Release pairs with `synchronize`: what the section did has happened.
        self.word.store(next, Ordering::Release);
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        let number = self.word.load(Ordering::Relaxed) >> NUMBER_SHIFT << NUMBER_SHIFT;
        // Release pairs with `synchronize`, as that of `Leave::drop`.
        self.word.store((self.outer & !(!0 << NUMBER_SHIFT)) | number, Ordering::Release);
    }
}

/// Waits until every section that was entered before the call has been left.
///
/// The caller has unpublished (SeqCst) what readers must no longer find, and is itself in no section.
///
/// # Context: control plane, outside of sections
pub fn synchronize() {
    let _ = wait_for_sections(u64::MAX);
}

/// The same, but does not wait for long; `false`: somebody has been inside for all of that time.
///
/// # Context: handler, outside of sections
#[must_use]
pub fn try_synchronize() -> bool {
    wait_for_sections(YIELDS)
}

/// How often [`try_synchronize`] gives the processor away, at most.
const YIELDS: u64 = 256;

/// Waits for all sections, giving the processor away so often at most; returns whether they have been left.
fn wait_for_sections(mut yields: u64) -> bool {
    for word in WORDS.iter().flat_map(|bucket| &bucket.0) {
        // SeqCst pairs with `Slot::section`, `Leave::drop` and `Slot::drop`: we see the section, or it sees what was
        // unpublished; and what it did has happened when its word has changed.
        let seen = word.load(Ordering::SeqCst);
        let mut spins = 0u32;
        while seen & SECTION != 0 && word.load(Ordering::SeqCst) == seen {
            spins = spins.saturating_add(1);
            if spins <= 64 {
                core::hint::spin_loop();
                continue;
            }
            if yields == 0 {
                return false;
            }
            yields -= 1;
            thread::sched_yield();
        }
    }
    true
}

/// Returns whether the calling thread is resolving a fault right now.
///
/// For a global allocator that wants to refuse: it touches no thread-local and takes no lock.
///
/// # Context: handler
#[must_use]
pub fn in_fault() -> bool {
    let tp = thread::thread_pointer();
    let (_, bucket) = bucket_of(tp);
    bucket.0.iter().any(|w| w.load(Ordering::Relaxed) & TP_MASK == tp as u64 & TP_MASK)
}

/// Marks the calling thread as a helper: a fault it raises on an arena is refused. `false`: no room.
///
/// # Context: a helper thread
pub fn register_helper() -> bool {
    let tp = thread::thread_pointer();
    let won = HELPERS.iter().position(|h| h.compare_exchange(0, tp, Ordering::Relaxed, Ordering::Relaxed).is_ok());
    if let Some(at) = won {
        NR_HELPERS.fetch_max(at + 1, Ordering::Relaxed);
    }
    won.is_some()
}

/// Ends the calling thread's time as a helper.
///
/// # Context: a helper thread
pub fn unregister_helper() {
    let tp = thread::thread_pointer();
    for h in &HELPERS {
        let _ = h.compare_exchange(tp, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Returns whether the calling thread is a helper.
///
/// # Context: handler
#[must_use]
pub fn is_helper() -> bool {
    let tp = thread::thread_pointer();
    HELPERS.iter().take(NR_HELPERS.load(Ordering::Relaxed)).any(|h| h.load(Ordering::Relaxed) == tp)
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn who_stays_inside_is_not_waited_for_by_who_must_not_wait() {
        let ((inside, is_inside), (leave, may_leave)) = (channel(), channel::<()>());
        let other = std::thread::spawn(move || {
            let slot = Slot::enter_patiently().ok();
            let stays = || {
                let _ = (inside.send(()), may_leave.recv());
            };
            slot.is_some_and(|slot| {
                slot.section(stays);
                true
            })
        });
        assert!(is_inside.recv().is_ok());
        assert!(!try_synchronize(), "it is inside");
        drop(leave);
        assert!(other.join().is_ok_and(|entered| entered));
        assert!(try_synchronize(), "nobody is");
        synchronize();
    }

    #[test]
    fn every_stride_and_phase_is_sampled_alike() {
        for stride in 1..=16u64 {
            for phase in 0..stride {
                let n = (0..4096u64).filter(|i| is_sampled_number((phase + i * stride) & 0xffff)).count();
                assert!((64..=256).contains(&n), "stride {stride} phase {phase}: {n} of 4096 instead of about 128");
            }
        }
    }
}
