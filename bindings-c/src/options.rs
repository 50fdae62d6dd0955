//! Option structures that the caller fills: they begin with their size, so that later versions can be longer.
//!
//! As openat2(2) and clone3(2) do it: what the caller's structure lacks is zero, which means the default; what it has more
//! must be zero.
//!
//! # Context: control plane

use crate::args::known;
use crate::consts::{self, SOFTFAULT_OFF};
use crate::error::{E2BIG, Failure, SOFTFAULT_ERROR_ARGUMENT};
use crate::handler::minor::softfault_minor_operations;
use crate::handler::store::softfault_store_operations;
use crate::handler::vm_fault::softfault_vm_operations;
use softfault::{ArenaBuilder, Delivery, ObjectBuilder, RuntimeBuilder};
use std::ffi::{c_char, c_void};
use std::time::Duration;

/// What is cached is locked in memory, as by mlock2(2) with MLOCK_ONFAULT: never swapped, and never unmapped by the kernel's
/// reclaim. Without CAP_IPC_LOCK all objects together must stay below RLIMIT_MEMLOCK; one that does not fit is
/// SOFTFAULT_ERROR_LIMIT.
pub const SOFTFAULT_RUNTIME_LOCK_CACHE: u32 = 0x1;

/// A line on standard error before a touch becomes a SIGBUS, with the object, its byte, and why.
pub const SOFTFAULT_RUNTIME_REPORT_SIGNALS: u32 = 0x2;

const RUNTIME_FLAGS: u32 = 0x3;

/// Options of softfault_runtime_new(). Fields that are 0 have their defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_runtime_options {
    /// sizeof(struct softfault_runtime_options).
    pub size: usize,
    /// Bounds the cached bytes over all objects. Default: half of what the memory cgroup, or the machine, has, divided evenly
    /// between all runtimes of the process that have no limit of their own.
    pub cache_limit_bytes: u64,
    /// Where anonymous memory goes when the cache is full: a file, which is overwritten, or a folder, in which a file
    /// without a name is made. Default: it stays. Read during the call only.
    pub swap_path: *const c_char,
    /// Bytes of the swap file; needed with swap_path.
    pub swap_bytes: u64,
    /// Memory for compressed pages in front of the swap file; needs swap_path.
    pub zswap_bytes: u64,
    /// Threads that call stores that are not handler-safe; default 4, at most 64.
    pub fillers: u32,
    /// Pages that the thread that misses one reads at most: a power of two up to 512; default 16.
    pub fill_window_pages: u32,
    /// The largest readahead window in pages; default twice the fill window. SOFTFAULT_OFF: none.
    pub readahead_pages: u32,
    /// Percent of the cache that may be dirty before pages are written in the background; default 10. SOFTFAULT_OFF: 0.
    pub dirty_background_percent: u32,
    /// Percent of the cache that may be dirty before writers are made to wait; default 40.
    pub dirty_percent: u32,
    /// How long exit(3) waits until everything is written that was stored and not synced, in milliseconds; default 30 s.
    /// SOFTFAULT_OFF: nothing is written then. Not at _exit(2), Go's os.Exit, signals that kill, and in forked children.
    pub exit_wait_ms: u32,
    /// How often mappings are scanned for stores; default 500 ms.
    pub writeback_interval_ns: u64,
    /// After how long dirty pages are written though nobody asks; default 5 s.
    pub writeback_expire_ns: u64,
    /// SOFTFAULT_RUNTIME_* together.
    pub flags: u32,
    /// Must be 0.
    pub reserved: u32,
}

/// The object may be written: shared mappings with stores, and softfault_object_write_at(). A file is written, too.
pub const SOFTFAULT_OBJECT_WRITABLE: u32 = 0x1;
/// Files: read and written past the kernel's page cache (O_DIRECT) where the file system can.
pub const SOFTFAULT_OBJECT_DIRECT: u32 = 0x2;
/// The first store to each page of a shared mapping faults (page_mkwrite), instead of being noted silently.
pub const SOFTFAULT_OBJECT_SYNCHRONOUS_WRITES: u32 = 0x4;
/// As MAP_SYNC: a page's block is durable before the first store to it lands. Implies SOFTFAULT_OBJECT_SYNCHRONOUS_WRITES.
pub const SOFTFAULT_OBJECT_DSYNC: u32 = 0x8;
/// A first store to an uncached page of a private mapping fills the cache first, instead of reading past it.
pub const SOFTFAULT_OBJECT_PRIVATE_BY_CACHE: u32 = 0x10;
/// Pages live in the private memory of the one mapping, moved in and out of recycled frames. Needs in-thread delivery.
pub const SOFTFAULT_OBJECT_EXCLUSIVE: u32 = 0x20;
/// As SOFTFAULT_OBJECT_EXCLUSIVE, but pages are copied.
pub const SOFTFAULT_OBJECT_EXCLUSIVE_BY_COPY: u32 = 0x40;
/// Keeps 2 MiB that are cached whole as one huge page: read-only objects, and anonymous memory without swap.
pub const SOFTFAULT_OBJECT_HUGE_PAGES: u32 = 0x80;

/// The object has room to grow without a maximum that is known beforehand: 64 GiB where nothing limits the address space.
pub const SOFTFAULT_OBJECT_GROWABLE: u32 = 0x100;

const OBJECT_FLAGS: u32 = 0x1ff;

/// Options of an object. Fields that are 0 have their defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_object_options {
    /// sizeof(struct softfault_object_options).
    pub size: usize,
    /// SOFTFAULT_OBJECT_* together.
    pub flags: u32,
    /// What happens when the store cannot give a page: SOFTFAULT_FAILURE_*.
    pub failure_policy: u32,
    /// Up to where the object may grow (softfault_object_set_len()); default its length.
    pub max_len_bytes: u64,
    /// Bounds the object's own cached bytes, below the runtime's limit (at least 64 pages); default no bound.
    pub cache_limit_bytes: u64,
    /// Bounds how long a touch waits for the store; default for ever. Not for handler-safe stores.
    pub deadline_ns: u64,
    /// How often a read that failed is tried again, on filler threads; default never.
    pub retries: u32,
    /// As in softfault_runtime_options; default the runtime's.
    pub fill_window_pages: u32,
    /// The pause before the first retry; it doubles with each.
    pub retry_backoff_ns: u64,
    /// As in softfault_runtime_options; default the runtime's. SOFTFAULT_OFF: none.
    pub readahead_pages: u32,
    /// Must be 0.
    pub reserved: u32,
    /// What the object is called in errors and among the failures; default the path of a file, and a number of others. Read
    /// during the call only.
    pub label: *const c_char,
}

/// System calls, O_DIRECT and KVM may touch the arena without a pin: needs the monitor.
pub const SOFTFAULT_ARENA_KERNEL_ACCESS: u32 = 0x1;
/// A fault maps its page alone, no cached neighbours.
pub const SOFTFAULT_ARENA_NO_FAULT_AROUND: u32 = 0x2;
/// Fully cached extents are handed to the kernel only by softfault_arena_promote().
pub const SOFTFAULT_ARENA_NO_NATIVE_EXTENTS: u32 = 0x4;
/// Minor delegates are asked before fault is called, instead of by its SOFTFAULT_VM_FAULT_UFFD_MINOR.
pub const SOFTFAULT_ARENA_LOOKUP_FIRST: u32 = 0x8;

/// softfault_capture_begin() can hold the stores of threads to the arena: the first store to a page that is clean, or that a capture has
/// protected, faults, and while a capture is made a system call that stores to the arena can fail with EFAULT. Needs in-thread
/// delivery; maps objects shared.
pub const SOFTFAULT_ARENA_CAPTURABLE: u32 = 0x10;

const ARENA_FLAGS: u32 = 0x1f;

/// Options of softfault_arena_new(). Fields that are 0 have their defaults.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_arena_options {
    /// sizeof(struct softfault_arena_options).
    pub size: usize,
    /// SOFTFAULT_ARENA_* together.
    pub flags: u32,
    /// How faults arrive: SOFTFAULT_DELIVERY_*.
    pub delivery: u32,
    /// What SOFTFAULT_DELIVERY_SEGV exposes at once: a power of two, 4 KiB to 2 MiB; default 2 MiB.
    pub granule_bytes: u64,
    /// The arena's first address, a multiple of 2 MiB, where nothing may be mapped yet. Default: the kernel chooses.
    pub address: *mut c_void,
}

/// A structure that begins with its size, and of which all zeros is a value.
///
/// # Safety
/// `repr(C)`, a `usize` first, and zeroed memory is a valid value.
pub(crate) unsafe trait Versioned: Copy {
    const NAME: &'static str;
    /// The size of the first version that had it.
    const FIRST: usize;
}

// SAFETY: numbers and a pointer, the size first.
unsafe impl Versioned for softfault_runtime_options {
    const NAME: &'static str = "softfault_runtime_options";
    const FIRST: usize = 80;
}
// SAFETY: numbers and a pointer, the size first.
unsafe impl Versioned for softfault_object_options {
    const NAME: &'static str = "softfault_object_options";
    const FIRST: usize = 64;
}
// SAFETY: numbers and an address, the size first.
unsafe impl Versioned for softfault_arena_options {
    const NAME: &'static str = "softfault_arena_options";
    const FIRST: usize = 24;
}

// SAFETY: numbers and optional functions, the size first.
unsafe impl Versioned for softfault_vm_operations {
    const NAME: &'static str = "softfault_vm_operations";
    const FIRST: usize = 72;
}
// SAFETY: numbers and optional functions, the size first.
unsafe impl Versioned for softfault_store_operations {
    const NAME: &'static str = "softfault_store_operations";
    const FIRST: usize = 72;
}
// SAFETY: numbers and optional functions, the size first.
unsafe impl Versioned for softfault_minor_operations {
    const NAME: &'static str = "softfault_minor_operations";
    const FIRST: usize = 32;
}

/// Reads a caller's structure; null: all defaults.
///
/// # Safety
/// `ptr` is null, or as many bytes as the structure says may be read.
pub(crate) unsafe fn read<T: Versioned>(ptr: *const T) -> Result<T, Failure> {
    let name = T::NAME;
    // SAFETY: zeroed memory is a value of T: `Versioned`.
    let mut value: T = unsafe { std::mem::zeroed() };
    if ptr.is_null() {
        return Ok(value);
    }
    // SAFETY: the caller's contract: a structure of this kind has its size, whatever else. It need not be aligned.
    let size = unsafe { ptr.cast::<usize>().read_unaligned() };
    if size < T::FIRST {
        return Err(Failure::argument(format_args!("{name}.size is {size}: at least {}", T::FIRST)));
    }
    for at in size_of::<T>()..size {
        // SAFETY: `at` is below the size that the caller vouches for.
        if unsafe { ptr.cast::<u8>().wrapping_add(at).read() } != 0 {
            let why = format_args!("{name}: byte {at} is set, of an option that this version does not have");
            return Err(Failure::new(E2BIG, SOFTFAULT_ERROR_ARGUMENT, why));
        }
    }
    let known = size.min(size_of::<T>());
    let dst = std::ptr::from_mut(&mut value).cast::<u8>();
    // SAFETY: both have `known` bytes; any bytes are a value of T's fields.
    unsafe { std::ptr::copy_nonoverlapping(ptr.cast::<u8>(), dst, known) };
    Ok(value)
}

/// A structure that a call fills: as much of it as the caller has.
pub(crate) struct Report<T>(*mut T, usize);

impl<T: Versioned> Report<T> {
    /// Looks at the structure, whose size the caller has set.
    ///
    /// # Safety
    /// `ptr` is null, or as many bytes as the structure says may be read and written for the length of the call.
    pub(crate) unsafe fn new(ptr: *mut T) -> Result<Self, Failure> {
        let name = T::NAME;
        if ptr.is_null() {
            return Err(Failure::argument(format_args!("{name} is NULL")));
        }
        // SAFETY: the caller's contract: a structure of this kind has its size, whatever else. It need not be aligned.
        let size = unsafe { ptr.cast::<usize>().read_unaligned() };
        if size < T::FIRST {
            return Err(Failure::argument(format_args!("{name}.size is {size}: at least {}", T::FIRST)));
        }
        Ok(Self(ptr, size))
    }

    /// Writes it. Its size stays the caller's; what the caller has more becomes 0.
    pub(crate) fn put(self, value: T) {
        let (known, head) = (self.1.min(size_of::<T>()), size_of::<usize>());
        let (src, dst) = (std::ptr::from_ref(&value).cast::<u8>(), self.0.cast::<u8>());
        // SAFETY: both have `known` bytes, which is at least their first field: `new`, and `Versioned`.
        unsafe { std::ptr::copy_nonoverlapping(src.wrapping_add(head), dst.wrapping_add(head), known - head) };
        for at in known..self.1 {
            // SAFETY: `at` is below the size that the caller vouches for.
            unsafe { dst.wrapping_add(at).write(0) };
        }
    }
}

pub(crate) fn check_reserved(name: &str, reserved: u32) -> Result<(), Failure> {
    if reserved != 0 {
        return Err(Failure::argument(format_args!("{name}.reserved is {reserved:#x}: must be 0")));
    }
    Ok(())
}

pub(crate) fn check_flags(name: &str, flags: u32, known: u32) -> Result<(), Failure> {
    if flags & !known != 0 {
        return Err(Failure::argument(format_args!("{name}.flags is {flags:#x}: {:#x} is unknown", flags & !known)));
    }
    Ok(())
}

/// `SOFTFAULT_OFF` means none.
fn or_off(n: u32) -> u32 {
    if n == SOFTFAULT_OFF { 0 } else { n }
}

impl softfault_runtime_options {
    pub(crate) fn builder(&self) -> Result<RuntimeBuilder, Failure> {
        check_flags(Self::NAME, self.flags, RUNTIME_FLAGS)?;
        check_reserved(Self::NAME, self.reserved)?;
        let has = |flag| self.flags & flag != 0;
        let mut b = softfault::Runtime::builder().lock_cache(has(SOFTFAULT_RUNTIME_LOCK_CACHE));
        b = b.report_signals(has(SOFTFAULT_RUNTIME_REPORT_SIGNALS));
        if self.cache_limit_bytes != 0 {
            b = b.cache_limit(self.cache_limit_bytes);
        }
        if !self.swap_path.is_null() {
            // SAFETY: whoever made the options vouches for a string that ends with a NUL: `softfault_runtime_new`.
            let path = unsafe { crate::args::path(self.swap_path) }?;
            b = b.swap(path, self.swap_bytes);
        } else if self.swap_bytes != 0 {
            return Err(Failure::argument("softfault_runtime_options.swap_bytes is set: needs a swap_path"));
        }
        if self.zswap_bytes != 0 {
            b = b.zswap(self.zswap_bytes);
        }
        if self.fillers != 0 {
            b = b.fillers(self.fillers as usize);
        }
        if self.fill_window_pages != 0 {
            b = b.fill_window_pages(self.fill_window_pages);
        }
        if self.readahead_pages != 0 {
            b = b.readahead_pages(or_off(self.readahead_pages));
        }
        if self.dirty_background_percent != 0 || self.dirty_percent != 0 {
            let or = |n: u32, default| if n == 0 { default } else { or_off(n) };
            b = b.dirty_limits(or(self.dirty_background_percent, 10), or(self.dirty_percent, 40));
        }
        if self.writeback_interval_ns != 0 || self.writeback_expire_ns != 0 {
            let or = |ns: u64, default| if ns == 0 { default } else { Duration::from_nanos(ns) };
            let interval = or(self.writeback_interval_ns, Duration::from_millis(500));
            b = b.writeback(interval, or(self.writeback_expire_ns, Duration::from_secs(5)));
        }
        if self.exit_wait_ms != 0 {
            b = b.exit_wait(Duration::from_millis(u64::from(or_off(self.exit_wait_ms))));
        }
        Ok(b)
    }
}

/// What a program asks of an arena, besides its length and place.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ArenaChoice {
    flags: u32,
    delivery: Delivery,
    granule_bytes: usize,
}

impl ArenaChoice {
    pub(crate) fn apply(&self, b: ArenaBuilder) -> ArenaBuilder {
        let has = |flag| self.flags & flag != 0;
        let mut b = b.delivery(self.delivery).kernel_access(has(SOFTFAULT_ARENA_KERNEL_ACCESS));
        b = b.fault_around(!has(SOFTFAULT_ARENA_NO_FAULT_AROUND));
        b = b.native_extents(!has(SOFTFAULT_ARENA_NO_NATIVE_EXTENTS));
        b = b.lookup_first(has(SOFTFAULT_ARENA_LOOKUP_FIRST)).capturable(has(SOFTFAULT_ARENA_CAPTURABLE));
        if self.granule_bytes != 0 {
            b = b.granule(self.granule_bytes);
        }
        b
    }
}

impl softfault_arena_options {
    /// Checks them.
    pub(crate) fn choice(&self) -> Result<ArenaChoice, Failure> {
        check_flags(Self::NAME, self.flags, ARENA_FLAGS)?;
        let delivery = known(consts::delivery(self.delivery), "delivery", self.delivery)?;
        Ok(ArenaChoice { flags: self.flags, delivery, granule_bytes: self.granule_bytes as usize })
    }
}

impl softfault_object_options {
    pub(crate) fn has(&self, flag: u32) -> bool {
        self.flags & flag != 0
    }

    /// Checks what can be checked without an object.
    pub(crate) fn check(&self) -> Result<(), Failure> {
        check_flags(Self::NAME, self.flags, OBJECT_FLAGS)?;
        check_reserved(Self::NAME, self.reserved)?;
        known(consts::policy(self.failure_policy), "failure_policy", self.failure_policy).map(|_| ())
    }

    fn label(&self) -> Option<String> {
        if self.label.is_null() {
            return None;
        }
        // SAFETY: whoever made the options vouches for a string that ends with a NUL.
        let label = unsafe { crate::args::string(self.label, "label") };
        label.ok().map(|label| label.to_string_lossy().into_owned())
    }

    /// Sets everything but `DIRECT`, which is the file's.
    pub(crate) fn apply(&self, mut b: ObjectBuilder) -> ObjectBuilder {
        b = b.writable(self.has(SOFTFAULT_OBJECT_WRITABLE));
        if let Some(label) = self.label() {
            b = b.label(label);
        }
        if self.max_len_bytes != 0 {
            b = b.max_len(self.max_len_bytes);
        }
        if self.cache_limit_bytes != 0 {
            b = b.cache_limit(self.cache_limit_bytes);
        }
        if self.deadline_ns != 0 {
            b = b.deadline(Duration::from_nanos(self.deadline_ns));
        }
        if self.retries != 0 {
            b = b.retries(self.retries, Duration::from_nanos(self.retry_backoff_ns));
        }
        if self.fill_window_pages != 0 {
            b = b.fill_window_pages(self.fill_window_pages);
        }
        if self.readahead_pages != 0 {
            b = b.readahead_pages(or_off(self.readahead_pages));
        }
        if let Some(policy) = consts::policy(self.failure_policy) {
            b = b.on_failure(policy);
        }
        b = b.synchronous_writes(self.has(SOFTFAULT_OBJECT_SYNCHRONOUS_WRITES));
        b = b.dsync(self.has(SOFTFAULT_OBJECT_DSYNC));
        b = b.private_past_cache(!self.has(SOFTFAULT_OBJECT_PRIVATE_BY_CACHE));
        b = b.huge_pages(self.has(SOFTFAULT_OBJECT_HUGE_PAGES));
        b = b.growable(self.has(SOFTFAULT_OBJECT_GROWABLE));
        b = b.exclusive(self.has(SOFTFAULT_OBJECT_EXCLUSIVE));
        if self.has(SOFTFAULT_OBJECT_EXCLUSIVE_BY_COPY) {
            b = b.exclusive_by_copy();
        }
        b
    }
}
