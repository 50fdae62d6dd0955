//! Where a session's regions lie: which arenas there are, and which region is where in which.
//!
//! Arenas are of whole 2 MiB, and regions of pages: regions that meet in 2 MiB share an arena. A region that may lie anywhere lies
//! as its pages do in the image, modulo 2 MiB, so that extents of it can be handed to the kernel.
//!
//! # Context: control plane; pure arithmetic

use softfault_image::Region;
use softfault_mm::page::EXTENT_SIZE;

const EXTENT: u64 = EXTENT_SIZE as u64;

/// An arena that is to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Span {
    /// Its address; `None`: anywhere.
    pub(super) at: Option<u64>,
    /// Its length in bytes, whole extents.
    pub(super) len_bytes: u64,
    /// Which regions lie in it, by their number, and from which byte on.
    pub(super) regions: Vec<(usize, u64)>,
}

/// Returns an arena for each region.
pub(super) fn anywhere(regions: &[Region]) -> Vec<Span> {
    let span = |(i, r): (usize, &Region)| {
        let pad = r.offset % EXTENT;
        Span { at: None, len_bytes: (pad + r.len_bytes).next_multiple_of(EXTENT), regions: vec![(i, pad)] }
    };
    regions.iter().enumerate().map(span).collect()
}

/// Returns arenas at the addresses that the regions had; `None`: the last one ends past the last address.
pub(super) fn original(regions: &[Region]) -> Option<Vec<Span>> {
    let mut order: Vec<usize> = (0..regions.len()).collect();
    order.sort_by_key(|i| regions.get(*i).map(|r| r.address));
    let mut spans: Vec<Span> = Vec::new();
    for i in order {
        let region = regions.get(i)?;
        let start = region.address - region.address % EXTENT;
        let end = region.address.checked_add(region.len_bytes)?.checked_next_multiple_of(EXTENT)?;
        match spans.last_mut() {
            Some(last) if last.at.is_some_and(|at| start < at + last.len_bytes) => {
                let at = last.at?;
                last.len_bytes = last.len_bytes.max(end - at);
                last.regions.push((i, region.address - at));
            }
            _ => {
                spans.push(Span { at: Some(start), len_bytes: end - start, regions: vec![(i, region.address - start)] })
            }
        }
    }
    Some(spans)
}

#[cfg(test)]
mod tests {
    use super::*;
    use softfault_image::Prot;

    fn region(address: u64, offset: u64, len_bytes: u64) -> Region {
        Region { name: String::new(), address, offset, len_bytes, prot: Prot::READ }
    }

    #[test]
    fn regions_that_meet_in_an_extent_share_an_arena() {
        let regions = [
            region(0x80_0000, 0, EXTENT),
            region(0x40_1000, EXTENT, 0x1000),
            region(0x50_0000, EXTENT + 0x1000, 0x10_0000),
            region(0x60_0000, 2 * EXTENT, 0x1000),
        ];
        let spans = original(&regions).expect("spans");
        assert_eq!(spans.len(), 3);
        assert_eq!(
            spans[0],
            Span { at: Some(0x40_0000), len_bytes: EXTENT, regions: vec![(1, 0x1000), (2, 0x10_0000)] }
        );
        assert_eq!(spans[1], Span { at: Some(0x60_0000), len_bytes: EXTENT, regions: vec![(3, 0)] });
        assert_eq!(spans[2], Span { at: Some(0x80_0000), len_bytes: EXTENT, regions: vec![(0, 0)] });
        assert_eq!(original(&[region(u64::MAX - 0xfff, 0, 0x1000)]), None);
    }

    #[test]
    fn a_region_that_may_lie_anywhere_lies_as_in_the_image() {
        let spans = anywhere(&[region(0, 0x1000, EXTENT), region(0, 3 * EXTENT, EXTENT)]);
        assert_eq!(spans[0], Span { at: None, len_bytes: 2 * EXTENT, regions: vec![(0, 0x1000)] });
        assert_eq!(spans[1], Span { at: None, len_bytes: EXTENT, regions: vec![(1, 0)] });
    }
}
