//! A memory control group (version 1) for a child: its limit counts the kernel's page cache too.

use softfault_benches::{Error, Result};
use std::fs;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A group; removed on drop, after its processes have ended.
#[derive(Debug)]
pub(crate) struct Group {
    dir: PathBuf,
}

impl Group {
    /// Makes a group of `limit_bytes` beside all others; [`Error::Absent`] where that cannot be had.
    pub(crate) fn new(name: &str, limit_bytes: usize) -> Result<Self> {
        let root = controller()?;
        let dir = root.join(format!("softfault-bench.{}.{name}", std::process::id()));
        let refused = |what: &str, e: std::io::Error| Error::Absent(format!("a memory group: {what}: {e}"));
        fs::create_dir(&dir).map_err(|e| refused("mkdir", e))?;
        let group = Self { dir };
        let limit = fs::write(group.dir.join("memory.limit_in_bytes"), limit_bytes.to_string());
        limit.map_err(|e| refused("memory.limit_in_bytes", e))?;
        Ok(group)
    }

    /// Moves a process into it. What the process has charged so far stays where it was.
    pub(crate) fn add(&self, pid: u32) -> Result<()> {
        let moved = fs::write(self.dir.join("cgroup.procs"), pid.to_string());
        moved.map_err(|e| Error::Absent(format!("a memory group: cgroup.procs: {e}")))
    }

    /// Says how full it is and how often it was full, for a remark.
    pub(crate) fn remark(&self) -> String {
        let mib = |file| read(&self.dir.join(file)).map_or_else(|| "?".to_owned(), |b| (b >> 20).to_string());
        let failed = read(&self.dir.join("memory.failcnt")).unwrap_or(0);
        format!("{} of {} MiB charged, {failed} times full", mib("memory.usage_in_bytes"), mib("memory.limit_in_bytes"))
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        // A process that was reaped a moment ago may still be leaving; its pages move to the parent group.
        for _ in 0..50 {
            if fs::remove_dir(&self.dir).is_ok() {
                return;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        eprintln!("{} could not be removed", self.dir.display());
    }
}

fn read(file: &Path) -> Option<u64> {
    fs::read_to_string(file).ok()?.trim().parse().ok()
}

/// Finds where the memory controller of version 1 is mounted.
fn controller() -> Result<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let mut found = mounts.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split(' ').collect();
        let [_, point, kind, options, ..] = fields[..] else { return None };
        (kind == "cgroup" && options.split(',').any(|o| o == "memory")).then(|| PathBuf::from(point))
    });
    found.next().ok_or_else(|| Error::Absent("no memory controller of cgroup version 1 is mounted".to_owned()))
}
