//! Faults that no instruction makes: the walk, made by a call, which has an error where an instruction could only wait.

use super::ArenaInner;
use crate::error::{Result, system};
use crate::types::Access;
use softfault_mm::fault;
use softfault_mm::types::{FaultFlags, FillError, VmFaultReason};
use softfault_platform::host::Host;
use softfault_platform::sys::Errno;

/// What a walk without an instruction found.
#[derive(Default)]
struct Faulted {
    /// `None`: no vma of ours is there.
    reason: Option<VmFaultReason>,
    cause: Option<FillError>,
    /// There was no room to expose the page.
    crowded: bool,
}

/// How often, and with which pauses, a call looks for room to expose its page: other threads may be hiding some, and the
/// program may give mappings back. A fifth of a second.
const CROWDED_ROUNDS: u32 = 100;
const CROWDED_PAUSE: std::time::Duration = std::time::Duration::from_millis(2);

impl ArenaInner {
    /// Resolves a touch of `offset` without touching.
    fn fault_one(&self, offset: usize, access: Access) -> Faulted {
        let Ok(host) = Host::enter() else { return Faulted::default() };
        let ctx = host.ctx();
        let mut flags = FaultFlags::ALLOW_RETRY | FaultFlags::REMOTE;
        if access == Access::Write {
            flags |= FaultFlags::WRITE;
        }
        let reason = fault::do_user_addr_fault(host.env(), &ctx, self.base + offset, flags);
        Faulted { reason, cause: ctx.cause(), crowded: ctx.is_crowded() }
    }

    /// A walk that ran out of attempts is made again: here no instruction does it for us. Nor need it wait for ever: where
    /// the kernel has no mapping to expose the page by, and none can be given back, that is an error after a while.
    pub(super) fn fault_patiently(&self, op: &'static str, at: usize, access: Access) -> Result<()> {
        let mut patience = CROWDED_ROUNDS;
        loop {
            let Faulted { reason, cause, crowded } = self.fault_one(at, access);
            match reason {
                None => return Err(self.fault_error(op, at, access, Some(FillError::NotMapped), None)),
                Some(r) if r.intersects(VmFaultReason::ERROR) => {
                    return Err(self.fault_error(op, at, access, cause, Some(r)));
                }
                Some(r) if !r.intersects(VmFaultReason::RETRY) => return Ok(()),
                Some(_) if crowded && patience == 0 => return Err(system(op, "mprotect")(Errno::ENOMEM)),
                Some(_) if crowded => {
                    patience -= 1;
                    std::thread::sleep(CROWDED_PAUSE);
                }
                Some(_) => {}
            }
        }
    }
}
