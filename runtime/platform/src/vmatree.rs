//! The published address space: from an address to its vma in a few loads, without a lock.
//!
//! ```text
//! page map   one u32 for each 2 MiB of the address space      -> arena slot; in leaves of 32 GiB, or one word for those
//! granules   one u64 for each 2 MiB of an arena               -> vma, or a split table; or one for each GiB -> vma
//! split      one u32 for each 4 KiB of a granule that is shared by several vmas
//! records    the vmas themselves
//! lists      for each object the vmas that map it, shared and private: who is next, by vma number
//! ```
//! The tables are process-wide, since signal dispositions are, and are never unmapped. The control plane writes them
//! under one lock (the caller's); handlers read them inside a section. An entry that is cleared or replaced may be
//! reused only after [`crate::section::synchronize`].
//!
//! # Context: handler (lookup)

mod granules;
mod lists;
mod lookup;
mod page_map;
mod publish;
mod tables;

pub use granules::{granule_words, next_split};
pub use lists::{Lists, rmap_add, rmap_remove};
pub use lookup::{arena_info, arena_of, overlaps_arena, with_vma};
pub(crate) use lookup::{delegation, each_exposable, mapping, outlives_fault};
pub(crate) use publish::arenas_end;
pub use publish::{
    ArenaFacts, SplitPool, each_arena, join_granule, publish_arena, publish_delegation, publish_mapping, publish_range,
    split_granule, withdraw_arena, write_vma,
};
pub use tables::{NR_ARENAS, NR_DELEGATIONS, NR_MAPPINGS, NR_SPLITS, NR_VMAS, Numbered, Trap, init, table_bytes_min};

/// The first address behind what an arena may cover.
pub const ADDRESS_END: usize = 1 << page_map::ADDRESS_BITS;
