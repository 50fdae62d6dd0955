//! The queue that carries claims to the fillers, under loom: a claim that is lost leaves its pages `filling` for ever, one
//! that comes twice is filled by two.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p softfault-mm --release --test 'loom_*'`
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "support/loom.rs"]
mod support;

use softfault_mm::sync::{AtomicU64, Cell, Ring};
use support::{check, spawn};

fn ring(cells: usize) -> &'static Ring<'static, 2> {
    let cells: &'static [Cell<2>] = Box::leak((0..cells).map(|_| Cell::new()).collect());
    let (head, tail) = (Box::leak(Box::new(AtomicU64::new(0))), Box::leak(Box::new(AtomicU64::new(0))));
    let ring = Box::leak(Box::new(Ring::new(cells, head, tail)));
    ring.init();
    ring
}

fn push(ring: &Ring<'_, 2>, n: u64) {
    while ring.push([n, n * 3]).is_err() {
        loom::thread::yield_now();
    }
}

fn pop(ring: &Ring<'_, 2>) -> u64 {
    loop {
        if let Some([a, b]) = ring.pop() {
            assert_eq!(b, a * 3, "a pair came apart");
            return a;
        }
        loom::thread::yield_now();
    }
}

/// Two producers on one cell after the other; the third pair is a lap later, over a cell that was just emptied.
#[test]
fn nothing_is_lost_doubled_or_torn() {
    check(2, || {
        let ring = ring(2);
        push(ring, 1);
        let a = spawn(move || push(ring, 2));
        let b = spawn(move || push(ring, 3));
        let mut got = [pop(ring), pop(ring), pop(ring)];
        a.join().expect("a producer");
        b.join().expect("a producer");
        got.sort_unstable();
        assert_eq!(got, [1, 2, 3]);
        assert_eq!(ring.pop(), None, "one pair too many");
    });
}

#[test]
fn two_consumers_never_get_the_same_pair() {
    check(3, || {
        let ring = ring(2);
        push(ring, 1);
        let a = spawn(move || ring.pop());
        push(ring, 2);
        let here = ring.pop();
        let there = a.join().expect("a consumer");
        let mut got: Vec<u64> = [here, there, ring.pop(), ring.pop()].into_iter().flatten().map(|[n, _]| n).collect();
        got.sort_unstable();
        assert_eq!(got, [1, 2]);
    });
}
