//! One reading of a runtime's statistics.

use serde::Deserialize;
use serde_json::{Map, Value};
use softfault::mm::vmstat::Event;
use std::collections::BTreeMap;

/// The latency of a stage of a fault; times are within a factor of two.
#[derive(Clone, Copy, Debug, Default, Deserialize, PartialEq, Eq)]
pub(crate) struct Latency {
    pub(crate) count: u64,
    pub(crate) p50_ns: u64,
    pub(crate) p99_ns: u64,
}

/// What `Stats::to_json` has written.
#[derive(Debug, Deserialize)]
pub(crate) struct Reading {
    reasons: BTreeMap<String, u64>,
    stages: BTreeMap<String, Latency>,
    #[serde(flatten)]
    counters: Map<String, Value>,
}

impl Reading {
    /// Reads statistics.
    ///
    /// # Errors
    /// What they are instead.
    pub(crate) fn parse(text: &str) -> Result<Self, String> {
        let reading: Self = serde_json::from_str(text).map_err(|e| format!("these are no statistics: {e}"))?;
        if let Some((name, value)) = reading.counters.iter().find(|(_, v)| v.as_u64().is_none()) {
            return Err(format!("these are no statistics: {name} is {value}"));
        }
        match reading.counters.contains_key("pgfault") {
            true => Ok(reading),
            false => Err("these are no statistics: there is no pgfault".into()),
        }
    }

    /// Returns a counter; 0 of one that the version that wrote it did not have.
    pub(crate) fn of(&self, name: &str) -> u64 {
        self.counters.get(name).and_then(Value::as_u64).unwrap_or(0)
    }

    /// Returns how often the walk has returned a bit of a reason.
    pub(crate) fn reason(&self, name: &str) -> u64 {
        self.reasons.get(name).copied().unwrap_or(0)
    }

    /// Returns the latency of a stage that was observed.
    pub(crate) fn stage(&self, name: &str) -> Option<Latency> {
        self.stages.get(name).copied().filter(|l| l.count > 0)
    }

    /// Leaves what has happened since an earlier reading. Quantities of now, and latencies, stay what they are.
    ///
    /// # Errors
    /// The other one is not earlier.
    pub(crate) fn subtract(&mut self, before: &Self) -> Result<(), String> {
        for (_, name) in Event::ALL {
            let (now, then) = (self.of(name), before.of(name));
            let left = now
                .checked_sub(then)
                .ok_or_else(|| format!("it is no earlier reading: {name} was {then} and is {now}"))?;
            self.counters.insert((*name).to_owned(), left.into());
        }
        for (name, then) in &before.reasons {
            let now = self.reasons.entry(name.clone()).or_default();
            *now = now
                .checked_sub(*then)
                .ok_or_else(|| format!("it is no earlier reading: {name} was {then} and is {now}"))?;
        }
        Ok(())
    }

    /// Returns how many counters there are that this version does not know.
    pub(crate) fn nr_unknown(&self) -> usize {
        let is_known = |name: &str| Event::ALL.iter().any(|(_, known)| *known == name) || is_quantity(name);
        self.counters.keys().filter(|name| !is_known(name)).count()
    }
}

/// Returns whether a name is that of a quantity of now, not of something that happened.
fn is_quantity(name: &str) -> bool {
    let fronts = [
        "nr_",
        "process_",
        "queue_",
        "folio_",
        "arena_",
        "cache_",
        "exclusive_",
        "vma_",
        "swap",
        "zswap",
        "pswp",
        "zswp",
    ];
    fronts.iter().any(|front| name.starts_with(front))
}
