//! Descriptors: pread(2), pwrite(2), ftruncate(2), close(2), poll(2) and the small rest.
//!
//! # Context: handler; a read or a write waits for as long as the file lets it

use super::syscall::{Errno, syscall6};
use super::text;

/// Reads up to `len_bytes` bytes at `offset` into raw memory; see pread(2). Retries `EINTR`.
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// `dst..dst+len_bytes` is writable memory that the caller may overwrite, and to which no reference exists.
pub unsafe fn pread(fd: i32, dst: usize, len_bytes: usize, offset: u64) -> Result<usize, Errno> {
    loop {
        // SAFETY: the caller's contract is exactly pread's.
        let r = unsafe { syscall6(libc::SYS_pread64, [fd as usize, dst, len_bytes, offset as usize, 0, 0]) };
        if r != Err(Errno::EINTR) {
            return r;
        }
    }
}

/// Writes up to `len_bytes` bytes of raw memory at `offset`; see pwrite(2). Retries `EINTR`.
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
///
/// # Safety
/// `src..src+len_bytes` is readable; the descriptor's content may be changed by the caller.
pub unsafe fn pwrite(fd: i32, src: usize, len_bytes: usize, offset: u64) -> Result<usize, Errno> {
    loop {
        // SAFETY: the caller's contract is exactly pwrite's.
        let r = unsafe { syscall6(libc::SYS_pwrite64, [fd as usize, src, len_bytes, offset as usize, 0, 0]) };
        if r != Err(Errno::EINTR) {
            return r;
        }
    }
}

/// Reads at `offset` into a buffer, as far as one call goes. Linux: `pread64`.
///
/// # Context: control plane, helper
///
/// # Errors
/// The kernel's.
pub fn read_at(fd: i32, dst: &mut [u8], offset: u64) -> Result<usize, Errno> {
    // SAFETY: the slice is the caller's to write.
    unsafe { pread(fd, dst.as_mut_ptr() as usize, dst.len(), offset) }
}

/// Writes a buffer at `offset`, as far as one call goes. Linux: `pwrite64`.
///
/// # Context: control plane, helper
///
/// # Errors
/// The kernel's.
pub fn write_at(fd: i32, src: &[u8], offset: u64) -> Result<usize, Errno> {
    // SAFETY: the slice's bytes are readable.
    unsafe { pwrite(fd, src.as_ptr() as usize, src.len(), offset) }
}

/// Reads into a byte slice; see read(2). Returns 0 at end of file.
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
pub fn read(fd: i32, dst: &mut [u8]) -> Result<usize, Errno> {
    // SAFETY: `dst` is exclusively borrowed for the length of the call.
    unsafe { syscall6(libc::SYS_read, [fd as usize, dst.as_mut_ptr() as usize, dst.len(), 0, 0, 0]) }
}

/// Writes a byte slice; see write(2).
///
/// # Context: handler
///
/// # Errors
/// The kernel's.
pub fn write(fd: i32, src: &[u8]) -> Result<usize, Errno> {
    // SAFETY: `src` is borrowed for the length of the call and only read.
    unsafe { syscall6(libc::SYS_write, [fd as usize, src.as_ptr() as usize, src.len(), 0, 0, 0]) }
}

/// Opens a file for reading, close-on-exec; see open(2).
///
/// # Context: control plane
///
/// # Errors
/// The kernel's.
pub fn open_rdonly(path: &core::ffi::CStr) -> Result<i32, Errno> {
    let args = [path.as_ptr() as usize, (libc::O_RDONLY | libc::O_CLOEXEC) as usize, 0, 0, 0, 0];
    // SAFETY: the path is a valid C string for the length of the call.
    let fd = unsafe { syscall6(libc::SYS_open, args) }?;
    Ok(i32::try_from(fd).unwrap_or(i32::MAX))
}

/// Opens a file for reading and writing, close-on-exec; see open(2).
///
/// # Context: control plane
///
/// # Errors
/// The kernel's.
pub fn open_rdwr(path: &core::ffi::CStr) -> Result<i32, Errno> {
    let args = [path.as_ptr() as usize, (libc::O_RDWR | libc::O_CLOEXEC) as usize, 0, 0, 0, 0];
    // SAFETY: the path is a valid C string for the length of the call.
    let fd = unsafe { syscall6(libc::SYS_open, args) }?;
    Ok(i32::try_from(fd).unwrap_or(i32::MAX))
}

/// Opens a path without opening what it names: no device is started, no FIFO waited for, and no lock of the process goes when
/// it is closed; see open(2), `O_PATH`.
///
/// # Context: control plane
///
/// # Errors
/// The kernel's.
pub fn open_path(path: &core::ffi::CStr) -> Result<i32, Errno> {
    let args = [path.as_ptr() as usize, (libc::O_PATH | libc::O_CLOEXEC) as usize, 0, 0, 0, 0];
    // SAFETY: the path is a valid C string for the length of the call.
    let fd = unsafe { syscall6(libc::SYS_open, args) }?;
    Ok(i32::try_from(fd).unwrap_or(i32::MAX))
}

/// Asks whether the process may read, and if `write` also write, what a descriptor of any kind names; see faccessat2(2).
///
/// # Context: control plane
///
/// # Errors
/// `EACCES`, `EROFS`; `ENOSYS` before Linux 5.8.
pub fn may_open(fd: i32, write: bool) -> Result<(), Errno> {
    let mode = libc::R_OK | if write { libc::W_OK } else { 0 };
    let flags = libc::AT_EMPTY_PATH | libc::AT_EACCESS;
    let args = [fd as usize, c"".as_ptr() as usize, mode as usize, flags as usize, 0, 0];
    // SAFETY: the path is an empty C string.
    unsafe { syscall6(libc::SYS_faccessat2, args) }.map(drop)
}

/// What an open file description permits; see fcntl(2), `F_GETFL`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Permits {
    /// read(2).
    pub read: bool,
    /// write(2).
    pub write: bool,
    /// Only what is aligned: `O_DIRECT`.
    pub direct: bool,
    /// pwrite(2) writes at the end, whatever position it is given: `O_APPEND`.
    pub append: bool,
}

/// Returns what a descriptor permits.
///
/// # Context: control plane
///
/// # Errors
/// `EBADF`.
pub fn permits(fd: i32) -> Result<Permits, Errno> {
    // SAFETY: touches no memory.
    let flags = unsafe { syscall6(libc::SYS_fcntl, [fd as usize, libc::F_GETFL as usize, 0, 0, 0, 0]) }?;
    let flags = i32::try_from(flags).unwrap_or(0);
    let is_open = flags & libc::O_PATH == 0;
    let access = flags & libc::O_ACCMODE;
    let (read, write) = (is_open && access != libc::O_WRONLY, is_open && access != libc::O_RDONLY);
    Ok(Permits { read, write, direct: flags & libc::O_DIRECT != 0, append: flags & libc::O_APPEND != 0 })
}

/// Opens the file behind a descriptor once more, through `/proc`, close-on-exec: a description of its own, with its own flags
/// and its own memory of write errors.
///
/// # Context: control plane
///
/// # Errors
/// `EINVAL` where the file system has no direct I/O, `ENOENT` without `/proc`, the kernel's others; see open(2).
pub fn reopen(fd: i32, write: bool, direct: bool) -> Result<i32, Errno> {
    let mut path = *b"/proc/self/fd/\0\0\0\0\0\0\0\0\0\0\0";
    text::put_decimal(path.get_mut(14..24), u64::from(fd.unsigned_abs()));
    let access = if write { libc::O_RDWR } else { libc::O_RDONLY };
    let flags = access | libc::O_CLOEXEC | if direct { libc::O_DIRECT } else { 0 };
    // SAFETY: the path ends with a zero and lives for the length of the call.
    let new = unsafe { syscall6(libc::SYS_open, [path.as_ptr() as usize, flags as usize, 0, 0, 0, 0]) }?;
    Ok(i32::try_from(new).unwrap_or(i32::MAX))
}

/// Makes a file's data durable, and the metadata needed to find it; see fdatasync(2). Retries `EINTR`.
///
/// # Context: handler
///
/// # Errors
/// `EIO`, `ENOSPC`, `EDQUOT`: of any write since the last call on this description; said once.
pub fn fdatasync(fd: i32) -> Result<(), Errno> {
    loop {
        // SAFETY: touches no memory.
        let r = unsafe { syscall6(libc::SYS_fdatasync, [fd as usize, 0, 0, 0, 0, 0]) };
        if r != Err(Errno::EINTR) {
            return r.map(drop);
        }
    }
}

/// Allocates the blocks of a range without changing a byte or the file's length; see fallocate(2). Retries `EINTR`.
///
/// # Context: handler
///
/// # Errors
/// `ENOSPC`; `EOPNOTSUPP` where the file system cannot.
pub fn allocate_blocks(fd: i32, offset: u64, len_bytes: u64) -> Result<(), Errno> {
    let mode = libc::FALLOC_FL_KEEP_SIZE as usize;
    loop {
        // SAFETY: touches no memory and changes no byte of the file.
        let r =
            unsafe { syscall6(libc::SYS_fallocate, [fd as usize, mode, offset as usize, len_bytes as usize, 0, 0]) };
        if r != Err(Errno::EINTR) {
            return r.map(drop);
        }
    }
}

/// Moves up to `len_bytes` bytes from `from` at `offset` to `to` at its own position, inside the kernel; see
/// sendfile(2). Retries `EINTR`.
///
/// # Context: handler
///
/// # Errors
/// The kernel's; `EINVAL` where the file system of `from` cannot.
///
/// # Safety
/// The bytes of `to` that are overwritten belong to the caller: nobody relies on them.
pub unsafe fn sendfile(to: i32, from: i32, offset: u64, len_bytes: usize) -> Result<usize, Errno> {
    let mut at = offset.cast_signed();
    loop {
        let args = [to as usize, from as usize, core::ptr::from_mut(&mut at) as usize, len_bytes, 0, 0];
        // SAFETY: `at` is exclusively borrowed; the caller owns what is overwritten.
        let r = unsafe { syscall6(libc::SYS_sendfile, args) };
        if r != Err(Errno::EINTR) {
            return r;
        }
    }
}

/// Sets a descriptor's position from the beginning; see lseek(2).
///
/// # Context: handler
///
/// # Errors
/// `EBADF`, `EINVAL`.
pub fn seek(fd: i32, offset: u64) -> Result<(), Errno> {
    // SAFETY: touches no memory.
    unsafe { syscall6(libc::SYS_lseek, [fd as usize, offset as usize, libc::SEEK_SET as usize, 0, 0, 0]) }.map(drop)
}

/// Returns how many bytes lie between a descriptor's position and the end of its file, modulo 2^32; see ioctl(2), `FIONREAD`.
/// Unlike lseek(2) it does not wait for who reads or writes at that position.
///
/// # Context: handler
///
/// # Errors
/// `EBADF`, `ENOTTY`; of what is no regular file whatever its driver says.
pub fn unread_bytes(fd: i32) -> Result<u32, Errno> {
    let mut nr = 0u32;
    // SAFETY: the request writes one int, exclusively borrowed.
    unsafe {
        syscall6(
            libc::SYS_ioctl,
            [fd as usize, libc::FIONREAD as usize, core::ptr::from_mut(&mut nr) as usize, 0, 0, 0],
        )
    }?;
    Ok(nr)
}

/// Sets a file's length; see ftruncate(2).
///
/// # Context: control plane
///
/// # Errors
/// `EFBIG` past `RLIMIT_FSIZE` (which also raises `SIGXFSZ`: check the limit first), `EPERM` when sealed.
pub fn ftruncate(fd: i32, len_bytes: u64) -> Result<(), Errno> {
    // SAFETY: touches no memory; mappings past the new end are the caller's business.
    unsafe { syscall6(libc::SYS_ftruncate, [fd as usize, len_bytes as usize, 0, 0, 0, 0]) }.map(drop)
}

/// Closes a descriptor that the caller owns; errors are of no use and are dropped.
///
/// # Context: handler
pub fn close(fd: i32) {
    // SAFETY: the caller owns the descriptor; close touches no memory.
    let _ = unsafe { syscall6(libc::SYS_close, [fd as usize, 0, 0, 0, 0, 0]) };
}

/// Duplicates a descriptor, close-on-exec; see fcntl(2).
///
/// # Context: control plane
///
/// # Errors
/// `EBADF`, `EMFILE`.
pub fn dup_cloexec(fd: i32) -> Result<i32, Errno> {
    // SAFETY: touches no memory.
    let r = unsafe { syscall6(libc::SYS_fcntl, [fd as usize, libc::F_DUPFD_CLOEXEC as usize, 0, 0, 0, 0]) }?;
    Ok(i32::try_from(r).unwrap_or(i32::MAX))
}

/// What fstat(2) says of an open file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Status {
    /// The file system's device; together with `ino` it names the inode.
    pub dev: u64,
    /// The inode's number on that device.
    pub ino: u64,
    /// The device that a device file stands for.
    pub rdev: u64,
    /// Type and permissions, as `st_mode`.
    pub mode: u32,
    /// Length in bytes; 0 for a block device.
    pub len_bytes: u64,
    /// Bytes of storage that the file occupies.
    pub allocated_bytes: u64,
}

/// What kind of thing a descriptor names; see inode(7).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum FileType {
    /// A regular file.
    Regular,
    /// A directory.
    Directory,
    /// A pipe or FIFO.
    Fifo,
    /// A socket.
    Socket,
    /// A character device.
    CharDevice,
    /// A block device.
    BlockDevice,
    /// A symbolic link, or something without a type: an eventfd, say.
    Other,
}

impl Status {
    /// Returns the type that the mode says.
    ///
    /// # Context: handler
    #[must_use]
    pub fn file_type(&self) -> FileType {
        match self.mode & libc::S_IFMT {
            libc::S_IFREG => FileType::Regular,
            libc::S_IFDIR => FileType::Directory,
            libc::S_IFIFO => FileType::Fifo,
            libc::S_IFSOCK => FileType::Socket,
            libc::S_IFCHR => FileType::CharDevice,
            libc::S_IFBLK => FileType::BlockDevice,
            _ => FileType::Other,
        }
    }
}

/// Asks what a descriptor names; see fstat(2).
///
/// # Context: handler
///
/// # Errors
/// `EBADF`; a network file system's others.
pub fn status(fd: i32) -> Result<Status, Errno> {
    // SAFETY: an all-zero `stat` is a valid value of that plain C structure.
    let mut st: libc::stat = unsafe { core::mem::zeroed() };
    // SAFETY: `st` is a whole `struct stat`, exclusively borrowed.
    unsafe { syscall6(libc::SYS_fstat, [fd as usize, core::ptr::from_mut(&mut st) as usize, 0, 0, 0, 0]) }?;
    Ok(Status {
        dev: st.st_dev,
        ino: st.st_ino,
        rdev: st.st_rdev,
        mode: st.st_mode,
        len_bytes: st.st_size.cast_unsigned(),
        allocated_bytes: st.st_blocks.cast_unsigned() * 512,
    })
}

/// Returns the length of a block device in bytes; see `BLKGETSIZE64`.
///
/// # Context: handler
///
/// # Errors
/// `ENOTTY`: it is none.
pub fn device_len_bytes(fd: i32) -> Result<u64, Errno> {
    const BLKGETSIZE64: usize = 0x8008_1272;
    let mut len = 0u64;
    let args = [fd as usize, BLKGETSIZE64, core::ptr::from_mut(&mut len) as usize, 0, 0, 0];
    // SAFETY: the call writes one u64, exclusively borrowed.
    unsafe { syscall6(libc::SYS_ioctl, args) }?;
    Ok(len)
}

/// Returns the magic number of the file system that a descriptor's file is on; see fstatfs(2).
///
/// # Context: control plane
///
/// # Errors
/// `EBADF`, `ENOSYS`.
pub fn file_system(fd: i32) -> Result<u64, Errno> {
    // SAFETY: an all-zero `statfs` is a valid value of that plain C structure.
    let mut st: libc::statfs = unsafe { core::mem::zeroed() };
    // SAFETY: `st` is a whole `struct statfs`, exclusively borrowed.
    unsafe { syscall6(libc::SYS_fstatfs, [fd as usize, core::ptr::from_mut(&mut st) as usize, 0, 0, 0, 0]) }?;
    Ok(st.f_type.cast_unsigned())
}

/// Returns the bytes of storage that a file occupies (`st_blocks` × 512); see fstat(2).
///
/// # Context: control plane
///
/// # Errors
/// `EBADF`.
pub fn allocated_bytes(fd: i32) -> Result<u64, Errno> {
    status(fd).map(|st| st.allocated_bytes)
}

/// Returns the soft limit of a resource; see getrlimit(2). `u64::MAX` means none.
///
/// By the old call, which takes 0.11 us where prlimit64(2) takes 0.27: fills and write-back ask each time, since the program
/// may lower the limit at any time. A filter that permits what the C library makes may know the new one alone.
fn rlimit(resource: u32) -> u64 {
    let mut lim = libc::rlimit { rlim_cur: libc::RLIM_INFINITY, rlim_max: libc::RLIM_INFINITY };
    let at = core::ptr::from_mut(&mut lim) as usize;
    // SAFETY: getrlimit writes one `struct rlimit`, exclusively borrowed.
    let old = unsafe { syscall6(libc::SYS_getrlimit, [resource as usize, at, 0, 0, 0, 0]) };
    // SAFETY: likewise prlimit64 on ourselves.
    match old.or_else(|_| unsafe { syscall6(libc::SYS_prlimit64, [0, resource as usize, 0, at, 0, 0]) }) {
        Ok(_) => lim.rlim_cur,
        Err(_) => u64::MAX,
    }
}

/// Returns `RLIMIT_FSIZE`: a memfd larger than it cannot be made, and trying kills by `SIGXFSZ`.
///
/// # Context: handler
#[must_use]
pub fn rlimit_fsize() -> u64 {
    rlimit(libc::RLIMIT_FSIZE)
}

/// Returns `RLIMIT_MEMLOCK`, the bytes that a process without `CAP_IPC_LOCK` may lock in memory.
///
/// # Context: control plane
#[must_use]
pub fn rlimit_memlock() -> u64 {
    rlimit(libc::RLIMIT_MEMLOCK)
}

/// Returns `RLIMIT_AS`, the bytes of address space the process may map.
///
/// # Context: control plane
#[must_use]
pub fn rlimit_as() -> u64 {
    rlimit(libc::RLIMIT_AS)
}

/// Returns `RLIMIT_NOFILE`: descriptors have smaller numbers.
///
/// # Context: control plane
#[must_use]
pub fn rlimit_nofile() -> u64 {
    rlimit(libc::RLIMIT_NOFILE)
}

/// Waits until one of `fds` is readable or `timeout_ms` passed (-1: forever). Returns a bit mask of ready ones.
///
/// # Context: the monitor thread
///
/// # Errors
/// `EINTR` and the kernel's others; see poll(2).
pub fn poll_in(fds: [i32; 2], timeout_ms: i32) -> Result<u32, Errno> {
    let mut p = fds.map(|fd| libc::pollfd { fd, events: libc::POLLIN, revents: 0 });
    let args = [p.as_mut_ptr() as usize, 2, timeout_ms as isize as usize, 0, 0, 0];
    // SAFETY: `p` is an array of two `struct pollfd`, exclusively borrowed.
    unsafe { syscall6(libc::SYS_poll, args) }?;
    Ok(u32::from(p[0].revents != 0) | (u32::from(p[1].revents != 0) << 1))
}

/// Creates two sockets that are connected, close-on-exec and non-blocking; see socketpair(2).
///
/// # Context: control plane, and the monitor
///
/// # Errors
/// `EMFILE`, `ENFILE`, `ENOMEM`.
pub fn socketpair() -> Result<[i32; 2], Errno> {
    let mut pair = [-1i32; 2];
    let kind = libc::SOCK_STREAM | libc::SOCK_NONBLOCK | libc::SOCK_CLOEXEC;
    let args = [libc::AF_UNIX as usize, kind as usize, 0, pair.as_mut_ptr() as usize, 0, 0];
    // SAFETY: writes two numbers, exclusively borrowed.
    unsafe { syscall6(libc::SYS_socketpair, args) }?;
    Ok(pair)
}

/// Sends bytes to a socket, without a signal where nobody is there to receive, and without waiting; see sendto(2).
///
/// # Context: handler
///
/// # Errors
/// `ENOTSOCK`: it is none, and was left alone. `EAGAIN`, `EPIPE`, `EBADF`.
pub fn send(fd: i32, bytes: &[u8]) -> Result<usize, Errno> {
    let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
    let args = [fd as usize, bytes.as_ptr() as usize, bytes.len(), flags as usize, 0, 0];
    // SAFETY: reads `bytes`, borrowed for the length of the call.
    unsafe { syscall6(libc::SYS_sendto, args) }
}

/// Receives bytes from a socket without waiting; see recvfrom(2).
///
/// # Context: handler
///
/// # Errors
/// `ENOTSOCK`: it is none, and was left alone. `EAGAIN`, `EBADF`.
pub fn receive(fd: i32, buf: &mut [u8]) -> Result<usize, Errno> {
    let args = [fd as usize, buf.as_mut_ptr() as usize, buf.len(), libc::MSG_DONTWAIT as usize, 0, 0];
    // SAFETY: writes at most `buf.len()` bytes of `buf`, exclusively borrowed.
    unsafe { syscall6(libc::SYS_recvfrom, args) }
}

/// Drops a whole file's clean pages from the kernel's page cache; see posix_fadvise(2), `POSIX_FADV_DONTNEED`.
///
/// # Context: control plane
///
/// # Errors
/// `EBADF`, `ESPIPE`.
pub fn fadvise_dontneed(fd: i32) -> Result<(), Errno> {
    let args = [fd as usize, 0, 0, libc::POSIX_FADV_DONTNEED as usize, 0, 0];
    // SAFETY: touches no memory; the file's bytes stay what they are.
    unsafe { syscall6(libc::SYS_fadvise64, args) }.map(drop)
}

/// Begins to read a range of a file into the kernel's page cache; see posix_fadvise(2), `POSIX_FADV_WILLNEED`.
///
/// # Context: handler
///
/// # Errors
/// `EBADF`, `ESPIPE`.
pub fn fadvise_willneed(fd: i32, offset: u64, len_bytes: usize) -> Result<(), Errno> {
    let args = [fd as usize, offset as usize, len_bytes, libc::POSIX_FADV_WILLNEED as usize, 0, 0];
    // SAFETY: touches no memory; the file's bytes stay what they are.
    unsafe { syscall6(libc::SYS_fadvise64, args) }.map(drop)
}
