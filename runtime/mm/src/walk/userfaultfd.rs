//! `handle_userfault`: the delegation of minor faults. Linux: `fs/userfaultfd.c`.
//!
//! `__do_fault` calls it when `fault` returned `UFFD_MINOR` (the page is cached, nothing was installed). The delegate
//! is called outside the section by whoever gets the [`Telling`]; everybody else sleeps until it has decided.

use crate::cache::filemap;
use crate::claim::Telling;
use crate::delegation::{Delegation, MinorFault, MinorVerdict, Telltale};
use crate::host::Env;
use crate::mapping::Mapping;
use crate::ops::WaitKey;
use crate::page::PAGE_SHIFT;
use crate::types::{FillError, VmFaultReason};
use crate::vma::{VmFault, Work};
use crate::vmstat::Event;

/// Asks the delegate of the fault's page: empty if it may be mapped now, `RETRY` with work or a wait, or `SIGBUS`.
///
/// # Context: handler
// Not inlined, so that a build without the feature can be told from one with it by its symbols.
#[inline(never)]
pub fn handle_userfault(vmf: &mut VmFault<'_>) -> VmFaultReason {
    let Some(delegation) = vmf.vma().delegation else { return VmFaultReason::empty() };
    let index = vmf.address().wrapping_sub(delegation.base) >> PAGE_SHIFT;
    match delegation.begin(index) {
        Telltale::Told => VmFaultReason::empty(),
        Telltale::Refused => vmf.ctx().fail(FillError::Refused),
        Telltale::Telling(seen) => {
            let addr = delegation.word(index).map_or(0, |w| core::ptr::from_ref(w).addr());
            vmf.work = Work::Wait(WaitKey { addr, seen }, u64::MAX);
            VmFaultReason::RETRY
        }
        Telltale::Yours => {
            let claim = filemap::hold(vmf.vma().mapping, vmf.pgoff());
            let index = u32::try_from(index).unwrap_or(0);
            vmf.work = Work::Tell(Telling::new(delegation.id, index, vmf.address(), vmf.is_write(), claim));
            VmFaultReason::RETRY
        }
    }
}

/// Calls the delegate, records its verdict, wakes who waited, and spends the telling.
///
/// # Context: a worker, or a handler if the delegation is handler-safe; no section
pub fn tell(delegation: &Delegation<'_>, mapping: &Mapping<'_>, env: Env<'_>, stripe: usize, telling: Telling) {
    crate::failpoint!(DELEGATE_CALL);
    let wake = |addr: usize| env.park.wake(addr);
    let pgoff = telling.claim().pgoff();
    let fault = MinorFault::new(mapping, pgoff, telling.address(), telling.is_write(), &wake);
    let mut verdict = MinorVerdict::Delay;
    env.mm.in_user_code(true, &mut || verdict = delegation.delegate.minor_fault(&fault));
    mapping.stat.add(stripe, Event::UFFD_MINOR_TOLD, 1);
    let index = telling.index() as usize;
    // When no page is `telling` any more the delegation may go: after `finish` only a number is left of it.
    let sleepers = delegation.word(index).map(|word| core::ptr::from_ref(word).addr());
    delegation.finish(index, verdict);
    sleepers.into_iter().for_each(|addr| env.park.wake(addr));
    filemap::release(mapping, telling.into_claim());
}
