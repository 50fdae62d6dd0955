//! The last failures of a runtime, to be read at any time: what a store said, of which object, at which byte, and when.
//!
//! Fixed slots, written by whoever fails, in handlers too: nobody waits and nothing is allocated. Who comes to a slot that another
//! is writing, because the ring went round meanwhile, drops what it has to say ([`SeqLock`]).
//!
//! # Context: handler

use crate::seqlock::SeqLock;
use crate::sync::{AtomicU32, AtomicU64, Ordering};
use crate::types::FillError;

/// How many are kept.
pub const NR_FAILURES: usize = 64;
/// How much of a label is kept: its end, where a path says most.
pub const LABEL_BYTES: usize = LABEL_WORDS * 8;
const LABEL_WORDS: usize = 12;

/// What failed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum FailedOp {
    /// The store did not give a page.
    Read = 1,
    /// The store did not take pages.
    Write = 2,
    /// The store did not make durable what it took, or a page's block before its first store.
    Flush = 3,
    /// A load or store of the program's became a signal.
    Touch = 4,
}

/// One failure; what it is about may be gone.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Failure<'l> {
    /// What failed.
    pub op: FailedOp,
    /// Why.
    pub cause: FillError,
    /// The object's label, or the end of a longer one.
    pub label: &'l str,
    /// The object's first byte that could not be had or written.
    pub object_offset: u64,
    /// The address that was touched; 0: none was.
    pub address: u64,
    /// When, by the monotonic clock.
    pub when_ns: u64,
}

/// The ticket (in which order they came); op, cause and the label's length; offset, address and time; the label.
type Slot = SeqLock<{ 5 + LABEL_WORDS }>;

/// What a reader gets: a copy.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// One more than that of the failure before.
    pub ticket: u64,
    /// What failed.
    pub op: FailedOp,
    /// Why.
    pub cause: FillError,
    /// As in [`Failure`].
    pub object_offset: u64,
    /// As in [`Failure`].
    pub address: u64,
    /// As in [`Failure`].
    pub when_ns: u64,
    label: [u8; LABEL_BYTES],
    label_len: usize,
}

impl Record {
    /// Returns the label, or the end of a longer one, from a whole character on.
    ///
    /// # Context: handler
    #[must_use]
    pub fn label(&self) -> &str {
        let bytes = self.label.get(..self.label_len).unwrap_or(&[]);
        let start = bytes.iter().position(|b| b & 0xc0 != 0x80).unwrap_or(0);
        core::str::from_utf8(bytes.get(start..).unwrap_or(&[])).unwrap_or("")
    }
}

/// The ring.
#[derive(Debug)]
pub struct Failures {
    slots: [Slot; NR_FAILURES],
    next: AtomicU64,
    /// A line on standard error before a signal: 1.
    speaks: AtomicU32,
}

impl Default for Failures {
    fn default() -> Self {
        Self::new()
    }
}

impl Failures {
    /// Returns an empty ring.
    ///
    /// # Context: handler
    #[cfg(not(loom))]
    #[must_use]
    pub const fn new() -> Self {
        let slots = [const { Slot::new() }; NR_FAILURES];
        Self { slots, next: AtomicU64::new(0), speaks: AtomicU32::new(0) }
    }

    /// Returns an empty ring.
    ///
    /// # Context: handler
    #[cfg(loom)]
    #[must_use]
    pub fn new() -> Self {
        let slots = core::array::from_fn(|_| Slot::new());
        Self { slots, next: AtomicU64::new(0), speaks: AtomicU32::new(0) }
    }

    /// Forgets everything, for the next owner; nobody else uses it meanwhile.
    ///
    /// # Context: control plane
    pub fn reset(&self) {
        self.slots.iter().for_each(|s| _ = s.try_write(&[0; _]));
        self.speaks.store(0, Ordering::Relaxed);
    }

    /// Says whether a line on standard error comes before a signal.
    ///
    /// # Context: handler
    pub fn set_speaking(&self, yes: bool) {
        self.speaks.store(u32::from(yes), Ordering::Relaxed);
    }

    /// Returns whether a line on standard error comes before a signal.
    ///
    /// # Context: handler
    #[must_use]
    pub fn is_speaking(&self) -> bool {
        self.speaks.load(Ordering::Relaxed) != 0
    }

    /// Keeps a failure.
    ///
    /// # Context: handler
    pub fn record(&self, failure: &Failure<'_>) {
        let ticket = self.next.fetch_add(1, Ordering::Relaxed);
        let Some(slot) = self.slots.get(usize::try_from(ticket % NR_FAILURES as u64).unwrap_or(0)) else { return };
        let bytes = failure.label.as_bytes();
        let tail = bytes.get(bytes.len().saturating_sub(LABEL_BYTES)..).unwrap_or(&[]);
        let facts = u64::from(failure.cause.code()) | (failure.op as u64) << 16 | (tail.len() as u64) << 32;
        let mut words = [0; 5 + LABEL_WORDS];
        let [first, second, third, fourth, fifth, label @ ..] = &mut words;
        (*first, *second, *third) = (ticket, facts, failure.object_offset);
        (*fourth, *fifth) = (failure.address, failure.when_ns);
        for (word, chunk) in label.iter_mut().zip(tail.chunks(8)) {
            let mut eight = [0; 8];
            eight.iter_mut().zip(chunk).for_each(|(to, from)| *to = *from);
            *word = u64::from_ne_bytes(eight);
        }
        // Somebody else's is there: a whole round of failures in the time of one.
        slot.try_write(&words);
    }

    /// Calls `f` for each failure that is kept, in no order; one that is being written is left out.
    ///
    /// # Context: handler
    pub fn read(&self, f: &mut dyn FnMut(Record)) {
        self.slots.iter().filter_map(read_slot).for_each(f);
    }
}

/// How often a slot that changes is read again.
const READS: usize = 100;

fn read_slot(slot: &Slot) -> Option<Record> {
    let [ticket, facts, object_offset, address, when_ns, words @ ..] = slot.read(READS)?;
    let op = match facts >> 16 & 0xff {
        1 => FailedOp::Read,
        2 => FailedOp::Write,
        3 => FailedOp::Flush,
        4 => FailedOp::Touch,
        _ => return None,
    };
    let mut label = [0; LABEL_BYTES];
    for (to, word) in label.chunks_mut(8).zip(words) {
        to.iter_mut().zip(word.to_ne_bytes()).for_each(|(to, from)| *to = from);
    }
    let cause = FillError::from_code(u16::try_from(facts & 0xffff).unwrap_or(0));
    let label_len = usize::try_from(facts >> 32).unwrap_or(0);
    Some(Record { ticket, op, cause, object_offset, address, when_ns, label, label_len })
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;
    use crate::errno::Errno;

    fn failure(n: u64, label: &str) -> Failure<'_> {
        let cause = FillError::Io(Errno(i32::try_from(n % 4000).unwrap()));
        Failure { op: FailedOp::Write, cause, label, object_offset: n, address: n, when_ns: n }
    }

    fn all(ring: &Failures) -> Vec<Record> {
        let mut all = Vec::new();
        ring.read(&mut |r| all.push(r));
        all.sort_by_key(|r| r.ticket);
        all
    }

    #[test]
    fn the_last_ones_are_kept_with_the_end_of_their_labels() {
        let ring = Failures::new();
        assert!(all(&ring).is_empty());
        let long = format!("{}ä/file", "x".repeat(200));
        (0..100).for_each(|n| ring.record(&failure(n, &long)));
        let kept = all(&ring);
        assert_eq!(kept.iter().map(|r| r.object_offset).collect::<Vec<_>>(), (36..100).collect::<Vec<_>>());
        assert!(kept.iter().all(|r| long.ends_with(r.label()) && r.label().len() >= LABEL_BYTES - 3));
        assert_eq!(kept[0].cause, FillError::Io(Errno(36)));
        ring.record(&failure(7, "short"));
        assert_eq!(all(&ring).last().unwrap().label(), "short");
        ring.reset();
        assert!(all(&ring).is_empty());
    }

    /// Ends the writers when the reader has had enough, or has panicked: the scope waits for them.
    struct Stop<'a>(&'a core::sync::atomic::AtomicBool);

    impl Drop for Stop<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Relaxed);
        }
    }

    #[test]
    fn nobody_reads_half_of_one() {
        let (ring, stop) = (Failures::new(), core::sync::atomic::AtomicBool::new(false));
        let label = |n: u64| format!("{n:0>90}");
        std::thread::scope(|s| {
            let _stop = Stop(&stop);
            for t in 0..4 {
                let (ring, stop) = (&ring, &stop);
                s.spawn(move || {
                    let mut n = t;
                    while !stop.load(Ordering::Relaxed) {
                        ring.record(&failure(n, &label(n)));
                        n += 4;
                    }
                });
            }
            let mut seen = 0;
            while seen < 200_000 {
                ring.read(&mut |r| {
                    seen += 1;
                    let n = r.object_offset;
                    assert_eq!((r.address, r.when_ns, r.label()), (n, n, &*label(n)), "torn");
                    assert_eq!(r.cause, failure(n, "").cause);
                });
            }
        });
    }
}
