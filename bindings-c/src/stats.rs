//! `softfault_stats`: a reading of a runtime's counters.
//!
//! # Context: control plane

use crate::args::{Out, give_text, string};
use crate::error::{ENOENT, Failure, SOFTFAULT_ERROR_NO_ENTRY, entry};
use crate::handle::{self, softfault_runtime, softfault_stats};
use softfault::{VmFaultReason, stats::StageLatency};
use std::ffi::{c_char, c_int};
use std::sync::Arc;

/// The latency of one stage of a fault, from a sample of the faults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_stage_latency {
    /// Observations.
    pub count: u64,
    /// Median, within a factor of two.
    pub p50_ns: u64,
    /// 99th percentile, likewise.
    pub p99_ns: u64,
}

impl From<&StageLatency> for softfault_stage_latency {
    fn from(s: &StageLatency) -> Self {
        Self { count: s.count, p50_ns: s.p50_ns, p99_ns: s.p99_ns }
    }
}

fn no_entry(what: impl std::fmt::Display) -> Failure {
    Failure::new(ENOENT, SOFTFAULT_ERROR_NO_ENTRY, what)
}

/// Reads the runtime's counters, without stopping anyone. The handle is the caller's: softfault_stats_free().
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// out may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_stats_read(
    runtime: *mut softfault_runtime,
    out: *mut *mut softfault_stats,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(out, "out") }?;
        out.put(handle::insert(Arc::new(handle::get(runtime)?.stats()))?);
        Ok(())
    })
}

/// Frees the reading.
///
/// Errors: -EINVAL for NULL, -EBADF.
///
/// Context: program, filler. Thread-safe.
#[unsafe(no_mangle)]
pub extern "C" fn softfault_stats_free(stats: *mut softfault_stats) -> c_int {
    entry(|| handle::free(stats))
}

/// Writes what softfault_stats_text() says of that name: a counter (names are those of /proc/vmstat where it has them:
/// "pgfault", "pgmajfault"), how often the walk of a fault returned a bit ("vm_fault_sigbus"), or the observations of a
/// stage ("stage_total"). Some names come with what they count: those of a swap file, for instance.
///
/// Errors: -ENOENT: no such name. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// name is a string; value may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_stats_get(
    stats: *mut softfault_stats,
    name: *const c_char,
    value: *mut u64,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(value, "value") }?;
        // SAFETY: the caller's contract.
        let name = unsafe { string(name, "name") }?;
        let stats = handle::get(stats)?;
        let found = name.to_str().ok().and_then(|name| stats.get(name));
        out.put(found.ok_or_else(|| no_entry(format_args!("softfault_stats_get: no statistic {name:?}")))?);
        Ok(())
    })
}

/// Writes name and value of counter number index, for those who want all: from 0 on, until -ENOENT. name, full and value
/// may be left out.
///
/// Errors: -ENOENT: there are not so many. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// name has room for len bytes; full and value may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_stats_counter(
    stats: *mut softfault_stats,
    index: usize,
    name: *mut c_char,
    len: usize,
    full: *mut usize,
    value: *mut u64,
) -> c_int {
    entry(|| {
        let stats = handle::get(stats)?;
        let found = stats.counters.get(index);
        let (text, nr) = found.ok_or_else(|| no_entry(format_args!("softfault_stats_counter: no counter {index}")))?;
        // SAFETY: the caller's contract.
        unsafe { give_text(text, name, len, full) }?;
        // SAFETY: the caller's contract.
        unsafe { Out::optional(value) }.put(*nr);
        Ok(())
    })
}

/// Writes how often the walk of a fault returned a bit: one of SOFTFAULT_VM_FAULT_*, not several.
///
/// Errors: -ENOENT: no such bit. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// value may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_stats_reason(stats: *mut softfault_stats, bit: u32, value: *mut u64) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(value, "value") }?;
        let stats = handle::get(stats)?;
        let name = VmFaultReason::NAMES.iter().find(|(_, b)| b.0 == bit).map(|(name, _)| *name);
        let found = stats.reasons.iter().find(|(n, _)| Some(*n) == name);
        let found = found.ok_or_else(|| no_entry(format_args!("softfault_stats_reason: no bit {bit:#x}")))?;
        out.put(found.1);
        Ok(())
    })
}

/// Writes the latency of the stage of that name ("total", "delivery"): softfault_stats_json() names them all.
///
/// Errors: -ENOENT: no such stage. -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// name is a string; latency may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_stats_stage(
    stats: *mut softfault_stats,
    name: *const c_char,
    latency: *mut softfault_stage_latency,
) -> c_int {
    entry(|| {
        // SAFETY: the caller's contract.
        let out = unsafe { Out::new(latency, "latency") }?;
        // SAFETY: the caller's contract.
        let name = unsafe { string(name, "name") }?;
        let stats = handle::get(stats)?;
        let found = name.to_str().ok().and_then(|name| stats.stage(name));
        let found = found.ok_or_else(|| no_entry(format_args!("softfault_stats_stage: no stage {name:?}")))?;
        out.put(softfault_stage_latency::from(found));
        Ok(())
    })
}

/// Writes everything as one JSON object; full (may be NULL) gets its length without the NUL. Ask with len 0, then again.
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// buf has room for len bytes; full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_stats_json(
    stats: *mut softfault_stats,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let text = handle::get(stats)?.to_json();
        // SAFETY: the caller's contract.
        unsafe { give_text(&text, buf, len, full) }
    })
}

/// Writes everything as lines, as /proc/vmstat does; otherwise as softfault_stats_json().
///
/// Errors: -EINVAL, -EBADF.
///
/// Context: program, filler. Thread-safe.
///
/// # Safety
/// buf has room for len bytes; full may be written.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_stats_text(
    stats: *mut softfault_stats,
    buf: *mut c_char,
    len: usize,
    full: *mut usize,
) -> c_int {
    entry(|| {
        let text = handle::get(stats)?.to_string();
        // SAFETY: the caller's contract.
        unsafe { give_text(&text, buf, len, full) }
    })
}
