//! The end of a runtime: its threads, then its place in the process.
//!
//! # Context: whoever drops the last reference: control plane

use super::share;
use super::state::RuntimeInner;
use crate::process::descriptors;
use std::sync::PoisonError;

impl Drop for RuntimeInner {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            // A forked child: nothing of this is its own.
            // The lock may have been held by a thread that does not exist here: it is not taken.
            std::mem::forget((self.last_writer.take(), self.flusher.take(), self.kswapd.take()));
            std::mem::forget(std::mem::take(self.regions.get_mut().unwrap_or_else(PoisonError::into_inner)));
            return;
        }
        drop((self.last_writer.take(), self.flusher.take()));
        drop(self.kswapd.take());
        drop(self.entered.take());
        descriptors::sweep();
        share::divide();
    }
}
