//! The atomics of this crate (loom's under `--cfg loom`) and the bounded queue that carries fills to their fillers.
//!
//! # Context: handler

#[cfg(loom)]
pub use self::gated::{AtomicU32, AtomicU64};
#[cfg(not(loom))]
pub use core::sync::atomic::{AtomicU32, AtomicU64, Ordering, fence};
#[cfg(loom)]
pub use loom::sync::atomic::{Ordering, fence};

/// Loom's atomics, each behind a gate.
///
/// Loom runs two accesses in both orders only if it takes them for dependent, and it compares an access with the *last*
/// one of its word alone. A load that is followed by another thread's load and compare-exchange is forgotten:
/// ```text
/// A: load                 B: load, compare-exchange      (loom 0.7: one execution, A's load first)
/// ```
/// which is what every update here looks like. A read-modify-write of a gate before each access makes all accesses of
/// a word dependent; it is relaxed, so it orders nothing that the accesses themselves do not.
#[cfg(loom)]
mod gated {
    use super::Ordering;
    use loom::sync::atomic;

    macro_rules! gated {
        ($name:ident, $int:ty) => {
            /// As `core`'s.
            #[derive(Debug)]
            pub struct $name {
                gate: atomic::AtomicU32,
                value: atomic::$name,
            }

            #[expect(missing_docs, reason = "as core's")]
            impl $name {
                #[must_use]
                pub fn new(value: $int) -> Self {
                    Self { gate: atomic::AtomicU32::new(0), value: atomic::$name::new(value) }
                }
                fn value(&self) -> &atomic::$name {
                    self.gate.fetch_add(1, Ordering::Relaxed);
                    &self.value
                }
                pub fn load(&self, order: Ordering) -> $int {
                    self.value().load(order)
                }
                pub fn store(&self, value: $int, order: Ordering) {
                    self.value().store(value, order);
                }
                pub fn swap(&self, value: $int, order: Ordering) -> $int {
                    self.value().swap(value, order)
                }
                pub fn fetch_add(&self, value: $int, order: Ordering) -> $int {
                    self.value().fetch_add(value, order)
                }
                pub fn fetch_sub(&self, value: $int, order: Ordering) -> $int {
                    self.value().fetch_sub(value, order)
                }
                pub fn fetch_or(&self, value: $int, order: Ordering) -> $int {
                    self.value().fetch_or(value, order)
                }
                pub fn fetch_and(&self, value: $int, order: Ordering) -> $int {
                    self.value().fetch_and(value, order)
                }
                pub fn fetch_xor(&self, value: $int, order: Ordering) -> $int {
                    self.value().fetch_xor(value, order)
                }
                pub fn fetch_max(&self, value: $int, order: Ordering) -> $int {
                    self.value().fetch_max(value, order)
                }
                pub fn compare_exchange(
                    &self,
                    old: $int,
                    new: $int,
                    ok: Ordering,
                    err: Ordering,
                ) -> Result<$int, $int> {
                    self.value().compare_exchange(old, new, ok, err)
                }
                pub fn compare_exchange_weak(
                    &self,
                    old: $int,
                    new: $int,
                    ok: Ordering,
                    err: Ordering,
                ) -> Result<$int, $int> {
                    self.value().compare_exchange_weak(old, new, ok, err)
                }
            }
        };
    }
    gated!(AtomicU32, u32);
    gated!(AtomicU64, u64);
}

/// One cell of a [`Ring`]: a turn number and `N` words of payload.
#[derive(Debug)]
#[repr(C, align(64))]
pub struct Cell<const N: usize> {
    turn: AtomicU64,
    payload: [AtomicU64; N],
}

#[cfg(not(loom))]
impl<const N: usize> Cell<N> {
    /// Returns an empty cell; [`Ring::init`] gives it its turn.
    ///
    /// # Context: handler
    #[must_use]
    #[expect(clippy::new_without_default, reason = "cells stand in statics; nobody makes one otherwise")]
    pub const fn new() -> Self {
        Self { turn: AtomicU64::new(0), payload: [const { AtomicU64::new(0) }; N] }
    }
}

#[cfg(loom)]
#[expect(clippy::new_without_default, reason = "as the other one, which is const")]
impl<const N: usize> Cell<N> {
    /// Returns an empty cell.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new() -> Self {
        Self { turn: AtomicU64::new(0), payload: core::array::from_fn(|_| AtomicU64::new(0)) }
    }
}

/// A bounded queue of `N`-word items for many producers and many consumers, in borrowed memory.
///
/// The scheme is Vyukov's bounded MPMC queue: cell `i` holds its own turn number; a producer may write it when the
/// turn equals its ticket, a consumer may read it when the turn equals its ticket plus one. A producer that is
/// preempted between ticket and publication delays only the consumers behind it, never other producers.
///
/// The all-zero state is *not* a valid ring (turns must be `0, 1, 2, ...`): call [`Ring::init`] once.
///
/// # Context: handler
/// `push` and `pop` neither sleep nor allocate; a full or empty queue is an answer, not a wait.
#[derive(Debug)]
pub struct Ring<'g, const N: usize> {
    cells: &'g [Cell<N>],
    head: &'g AtomicU64,
    tail: &'g AtomicU64,
}

impl<'g, const N: usize> Ring<'g, N> {
    /// Wraps borrowed memory; `cells.len()` must be a power of two, or every operation reports full or empty.
    ///
    /// # Context: handler
    #[must_use]
    pub fn new(cells: &'g [Cell<N>], head: &'g AtomicU64, tail: &'g AtomicU64) -> Self {
        Self { cells, head, tail }
    }

    /// Gives every cell its first turn. Call once, before anyone else sees the ring.
    ///
    /// # Context: handler
    pub fn init(&self) {
        for (turn, cell) in (0u64..).zip(self.cells) {
            cell.turn.store(turn, Ordering::Relaxed);
        }
    }

    fn cell(&self, ticket: u64) -> Option<&'g Cell<N>> {
        let mask = (self.cells.len() as u64).wrapping_sub(1);
        self.cells.get(usize::try_from(ticket & mask).ok()?)
    }

    /// Appends `item`, or returns it when the queue is full.
    ///
    /// # Context: handler
    ///
    /// # Errors
    /// The item itself, when there is no room.
    pub fn push(&self, item: [u64; N]) -> Result<(), [u64; N]> {
        let mut ticket = self.tail.load(Ordering::Relaxed);
        loop {
            let Some(cell) = self.cell(ticket) else { return Err(item) };
            // Acquire pairs with `pop`: the consumer is done with the payload before we overwrite it.
            let turn = cell.turn.load(Ordering::Acquire);
            if turn == ticket {
                match self.tail.compare_exchange_weak(
                    ticket,
                    ticket.wrapping_add(1),
                    Ordering::Relaxed,
                    Ordering::Relaxed,
                ) {
                    Ok(_) => {
                        for (to, word) in cell.payload.iter().zip(item) {
                            to.store(word, Ordering::Relaxed);
                        }
                        // Release pairs with `pop`: the payload is there when the turn says so.
                        cell.turn.store(ticket.wrapping_add(1), Ordering::Release);
                        return Ok(());
                    }
                    Err(now) => ticket = now,
                }
            } else if turn < ticket {
                return Err(item);
            } else {
                ticket = self.tail.load(Ordering::Relaxed);
            }
        }
    }

    /// Takes the oldest item, or `None` when the queue is empty.
    ///
    /// # Context: handler
    #[must_use]
    pub fn pop(&self) -> Option<[u64; N]> {
        let mut ticket = self.head.load(Ordering::Relaxed);
        loop {
            let cell = self.cell(ticket)?;
            // Acquire pairs with `push`.
            let turn = cell.turn.load(Ordering::Acquire);
            let ready = ticket.wrapping_add(1);
            if turn == ready {
                match self.head.compare_exchange_weak(ticket, ready, Ordering::Relaxed, Ordering::Relaxed) {
                    Ok(_) => {
                        let item = core::array::from_fn(|i| {
                            cell.payload.get(i).map_or(0, |word| word.load(Ordering::Relaxed))
                        });
                        // Release pairs with `push`: one lap later the cell may be written again.
                        cell.turn.store(ticket.wrapping_add(self.cells.len() as u64), Ordering::Release);
                        return Some(item);
                    }
                    Err(now) => ticket = now,
                }
            } else if turn < ready {
                return None;
            } else {
                ticket = self.head.load(Ordering::Relaxed);
            }
        }
    }
}

#[cfg(all(test, not(loom)))]
mod tests {
    use super::*;

    fn cells(n: usize) -> Vec<Cell<2>> {
        (0..n).map(|_| Cell::new()).collect()
    }

    #[test]
    fn a_full_ring_refuses_and_keeps_order() {
        let (cells, head, tail) = (cells(4), AtomicU64::new(0), AtomicU64::new(0));
        let ring = Ring::new(&cells, &head, &tail);
        ring.init();
        for lap in 0..3u64 {
            for i in 0..4 {
                assert_eq!(ring.push([lap, i]), Ok(()), "lap {lap} item {i}");
            }
            assert_eq!(ring.push([9, 9]), Err([9, 9]), "the fifth has no room");
            for i in 0..4 {
                assert_eq!(ring.pop(), Some([lap, i]));
            }
            assert_eq!(ring.pop(), None);
        }
    }

    #[test]
    fn nothing_is_lost_or_doubled_between_threads() {
        let (cells, head, tail) = (cells(8), AtomicU64::new(0), AtomicU64::new(0));
        let ring = Ring::new(&cells, &head, &tail);
        ring.init();
        let sum = AtomicU64::new(0);
        let taken = AtomicU64::new(0);
        std::thread::scope(|s| {
            for t in 0..2u64 {
                let ring = &ring;
                s.spawn(move || {
                    for i in 0..5_000u64 {
                        while ring.push([t, i]).is_err() {
                            std::thread::yield_now();
                        }
                    }
                });
            }
            for _ in 0..2 {
                s.spawn(|| {
                    while taken.load(Ordering::Relaxed) < 10_000 {
                        if let Some([_, i]) = ring.pop() {
                            sum.fetch_add(i, Ordering::Relaxed);
                            taken.fetch_add(1, Ordering::Relaxed);
                        } else {
                            std::thread::yield_now();
                        }
                    }
                });
            }
        });
        assert_eq!(taken.load(Ordering::Relaxed), 10_000);
        assert_eq!(sum.load(Ordering::Relaxed), 2 * (4_999 * 5_000 / 2));
    }
}
