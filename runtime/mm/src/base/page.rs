//! Page and extent sizes, and the arithmetic between bytes, pages and extents.
//!
//! Only 4 KiB pages with 2 MiB extents (x86-64) are supported; the platform layer refuses to build elsewhere.
//!
//! # Context: handler

/// log2 of [`PAGE_SIZE`].
pub const PAGE_SHIFT: u32 = 12;
/// Bytes in a page.
pub const PAGE_SIZE: usize = 1 << PAGE_SHIFT;
/// Bits of an address below the page number.
pub const PAGE_MASK: usize = PAGE_SIZE - 1;
/// log2 of [`EXTENT_SIZE`]: what one page-table page (and one PMD) covers.
///
/// Two pages under loom: a model that reads 512 words has too many schedules to walk to its end.
pub const EXTENT_SHIFT: u32 = if cfg!(loom) { PAGE_SHIFT + 1 } else { 21 };
/// Bytes in an extent.
pub const EXTENT_SIZE: usize = 1 << EXTENT_SHIFT;
/// Pages in an extent.
pub const EXTENT_PAGES: usize = EXTENT_SIZE / PAGE_SIZE;

/// Returns the pages that hold `len_bytes` bytes, the last one perhaps partly.
///
/// # Context: handler
#[must_use]
pub const fn pages_of(len_bytes: u64) -> u64 {
    (len_bytes >> PAGE_SHIFT) + (len_bytes & PAGE_MASK as u64 != 0) as u64
}

/// Returns `addr` without its offset in the page.
///
/// # Context: handler
#[must_use]
pub const fn page_align_down(addr: usize) -> usize {
    addr & !PAGE_MASK
}

/// Returns a page offset as an index, saturating where it cannot be one.
///
/// Saturation is safe: every user of the result looks it up with `get`, and no table has `usize::MAX` entries.
///
/// # Context: handler
#[must_use]
#[expect(clippy::cast_possible_truncation, reason = "compared first")]
pub const fn pgoff_index(pgoff: u64) -> usize {
    if pgoff > usize::MAX as u64 { usize::MAX } else { pgoff as usize }
}

/// Returns the chunk (2 MiB of an object) that holds page `pgoff`.
///
/// # Context: handler
#[must_use]
pub const fn chunk_of(pgoff: u64) -> u64 {
    pgoff >> (EXTENT_SHIFT - PAGE_SHIFT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partial_last_page_counts_as_a_page() {
        assert_eq!(pages_of(0), 0);
        assert_eq!(pages_of(1), 1);
        assert_eq!(pages_of(4096), 1);
        assert_eq!(pages_of(4097), 2);
        assert_eq!(pages_of(u64::MAX), 1 << 52, "no overflow at the end of the range");
    }
}
