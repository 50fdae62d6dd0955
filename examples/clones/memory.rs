//! What the process takes of memory, as the kernel counts it.

use crate::units::Result;
use softfault::Runtime;
use std::ops::Sub;

/// Bytes. What is mapped of a file in memory is not in it, which counts as often as it is mapped: the runtime says what the files
/// take.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Memory {
    /// Pages of the process's own: what was stored, and what programs and the runtime allocate.
    pub(crate) anonymous: u64,
    /// The tables by which the kernel finds pages.
    pub(crate) page_tables: u64,
    /// The cache's files: pages of the image, each of them once.
    pub(crate) cache: u64,
}

impl Memory {
    pub(crate) fn of(rt: Option<&Runtime>) -> Result<Self> {
        let status = std::fs::read_to_string("/proc/self/status")?;
        let bytes = |name: &str| -> Result<u64> {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).ok_or_else(|| format!("no {name}"))?;
            Ok(line.split_whitespace().next().ok_or("no number")?.parse::<u64>()? << 10)
        };
        let cache = rt.map_or(0, |rt| rt.stats()["cache_bytes_allocated"]);
        Ok(Self { anonymous: bytes("RssAnon:")?, page_tables: bytes("VmPTE:")?, cache })
    }

    pub(crate) fn total(&self) -> u64 {
        self.anonymous + self.page_tables + self.cache
    }
}

impl Sub for Memory {
    type Output = Self;
    fn sub(self, before: Self) -> Self {
        Self {
            anonymous: self.anonymous.saturating_sub(before.anonymous),
            page_tables: self.page_tables.saturating_sub(before.page_tables),
            cache: self.cache.saturating_sub(before.cache),
        }
    }
}
