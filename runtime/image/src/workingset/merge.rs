//! Several recordings as one, and how well one foretells another.
//!
//! # Context: control plane; allocates

use super::set::WorkingSet;
use crate::error::{Error, Result};
use roaring::RoaringTreemap;

/// Refuses sets that say different things.
fn check_alike(op: &'static str, one: &WorkingSet, other: &WorkingSet) -> Result<()> {
    let mixed = |what, one: String, other: String| Err(Error::Mixed { op, what, one, other });
    if one.content != other.content || one.image_pages != other.image_pages {
        return mixed("the contents", one.content.to_string(), other.content.to_string());
    }
    if one.resolution != other.resolution {
        let of = |set: &WorkingSet| format!("{} pages", set.resolution.pages());
        return mixed("the resolutions", of(one), of(other));
    }
    Ok(())
}

/// Makes one set of several recordings: what was touched in `least` of them at least, 1 for everything, each page as early as in
/// any of those that touched it. The windows are those of the set that has the most. The order of `sets` does not matter.
///
/// # Errors
/// [`Error::Mixed`]: they are of different contents, or tell different numbers of pages apart; [`Error::Argument`]: there are none,
/// or fewer than `least`.
pub fn merge(sets: &[&WorkingSet], least: usize) -> Result<WorkingSet> {
    let op = "workingset::merge";
    let times = |set: &WorkingSet| set.windows.iter().map(|w| (w.time_ns.end, w.time_ns.start)).collect::<Vec<_>>();
    let most = sets.iter().max_by_key(|set| (set.windows.len(), times(set)));
    let Some(most) = most.filter(|_| (1..=sets.len()).contains(&least)) else {
        let why = "there is nothing to merge, or it is asked for in more or fewer sets than there are";
        return Err(Error::Argument { op, arg: "least", value: least as u64, why });
    };
    sets.iter().try_for_each(|set| check_alike(op, most, set))?;
    let mut merged = WorkingSet::new(most.content, most.image_pages, most.resolution);
    merged.recordings = sets.iter().fold(0u32, |nr, set| nr.saturating_add(set.recordings));
    let wanted = in_at_least(sets, least);
    let mut windows = vec![RoaringTreemap::new(); most.windows.len()];
    for window in sets.iter().flat_map(|set| &set.windows) {
        // The last one that has begun when this one does.
        let at = most.windows.partition_point(|w| w.time_ns.start <= window.time_ns.start).saturating_sub(1);
        if let Some(into) = windows.get_mut(at) {
            *into |= &window.units & &wanted;
        }
    }
    for (window, units) in most.windows.iter().zip(windows) {
        merged.push_units(window.time_ns.clone(), units)?;
    }
    Ok(merged)
}

/// Returns what is in so many of the sets.
fn in_at_least(sets: &[&WorkingSet], least: usize) -> RoaringTreemap {
    // `in_at[n]`: what is in more than `n` of those so far.
    let mut in_at = vec![RoaringTreemap::new(); least];
    for set in sets {
        let mut carry = set.all();
        for level in &mut in_at {
            let both = &*level & &carry;
            *level |= &carry;
            carry = both;
        }
    }
    in_at.pop().unwrap_or_default()
}

/// How well a set has foretold what was touched. All numbers are of units of the resolution.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Drift {
    /// Foretold, and touched.
    pub both: u64,
    /// Foretold alone: read for nothing.
    pub foretold: u64,
    /// Touched alone: waited for.
    pub touched: u64,
}

impl Drift {
    fn share(of: u64, all: u64) -> f64 {
        // Of nothing, all is right. 53 bits are more than any image has pages.
        if all == 0 { 1.0 } else { of as f64 / all as f64 }
    }

    /// Returns which share of what was foretold was touched.
    #[must_use]
    pub fn precision(&self) -> f64 {
        Self::share(self.both, self.both + self.foretold)
    }

    /// Returns which share of what was touched was foretold.
    #[must_use]
    pub fn recall(&self) -> f64 {
        Self::share(self.both, self.both + self.touched)
    }

    /// Returns Jaccard's index: which share of what is in either set is in both.
    #[must_use]
    pub fn jaccard(&self) -> f64 {
        Self::share(self.both, self.both + self.foretold + self.touched)
    }
}

/// Compares a set with what was touched afterwards.
///
/// # Errors
/// [`Error::Mixed`]: they are of different contents (see [`carry`](super::carry())), or tell different numbers of pages apart.
pub fn compare(foretold: &WorkingSet, touched: &WorkingSet) -> Result<Drift> {
    check_alike("workingset::compare", foretold, touched)?;
    let (one, other) = (foretold.all(), touched.all());
    let both = one.intersection_len(&other);
    Ok(Drift { both, foretold: one.len() - both, touched: other.len() - both })
}
