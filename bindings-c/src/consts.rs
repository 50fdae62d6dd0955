//! Numbers of the ABI. Where Linux has a number for it, it is Linux's.
//!
//! # Context: control plane

use softfault::{Access, Advice, Delivery, FailurePolicy, FaultFlags, Prot, Sharing, VmFaultReason};

/// The version of this header. Compare it with softfault_abi_version(): a library serves a program whose version is not
/// greater than its own.
pub const SOFTFAULT_ABI_VERSION: u32 = 1;

/// The cache's limit cannot be met, or there is no memory.
pub const SOFTFAULT_VM_FAULT_OOM: u32 = 0x0001;
/// Past the end of the object, or the store failed.
pub const SOFTFAULT_VM_FAULT_SIGBUS: u32 = 0x0002;
/// The page came from the store.
pub const SOFTFAULT_VM_FAULT_MAJOR: u32 = 0x0004;
/// The page's content failed its check.
pub const SOFTFAULT_VM_FAULT_HWPOISON: u32 = 0x0010;
/// A huge page's content failed its check. Carried: never set here.
pub const SOFTFAULT_VM_FAULT_HWPOISON_LARGE: u32 = 0x0020;
/// The mapping does not permit the access.
pub const SOFTFAULT_VM_FAULT_SIGSEGV: u32 = 0x0040;
/// The page is mapped already; nothing more to do.
pub const SOFTFAULT_VM_FAULT_NOPAGE: u32 = 0x0100;
/// Fault found its page, and it is pinned.
pub const SOFTFAULT_VM_FAULT_LOCKED: u32 = 0x0200;
/// Something must be done first; the fault is made again.
pub const SOFTFAULT_VM_FAULT_RETRY: u32 = 0x0400;
/// No huge mapping; page by page.
pub const SOFTFAULT_VM_FAULT_FALLBACK: u32 = 0x0800;
/// The private copy has been made.
pub const SOFTFAULT_VM_FAULT_DONE_COW: u32 = 0x1000;
/// The page's block must be durable before the first store to it.
pub const SOFTFAULT_VM_FAULT_NEEDDSYNC: u32 = 0x2000;
/// Done, and the thread is to wait for write-back.
pub const SOFTFAULT_VM_FAULT_COMPLETED: u32 = 0x4000;
/// Cached, and a delegate has not been told yet. Never set by a library without userfaultfd.
pub const SOFTFAULT_VM_FAULT_UFFD_MINOR: u32 = 0x8000;
/// Size of a huge page. Carried: never set here.
pub const SOFTFAULT_VM_FAULT_HINDEX_MASK: u32 = 0x000f_0000;
/// Any bit with which the access fails.
pub const SOFTFAULT_VM_FAULT_ERROR: u32 = 0x0873;

/// The access is a store.
pub const SOFTFAULT_FAULT_FLAG_WRITE: u32 = 0x1;
/// SOFTFAULT_VM_FAULT_RETRY may be answered.
pub const SOFTFAULT_FAULT_FLAG_ALLOW_RETRY: u32 = 0x4;
/// Do not sleep.
pub const SOFTFAULT_FAULT_FLAG_RETRY_NOWAIT: u32 = 0x8;
/// Not the first attempt.
pub const SOFTFAULT_FAULT_FLAG_TRIED: u32 = 0x20;
/// An instruction in user mode made the access.
pub const SOFTFAULT_FAULT_FLAG_USER: u32 = 0x40;
/// Another thread than the one that waits resolves it.
pub const SOFTFAULT_FAULT_FLAG_REMOTE: u32 = 0x80;
/// An instruction fetch.
pub const SOFTFAULT_FAULT_FLAG_INSTRUCTION: u32 = 0x100;

/// Nothing is permitted.
pub const SOFTFAULT_PROT_NONE: u32 = 0;
/// Loads are permitted.
pub const SOFTFAULT_PROT_READ: u32 = 1;
/// Stores are permitted; only together with SOFTFAULT_PROT_READ.
pub const SOFTFAULT_PROT_WRITE: u32 = 2;

/// Stores reach the object, and every other mapping of it.
pub const SOFTFAULT_MAP_SHARED: u32 = 1;
/// Stores reach this mapping alone.
pub const SOFTFAULT_MAP_PRIVATE: u32 = 2;

/// A load.
pub const SOFTFAULT_ACCESS_READ: u32 = 0;
/// A store.
pub const SOFTFAULT_ACCESS_WRITE: u32 = 1;

/// The best that can be had: in-thread, else SIGSEGV; the monitor where kernel access is asked for.
pub const SOFTFAULT_DELIVERY_AUTO: u32 = 0;
/// userfaultfd and SIGBUS: the faulting thread resolves its own fault.
pub const SOFTFAULT_DELIVERY_IN_THREAD: u32 = 1;
/// Protection and SIGSEGV: works everywhere, exposes a granule at once.
pub const SOFTFAULT_DELIVERY_SEGV: u32 = 2;
/// A userfaultfd monitor thread: serves system calls too.
pub const SOFTFAULT_DELIVERY_MONITOR: u32 = 3;

/// A page that the store cannot give raises SIGBUS, until a later touch finds the store well. The default.
pub const SOFTFAULT_FAILURE_POISON: u32 = 0;
/// It reads as zeros, and stays so.
pub const SOFTFAULT_FAILURE_ZERO: u32 = 1;
/// The process ends, with a line on standard error.
pub const SOFTFAULT_FAILURE_ABORT: u32 = 2;

/// Nothing is known: streams are recognised.
pub const SOFTFAULT_ADVICE_NORMAL: u32 = 0;
/// Read in no order: nothing is read ahead.
pub const SOFTFAULT_ADVICE_RANDOM: u32 = 1;
/// Read in ascending order: far ahead.
pub const SOFTFAULT_ADVICE_SEQUENTIAL: u32 = 2;
/// Needed soon: read in the background. A hint.
pub const SOFTFAULT_ADVICE_WILLNEED: u32 = 3;
/// Not needed soon: page-table entries of shared mappings go, the pages stay cached.
pub const SOFTFAULT_ADVICE_DONTNEED: u32 = 4;
/// The first pages to go when room is needed.
pub const SOFTFAULT_ADVICE_COLD: u32 = 20;
/// Leaves the cache now, dirty pages by way of the store.
pub const SOFTFAULT_ADVICE_PAGEOUT: u32 = 21;
/// Made resident now, as loads would.
pub const SOFTFAULT_ADVICE_POPULATE_READ: u32 = 22;
/// Made resident now, as stores would.
pub const SOFTFAULT_ADVICE_POPULATE_WRITE: u32 = 23;

/// For a number in an option structure where 0 means the default, and none or nothing is wanted.
pub const SOFTFAULT_OFF: u32 = u32::MAX;

const _: () = {
    let bits = [
        (SOFTFAULT_VM_FAULT_OOM, VmFaultReason::OOM),
        (SOFTFAULT_VM_FAULT_SIGBUS, VmFaultReason::SIGBUS),
        (SOFTFAULT_VM_FAULT_MAJOR, VmFaultReason::MAJOR),
        (SOFTFAULT_VM_FAULT_HWPOISON, VmFaultReason::HWPOISON),
        (SOFTFAULT_VM_FAULT_HWPOISON_LARGE, VmFaultReason::HWPOISON_LARGE),
        (SOFTFAULT_VM_FAULT_SIGSEGV, VmFaultReason::SIGSEGV),
        (SOFTFAULT_VM_FAULT_NOPAGE, VmFaultReason::NOPAGE),
        (SOFTFAULT_VM_FAULT_LOCKED, VmFaultReason::LOCKED),
        (SOFTFAULT_VM_FAULT_RETRY, VmFaultReason::RETRY),
        (SOFTFAULT_VM_FAULT_FALLBACK, VmFaultReason::FALLBACK),
        (SOFTFAULT_VM_FAULT_DONE_COW, VmFaultReason::DONE_COW),
        (SOFTFAULT_VM_FAULT_NEEDDSYNC, VmFaultReason::NEEDDSYNC),
        (SOFTFAULT_VM_FAULT_COMPLETED, VmFaultReason::COMPLETED),
        (SOFTFAULT_VM_FAULT_HINDEX_MASK, VmFaultReason::HINDEX_MASK),
        (SOFTFAULT_VM_FAULT_ERROR, VmFaultReason::ERROR),
    ];
    let mut i = 0;
    while i < bits.len() {
        assert!(bits[i].0 == bits[i].1.0);
        i += 1;
    }
    let uffd_minor = if cfg!(feature = "userfaultfd") { SOFTFAULT_VM_FAULT_UFFD_MINOR } else { 0 };
    assert!(uffd_minor == VmFaultReason::UFFD_MINOR.0);
    let flags = [
        (SOFTFAULT_FAULT_FLAG_WRITE, FaultFlags::WRITE),
        (SOFTFAULT_FAULT_FLAG_ALLOW_RETRY, FaultFlags::ALLOW_RETRY),
        (SOFTFAULT_FAULT_FLAG_RETRY_NOWAIT, FaultFlags::RETRY_NOWAIT),
        (SOFTFAULT_FAULT_FLAG_TRIED, FaultFlags::TRIED),
        (SOFTFAULT_FAULT_FLAG_USER, FaultFlags::USER),
        (SOFTFAULT_FAULT_FLAG_REMOTE, FaultFlags::REMOTE),
        (SOFTFAULT_FAULT_FLAG_INSTRUCTION, FaultFlags::INSTRUCTION),
    ];
    let mut i = 0;
    while i < flags.len() {
        assert!(flags[i].0 == flags[i].1.0);
        i += 1;
    }
};

pub(crate) fn prot(n: u32) -> Option<Prot> {
    match n {
        SOFTFAULT_PROT_NONE => Some(Prot::None),
        SOFTFAULT_PROT_READ => Some(Prot::Read),
        n if n == SOFTFAULT_PROT_READ | SOFTFAULT_PROT_WRITE => Some(Prot::ReadWrite),
        _ => None,
    }
}

pub(crate) fn sharing(n: u32) -> Option<Sharing> {
    match n {
        SOFTFAULT_MAP_SHARED => Some(Sharing::Shared),
        SOFTFAULT_MAP_PRIVATE => Some(Sharing::Private),
        _ => None,
    }
}

pub(crate) fn access(n: u32) -> Option<Access> {
    match n {
        SOFTFAULT_ACCESS_READ => Some(Access::Read),
        SOFTFAULT_ACCESS_WRITE => Some(Access::Write),
        _ => None,
    }
}

pub(crate) fn delivery(n: u32) -> Option<Delivery> {
    match n {
        SOFTFAULT_DELIVERY_AUTO => Some(Delivery::Auto),
        SOFTFAULT_DELIVERY_IN_THREAD => Some(Delivery::InThread),
        SOFTFAULT_DELIVERY_SEGV => Some(Delivery::Segv),
        SOFTFAULT_DELIVERY_MONITOR => Some(Delivery::Monitor),
        _ => None,
    }
}

pub(crate) fn delivery_number(mode: Delivery) -> u32 {
    match mode {
        Delivery::Auto => SOFTFAULT_DELIVERY_AUTO,
        Delivery::InThread => SOFTFAULT_DELIVERY_IN_THREAD,
        Delivery::Segv => SOFTFAULT_DELIVERY_SEGV,
        Delivery::Monitor => SOFTFAULT_DELIVERY_MONITOR,
    }
}

pub(crate) fn policy(n: u32) -> Option<FailurePolicy> {
    match n {
        SOFTFAULT_FAILURE_POISON => Some(FailurePolicy::Poison),
        SOFTFAULT_FAILURE_ZERO => Some(FailurePolicy::Zero),
        SOFTFAULT_FAILURE_ABORT => Some(FailurePolicy::Abort),
        _ => None,
    }
}

pub(crate) fn advice(n: u32) -> Option<Advice> {
    match n {
        SOFTFAULT_ADVICE_NORMAL => Some(Advice::Normal),
        SOFTFAULT_ADVICE_RANDOM => Some(Advice::Random),
        SOFTFAULT_ADVICE_SEQUENTIAL => Some(Advice::Sequential),
        SOFTFAULT_ADVICE_WILLNEED => Some(Advice::WillNeed),
        SOFTFAULT_ADVICE_DONTNEED => Some(Advice::DontNeed),
        SOFTFAULT_ADVICE_COLD => Some(Advice::Cold),
        SOFTFAULT_ADVICE_PAGEOUT => Some(Advice::PageOut),
        SOFTFAULT_ADVICE_POPULATE_READ => Some(Advice::PopulateRead),
        SOFTFAULT_ADVICE_POPULATE_WRITE => Some(Advice::PopulateWrite),
        _ => None,
    }
}
