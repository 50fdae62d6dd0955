//! A working set for the image of another build, by what its pages hold.
//!
//! # Context: control plane; allocates, and waits for files

use super::set::WorkingSet;
use crate::digest::{Digest, GROUP_PAGES};
use crate::error::Result;
use crate::image::Image;
use roaring::RoaringTreemap;
use std::collections::{BTreeSet, HashMap};

/// A set that was carried, and what became of it. The numbers are of groups of four pages.
#[derive(Clone, Debug)]
pub struct Carried {
    /// The set, of the other image.
    pub set: WorkingSet,
    /// Groups that are where they were.
    pub stayed: u64,
    /// Groups that are found elsewhere.
    pub moved: u64,
    /// Groups that the other image does not have: what of the set is gone.
    pub lost: u64,
}

/// Carries a set from the image that it is of to another: each group of pages that was touched is looked for by its digest, where it
/// was, or else wherever it is nearest. The windows of time are kept.
///
/// Where an image knows no digests of its contents, all of it is read.
///
/// # Errors
/// [`Error::Mixed`](crate::Error::Mixed): the set is not of `from`; [`Error::Unsupported`](crate::Error::Unsupported): `to` has no
/// content digest; errors of [`Image::compute_content_digest`].
pub fn carry(set: &WorkingSet, from: &Image, to: &Image) -> Result<Carried> {
    set.check_is_of(from)?;
    let (old, touched) = digests_of(set, from)?;
    let found = places(&old, to)?;
    let mut carried = Carried { set: WorkingSet::of(to, set.resolution())?, stayed: 0, moved: 0, lost: 0 };
    carried.set.recordings = set.recordings();
    let mut places = HashMap::new();
    for group in touched {
        let place = place(group, old.get(&group), &found, to.nr_pages().div_ceil(GROUP_PAGES));
        match place {
            Some(at) if at == group => carried.stayed += 1,
            Some(_) => carried.moved += 1,
            None => carried.lost += 1,
        }
        places.extend(place.map(|at| (group, at)));
    }
    let each = set.resolution().pages();
    for window in set.windows() {
        let pages = window.runs().flatten();
        let moved = pages.filter_map(|page| {
            let at = places.get(&(page / GROUP_PAGES))?;
            Some(at * GROUP_PAGES + page % GROUP_PAGES)
        });
        let units = RoaringTreemap::from_iter(moved.filter(|page| *page < to.nr_pages()).map(|page| page / each));
        carried.set.push_units(window.time_ns(), units)?;
    }
    Ok(carried)
}

/// Returns the groups that a set touches, and the digests of those that are not zero.
fn digests_of(set: &WorkingSet, image: &Image) -> Result<(HashMap<u64, Digest>, BTreeSet<u64>)> {
    let runs = set.windows().iter().flat_map(|window| window.runs());
    let touched: BTreeSet<u64> = runs.flat_map(|run| run.start / GROUP_PAGES..run.end.div_ceil(GROUP_PAGES)).collect();
    let mut digests = HashMap::new();
    image.each_group(0..image.nr_pages().div_ceil(GROUP_PAGES), |group, digest| {
        if touched.contains(&group) {
            digests.insert(group, digest);
        }
    })?;
    Ok((digests, touched))
}

/// Returns where those digests are in another image, each list in order, and the digest of each group that is in one.
fn places(wanted: &HashMap<u64, Digest>, image: &Image) -> Result<Places> {
    let mut lists: HashMap<Digest, Vec<u64>> = wanted.values().map(|digest| (*digest, Vec::new())).collect();
    let mut is_data = RoaringTreemap::new();
    image.each_group(0..image.nr_pages().div_ceil(GROUP_PAGES), |group, digest| {
        is_data.insert(group);
        if let Some(list) = lists.get_mut(&digest) {
            list.push(group);
        }
    })?;
    Ok(Places { lists, is_data })
}

struct Places {
    lists: HashMap<Digest, Vec<u64>>,
    /// The groups that are not zero.
    is_data: RoaringTreemap,
}

/// Returns where a group is now: the nearest place that has the same bytes.
fn place(group: u64, digest: Option<&Digest>, places: &Places, end: u64) -> Option<u64> {
    let Some(digest) = digest else {
        // Zero, which is everywhere: it is touched to be written, where it is.
        return (group < end && !places.is_data.contains(group)).then_some(group);
    };
    let list = places.lists.get(digest)?;
    let at = list.partition_point(|place| *place < group);
    let around = [at.checked_sub(1).and_then(|at| list.get(at)), list.get(at)];
    around.into_iter().flatten().copied().min_by_key(|place| place.abs_diff(group))
}
