//! talc: its lists lie in the memory that it manages, and its state at the head of the arena. Whoever has the bytes back where they
//! lay has the allocator back: it frees what another process has allocated, and gives it out again.

use crate::heap::{AT, Count, HEAD_BYTES, Heap, STATE};
use crate::units::Result;
use allocator_api2::alloc::{AllocError, Allocator, Layout};
use std::ptr::NonNull;
use std::sync::{Mutex, MutexGuard, PoisonError};
use talc::DefaultBinning;
use talc::base::Talc;
use talc::source::Manual;

/// In the arena. `Manual`: it gets no memory by itself.
type State = Talc<Manual, DefaultBinning>;

/// Outside the arena, and so never saved while somebody holds it. True: there is a heap.
static LOCK: Mutex<bool> = Mutex::new(false);
static ALLOCATED: Count = Count::new();
static FREED: Count = Count::new();

#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct TalcHeap;

const _: () = assert!(STATE + size_of::<State>() <= HEAD_BYTES && STATE.is_multiple_of(align_of::<State>()));

fn state() -> *mut State {
    std::ptr::with_exposed_provenance_mut(AT + STATE)
}

fn lock() -> MutexGuard<'static, bool> {
    LOCK.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Heap for TalcHeap {
    const NAME: &'static str = "talc";
    const FREES: bool = true;

    unsafe fn begin(memory: *mut [u8]) -> Result<()> {
        let mut there = lock();
        let _ = memory.expose_provenance();
        // SAFETY: the head of the arena is mapped for stores as its heap is, says the caller, and is long enough (above).
        unsafe { state().write(Talc::new(Manual)) };
        // SAFETY: just stored, and nobody else has it: the lock is held.
        let talc = unsafe { &mut *state() };
        // SAFETY: the memory is the heap's alone for as long as the process lives, says the caller.
        unsafe { talc.claim(memory.cast(), memory.len()) }.ok_or("talc does not take the memory")?;
        *there = true;
        Ok(())
    }

    unsafe fn resume(memory: *mut [u8], _more: *mut [u8]) -> Result<()> {
        let _ = memory.expose_provenance();
        // Its state came with the memory.
        *lock() = true;
        [&ALLOCATED, &FREED].into_iter().for_each(|count| count.add(count.get().wrapping_neg()));
        Ok(())
    }

    fn told() -> String {
        format!("{} blocks allocated in the restored heap, {} freed", ALLOCATED.get(), FREED.get())
    }
}

// SAFETY: blocks are talc's, which stay until they are freed, wherever the allocator, that is nothing, is moved; the lock makes its
// calls one after the other.
unsafe impl Allocator for TalcHeap {
    fn allocate(&self, layout: Layout) -> std::result::Result<NonNull<[u8]>, AllocError> {
        if layout.size() == 0 {
            return Ok(NonNull::slice_from_raw_parts(layout.dangling_ptr(), 0));
        }
        let there = lock();
        if !*there {
            return Err(AllocError);
        }
        // SAFETY: there is a heap, and the lock is held.
        let talc = unsafe { &mut *state() };
        // SAFETY: more than no bytes.
        let block = unsafe { talc.allocate(layout) }.ok_or(AllocError)?;
        ALLOCATED.add(1);
        Ok(NonNull::slice_from_raw_parts(block, layout.size()))
    }

    unsafe fn deallocate(&self, block: NonNull<u8>, layout: Layout) {
        if layout.size() == 0 {
            return;
        }
        let _there = lock();
        // SAFETY: there is a heap, that the block is from, and the lock is held.
        let talc = unsafe { &mut *state() };
        // SAFETY: `allocate` gave it out, in this process or in the one that was saved, says the caller.
        unsafe { talc.deallocate(block.as_ptr(), layout) };
        FREED.add(1);
    }
}
