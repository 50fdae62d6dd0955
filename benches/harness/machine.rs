//! The machine: which processors measure, and what to call it in a report.

use crate::{Context, Error, Result};
use softfault_platform::sys::thread::{CpuMask, affinity, set_affinity};
use std::path::Path;

/// The two processors that benchmarks use.
#[derive(Clone, Copy, Debug)]
pub struct Cpus {
    /// Where the measuring thread runs.
    pub measuring: usize,
    /// Another one, where the machine lets us have it.
    pub other: Option<usize>,
}

impl Cpus {
    /// Returns the first two processors that the calling thread may run on.
    ///
    /// # Errors
    /// The kernel's; see sched_getaffinity(2).
    pub fn find() -> Result<Self> {
        let mask = affinity().context("sched_getaffinity")?;
        let mut allowed = (0..mask.len() * 64).filter(|&cpu| mask[cpu / 64] >> (cpu % 64) & 1 != 0);
        let measuring = allowed.next().ok_or_else(|| Error::Wrong("no processor to run on".to_owned()))?;
        Ok(Self { measuring, other: allowed.next() })
    }

    /// Lets the calling thread, and those that it makes, run on both; the former mask returns on drop. A thread inherits the
    /// mask of its creator, so who measures work that starts threads of its own spreads itself meanwhile.
    ///
    /// # Errors
    /// The kernel's; see sched_setaffinity(2).
    pub fn spread(&self) -> Result<Pinned> {
        let all = [Some(self.measuring), self.other];
        Pinned::among(all.into_iter().flatten())
    }

    /// Returns the other processor, or an error that names the want of one.
    ///
    /// # Errors
    /// [`Error::Wrong`] on a machine with a single processor.
    pub fn other(&self) -> Result<usize> {
        self.other.ok_or_else(|| Error::Wrong("needs a second processor".to_owned()))
    }
}

/// Keeps the calling thread on one processor; the former mask returns on drop.
///
/// A thread inherits the mask of its creator: whatever a benchmark creates while it is pinned must pin itself anew.
#[derive(Debug)]
pub struct Pinned {
    old: CpuMask,
}

impl Pinned {
    /// Moves the calling thread to `cpu`.
    ///
    /// # Errors
    /// The kernel's; see sched_setaffinity(2).
    pub fn to(cpu: usize) -> Result<Self> {
        Self::among(std::iter::once(cpu))
    }

    fn among(cpus: impl Iterator<Item = usize>) -> Result<Self> {
        let old = affinity().context("sched_getaffinity")?;
        let mut mask: CpuMask = [0; 16];
        cpus.for_each(|cpu| mask[cpu / 64] |= 1 << (cpu % 64));
        set_affinity(&mask).context("sched_setaffinity")?;
        Ok(Self { old })
    }
}

impl Drop for Pinned {
    fn drop(&mut self) {
        // The mask was this thread's own a moment ago; if a processor went away since, staying pinned is harmless.
        let _ = set_affinity(&self.old);
    }
}

/// Returns one line that names the machine: kernel, processor, processors, memory.
#[must_use]
pub fn describe() -> String {
    let read = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    let field = |text: &str, key: &str| {
        let line = text.lines().find(|l| l.starts_with(key)).unwrap_or_default();
        line.split_once(':').map_or_else(|| "?".to_owned(), |(_, v)| v.trim().to_owned())
    };
    let cpuinfo = read("/proc/cpuinfo");
    let cpus = cpuinfo.lines().filter(|l| l.starts_with("processor")).count();
    let guest = if field(&cpuinfo, "flags").contains("hypervisor") { ", virtual" } else { "" };
    format!(
        "Linux {}, {} ({cpus} processors{guest}), {} of memory, load {}",
        read("/proc/sys/kernel/osrelease").trim(),
        field(&cpuinfo, "model name"),
        field(&read("/proc/meminfo"), "MemTotal"),
        read("/proc/loadavg").split(' ').next().unwrap_or("?"),
    )
}

/// Returns one line that names the file system below `dir`: its type, device and options.
#[must_use]
pub fn file_system(dir: &Path) -> String {
    let dir = dir.canonicalize().unwrap_or_else(|_| dir.to_owned());
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let below = mounts.lines().filter_map(|line| {
        let mut fields = line.split(' ');
        let (device, point, kind, options) = (fields.next()?, fields.next()?, fields.next()?, fields.next()?);
        dir.starts_with(point).then(|| (point.len(), format!("files on {kind} ({device}, {options})")))
    });
    // The longest mount point; of equal ones the last, which hides the others.
    below.max_by_key(|(len, _)| *len).map_or_else(|| "files on an unknown file system".to_owned(), |(_, text)| text)
}
