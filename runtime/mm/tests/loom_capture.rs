//! Captures under loom: who acts by a phase that was seen is waited for.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p softfault-mm --release --test 'loom_*'`
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "support/loom.rs"]
mod support;

use softfault_mm::cut::{Capture, CaptureBits, Lifts, Phase, naive};
use softfault_mm::sync::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use support::{check, spawn};

fn leak<T>(value: T) -> &'static T {
    Box::leak(Box::new(value))
}

/// Rules are the process's: one model after the other.
fn alone(broken: u32) -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    naive::set(broken);
    turn
}

/// Runs a model with a rule broken, and says whether it failed.
fn fails(model: fn()) -> bool {
    std::panic::catch_unwind(|| check(3, model)).is_err()
}

fn yields() -> bool {
    loom::thread::yield_now();
    true
}

/// A page with one entry: 1 while it lets stores through.
struct Page {
    lifts: Lifts,
    capture: Capture,
    bits: CaptureBits<'static>,
    entry: AtomicU64,
}

fn page() -> &'static Page {
    let table = || -> &'static [AtomicU64] { Box::leak(Box::new([AtomicU64::new(0)])) };
    let bits = CaptureBits::new(table(), [table(), table()], table());
    leak(Page { lifts: Lifts::new(), capture: Capture::new(), bits, entry: AtomicU64::new(0) })
}

/// A store: it opens the page's entry while a phase permits it.
fn store(page: &Page) {
    let Some(_lift) = page.lifts.enter(0) else { return };
    if page.capture.phase() == Phase::Draining {
        page.bits.note(page.capture.half(), 0);
        page.entry.store(1, Ordering::Relaxed);
    }
}

fn sweep(page: &Page, half: usize) {
    if page.bits.take_noted(half, 0) != 0 {
        page.entry.store(0, Ordering::Relaxed);
    }
}

/// A round, and the cut: whatever a store opened is protected, and stays so.
fn a_cut() {
    let page = page();
    page.capture.set_phase(Phase::Draining);
    let stores = [spawn(move || store(page)), spawn(move || store(page))];
    let old = page.capture.swap_halves();
    page.lifts.grace(&mut yields);
    sweep(page, old);
    page.capture.set_phase(Phase::Cutting);
    page.lifts.grace(&mut yields);
    (0..2).for_each(|half| sweep(page, half));
    let at_the_cut = page.entry.load(Ordering::Relaxed);
    stores.into_iter().for_each(|t| t.join().expect("a store"));
    assert_eq!((at_the_cut, page.entry.load(Ordering::Relaxed)), (0, 0), "open at the cut, and after it");
}

/// ```text
/// a store                          the cutter
/// loads the parity
///                                  a grace period: the parity moves, nobody is inside
/// enters by the old parity
/// looks at the phase: draining
///                                  cutting; a grace period that looks at the other half alone: nobody
/// opens the page
/// ```
#[test]
fn a_late_reader_is_waited_for() {
    let _alone = alone(0);
    check(3, a_cut);
}

#[test]
fn a_late_reader_is_missed_by_one_flip() {
    let _alone = alone(naive::ONE_FLIP);
    assert!(fails(a_cut), "the model does not find what one flip misses");
    naive::set(0);
}

#[test]
fn a_reader_is_missed_without_grace() {
    let _alone = alone(naive::NO_GRACE);
    assert!(fails(a_cut), "the model does not find what no grace period misses");
    naive::set(0);
}

/// The walker and a store both copy a page: one copy counts, and it has what the page had at the cut.
#[test]
fn one_copy_counts_and_it_is_old() {
    let _alone = alone(0);
    check(3, || {
        let page = page();
        let bytes = leak(AtomicU64::new(7));
        let storer = spawn(move || {
            let copy = bytes.load(Ordering::Relaxed);
            let won = page.bits.save(0);
            bytes.store(8, Ordering::Relaxed);
            won.then_some(copy)
        });
        let copy = bytes.load(Ordering::Relaxed);
        let mine = page.bits.save(0).then_some(copy);
        let theirs = storer.join().expect("a store");
        assert_eq!(mine.or(theirs), Some(7), "the bytes of the cut");
        assert!(mine.is_none() || theirs.is_none(), "two copies count");
    });
}
