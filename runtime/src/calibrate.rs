//! The one stage that a fault cannot time itself: from the touching instruction to the handler.
//!
//! The handler does not know when the instruction ran. So it is measured beforehand, on pages of an arena of our own
//! whose touches are stamped; the observations go into the `delivery` stage of the histogram.
//!
//! # Context: control plane

#![expect(unsafe_code, reason = "touches pages of an arena made for it")]

use crate::arena::ArenaBuilder;
use crate::cache::state::RuntimeInner;
use crate::delivery::Delivery;
use crate::error::Result;
use crate::object::ObjectBuilder;
use crate::types::{Prot, Sharing};
use softfault_mm::vmstat::Stage;
use softfault_platform::sys::signal::{self, SIGBUS, SIGSEGV, mask_bit};
use softfault_platform::sys::thread;
use softfault_platform::trap::entry;
use std::sync::Arc;

const NR_PAGES: usize = 64;

/// Measures `mode` and records it; the calling thread's own signals must be open, else nothing is measured.
pub(crate) fn measure_delivery(rt: &Arc<RuntimeInner>, mode: Delivery) -> Result<u64> {
    if signal::block(0) & (mask_bit(SIGBUS) | mask_bit(SIGSEGV)) != 0 {
        return Ok(0);
    }
    let len = NR_PAGES * 4096;
    let object = ObjectBuilder::new(Arc::clone(rt), len as u64).anonymous()?;
    let arena = ArenaBuilder::new(Arc::clone(rt), len)
        .delivery(mode)
        .fault_around(false)
        .native_extents(false)
        .granule(4096)
        .build()?;
    arena.map(0, &object, 0, len, Prot::Read, Sharing::Shared)?;
    object.populate(0..len as u64)?;
    let mut nr = 0;
    for page in 0..NR_PAGES {
        let at = arena.as_ptr().wrapping_add(page * 4096);
        entry::stamp_next();
        let touched = thread::rdtsc();
        // SAFETY: mapped readable above, in an arena that only this function knows.
        let _ = unsafe { at.read_volatile() };
        let entered = entry::take_stamp();
        if entered > touched {
            rt.stat.stage(0, Stage::Delivery, entered - touched);
            nr += 1;
        }
    }
    Ok(nr)
}
