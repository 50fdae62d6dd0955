//! What can be an object, and what only looks like a file. Linux refuses to map the same things (`ENODEV`), each by itself.
//!
//! # Context: control plane

use crate::error::{Error, Result};
use softfault_platform::sys::file::{self, FileType, Status};

/// File systems whose files are made anew by each read: they have no length, or one that says nothing.
const MADE_BY_READING: &[(u64, &str)] = &[
    (0x9fa0, "procfs"),
    (0x6265_6572, "sysfs"),
    (0x6462_6720, "debugfs"),
    (0x7472_6163, "tracefs"),
    (0x0027_e0eb, "a cgroup"),
    (0x6367_7270, "a cgroup"),
    (0x7363_6673, "securityfs"),
    (0x6265_6570, "configfs"),
    (0xcafe_4a11, "bpffs"),
    (0xde5e_81e4, "efivarfs"),
    (0x6165_676c, "pstore"),
    (0xf97c_ff8c, "selinuxfs"),
    (0x6e73_6673, "nsfs"),
    (0x4249_4e4d, "binfmt_misc"),
];

const HUGETLBFS: u64 = 0x9584_58f6;

/// Refuses what is no file of bytes that stay; the descriptor may be an `O_PATH` one.
///
/// # Errors
/// [`Error::FileType`].
pub(super) fn check(op: &'static str, name: &dyn Fn() -> String, fd: i32, st: &Status) -> Result<()> {
    let (what, instead) = match st.file_type() {
        FileType::Regular => return check_file_system(op, name, fd),
        FileType::BlockDevice => return Ok(()),
        FileType::Directory => ("a directory", "open a file in it"),
        FileType::Fifo => ("a pipe", "its bytes come once: read(2) them into anonymous memory"),
        FileType::Socket => ("a socket", "its bytes come once: read(2) them into anonymous memory"),
        FileType::CharDevice => (
            "a character device",
            "map it with mmap(2), or serve it by a store; memory of zeros is `Runtime::anonymous`",
        ),
        FileType::Other => ("no file", "an object needs a regular file or a block device; serve others by a store"),
    };
    Err(Error::FileType { op, name: name(), what, instead })
}

fn check_file_system(op: &'static str, name: &dyn Fn() -> String, fd: i32) -> Result<()> {
    let magic = file::file_system(fd).unwrap_or(0);
    let refuse = |what, instead| Err(Error::FileType { op, name: name(), what, instead });
    if magic == HUGETLBFS {
        return refuse("a file of hugetlbfs", "it is memory, and has no write(2): map it with mmap(2)");
    }
    match MADE_BY_READING.iter().find(|(m, _)| *m == magic) {
        Some((_, what)) => refuse(what, "what it holds is made anew by each read(2): read it, or serve it by a store"),
        None => Ok(()),
    }
}
