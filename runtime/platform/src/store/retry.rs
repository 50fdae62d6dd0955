//! Reads that fail: tried again, and what ends the process where that is asked for.
//!
//! # Context: handler

use super::StoreError;
use crate::sys::{file, text, thread};

/// How often a failing read is tried again, and how long between.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct Retries {
    /// Attempts after the first.
    pub times: u32,
    /// Sleep before the first of them, doubled each time. A handler-safe store is retried without sleeping.
    pub backoff_ns: u64,
}

impl Retries {
    /// Calls `read` until it succeeds, as often as there are attempts. Where it is called in a handler, without sleeping.
    pub(super) fn read(
        self,
        handler_safe: bool,
        mut read: impl FnMut() -> Result<(), StoreError>,
    ) -> Result<(), StoreError> {
        let mut backoff = self.backoff_ns;
        let mut left = self.times;
        loop {
            match read() {
                // Content that fails its check does not get better by asking again at once.
                Err(StoreError::Corrupt) => return Err(StoreError::Corrupt),
                Err(_) if left > 0 => {
                    left -= 1;
                    if !handler_safe {
                        thread::sleep_ns(backoff);
                        backoff = backoff.saturating_mul(2);
                    }
                }
                r => return r,
            }
        }
    }
}

/// Says on standard error what ended the process, and ends it (policy `Abort`).
#[cold]
pub(super) fn abort(object: u64, pgoff: u64) -> ! {
    let mut line = *b"softfault: object                      page                      cannot be filled\n";
    text::put_decimal(line.get_mut(18..38), object);
    text::put_decimal(line.get_mut(44..64), pgoff);
    let _ = file::write(2, &line);
    crate::sys::signal::abort()
}
