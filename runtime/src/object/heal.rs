//! What a program may change about an object's pages besides their bytes: their limit, and poison.

use crate::error::{Error, Result, parent_only};
use crate::memory::limit_pages;
use crate::object::Object;
use softfault_mm::page::{PAGE_SHIFT, pages_of};
use softfault_mm::sync::Ordering;

impl Object {
    /// Forgets that pages of the byte range were poisoned: the next touch asks the store anew.
    ///
    /// Touches heal pages by themselves; this is for system calls on `Monitor` arenas, whose poison is in the page
    /// tables.
    ///
    /// # Errors
    /// [`Error::System`].
    pub fn heal(&self, range: std::ops::Range<u64>) -> Result<u64> {
        parent_only("Object::heal")?;
        let m = self.inner.mapping();
        let pages = (range.start >> PAGE_SHIFT)..pages_of(range.end).min(m.nr_pages());
        let healed = pages.clone().filter(|p| m.folio(*p).is_some_and(|w| w.forget_poison().is_ok())).count();
        self.inner.i_mmap().unpoison("Object::heal", pages.start, pages.end)?;
        Ok(healed as u64)
    }

    /// Changes the object's own limit (at least 64 pages). Pages above a lower one leave as others come.
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
