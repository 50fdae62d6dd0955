//! Everything that runs in a signal handler, with a panic handler that does not link.
//!
//! `on_signal` reaches stores, page tables and vtables only through tables of trait objects that are filled at run time,
//! which the linker cannot see through. So each implementation is exported by name here, by calling every method with
//! arguments from outside.

#![no_std]

mod unlinkable;

use core::ffi::c_void;
use core::hint::black_box;
use softfault_mm::claim::Claim;
use softfault_mm::ctx::Ctx;
use softfault_mm::delegation::{Delegation, MinorFault, MinorVerdict};
use softfault_mm::fault::Env;
use softfault_mm::host::Park;
use softfault_mm::mapping::Mapping;
use softfault_mm::ops::{AddressSpaceOps, Mmu, Prot, Staged, WaitKey, Zap};
use softfault_mm::shmem::ShmemVmOps;
use softfault_mm::vma::{VmFault, VmOps};
use softfault_mm::vmstat::VmStat;
use softfault_platform::host::Host;
use softfault_platform::mmu::exclusive::ExclusiveMmu;
use softfault_platform::mmu::segv::SegvMmu;
use softfault_platform::mmu::uffd::UffdMmu;
use softfault_platform::section::{self, Slot};
use softfault_platform::store::exclusive::ExclusiveOps;
use softfault_platform::store::file::FileStore;
use softfault_platform::store::object::ObjectOps;
use softfault_platform::store::swap::SwapStore;
use softfault_platform::store::swapfile::SwapFile;
use softfault_platform::store::zero::ZeroStore;
use softfault_platform::store::{PageMut, PageRef, Store};
use softfault_platform::sys::signal::SigInfo;
use softfault_platform::trap::{self, monitor};

/// The handler itself: judging, walking, chaining.
///
/// # Safety
/// The handler's.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn nopanic_on_signal(signo: i32, info: *mut SigInfo, uc: *mut c_void) {
    // SAFETY: the caller's contract is the handler's.
    unsafe { trap::on_signal(signo, info, uc) }
}

/// The monitor thread's loop: not a handler, but threads sleep until it answers.
#[unsafe(no_mangle)]
pub fn nopanic_monitor(mmu: &UffdMmu, stop: &core::sync::atomic::AtomicU32) -> bool {
    let ok = monitor::serve(mmu, stop).is_ok();
    if !ok {
        monitor::give_up();
    }
    ok
}

fn every_mmu_method<M: Mmu>(mmu: &M, addr: usize, nr: usize, prot: Prot, staged: &Staged) {
    black_box(mmu.set_ptes(addr, nr, prot));
    black_box(mmu.set_private(addr, staged));
    black_box(mmu.unprotect(addr));
    mmu.wake(addr, nr);
    black_box(mmu.release_extents(addr, nr, prot.wp).is_ok());
    black_box(mmu.take_extents(addr, nr, prot.wp, prot.write).is_ok());
    black_box(mmu.zap(&[Zap { addr, len_bytes: nr }]));
    black_box(mmu.write_protect(addr, nr));
    mmu.unprotected(addr, nr, &mut |addr, nr, pte| {
        black_box((addr, nr, pte));
    });
    mmu.maybe_written(addr, nr, &mut |addr, nr| {
        black_box((addr, nr));
    });
    black_box(mmu.pte(addr));
    black_box(mmu.charge_vmas(nr as i64));
}

#[unsafe(no_mangle)]
pub fn nopanic_mmu_uffd(mmu: &UffdMmu, addr: usize, nr: usize, prot: Prot, staged: &Staged) {
    every_mmu_method(mmu, addr, nr, prot, staged);
}

#[unsafe(no_mangle)]
pub fn nopanic_mmu_segv(mmu: &SegvMmu, addr: usize, nr: usize, prot: Prot, staged: &Staged) {
    every_mmu_method(mmu, addr, nr, prot, staged);
}

#[unsafe(no_mangle)]
pub fn nopanic_mmu_exclusive(mmu: &ExclusiveMmu, addr: usize, nr: usize, prot: Prot, staged: &Staged) {
    every_mmu_method(mmu, addr, nr, prot, staged);
}

fn every_ops_method<O: AddressSpaceOps>(ops: &O, pgoff: u64, nr: u32, staged: &Staged, bytes: &mut [u8]) {
    black_box(ops.read_folio(pgoff, nr).is_ok());
    black_box(ops.zero_folio(pgoff, nr).is_ok());
    black_box(ops.read_staged(pgoff, staged).is_ok());
    black_box(ops.dsync(pgoff, nr).is_ok());
    black_box(ops.punch(pgoff, nr).is_ok());
    black_box(ops.discard(pgoff, nr).is_ok());
    black_box(ops.punch_pages(nr, &[(nr, pgoff)], &mut [Zap { addr: 0, len_bytes: 0 }]));
    black_box(ops.write_folio(pgoff, nr).is_ok());
    black_box(ops.is_written(pgoff));
    black_box(ops.rereads_unflushed());
    ops.with_page_mut(pgoff, &mut |page| {
        black_box(page);
    });
    ops.copy_from_page(pgoff, nr as usize, bytes);
}

#[unsafe(no_mangle)]
pub fn nopanic_object_ops(ops: &ObjectOps<'_>, pgoff: u64, nr: u32, staged: &Staged, bytes: &mut [u8]) {
    every_ops_method(ops, pgoff, nr, staged, bytes);
}

#[unsafe(no_mangle)]
pub fn nopanic_exclusive_ops(ops: &ExclusiveOps<'_>, pgoff: u64, nr: u32, staged: &Staged, bytes: &mut [u8]) {
    every_ops_method(ops, pgoff, nr, staged, bytes);
}

fn every_store_method<S: Store>(store: &S, pos: u64, page: &mut PageMut<'_>) {
    black_box(store.read(pos, page).is_ok());
    black_box(store.dsync(pos, pos).is_ok());
}

#[unsafe(no_mangle)]
pub fn nopanic_store_file(store: &FileStore, pos: u64, page: &mut PageMut<'_>) {
    every_store_method(store, pos, page);
}

/// What writes back and gives back, where that is done in a handler.
fn every_writing_method<S: Store>(store: &S, pos: u64, pages: &PageRef<'_>) {
    black_box(store.write(pos, pages).is_ok());
    black_box(store.flush().is_ok());
    black_box(store.punch(pos, pos).is_ok());
    black_box(store.set_len(pos).is_ok());
}

#[unsafe(no_mangle)]
pub fn nopanic_store_file_writing(store: &FileStore, pos: u64, pages: &PageRef<'_>) {
    every_writing_method(store, pos, pages);
}

#[unsafe(no_mangle)]
pub fn nopanic_store_swap(store: &SwapStore<&SwapFile>, pos: u64, page: &mut PageMut<'_>, pages: &PageRef<'_>) {
    every_store_method(store, pos, page);
    every_writing_method(store, pos, pages);
}

#[unsafe(no_mangle)]
pub fn nopanic_store_zero(store: &ZeroStore, pos: u64, page: &mut PageMut<'_>) {
    every_store_method(store, pos, page);
}

#[unsafe(no_mangle)]
pub fn nopanic_vm_ops(ops: &ShmemVmOps, vmf: &mut VmFault<'_>, mapping: &Mapping<'_>, start: u64, end: u64) {
    ops.open(mapping);
    let r = ops.fault(vmf) | ops.map_pages(vmf, start, end) | ops.huge_fault(vmf) | ops.page_mkwrite(vmf);
    black_box(r.0);
    black_box(ops.has_page_mkwrite());
    black_box(ops.get_folio_noalloc(mapping, start));
    ops.close(mapping);
}

/// What a vtable or a delegate of the user's may call.
#[unsafe(no_mangle)]
pub fn nopanic_user_side(vmf: &mut VmFault<'_>, fault: &MinorFault<'_>, bytes: &mut [u8]) -> bool {
    let filled = softfault_mm::filemap::fill_with(vmf, &mut |page| {
        black_box(page);
    });
    let read = fault.read(bytes.len(), bytes).is_ok();
    let rewritten = fault.rewrite(&mut |page| {
        black_box(page);
    });
    black_box(filled.0);
    read && rewritten.is_ok()
}

/// The walk, with a host that is not known here, for every way an access is made.
#[unsafe(no_mangle)]
pub fn nopanic_walk(env: Env<'_>, ctx: &Ctx<'_>, address: usize, flags: u32) -> u32 {
    let flags = softfault_mm::types::FaultFlags(flags);
    softfault_mm::fault::do_user_addr_fault(env, ctx, address, flags).map_or(0, |r| r.0)
}

/// A delegate that may be called in the handler.
#[unsafe(no_mangle)]
pub fn nopanic_delegation(delegation: &Delegation<'_>, index: usize) -> bool {
    let begun = matches!(delegation.begin(index), softfault_mm::delegation::Telltale::Yours);
    delegation.finish(index, MinorVerdict::Continue);
    delegation.reset(index);
    begun && delegation.is_told(index)
}

/// What a helper thread does with what the handler queued.
#[unsafe(no_mangle)]
pub fn nopanic_fill(env: Env<'_>, ctx: &Ctx<'_>, claim: Claim) {
    softfault_mm::fault::fill_here(env, ctx, claim);
}

/// Sleeping and waking, entering and leaving.
#[unsafe(no_mangle)]
pub fn nopanic_host(ctx: &Ctx<'_>, key: WaitKey, stat: &VmStat) -> bool {
    let Ok(slot) = Slot::enter() else { return false };
    stat.stage(slot.stripe(), softfault_mm::vmstat::Stage::Total, key.addr as u64);
    let host = Host::in_handler(slot);
    black_box((host.wait(ctx, key, 1), host.nap(ctx, key, 1)));
    host.wake(key.addr);
    section::in_fault()
}

/// Panics when `n` is not below 3.
#[cfg(feature = "bad")]
#[unsafe(no_mangle)]
pub fn nopanic_bad(n: usize) -> u8 {
    [1, 2, 3][n]
}
