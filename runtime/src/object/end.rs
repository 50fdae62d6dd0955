//! The end of an object: what is dirty is written back, nobody sees it any more, and its range of the cache goes back.
//!
//! # Context: whoever drops the last reference: control plane

use super::collapse;
use super::exclusive::Exclusive;
use super::file::inodes;
use super::file::options::FileOf;
use super::state::ObjectInner;
use crate::lease::Lease;
use crate::process::{mlock, registry};
use crate::writeback::writeout;
use softfault_mm::failing::Asked;
use softfault_mm::failpoint;
use softfault_mm::folio::{DIRTY, FolioWord, State};
use softfault_mm::mapping::{DYING, Mapping};
use softfault_mm::sync::Ordering;
use softfault_platform::sys::futex;
use softfault_platform::{section, vmatree};
use std::sync::Arc;
use std::time::Duration;

/// Dropped, it lets others open the file anew.
struct Forgotten(FileOf);

impl Drop for Forgotten {
    fn drop(&mut self) {
        inodes::forget(self.0.inode);
    }
}

impl Drop for ObjectInner {
    fn drop(&mut self) {
        let ours = self.pid == std::process::id();
        // This is dropped last, whatever becomes of the rest: who opens the file meanwhile waits for it.
        let _file = self.file.take().filter(|_| ours).map(Forgotten);
        // The flusher passes it over from here on, and an exit waits until it has been written back.
        let ending = (ours && self.is_persistent()).then(|| self.rt.ending(&self.flushing));
        failpoint!(OBJECT_ENDS);
        if ending.is_some() {
            writeout::write_back_last(&self.flushing);
        }
        drop(ending);
        if self.mapping.as_ref().is_none_or(|mapping| !(ours && outlive_users(mapping))) {
            give_up(self);
            return;
        }
        withdraw(self);
    }
}

/// A store that never returns still owns its pages (or this is a forked child): the range is given up, not
/// reused. `store` and `vm_ops` are what such a thread may be running in.
fn give_up(object: &mut ObjectInner) {
    object.mapping.take().into_iter().for_each(Lease::leak);
    object.nodes.take().into_iter().for_each(Lease::leak);
    object.a_ops.take().into_iter().for_each(Lease::leak);
    object.exclusive.take().into_iter().for_each(Exclusive::leak);
    object.store.take().into_iter().for_each(Lease::leak);
    object.here.take().into_iter().for_each(Lease::leak);
    object.vm_ops.take().into_iter().for_each(Lease::leak);
    object.i_mmap.take().into_iter().for_each(Lease::leak);
    object.label.take().into_iter().for_each(Lease::leak);
    std::mem::forget((Arc::clone(&object.space), Arc::clone(&object.rt)));
}

/// Nobody uses the object, and nobody begins to: its pages are counted out, and its range of the cache goes back.
#[expect(unsafe_code, reason = "gives the object's range of the cache back")]
fn withdraw(object: &mut ObjectInner) {
    vmatree::publish_mapping(object.id, None);
    section::synchronize();
    if let Some(mapping) = object.mapping.take() {
        count_out(&mapping);
        collapse::forget_huge(&mapping);
    }
    // What borrows goes before what is borrowed.
    drop((object.nodes.take(), object.a_ops.take(), object.exclusive.take(), object.vm_ops.take()));
    drop((object.here.take(), object.store.take(), object.i_mmap.take()));
    if object.rt.lock_cache {
        mlock::unlock(object.space.region.alias_at(object.offset), object.len_max);
    }
    // SAFETY: no vma (they hold the object), no claim (users is 0), and no section that saw either.
    unsafe { object.space.give(object.offset, object.len_max) };
    registry::lock().mappings.put(object.id);
}

/// How often, a millisecond apart, users are waited for who do not go.
const PATIENCE: u32 = 2_000;
/// The same while a flush is under way, which takes what it takes.
const FLUSH_PATIENCE: u32 = 60_000;

/// Waits until nobody uses the object, and lets nobody begin: reclaim finds it by its number for as long as that is published.
/// `false`: somebody goes on using it.
fn outlive_users(mapping: &Mapping<'_>) -> bool {
    let (mut patience, mut flush_patience) = (PATIENCE, FLUSH_PATIENCE);
    // Acquire pairs with the Release of `filemap::release`: everything done under the claims has happened.
    while mapping.users.compare_exchange(0, DYING, Ordering::AcqRel, Ordering::Acquire).is_err() {
        if patience == 0 {
            return false;
        }
        std::thread::sleep(Duration::from_millis(1));
        let flushes = mapping.flushing.load(Ordering::Relaxed) != 0 && flush_patience > 0;
        *if flushes { &mut flush_patience } else { &mut patience } -= 1;
    }
    true
}

/// Counts out every page that is paid for: reclaim that took one, and did not find the object by its number again, left it
/// `evicting`, and has ended its section since.
fn count_out(mapping: &Mapping<'_>) {
    let free = |w: &FolioWord| matches!(w.load().state(), State::Absent | State::Poisoned);
    let used = || mapping.each_folio(0, u64::MAX).map(|(_, word)| word);
    let cached = used().filter(|w| !free(w)).count();
    let dirty = used().filter(|w| w.load().is_mappable() && w.load().has(DIRTY)).count();
    mapping.account_cleaned(dirty as u64);
    [Asked::Write, Asked::Flush].into_iter().for_each(|asked| mapping.note_success(asked));
    mapping.uncharge(cached as u64);
    if let Some(addr) = mapping.account.progressed() {
        futex::wake_all(addr);
    }
}
