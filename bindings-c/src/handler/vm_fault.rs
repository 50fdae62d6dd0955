//! `softfault_vm_operations`: a vtable of the program's, and what its callbacks may ask about a fault and do to it.
//!
//! # Context: handler

use super::{Mark, VM_FAULT, look};
use crate::api::{Mapping, VmFault, VmFaultReason, VmOps, filemap, shmem};
use core::cell::Cell;
use core::ffi::c_void;
use core::ptr::null_mut;

/// A fault that a softfault_vm_operations callback is asked about; good for the length of the call.
#[derive(Debug)]
pub struct softfault_vm_fault {
    mark: Mark,
    pgoff: u64,
    address: usize,
    flags: u32,
    shared_write: bool,
    step: Step,
    /// The `VmFault`; null while one of our functions has it.
    vmf: Cell<*mut c_void>,
    /// What our functions have answered in this call.
    granted: Cell<u32>,
}

/// The callback that is running.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    Fault,
    MapPages,
    HugeFault,
    PageMkwrite,
}

const SIGBUS: u32 = VmFaultReason::SIGBUS.0;
const NOPAGE: u32 = VmFaultReason::NOPAGE.0;
/// What `fault` may answer by itself.
const FREE: u32 = VmFaultReason::ERROR.0 | VmFaultReason::MAJOR.0 | NOPAGE | VmFaultReason::RETRY.0;

/// Calls `f` with the fault as C sees it; returns its answer, and what was granted meanwhile.
fn lend(vmf: &mut VmFault<'_>, step: Step, f: impl FnOnce(*mut softfault_vm_fault) -> u32) -> (u32, u32) {
    let mut lent = softfault_vm_fault {
        mark: Mark::new(VM_FAULT),
        pgoff: vmf.pgoff(),
        address: vmf.real_address(),
        flags: vmf.flags().0,
        shared_write: vmf.is_shared_write(),
        step,
        vmf: Cell::new(core::ptr::from_mut(vmf).cast()),
        granted: Cell::new(0),
    };
    let answer = f(&raw mut lent);
    (answer, lent.granted.get())
}

impl softfault_vm_fault {
    /// Runs one of our functions on the fault, in a callback for `step`.
    fn operate(&self, step: Step, f: impl FnOnce(&mut VmFault<'_>) -> VmFaultReason) -> u32 {
        let settled = VmFaultReason::LOCKED.0 | VmFaultReason::RETRY.0;
        if step == Step::Fault && self.granted.get() & settled != 0 {
            // Found already, or work is under way: finding it twice would hold it twice.
            return self.granted.get();
        }
        let vmf = self.vmf.replace(null_mut());
        if vmf.is_null() || self.step != step {
            self.vmf.set(vmf);
            return SIGBUS;
        }
        // SAFETY: made by `lend` of a borrow that lasts as long as our mark; null for everybody else until it is put back.
        let answer = f(unsafe { &mut *vmf.cast::<VmFault<'_>>() }).0;
        self.vmf.set(vmf);
        self.granted.set(self.granted.get() | answer);
        answer
    }
}

/// # Safety
/// As `look`.
unsafe fn fault_of<'a>(vmf: *const softfault_vm_fault) -> Option<&'a softfault_vm_fault> {
    // SAFETY: the caller's contract.
    unsafe { look(vmf, |v| &v.mark, VM_FAULT) }
}

/// Returns the number of the touched page in its object; 0 for NULL.
///
/// Context: program, filler, handler: in the callback that got vmf.
///
/// # Safety
/// vmf is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_vm_fault_pgoff(vmf: *const softfault_vm_fault) -> u64 {
    // SAFETY: the caller's contract.
    unsafe { fault_of(vmf) }.map_or(0, |v| v.pgoff)
}

/// Returns the exact address that was touched; 0 for NULL.
///
/// Context: program, filler, handler: in the callback that got vmf.
///
/// # Safety
/// vmf is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_vm_fault_address(vmf: *const softfault_vm_fault) -> usize {
    // SAFETY: the caller's contract.
    unsafe { fault_of(vmf) }.map_or(0, |v| v.address)
}

/// Returns how the access was made: SOFTFAULT_FAULT_FLAG_* together; 0 for NULL.
///
/// Context: program, filler, handler: in the callback that got vmf.
///
/// # Safety
/// vmf is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_vm_fault_flags(vmf: *const softfault_vm_fault) -> u32 {
    // SAFETY: the caller's contract.
    unsafe { fault_of(vmf) }.map_or(0, |v| v.flags)
}

/// Returns whether the access is a store that reaches the object: a shared mapping's; false for NULL.
///
/// Context: program, filler, handler: in the callback that got vmf.
///
/// # Safety
/// vmf is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_vm_fault_is_shared_write(vmf: *const softfault_vm_fault) -> bool {
    // SAFETY: the caller's contract.
    unsafe { fault_of(vmf) }.is_some_and(|v| v.shared_write)
}

/// Fills the touched page by a function that gets its bytes, unless it is cached already: several threads on one page
/// compute it once. What was in the bytes before is unspecified.
///
/// Returns what the fault callback is to return: SOFTFAULT_VM_FAULT_LOCKED, or why not (RETRY, OOM, SIGBUS). SIGBUS, too,
/// where it is called in another callback than fault, or fill is NULL.
///
/// Context: handler: in a fault callback. fill runs in the faulting thread, too, under the rules of the callback.
///
/// # Safety
/// vmf is what the callback got. fill may be called with ctx and the len writable bytes at page, and does not unwind.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_filemap_fill_with(
    vmf: *mut softfault_vm_fault,
    fill: Option<unsafe extern "C" fn(ctx: *mut c_void, page: *mut c_void, len: usize)>,
    ctx: *mut c_void,
) -> u32 {
    // SAFETY: the caller's contract.
    let (Some(v), Some(fill)) = (unsafe { fault_of(vmf) }, fill) else { return SIGBUS };
    v.operate(Step::Fault, |vmf| {
        filemap::fill_with(vmf, &mut |page| {
            // SAFETY: the caller's contract; the bytes are exclusively ours for the length of the call.
            unsafe { fill(ctx, page.as_mut_ptr().cast(), page.len()) };
        })
    })
}

/// Finds the touched page in the cache, or begins to read it from the object's store (zeros, for an object over
/// softfault_vm_operations): the kernel's filemap_fault.
///
/// Returns what the fault callback is to return; SIGBUS where it is called in another one.
///
/// Context: handler: in a fault callback.
///
/// # Safety
/// vmf is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_filemap_fault(vmf: *mut softfault_vm_fault) -> u32 {
    // SAFETY: the caller's contract.
    let Some(v) = (unsafe { fault_of(vmf) }) else { return SIGBUS };
    v.operate(Step::Fault, |vmf| {
        // A store makes the page dirty, which is the other function's.
        if vmf.is_shared_write() { shmem::fault(vmf) } else { filemap::fault(vmf, 0) }
    })
}

/// As softfault_filemap_fault(), and asks a minor delegate before (SOFTFAULT_VM_FAULT_UFFD_MINOR): what objects of files
/// and anonymous memory do, and an object over softfault_vm_operations without a fault callback.
///
/// Context: handler: in a fault callback.
///
/// # Safety
/// vmf is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_shmem_fault(vmf: *mut softfault_vm_fault) -> u32 {
    // SAFETY: the caller's contract.
    let Some(v) = (unsafe { fault_of(vmf) }) else { return SIGBUS };
    v.operate(Step::Fault, shmem::fault)
}

const DEFAULT: shmem::ShmemVmOps = shmem::ShmemVmOps { mkwrite: false };

/// Maps those of pages start to end (not included) that are cached, with the touched one: what map_pages is for. Pages
/// outside the touched one's 2 MiB, or outside its mapping, are left.
///
/// Returns what the map_pages callback is to return: SOFTFAULT_VM_FAULT_NOPAGE if the touched page is mapped now, or 0.
///
/// Context: handler: in a map_pages callback.
///
/// # Safety
/// vmf is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_filemap_map_pages(vmf: *mut softfault_vm_fault, start: u64, end: u64) -> u32 {
    // SAFETY: the caller's contract.
    let Some(v) = (unsafe { fault_of(vmf) }) else { return 0 };
    let answer = v.operate(Step::MapPages, |vmf| {
        let (vma, around) = (vmf.vma(), vmf.pgoff() & !511);
        let start = start.max(vma.pgoff).max(around);
        let end = end.min(vma.pgoff_end()).min(around.saturating_add(512));
        if start < end { DEFAULT.map_pages(vmf, start, end) } else { VmFaultReason::empty() }
    });
    if answer == SIGBUS { 0 } else { answer }
}

/// Hands the extent to the kernel if it is cached whole: what huge_fault is for.
///
/// Returns what the huge_fault callback is to return: SOFTFAULT_VM_FAULT_NOPAGE, or SOFTFAULT_VM_FAULT_FALLBACK.
///
/// Context: handler: in a huge_fault callback.
///
/// # Safety
/// vmf is what the callback got.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn softfault_shmem_huge_fault(vmf: *mut softfault_vm_fault) -> u32 {
    // SAFETY: the caller's contract.
    let Some(v) = (unsafe { fault_of(vmf) }) else { return VmFaultReason::FALLBACK.0 };
    let answer = v.operate(Step::HugeFault, |vmf| DEFAULT.huge_fault(vmf));
    if answer == SIGBUS { VmFaultReason::FALLBACK.0 } else { answer }
}

/// The vtable of an object, as struct vm_operations_struct: what its faults go through. NULL means the default.
///
/// All but open, close and drop run in the faulting thread, inside a signal handler: no allocation, no lock, no thread-
/// local, no function outside signal-safety(7), no access to an arena; at most 1 KiB of stack; errno as it was. None may
/// unwind: a C++ exception that leaves one ends the process. They may run in several threads at once.
#[repr(C)]
#[derive(Clone, Copy, Debug)]
pub struct softfault_vm_operations {
    /// sizeof(struct softfault_vm_operations).
    pub size: usize,
    /// Finds or makes the touched page: returns what softfault_filemap_fill_with() or softfault_filemap_fault() returned,
    /// or SOFTFAULT_VM_FAULT_SIGBUS, _OOM, _HWPOISON, _SIGSEGV to refuse, or _RETRY to be asked again.
    ///
    /// Default: softfault_shmem_fault().
    pub fault: Option<unsafe extern "C" fn(ctx: *mut c_void, vmf: *mut softfault_vm_fault) -> u32>,
    /// Maps cached neighbours: returns what softfault_filemap_map_pages() returned. Default: none are mapped.
    pub map_pages:
        Option<unsafe extern "C" fn(ctx: *mut c_void, vmf: *mut softfault_vm_fault, start: u64, end: u64) -> u32>,
    /// Hands complete extents to the kernel: returns what softfault_shmem_huge_fault() returned. Default: stays trapped.
    pub huge_fault: Option<unsafe extern "C" fn(ctx: *mut c_void, vmf: *mut softfault_vm_fault) -> u32>,
    /// A clean page is about to be stored to through a shared mapping: 0, or an error bit to refuse. Default: not asked,
    /// and stores are noted silently.
    pub page_mkwrite: Option<unsafe extern "C" fn(ctx: *mut c_void, vmf: *mut softfault_vm_fault) -> u32>,
    /// Whether a minor delegate is to be asked about the page before fault is called (SOFTFAULT_ARENA_LOOKUP_FIRST);
    /// cached says what the default answers.
    pub get_folio_noalloc: Option<unsafe extern "C" fn(ctx: *mut c_void, pgoff: u64, cached: bool) -> bool>,
    /// A mapping came to be. Called by who maps, splits or protects; may lock, but call no function on the object or arena.
    pub open: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
    /// A mapping is gone. As open.
    pub close: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
    /// The object is gone: nothing is called with ctx any more. Called by whoever held it last.
    pub drop: Option<unsafe extern "C" fn(ctx: *mut c_void)>,
}

/// A vtable of C functions; `O` is who calls `drop`.
pub struct CVmOps<O> {
    pub(crate) ops: softfault_vm_operations,
    pub(crate) ctx: *mut c_void,
    pub(crate) _owner: O,
}

// SAFETY: the context goes only to the program's functions, which promise to be called from any thread.
unsafe impl<O: Send> Send for CVmOps<O> {}
// SAFETY: as above, and from several at once.
unsafe impl<O: Sync> Sync for CVmOps<O> {}

impl<O> core::fmt::Debug for CVmOps<O> {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("CVmOps")
    }
}

/// Makes a combination of bits out of what a `fault` callback answered that the walk understands, whatever it was.
fn settle(vmf: &mut VmFault<'_>, answer: u32, granted: u32) -> VmFaultReason {
    let mut r = VmFaultReason(answer & (FREE | granted)).without(VmFaultReason::FALLBACK | VmFaultReason::LOCKED);
    if r.intersects(VmFaultReason::ERROR) {
        r = r.without(VmFaultReason::RETRY | VmFaultReason::NOPAGE);
    } else if vmf.work != Default::default() {
        // What was begun is to be finished.
        r = r.without(VmFaultReason::NOPAGE) | VmFaultReason::RETRY;
    }
    let Some(word) = vmf.folio else {
        // Nothing was found, and nothing else was said: no page.
        let nothing = r.without(VmFaultReason::MAJOR).is_empty();
        return if nothing { VmFaultReason::SIGBUS } else { r };
    };
    if r.without(VmFaultReason::MAJOR).is_empty() {
        return r | VmFaultReason::LOCKED;
    }
    vmf.folio = None;
    word.unpin();
    r
}

impl<O: Send + Sync> VmOps for CVmOps<O> {
    fn open(&self, _mapping: &Mapping<'_>) {
        if let Some(open) = self.ops.open {
            // SAFETY: the program's function and its context.
            unsafe { open(self.ctx) }
        }
    }
    fn close(&self, _mapping: &Mapping<'_>) {
        if let Some(close) = self.ops.close {
            // SAFETY: as in `open`.
            unsafe { close(self.ctx) }
        }
    }
    fn fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        let Some(fault) = self.ops.fault else { return shmem::fault(vmf) };
        // SAFETY: as in `open`; the fault is good for the call.
        let (answer, granted) = lend(vmf, Step::Fault, |lent| unsafe { fault(self.ctx, lent) });
        settle(vmf, answer, granted)
    }
    fn map_pages(&self, vmf: &mut VmFault<'_>, start: u64, end: u64) -> VmFaultReason {
        let Some(map_pages) = self.ops.map_pages else { return VmFaultReason::empty() };
        // SAFETY: as in `fault`.
        let (answer, granted) = lend(vmf, Step::MapPages, |lent| unsafe { map_pages(self.ctx, lent, start, end) });
        VmFaultReason(answer & granted)
    }
    fn huge_fault(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        let Some(huge_fault) = self.ops.huge_fault else { return VmFaultReason::FALLBACK };
        // SAFETY: as in `fault`.
        let (_, granted) = lend(vmf, Step::HugeFault, |lent| unsafe { huge_fault(self.ctx, lent) });
        if granted & NOPAGE != 0 { VmFaultReason::NOPAGE } else { VmFaultReason::FALLBACK }
    }
    fn page_mkwrite(&self, vmf: &mut VmFault<'_>) -> VmFaultReason {
        let Some(page_mkwrite) = self.ops.page_mkwrite else { return VmFaultReason::empty() };
        // SAFETY: as in `fault`.
        let (answer, _) = lend(vmf, Step::PageMkwrite, |lent| unsafe { page_mkwrite(self.ctx, lent) });
        (VmFaultReason(answer) & VmFaultReason::ERROR).without(VmFaultReason::FALLBACK)
    }
    fn has_page_mkwrite(&self) -> bool {
        self.ops.page_mkwrite.is_some()
    }
    fn get_folio_noalloc(&self, mapping: &Mapping<'_>, pgoff: u64) -> bool {
        let cached = pgoff < mapping.nr_pages() && mapping.is_cached(pgoff);
        match self.ops.get_folio_noalloc {
            // SAFETY: as in `open`.
            Some(ask) => cached & unsafe { ask(self.ctx, pgoff, cached) },
            None => cached,
        }
    }
}
