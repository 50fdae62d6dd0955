//! The end of a file that others have moved. Linux: nothing, since there a mapping and read(2) see one inode.
//!
//! The last page is the difficult one: what is cached of it has zeros behind the old end, where the file has bytes by now.
//! Write-back never gives the store a byte behind the object's end, and so what was appended stays as it is until the end has
//! moved; and while it moves nobody reads, writes or fills that page:
//! ```text
//! follow_len                              others
//!                                         fill the page up to the old end, zeros behind it
//! the end moves
//!                                         write the page back up to the new end: the zeros
//! ```

use super::Void;
use crate::error::{Error, Result, parent_only};
use crate::object::Object;
use crate::object::fault::{self, Place};
use crate::object::io;
use crate::types::Access;
use crate::writeback::writeout;
use softfault_mm::page::{PAGE_MASK, PAGE_SHIFT, PAGE_SIZE};
use softfault_mm::vmscan;
use softfault_platform::host::Host;
use softfault_platform::store::file::FileStore;
use softfault_platform::store::{PageMut, StoreError};
use std::time::Duration;

impl Object {
    /// Takes the file's end for the object's, where others have appended to the file or cut it: returns it, in bytes. The
    /// file is not changed.
    ///
    /// What was appended can be read and written from then on; what lies behind a lower end is dropped, stores that were not
    /// written back with it, and touching it is SIGBUS. Opening the file again follows what was appended, too.
    ///
    /// # Errors
    /// [`Error::Denied`] on what is no file, on an exclusive object, and when a page at the end stays pinned;
    /// [`Error::Argument`] where the file is longer than the maximal length: nothing has changed then, but for a lower end, as
    /// in [`Object::set_len`]. [`Error::Io`], [`Error::Fault`].
    pub fn follow_len(&self) -> Result<u64> {
        let op = "Object::follow_len";
        parent_only(op)?;
        if self.inner.is_exclusive() {
            return Err(Error::Denied { op, what: "an exclusive object's end is moved by `set_len`" });
        }
        let _arenas = self.inner.i_mmap().arenas();
        let _gate = self.inner.i_mmap().gate();
        self.finish_cut(op)?;
        let end = self.file_end(op)?.ok_or(Error::Denied { op, what: "only a file has an end that others move" })?;
        if end < self.len() {
            self.follow_cut(op, end)?;
        }
        self.follow_growth(op, end)?;
        Ok(end)
    }

    /// Returns where the file ends; `None`: it is no file.
    pub(super) fn file_end(&self, op: &'static str) -> Result<Option<u64>> {
        let end = self.inner.file_store(FileStore::len_bytes).transpose();
        end.map_err(|e| Error::Io { op, path: None, source: std::io::Error::from_raw_os_error(e.0) })
    }

    /// Follows what was appended, if the object is a file that was. The caller has no lock.
    pub(crate) fn follow_appended(&self, op: &'static str) -> Result<()> {
        if self.inner.is_exclusive() || self.file_end(op)?.is_none_or(|end| end <= self.len()) {
            return Ok(());
        }
        let _arenas = self.inner.i_mmap().arenas();
        let _gate = self.inner.i_mmap().gate();
        self.finish_cut(op)?;
        let end = self.file_end(op)?.unwrap_or(0);
        self.follow_growth(op, end)
    }

    /// Writes back and drops what is cached of the page, as far as it goes.
    fn forget_page(&self, op: &'static str, pgoff: u64) {
        if self.inner.is_persistent() {
            // One that is not taken stays dirty, and cached.
            let _ = writeout::write_back(self.inner.flushing(), op, &(pgoff..pgoff.saturating_add(1)));
        }
        let m = self.inner.mapping();
        let _ = vmscan::reclaim_range(Host::detached().env(), m, 0, pgoff, pgoff.saturating_add(1));
    }

    /// The file is shorter. The caller has the gate.
    fn follow_cut(&self, op: &'static str, end: u64) -> Result<()> {
        let (inner, m) = (&self.inner, self.inner.mapping());
        let turn = inner.flushing().state().turn();
        inner.flushing().state().owe_cut(m.nr_pages());
        // It is there already: nobody is to cut it, or make it longer.
        inner.file_store(|store| store.adopt_len(end));
        inner.move_end(end);
        drop(turn);
        // What is cached of the last page may be older than the cut.
        self.forget_page(op, end >> PAGE_SHIFT);
        self.finish_cut(op)
    }

    /// The file may be longer. The caller has the gate.
    pub(super) fn follow_growth(&self, op: &'static str, end: u64) -> Result<()> {
        let (inner, m, old) = (&self.inner, self.inner.mapping(), self.len());
        if end <= old {
            return Ok(());
        }
        if end > inner.len_max as u64 {
            let why = "the file is longer than the maximal length that the object was made with";
            return Err(Error::Argument { op, arg: "max_len", value: end, why });
        }
        let last = old >> PAGE_SHIFT;
        if old as usize & PAGE_MASK == 0 {
            let _turn = inner.flushing().state().turn();
            inner.file_store(|store| store.adopt_len(end));
            inner.move_end(end);
            return Ok(());
        }
        for turn in 0..1_000 {
            inner.i_mmap().demote(last, last + 1)?;
            if turn < 3 {
                self.forget_page(op, last);
            }
            let turn = inner.flushing().state().turn();
            if let Some(void) = Void::take(m, &(last..last + 1)) {
                let is_cached = m.folio(last).is_some_and(|w| !w.load().is_vacant());
                let read = if is_cached { self.read_tail(old, end) } else { Ok(()) };
                if read.is_ok() {
                    inner.file_store(|store| store.adopt_len(end));
                    inner.move_end(end);
                }
                // The page is back, and the turn, before there is an error: it takes memory.
                drop((void, turn));
                let place = Place { mapping: Some(m), object_offset: Some(old), arena_offset: None };
                return read.map_err(|e| fault::fault(op, Access::Read, place, Some(e.fill_error()), None));
            }
            drop(turn);
            std::thread::sleep(Duration::from_micros(500));
        }
        Err(Error::Denied { op, what: "the page at the old end stays pinned or is being filled; drop the pins" })
    }

    /// Reads what the file has of the last page from the old end on into the cached page, which the caller has.
    fn read_tail(&self, old: u64, end: u64) -> std::result::Result<(), StoreError> {
        let (pgoff, from) = (old >> PAGE_SHIFT, old as usize & PAGE_MASK);
        let first = pgoff << PAGE_SHIFT;
        let mut bytes = [0u8; PAGE_SIZE];
        let to = PAGE_SIZE.min(usize::try_from(end - first).unwrap_or(PAGE_SIZE));
        let Some(wanted) = bytes.get_mut(..to) else { return Ok(()) };
        self.inner.store().read(first, &mut PageMut::from(&mut *wanted))?;
        io::set_tail(&self.inner, pgoff, from, wanted);
        Ok(())
    }
}
