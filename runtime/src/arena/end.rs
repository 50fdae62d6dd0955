//! The end of an arena: the handlers forget it, and its address space goes back.
//!
//! # Context: whoever drops the last reference: control plane

#![expect(unsafe_code, reason = "gives the arena's address space back")]

use super::state::{ArenaInner, table_bytes};
use super::unmap;
use crate::process::registry;
use softfault_mm::sync::Ordering;
use softfault_platform::sys::mem;
use softfault_platform::vmatree;

impl Drop for ArenaInner {
    fn drop(&mut self) {
        if self.pid != std::process::id() {
            // A forked child has no arena: its address space may hold something else by now.
            // The lock may have been held by a thread that does not exist here: it is not taken.
            self.vmas.get_mut().forget();
            return;
        }
        unmap::wait_for_reads(self, &(0..self.len_bytes));
        let old = unmap::take_out_all(self, &mut self.vmas());
        let mut registry = registry::lock();
        vmatree::withdraw_arena(self.slot);
        registry.arenas.put(self.slot);
        drop(registry);
        // SAFETY: reserved by `build`; withdrawn and drained, so neither handlers nor mappings use it.
        let gone = unsafe { mem::release(self.base, self.len_bytes) };
        unmap::end_vmas(self, old, gone);
        self.rt.arena_table_bytes.fetch_sub(table_bytes(self.extents.lend().len()), Ordering::Relaxed);
    }
}
