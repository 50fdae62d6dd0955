//! The ring of failures under loom: two writers on one slot, and a reader who must not see half of either.
#![cfg(loom)]

use loom::sync::Arc;
use softfault_mm::failures::{FailedOp, Failure, Failures};
use softfault_mm::types::FillError;

fn failure(n: u64) -> Failure<'static> {
    let op = if n == 1 { FailedOp::Read } else { FailedOp::Write };
    Failure { op, cause: FillError::Short, label: "x", object_offset: n, address: n, when_ns: n }
}

#[test]
fn a_record_is_one_writers() {
    loom::model(|| {
        let ring = Arc::new(Failures::new());
        let writers: Vec<_> = [1, 2]
            .map(|n| {
                let ring = Arc::clone(&ring);
                loom::thread::spawn(move || ring.record(&failure(n)))
            })
            .into();
        ring.read(&mut |r| {
            let n = r.object_offset;
            assert!(n == 1 || n == 2, "of nobody");
            assert_eq!((r.address, r.when_ns, r.op), (n, n, failure(n).op), "of both");
        });
        writers.into_iter().for_each(|w| w.join().unwrap());
        let mut nr = 0;
        ring.read(&mut |_| nr += 1);
        assert_eq!(nr, 1, "the first comes through");
    });
}
