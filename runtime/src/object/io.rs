//! Reading and writing objects by calls: through the cache, without a fault, with errors as results.
//!
//! The caller's buffer may itself lie in an arena, and touching it may fault: so bytes go through a chunk on the stack
//! then, and no pin is held while it is touched.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "copies between the caller's slices and pinned pages of the cache")]

use crate::error::{Error, Result};
use crate::object::capture;
use crate::object::exclusive;
use crate::object::fault::Call;
use crate::object::state::ObjectInner;
use crate::types::Access;
use softfault_mm::ctx::Ctx;
use softfault_mm::discarded;
use softfault_mm::fault::{self, Env};
use softfault_mm::filemap::{self, Lookup};
use softfault_mm::folio::{DIRTY, FolioWord, State};
use softfault_mm::host::Woken;
use softfault_mm::mapping::Mapping;
use softfault_mm::ops::WaitKey;
use softfault_mm::page::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::types::FillError;
use softfault_mm::vmscan;
use softfault_mm::vmscan::Freed;
use softfault_mm::{memcg, writeback};
use softfault_mm::{read_pages, readahead};
use softfault_platform::host::Host;
use softfault_platform::store::object::copy_in;
use softfault_platform::sys::mem;
use softfault_platform::vmatree;

/// Finds page `pgoff`, filling it if need be, and pins it with `set`.
///
/// # Errors
/// Why the page cannot be had.
pub(crate) fn get_pinned(
    object: &ObjectInner,
    pgoff: u64,
    set: u64,
) -> std::result::Result<&'static FolioWord, FillError> {
    get_pinned_of(object, pgoff, set, 0)
}

/// As [`get_pinned`], for the first of the `req` pages that a call reads; 0: nothing is read ahead for it.
fn get_pinned_of(
    object: &ObjectInner,
    pgoff: u64,
    set: u64,
    req: u32,
) -> std::result::Result<&'static FolioWord, FillError> {
    let mapping = object.mapping();
    let first = filemap::get_folio(mapping, pgoff, set);
    // What is cached costs no system call.
    if let Lookup::Pinned(word) = first {
        if req > 0 && word.take_marker() {
            read_pages::do_async_readahead(mapping, Host::detached().env().park, 0, pgoff, req);
        }
        return Ok(word);
    }
    // From the claim to what becomes of it no handler of the program's runs on this thread; while it waits it has no claim.
    let host = Host::detached();
    get_missing(host.env(), &host.ctx(), object, (pgoff, set, req))
}

/// The same of a page that was not there at the first look.
fn get_missing(
    env: Env<'_>,
    ctx: &Ctx<'_>,
    object: &ObjectInner,
    (pgoff, set, req): (u64, u64, u32),
) -> std::result::Result<&'static FolioWord, FillError> {
    let mapping = object.mapping();
    let (mut tried, mut queued_since) = (false, None);
    loop {
        if let Some(error) = mapping.refuses_stores().filter(|_| set & DIRTY != 0) {
            let dirty = mapping.folio(pgoff).is_some_and(|w| w.load().is_mappable() && w.load().has(DIRTY));
            if !dirty {
                env.park.wake(mapping.account.ring_flusher());
                return Err(error);
            }
        }
        match filemap::get_folio(mapping, pgoff, set) {
            Lookup::Pinned(word) => return Ok(word),
            Lookup::PastEnd => return Err(FillError::PastEnd),
            Lookup::Overdue => return Err(FillError::Deadline),
            Lookup::NoPins => return Err(out_of_memory(mapping, FillError::NoPins)),
            Lookup::Poisoned(error) if tried => return Err(error),
            Lookup::Absent | Lookup::Poisoned(_) => {
                // A call that only made room has not asked the store yet, so a page that was poisoned before is asked for once
                // more before its error counts.
                match fill_missing(env, ctx, object, pgoff, req)? {
                    Asked::Yes => tried = true,
                    Asked::NoRoom => {}
                    Asked::NoFiller => wait_for_filler(env, ctx, mapping, pgoff, &mut queued_since)?,
                }
            }
            Lookup::Busy(key) => {
                tried = true;
                // As in `filemap::fault`: the deadline is that of a fill. A flush that keeps the page takes as long as it takes.
                let filling = mapping.folio(pgoff).filter(|w| w.load().state() == State::Filling);
                let deadline = if filling.is_some() { mapping.deadline_ns } else { u64::MAX };
                if env.park.wait(ctx, key, deadline) == Woken::TimedOut
                    && let Some(word) = filling
                {
                    word.mark_overdue();
                    return Err(FillError::Deadline);
                }
            }
        }
    }
}

/// Counts a lack of memory under its reason bit, as the walk does for faults.
fn out_of_memory(mapping: &Mapping<'_>, error: FillError) -> FillError {
    mapping.stat.reason(0, error.reason());
    error
}

/// Whether a missing page was asked for.
enum Asked {
    Yes,
    /// There was no room for it, which was made instead.
    NoRoom,
    /// The fillers have as much to do as can be queued.
    NoFiller,
}

/// How long a call waits before it looks again whether a filler may be had.
const FILLER_PAUSE_NS: u64 = 1_000_000;

/// Waits a little for the fillers, with nothing in our hands and the program's signals open. It does so again and again, for as
/// long as the page may take to come; `since` is when the first of these waits began.
fn wait_for_filler(
    env: Env<'_>,
    ctx: &Ctx<'_>,
    mapping: &Mapping<'_>,
    pgoff: u64,
    since: &mut Option<u64>,
) -> std::result::Result<(), FillError> {
    let now_ns = env.park.now_ns();
    if now_ns.saturating_sub(*since.get_or_insert(now_ns)) >= mapping.deadline_ns {
        return Err(FillError::Deadline);
    }
    if let Some(word) = mapping.folio(pgoff) {
        // Another thread's claim moves the word, and is worth a look.
        let key = WaitKey { addr: word.futex_addr(), seen: word.load().low() };
        let _ = env.park.wait(ctx, key, FILLER_PAUSE_NS);
    }
    Ok(())
}

/// Claims what readahead plans for a miss at `pgoff` and reads it: here, or on a filler where the object has a deadline.
fn fill_missing(
    env: Env<'_>,
    ctx: &Ctx<'_>,
    object: &ObjectInner,
    pgoff: u64,
    req: u32,
) -> std::result::Result<Asked, FillError> {
    let mapping = object.mapping();
    let rq = mapping.request(pgoff, req);
    let plan = match req {
        0 => readahead::around(&rq),
        _ => mapping.ra.sync(&rq, mapping.ra.mode(), &|p| mapping.is_cached(p)),
    };
    let claim = match read_pages::claim_plan(mapping, env.park, ctx.stripe, pgoff, &plan) {
        Ok(Some(claim)) => claim,
        Ok(None) => return Ok(Asked::Yes),
        Err(FillError::NoMemory) => {
            return match memcg::try_to_free_pages(env, ctx, mapping) {
                Freed::Nothing => Err(out_of_memory(mapping, mapping.why_full())),
                Freed::Some | Freed::Later => Ok(Asked::NoRoom),
            };
        }
        Err(error) => return Err(error),
    };
    Ok(if fault::fill(env, ctx, claim) { Asked::Yes } else { Asked::NoFiller })
}

/// Forgets what the host has taken away below the pages. The program's signals are open again when it returns: who waits for a
/// page afterwards is to be interrupted.
fn drop_missing(mapping: &Mapping<'_>, from: u64, to: u64) {
    let host = Host::detached();
    discarded::drop_missing(mapping, &|addr| host.env().park.wake(addr), 0, from, to);
}

/// Calls `f(address, length, done)` for each page of `offset..offset + len`, pinned.
fn for_each_page(
    object: &ObjectInner,
    call: Call,
    (offset, len): (u64, usize),
    access: Access,
    f: &mut dyn FnMut(*mut u8, usize, usize),
) -> Result<usize> {
    object.check_mapped(call.op)?;
    let end = offset.saturating_add(len as u64).min(object.len_bytes());
    let set = if access == Access::Write { DIRTY } else { 0 };
    let mut at = offset;
    drop_missing(object.mapping(), offset >> PAGE_SHIFT, softfault_mm::page::pages_of(end));
    while at < end {
        let in_page = at as usize & PAGE_MASK;
        let here = (PAGE_SIZE - in_page).min((end - at) as usize);
        let left = readahead::pages(at >> PAGE_SHIFT, softfault_mm::page::pages_of(end));
        let req = if access == Access::Read { left } else { 0 };
        let word = match get_pinned_of(object, at >> PAGE_SHIFT, set, req) {
            Ok(word) => word,
            // The end moved below us: the answer is short, as that of read(2) is.
            Err(FillError::PastEnd) if at >= object.len_bytes() => break,
            Err(error) => return Err(call.error(object.mapping(), access, at, error)),
        };
        let bracket = match access {
            Access::Write => Some(capture::begin_store(object, call.op, at >> PAGE_SHIFT)),
            Access::Read => None,
        };
        let bracket = bracket.transpose().inspect_err(|_| word.unpin())?;
        let page = object.page_at(at >> PAGE_SHIFT, access);
        if let Some(page) = page {
            f((page + in_page) as *mut u8, here, (at - offset) as usize);
        }
        drop(bracket);
        word.unpin();
        if page.is_none() {
            return Err(exclusive::not_there(call.op));
        }
        if access == Access::Write && writeback::is_dirty_full(object.mapping()) {
            writeback::balance_dirty_pages(Host::detached().env(), &Ctx::thread(0), object.mapping());
        }
        at += here as u64;
    }
    Ok(at.saturating_sub(offset) as usize)
}

/// Reads bytes of the object; returns how many there were.
///
/// # Errors
/// [`Error::Fault`] naming the first byte that could not be had.
pub(crate) fn read_at(object: &ObjectInner, offset: u64, buf: &mut [u8]) -> Result<usize> {
    read_for(Call::on_object("Object::read_at"), object, offset, buf)
}

/// As [`read_at`], for the call that errors are to name.
pub(crate) fn read_for(call: Call, object: &ObjectInner, offset: u64, buf: &mut [u8]) -> Result<usize> {
    if !vmatree::overlaps_arena(buf.as_ptr() as usize, buf.len()) {
        let dst = buf.as_mut_ptr();
        return for_each_page(object, call, (offset, buf.len()), Access::Read, &mut |page, len, done| {
            // SAFETY: `page..page + len` is pinned; `done + len <= buf.len()`, and the buffer is no arena memory.
            unsafe { copy_page(page, dst.wrapping_add(done), len) };
        });
    }
    let mut chunk = [0u8; PAGE_SIZE];
    let mut total = 0;
    while total < buf.len() {
        let at = offset + total as u64;
        let here = (PAGE_SIZE - (at as usize & PAGE_MASK)).min(buf.len() - total);
        let n = read_for(call, object, at, &mut chunk[..here])?;
        // No pin is held: this store may fault.
        buf[total..total + n].copy_from_slice(&chunk[..n]);
        total += n;
        if n < here {
            break;
        }
    }
    Ok(total)
}

/// Copies out of a pinned page that others may be writing.
///
/// # Safety
/// `src..src + len` is pinned, `dst..dst + len` is the caller's own.
unsafe fn copy_page(src: *const u8, dst: *mut u8, len: usize) {
    // SAFETY: the caller's contract. Concurrent stores give torn bytes, which are bytes.
    unsafe { mem::copy_racy(dst, src, len) };
}

/// Writes bytes of the object; returns how many went in before its end.
///
/// # Errors
/// [`Error::Denied`] where nobody may write it, [`Error::Fault`] naming the first byte that could not be had.
pub(crate) fn write_at(object: &ObjectInner, offset: u64, buf: &[u8]) -> Result<usize> {
    write_for(Call::on_object("Object::write_at"), object, offset, buf)
}

/// As [`write_at`], for the call that errors are to name.
pub(crate) fn write_for(call: Call, object: &ObjectInner, offset: u64, buf: &[u8]) -> Result<usize> {
    if !object.is_writable() {
        return Err(Error::Denied { op: call.op, what: "the object was not made writable" });
    }
    // While a capture is made nobody waits for the caller's bytes inside a store: they may be anywhere.
    let is_captured = object.mapping().captured.number().is_some();
    if !is_captured && !vmatree::overlaps_arena(buf.as_ptr() as usize, buf.len()) {
        return store(object, call, offset, buf);
    }
    let mut chunk = [0u8; PAGE_SIZE];
    let mut total = 0;
    while total < buf.len() {
        let at = offset + total as u64;
        let here = (PAGE_SIZE - (at as usize & PAGE_MASK)).min(buf.len() - total);
        // No pin is held: this load may fault.
        chunk[..here].copy_from_slice(&buf[total..total + here]);
        let n = store(object, call, at, &chunk[..here])?;
        total += n;
        if n < here {
            break;
        }
    }
    Ok(total)
}

/// Copies bytes that are no arena's into the object's pages.
fn store(object: &ObjectInner, call: Call, offset: u64, bytes: &[u8]) -> Result<usize> {
    for_each_page(object, call, (offset, bytes.len()), Access::Write, &mut |page, len, done| {
        if let Some(src) = bytes.get(done..done + len) {
            // SAFETY: `page` lies in a page that is pinned with DIRTY, with `len` bytes of it left.
            unsafe { copy_in(page, src) };
        }
    })
}

/// Makes the bytes of the last page behind the end zero, if the page is cached; `false`: it is being filled, up to the
/// old end perhaps, or cannot be pinned, and must be looked at again.
pub(crate) fn zero_tail(object: &ObjectInner, len_bytes: u64) -> bool {
    let in_page = len_bytes as usize & PAGE_MASK;
    let pgoff = len_bytes >> PAGE_SHIFT;
    if in_page == 0 {
        return true;
    }
    // A file that is only read, and was cut by others, has its zeros already.
    let set = if object.is_writable() { DIRTY } else { 0 };
    match filemap::get_folio(object.mapping(), pgoff, set) {
        // A write that is under way may have been measured by the old end, so the store is cut only after it has arrived.
        Lookup::Pinned(word) if word.load().state() == State::Writeback => {
            word.unpin();
            false
        }
        Lookup::Pinned(word) => {
            if let Some(page) = object.page_at(pgoff, Access::Write) {
                // SAFETY: the rest of a page that is pinned, and open to stores.
                unsafe { ((page + in_page) as *mut u8).write_bytes(0, PAGE_SIZE - in_page) };
                word.unpin();
                return true;
            }
            // Nobody may store to it: it is read again, up to the new end.
            word.unpin();
            let host = Host::detached();
            vmscan::discard_range(host.env(), object.mapping(), 0, pgoff, pgoff + 1) == 1
        }
        Lookup::Busy(_) | Lookup::Overdue | Lookup::NoPins => false,
        Lookup::PastEnd | Lookup::Absent | Lookup::Poisoned(_) => true,
    }
}

/// Copies `bytes`, the beginning of page `pgoff`, from `from` on into the page. The caller has it: nobody reads, writes or fills
/// it.
pub(crate) fn set_tail(object: &ObjectInner, pgoff: u64, from: usize, bytes: &[u8]) {
    if let (Some(page), Some(tail)) = (object.page_at(pgoff, Access::Write), bytes.get(from..)) {
        // SAFETY: the rest of a page of the object's own, which nobody gives back meanwhile; it is no longer than that.
        unsafe { copy_in((page + from) as *mut u8, tail) };
    }
}

/// Reads what is missing of a byte range into the cache; nothing is pinned afterwards.
///
/// # Errors
/// [`Error::Fault`] naming the first page that could not be had.
pub(crate) fn populate(object: &ObjectInner, range: std::ops::Range<u64>, access: Access) -> Result<()> {
    let pages = (range.start >> PAGE_SHIFT)..softfault_mm::page::pages_of(range.end).min(object.mapping().nr_pages());
    for p in pages {
        if object.mapping().folio(p).is_some_and(|w| w.load().is_mappable()) {
            continue;
        }
        match get_pinned(object, p, 0) {
            Ok(word) => word.unpin(),
            Err(error) => {
                return Err(Call::on_object("Object::populate").error(
                    object.mapping(),
                    access,
                    p << PAGE_SHIFT,
                    error,
                ));
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use softfault_mm::claim::{Claim, Telling};
    use softfault_mm::host::Park;
    use softfault_platform::store::{PageMut, Store, StoreError};
    use std::cell::Cell;
    use std::time::Duration;

    /// The fillers' queue is full, and stays so; it is told how often somebody waited.
    struct Full<'h> {
        host: &'h Host,
        submits: Cell<u32>,
        waits: Cell<u32>,
    }

    impl Park for Full<'_> {
        fn submit(&self, claim: Claim) -> std::result::Result<(), Claim> {
            self.submits.set(self.submits.get() + 1);
            assert!(self.submits.get() < 10_000, "it goes round");
            Err(claim)
        }
        fn wait(&self, ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Woken {
            self.waits.set(self.waits.get() + 1);
            self.host.wait(ctx, key, timeout_ns)
        }
        fn nap(&self, ctx: &Ctx<'_>, key: WaitKey, timeout_ns: u64) -> Woken {
            self.host.nap(ctx, key, timeout_ns)
        }
        fn now_ns(&self) -> u64 {
            self.host.now_ns()
        }
        fn wake(&self, addr: usize) {
            self.host.wake(addr);
        }
        fn is_congested(&self) -> bool {
            true
        }
        fn submit_telling(&self, telling: Telling) -> std::result::Result<(), Telling> {
            Err(telling)
        }
        fn submit_writeback(&self, claim: Claim) -> std::result::Result<(), Claim> {
            Err(claim)
        }
        fn relax(&self) {}
    }

    struct Never;

    impl Store for Never {
        fn read(&self, _: u64, _: &mut PageMut<'_>) -> std::result::Result<(), StoreError> {
            panic!("no filler was asked");
        }
    }

    #[test]
    fn a_full_queue_is_waited_for_until_the_deadline() {
        let rt = crate::Runtime::new().expect("runtime");
        let deadline = Duration::from_millis(30);
        let object = rt.object(8 * PAGE_SIZE as u64).deadline(deadline).store(Box::new(Never)).expect("object");
        let host = Host::detached();
        let park = Full { host: &host, submits: Cell::new(0), waits: Cell::new(0) };
        let env = Env { mm: &host, park: &park };
        let began = host.now_ns();
        let got = get_missing(env, &host.ctx(), &object.inner, (3, 0, 0));
        assert_eq!(got.err(), Some(FillError::Deadline));
        assert!(host.now_ns() - began >= 30_000_000);
        assert!(park.waits.get() > 0, "the program's signals come in waits");
        assert_eq!(object.inner.mapping().folio(3).map(|w| w.load().state()), Some(State::Absent));
    }
}
