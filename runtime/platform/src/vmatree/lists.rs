//! From an object to the vmas that map it: lists by number, walked without a lock inside a section.
//!
//! # Context: handler ([`Lists`]); adding and removing: control plane, under the object's gate

use super::tables::{self, Link, head, link, mapping_entry, record};
use crate::section::Slot;
use core::sync::atomic::{AtomicU32, Ordering};
use softfault_mm::host::{Rmap, Which};
use softfault_mm::mapping::Mapping;
use softfault_mm::vma::Vma;

/// Adds vma `index` to an object's list, before it is published.
///
/// # Context: control plane, under the object's gate
///
/// # Safety
/// Record `index` was filled by [`super::write_vma`] and stays so until [`rmap_remove`] and [`crate::section::synchronize`] have
/// returned.
pub unsafe fn rmap_add(id: u32, which: Which, index: u32) {
    let (Some(head), Some(link)) = (head(id, which), link(index)) else { return };
    debug_assert!(!is_listed(head, link, index), "vma {index} is listed already");
    let first = head.load(Ordering::Relaxed);
    link.next.store(first, Ordering::Relaxed);
    link.prev.store(0, Ordering::Relaxed);
    if let Some(next) = first.checked_sub(1).and_then(tables::link) {
        next.prev.store(index + 1, Ordering::Relaxed);
    }
    // SeqCst pairs with `for_each_vma`, and comes before the publication of the vma: who finds a page unpinned after an install
    // through it finds it here.
    head.store(index + 1, Ordering::SeqCst);
}

/// Takes vma `index` off its object's list. Who walks the list may still see it until [`crate::section::synchronize`] has
/// returned: its own link stays.
///
/// # Context: control plane, under the object's gate
pub fn rmap_remove(id: u32, which: Which, index: u32) {
    let (Some(head), Some(link)) = (head(id, which), link(index)) else { return };
    if !is_listed(head, link, index) {
        // Its links are of an earlier list, of whichever object: following them would empty that one.
        debug_assert!(false, "vma {index} is not on the list of object {id}");
        return;
    }
    let (next, prev) = (link.next.load(Ordering::Relaxed), link.prev.load(Ordering::Relaxed));
    if let Some(next) = next.checked_sub(1).and_then(tables::link) {
        next.prev.store(prev, Ordering::Relaxed);
    }
    // SeqCst pairs with `for_each_vma`: an unpublication, before the loads of `synchronize`.
    match prev.checked_sub(1).and_then(tables::link) {
        Some(prev) => prev.next.store(next, Ordering::SeqCst),
        None => head.store(next, Ordering::SeqCst),
    }
}

/// Returns whether what stands before the vma on its list, a vma or the head, points at it.
fn is_listed(head: &AtomicU32, link: &Link, index: u32) -> bool {
    let before = match link.prev.load(Ordering::Relaxed).checked_sub(1).and_then(tables::link) {
        Some(prev) => &prev.next,
        None => head,
    };
    before.load(Ordering::Relaxed) == index + 1
}

/// The lists, for the length of a section.
#[derive(Debug)]
pub struct Lists<'a>(core::marker::PhantomData<&'a Slot>);

impl<'a> Lists<'a> {
    /// Lends the lists inside the section that `slot` is in.
    pub(crate) fn new(_inside: &'a Slot) -> Self {
        Self(core::marker::PhantomData)
    }
}

impl Rmap for Lists<'_> {
    fn mapping(&self, id: u32) -> Option<&Mapping<'_>> {
        // SeqCst pairs with `publish_mapping`, after the section's entry.
        let ptr = mapping_entry(id)?.load(Ordering::SeqCst);
        // SAFETY: null, or published from a `&'static`; an object is freed only after it was withdrawn and the sections
        // that may have seen it have ended, ours among them.
        unsafe { ptr.as_ref() }
    }
    fn for_each_vma<'f>(&self, id: u32, which: Which, f: &mut (dyn FnMut(&Vma<'_>) + 'f)) {
        // SeqCst pairs with `rmap_add` and `rmap_remove`, after the section's entry.
        let mut at = head(id, which).map_or(0, |h| h.load(Ordering::SeqCst));
        while let Some(index) = at.checked_sub(1) {
            let (Some(record), Some(link)) = (record(index), link(index)) else { return };
            // SAFETY: `rmap_add`'s contract: the record is filled, and not reused before our section ends.
            f(unsafe { record.assume_init_ref() });
            at = link.next.load(Ordering::SeqCst);
        }
    }
}
