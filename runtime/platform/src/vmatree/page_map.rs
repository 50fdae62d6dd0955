//! From an address to the arena that it is in: a word for each 2 MiB of the address space, in leaves that come with the arenas.

use crate::sys::{Errno, mem};
use core::sync::atomic::{AtomicPtr, AtomicU32, Ordering};
use softfault_mm::page::EXTENT_SHIFT;

/// log2 of the user address space.
pub(super) const ADDRESS_BITS: u32 = 47;
const NR_GRANULES: usize = 1 << (ADDRESS_BITS - EXTENT_SHIFT);
/// log2 of the granules of a leaf of the page map: 32 GiB of address space in 64 KiB.
const LEAF_SHIFT: u32 = 14;
type Leaf = [AtomicU32; 1 << LEAF_SHIFT];
/// The page map's leaves; null: no arena was there yet. A leaf stays.
static LEAVES: [AtomicPtr<Leaf>; NR_GRANULES >> LEAF_SHIFT] =
    [const { AtomicPtr::new(core::ptr::null_mut()) }; NR_GRANULES >> LEAF_SHIFT];

/// Returns the entry of a granule of the address space; `None`: no arena was ever near.
///
/// # Context: handler
#[inline]
pub(super) fn entry(granule: usize) -> Option<&'static AtomicU32> {
    // Acquire pairs with `page_map::open`: a zeroed leaf is a valid one.
    let leaf = LEAVES.get(granule >> LEAF_SHIFT)?.load(Ordering::Acquire);
    // SAFETY: null, or a leaf that `open` mapped, which is never unmapped.
    unsafe { leaf.as_ref() }?.get(granule % (1 << LEAF_SHIFT))
}

/// Makes the page map's entries of a range, which may be written then. Control plane, under the caller's lock.
pub(super) fn open(base: usize, len_bytes: usize) -> Result<(), Errno> {
    let leaf_of = |addr: usize| addr >> (EXTENT_SHIFT + LEAF_SHIFT);
    for at in leaf_of(base)..=leaf_of(base + len_bytes - 1) {
        let leaf = LEAVES.get(at).ok_or(Errno::EINVAL)?;
        if leaf.load(Ordering::Relaxed).is_null() {
            // Release pairs with `page_map::entry`: the kernel's zeros are there.
            leaf.store(mem::map_zeroed(size_of::<Leaf>())? as *mut Leaf, Ordering::Release);
        }
    }
    Ok(())
}
