//! Words that are read whole or not at all (the ring of failures), under loom.
//!
//! `RUSTFLAGS="--cfg loom" cargo test -p softfault-mm --release --test 'loom_*'`
#![cfg(loom)]
#![forbid(unsafe_code)]

#[path = "support/loom.rs"]
mod support;

use softfault_mm::seqlock::SeqLock;
use support::{check, spawn};

/// Two words can be torn; more of them make more schedules and no other ones.
type Pair = SeqLock<2>;

fn pair() -> &'static Pair {
    Box::leak(Box::new(Pair::new()))
}

/// What was read is what one writer wrote, and nothing that is older than `since`.
fn is_whole(read: Option<[u64; 2]>, since: u64) {
    let Some([a, b]) = read else { return };
    assert_eq!(a, b, "torn");
    assert!(a >= since, "older than what was there before");
}

/// The words are written anew, twice, while somebody reads them.
#[test]
fn who_reads_gets_the_one_before_or_one_after() {
    check(2, || {
        let pair = pair();
        assert!(pair.try_write(&[1, 1]));
        let writer = spawn(move || {
            assert!(pair.try_write(&[2, 2]), "nobody else writes");
            assert!(pair.try_write(&[3, 3]), "nobody else writes");
        });
        is_whole(pair.read(1), 1);
        writer.join().expect("the writer");
        assert_eq!(pair.read(1), Some([3, 3]), "the last one is there");
    });
}

/// Two write, and a third reads: the writers come one after the other, or one gives up.
#[test]
fn two_writers_do_not_mix() {
    check(2, || {
        let pair = pair();
        let one = spawn(move || pair.try_write(&[1, 1]));
        let two = spawn(move || pair.try_write(&[2, 2]));
        is_whole(pair.read(1), 0);
        let written = [one, two].map(|writer| writer.join().expect("a writer"));
        assert!(written.contains(&true), "both gave up");
        let read = pair.read(1);
        is_whole(read, 1);
        match written {
            [true, false] => assert_eq!(read, Some([1, 1])),
            [false, true] => assert_eq!(read, Some([2, 2])),
            _ => assert!(read.is_some(), "nobody writes any more"),
        }
    });
}
