//! Mapping an object: the steps of `map`, each of which takes itself back if a later one fails.

#![expect(unsafe_code, reason = "maps objects over the arena's own address range")]

use super::ArenaInner;
use super::exclusive;
use super::mapper;
use super::vma::{VmaEntry, prot_bits};
use crate::error::{Error, Result, system};
use crate::object::Object;
use crate::process::mlock;
use crate::process::registry;
use crate::types::{Prot, Sharing};
use crate::undo::Done;
use softfault_mm::failpoint;
use softfault_mm::page::PAGE_SHIFT;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd;
use softfault_platform::section;
use softfault_platform::sys::{Errno, mem};
use softfault_platform::thp;
use softfault_platform::vmatree::{self, Trap};
use std::ops::Range;
use std::sync::Arc;

const OP: &str = "Arena::map";

impl ArenaInner {
    pub(crate) fn map(
        self: &Arc<Self>,
        object: &Object,
        at: (usize, u64, usize),
        prot: Prot,
        sharing: Sharing,
    ) -> Result<()> {
        let (entry, number) = self.asked(OP, object, at, (prot, sharing))?;
        let range = entry.range.clone();
        // The gate before the lock: evictions hold it while they look who maps the object.
        let gate = entry.object.i_mmap().gate();
        let mut vmas = self.vmas();
        self.settle(OP, &range)?;
        if let Some(v) = vmas.overlapping(&range).first() {
            return Err(Error::Occupied { range: v.range.clone() });
        }
        exclusive::refusal(&entry.object).map_or(Ok(()), Err)?;
        entry.object.i_mmap().add(mapper::weak(self));
        let opened = open(&entry);
        let mapped = self.map_kernel(OP, &entry)?;
        let entered = exclusive::enter(self, &entry);
        let (listed, published) = self.publish(OP, &entry)?;
        published.keep();
        listed.keep();
        entered.keep();
        mapped.keep();
        opened.keep();
        number.keep();
        drop(gate);
        vmas.map.insert(range.start, entry);
        Ok(())
    }

    /// Looks at what a call asks to map: at which offset of the arena, from which of the object on, how many bytes. Returns the
    /// mapping to be, under a number of its own.
    pub(super) fn asked(
        &self,
        op: &'static str,
        object: &Object,
        at: (usize, u64, usize),
        (prot, sharing): (Prot, Sharing),
    ) -> Result<(VmaEntry, Done<impl FnOnce() + use<>>)> {
        if self.trap != Trap::Monitor {
            self.rt.warnings.note(op);
        }
        let range = self.check_map(op, object, at, prot, sharing)?;
        let (index, number) = fresh_number(op)?;
        Ok((VmaEntry::new((range, at.1 >> PAGE_SHIFT, object), (prot, sharing), index), number))
    }

    /// mmap(PROT_NONE), REGISTER, and what children and core dumps see of it.
    pub(super) fn map_kernel<'a>(&'a self, op: &'static str, v: &'a VmaEntry) -> Result<Done<impl FnOnce() + 'a>> {
        self.mmap_closed(op, v)?;
        self.make_ours(op, v)
    }

    /// The first of these steps. If it fails, what was there still is.
    pub(super) fn mmap_closed(&self, op: &'static str, v: &VmaEntry) -> Result<()> {
        let fd = if v.object.is_exclusive() { Ok(-1) } else { v.object.space.region.fd().check() };
        let fd = fd.map_err(system(op, "fstat"))?;
        self.with_room(|| self.mmap(v, fd)).map(drop).map_err(system(op, "mmap"))
    }

    /// The others; undone, nothing is mapped there.
    pub(super) fn make_ours<'a>(&'a self, op: &'static str, v: &'a VmaEntry) -> Result<Done<impl FnOnce() + 'a>> {
        let mapped = Done::new(|| self.unmap_or_owe(v, &v.range));
        failpoint!(MAP_REGISTER);
        self.register(op, v)?;
        self.advise(v).map_err(system(op, "madvise"))?;
        if v.object.is_exclusive() && v.object.is_locked() {
            // As the pool is: a MOVE wants both sides locked, or none.
            let (addr, len) = (self.address(v.range.start), v.range.len());
            mlock::lock_for_good(addr, len).map_err(|refusal| refusal.into_error(op))?;
        }
        Ok(mapped)
    }

    fn mmap(&self, v: &VmaEntry, fd: i32) -> std::result::Result<usize, Errno> {
        let (addr, len) = (self.address(v.range.start), v.range.len());
        let flags = mem::MAP_FIXED | mem::MAP_NORESERVE;
        if v.object.is_exclusive() {
            let flags = flags | mem::MAP_PRIVATE | mem::MAP_ANONYMOUS;
            // SAFETY: the range is the arena's own reservation and holds no mapping (checked under the lock).
            return unsafe { mem::mmap(addr, len, mem::PROT_NONE, flags, -1, 0) };
        }
        let share = if v.sharing == Sharing::Shared { mem::MAP_SHARED } else { mem::MAP_PRIVATE };
        let at = v.object.offset + (v.pgoff << PAGE_SHIFT);
        // SAFETY: as above.
        unsafe { mem::mmap(addr, len, mem::PROT_NONE, flags | share, fd, at) }
    }

    /// The faults of the range come to us.
    #[cfg_attr(
        not(feature = "userfaultfd"),
        expect(clippy::unused_self, clippy::unnecessary_wraps, reason = "by SIGSEGV")
    )]
    fn register(&self, op: &'static str, v: &VmaEntry) -> Result<()> {
        #[cfg(feature = "userfaultfd")]
        {
            let (addr, len) = (self.address(v.range.start), v.range.len());
            let registered = if v.object.is_exclusive() {
                registry::exclusive_mmu()?.register(addr, len)
            } else if let Some(kind) = self.kind_of(v) {
                let mmu = uffd::context(kind).ok_or(Error::Exhausted { op, what: "userfaultfd contexts" })?;
                mmu.register(addr, len, v.may_write_shared())
            } else {
                Ok(())
            };
            registered.map_err(system(op, "UFFDIO_REGISTER"))?;
        }
        #[cfg(not(feature = "userfaultfd"))]
        let _ = (op, v);
        Ok(())
    }

    /// Neither children nor core dumps have the range, and exclusive pages are no part of the kernel's huge ones.
    fn advise(&self, v: &VmaEntry) -> std::result::Result<(), Errno> {
        let (addr, len) = (self.address(v.range.start), v.range.len());
        for advice in [mem::MADV_DONTFORK, mem::MADV_DONTDUMP] {
            // SAFETY: the range mapped before; the advice concerns children and core dumps.
            unsafe { mem::madvise(addr, len, advice) }?;
        }
        if !v.object.is_exclusive() && !v.object.huge {
            // SAFETY: as above; the kernel's own collapser would take what is noted in the page table away.
            unsafe { thp::permit(addr, len, false) }?;
        }
        if v.object.is_exclusive() {
            // SAFETY: as above; the advice concerns huge pages. A kernel without them does not know it.
            match unsafe { mem::madvise(addr, len, mem::MADV_NOHUGEPAGE) } {
                Err(Errno::EINVAL) => {}
                r => r?,
            }
        }
        Ok(())
    }

    /// Lists and publishes a mapping that is closed to everybody, and opens it. Two steps; undone in reverse, nobody sees
    /// the record any more.
    pub(super) fn publish<'a>(
        &'a self,
        op: &'static str,
        v: &'a VmaEntry,
    ) -> Result<(Done<impl FnOnce() + 'a>, Done<impl FnOnce() + 'a>)> {
        self.write_record(v);
        let listed = list(v);
        self.split_edges(op, [v.range.start, v.range.end])?.keep();
        self.point(&v.range, Some(v.index));
        // Unpointed, it is not drained: that is for `listed`, which is next.
        let published = Done::new(|| {
            self.point(&v.range, None);
            self.join(&v.range);
        });
        if self.trap != Trap::Segv {
            // SAFETY: the range is this arena's, mapped and registered.
            unsafe { mem::mprotect(self.address(v.range.start), v.range.len(), prot_bits(v.prot)) }
                .map_err(system(op, "mprotect"))?;
        }
        Ok((listed, published))
    }

    /// Puts the bare reservation back over a range that no vma covers any more.
    ///
    /// # Errors
    /// The kernel's: it goes on mapping the object there.
    pub(super) fn unmap_kernel(&self, range: &Range<usize>) -> std::result::Result<(), Errno> {
        let flags = mem::MAP_PRIVATE | mem::MAP_ANONYMOUS | mem::MAP_NORESERVE | mem::MAP_FIXED;
        // SAFETY: the arena's own range; its vmas are unpublished and drained.
        self.with_room(|| unsafe { mem::mmap(self.address(range.start), range.len(), mem::PROT_NONE, flags, -1, 0) })?;
        self.forget_mapped(range);
        self.forget_unknown(range);
        Ok(())
    }
}

/// Takes a vma number.
pub(super) fn fresh_number(op: &'static str) -> Result<(u32, Done<impl FnOnce()>)> {
    let index = registry::lock().vmas.get().ok_or_else(registry::exhausted(op, "vmas (1048576)"))?;
    Ok((index, Done::new(move || registry::lock().vmas.put(index))))
}

/// Tells the vtable that the object is mapped once more.
pub(super) fn open(v: &VmaEntry) -> Done<impl FnOnce() + '_> {
    v.object.vm_ops().open(v.object.mapping());
    Done::new(|| v.object.vm_ops().close(v.object.mapping()))
}

/// Lets reclaim and write-back find the vma, whose record is written; once that is undone, nobody looks at its record any more.
fn list(v: &VmaEntry) -> Done<impl FnOnce() + '_> {
    v.list();
    Done::new(|| {
        v.unlist();
        section::synchronize();
    })
}

impl VmaEntry {
    /// Lets reclaim and write-back find the vma, whose record is written.
    pub(super) fn list(&self) {
        if self.is_changing {
            return;
        }
        let _lists = self.object.i_mmap().lists();
        // SAFETY: `write_record` filled the record; `unlist` and `section::synchronize` come before the number is free.
        unsafe { vmatree::rmap_add(self.object.mapping().id, self.which(), self.index) };
    }
    /// Takes the vma, which is listed, off that list again; readers may still see it until `section::synchronize` has
    /// returned.
    pub(super) fn unlist(&self) {
        if self.is_changing {
            return;
        }
        let _lists = self.object.i_mmap().lists();
        vmatree::rmap_remove(self.object.mapping().id, self.which(), self.index);
    }
}
