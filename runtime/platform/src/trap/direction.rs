//! Load, store or fetch? What to do where the host does not say.
//!
//! Linux puts the processor's error code into the frame: bit 1 a store, bit 2 user mode, bit 4 a fetch. Bit 2 is set for
//! every fault of a program. gVisor and some emulators leave the code 0. There a fetch is told by its address, and the rest
//! is taken for a load at first: a page that is mapped for loads serves one, and a store comes back.
//! ```text
//! store to a page that is not mapped      served as a load: mapped without permission to store
//! the same instruction, the same address  it has made no progress: a store, where the vma permits stores
//! ```
//! A load that comes back, because its page was taken away in between, is served as a store then: the page is written
//! back, or copied, once too often. Where stores are not permitted it stays a load, until it has come back without pause
//! more often than anything but a store would (`spurious`).
//!
//! # Context: handler

use super::spurious;
use crate::sys::signal::Frame;
use crate::sys::thread;
use core::sync::atomic::{AtomicUsize, Ordering};

const ENTRIES: usize = 256;

/// What was served last without knowing: thread, instruction and address in one word. Two threads in one entry at most have
/// a store served as a load once more.
static SERVED: [AtomicUsize; ENTRIES] = [const { AtomicUsize::new(0) }; ENTRIES];

fn entry_of(address: usize, frame: &Frame) -> (&'static AtomicUsize, usize) {
    let tp = thread::thread_pointer();
    let key = tp.rotate_left(32) ^ frame.ip().rotate_left(17) ^ address;
    let at = ((tp >> 6) ^ (address >> 3)).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    // 0 is nobody.
    (SERVED.get(at % ENTRIES).unwrap_or(&SERVED[0]), key | 1)
}

/// Returns whether the access was an instruction fetch.
pub(super) fn is_instruction(address: usize, frame: &Frame) -> bool {
    if frame.knows_access() { frame.is_instruction() } else { frame.ip() == address }
}

/// Returns whether the access was a store, or has to be one; `permitted` says whether stores are.
pub(super) fn is_write(address: usize, frame: &Frame, permitted: impl FnOnce() -> bool) -> bool {
    if frame.knows_access() {
        return frame.is_write();
    }
    let (entry, key) = entry_of(address, frame);
    entry.load(Ordering::Relaxed) == key && (permitted() || !spurious::may_retry(address))
}

/// Notes that the access was served, and its instruction runs again.
#[inline]
pub(super) fn served(address: usize, frame: &Frame) {
    if !frame.knows_access() {
        let (entry, key) = entry_of(address, frame);
        entry.store(key, Ordering::Relaxed);
    }
}
