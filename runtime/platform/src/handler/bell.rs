//! The monitor's bell: what wakes the thread that reads messages, beside the messages.
//!
//! A pair of sockets: the monitor polls one, who rings sends to the other. The program may close any number, and its next file
//! gets the lowest that is free; so before an end is used, its number is looked at, and a look tells files by their inode. Every
//! eventfd is one inode to the kernel: the program's, under our number, was taken for ours. A socket has an inode of its own, and
//! send(2) is refused by whatever is none: so what another thread of the program opens between the look and the call is left
//! alone, too, unless that is a socket itself, where write(2) would have left a byte in anything.
//! ```text
//! monitor                                   the program
//! polls its end
//!                                           closes everything
//! woken: the other end hung up, or polling again finds no such number
//! makes a bell; if there is no number to be had, looks every few milliseconds, and tries again
//! ```
//!
//! # Context: handler; [`get`]: control plane under the caller's lock, and the monitor

use crate::sys::{Errno, fd, file};
use core::sync::atomic::{AtomicU64, Ordering};

/// An end: its number plus 1, and the lower half of its inode's number, in one word: who finds a new number finds its inode.
struct End(AtomicU64);

/// The device that every socket lies on; 0: none was made yet.
static DEV: AtomicU64 = AtomicU64::new(0);
/// What the monitor polls, and what is rung.
static HEARS: End = End(AtomicU64::new(0));
static RINGS: End = End(AtomicU64::new(0));

impl End {
    /// Returns the number, if it names our end.
    fn ours(&self) -> Option<i32> {
        // Acquire pairs with `End::set`: the device was stored before.
        let word = self.0.load(Ordering::Acquire);
        let number = (word >> 32) as i32 - 1;
        (number >= 0 && fd::names(number, (DEV.load(Ordering::Relaxed), word & 0xffff_ffff))).then_some(number)
    }

    fn set(&self, number: i32, ino: u64) {
        // Release pairs with `End::ours`.
        self.0.store((number as u64 + 1) << 32 | ino, Ordering::Release);
    }
}

/// Returns the number that the monitor polls, making the bell at first use, or anew where the program has closed an end of it.
///
/// It lives as long as the process: a helper that is abandoned inside a store may still ring it.
///
/// # Context: control plane, under the caller's lock, and the monitor: one of them at a time
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`: there is none for now.
pub fn get() -> Result<i32, Errno> {
    let (hears, rings) = (HEARS.ours(), RINGS.ours());
    if let (Some(hears), Some(_)) = (hears, rings) {
        return Ok(hears);
    }
    let pair = file::socketpair()?;
    // Of a pair, one end is of no use.
    hears.into_iter().chain(rings).for_each(file::close);
    let [hears, rings] = pair.map(fd::raise);
    let ends = fd::identity(hears).and_then(|h| fd::identity(rings).map(|r| (h, r)));
    let (hears_is, rings_is) = ends.inspect_err(|_| [hears, rings].into_iter().for_each(file::close))?;
    DEV.store(hears_is.0, Ordering::Relaxed);
    HEARS.set(hears, hears_is.1);
    RINGS.set(rings, rings_is.1);
    Ok(hears)
}

/// Wakes the monitor.
///
/// # Context: handler
pub fn ring() {
    if let Some(rings) = RINGS.ours() {
        // Full: it has been rung often enough.
        let _ = file::send(rings, &[1]);
    }
}

/// Takes what was rung. The monitor.
///
/// # Context: the monitor thread
pub fn hush() {
    if let Some(hears) = HEARS.ours() {
        // What is left, if it was rung more often, is heard the next time.
        let _ = file::receive(hears, &mut [0u8; 1024]);
    }
}
