//! `Object`: a file, anonymous memory, a user's store or a user's vtable, as a range of the cache.
//!
//! The face: each method says who may call it and what it does, and passes the call on to the file that is named after it.
//!
//! # Context: control plane

pub(crate) mod advise;
mod builder;
pub(crate) mod capture;
pub(crate) mod collapse;
mod end;
mod evict;
pub(crate) mod exclusive;
pub(crate) mod fault;
pub(crate) mod file;
mod follow;
mod guarded;
mod heal;
mod invalidate;
pub(crate) mod io;
mod make;
pub(crate) mod options;
pub(crate) mod preserve;
mod punch_hole;
pub(crate) mod rmap;
mod set_len;
pub(crate) mod state;
mod truncate;
mod void;

pub use builder::ObjectBuilder;

use crate::error::{Error, Result, parent_only};
use crate::memory::limit_pages;
use crate::types::{Access, Advice, Invalidated};
use crate::writeback::{self, Held, lost, sync, writeout};
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use state::ObjectInner;
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Bytes that can be mapped into arenas and read and written by calls. Cheap to clone.
///
/// A file that is opened several times, by whatever name, is one object: what is stored through one value is seen through the
/// others, and what each of them permits is its own.
#[derive(Clone, Debug)]
pub struct Object {
    pub(crate) inner: Arc<ObjectInner>,
    /// What this value permits: others of the same object may permit more.
    pub(crate) writable: bool,
}

impl Object {
    /// Returns what the object is called in errors and in [`Runtime::recent_failures`](crate::Runtime::recent_failures): what
    /// [`ObjectBuilder::label`] said, or else the path of a file, and a number of others.
    ///
    /// # Context: program
    #[must_use]
    pub fn label(&self) -> Arc<str> {
        self.inner.label()
    }
    /// Returns the end of the object, in bytes.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn len(&self) -> u64 {
        self.inner.len_bytes()
    }
    /// Returns whether the object has no bytes.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Reads bytes through the cache, without a fault: errors are results.
    ///
    /// Reads past the end are short; the result is the number of bytes read.
    ///
    /// # Context: program; in filler callbacks only of objects whose own store is handler-safe
    ///
    /// # Errors
    /// [`Error::Fault`] naming the first byte that could not be had; the bytes before it were read.
    pub fn read_at(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        parent_only("Object::read_at")?;
        io::read_at(&self.inner, offset, buf)
    }

    /// Writes bytes through the cache, without a fault. Does not grow the object: writes past the end are short.
    ///
    /// # Context: program; in filler callbacks only of objects whose own store is handler-safe
    ///
    /// # Errors
    /// [`Error::Denied`] on an object that is not writable, [`Error::Fault`].
    pub fn write_at(&self, offset: u64, buf: &[u8]) -> Result<usize> {
        parent_only("Object::write_at")?;
        self.check_writable("Object::write_at")?;
        io::write_at(&self.inner, offset, buf)
    }

    /// Refuses what needs a value that permits writing.
    ///
    /// # Errors
    /// [`Error::Denied`].
    pub(crate) fn check_writable(&self, op: &'static str) -> Result<()> {
        if self.writable { Ok(()) } else { Err(Error::Denied { op, what: "the object was not made writable" }) }
    }

    /// Returns how many pages are in the cache.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn cached_pages(&self) -> u64 {
        let _walk = self.inner.flushing().state().walk();
        let used = self.inner.mapping().each_folio(0, u64::MAX);
        used.filter(|(_, word)| word.load().is_mappable()).count() as u64
    }

    /// Returns whether the store's pages are cached at `offset`, and readable without asking the store.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn is_cached(&self, offset: u64) -> bool {
        self.inner.mapping().folio(offset >> PAGE_SHIFT).is_some_and(|w| w.load().is_mappable())
    }

    /// Reads the byte range into the cache.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Fault`].
    pub fn populate(&self, range: Range<u64>) -> Result<()> {
        parent_only("Object::populate")?;
        self.inner.check_mapped("Object::populate")?;
        io::populate(&self.inner, range, Access::Read)
    }
}

impl Object {
    /// Makes durable every byte of the range that was written before the call, through whatever mapping or call: the pages
    /// go to the store in ascending runs, then the store is flushed.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Writeback`] and [`Error::Flush`]: nothing is promised, the pages are dirty again as far as they are cached,
    /// and the next call tries again. [`Error::Lost`] names bytes whose writes a failed flush took away while they were not
    /// cached: every call over them says so until, after one has, they are written again or [`Object::forget_lost`]. [`Error::Held`]: a
    /// page of the range is held and dirty; the others are durable only after a call that does not meet one.
    pub fn sync(&self, range: Range<u64>) -> Result<()> {
        let op = "Object::sync";
        parent_only(op)?;
        if !self.inner.is_persistent() {
            return Ok(());
        }
        sync::sync(self.inner.flushing(), op, &range, false)
    }

    /// Gives the store every byte of the range that was written before the call, and does not flush it: other readers of a
    /// file see the bytes, and a crash may still take them. Linux: `sync_file_range(2)`, and what `MS_ASYNC` once did.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Writeback`], and [`Error::Held`] where a page of the range is held and dirty; the others were written.
    pub fn write_back(&self, range: Range<u64>) -> Result<()> {
        let op = "Object::write_back";
        parent_only(op)?;
        if !self.inner.is_persistent() {
            return Ok(());
        }
        let (flushing, pages) = (self.inner.flushing(), writeback::state::pages(self.inner.mapping(), &range));
        let held = writeout::write_back(flushing, &pages).map_err(writeout::failed(flushing, op))?;
        held.map_or(Ok(()), |p| {
            Err(Error::Held { op, object: self.inner.label(), range: writeback::state::bytes(&(p..p + 1)) })
        })
    }

    /// Makes everything durable that was written before the call.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// As [`Object::sync`].
    pub fn sync_all(&self) -> Result<()> {
        self.sync(0..u64::MAX)
    }

    /// Makes everything that was written before the call, and is not held, durable before anything that is written after
    /// it: an ordering point, by waiting.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// As [`Object::sync`], but for [`Error::Held`].
    pub fn barrier(&self) -> Result<()> {
        let op = "Object::barrier";
        parent_only(op)?;
        if !self.inner.is_persistent() {
            return Ok(());
        }
        sync::sync(self.inner.flushing(), op, &(0..u64::MAX), true)
    }

    /// Keeps the pages of the range from being written back, whatever the pressure, until the value is dropped: a
    /// write-ahead log must be durable before the pages it describes. Held dirty pages cannot be reclaimed: they count
    /// against the cache's limit.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Held`] where a page is held already, [`Error::Denied`] on exclusive objects.
    pub fn hold_dirty(&self, range: Range<u64>) -> Result<Held> {
        let op = "Object::hold_dirty";
        parent_only(op)?;
        let object = Arc::clone(&self.inner);
        writeback::hold(self.inner.flushing(), object, op, &range)
    }

    /// Returns the bytes whose writes failed flushes took away.
    ///
    /// # Context: program, filler
    #[must_use]
    pub fn lost(&self) -> Vec<Range<u64>> {
        lost::tell(self.inner.flushing(), 0..self.inner.mapping().folios.len() as u64)
    }

    /// Accepts the loss of what was written to the range: [`Object::sync`] does not report it any more.
    ///
    /// # Context: program, filler
    pub fn forget_lost(&self, range: Range<u64>) {
        let pages = (range.start >> PAGE_SHIFT)..pages_of(range.end);
        lost::forget(self.inner.mapping(), &pages);
    }

    /// Drops what is cached of the range, because the store's content was changed by somebody else: the next touch reads it
    /// anew. Pages that were written here and not written back, and pinned ones, stay. Private copies stay.
    ///
    /// Who is about to change the store itself syncs and invalidates the range before, until nothing is kept, touches
    /// nothing of it meanwhile, and invalidates it afterwards: a cached page may be taken for written (never the other way
    /// round), and would be written back over the change.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Exhausted`] when an extent cannot be taken back.
    pub fn invalidate(&self, range: Range<u64>) -> Result<Invalidated> {
        let op = "Object::invalidate";
        parent_only(op)?;
        capture::refuse_captured(&self.inner, op)?;
        invalidate::invalidate(&self.inner, &range)
    }

    /// Makes the complete chunks (2 MiB) of the byte range huge pages, now: as `MADV_COLLAPSE`. Returns how many of the
    /// chunks that lie in the range are huge pages then.
    ///
    /// Chunks are left as they are that are not cached whole, that a pin touches, or that the kernel refuses
    /// (`thp_collapse_alloc_failed` counts those); all chunks of an object that was not made with
    /// [`huge_pages`](crate::ObjectBuilder::huge_pages), or cannot have them.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Denied`] in a forked child.
    pub fn collapse(&self, range: Range<u64>) -> Result<u64> {
        parent_only("Object::collapse")?;
        Ok(collapse::collapse(&self.inner, &range))
    }

    /// Drops clean, unpinned pages of the byte range from the cache; native extents over it are taken back first.
    ///
    /// Returns how many pages went. Pages that were written since they were last written back stay ([`Object::sync`]
    /// first); a writable exclusive object's are written on their way.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Exhausted`] when an extent cannot be taken back.
    pub fn evict(&self, range: Range<u64>) -> Result<u64> {
        parent_only("Object::evict")?;
        evict::evict(&self.inner, &range)
    }

    /// Sets the end of the object. Pages past a lower end are dropped: touching them is SIGBUS from now on.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`] past the maximal length, [`Error::Denied`] when a page past the end stays pinned for long (the
    /// end is the new one all the same: such a page is SIGBUS to new touches), [`Error::Exhausted`] when an extent cannot be
    /// taken back, [`Error::Writeback`] when the store does not follow. What is left to do for a lower end is done by the next
    /// call, whatever end that sets.
    pub fn set_len(&self, len_bytes: u64) -> Result<()> {
        let op = "Object::set_len";
        parent_only(op)?;
        if self.inner.is_writable() || self.inner.file().is_some() {
            // Who may only read a file does not move its end, nor where others see it.
            self.check_writable(op)?;
        }
        set_len::set_len(&self.inner, op, len_bytes, self.writable)
    }

    /// Takes the file's end for the object's, where others have appended to the file or cut it: returns it, in bytes. The
    /// file is not changed.
    ///
    /// What was appended can be read and written from then on; what lies behind a lower end is dropped, stores that were not
    /// written back with it, and touching it is SIGBUS. Opening the file again follows what was appended, too.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Denied`] on what is no file, on an exclusive object, and when a page at the end stays pinned;
    /// [`Error::Argument`] where the file is longer than the maximal length: nothing has changed then, but for a lower end, as
    /// in [`Object::set_len`]. [`Error::Io`], [`Error::Fault`].
    pub fn follow_len(&self) -> Result<u64> {
        let op = "Object::follow_len";
        parent_only(op)?;
        follow::follow_len(&self.inner, op)
    }

    /// Makes the range read as zeros, in the cache and in the store, and gives its storage back where the store can. To others, a
    /// capture's cut included, it is made page by page.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Denied`] on an object that is not writable, or when a page stays pinned; [`Error::Writeback`]. The hole is
    /// made up to some page then, and from there on everything is as it was.
    pub fn punch_hole(&self, range: Range<u64>) -> Result<()> {
        let op = "Object::punch_hole";
        parent_only(op)?;
        self.check_writable(op)?;
        punch_hole::punch_hole(&self.inner, op, range)
    }

    /// Says how a byte range will be used, or what is to be done with it now.
    ///
    /// `Normal`, `Sequential` and `Random` hold for the whole object, as with `posix_fadvise(2)`, wherever an arena
    /// knows nothing better. Of the rest, pages that the range only touches count as in it, except for `PageOut`,
    /// which drops pages that lie in it wholly.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::Argument`] where the range runs backwards, [`Error::Denied`] for `PopulateWrite` on an object that is
    /// not writable, [`Error::Fault`] naming the first page that cannot be populated, for `DontNeed` as
    /// [`Arena::zap`](crate::Arena::zap) of each mapping, for `PageOut` [`Error::Writeback`] and as [`Object::evict`]. The
    /// others do not fail once the range is one.
    pub fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        let op = "Object::advise";
        parent_only(op)?;
        if range.start > range.end {
            let why = "must not lie before range.start";
            return Err(Error::Argument { op, arg: "range.end", value: range.end, why });
        }
        if advice == Advice::PopulateWrite {
            self.check_writable(op)?;
        }
        advise::advise(&self.inner, op, &range, advice)
    }

    /// Forgets that pages of the byte range were poisoned: the next touch asks the store anew.
    ///
    /// Touches heal pages by themselves; this is for system calls on `Monitor` arenas, whose poison is in the page
    /// tables.
    ///
    /// # Context: program
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn heal(&self, range: Range<u64>) -> Result<u64> {
        let op = "Object::heal";
        parent_only(op)?;
        heal::heal(&self.inner, op, &range)
    }

    /// Changes the object's own limit (at least 64 pages). Pages above a lower one leave as others come.
    ///
    /// # Context: program, filler
    ///
    /// # Errors
    /// [`Error::Denied`] where the object was made without one: its pages are not counted.
    pub fn set_cache_limit(&self, bytes: u64) -> Result<()> {
        let limit = &self.inner.mapping().own_limit;
        if limit.load(Ordering::Relaxed) == u64::MAX {
            let what = "the object was made without a limit of its own";
            return Err(Error::Denied { op: "Object::set_cache_limit", what });
        }
        limit.store(limit_pages(bytes).min(u64::MAX - 1), Ordering::Relaxed);
        Ok(())
    }
}
