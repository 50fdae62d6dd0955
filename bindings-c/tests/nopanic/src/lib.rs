//! `bindings-c/src/handler`, with a panic handler that does not link.
//!
//! Its functions are exported as they are. What the runtime calls by a table of trait objects, which the linker does not
//! see through, is called here by name.

#![no_std]
#![allow(non_camel_case_types, dead_code, unreachable_pub, reason = "the file is another crate's")]

use core::ffi::c_void;
use core::hint::black_box;

mod api {
    pub(crate) use softfault_mm::delegation::{MinorDelegate, MinorError, MinorFault, MinorVerdict};
    pub(crate) use softfault_mm::mapping::Mapping;
    pub(crate) use softfault_mm::types::VmFaultReason;
    pub(crate) use softfault_mm::vma::{VmFault, VmOps};
    pub(crate) use softfault_mm::{filemap, shmem};
    pub(crate) use softfault_platform::store::{HandlerStore, PageMut, PageRef, Store, StoreError};
    pub(crate) use softfault_platform::sys::Errno;
}

#[path = "../../../src/handler/mod.rs"]
mod handler;
#[path = "../../../../runtime/tests/nopanic/src/unlinkable.rs"]
mod unlinkable;

use api::{HandlerStore, Mapping, MinorDelegate, MinorFault, PageMut, PageRef, Store, VmFault, VmOps};
use handler::minor::{CMinor, softfault_minor_operations};
use handler::store::{CStore, softfault_store_operations};
use handler::vm_fault::{CVmOps, softfault_vm_operations};

#[unsafe(no_mangle)]
pub fn nopanic_c_vm_ops(
    ops: softfault_vm_operations,
    ctx: *mut c_void,
    vmf: &mut VmFault<'_>,
    mapping: &Mapping<'_>,
    start: u64,
    end: u64,
) {
    let ops = CVmOps { ops, ctx, _owner: () };
    let r = ops.fault(vmf) | ops.map_pages(vmf, start, end) | ops.huge_fault(vmf) | ops.page_mkwrite(vmf);
    black_box((r.0, ops.has_page_mkwrite(), ops.get_folio_noalloc(mapping, start)));
    ops.open(mapping);
    ops.close(mapping);
}

#[unsafe(no_mangle)]
pub fn nopanic_c_store(
    ops: softfault_store_operations,
    ctx: *mut c_void,
    page: &mut PageMut<'_>,
    pages: &PageRef<'_>,
    pos: u64,
) {
    let store = CStore { ops, ctx, _owner: () };
    black_box((store.read(pos, page).is_ok(), store.write(pos, pages).is_ok(), store.flush().is_ok()));
    black_box((store.dsync(pos, pos).is_ok(), store.punch(pos, pos).is_ok(), store.set_len(pos).is_ok()));
    black_box((
        store.read_align_bytes(),
        store.is_stable(),
        store.write_blocks(),
        store.rereads_unflushed(),
        store.touches_arenas(),
    ));
}

#[unsafe(no_mangle)]
pub fn nopanic_c_minor(ops: softfault_minor_operations, ctx: *mut c_void, fault: &MinorFault<'_>) {
    black_box(CMinor { ops, ctx, _owner: () }.minor_fault(fault));
}

/// Panics when `n` is not below 3.
#[cfg(feature = "bad")]
#[unsafe(no_mangle)]
pub fn nopanic_bad(n: usize) -> u8 {
    [1, 2, 3][n]
}
