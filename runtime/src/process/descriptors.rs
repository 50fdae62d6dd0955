//! Descriptors of files that the program may have open, too, and may have locked.
//!
//! Whoever closes *any* descriptor of a file drops every lock that the process holds on it by fcntl(2): the locks of POSIX
//! belong to process and inode. The kernel's mmap keeps a file without a descriptor; an object needs one, and so
//!
//! * a file is looked at through an `O_PATH` descriptor, whose end drops no lock, and opened only when it must be;
//! * a descriptor of ours is closed only while no other one of the process names the same inode. Else it is *kept*, given to
//!   whoever opens the file next, and looked at again when another is to be closed.
//!
//! ```text
//! we                                    the program
//! look: nobody else names the inode
//!                                       opens the file, and locks it
//! close: the lock is gone
//! ```
//! No call closes on a condition, so these two steps stay apart. Who has had the file open before is safe.
//!
//! # Context: control plane, where a store ends

use crate::by_std;
use softfault_platform::child;
use softfault_platform::sys::file::{self, FileType, Status};
use std::collections::{BTreeMap, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What a file is, whatever its name: hard links and renamed files are the same one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(crate) struct Inode {
    dev: u64,
    ino: u64,
}

impl From<&Status> for Inode {
    fn from(st: &Status) -> Self {
        // All the files of a block device are one.
        if st.file_type() == FileType::BlockDevice {
            return Self { dev: st.rdev, ino: u64::MAX };
        }
        Self { dev: st.dev, ino: st.ino }
    }
}

fn inode_of(fd: i32) -> Option<Inode> {
    file::status(fd).ok().as_ref().map(Inode::from)
}

/// A descriptor that nobody uses, and that may not be closed yet.
#[derive(Debug)]
struct Kept {
    fd: i32,
    inode: Inode,
}

#[derive(Debug)]
struct Table {
    /// In use by objects, and of which files.
    ours: BTreeMap<i32, Inode>,
    kept: Vec<Kept>,
    /// How many descriptors the process had when they were last looked at.
    nr_seen: usize,
}

/// A leaf: no other lock is taken under it.
static TABLE: Mutex<Table> = Mutex::new(Table { ours: BTreeMap::new(), kept: Vec::new(), nr_seen: 0 });

fn lock() -> MutexGuard<'static, Table> {
    TABLE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the descriptors of the process.
fn all() -> Vec<i32> {
    let number = |e: std::io::Result<std::fs::DirEntry>| e.ok()?.file_name().to_str()?.parse().ok();
    match by_std::read_dir("/proc/self/fd") {
        Ok(dir) => dir.filter_map(number).collect(),
        // No /proc, or no descriptor left to read it with: each number is asked for.
        Err(_) => (0..i32::try_from(file::rlimit_nofile().min(1 << 20)).unwrap_or(0)).collect(),
    }
}

impl Table {
    /// Closes what is kept and may be closed by now.
    fn sweep(&mut self) {
        let all = all();
        self.nr_seen = all.len();
        let wanted: HashSet<Inode> = self.kept.iter().map(|k| k.inode).collect();
        let is_ours = |fd: &i32| self.ours.contains_key(fd) || self.kept.iter().any(|k| k.fd == *fd);
        let others = all.into_iter().filter(|fd| !is_ours(fd)).filter_map(inode_of);
        let named: HashSet<Inode> = others.filter(|inode| wanted.contains(inode)).collect();
        self.kept.retain(|k| {
            // The program may have closed it, and its number may be another file's.
            if inode_of(k.fd) != Some(k.inode) {
                return false;
            }
            if !named.contains(&k.inode) {
                file::close(k.fd);
                return false;
            }
            true
        });
    }
}

/// Says that descriptors are an object's from now on; -1: none.
pub(crate) fn own(fds: &[i32]) {
    for fd in fds.iter().filter(|fd| **fd >= 0) {
        if let Some(inode) = inode_of(*fd) {
            lock().ours.insert(*fd, inode);
        }
    }
}

/// Closes a descriptor that was opened for nothing, as soon as that drops no lock of the program's.
pub(crate) fn close_unused(fd: i32) {
    own(&[fd]);
    close(fd);
}

/// Closes a descriptor that was an object's, as soon as that drops no lock of the program's.
pub(crate) fn close(fd: i32) {
    // In a forked child the lock may be held by a thread that does not exist; and the locks are the parent's.
    if child::in_child() {
        return;
    }
    let mut table = lock();
    match table.ours.remove(&fd) {
        Some(inode) => table.kept.push(Kept { fd, inode }),
        None => return file::close(fd),
    }
    // A look costs a system call a descriptor: where there are many, several are looked for at once.
    if table.kept.len() > table.nr_seen / 64 {
        table.sweep();
    }
}

/// Returns a descriptor of the file that was kept, if there is one that permits just that.
pub(crate) fn take(inode: Inode, write: bool) -> Option<i32> {
    let mut table = lock();
    // One for direct I/O does not do, because it cannot do everything; nor does one that appends, wherever it is told to write.
    let is_plain = |is: file::Permits| is.write == write && !is.direct && !is.append;
    let fits = |k: &Kept| k.inode == inode && file::permits(k.fd).is_ok_and(is_plain);
    let at = table.kept.iter().position(fits)?;
    let kept = table.kept.swap_remove(at);
    drop(table);
    // As in `sweep`, its number may be another file's by now.
    (inode_of(kept.fd) == Some(inode)).then_some(kept.fd)
}

/// Closes what is kept and may be closed by now: a file system stays busy until then.
pub(crate) fn sweep() {
    let mut table = lock();
    if !table.kept.is_empty() {
        table.sweep();
    }
}
