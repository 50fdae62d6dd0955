//! Words of the crate's interface that every floor uses, and that have no state: accesses, rights, advice.
//!
//! # Context: any: words

use softfault_mm::readahead::Mode;

/// The kind of access to a page.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// A load.
    Read,
    /// A store.
    Write,
}

/// What a mapping permits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Prot {
    /// Nothing.
    None,
    /// Loads.
    Read,
    /// Loads and stores.
    ReadWrite,
}

/// Whom stores reach.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sharing {
    /// The object, and every other mapping of it.
    Shared,
    /// This mapping alone.
    Private,
}

/// How a range will be used, or what is to be done with it now. Linux: `MADV_*`, `POSIX_FADV_*`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Advice {
    /// Nothing is known: streams are recognised.
    Normal,
    /// It is read in ascending order: windows of twice the size, from the first miss on.
    Sequential,
    /// It is read in no order: a miss reads what is asked for, and nothing else.
    Random,
    /// It is needed soon: the fillers read what is missing; nobody waits for them. A hint: it stops at the cache's
    /// limit, and does nothing where pages are never read ahead (see
    /// [`RuntimeBuilder::readahead_pages`](crate::RuntimeBuilder::readahead_pages)).
    WillNeed,
    /// It is not needed soon: page-table entries of shared mappings go, the pages stay cached; the next touch is a minor
    /// fault. To an arena's private mappings it is the same, and **what was written to them is gone**: the next touch shows
    /// the object.
    DontNeed,
    /// Its pages are the first to go when room is needed, unless they are touched before; until then they stay cached. A
    /// hint: what is pinned or busy stays as it is.
    Cold,
    /// Its pages leave the cache now, dirty ones by way of the store (they are written, not flushed). What is pinned or
    /// busy, held dirty, or dirty and has nowhere to go, stays.
    PageOut,
    /// It is made resident now, as loads would: cached, and mapped where the advice is to an arena.
    PopulateRead,
    /// It is made resident now, as stores would, without changing a byte: cached and dirty, and mapped for stores where
    /// the advice is to an arena.
    PopulateWrite,
}

impl Advice {
    /// Returns how pages are read under this advice; `None`: it is about what is to be done now.
    pub(crate) fn mode(self) -> Option<Mode> {
        match self {
            Self::Normal => Some(Mode::Normal),
            Self::Sequential => Some(Mode::Sequential),
            Self::Random => Some(Mode::Random),
            Self::WillNeed | Self::DontNeed | Self::Cold | Self::PageOut | Self::PopulateRead | Self::PopulateWrite => {
                None
            }
        }
    }
}

/// What [`Object::invalidate`](crate::Object::invalidate) did, in pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Invalidated {
    /// Dropped: the next touch asks the store.
    pub dropped: u64,
    /// Kept, because they were written and not written back yet, or are pinned.
    pub kept: u64,
}
