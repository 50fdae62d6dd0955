//! Mapping an object: the steps of `map`, each of which takes itself back if a later one fails.
//!
//! The order of steps is the rule; each is there because a touch in between must never reach an unregistered hole:
//! ```text
//! map      mmap(PROT_NONE) - REGISTER - list - publish - mprotect
//! unmap    demote - publish what stays - drain sections - demote - mmap(PROT_NONE) over it
//! protect  demote - publish - drain - demote - mprotect
//! ```
//!
//! A call that fails leaves everything as it was. What may fail comes before what is visible (extents are taken back, and
//! split tables had, before anything is published; an extent that is promoted in between is taken back again), and what
//! was done is undone by the step itself ([`crate::undo`]), or by [`publish::Swap`], which exists once it was done.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "maps objects over the arena's own address range")]

use super::set::VmaSet;
use super::state::ArenaInner;
use super::vma::MapRequest;
use super::vma::VmaEntry;
use super::{check, exclusive, mapper, number, owed, publish, ready, room};
use crate::error::{Error, Result, system};
use crate::masked::Masked;
use crate::object::capture;
use crate::object::state::ObjectInner;
use crate::process::mlock;
#[cfg(feature = "userfaultfd")]
use crate::process::registry;
use crate::types::Sharing;
use crate::undo::Done;
use softfault_mm::failpoint;
use softfault_mm::page::PAGE_SHIFT;
#[cfg(feature = "userfaultfd")]
use softfault_platform::mmu::uffd;
use softfault_platform::sys::{Errno, mem};
use softfault_platform::thp;
use softfault_platform::vmatree::Trap;
use std::ops::Range;
use std::sync::{Arc, MutexGuard};

const OP: &str = "Arena::map";

/// Maps an object where nothing is mapped.
///
/// # Errors
/// As [`Arena::map`](crate::Arena::map).
///
/// # Context: control plane
pub(super) fn map(arena: &Arc<ArenaInner>, request: &MapRequest<'_>) -> Result<()> {
    let (entry, number) = asked(arena, OP, request)?;
    let range = entry.range.clone();
    let object = Arc::clone(&entry.object);
    let (gate, mut vmas) = lock_ready(arena, &object, &range)?;
    refuse_uncapturable(arena, OP, &entry)?;
    entry.object.i_mmap().add(mapper::weak(arena));
    let opened = open(&entry);
    let mapped = map_kernel(arena, OP, &entry)?;
    let entered = exclusive::enter(arena, &entry);
    let (listed, published) = publish::publish(arena, OP, &entry)?;
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

/// Takes the object's gate and the lock of the arena when the object can be mapped at the range. While readers of an exclusive
/// object are waited for neither is held, and the program's signals come.
fn lock_ready<'a>(
    arena: &'a ArenaInner,
    object: &'a ObjectInner,
    range: &Range<usize>,
) -> Result<(MutexGuard<'a, ()>, Masked<'a, VmaSet>)> {
    let mut patience = ready::Patience::default();
    loop {
        // The gate is taken before the lock: evictions hold it while they look who maps the object.
        let (gate, vmas) = lock_thawed(arena, OP, object)?;
        owed::settle(arena, OP, range)?;
        if let Some(v) = vmas.overlapping(range).first() {
            return Err(Error::Occupied { range: v.range.clone() });
        }
        if ready::is_ready(OP, object)? {
            return Ok((gate, vmas));
        }
        drop(vmas);
        drop(gate);
        patience.wait_for_readers(OP)?;
    }
}

/// Takes the gate and the lock when no cut is being made in the arena: whoever cuts waits for the gate, so it is given back.
pub(super) fn lock_thawed<'a>(
    arena: &'a ArenaInner,
    op: &'static str,
    object: &'a ObjectInner,
) -> Result<(MutexGuard<'a, ()>, Masked<'a, VmaSet>)> {
    loop {
        capture::refuse_in_cut(op)?;
        let (gate, vmas) = (object.i_mmap().gate(), arena.vmas());
        if vmas.frozen.is_none() {
            return Ok((gate, vmas));
        }
        drop(vmas);
        drop(gate);
        arena.wait_for_thaw(op)?;
    }
}

/// Refuses a mapping whose stores a capture of the object that is under way could not hold. The caller has the object's gate.
pub(super) fn refuse_uncapturable(arena: &ArenaInner, op: &'static str, entry: &VmaEntry) -> Result<()> {
    if !arena.capturable && entry.may_write_shared() && entry.object.mapping().captured.number().is_some() {
        let what = "a capture of the object is under way: until it ends only capturable arenas map it for stores";
        return Err(Error::Denied { op, what });
    }
    Ok(())
}

/// Looks at what a call asks to map: at which offset of the arena, from which of the object on, how many bytes. Returns the
/// mapping to be, under a number of its own.
pub(super) fn asked(
    arena: &ArenaInner,
    op: &'static str,
    request: &MapRequest<'_>,
) -> Result<(VmaEntry, Done<impl FnOnce() + use<>>)> {
    if arena.trap != Trap::Monitor {
        arena.rt.warnings.note(op);
    }
    let range = check::check_map(arena, op, request)?;
    let (index, number) = number::get(op)?;
    Ok((VmaEntry::new(request, range, index, arena.capturable), number))
}

/// Maps the range closed to everybody, registers it, and says what children and core dumps see of it.
pub(super) fn map_kernel<'a>(
    arena: &'a ArenaInner,
    op: &'static str,
    v: &'a VmaEntry,
) -> Result<Done<impl FnOnce() + 'a>> {
    mmap_closed(arena, op, v)?;
    make_ours(arena, op, v)
}

/// Does the first of these steps. If it fails, what was there still is.
pub(super) fn mmap_closed(arena: &ArenaInner, op: &'static str, v: &VmaEntry) -> Result<()> {
    let fd = if v.object.is_exclusive() { Ok(-1) } else { v.object.space.region.fd().check() };
    let fd = fd.map_err(system(op, "fstat"))?;
    room::with_room(arena, || mmap(arena, v, fd)).map(drop).map_err(system(op, "mmap"))
}

/// Does the other steps; undone, nothing is mapped there.
pub(super) fn make_ours<'a>(
    arena: &'a ArenaInner,
    op: &'static str,
    v: &'a VmaEntry,
) -> Result<Done<impl FnOnce() + 'a>> {
    let mapped = Done::new(|| owed::unmap_or_owe(arena, v, &v.range));
    failpoint!(MAP_REGISTER);
    register(arena, op, v)?;
    advise_kernel(arena, v).map_err(system(op, "madvise"))?;
    if v.object.is_exclusive() && v.object.is_locked() {
        // The pool of frames is locked, too: a MOVE wants both sides locked, or none.
        let (addr, len) = (arena.address(v.range.start), v.range.len());
        mlock::lock_for_good(addr, len).map_err(|refusal| refusal.into_error(op))?;
    }
    Ok(mapped)
}

fn mmap(arena: &ArenaInner, v: &VmaEntry, fd: i32) -> std::result::Result<usize, Errno> {
    let (addr, len) = (arena.address(v.range.start), v.range.len());
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

/// Has the faults of the range come to us.
#[cfg_attr(not(feature = "userfaultfd"), expect(clippy::unnecessary_wraps, reason = "by SIGSEGV"))]
fn register(arena: &ArenaInner, op: &'static str, v: &VmaEntry) -> Result<()> {
    #[cfg(feature = "userfaultfd")]
    {
        let (addr, len) = (arena.address(v.range.start), v.range.len());
        let registered = if v.object.is_exclusive() {
            registry::exclusive_mmu()?.register(addr, len)
        } else if let Some(kind) = v.kind(arena.trap, arena.capturable) {
            let mmu = uffd::context(kind).ok_or(Error::Exhausted { op, what: "userfaultfd contexts" })?;
            mmu.register(addr, len, v.may_write_shared())
        } else {
            Ok(())
        };
        registered.map_err(system(op, "UFFDIO_REGISTER"))?;
    }
    #[cfg(not(feature = "userfaultfd"))]
    let _ = (arena, op, v);
    Ok(())
}

/// Keeps the range out of children and core dumps, and exclusive pages out of the kernel's huge ones.
fn advise_kernel(arena: &ArenaInner, v: &VmaEntry) -> std::result::Result<(), Errno> {
    let (addr, len) = (arena.address(v.range.start), v.range.len());
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

/// Tells the vtable that the object is mapped once more.
pub(super) fn open(v: &VmaEntry) -> Done<impl FnOnce() + '_> {
    v.object.vm_ops().open(v.object.mapping());
    Done::new(|| v.object.vm_ops().close(v.object.mapping()))
}
