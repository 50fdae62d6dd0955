//! Where the bytes of captured pages are kept until they are written: frames that stores fill, and that the walker and the saver
//! empty.
//!
//! A frame has a word: the page it is of, and what it is.
//! ```text
//! free --a store--> busy --it won--> won --walker or saver--> taken --> free
//!                    +---it lost--> free
//! ```
//! Frames stand in sets of 64, and a page's may only be in the one set that its number gives: so who looks for it looks at 64
//! words at most, and a set that is full says so early.
//!
//! # Context: handler; what opens and closes: control plane

use crate::sys::{Errno, futex, mem};
use core::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use softfault_mm::cut::{NR_CAPTURES, tables};
use softfault_mm::failpoint;
use softfault_mm::ops::Preserved;
use softfault_mm::page::{PAGE_SHIFT, PAGE_SIZE};

/// Frames of a set.
pub const SET: usize = 64;

const FREE: u64 = 0;
const BUSY: u64 = 1;
const WON: u64 = 2;
const TAKEN: u64 = 3;
/// Bits of a frame's word below the page, and of the page below the object: 256 TiB of an object, 16 million of those.
const STATE_BITS: u32 = 2;
const PAGE_BITS: u32 = 38;

/// The frames of one capture: words first, then bytes.
struct Area {
    /// 0: there is none. Written while no lift may look, and looked at in lifts.
    base: AtomicUsize,
    nr: AtomicUsize,
    used: AtomicUsize,
    /// Pages that were kept, ever.
    saved: AtomicU64,
    /// Moves when the saver has something to do.
    bell: AtomicU32,
    /// Stores that found no room since the saver looked.
    starved: AtomicU32,
    /// The saver is at work for such stores: they sleep, and do not say so again.
    served: AtomicU32,
}

/// What captures have done in this process.
#[derive(Debug)]
pub struct Counts {
    /// Cuts that were made.
    pub made: AtomicU64,
    /// Nanoseconds that stores may have waited for them.
    pub held_ns: AtomicU64,
    /// Pages whose bytes were kept for a store to them.
    pub saved: AtomicU64,
    /// Of these, pages whose bytes went to a file.
    pub spilled: AtomicU64,
    /// Pages that a walker has copied.
    pub walked: AtomicU64,
}

/// The process's counts.
pub static COUNTS: Counts = Counts {
    made: AtomicU64::new(0),
    held_ns: AtomicU64::new(0),
    saved: AtomicU64::new(0),
    spilled: AtomicU64::new(0),
    walked: AtomicU64::new(0),
};

static AREAS: [Area; NR_CAPTURES] = [const {
    Area {
        base: AtomicUsize::new(0),
        nr: AtomicUsize::new(0),
        used: AtomicUsize::new(0),
        saved: AtomicU64::new(0),
        bell: AtomicU32::new(0),
        starved: AtomicU32::new(0),
        served: AtomicU32::new(0),
    }
}; NR_CAPTURES];

/// A captured page: its object's number, and which of its pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Key {
    /// The object's number.
    pub object: u32,
    /// The page of the object.
    pub pgoff: u64,
}

impl Key {
    fn word(self, state: u64) -> u64 {
        let pgoff = self.pgoff & ((1 << PAGE_BITS) - 1);
        (u64::from(self.object) << PAGE_BITS | pgoff) << STATE_BITS | state
    }

    fn of(word: u64) -> Self {
        let page = word >> STATE_BITS;
        Self { object: (page >> PAGE_BITS) as u32, pgoff: page & ((1 << PAGE_BITS) - 1) }
    }

    /// Spreads neighbours, and objects at the same page, over the sets.
    fn hash(self) -> usize {
        (self.word(0).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 32) as usize
    }
}

/// The frames of an area that is open.
#[derive(Clone, Copy)]
struct Frames {
    base: usize,
    nr: usize,
}

impl Frames {
    fn words_len(nr: usize) -> usize {
        (nr * size_of::<AtomicU64>()).next_multiple_of(PAGE_SIZE)
    }

    fn bounded(self, i: usize) -> usize {
        if i < self.nr { i } else { 0 }
    }

    fn word(self, i: usize) -> &'static AtomicU64 {
        let at = (self.base as *const AtomicU64).wrapping_add(self.bounded(i));
        // SAFETY: `open` mapped `nr` zeroed words there, which stay until `close`, whose caller knows that nobody looks.
        unsafe { &*at }
    }

    fn bytes(self, i: usize) -> *mut u8 {
        (self.base + Self::words_len(self.nr) + self.bounded(i) * PAGE_SIZE) as *mut u8
    }

    fn set_of(self, key: Key) -> core::ops::Range<usize> {
        let first = key.hash().checked_rem(self.nr / SET).unwrap_or(0) * SET;
        first..first + SET
    }
}

impl Area {
    fn frames(&self) -> Option<Frames> {
        // Acquire pairs with `open`.
        let base = self.base.load(Ordering::Acquire);
        let nr = self.nr.load(Ordering::Relaxed);
        (base != 0 && nr >= SET).then_some(Frames { base, nr })
    }

    fn ring(&self) {
        // Release pairs with `saver_key`.
        self.bell.fetch_add(1, Ordering::Release);
        futex::wake_word(&self.bell);
    }
}

fn area(number: u32) -> Option<&'static Area> {
    AREAS.get(number as usize)
}

/// Maps an area of `nr` frames, a multiple of [`SET`] and not 0, for capture `number`.
///
/// # Context: control plane; nobody knows of the capture yet
///
/// # Errors
/// The kernel's: `ENOMEM`.
pub fn open(number: u32, nr: usize) -> Result<(), Errno> {
    let area = area(number).ok_or(Errno::EINVAL)?;
    let len_bytes = Frames::words_len(nr) + nr * PAGE_SIZE;
    let base = mem::map_zeroed(len_bytes)?;
    // SAFETY: mapped above, and nobody has seen it.
    let _ = unsafe { mem::madvise(base, len_bytes, mem::MADV_DONTFORK) };
    area.nr.store(nr, Ordering::Relaxed);
    area.used.store(0, Ordering::Relaxed);
    area.saved.store(0, Ordering::Relaxed);
    area.starved.store(0, Ordering::Relaxed);
    area.served.store(0, Ordering::Relaxed);
    // Release pairs with `Area::frames`.
    area.base.store(base, Ordering::Release);
    Ok(())
}

/// Unmaps an area.
///
/// # Context: control plane
///
/// # Safety
/// The capture is over: nobody is in a lift that saw it, and its walker and saver look no more.
pub unsafe fn close(number: u32) {
    let Some((area, frames)) = area(number).and_then(|a| Some((a, a.frames()?))) else { return };
    area.base.store(0, Ordering::Relaxed);
    // SAFETY: `open` mapped it, and nobody looks (contract).
    unsafe { mem::release(frames.base, Frames::words_len(frames.nr) + frames.nr * PAGE_SIZE) };
}

/// Keeps the page at `src` as capture `number` has it: copies it, and keeps the copy if `won` says that it counts.
///
/// # Context: handler, in a lift that saw the capture
///
/// # Safety
/// `src` is a page that is mapped readable.
pub unsafe fn put(number: u32, key: Key, src: *const u8, won: &mut dyn FnMut() -> bool) -> Preserved {
    let capture = tables().and_then(|t| t.capture(number));
    // Before room is looked for: what is freed later moves it.
    let seen = capture.map_or(0, |c| c.room_key().1);
    let Some((area, frames)) = area(number).and_then(|a| Some((a, a.frames()?))) else { return Preserved::Full(seen) };
    let free = |i: &usize| {
        let word = frames.word(*i);
        // Acquire pairs with `empty` and the other `put`, which are done with the bytes.
        word.load(Ordering::Relaxed) == FREE
            && word.compare_exchange(FREE, key.word(BUSY), Ordering::Acquire, Ordering::Relaxed).is_ok()
    };
    let Some(i) = frames.set_of(key).find(free) else {
        area.starved.fetch_add(1, Ordering::Relaxed);
        area.ring();
        return Preserved::Full(seen);
    };
    // SAFETY: the source is the caller's word; the frame is ours while it is busy.
    unsafe { mem::copy_racy(frames.bytes(i), src, PAGE_SIZE) };
    failpoint!(CAPTURE_COPIED);
    if won() {
        // Release pairs with `take`: who finds the frame finds the bytes.
        frames.word(i).store(key.word(WON), Ordering::Release);
        area.saved.fetch_add(1, Ordering::Relaxed);
        COUNTS.saved.fetch_add(1, Ordering::Relaxed);
        if area.used.fetch_add(1, Ordering::Relaxed) == frames.nr / 2 {
            area.ring();
        }
    } else {
        // Release pairs with the next `put` in the frame.
        frames.word(i).store(FREE, Ordering::Release);
    }
    Preserved::Done
}

/// Claims frame `i`, if a page is kept in it that `wanted` says is; calls `f` with its bytes, and frees it.
fn empty(
    number: u32,
    (area, frames): (&Area, Frames),
    i: usize,
    wanted: impl Fn(u64) -> bool,
    f: &mut dyn FnMut(Key, &[u8; PAGE_SIZE]),
) -> bool {
    let word = frames.word(i);
    let seen = word.load(Ordering::Relaxed);
    let claims = seen & TAKEN == WON && wanted(seen);
    // Acquire pairs with `put`.
    if !claims || word.compare_exchange(seen, seen | TAKEN, Ordering::Acquire, Ordering::Relaxed).is_err() {
        return false;
    }
    // SAFETY: the frame is ours while it is taken, and filled.
    f(Key::of(seen), unsafe { &*frames.bytes(i).cast() });
    // Release pairs with the next `put` in the frame.
    word.store(FREE, Ordering::Release);
    area.used.fetch_sub(1, Ordering::Relaxed);
    if let Some(capture) = tables().and_then(|t| t.capture(number)) {
        capture.note_room();
        futex::wake_all(capture.room_key().0);
    }
    true
}

/// Calls `f` with the bytes of a page that is kept, and frees its frame; `false`: there is none (any more, or yet).
///
/// # Context: the walker
pub fn take(number: u32, key: Key, f: &mut dyn FnMut(&[u8; PAGE_SIZE])) -> bool {
    let Some(of) = area(number).and_then(|a| Some((a, a.frames()?))) else { return false };
    of.1.set_of(key).any(|i| empty(number, of, i, |word| word == key.word(WON), &mut |_, bytes| f(bytes)))
}

/// Calls `f` with each page that is kept, and its bytes, and frees the frames, until half are free; all, where a store found no
/// room.
///
/// # Context: the saver
pub fn drain(number: u32, f: &mut dyn FnMut(Key, &[u8; PAGE_SIZE]) -> bool) {
    let Some(of) = area(number).and_then(|a| Some((a, a.frames()?))) else { return };
    let (area, frames) = of;
    let nr_starved = area.starved.swap(0, Ordering::Relaxed);
    area.served.store(nr_starved, Ordering::Relaxed);
    let mut goes_on = true;
    for i in 0..frames.nr {
        if !goes_on || !(nr_starved > 0 || area.used.load(Ordering::Relaxed) > frames.nr / 2) {
            break;
        }
        empty(number, of, i, |_| true, &mut |key, bytes| goes_on = f(key, bytes));
    }
    area.served.store(0, Ordering::Relaxed);
}

/// Returns how many frames are in use, of how many.
///
/// # Context: control plane
#[must_use]
pub fn used(number: u32) -> (usize, usize) {
    area(number).map_or((0, 0), |a| (a.used.load(Ordering::Relaxed), a.nr.load(Ordering::Relaxed)))
}

/// Returns how many pages were kept since the area was opened.
///
/// # Context: control plane
#[must_use]
pub fn saved(number: u32) -> u64 {
    area(number).map_or(0, |a| a.saved.load(Ordering::Relaxed))
}

/// Returns how much memory the frames of all captures may take, in bytes.
///
/// # Context: control plane
#[must_use]
pub fn frame_bytes() -> u64 {
    AREAS.iter().filter_map(Area::frames).map(|f| (f.nr * PAGE_SIZE) as u64).sum()
}

/// Returns whether a store found no room since the saver looked.
///
/// # Context: control plane
#[must_use]
pub fn is_starved(number: u32) -> bool {
    area(number).is_some_and(|a| a.starved.load(Ordering::Relaxed) > 0)
}

/// Returns whether a store may wait for room.
///
/// # Context: the watch
#[must_use]
pub fn is_waited_for(number: u32) -> bool {
    is_starved(number) || area(number).is_some_and(|a| a.served.load(Ordering::Relaxed) > 0)
}

/// Returns what the saver sleeps on, to be asked before it looks whether there is something to do.
///
/// # Context: the saver
#[must_use]
pub fn saver_key(number: u32) -> Option<(&'static AtomicU32, u32)> {
    // Acquire pairs with `Area::ring`.
    area(number).map(|a| (&a.bell, a.bell.load(Ordering::Acquire)))
}

/// Wakes the saver.
///
/// # Context: handler
pub fn ring(number: u32) {
    if let Some(area) = area(number) {
        area.ring();
    }
}

const _: () = assert!(PAGE_SIZE == 1 << PAGE_SHIFT);

#[cfg(test)]
mod tests {
    use super::*;

    /// A page full of one byte, kept.
    fn keep(number: u32, pgoff: u64, byte: u8) -> Preserved {
        let page = [byte; PAGE_SIZE];
        // SAFETY: a page of this function's.
        unsafe { put(number, Key { object: 3, pgoff }, page.as_ptr(), &mut || true) }
    }

    #[test]
    fn what_is_kept_is_taken_once() {
        assert_eq!(open(0, 2 * SET), Ok(()));
        assert_eq!(keep(0, 7, 9), Preserved::Done);
        let page = [1u8; PAGE_SIZE];
        // SAFETY: a page of this function's.
        let lost = unsafe { put(0, Key { object: 3, pgoff: 8 }, page.as_ptr(), &mut || false) };
        assert_eq!((lost, used(0).0), (Preserved::Done, 1), "a copy that does not count is not kept");
        let mut byte = 0;
        assert!(!take(0, Key { object: 4, pgoff: 7 }, &mut |_| {}), "of another object");
        assert!(take(0, Key { object: 3, pgoff: 7 }, &mut |bytes| byte = bytes[PAGE_SIZE - 1]));
        assert_eq!((byte, used(0).0), (9, 0));
        assert!(!take(0, Key { object: 3, pgoff: 7 }, &mut |_| {}), "it is gone");
        // SAFETY: nobody else knows of it.
        unsafe { close(0) };
    }

    /// A set that is full refuses, says so to the saver, and takes again what the saver has made room for.
    #[test]
    fn a_full_set_waits_for_the_saver() {
        assert_eq!(open(1, SET), Ok(()));
        (0..SET as u64).for_each(|p| assert_eq!(keep(1, p, p as u8), Preserved::Done));
        let room = || tables().and_then(|t| t.capture(1)).map_or(0, |c| c.room_key().1);
        let before = room();
        assert_eq!(keep(1, 99, 1), Preserved::Full(before), "with the number to sleep on");
        assert!(is_starved(1));
        let mut seen = [false; SET];
        drain(1, &mut |key, bytes| {
            assert_eq!(bytes[0], key.pgoff as u8, "the page's own bytes");
            assert_eq!(seen.get_mut(key.pgoff as usize).map(|s| core::mem::replace(s, true)), Some(false), "twice");
            true
        });
        assert_eq!(seen, [true; SET]);
        assert_ne!(room(), before, "who sleeps is woken");
        assert_eq!(keep(1, 99, 1), Preserved::Done);
        let mut drained = 0;
        drain(1, &mut |_, _| {
            drained += 1;
            true
        });
        assert_eq!(drained, 0, "there is room enough");
        // SAFETY: nobody else knows of it.
        unsafe { close(1) };
    }
}
