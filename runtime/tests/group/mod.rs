//! A memory group of the process's own, and what takes memory away from it: a hog, reclaim on request, an agent.
#![allow(dead_code, reason = "each test binary uses a part of this")]
#![allow(unsafe_code, reason = "maps memory to be a hog with, and advises other processes")]

use crate::common::PAGE;
use std::fs;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// The environment variable that names the group's folder; `.ci/real-hosts` makes the group, and its swap.
pub(crate) const VARIABLE: &str = "SOFTFAULT_PRESSURE_GROUP";

/// The memory group that this process is alone in (with its children).
#[derive(Debug)]
pub(crate) struct Group {
    dir: PathBuf,
    is_v2: bool,
}

impl Group {
    /// Returns the group that the environment names; `None`, having said why: there is none, and nothing can be squeezed.
    ///
    /// # Panics
    /// When one is named and this process is not in it, or nothing can be swapped: a scenario would prove nothing.
    pub(crate) fn of_lane(what: &str) -> Option<Self> {
        let Ok(dir) = std::env::var(VARIABLE) else {
            println!("{what} skipped: {VARIABLE} names no memory group; .ci/real-hosts makes one, as root");
            return None;
        };
        let dir = PathBuf::from(dir);
        let is_v2 = dir.join("memory.max").exists();
        let members = fs::read_to_string(dir.join("cgroup.procs")).expect("cgroup.procs");
        let me = std::process::id().to_string();
        assert!(members.lines().any(|pid| pid == me), "{VARIABLE}: process {me} is not in {}", dir.display());
        assert!(swap_bytes() > 0, "{VARIABLE} is set, and there is no swap: nothing would leave memory");
        let group = Self { dir, is_v2 };
        group.limit(None);
        Some(group)
    }

    fn write(&self, file: &str, value: &str) -> std::io::Result<()> {
        fs::write(self.dir.join(file), value)
    }

    /// Bounds the group's memory, swapping what is above; `None`: no bound.
    pub(crate) fn limit(&self, bytes: Option<usize>) {
        let text = |none: &str| bytes.map_or_else(|| none.to_owned(), |b| b.to_string());
        if self.is_v2 {
            return self.write("memory.max", &text("max")).expect("memory.max");
        }
        // Version 1 refuses what it could not reclaim at once.
        crate::common::until("the group's limit", || self.write("memory.limit_in_bytes", &text("-1")).is_ok());
    }

    /// Takes from the group whatever the kernel can take, now.
    pub(crate) fn reclaim(&self) {
        // What could not all be taken is EAGAIN or EBUSY.
        let _ = if self.is_v2 { self.write("memory.reclaim", "1G") } else { self.write("memory.force_empty", "0") };
    }
}

/// Says what may keep the kernel from swapping: how much swap is left, and what the group has in memory and in swap.
pub(crate) fn hindrance() -> String {
    let (all, used) = (swap_column(2) >> 10, swap_column(3) >> 10);
    let dir = PathBuf::from(std::env::var(VARIABLE).unwrap_or_default());
    let stat = fs::read_to_string(dir.join("memory.stat")).unwrap_or_default();
    let names = ["anon", "rss", "shmem", "swap", "unevictable", "pgscan", "pgsteal"];
    let told = |line: &&str| line.split(' ').next().is_some_and(|name| names.contains(&name));
    let told: Vec<&str> = stat.lines().filter(told).collect();
    format!("{used} of {all} KiB of swap are in use; the group's memory.stat: {}", told.join(", "))
}

/// The environment variable that names swap which a test may switch on and off.
pub(crate) const SPARE: &str = "SOFTFAULT_PRESSURE_SPARE_SWAP";

/// Swap that comes and goes; off on drop. It is preferred while it is on, so that what is swapped goes there.
#[derive(Debug)]
pub(crate) struct Spare(std::ffi::CString);

impl Spare {
    pub(crate) fn of_lane() -> Option<Self> {
        std::env::var(SPARE).ok().map(|path| Self(std::ffi::CString::new(path).expect("a path")))
    }
    pub(crate) fn on(&self) {
        const PREFERRED: libc::c_int = 0x8000 | 0x7fff;
        // SAFETY: reads a path.
        let r = unsafe { libc::swapon(self.0.as_ptr(), PREFERRED) };
        assert_eq!(r, 0, "swapon: {}", std::io::Error::last_os_error());
    }
    pub(crate) fn off(&self) {
        // SAFETY: reads a path; every page of it is brought in.
        let r = unsafe { libc::swapoff(self.0.as_ptr()) };
        assert_eq!(r, 0, "swapoff: {}", std::io::Error::last_os_error());
    }
}

impl Drop for Spare {
    fn drop(&mut self) {
        // SAFETY: reads a path; EINVAL where it is off.
        unsafe { libc::swapoff(self.0.as_ptr()) };
    }
}

/// The machine's swap, in bytes.
pub(crate) fn swap_bytes() -> u64 {
    swap_column(2)
}

/// The sum of a column of KiB in `/proc/swaps`, in bytes.
fn swap_column(column: usize) -> u64 {
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    let kib = |line: &str| line.split_whitespace().nth(column)?.parse::<u64>().ok();
    swaps.lines().skip(1).filter_map(kib).sum::<u64>() << 10
}

/// The environment variable that makes a process a hog of so many bytes.
const HOG: &str = "SOFTFAULT_PRESSURE_HOG_BYTES";

/// Is a hog until it is killed, if this process was made to be one; returns at once if it was not.
///
/// Where swap is written slower than memory is asked for, the kernel kills somebody of the group. Let it be the hog.
pub(crate) fn be_one_if_asked() {
    let Ok(bytes) = std::env::var(HOG) else { return };
    // SAFETY: asks for a signal when the thread that made this process ends.
    unsafe { libc::prctl(libc::PR_SET_PDEATHSIG, libc::SIGKILL) };
    fs::write("/proc/self/oom_score_adj", "1000").expect("oom_score_adj");
    touch_for_ever(bytes.parse().expect("bytes"))
}

/// Touches one page after the other of `len_bytes` of its own, round and round.
fn touch_for_ever(len_bytes: usize) -> ! {
    let (prot, flags) = (libc::PROT_READ | libc::PROT_WRITE, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
    // SAFETY: a fresh mapping.
    let base = unsafe { libc::mmap(std::ptr::null_mut(), len_bytes, prot, flags, -1, 0) };
    assert_ne!(base, libc::MAP_FAILED, "memory for a hog");
    // SAFETY: the mapping above; a huge page would be swapped as one.
    unsafe { libc::madvise(base, len_bytes, libc::MADV_NOHUGEPAGE) };
    let mut round = 0u64;
    loop {
        round += 1;
        for at in (0..len_bytes).step_by(PAGE) {
            // SAFETY: inside the mapping above, which nobody else knows.
            unsafe { base.wrapping_byte_add(at).cast::<u64>().write_volatile(round) };
        }
    }
}

/// Keeps a hog of `len_bytes` in the group until `stop` is set, in the test named `test`, which does nothing but
/// [`be_one_if_asked`]; one that the kernel has killed for want of memory has a successor. Returns how many were killed.
pub(crate) fn keep_hog(test: &str, len_bytes: usize, stop: &AtomicBool) -> usize {
    let binary = std::env::current_exe().expect("current_exe");
    let spawn = || {
        Command::new(&binary)
            .args([test, "--exact", "--nocapture", "--test-threads=1"])
            .env(HOG, len_bytes.to_string())
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .expect("a hog")
    };
    let (mut hog, mut killed) = (spawn(), 0);
    while !stop.load(Ordering::Relaxed) {
        if let Some(status) = hog.try_wait().expect("wait") {
            assert_eq!(status.signal(), Some(libc::SIGKILL), "a hog ends when it is killed: {status}");
            killed += 1;
            hog = spawn();
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    hog.kill().expect("kill");
    hog.wait().expect("wait");
    killed
}

/// Has the group give up its memory again and again until `stop` is set.
pub(crate) fn squeeze(group: &Group, pause: Duration, stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        group.reclaim();
        std::thread::sleep(pause);
    }
}

/// A mapping as `/proc/PID/smaps` tells of it.
#[derive(Clone, Debug)]
pub(crate) struct Area {
    pub(crate) start: usize,
    pub(crate) end: usize,
    pub(crate) inode: u64,
    pub(crate) name: String,
    /// Pages in swap: for shared memory those of the object, in the mapping's range.
    pub(crate) swapped: usize,
}

/// Lists the mappings of a process; none when it is gone.
pub(crate) fn areas(pid: u32) -> Vec<Area> {
    let smaps = fs::read_to_string(format!("/proc/{pid}/smaps")).unwrap_or_default();
    let mut list: Vec<Area> = Vec::new();
    for line in smaps.lines() {
        let mut words = line.split_whitespace();
        let first = words.next().unwrap_or_default();
        if let Some((start, end)) = first.split_once('-') {
            let hex = |s| usize::from_str_radix(s, 16).unwrap_or(0);
            let (_perms, _offset, _device) = (words.next(), words.next(), words.next());
            let inode = words.next().and_then(|n| n.parse().ok()).unwrap_or(0);
            let name = words.collect::<Vec<_>>().join(" ");
            list.push(Area { start: hex(start), end: hex(end), inode, name, swapped: 0 });
        } else if let (Some(last), "Swap:") = (list.last_mut(), first) {
            last.swapped = words.next().and_then(|n| n.parse::<usize>().ok()).unwrap_or(0) / (PAGE >> 10);
        }
    }
    list
}

/// The pages of this process's `range` that are in swap.
pub(crate) fn swapped_pages(range: &std::ops::Range<usize>) -> usize {
    let inside = |a: &&Area| a.start >= range.start && a.end <= range.end;
    areas(std::process::id()).iter().filter(inside).map(|a| a.swapped).sum()
}

/// Which pages of a range of this process have been in swap when somebody looked.
#[derive(Debug)]
pub(crate) struct WereSwapped {
    range: std::ops::Range<usize>,
    pages: Vec<bool>,
}

impl WereSwapped {
    pub(crate) fn new(range: std::ops::Range<usize>) -> Self {
        Self { pages: vec![false; range.len() / PAGE], range }
    }

    /// Looks; returns how many pages were in swap at some time.
    ///
    /// Not how many are: whoever looks at all the pages again and again, as write-back of exclusive objects does, brings them
    /// back as fast as the kernel takes them out, and each of them has been through the kernel's hands all the same.
    pub(crate) fn look(&mut self) -> usize {
        use std::os::unix::fs::FileExt;
        const SWAPPED: u64 = 1 << 62;
        let map = fs::File::open("/proc/self/pagemap").expect("pagemap");
        let mut entries = vec![0; self.pages.len() * 8];
        map.read_exact_at(&mut entries, (self.range.start / PAGE * 8) as u64).expect("pagemap");
        for (seen, entry) in self.pages.iter_mut().zip(entries.as_chunks::<8>().0) {
            *seen |= u64::from_ne_bytes(*entry) & SWAPPED != 0;
        }
        self.pages.iter().filter(|seen| **seen).count()
    }
}

/// The pages of another process's caches that are in swap: of each memfd what its largest mapping, the alias, tells.
pub(crate) fn swapped_cache_pages(pid: u32) -> usize {
    let mut caches = std::collections::HashMap::new();
    for a in areas(pid).iter().filter(|a| a.name.contains("memfd:softfault-cache")) {
        let most: &mut usize = caches.entry(a.inode).or_default();
        *most = a.swapped.max(*most);
    }
    caches.values().sum()
}

/// Advises every mapping of another process, as an agent of the machine's would; returns the bytes that were advised.
pub(crate) fn advise_all(pid: u32, advice: i32) -> usize {
    let raw = libc::pid_t::try_from(pid).expect("a pid");
    // SAFETY: opens a descriptor.
    let pidfd = unsafe { libc::syscall(libc::SYS_pidfd_open, raw, 0) };
    assert!(pidfd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
    let mut advised = 0;
    for a in areas(pid) {
        let range = libc::iovec { iov_base: a.start as *mut libc::c_void, iov_len: a.end - a.start };
        // SAFETY: reads one structure of ours; the advice changes no byte of the other process.
        let r = unsafe { libc::syscall(libc::SYS_process_madvise, pidfd, &raw const range, 1usize, advice, 0u32) };
        advised += usize::try_from(r).unwrap_or(0);
    }
    // SAFETY: opened above.
    unsafe { libc::close(i32::try_from(pidfd).expect("a descriptor")) };
    advised
}

/// Whether the kernel gives this process a userfaultfd, by the system call or the device: asked without our own detection, which
/// is among what is tested.
pub(crate) fn has_userfaultfd() -> bool {
    // SAFETY: opens a descriptor.
    let fd = unsafe { libc::syscall(libc::SYS_userfaultfd, libc::O_CLOEXEC) };
    if fd >= 0 {
        // SAFETY: opened above.
        unsafe { libc::close(i32::try_from(fd).expect("a descriptor")) };
    }
    fd >= 0 || fs::File::options().read(true).write(true).open("/dev/userfaultfd").is_ok()
}

/// A setting of the system's, put back on drop.
#[derive(Debug)]
pub(crate) struct Setting {
    path: PathBuf,
    before: String,
}

impl Setting {
    /// Remembers a setting of which the file lists the choices, the chosen one in brackets.
    pub(crate) fn of_choices(path: &Path) -> Option<Self> {
        let text = fs::read_to_string(path).ok()?;
        let before = text.split_once('[')?.1.split_once(']')?.0.to_owned();
        Some(Self { path: path.to_owned(), before })
    }
    pub(crate) fn set(&self, value: &str) -> std::io::Result<()> {
        fs::write(&self.path, value)
    }
}

impl Drop for Setting {
    fn drop(&mut self) {
        let _ = fs::write(&self.path, &self.before);
    }
}
