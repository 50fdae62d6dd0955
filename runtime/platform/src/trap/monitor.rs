//! Messages of a userfaultfd, for accesses that a signal cannot serve: the kernel's own, and a guest's.

use crate::host::Host;
use crate::mmu::uffd::UffdMmu;
use crate::section::Slot;
use crate::sys::uffd::{PageFaultMsg, bits};
use crate::sys::{Errno, file};
use crate::vmatree;
use softfault_mm::ctx::Ctx;
use softfault_mm::fault;
use softfault_mm::page::{PAGE_SIZE, page_align_down};
use softfault_mm::types::{FaultFlags, VmFaultReason};
use softfault_mm::vmstat::Event;

/// Serves messages until `stop_fd` becomes readable. Runs on its own thread, which must be a registered helper.
///
/// # Errors
/// The kernel's, when the descriptor can no longer be read.
pub fn serve(mmu: &UffdMmu, stop_fd: i32) -> Result<(), Errno> {
    let mut messages = [PageFaultMsg::default(); 16];
    loop {
        let ready = match file::poll_in([mmu.uffd().fd(), stop_fd], -1) {
            Err(Errno::EINTR) => continue,
            r => r?,
        };
        if ready & 2 != 0 {
            return Ok(());
        }
        let nr = mmu.uffd().read(&mut messages)?;
        for message in messages.iter().take(nr).filter(|m| m.event == bits::EVENT_PAGEFAULT) {
            serve_one(mmu, message);
        }
    }
}

/// Resolves one message, or plants poison, so that neither a thread nor a system call waits for ever.
fn serve_one(mmu: &UffdMmu, message: &PageFaultMsg) {
    let page = page_align_down(message.address);
    let Ok(slot) = Slot::enter_patiently() else { return };
    let ctx = Ctx::thread(slot.stripe());
    let mut flags = FaultFlags::ALLOW_RETRY;
    if message.flags & (bits::PAGEFAULT_FLAG_WRITE | bits::PAGEFAULT_FLAG_WP) != 0 {
        flags |= FaultFlags::WRITE;
    }
    let stat = slot.section(|| {
        let arena = vmatree::arena_of(page)?;
        vmatree::arena_info(&slot, arena).map(|(_, stat)| vmatree::outlives_fault(stat))
    });
    let host = Host::new(slot, false);
    let r = fault::do_user_addr_fault(host.env(), &ctx, page, flags);
    drop(host);
    if let Some(stat) = stat {
        stat.add(ctx.stripe, Event::MONITOR_MSG, 1);
    }
    if r.is_none_or(|r| r.intersects(VmFaultReason::ERROR))
        && mmu.uffd().poison(page, PAGE_SIZE) == crate::sys::uffd::Filled::All
    {
        if let Some(stat) = stat {
            stat.add(ctx.stripe, Event::MONITOR_POISON, 1);
        }
        return;
    }
    // Also when the page was mapped already, or the range is the kernel's by now: who waits looks again.
    mmu.uffd().wake(page, PAGE_SIZE);
}
