//! Advice: how a range will be used, and what is to be done about it now. Linux: `mm/madvise.c`, `mm/fadvise.c`.

use crate::arena::{Arena, ArenaInner};
use crate::error::{Error, Result, parent_only};
use crate::object::io;
use crate::object::{Object, ObjectInner};
use crate::types::{Access, Advice};
use crate::writeback::writeout;
use softfault_mm::mapping::FailurePolicy;
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use softfault_mm::readahead::Mode;
use softfault_mm::streams::Readahead;
use softfault_mm::types::VmFlags;
use softfault_mm::{read_pages, vmscan};
use softfault_platform::host::Host;
use std::ops::Range;
use std::sync::Arc;

/// Returns the readahead state of an object that is being made.
pub(crate) fn readahead_of(
    asked: Option<u32>,
    fill_window: u32,
    policy: FailurePolicy,
    reads_ahead: bool,
) -> Readahead {
    // A page that nobody touched must not end the process.
    if !reads_ahead || policy == FailurePolicy::Abort {
        return Readahead::never();
    }
    // Who reads page by page wants nothing else.
    let usual = if fill_window > 1 { fill_window.saturating_mul(2) } else { 0 };
    Readahead::new(asked.unwrap_or(usual))
}

/// Unmaps the pages and makes them the first to go, unless somebody touches them.
fn deactivate(object: &Arc<ObjectInner>, from: u64, to: u64) {
    vmscan::deactivate_range(Host::detached().env(), object.mapping(), 0, from, to);
}

/// Makes the pages leave the cache, dirty ones by way of the store.
fn page_out(object: &Arc<ObjectInner>, op: &'static str, from: u64, to: u64) -> Result<()> {
    if object.mapping().dirty_goes {
        let _held = writeout::write_back(object.flushing(), op, &(from..to.min(object.mapping().nr_pages())))?;
    }
    let object = Object { inner: Arc::clone(object), writable: false };
    object.evict(from << PAGE_SHIFT..to << PAGE_SHIFT).map(|_| ())
}

fn zap_everywhere(object: &Arc<ObjectInner>, op: &'static str, from: u64, to: u64) -> Result<()> {
    object.i_mmap().zap(op, from, to)
}

/// Has the fillers read what is missing of the object's pages.
fn will_need(object: &ObjectInner, from: u64, to: u64) {
    let mapping = object.mapping();
    if !mapping.ra.is_never() {
        read_pages::force_ahead(mapping, Host::detached().env().park, 0, from, to);
    }
}

impl Object {
    /// Says how a byte range will be used, or what is to be done with it now.
    ///
    /// `Normal`, `Sequential` and `Random` hold for the whole object, as with `posix_fadvise(2)`, wherever an arena
    /// knows nothing better. Of the rest, pages that the range only touches count as in it, except for `PageOut`,
    /// which drops pages that lie in it wholly.
    ///
    /// # Errors
    /// [`Error::Argument`] where the range runs backwards, [`Error::Denied`] for `PopulateWrite` on an object that is
    /// not writable, [`Error::Fault`] naming the first page that cannot be populated, for `DontNeed` as
    /// [`Arena::zap`] of each mapping, for `PageOut` [`Error::Writeback`] and as [`Object::evict`]. The others do not fail
    /// once the range is one.
    pub fn advise(&self, range: Range<u64>, advice: Advice) -> Result<()> {
        let op = "Object::advise";
        parent_only(op)?;
        if range.start > range.end {
            let why = "must not lie before range.start";
            return Err(Error::Argument { op, arg: "range.end", value: range.end, why });
        }
        let mapping = self.inner.mapping();
        let (from, to) = (range.start >> PAGE_SHIFT, pages_of(range.end).min(mapping.nr_pages()));
        match advice {
            Advice::Normal | Advice::Sequential | Advice::Random => {
                mapping.ra.set_mode(advice.mode().unwrap_or_default());
                Ok(())
            }
            Advice::WillNeed => {
                will_need(&self.inner, from, to);
                Ok(())
            }
            Advice::DontNeed => zap_everywhere(&self.inner, op, from, to),
            Advice::Cold => {
                deactivate(&self.inner, from, to);
                Ok(())
            }
            // Whole pages only.
            Advice::PageOut => page_out(&self.inner, op, pages_of(range.start), pages_of(range.end.min(self.len()))),
            Advice::PopulateRead => io::populate(&self.inner, range, Access::Read),
            Advice::PopulateWrite => {
                self.check_writable(op)?;
                io::populate(&self.inner, range, Access::Write)
            }
        }
    }
}

impl Arena {
    /// Says how a range will be used, or what is to be done with it now. Linux: `madvise(2)`.
    ///
    /// `Normal`, `Sequential` and `Random` split mappings at the range's ends. The range must be mapped throughout.
    ///
    /// # Errors
    /// [`Error::Argument`], [`Error::NotMapped`], [`Error::Exhausted`]: nothing was changed. [`Error::Pinned`] and
    /// [`Error::Denied`] over an exclusive object, for `DontNeed`. For `PageOut` [`Error::Writeback`] and as [`Object::evict`].
    /// [`Error::Fault`] naming the first page that cannot be populated; those before it are resident.
    pub fn advise(&self, range: Range<usize>, advice: Advice) -> Result<()> {
        let op = "Arena::advise";
        self.inner.check_range(op, &range)?;
        if let Some(mode) = advice.mode() {
            return self.inner.set_read_mode(op, &range, mode);
        }
        let pieces = self.inner.pieces(op, &range)?;
        match advice {
            Advice::PopulateRead => self.inner.fault_in(op, &range, Access::Read, false),
            Advice::PopulateWrite => self.inner.fault_in(op, &range, Access::Write, false),
            Advice::DontNeed => self.inner.dont_need(op, &range),
            Advice::Cold => {
                pieces.iter().for_each(|(object, p)| deactivate(object, p.start, p.end));
                Ok(())
            }
            Advice::PageOut => pieces.iter().try_for_each(|(object, p)| page_out(object, op, p.start, p.end)),
            _ => {
                pieces.iter().for_each(|(object, p)| will_need(object, p.start, p.end));
                Ok(())
            }
        }
    }
}

/// Returns the flag of a vma that is read so.
pub(crate) fn mode_flag(mode: Mode) -> VmFlags {
    match mode {
        Mode::Normal => VmFlags::empty(),
        Mode::Sequential => VmFlags::SEQ_READ,
        Mode::Random => VmFlags::RAND_READ,
    }
}

impl ArenaInner {
    /// Returns the objects and their pages that the range maps.
    fn pieces(&self, op: &'static str, range: &Range<usize>) -> Result<Vec<(Arc<ObjectInner>, Range<u64>)>> {
        let hit = self.vmas().covering(op, range)?;
        let piece = |v: &crate::arena::vma::VmaEntry| {
            let (start, end) = (v.range.start.max(range.start), v.range.end.min(range.end));
            let from = v.pgoff + ((start - v.range.start) >> PAGE_SHIFT) as u64;
            (Arc::clone(&v.object), from..from + ((end - start) >> PAGE_SHIFT) as u64)
        };
        Ok(hit.iter().map(piece).collect())
    }
}
