//! The last failures of a runtime: what stores said, and which touches became signals.
//!
//! # Context: control plane

use softfault_mm::failures::{FailedOp, Failures};
use softfault_mm::types::FillError;
use softfault_platform::sys::thread;
use std::fmt;
use std::time::Duration;

/// A failure that was kept; what it is about may be gone.
#[derive(Clone, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub struct RecentFailure {
    /// Counts the runtime's failures: a gap means that some were not kept.
    pub number: u64,
    /// What failed.
    pub op: FailedOp,
    /// Why.
    pub cause: FillError,
    /// The object's label, its path if it is a file; of a long one the last 96 bytes.
    pub object: String,
    /// The object's byte, of the page that could not be had or the first that was not written.
    pub object_offset: u64,
    /// The address that was touched, of [`FailedOp::Touch`].
    pub address: Option<usize>,
    /// How long ago.
    pub age: Duration,
}

impl fmt::Display for RecentFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { op, cause, object, object_offset, age, .. } = self;
        write!(f, "{op:?} of byte {object_offset:#x} of {object}, {age:.1?} ago: {cause}")?;
        self.address.map_or(Ok(()), |at| write!(f, " (at {at:#x})"))
    }
}

/// Returns the failures that are kept, oldest first.
pub(crate) fn read(kept: &Failures) -> Vec<RecentFailure> {
    let now_ns = thread::monotonic_ns();
    let mut all = Vec::new();
    kept.read(&mut |r| {
        all.push(RecentFailure {
            number: r.ticket,
            op: r.op,
            cause: r.cause,
            object: r.label().to_owned(),
            object_offset: r.object_offset,
            address: usize::try_from(r.address).ok().filter(|at| *at != 0),
            age: Duration::from_nanos(now_ns.saturating_sub(r.when_ns)),
        });
    });
    all.sort_by_key(|r| r.number);
    all
}
