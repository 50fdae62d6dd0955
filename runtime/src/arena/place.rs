//! Where an arena lies: wherever the kernel has room, or at an address that the caller names; and what else it needs first.
//!
//! # Context: control plane

use crate::by_std;
use crate::error::{Error, Result, system};
use crate::memory;
use softfault_mm::page::EXTENT_SIZE;
use softfault_platform::sys::{Errno, mem};
use softfault_platform::vmatree;
use std::ops::Range;

/// Reserves the arena's address space.
pub(super) fn reserve(at: Option<usize>, len_bytes: usize) -> Result<usize> {
    let op = "ArenaBuilder::build";
    let Some(address) = at else {
        let named =
            |e| memory::check_room(op, (len_bytes + EXTENT_SIZE) as u64).err().unwrap_or_else(|| system(op, "mmap")(e));
        return mem::reserve(len_bytes, EXTENT_SIZE).map_err(named);
    };
    let end = address.checked_add(len_bytes).filter(|end| *end <= vmatree::ADDRESS_END);
    if address == 0 || !address.is_multiple_of(EXTENT_SIZE) || end.is_none() {
        let why = "must be a multiple of 2 MiB, with the arena inside the first 128 TiB";
        return Err(Error::Argument { op, arg: "at", value: address as u64, why });
    }
    mem::reserve_at(address, len_bytes).map(|()| address).map_err(|errno| match errno {
        Errno::EEXIST => Error::AddressInUse { address, len_bytes, by: lowest_in(address..address + len_bytes) },
        errno => system(op, "mmap")(errno),
    })
}

/// Says what is mapped lowest in a range, as /proc/self/maps has it.
fn lowest_in(range: Range<usize>) -> String {
    let maps = by_std::read_to_string("/proc/self/maps").unwrap_or_default();
    let parse = |line: &str| {
        let (from, to) = line.split_whitespace().next()?.split_once('-')?;
        let (from, to) = (usize::from_str_radix(from, 16).ok()?, usize::from_str_radix(to, 16).ok()?);
        let name = line.splitn(6, ' ').nth(5).map_or("", str::trim);
        let name = if name.is_empty() { "anonymous memory" } else { name };
        (from < range.end && range.start < to).then(|| format!("{name} ({from:#x}..{to:#x})"))
    };
    maps.lines().find_map(parse).unwrap_or_else(|| "another mapping".into())
}

/// Opens the userfaultfd contexts that arenas of this kind need.
#[cfg(feature = "userfaultfd")]
pub(super) fn open_contexts(
    registry: &mut crate::process::registry::Registry,
    trap: vmatree::Trap,
    mode: crate::delivery::Delivery,
) -> Result<()> {
    use softfault_platform::mmu::uffd::Kind;
    use vmatree::Trap;
    let kinds: &[Kind] = match trap {
        Trap::Uffd => &[Kind::Async, Kind::Sync],
        Trap::Monitor => &[Kind::Monitor],
        Trap::Segv => &[],
    };
    for kind in kinds {
        registry.context(*kind).map_err(|e| Error::Delivery { mode, why: format!("opening userfaultfd: {e}") })?;
    }
    Ok(())
}
