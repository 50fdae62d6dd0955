//! What every file of the example counts in, and how it fails.

use std::error::Error;
use std::time::Duration;

pub(crate) type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

pub(crate) const PAGE: u64 = 4096;

/// Returns the share of faults that found their page cached, 0 to 1.
#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn hit_rate(faults: u64, major: u64) -> f64 {
    1.0 - major as f64 / faults.max(1) as f64
}

#[expect(clippy::cast_precision_loss, reason = "figures for people")]
pub(crate) fn rate(nr: u64, took: Duration) -> f64 {
    nr as f64 / took.as_secs_f64().max(1e-9)
}
