//! mimalloc in an arena: its blocks lie there, its tables of pages and heaps elsewhere in the process. So whoever restores the arena
//! reads what is in it, stores to it and adds to it, from a second arena; but mimalloc knows nothing of a restored block, and must not
//! be asked to free one: those lie idle.

use crate::heap::{Count, Heap};
use crate::units::Result;
use allocator_api2::alloc::{AllocError, Allocator, Layout};
use libmimalloc_sys::{mi_arena_id_t, mi_free, mi_heap_malloc_aligned, mi_heap_new_in_arena, mi_heap_t};
use std::ffi::{c_int, c_void};
use std::ptr::NonNull;
use std::sync::atomic::{AtomicPtr, AtomicUsize, Ordering};

unsafe extern "C" {
    // In the library, and not in its bindings.
    fn mi_manage_memory(
        start: *mut c_void,
        size: usize,
        is_committed: bool,
        is_pinned: bool,
        is_zero: bool,
        numa_node: c_int,
        exclusive: bool,
        commit: Option<unsafe extern "C" fn(bool, *mut c_void, usize, *mut bool, *mut c_void) -> bool>,
        commit_arg: *mut c_void,
        arena: *mut mi_arena_id_t,
    ) -> bool;
}

static HEAP: AtomicPtr<mi_heap_t> = AtomicPtr::new(std::ptr::null_mut());
/// What was restored: the first address, and the one behind the last.
static RESTORED: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
static ALLOCATED: Count = Count::new();
static FREED: Count = Count::new();
/// Bytes of restored blocks that nobody uses any more.
static IDLE: Count = Count::new();

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct MiHeap;

impl Heap for MiHeap {
    const NAME: &'static str = "mimalloc";
    const FREES: bool = false;

    unsafe fn begin(memory: *mut [u8]) -> Result<()> {
        let mut arena: mi_arena_id_t = std::ptr::null_mut();
        // Pinned: it never asks the kernel to drop or to protect what is the runtime's. Exclusive: nothing else comes from there.
        // SAFETY: the memory is the heap's alone for as long as the process lives, says the caller.
        let taken = unsafe {
            let (start, nobody) = (memory.cast(), std::ptr::null_mut());
            mi_manage_memory(start, memory.len(), true, true, true, -1, true, None, nobody, &raw mut arena)
        };
        if !taken {
            return Err("mimalloc does not take the memory".into());
        }
        // SAFETY: the arena is there, and never goes.
        let heap = unsafe { mi_heap_new_in_arena(arena) };
        HEAP.store(heap, Ordering::Relaxed);
        if heap.is_null() { Err("mimalloc makes no heap".into()) } else { Ok(()) }
    }

    unsafe fn resume(memory: *mut [u8], more: *mut [u8]) -> Result<()> {
        let start = memory.addr();
        RESTORED[0].store(start, Ordering::Relaxed);
        RESTORED[1].store(start + memory.len(), Ordering::Relaxed);
        // SAFETY: it is as `begin` wants it, says the caller.
        unsafe { Self::begin(more) }
    }

    fn told() -> String {
        let (allocated, freed) = (ALLOCATED.get(), FREED.get());
        format!(
            "{allocated} blocks allocated beside the restored ones, {freed} freed; {} bytes restored lie idle",
            IDLE.get()
        )
    }
}

// SAFETY: blocks are mimalloc's, which stay until they are freed, wherever the allocator, that is nothing, is moved; those that were
// restored stay in any case.
unsafe impl Allocator for MiHeap {
    fn allocate(&self, layout: Layout) -> std::result::Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(NonNull::slice_from_raw_parts(layout.dangling_ptr(), 0));
        }
        let heap = HEAP.load(Ordering::Relaxed);
        if heap.is_null() {
            return Err(AllocError);
        }
        // SAFETY: `begin` made the heap, which never goes, and any thread may allocate from it.
        let block = unsafe { mi_heap_malloc_aligned(heap, layout.size(), layout.align()) };
        let block = NonNull::new(block.cast()).ok_or(AllocError)?;
        ALLOCATED.add(1);
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        let restored = RESTORED[0].load(Ordering::Relaxed)..RESTORED[1].load(Ordering::Relaxed);
        if restored.contains(&block.addr().get()) {
            IDLE.add(layout.size() as u64);
        } else if layout.size() > 0 {
            // SAFETY: `allocate` gave it out, in this process, says the caller and the line above.
            unsafe { mi_free(block.as_ptr().cast()) };
            FREED.add(1);
        }
    }
}
