//! Objects and delegates made of the program's own functions.
//!
//! # Context: control plane

use crate::args::{Out, arena_range};
use crate::error::{Failure, entry};
use crate::handle::{self, softfault_arena, softfault_object, softfault_runtime};
use crate::handler::minor::{CMinor, SOFTFAULT_MINOR_HANDLER_SAFE, softfault_minor_operations};
use crate::handler::store::{
    CStore, SOFTFAULT_STORE_HANDLER_SAFE, SOFTFAULT_STORE_NO_REREAD, SOFTFAULT_STORE_STABLE,
    SOFTFAULT_STORE_TOUCHES_ARENAS, SOFTFAULT_STORE_USES_DESCRIPTORS, SOFTFAULT_STORE_WRITE_BLOCKS,
    softfault_store_operations,
};
use crate::handler::vm_fault::{CVmOps, softfault_vm_operations};
use crate::object::check_no_direct;
use crate::options::{Versioned, check_flags, check_reserved, read, softfault_object_options};
use std::ffi::{c_int, c_void};

const STORE_FLAGS: u32 = SOFTFAULT_STORE_HANDLER_SAFE
    | SOFTFAULT_STORE_TOUCHES_ARENAS
    | SOFTFAULT_STORE_STABLE
    | SOFTFAULT_STORE_WRITE_BLOCKS
    | SOFTFAULT_STORE_NO_REREAD
    | SOFTFAULT_STORE_USES_DESCRIPTORS;

/// The program's context: given back, once, by whoever has it last.
pub(crate) struct Owner {
    ctx: *mut c_void,
    drop: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
}

// SAFETY: the context goes only to `drop`, which the program lets any thread call.
unsafe impl Send for Owner {}
// SAFETY: as above; there is nothing to do with a shared one.
unsafe impl Sync for Owner {}

impl Drop for Owner {
    fn drop(&mut self) {
        if let Some(drop) = self.drop {
            // SAFETY: the program's function and its context; nobody else has them any more.
            unsafe { drop(self.ctx) }
        }
    }
}

/// Reads the program's functions.
///
/// # Safety
/// As [`read`].
unsafe fn read_operations<T: Versioned>(operations: *const T) -> Result<T, Failure> {
    if operations.is_null() {
        return Err(Failure::argument("operations is NULL"));
    }
    // SAFETY: the caller's contract.
    unsafe { read(operations) }
}

fn required<T>(function: Option<T>, name: &str) -> Result<(), Failure> {
    function.map(|_| ()).ok_or_else(|| Failure::argument(format_args!("{name} is NULL")))
}

/// Makes an object of len_bytes over a store of the program's. options may be NULL.
///
/// operations are copied. ctx passes to the library, which calls operations->drop with it once, when nothing is called with
/// it any more: if the call fails, before it returns. Only where operations are refused themselves (NULL, their size) is
/// there no drop to call.
///
/// Errors: -EINVAL: no read function; a read_align_bytes that is none; a deadline with SOFTFAULT_STORE_HANDLER_SAFE, or SOFTFAULT_OBJECT_DSYNC without.
/// -E2BIG, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// operations, and options if not NULL, have the sizes that they say; out may be written. The functions keep to what
/// softfault_store_operations says, and may be called with ctx from any thread until drop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_from_store(
    runtime: *mut softfault_runtime,
    len_bytes: u64,
    operations: *const softfault_store_operations,
    ctx: *mut c_void,
    options: *const softfault_object_options,
    out: *mut *mut softfault_object,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let ops = unsafe { read_operations(operations) }?;
        let store = Box::new(CStore { ops, ctx, _owner: Owner { ctx, drop: ops.drop } });
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let runtime = handle::get(runtime)?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        check_flags("softfault_store_operations", ops.flags, STORE_FLAGS)?;
        check_reserved("softfault_store_operations", ops.reserved)?;
        required(ops.read, "softfault_store_operations.read")?;
        options.check()?;
        check_no_direct(&options)?;
        let builder = options.apply(runtime.object(len_bytes));
        let handler_safe = ops.flags & SOFTFAULT_STORE_HANDLER_SAFE != 0;
        let object = if handler_safe { builder.handler_store(store) } else { builder.store(store) }?;
        out.put(handle::insert(object)?);
        Ok(())
    })
}

/// Makes an object of len_bytes over a vtable of the program's. options may be NULL.
///
/// operations are copied. ctx passes to the library, which calls operations->drop with it once, when nothing is called with
/// it any more: if the call fails, before it returns. Only where operations are refused themselves (NULL, their size) is
/// there no drop to call.
///
/// Errors: -EINVAL, -E2BIG, -EBADF, -ENOMEM.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// operations, and options if not NULL, have the sizes that they say; out may be written. The functions keep to what
/// softfault_vm_operations says, and may be called with ctx from any thread until drop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_object_from_vm_operations(
    runtime: *mut softfault_runtime,
    len_bytes: u64,
    operations: *const softfault_vm_operations,
    ctx: *mut c_void,
    options: *const softfault_object_options,
    out: *mut *mut softfault_object,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let ops = unsafe { read_operations(operations) }?;
        let vm_ops = Box::new(CVmOps { ops, ctx, _owner: Owner { ctx, drop: ops.drop } });
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        let runtime = handle::get(runtime)?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        options.check()?;
        check_no_direct(&options)?;
        let builder = options.apply(runtime.object(len_bytes));
        // SAFETY: the caller's functions are fit for a handler; what they may do to the fault, `handler` settles.
        let object = unsafe { builder.vm_ops(vm_ops) }?;
        out.put(handle::insert(object)?);
        Ok(())
    })
}

/// Has a delegate told of the first touch of each cached page of the range, before it is mapped there. Pages that are
/// mapped already are unmapped first, so that nothing escapes. Unmapping the range ends it.
///
/// operations are copied. ctx passes to the library, as with softfault_object_from_store(): drop is called when the last part
/// of the range is unmapped, or the call fails.
///
/// Errors: -ENXIO: not wholly mapped. -EACCES: a private mapping, or a library without userfaultfd. -EINVAL, -E2BIG,
/// -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// operations have the size that they say. The functions keep to what softfault_minor_operations says, and may be called
/// with ctx from any thread until drop.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_arena_delegate_minor(
    arena: *mut softfault_arena,
    offset: usize,
    len: usize,
    operations: *const softfault_minor_operations,
    ctx: *mut c_void,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let ops = unsafe { read_operations(operations) }?;
        let delegate = Box::new(CMinor { ops, ctx, _owner: Owner { ctx, drop: ops.drop } });
        let arena = handle::get(arena)?;
        check_flags("softfault_minor_operations", ops.flags, SOFTFAULT_MINOR_HANDLER_SAFE)?;
        check_reserved("softfault_minor_operations", ops.reserved)?;
        required(ops.minor_fault, "softfault_minor_operations.minor_fault")?;
        let range = arena_range(offset, len)?;
        if ops.flags & SOFTFAULT_MINOR_HANDLER_SAFE != 0 {
            // SAFETY: the caller says that its functions are fit for a handler.
            unsafe { arena.delegate_minor_in_handler(range, delegate) }?;
        } else {
            arena.delegate_minor(range, delegate)?;
        }
        Ok(())
    })
}
