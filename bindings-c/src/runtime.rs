//! `softfault_runtime`, and what is about the process or the library.
//!
//! # Context: control plane

use crate::args::{Out, give_text, known};
use crate::consts::{self, SOFTFAULT_ABI_VERSION};
use crate::error::{EOPNOTSUPP, Failure, SOFTFAULT_ERROR_DELIVERY, cause_of, entry};
use crate::handle::{self, softfault_runtime};
use crate::options::{read, softfault_runtime_options};
use softfault::{RecentFailure, VmFaultReason};
use std::ffi::{c_char, c_int};
use std::time::Duration;

/// Returns the version of the ABI that the library serves, at least SOFTFAULT_ABI_VERSION of the header that the program
/// was compiled with. Versions only add.
///
/// Context: program, filler, handler.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_abi_version() -> u32 {
    SOFTFAULT_ABI_VERSION
}

/// Returns the library's version, "0.1.0" say. The string is the library's, and stays.
///
/// Context: program, filler, handler.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_version() -> *const c_char {
    concat!(env!("CARGO_PKG_VERSION"), "\0").as_ptr().cast()
}

/// Writes the names of SOFTFAULT_VM_FAULT_* bits, "MAJOR|RETRY" say, as softfault_last_error() does; full may be NULL.
///
/// Errors: -EINVAL: no buffer.
///
/// Context: program, filler.
///
/// # Safety
/// buf has room for len bytes.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_fault_reason_text(
    reason: u32,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let text = format!("{:?}", VmFaultReason(reason));
        // SAFETY: the caller's contract.
        unsafe { give_text(&text, buf, len, full) }
    })
}

/// Makes a runtime: installs handlers for SIGBUS and SIGSEGV (in front of who was there, who gets what is not about an
/// arena), and starts helper threads. options may be NULL: all defaults.
///
/// The handle is the caller's: softfault_runtime_free(). A process may have several runtimes, each with its own cache.
///
/// Errors: -EINVAL, -E2BIG, -ENOMEM, -EACCES in a forked child, or what opening the swap file said.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// options, if not NULL, has the size that it says; swap_path, if not NULL, is a string. out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_new(
    options: *const softfault_runtime_options,
    out: *mut *mut softfault_runtime,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        // SAFETY: the caller's contract.
        let options = unsafe { read(options) }?;
        let runtime = options.builder()?.build()?;
        out.put(handle::insert(runtime)?);
        Ok(())
    })
}

/// Frees the handle. The runtime ends with the last of its objects and arenas; the last runtime of the process puts the
/// former signal handlers back.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_runtime_free(runtime: *mut softfault_runtime) -> c_int {
    entry(|| handle::free(runtime))
}

/// Changes the limit of the cache. Pages above a lower one leave in the background.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program, filler. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_runtime_set_cache_limit(runtime: *mut softfault_runtime, bytes: u64) -> c_int {
    entry(|| {
        handle::get(runtime)?.set_cache_limit(bytes);
        Ok(())
    })
}

/// Writes everything that was stored before the call to the files and other stores of all objects, as exit(3) does, and
/// without making it durable. Writes whether that was done within timeout_ns; done may be NULL. Errors are counted
/// ("writeback_errors"), and told by softfault_object_sync().
///
/// For programs that end without exit(3): before _exit(2), or Go's os.Exit.
///
/// Errors: -EINVAL for NULL, -EBADF, -EACCES in a forked child.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// done may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_write_back(
    runtime: *mut softfault_runtime,
    timeout_ns: u64,
    done: *mut bool,
) -> c_int {
    entry(|| {
        let in_time = handle::get(runtime)?.write_back(Duration::from_nanos(timeout_ns))?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(done) }.put(in_time);
        Ok(())
    })
}

/// Writes what arenas get that do not ask for a delivery: SOFTFAULT_DELIVERY_*.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// mode may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_delivery(runtime: *mut softfault_runtime, mode: *mut u32) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(mode, "mode") }?;
        out.put(consts::delivery_number(handle::get(runtime)?.delivery().chosen));
        Ok(())
    })
}

/// Writes what arenas get that ask for SOFTFAULT_ARENA_KERNEL_ACCESS: SOFTFAULT_DELIVERY_*.
///
/// Errors: -EOPNOTSUPP: no delivery that can be had here serves system calls. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// mode may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_kernel_access_delivery(
    runtime: *mut softfault_runtime,
    mode: *mut u32,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(mode, "mode") }?;
        let why = "no delivery that serves system calls can be had here; see softfault_runtime_delivery_finding";
        let runtime = handle::get(runtime)?;
        let found = runtime.delivery().kernel_access;
        let found = found.ok_or_else(|| Failure::new(EOPNOTSUPP, SOFTFAULT_ERROR_DELIVERY, why))?;
        out.put(consts::delivery_number(found));
        Ok(())
    })
}

/// Writes whether a delivery can be had here, and how that is known, as text. available, buf and full may be left out
/// (NULL, with len 0).
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// available may be written, buf has room for len bytes, full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_delivery_finding(
    runtime: *mut softfault_runtime,
    mode: u32,
    available: *mut bool,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let runtime = handle::get(runtime)?;
        let mode = known(consts::delivery(mode), "mode", mode)?;
        let report = runtime.delivery();
        let why = report.finding(mode).map_or("the best of the others", |f| f.why.as_str());
        // SAFETY: the caller's contract.
        unsafe { give_text(why, buf, len, full) }?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(available) }.put(report.is_available(mode));
        Ok(())
    })
}

/// Writes what was found out about every delivery, as lines for people. full may be NULL.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// buf has room for len bytes, full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_delivery_report(
    runtime: *mut softfault_runtime,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let text = handle::get(runtime)?.delivery().to_string();
        // SAFETY: the caller's contract.
        unsafe { give_text(&text, buf, len, full) }
    })
}

/// Looks for threads that could not take SIGBUS or SIGSEGV, and would be killed where they touch an arena. Writes how many
/// there are, and one line for each ("tid (name): why"; tid 0 is the whole process). buf and full may be left out.
///
/// Errors: -EINVAL, -EBADF, or what reading /proc said.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// offenders may be written, buf has room for len bytes, full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_audit_threads(
    runtime: *mut softfault_runtime,
    offenders: *mut usize,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(offenders, "offenders") }?;
        let audit = handle::get(runtime)?.audit_threads()?;
        // SAFETY: the caller's contract.
        unsafe { give_text(&audit.to_string(), buf, len, full) }?;
        out.put(audit.offenders.len());
        Ok(())
    })
}

/// Writes how many threads made the runtime, or mapped something where faults arrive by signals, while they blocked SIGBUS or
/// SIGSEGV, and one line for each ("tid (name): why"): they end the process where they touch an arena, unless they unblock the
/// signals before. buf and full may be left out.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program. Thread-safe.
///
/// # Safety
/// warnings may be written, buf has room for len bytes, full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_warnings(
    runtime: *mut softfault_runtime,
    warnings: *mut usize,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(warnings, "warnings") }?;
        let list = handle::get(runtime)?.warnings();
        let lines: Vec<_> = list.iter().map(|o| format!("{} ({}): {}\n", o.tid, o.name, o.why)).collect();
        // SAFETY: the caller's contract.
        unsafe { give_text(&lines.concat(), buf, len, full) }?;
        out.put(list.len());
        Ok(())
    })
}

/// Puts softfault's signal handlers back in front, where a language runtime or a crash reporter has installed its own after
/// softfault_runtime_new(). The newcomer then gets what is not about an arena.
///
/// Errors: -EINVAL for NULL, -EBADF, or what rt_sigaction said.
///
/// Context: program. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_reinstall_handlers(runtime: *mut softfault_runtime) -> c_int {
    entry(|| Ok(handle::get(runtime)?.reinstall_handlers()?))
}

/// Measures how long a touch takes to reach the handler, into stage "delivery" of the statistics. Writes how many touches
/// were measured; measured may be NULL.
///
/// Errors: -EINVAL, -EBADF, -EOPNOTSUPP for a delivery that cannot be had, -ENOMEM.
///
/// Context: program.
///
/// # Safety
/// measured may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_measure_delivery(
    runtime: *mut softfault_runtime,
    mode: u32,
    measured: *mut u64,
) -> c_int {
    entry(|| {
        let runtime = handle::get(runtime)?;
        let nr = runtime.measure_delivery(known(consts::delivery(mode), "mode", mode)?)?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(measured) }.put(nr);
        Ok(())
    })
}

/// A store did not give a page.
pub const SOFTFAULT_FAILED_READ: u32 = 1;
/// A store did not take pages.
pub const SOFTFAULT_FAILED_WRITE: u32 = 2;
/// A store did not make durable what it took.
pub const SOFTFAULT_FAILED_FLUSH: u32 = 3;
/// A load or store of the program's became a signal.
pub const SOFTFAULT_FAILED_TOUCH: u32 = 4;

/// One of a runtime's last failures.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_failure {
    /// Counts the runtime's failures: a gap means that some were not kept.
    pub number: u64,
    /// SOFTFAULT_FAILED_*.
    pub op: u32,
    /// SOFTFAULT_CAUSE_*.
    pub cause: u32,
    /// The store's errno, positive; 0 if it gave none.
    pub store_errno: c_int,
    /// 0.
    pub reserved: u32,
    /// The object's byte, of the page that could not be had or the first that was not written.
    pub object_offset: u64,
    /// The address that was touched; 0: none was.
    pub address: u64,
    /// How long ago.
    pub age_ns: u64,
    /// The object's label, or the end of a longer one; ends with a NUL.
    pub object: [c_char; 104],
}

impl From<&RecentFailure> for softfault_failure {
    fn from(f: &RecentFailure) -> Self {
        let (cause, store_errno) = cause_of(Some(f.cause));
        let mut object = [0; 104];
        object.iter_mut().zip(f.object.as_bytes().iter().take(103)).for_each(|(to, from)| *to = from.cast_signed());
        Self {
            number: f.number,
            op: f.op as u32,
            cause,
            store_errno,
            reserved: 0,
            object_offset: f.object_offset,
            address: f.address.unwrap_or(0) as u64,
            age_ns: u64::try_from(f.age.as_nanos()).unwrap_or(u64::MAX),
            object,
        }
    }
}

/// Copies the last nr failures, oldest first: of stores, whoever was told, and touches that became signals. all (may be
/// NULL) gets how many are kept: 64 at most. failures may be NULL if nr is 0.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe; nobody is stopped.
///
/// # Safety
/// failures has room for nr elements; all may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_runtime_recent_failures(
    runtime: *mut softfault_runtime,
    failures: *mut softfault_failure,
    nr: usize,
    all: *mut usize,
) -> c_int {
    entry(|| {
        if failures.is_null() && nr > 0 {
            return Err(Failure::argument("failures is NULL"));
        }
        let kept = handle::get(runtime)?.recent_failures();
        let first = kept.len().saturating_sub(nr);
        for (i, failure) in kept.iter().skip(first).enumerate() {
            // SAFETY: `i` is less than `nr`, the room there.
            unsafe { failures.wrapping_add(i).write_unaligned(softfault_failure::from(failure)) };
        }
        // SAFETY: the caller's contract.
        unsafe { Out::optional(all) }.put(kept.len());
        Ok(())
    })
}
