//! Where files lie: whether direct I/O is served there, and what a swap file is worth there.

use super::machine::Machine;
use crate::finding::Finding;
use rustix::fs::OFlags;
use softfault_image::PAGE_SIZE;
use std::fs::File;
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// File systems whose files are memory: what is swapped to them frees none.
const MEMORY: [&str; 2] = ["tmpfs", "ramfs"];
/// File systems that punch no holes, or that are behind a network.
const FAR: [&str; 8] = ["nfs", "nfs4", "cifs", "smb3", "9p", "ceph", "fuse", "virtiofs"];

pub(crate) fn swap(machine: &Machine, path: Option<&Path>) -> Vec<Finding> {
    let devices = machine.read("proc/swaps").map_or(0, |text| text.lines().skip(1).count());
    let mut findings = vec![match devices {
        0 => Finding::note(
            "the machine has no swap: anonymous objects keep what the cache holds, and end with VM_FAULT_OOM",
            "RuntimeBuilder::swap or zswap of the runtime's own, or swapon",
        ),
        nr => Finding::ok(format!("the machine has {}", crate::units::count(nr as u64, "swap device"))),
    }];
    let Some(path) = path else { return findings };
    let (kind, name) = (file_system(machine, path), path.display());
    findings.push(match kind.as_deref() {
        Some(kind) if MEMORY.contains(&kind) => Finding::problem(
            format!("a swap file at {name} lies in memory ({kind}): swapping to it frees nothing"),
            "a path on a disk, or RuntimeBuilder::zswap",
        ),
        Some(kind) if FAR.contains(&kind) || kind.starts_with("fuse.") => Finding::note(
            format!("a swap file at {name} lies on {kind}, behind a server"),
            "a path on a disk of this machine",
        ),
        Some(kind) => Finding::ok(format!("a swap file at {name} lies on {kind}")),
        None => Finding::note(format!("on which file system {name} lies is not known"), "mount /proc"),
    });
    findings
}

/// Returns the kind of the file system that a path lies on: that of the longest mount point above it, the last one mounted there.
fn file_system(machine: &Machine, path: &Path) -> Option<String> {
    let whole = real(path)?;
    let text = machine.of_process("mountinfo")?;
    let mounts = text.lines().filter_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        // The kernel writes spaces so.
        let at = PathBuf::from(left.split(' ').nth(4)?.replace("\\040", " "));
        whole
            .starts_with(&at)
            .then(|| (at.components().count(), right.split(' ').next().unwrap_or_default().to_owned()))
    });
    // Of equal ones the last is on top.
    mounts.max_by_key(|(depth, _)| *depth).map(|(_, kind)| kind)
}

/// Returns a path without links, though its last parts may not be there yet.
fn real(path: &Path) -> Option<PathBuf> {
    let whole = std::path::absolute(path).ok()?;
    let there = whole.ancestors().find_map(|a| a.canonicalize().ok().map(|real| (a, real)));
    let (above, real) = there?;
    Some(whole.strip_prefix(above).map_or_else(|_| real.clone(), |rest| real.join(rest)))
}

pub(crate) fn direct(machine: &Machine, file: Option<&Path>) -> Vec<Finding> {
    let Some(file) = file else { return Vec::new() };
    let kind = file_system(machine, file).unwrap_or_else(|| "an unknown file system".into());
    vec![judge(&file.display().to_string(), &kind, read_direct(file))]
}

fn judge(name: &str, kind: &str, read: io::Result<()>) -> Finding {
    match read {
        Ok(()) => Finding::ok(format!("{name} is read past the kernel's cache, on {kind}")),
        Err(e) if e.kind() == io::ErrorKind::InvalidInput => Finding::note(
            format!(
                "{kind} serves no direct I/O for {name}: it goes through the kernel's cache, and is in memory twice"
            ),
            "ext4, xfs or btrfs; tmpfs from Linux 6.6 on; or a smaller cache, to leave the kernel's its room",
        ),
        Err(e) => Finding::problem(format!("{name} cannot be read: {e}"), "the file's rights, or another file"),
    }
}

/// Reads the first page of a file as the runtime does.
fn read_direct(file: &Path) -> io::Result<()> {
    // Whoever opened a pipe to be read, which nobody writes, would wait.
    let flags = (OFlags::DIRECT | OFlags::NONBLOCK).bits().cast_signed();
    let open = File::options().read(true).custom_flags(flags).open(file)?;
    let mut room = vec![0u8; 2 * PAGE_SIZE];
    let ahead = room.as_ptr().align_offset(PAGE_SIZE);
    let page = room.get_mut(ahead..ahead + PAGE_SIZE).unwrap_or_default();
    open.read_at(page, 0).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::finding::Level;

    #[test]
    fn each_answer_of_the_file_system_has_its_finding() {
        let of = |read| judge("x", "ext4", read).level;
        assert_eq!(of(Ok(())), Level::Ok);
        assert_eq!(of(Err(io::ErrorKind::InvalidInput.into())), Level::Note);
        assert_eq!(of(Err(io::ErrorKind::NotFound.into())), Level::Problem);
    }
}
