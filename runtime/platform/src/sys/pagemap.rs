//! `/proc/self/pagemap` and its PAGEMAP_SCAN ioctl: which pages were stored to. See
//! Documentation/admin-guide/mm/pagemap.rst.
//!
//! An empty entry counts as written there: the kernel knows neither whether it was ever mapped, nor whether a page that was
//! stored to and is mapped no more was here. Who asks knows the first.
//!
//! Of a range that has no page table (the kernel frees one that `MADV_DONTNEED` has emptied) older kernels say nothing of the
//! kind, and protect nothing there; which kind this one is, [`learn`] finds out.
//!
//! The program may close the file by its number and open another: then most requests fail, but the same file of another
//! process (a supervisor's, say) answers, of that one's memory. An answer is believed only if the number names our file when
//! it has come; else the file is taken back from the thread that keeps it, or opened anew, and asked again.
//!
//! # Context: handler; opening: control plane

use super::fd;
use super::syscall::{Errno, syscall6};
#[cfg(feature = "userfaultfd")]
use super::uffd::{Uffd, bits};
use super::{file, mem};
use core::sync::atomic::{AtomicBool, AtomicI32, AtomicU64, Ordering};

/// Not write-protected, or never mapped.
pub const PAGE_IS_WRITTEN: u64 = 1 << 1;
/// Mapped.
pub const PAGE_IS_PRESENT: u64 = 1 << 3;
/// Not mapped, with something left in the entry: for a shared mapping, the marker of a protection.
pub const PAGE_IS_SWAPPED: u64 = 1 << 4;

/// Of a file, or shared: in a private mapping, a page that was not stored to.
const PAGE_IS_FILE: u64 = 1 << 2;

const WP_MATCHING: u64 = 1 << 0;
const CHECK_WPASYNC: u64 = 1 << 1;
const PAGEMAP_SCAN: usize = (3 << 30) | (size_of::<ScanArg>() << 16) | ((b'f' as usize) << 8) | 16;

/// A run of pages of the same categories.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub struct Region {
    /// First address.
    pub start: u64,
    /// First address behind it.
    pub end: u64,
    /// `PAGE_IS_*`, as far as asked for.
    pub categories: u64,
}

#[derive(Clone, Copy, Default)]
#[repr(C)]
struct ScanArg {
    size: u64,
    flags: u64,
    start: u64,
    end: u64,
    walk_end: u64,
    vec: u64,
    vec_len: u64,
    max_pages: u64,
    category_inverted: u64,
    category_mask: u64,
    category_anyof_mask: u64,
    return_mask: u64,
}

/// The number by now, and what it names while that is our file, in one word: who knows the one knows the other, and who is
/// too late to exchange them leaves both.
static ASKED: AtomicU64 = AtomicU64::new(Asked::NONE.0);
/// The number in the table of the thread which keeps the file ([`fd::keep`]); -1: none.
static KEPT_AS: AtomicI32 = AtomicI32::new(-1);
/// Entries and ranges in which nothing is are told as written, and are protected: see [`learn`].
static EMPTY_TOLD: AtomicBool = AtomicBool::new(false);

/// What one page table maps.
const TABLE_BYTES: u64 = 2 << 20;

/// How often the file is taken back for one question: the program may go on closing it.
const TRIES: usize = 3;

/// Opens the file, unless it is open.
///
/// # Context: control plane, under the caller's lock
///
/// # Errors
/// `ENOENT` without /proc, `ENOTTY` where the kernel has no PAGEMAP_SCAN (before Linux 6.7).
pub fn init() -> Result<(), Errno> {
    let seen = asked();
    if seen.is_some() {
        return take_back(&ASKED, seen);
    }
    let number = fd::raise(file::open_rdonly(c"/proc/self/pagemap")?);
    let page = mem::map_zeroed(4096).inspect_err(|_| file::close(number))?;
    let mut arg = ScanArg { start: page as u64, end: page as u64 + 4096, ..ask(PAGE_IS_PRESENT) };
    let works = scan(number, &mut arg, &mut []).and_then(|_| publish(&ASKED, seen, Asked::new(number)?));
    // SAFETY: the page mapped above, which nobody else has seen.
    unsafe { mem::release(page, 4096) };
    works.inspect_err(|_| file::close(number))
}

/// A number, and 32 bits of what it named when it was ours: where its position lies, which nothing uses, so that a random number
/// has put it there ([`fd::Descriptor::mark`]), or of its device and inode. A file of the program's is taken for ours once in 2^31.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Asked(u64);

impl Asked {
    /// No number.
    const NONE: Self = Self(u64::MAX);

    /// In the word: its position says it, 0.15 us; else its inode does, 0.28 us.
    const MARKED: u64 = 1 << 63;

    /// Of the file, which was opened just now: nobody else has this description.
    ///
    /// # Context: control plane
    fn new(number: i32) -> Result<Self, Errno> {
        match fd::move_position(number) {
            Ok(mark) if mark != 0 => Ok(Self::MARKED | u64::from(mark) << 32).map(|is| Self(is).renumbered(number)),
            _ => Self::by_inode(number),
        }
    }

    /// Of the file, which was opened anew. It is put elsewhere than the one before was: who has that one's word finds that it is
    /// another, also where the number is the same.
    fn again(self, number: i32) -> Result<Self, Errno> {
        let mark = u64::from(((self.0 >> 32) as u32).wrapping_mul(0x9e37_79b1)) | 1 << 31;
        let again = Self(mark << 32).renumbered(number);
        // The file has no bytes, so what lies behind a position is what it lacks of 2^32.
        let is_put = || file::seek(number, (1 << 32) - mark).is_ok() && again.names_it();
        if self.is_some() && self.0 & Self::MARKED != 0 && is_put() { Ok(again) } else { Self::by_inode(number) }
    }

    fn by_inode(number: i32) -> Result<Self, Errno> {
        let (dev, ino) = fd::identity(number)?;
        // An odd factor: no two devices are one. Files of one /proc have inodes of 32 bits.
        let is = u64::from((ino as u32) ^ (dev as u32).wrapping_mul(0x9e37_79b1));
        Ok(Self(is << 32 & !Self::MARKED).renumbered(number))
    }

    fn number(self) -> i32 {
        (self.0 as u32).cast_signed()
    }

    fn is_some(self) -> bool {
        self.number() >= 0
    }

    /// Returns the same file under another number.
    fn renumbered(self, number: i32) -> Self {
        Self(self.0 >> 32 << 32 | u64::from(number.cast_unsigned()))
    }

    /// Returns whether the number names our file; counted in [`fd::lost`] if it does not.
    fn is_ours(self) -> bool {
        let ours = self.names_it();
        if !ours {
            fd::note_lost();
        }
        ours
    }

    fn names_it(self) -> bool {
        if self.0 & Self::MARKED == 0 {
            return Self::by_inode(self.number()) == Ok(self);
        }
        file::unread_bytes(self.number()) == Ok((self.0 >> 32) as u32)
    }
}

/// Makes `new` the one to ask, if it is `seen` until now. What somebody else's number names by now is not asked:
/// ```text
/// this thread                      another                     the program
/// opens 7                          opens 8
///                                  8 is the one to ask
///                                                              closes 8, and opens its own: 8
/// is too late
/// ```
///
/// # Errors
/// `EAGAIN`: another thread was first.
fn publish(asked: &AtomicU64, seen: Asked, new: Asked) -> Result<(), Errno> {
    // Relaxed: what the number names is in the word itself.
    let swapped = asked.compare_exchange(seen.0, new.0, Ordering::Relaxed, Ordering::Relaxed);
    swapped.map(drop).map_err(|_| Errno::EAGAIN)
}

/// Returns what to ask by; see [`Asked::is_some`].
#[inline]
fn asked() -> Asked {
    Asked(ASKED.load(Ordering::Relaxed))
}

/// Returns the number, to be kept, and notes that it will be under this one.
///
/// # Context: control plane
#[must_use]
pub fn note_kept() -> Option<i32> {
    let seen = asked();
    let is_open = seen.is_some() && take_back(&ASKED, seen).is_ok();
    let number = asked().number();
    KEPT_AS.store(if is_open { number } else { -1 }, Ordering::Relaxed);
    is_open.then_some(number)
}

/// Has another number name the file, if `seen`, which did, does not. So nothing is open twice: a number that is exchanged is the
/// program's, or nobody's (or of a file whose position the program has moved).
///
/// # Context: handler
///
/// # Errors
/// `EBADF`: nobody keeps it, and it cannot be opened.
#[cold]
#[inline(never)]
fn take_back(asked: &AtomicU64, seen: Asked) -> Result<(), Errno> {
    if seen.is_ours() {
        return Ok(());
    }
    let kept = fd::kept(KEPT_AS.load(Ordering::Relaxed)).and_then(|number| {
        let kept = seen.renumbered(number);
        if kept.names_it() {
            return Ok(kept);
        }
        file::close(number);
        Err(Errno::EBADF)
    });
    let new = match kept {
        Ok(kept) => kept,
        Err(_) => {
            let number = fd::raise(file::open_rdonly(c"/proc/self/pagemap").map_err(|_| Errno::EBADF)?);
            seen.again(number).inspect_err(|_| file::close(number))?
        }
    };
    if publish(asked, seen, new).is_err() {
        // Another thread was first: its number is as good.
        file::close(new.number());
    }
    Ok(())
}

/// Asks by the number, and believes the answer if it was our file's.
fn with_file<R>(mut asks: impl FnMut(i32) -> Result<R, Errno>) -> Result<R, Errno> {
    for _ in 0..TRIES {
        let seen = asked();
        let answer = asks(seen.number());
        if !seen.is_some() || seen.is_ours() {
            return answer;
        }
        take_back(&ASKED, seen)?;
    }
    Err(Errno::EBADF)
}

/// Returns what [`glance`] asks by now.
///
/// # Context: handler
#[must_use]
pub fn asked_by() -> u64 {
    asked().0
}

/// Returns whether what was [`glanced`](glance) at since [`asked_by`] returned `seen` was of this process. Not where another
/// number has been taken meanwhile: some of it was asked by the old one, when that named another file.
///
/// # Context: handler
#[must_use]
pub fn vouches(seen: u64) -> bool {
    let now = asked();
    let ours = now.is_ours() && seen == asked_by();
    if !ours {
        // So that the next ones are to be believed.
        let _ = take_back(&ASKED, now);
    }
    ours
}

/// Finds out what the kernel says of a range without a page table, and whether it protects one, where `uffd` notes stores.
/// Until then, and where that cannot be found out, it is asked for everything.
///
/// # Context: control plane
#[cfg(feature = "userfaultfd")]
pub fn learn(uffd: &Uffd) {
    const LEN: usize = TABLE_BYTES as usize;
    EMPTY_TOLD.store(false, Ordering::Relaxed);
    // Whole, so that no page table of a neighbour's is here; without access, so that nobody populates it.
    let Ok(base) = mem::reserve(LEN, LEN) else { return };
    if uffd.register(base, LEN, bits::REGISTER_WP).is_ok() {
        EMPTY_TOLD.store(tells_empty(base as u64) == Ok(true), Ordering::Relaxed);
        let _ = uffd.unregister(base, LEN);
    }
    // SAFETY: reserved above, and nobody else has seen it.
    unsafe { mem::release(base, LEN) };
}

/// Asks about a page table's range at `base`, where nothing ever was.
#[cfg(feature = "userfaultfd")]
fn tells_empty(base: u64) -> Result<bool, Errno> {
    let told = || {
        let mut regions = [Region::default(); 3];
        let mut arg = ScanArg { start: base, end: base + TABLE_BYTES, ..ask_written() };
        let nr = with_file(|number| scan(number, &mut arg, &mut regions))?;
        Ok((nr, regions.map(|r| (r.start, r.end))))
    };
    let (nr, [whole, ..]) = told()?;
    let page = 4096;
    // From the second page on there is a table, if there is a marker.
    protect((base + page) as usize, page as usize)?;
    let (nr_around, [below, above, _]) = told()?;
    Ok(nr == 1
        && whole == (base, base + TABLE_BYTES)
        && nr_around == 2
        && below == (base, base + page)
        && above == (base + 2 * page, base + TABLE_BYTES))
}

/// Returns whether [`protect`] leaves a marker where nothing is, also where there is no page table.
///
/// # Context: handler
#[must_use]
pub fn protects_empty() -> bool {
    EMPTY_TOLD.load(Ordering::Relaxed)
}

/// Returns whether stores can be found by scanning.
///
/// # Context: handler
#[must_use]
pub fn is_open() -> bool {
    asked().is_some()
}

fn ask(any_of: u64) -> ScanArg {
    ScanArg {
        size: size_of::<ScanArg>() as u64,
        category_anyof_mask: any_of,
        return_mask: any_of,
        ..ScanArg::default()
    }
}

fn scan(fd: i32, arg: &mut ScanArg, regions: &mut [Region]) -> Result<usize, Errno> {
    #[cfg(debug_assertions)]
    if old::is_on() {
        return old::scan(fd, arg, regions);
    }
    scan_now(fd, arg, regions)
}

fn scan_now(fd: i32, arg: &mut ScanArg, regions: &mut [Region]) -> Result<usize, Errno> {
    if !regions.is_empty() {
        arg.vec = regions.as_mut_ptr() as u64;
        arg.vec_len = regions.len() as u64;
    }
    let args = [fd as usize, PAGEMAP_SCAN, core::ptr::from_mut(arg) as usize, 0, 0, 0];
    // SAFETY: the request encodes the argument's size; `arg` and `regions` are exclusively borrowed for the call.
    unsafe { syscall6(libc::SYS_ioctl, args) }
}

/// Returns whether a private mapping of a file has a page of its own in the range, mapped or swapped out; or a marker.
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
pub fn has_private(addr: usize, len_bytes: usize) -> Result<bool, Errno> {
    let mut region = [Region::default()];
    let mut arg = ScanArg {
        start: addr as u64,
        end: (addr + len_bytes) as u64,
        max_pages: 1,
        category_inverted: PAGE_IS_FILE,
        category_mask: PAGE_IS_FILE,
        ..ask(PAGE_IS_PRESENT | PAGE_IS_SWAPPED)
    };
    with_file(|number| scan(number, &mut arg, &mut region)).map(|nr| nr > 0)
}

/// Returns the categories of the page at `addr`, of `PRESENT`, `WRITTEN` and `SWAPPED`.
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
pub fn look(addr: usize) -> Result<u64, Errno> {
    with_file(|number| look_by(number, addr))
}

/// The same, to be believed only if [`vouches`] says so afterwards: one look at the number for many at pages.
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
pub fn glance(addr: usize) -> Result<u64, Errno> {
    look_by(asked().number(), addr)
}

fn look_by(number: i32, addr: usize) -> Result<u64, Errno> {
    let mut region = [Region::default()];
    let mut arg = ScanArg {
        start: addr as u64,
        end: addr as u64 + 4096,
        ..ask(PAGE_IS_PRESENT | PAGE_IS_WRITTEN | PAGE_IS_SWAPPED)
    };
    let n = scan(number, &mut arg, &mut region)?;
    let [region] = region;
    Ok(if n > 0 { region.categories } else { 0 })
}

/// Protects every page of the range that is not: those that were stored to, in one step each with finding out that they
/// were, and empty entries, which have a marker afterwards.
///
/// # Context: handler
///
/// # Errors
/// `EPERM` where part of the range is not registered for asynchronous write protection; the kernel's others.
pub fn protect(addr: usize, len_bytes: usize) -> Result<(), Errno> {
    let (mut at, end) = (addr as u64, (addr + len_bytes) as u64);
    // Looked at before: it changes what it is asked about. What is not protected, though it was said, counts as written.
    let mut by = asked();
    if !by.is_ours() {
        take_back(&ASKED, by)?;
        by = asked();
    }
    while at < end {
        let flags = WP_MATCHING | CHECK_WPASYNC;
        let mut arg = ScanArg { flags, start: at, end, ..ask_written() };
        scan(by.number(), &mut arg, &mut [])?;
        if arg.walk_end <= at {
            return Err(Errno::EINVAL);
        }
        at = arg.walk_end;
    }
    Ok(())
}

/// Asks for nothing but what is not protected. The kernel has a way of its own for this question, which takes an eighth of
/// the time of others (0.8 us for 2 MiB, against 6), but does not tell empty entries from mapped ones.
fn ask_written() -> ScanArg {
    ScanArg {
        size: size_of::<ScanArg>() as u64,
        category_mask: PAGE_IS_WRITTEN,
        return_mask: PAGE_IS_WRITTEN,
        ..ScanArg::default()
    }
}

/// Calls `found(addr, len_bytes)` for each run of pages in the range that lie in no memory: nothing is mapped, nor swapped out.
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
pub fn each_missing(addr: usize, len_bytes: usize, found: &mut dyn FnMut(usize, usize)) -> Result<(), Errno> {
    let (mut at, end) = (addr as u64, (addr + len_bytes) as u64);
    let some = PAGE_IS_PRESENT | PAGE_IS_SWAPPED;
    while at < end {
        let mut regions = [Region::default(); 8];
        let mut arg = ScanArg {
            size: size_of::<ScanArg>() as u64,
            start: at,
            end,
            category_inverted: some,
            category_mask: some,
            return_mask: some,
            ..ScanArg::default()
        };
        let n = with_file(|number| scan(number, &mut arg, &mut regions))?;
        for r in regions.iter().take(n) {
            found(r.start as usize, (r.end - r.start) as usize);
        }
        if arg.walk_end <= at {
            return Err(Errno::EINVAL);
        }
        at = arg.walk_end;
    }
    Ok(())
}

/// Calls `found(addr, len_bytes)` for each run of pages in the range that are not protected: written, or empty.
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
pub fn each_written_or_empty(addr: usize, len_bytes: usize, found: &mut dyn FnMut(usize, usize)) -> Result<(), Errno> {
    // A kernel that passes over empty entries is asked for everything.
    if !EMPTY_TOLD.load(Ordering::Relaxed) {
        return each_unprotected(addr, len_bytes, &mut |at, len, _| found(at, len));
    }
    let (at, end) = (addr as u64, (addr + len_bytes) as u64);
    with_file(|number| each_written_or_empty_by(number, at, end, found))
}

fn each_written_or_empty_by(fd: i32, mut at: u64, end: u64, found: &mut dyn FnMut(usize, usize)) -> Result<(), Errno> {
    while at < end {
        let mut regions = [Region::default(); 32];
        let mut arg = ScanArg { start: at, end, ..ask_written() };
        let n = scan(fd, &mut arg, &mut regions)?;
        for r in regions.iter().take(n) {
            found(r.start as usize, (r.end - r.start) as usize);
        }
        if arg.walk_end <= at {
            return Err(Errno::EINVAL);
        }
        at = arg.walk_end;
    }
    Ok(())
}

/// Calls `found(addr, len_bytes, categories)` for each run of pages in the range that are not protected, with what there is
/// of `PRESENT`, `WRITTEN` and `SWAPPED`: of an empty entry `WRITTEN` alone, or nothing.
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
pub fn each_unprotected(addr: usize, len_bytes: usize, found: &mut dyn FnMut(usize, usize, u64)) -> Result<(), Errno> {
    let (at, end) = (addr as u64, (addr + len_bytes) as u64);
    // What another file has told counts as written for nothing.
    with_file(|number| each_unprotected_by(number, at, end, found))
}

fn each_unprotected_by(fd: i32, mut at: u64, end: u64, found: &mut dyn FnMut(usize, usize, u64)) -> Result<(), Errno> {
    while at < end {
        at = each_unprotected_in(fd, at, end, found)?;
    }
    Ok(())
}

/// The same for the first runs of a range, with the slow question; returns where to go on.
///
/// It asks for every page, and not for those that are written alone: some kernels answer that question with empty entries when
/// it is asked the fast way, and without them when it is asked this way.
fn each_unprotected_in(fd: i32, at: u64, to: u64, found: &mut dyn FnMut(usize, usize, u64)) -> Result<u64, Errno> {
    let some = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_WRITTEN;
    let mut arg = ScanArg { start: at, end: to, return_mask: some, category_mask: 0, ..ask_written() };
    let mut regions = [Region::default(); 16];
    let n = scan(fd, &mut arg, &mut regions)?;
    let protected = |c| c & PAGE_IS_WRITTEN == 0 && c & (PAGE_IS_PRESENT | PAGE_IS_SWAPPED) != 0;
    for r in regions.iter().take(n).filter(|r| !protected(r.categories)) {
        found(r.start as usize, (r.end - r.start) as usize, r.categories);
    }
    if arg.walk_end <= at { Err(Errno::EINVAL) } else { Ok(arg.walk_end) }
}

/// A kernel before July 2026, for tests: of a range without a page table it says nothing, and protects nothing there. Taken for
/// such is every page table's range in which nothing is, whether it has a table or not.
#[cfg(debug_assertions)]
pub mod old {
    use super::{Errno, PAGE_IS_PRESENT, PAGE_IS_SWAPPED, PAGE_IS_WRITTEN, Region, ScanArg, TABLE_BYTES, ask_written};
    use core::sync::atomic::{AtomicBool, Ordering};

    static IS_ON: AtomicBool = AtomicBool::new(false);

    /// Has the kernel be such a one, before the first runtime is made.
    ///
    /// # Context: a test
    pub fn pretend() {
        IS_ON.store(true, Ordering::Relaxed);
    }

    pub(super) fn is_on() -> bool {
        IS_ON.load(Ordering::Relaxed)
    }

    /// Returns whether nothing is in the range of the page table at `table`.
    fn is_hole(fd: i32, table: u64) -> Result<bool, Errno> {
        let return_mask = PAGE_IS_PRESENT | PAGE_IS_SWAPPED | PAGE_IS_WRITTEN;
        let mut regions = [Region::default(); 2];
        let mut arg =
            ScanArg { start: table, end: table + TABLE_BYTES, category_mask: 0, return_mask, ..ask_written() };
        let nr = super::scan_now(fd, &mut arg, &mut regions)?;
        Ok(regions.iter().take(nr).all(|r| r.categories == PAGE_IS_WRITTEN) && arg.walk_end == arg.end)
    }

    /// Scans table by table, up to the first that has something to say.
    pub(super) fn scan(fd: i32, arg: &mut ScanArg, regions: &mut [Region]) -> Result<usize, Errno> {
        let (mut at, end) = (arg.start, arg.end);
        let mut nr = 0;
        while at < end && nr == 0 {
            let table = at & !(TABLE_BYTES - 1);
            let to = end.min(table + TABLE_BYTES);
            if is_hole(fd, table)? {
                let asks_for_all = arg.category_anyof_mask == 0 && arg.category_mask != PAGE_IS_WRITTEN;
                if let Some(first) = regions.first_mut().filter(|_| asks_for_all) {
                    *first = Region { start: at, end: to, categories: 0 };
                    nr = 1;
                }
                at = to;
            } else {
                let mut part = ScanArg { start: at, end: to, ..*arg };
                nr = super::scan_now(fd, &mut part, regions)?;
                at = part.walk_end;
            }
        }
        arg.walk_end = at;
        Ok(nr)
    }
}

#[cfg(test)]
mod tests {
    extern crate std;

    use super::*;
    use std::sync::{Mutex, MutexGuard, PoisonError};

    /// Which number is asked is the process's: one test after the other. `None`: the kernel has no PAGEMAP_SCAN.
    fn opened() -> Option<MutexGuard<'static, ()>> {
        static TURN: Mutex<()> = Mutex::new(());
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        init().is_ok().then_some(turn)
    }

    /// A look that began by the old number was perhaps answered by another file, whatever the new one names.
    #[test]
    fn nobody_vouches_for_looks_by_a_number_that_was_exchanged() -> Result<(), Errno> {
        let Some(_turn) = opened() else { return Ok(()) };
        let before = asked_by();
        assert!(vouches(before), "nobody has exchanged it");
        let old = asked();
        publish(&ASKED, old, Asked::new(fd::raise(file::open_rdonly(c"/proc/self/pagemap")?))?)?;
        assert!(asked().is_ours(), "the new one is ours, too");
        assert!(!vouches(before), "it was not asked by this number");
        assert!(vouches(asked_by()));
        file::close(old.number());
        Ok(())
    }

    /// Who comes second with another number leaves what the winner has noted of its own: it is no less ours for it, and so nobody
    /// opens the file once more, which would leave the winner's open for good.
    #[test]
    fn who_was_too_late_leaves_the_winners_number_ours() -> Result<(), Errno> {
        let Some(_turn) = opened() else { return Ok(()) };
        let winner = asked();
        let late = file::open_rdonly(c"/proc/self/maps")?;
        let late_as = Asked::by_inode(late)?;
        assert_eq!(publish(&ASKED, late_as, late_as), Err(Errno::EAGAIN), "another thread was first");
        file::close(late);
        assert!(winner.is_ours(), "what is known is what the winner's number names");
        take_back(&ASKED, winner)?;
        assert_eq!(asked(), winner, "it is open twice now");
        Ok(())
    }

    /// By the time that a thread finds that another one was first, the program may have closed the other's number, and have a file
    /// of its own under it: the process's memory as a supervisor sees it, say.
    #[test]
    fn who_was_too_late_takes_no_file_of_the_programs_for_ours() -> Result<(), Errno> {
        for known in [Asked::new, Asked::by_inode] {
            let ours = || known(file::open_rdonly(c"/proc/self/pagemap")?);
            let asked = AtomicU64::new(Asked::NONE.0);
            let (winner, late) = (ours()?, ours()?);
            publish(&asked, Asked::NONE, winner)?;
            assert!(winner.is_ours());
            let programs = file::open_rdonly(c"/proc/1/pagemap").or_else(|_| file::open_rdonly(c"/proc/self/maps"))?;
            // SAFETY: touches no memory; both numbers are the test's.
            let moved = unsafe { syscall6(libc::SYS_dup2, [programs as usize, winner.number() as usize, 0, 0, 0, 0]) };
            assert_eq!(moved, Ok(winner.number() as usize));
            assert_eq!(publish(&asked, Asked::NONE, late), Err(Errno::EAGAIN), "another thread was first");
            let now = Asked(asked.load(Ordering::Relaxed));
            assert_eq!(now, winner);
            assert!(!now.is_ours(), "the program's file is asked");
            take_back(&asked, now)?;
            let new = Asked(asked.load(Ordering::Relaxed));
            assert!(new.is_ours(), "it was opened anew");
            assert_eq!(new.0 & Asked::MARKED, winner.0 & Asked::MARKED, "it is known by the same");
            assert!(new.0 & Asked::MARKED == 0 || new.0 >> 32 != winner.0 >> 32, "it is taken for the one before");
            for number in [winner.number(), late.number(), programs, new.number()] {
                file::close(number);
            }
        }
        Ok(())
    }

    /// A look at the number by its position takes half as long as one by its inode.
    #[test]
    fn the_file_is_marked_where_the_kernel_has_positions() {
        let Some(_turn) = opened() else { return };
        assert_ne!(asked().0 & Asked::MARKED, 0, "each look at the number asks for its inode");
    }
}
