//! The words of a fault: `vm_fault_reason`, `fault_flag`, `vm_flags`.
//!
//! Names and numeric values are Linux's (`include/linux/mm_types.h`, `include/linux/mm.h`), so that a trace of ours
//! and one of the kernel's read alike, and so that the C header can promise them.
//!
//! # Context: handler

use crate::errno::Errno;
use core::fmt;
use core::ops::{BitAnd, BitOr, BitOrAssign, Not};

macro_rules! bits {
    ($(#[$doc:meta])* $name:ident: $repr:ty { $($(#[$bdoc:meta])* $bit:ident = $value:expr;)* }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, Default, Hash)]
        #[repr(transparent)]
        pub struct $name(pub $repr);

        impl $name {
            $($(#[$bdoc])* pub const $bit: $name = $name($value);)*

            /// Every named bit with its name, in ascending order of value; zero bits are left out.
            pub const NAMES: &[(&'static str, $name)] = &[$((stringify!($bit), $name($value)),)*];

            /// No bit set.
            #[must_use = "nothing is changed in place"]
            pub const fn empty() -> Self { $name(0) }
            /// Returns whether no bit is set.
            #[must_use]
            pub const fn is_empty(self) -> bool { self.0 == 0 }
            /// Returns whether any bit of `other` is set in `self`.
            #[inline(always)]
            #[must_use]
            pub const fn intersects(self, other: Self) -> bool { self.0 & other.0 != 0 }
            /// Returns whether every bit of `other` is set in `self`.
            #[inline(always)]
            #[must_use]
            pub const fn contains(self, other: Self) -> bool { self.0 & other.0 == other.0 }
            /// Returns the bits of both.
            #[must_use = "nothing is changed in place"]
            pub const fn union(self, other: Self) -> Self { $name(self.0 | other.0) }
            /// Returns `self` without the bits of `other`.
            #[must_use = "nothing is changed in place"]
            pub const fn without(self, other: Self) -> Self { $name(self.0 & !other.0) }
        }
        impl BitOr for $name { type Output = Self; fn bitor(self, o: Self) -> Self { $name(self.0 | o.0) } }
        impl BitAnd for $name { type Output = Self; fn bitand(self, o: Self) -> Self { $name(self.0 & o.0) } }
        impl Not for $name { type Output = Self; fn not(self) -> Self { $name(!self.0) } }
        impl BitOrAssign for $name { fn bitor_assign(&mut self, o: Self) { self.0 |= o.0; } }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                let mut first = true;
                for (name, bit) in Self::NAMES {
                    if bit.0.count_ones() == 1 && self.intersects(*bit) {
                        if !first { f.write_str("|")?; }
                        f.write_str(name)?;
                        first = false;
                    }
                }
                if first { f.write_str("0") } else { Ok(()) }
            }
        }
    };
}

bits! {
    /// What a fault came to: Linux's `enum vm_fault_reason`, plus `UFFD_MINOR`.
    ///
    /// Several bits may be set at once (`MAJOR | RETRY`). Empty means: handled, the instruction may run again.
    /// `runtime/README.md` has the table of who produces and who consumes each bit.
    #[must_use]
    VmFaultReason: u32 {
        /// Memory or the cache's limit is exhausted.
        OOM = 0x0001;
        /// Bad access: past the end of the object, or the store failed.
        SIGBUS = 0x0002;
        /// The page came from the store.
        MAJOR = 0x0004;
        /// The page's content failed its check, or an invariant of the cache is broken.
        HWPOISON = 0x0010;
        /// Linux: poisoned huge page. Carried: huge folios are never poisoned whole here.
        HWPOISON_LARGE = 0x0020;
        /// The vma does not permit the access, or there is none.
        SIGSEGV = 0x0040;
        /// The page table is as it should be (installed by the step itself, or by another thread).
        NOPAGE = 0x0100;
        /// `fault` returns its folio pinned.
        LOCKED = 0x0200;
        /// The section must be left before the fault can go on (fill, wait, delegate).
        RETRY = 0x0400;
        /// A huge mapping is not possible; do it page by page.
        FALLBACK = 0x0800;
        /// The private copy was made by the step itself.
        DONE_COW = 0x1000;
        /// The store must make the page's block durable before the first store instruction lands.
        NEEDDSYNC = 0x2000;
        /// Handled, and the thread is to wait for write-back. Linux: handled, and the lock was dropped meanwhile.
        COMPLETED = 0x4000;
        /// `fault` changed no page table; the core must call `handle_userfault` (0 without the feature).
        UFFD_MINOR = UFFD_MINOR_VALUE;
        /// Linux: huge page size index. Carried.
        HINDEX_MASK = 0x000f_0000;
        /// Any bit that makes the access fail or fall back: `VM_FAULT_ERROR`.
        ERROR = 0x0873;
    }
}

/// The value of [`VmFaultReason::UFFD_MINOR`]: the free bit of `vm_fault_reason`, or 0 without `userfaultfd`, so that
/// `r & UFFD_MINOR` is constant and the compiler drops the test with its consequences.
pub const UFFD_MINOR_VALUE: u32 = if cfg!(feature = "userfaultfd") { 0x8000 } else { 0 };

impl VmFaultReason {
    /// Returns whether what `fault` returned is a combination the walk understands, given whether it set a folio.
    ///
    /// Postconditions of every `VmOps::fault` (checked after each call in debug builds):
    /// - an error is final: `ERROR` and `RETRY` exclude each other;
    /// - a folio is returned if and only if it is pinned: `LOCKED`;
    /// - `NOPAGE` means that the page table needs nothing more: no folio beside it.
    ///
    /// # Context: handler
    #[must_use]
    pub fn check(self, has_folio: bool) -> bool {
        let exclusive = !(self.intersects(Self::ERROR) && self.intersects(Self::RETRY));
        let pinned = self.intersects(Self::LOCKED) == has_folio;
        let nopage = !(self.intersects(Self::NOPAGE) && has_folio);
        exclusive && pinned && nopage
    }
}

bits! {
    /// How the access was made: Linux's `enum fault_flag`.
    #[must_use]
    FaultFlags: u32 {
        /// A store.
        WRITE = 1 << 0;
        /// The fault may come back with `RETRY`.
        ALLOW_RETRY = 1 << 2;
        /// Do not sleep: what is not in the cache is `RETRY`.
        RETRY_NOWAIT = 1 << 3;
        /// Not the first attempt.
        TRIED = 1 << 5;
        /// A user-mode instruction raised it (not a system call, not `fault_in`).
        USER = 1 << 6;
        /// Resolved by another thread than the one that waits for it.
        REMOTE = 1 << 7;
        /// An instruction fetch.
        INSTRUCTION = 1 << 8;
    }
}

bits! {
    /// What a vma is and permits. The low bits are Linux's `VM_*`; those from bit 16 up are ours.
    #[must_use]
    VmFlags: u32 {
        /// Loads are permitted.
        READ = 0x1;
        /// Stores are permitted.
        WRITE = 0x2;
        /// Stores reach the object.
        SHARED = 0x8;
        /// `protect` may add WRITE: such a vma is registered for write protection from the start.
        MAYWRITE = 0x20;
        /// First touches of cached pages are told to a delegate.
        UFFD_MINOR = 1 << 16;
        /// The first store to each page is noted by the kernel (`WP_ASYNC`): no fault.
        WP_ASYNC = 1 << 17;
        /// The first store to each page faults and runs `page_mkwrite`.
        WP_SYNC = 1 << 18;
        /// Synchronous persistence, as `MAP_SYNC`: `NEEDDSYNC` before the first store.
        SYNC = 1 << 19;
        /// Extents may be handed to the kernel.
        NATIVE_OK = 1 << 20;
        /// A whole granule is exposed at once, by protection (SIGSEGV delivery).
        GRANULE = 1 << 21;
        /// Read in no order: one page a fault, nothing around it.
        RAND_READ = 1 << 22;
        /// Ask the delegate before `fault`, by `VmOps::get_folio_noalloc` (the kernel's later design).
        UFFD_LOOKUP_FIRST = 1 << 23;
        /// Read in ascending order: read far ahead.
        SEQ_READ = 1 << 24;
        /// Fault-around is off: what a fault reads is mapped page by page.
        MAP_SINGLE = 1 << 25;
        /// What is mapped here is being exchanged: whoever touches it waits.
        CHANGING = 1 << 26;
        /// Stores of it can be held by a capture: each first store faults, and each fault looks for one.
        CAPTURABLE = 1 << 27;
        /// A file is mapped there itself: the kernel serves it.
        DIRECT = 1 << 28;
    }
}

impl VmFlags {
    /// Returns whether stores reach the object and are permitted, now or after `protect`.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn may_write_shared(self) -> bool {
        self.contains(VmFlags::SHARED.union(VmFlags::MAYWRITE))
    }
}

/// Why a page could not be had: what its store said, or what of ours was in the way.
///
/// The first six are verdicts about a page, kept in the folio word of a poisoned one ([`FillError::code`]); the others are
/// found by the walk of one access.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[non_exhaustive]
pub enum FillError {
    /// The store reported an error, or could not do what was asked (`EOPNOTSUPP`).
    Io(Errno),
    /// The store ended before the object did.
    Short,
    /// The content failed its check.
    Corrupt,
    /// The store did not answer before the deadline.
    Deadline,
    /// No memory for the page, or for its page table.
    NoMemory,
    /// A delegate refused the page, or an access that the runtime must not make.
    Refused,
    /// The cache's limit is reached, or the object's own, and nothing can leave.
    CacheFull,
    /// The access lies past the end of the object.
    PastEnd,
    /// The page has as many pins as a page can have.
    NoPins,
    /// The mapping does not permit the access.
    NotPermitted,
    /// Nothing is mapped there.
    NotMapped,
    /// The cache's memory is not what its words say.
    Broken,
}

impl FillError {
    /// Returns the error in 16 bits, never 0: its number, and the errno above it.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            // An errno has 12 bits: the kernel returns -4095 to -1.
            Self::Io(errno) => 1 | ((errno.0.unsigned_abs() & 0xfff) as u16) << 4,
            Self::Short => 2,
            Self::Corrupt => 3,
            Self::Deadline => 4,
            Self::NoMemory => 5,
            Self::Refused => 6,
            Self::CacheFull => 7,
            Self::PastEnd => 8,
            Self::NoPins => 9,
            Self::NotPermitted => 10,
            Self::NotMapped => 11,
            Self::Broken => 12,
        }
    }

    /// Returns the error that `code` stands for; `EIO` for one that is none.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        match code & 0xf {
            1 => Self::Io(Errno((code >> 4) as i32)),
            2 => Self::Short,
            3 => Self::Corrupt,
            4 => Self::Deadline,
            5 => Self::NoMemory,
            6 => Self::Refused,
            7 => Self::CacheFull,
            8 => Self::PastEnd,
            9 => Self::NoPins,
            10 => Self::NotPermitted,
            11 => Self::NotMapped,
            12 => Self::Broken,
            _ => Self::Io(Errno::EIO),
        }
    }

    /// Returns the store's error number, if it gave one.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn errno(self) -> Option<Errno> {
        match self {
            Self::Io(errno) => Some(errno),
            _ => None,
        }
    }

    /// Returns what to tell a person; for [`FillError::Io`] the errno's own text.
    ///
    /// # Context: handler
    #[must_use]
    pub const fn text(self) -> &'static str {
        match self {
            Self::Io(errno) => errno.text(),
            Self::Short => "the store ends before the object",
            Self::Corrupt => "the content failed its check",
            Self::Deadline => "the store did not answer before the deadline",
            Self::NoMemory => "no memory for the page, or for its page table",
            Self::Refused => "refused by the delegate, or by the runtime",
            Self::CacheFull => "the cache is full, and nothing can leave it",
            Self::PastEnd => "past the end of the object",
            Self::NoPins => "the page has as many pins as a page can have",
            Self::NotPermitted => "the mapping does not permit it",
            Self::NotMapped => "nothing is mapped there",
            Self::Broken => "the cache's memory is not what its words say",
        }
    }

    /// Returns the reason bit under which the fault path reports this error. Linux: `vmf_error`, for which a store that
    /// has no memory is out of memory, and one that has no space is not.
    ///
    /// # Context: handler
    pub const fn reason(self) -> VmFaultReason {
        match self {
            Self::Corrupt | Self::Broken => VmFaultReason::HWPOISON,
            Self::NoMemory | Self::CacheFull | Self::NoPins | Self::Io(Errno::ENOMEM) => VmFaultReason::OOM,
            Self::NotPermitted | Self::NotMapped => VmFaultReason::SIGSEGV,
            Self::Io(_) | Self::Short | Self::Deadline | Self::Refused | Self::PastEnd => VmFaultReason::SIGBUS,
        }
    }
}

impl fmt::Display for FillError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(errno) => fmt::Display::fmt(errno, f),
            other => f.write_str(other.text()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reason_values_are_linux_values() {
        let linux = [
            (VmFaultReason::OOM, 0x1),
            (VmFaultReason::SIGBUS, 0x2),
            (VmFaultReason::MAJOR, 0x4),
            (VmFaultReason::HWPOISON, 0x10),
            (VmFaultReason::HWPOISON_LARGE, 0x20),
            (VmFaultReason::SIGSEGV, 0x40),
            (VmFaultReason::NOPAGE, 0x100),
            (VmFaultReason::LOCKED, 0x200),
            (VmFaultReason::RETRY, 0x400),
            (VmFaultReason::FALLBACK, 0x800),
            (VmFaultReason::DONE_COW, 0x1000),
            (VmFaultReason::NEEDDSYNC, 0x2000),
            (VmFaultReason::COMPLETED, 0x4000),
            (VmFaultReason::HINDEX_MASK, 0xf0000),
            (VmFaultReason::ERROR, 0x873),
        ];
        for (bit, value) in linux {
            assert_eq!(bit.0, value, "{bit:?}");
        }
        assert_eq!(VmFaultReason::UFFD_MINOR.0, if cfg!(feature = "userfaultfd") { 0x8000 } else { 0 });
    }

    #[test]
    fn error_is_the_union_of_the_failing_bits() {
        let e = VmFaultReason::OOM
            | VmFaultReason::SIGBUS
            | VmFaultReason::SIGSEGV
            | VmFaultReason::HWPOISON
            | VmFaultReason::HWPOISON_LARGE
            | VmFaultReason::FALLBACK;
        assert_eq!(e, VmFaultReason::ERROR);
    }

    #[test]
    fn an_error_survives_its_code() {
        let io = [Errno::EIO, Errno::ENOSPC, Errno::ECONNRESET, Errno(4095)].map(FillError::Io);
        let others = (2..=12).map(FillError::from_code);
        for error in io.into_iter().chain(others) {
            assert_eq!(FillError::from_code(error.code()), error);
            assert_ne!(error.code(), 0);
            assert!(error.reason().intersects(VmFaultReason::ERROR), "{error}");
        }
        assert_eq!(FillError::Io(Errno::ENOSPC).reason(), VmFaultReason::SIGBUS, "a full disk is no want of memory");
        assert_eq!(FillError::Io(Errno::ENOSPC).to_string(), "No space left on device (ENOSPC 28)");
    }

    #[test]
    fn check_refuses_contradictions() {
        assert!(VmFaultReason::LOCKED.check(true));
        assert!(!VmFaultReason::LOCKED.check(false), "LOCKED without a folio");
        assert!(!VmFaultReason::empty().check(true), "a folio that nobody pinned");
        assert!(!(VmFaultReason::SIGBUS | VmFaultReason::RETRY).check(false), "failed and yet to come");
        assert!(!(VmFaultReason::NOPAGE | VmFaultReason::LOCKED).check(true), "done and yet to do");
        assert!((VmFaultReason::MAJOR | VmFaultReason::RETRY).check(false));
    }
}
