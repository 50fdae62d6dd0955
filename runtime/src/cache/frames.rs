//! The pool of frames of a runtime's exclusive objects, made when the first of them is.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "lends the pool to objects, which hold the runtime")]

use crate::error::{Error, Result, system};
use crate::lease::Lease;
use crate::process::{mlock, registry};
use softfault_platform::frames::Frames;
use std::sync::{Mutex, PoisonError};

/// The pool, once there is one.
#[derive(Debug, Default)]
pub(crate) struct FramePool(Mutex<Option<Lease<Frames>>>);

impl FramePool {
    /// Returns the frames, and whether the kernel can move pages; `is_locked`: they are to be locked in memory.
    ///
    /// # Errors
    /// [`Error::Delivery`] without userfaultfd, [`Error::System`], and why they cannot be locked.
    ///
    /// # Context: control plane
    pub(crate) fn get(&self, op: &'static str, is_locked: bool) -> Result<(&'static Frames, bool)> {
        let mmu = registry::exclusive_mmu()?;
        let mut pool = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if pool.is_none() {
            let frames = Frames::new(mmu.uffd()).map_err(system(op, "UFFDIO_REGISTER"))?;
            if is_locked {
                let (addr, len) = frames.range();
                mlock::lock_for_good(addr, len).map_err(|refusal| refusal.into_error(op))?;
            }
            *pool = Some(Lease::new(Box::new(frames)));
        }
        let lease = pool.as_ref().ok_or(Error::Exhausted { op, what: "frames" })?;
        // SAFETY: the pool goes with the runtime, which every object holds.
        Ok((unsafe { lease.lend() }, mmu.can_move()))
    }

    /// Returns the pages of exclusive objects: in arenas, and free in the pool. Statistics wait for nobody: none while the
    /// pool is being made.
    pub(crate) fn nr_pages(&self) -> (u64, u64) {
        let pool = self.0.try_lock();
        pool.ok().and_then(|p| p.as_ref().map(|f| (f.nr_mapped(), f.nr_full()))).unwrap_or_default()
    }
}
