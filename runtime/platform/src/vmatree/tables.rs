//! The tables that numbers lead into, as long as there may be numbers, and open as far as there were any.
//!
//! # Context: handler (lookup); [`init`] and `open`: control plane, under the caller's lock

use crate::sparse::Sparse;
use crate::sys::Errno;
use core::mem::MaybeUninit;
use core::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, AtomicUsize};
use softfault_mm::delegation::Delegation;
use softfault_mm::host::Which;
use softfault_mm::mapping::Mapping;
use softfault_mm::page::EXTENT_PAGES;
use softfault_mm::vma::Vma;
use softfault_mm::vmstat::VmStat;

/// Arenas a process may have at once: each has a few mappings of the kernel's, of which it allows 65,530 by default.
pub const NR_ARENAS: usize = 1 << 15;
/// Vmas a process may have at once.
pub const NR_VMAS: usize = 1 << 20;
/// Granules that several vmas share, at once.
pub const NR_SPLITS: usize = 1 << 16;
/// Objects a process may have at once.
pub const NR_MAPPINGS: usize = 1 << 18;
/// Minor delegations a process may have at once.
pub const NR_DELEGATIONS: usize = 1 << 12;

/// How the faults of an arena arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Trap {
    /// SIGBUS raised by userfaultfd, in the faulting thread.
    Uffd = 1,
    /// SIGSEGV raised by protection, in the faulting thread.
    Segv = 2,
    /// A message to the monitor thread.
    Monitor = 3,
}

/// What a handler knows of an arena before any vma.
#[derive(Debug)]
pub(super) struct ArenaSlot {
    pub(super) base: AtomicUsize,
    pub(super) granules: AtomicPtr<AtomicU64>,
    pub(super) nr_granules: AtomicUsize,
    pub(super) trap: AtomicU32,
    pub(super) stat: AtomicPtr<VmStat>,
}

pub(super) type Record = MaybeUninit<Vma<'static>>;
pub(super) type Split = [AtomicU32; EXTENT_PAGES];
pub(super) type Heads = [AtomicU32; 2];

/// A vma's place in its object's list: numbers plus one, 0 for none.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) next: AtomicU32,
    pub(super) prev: AtomicU32,
}

/// The tables; nothing until [`init`].
pub(super) struct Tables {
    pub(super) arenas: Sparse,
    pub(super) vmas: Sparse,
    pub(super) splits: Sparse,
    pub(super) mappings: Sparse,
    pub(super) delegations: Sparse,
    pub(super) links: Sparse,
    pub(super) heads: Sparse,
}

pub(super) static TABLES: Tables = Tables {
    arenas: Sparse::new(),
    vmas: Sparse::new(),
    splits: Sparse::new(),
    mappings: Sparse::new(),
    delegations: Sparse::new(),
    links: Sparse::new(),
    heads: Sparse::new(),
};

/// What is numbered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Numbered {
    /// Arenas, at most [`NR_ARENAS`].
    Arenas,
    /// Vmas, at most [`NR_VMAS`].
    Vmas,
    /// Split tables, at most [`NR_SPLITS`].
    Splits,
    /// Objects, at most [`NR_MAPPINGS`].
    Mappings,
    /// Delegations, at most [`NR_DELEGATIONS`].
    Delegations,
}

impl Numbered {
    /// The tables that have an entry for each number, with the entry's size.
    fn tables(self) -> [Option<(&'static Sparse, usize)>; 2] {
        match self {
            Self::Arenas => [Some((&TABLES.arenas, size_of::<ArenaSlot>())), None],
            Self::Vmas => [Some((&TABLES.vmas, size_of::<Record>())), Some((&TABLES.links, size_of::<Link>()))],
            Self::Splits => [Some((&TABLES.splits, size_of::<Split>())), None],
            Self::Mappings => {
                [Some((&TABLES.mappings, size_of::<AtomicPtr<()>>())), Some((&TABLES.heads, size_of::<Heads>()))]
            }
            Self::Delegations => [Some((&TABLES.delegations, size_of::<AtomicPtr<()>>())), None],
        }
    }

    /// Returns how many there may be, where the tables may have all they want.
    fn most(self) -> usize {
        match self {
            Self::Arenas => NR_ARENAS,
            Self::Vmas => NR_VMAS,
            Self::Splits => NR_SPLITS,
            Self::Mappings => NR_MAPPINGS,
            Self::Delegations => NR_DELEGATIONS,
        }
    }

    /// Returns the bytes of the tables' entries for one number.
    fn entry_bytes(self) -> usize {
        self.tables().iter().flatten().map(|(_, size)| size).sum()
    }

    /// Makes the entries of `index` accessible.
    ///
    /// # Context: control plane, under the caller's lock
    ///
    /// # Errors
    /// `ENOMEM`: there is no such number, or no memory for the table may be had.
    pub fn open(self, index: u32) -> Result<(), Errno> {
        let to = index as usize + 1;
        self.tables().iter().flatten().try_for_each(|(table, size)| table.open_to(to * size))
    }
}

const ALL: [Numbered; 5] =
    [Numbered::Arenas, Numbered::Vmas, Numbered::Splits, Numbered::Mappings, Numbered::Delegations];

/// The most that the tables are halved: 4,096 vmas, 256 splits, 1,024 objects are left.
const SHIFT_MAX: u32 = 8;

/// Returns how many numbers there are when the tables were halved `shift` times. Few of what there are few stay as they are.
fn scaled(what: Numbered, shift: u32) -> usize {
    if what.most() <= NR_ARENAS { what.most() } else { what.most() >> shift }
}

/// Returns the address space that the tables take, if they were halved `shift` times.
fn table_bytes(shift: u32) -> usize {
    ALL.iter().map(|what| scaled(*what, shift) * what.entry_bytes()).sum()
}

/// Takes the tables' address space, once a process: about 300 MiB, or, where that is more than `budget_bytes`, as much less as
/// can be. Of memory only what is used.
///
/// # Context: control plane, under the caller's lock
///
/// # Errors
/// `ENOMEM` when the address space is limited (`RLIMIT_AS`), `EAGAIN` when it is locked (`RLIMIT_MEMLOCK`).
pub fn init(budget_bytes: usize) -> Result<(), Errno> {
    let shift = (0..SHIFT_MAX).find(|s| table_bytes(*s) <= budget_bytes).unwrap_or(SHIFT_MAX);
    for what in ALL {
        for (table, size) in what.tables().iter().flatten() {
            table.reserve(scaled(what, shift) * size)?;
        }
    }
    Ok(())
}

/// Returns the address space that the tables take at least.
///
/// # Context: control plane
#[must_use]
pub fn table_bytes_min() -> usize {
    table_bytes(SHIFT_MAX)
}

/// Returns entry `index` of a table of `T`, if it is open.
///
/// # Safety
/// `table` is one of [`TABLES`]' fields, `T` is what it has entries of, and all-zero memory is a valid `T`.
#[inline]
pub(super) unsafe fn entry<T>(table: &Sparse, index: u32) -> Option<&'static T> {
    let base = table.base();
    // Numbers have 32 bits, so nothing overflows.
    let at = index as usize * size_of::<T>();
    if at + size_of::<T>() > table.open_bytes() {
        return None;
    }
    // SAFETY: the caller's contract; the entry is in the open part, and tables are never closed.
    Some(unsafe { &*((base + at) as *const T) })
}

#[inline]
pub(super) fn arena(slot: u32) -> Option<&'static ArenaSlot> {
    // SAFETY: `arenas` has entries of ArenaSlot, whose fields are atomics: zero is valid.
    unsafe { entry(&TABLES.arenas, slot) }
}

#[inline]
pub(super) fn record(index: u32) -> Option<&'static Record> {
    // SAFETY: `vmas` has entries of Record; a MaybeUninit may hold anything.
    unsafe { entry(&TABLES.vmas, index) }
}

#[inline]
pub(super) fn split(index: u32) -> Option<&'static Split> {
    // SAFETY: `splits` has entries of Split.
    unsafe { entry(&TABLES.splits, index) }
}

#[inline]
pub(super) fn mapping_entry(id: u32) -> Option<&'static AtomicPtr<Mapping<'static>>> {
    // SAFETY: `mappings` has entries of AtomicPtr: zero is null.
    unsafe { entry(&TABLES.mappings, id) }
}

#[inline]
pub(super) fn delegation_entry(id: u32) -> Option<&'static AtomicPtr<Delegation<'static>>> {
    // SAFETY: `delegations` has entries of AtomicPtr: zero is null.
    unsafe { entry(&TABLES.delegations, id) }
}

#[inline]
pub(super) fn link(index: u32) -> Option<&'static Link> {
    // SAFETY: `links` has entries of Link, whose fields are atomics: zero is valid.
    unsafe { entry(&TABLES.links, index) }
}

#[inline]
pub(super) fn head(id: u32, which: Which) -> Option<&'static AtomicU32> {
    // SAFETY: `heads` has entries of two AtomicU32.
    let heads: &Heads = unsafe { entry(&TABLES.heads, id) }?;
    let [shared, private] = heads;
    Some(if which == Which::Shared { shared } else { private })
}

/// In a granule's word: what follows is the number of a split table, and not of a vma.
pub(super) const SPLIT_BIT: u64 = 1;
