//! What the kernel says of itself and of a process, in files.

use std::fs;
use std::path::{Path, PathBuf};

/// Where `/proc`, `/sys` and `/dev` are, and which process is looked at.
#[derive(Debug)]
pub(crate) struct Machine {
    root: PathBuf,
    pid: Option<u32>,
}

impl Machine {
    pub(crate) fn new(root: &Path, pid: Option<u32>) -> Self {
        Self { root: root.into(), pid }
    }

    /// Returns where a file of the kernel's is: `path` without the first slash.
    pub(crate) fn path(&self, path: &str) -> PathBuf {
        self.root.join(path)
    }

    /// Returns what a file says, without the end of the last line; `None`: it cannot be read.
    pub(crate) fn read(&self, path: &str) -> Option<String> {
        fs::read_to_string(self.path(path)).ok().map(|text| text.trim_end().to_owned())
    }

    /// Returns a number that a file says.
    pub(crate) fn number(&self, path: &str) -> Option<u64> {
        self.read(path)?.trim().parse().ok()
    }

    /// Returns what is looked at, for people.
    pub(crate) fn who(&self) -> String {
        self.pid.map_or_else(|| "a process started from here".into(), |pid| format!("process {pid}"))
    }

    fn process(&self) -> String {
        self.pid.map_or_else(|| "proc/self".into(), |pid| format!("proc/{pid}"))
    }

    /// Returns a file of the process.
    pub(crate) fn of_process(&self, name: &str) -> Option<String> {
        self.read(&format!("{}/{name}", self.process()))
    }

    /// Returns the status of each thread of the process.
    pub(crate) fn threads(&self) -> Vec<Status> {
        let tasks = fs::read_dir(self.path(&format!("{}/task", self.process())));
        let files = tasks.into_iter().flatten().flatten().map(|task| task.path().join("status"));
        // A thread may end while it is looked at.
        let mut all: Vec<_> = files.filter_map(|f| fs::read_to_string(f).ok()).map(Status).collect();
        all.sort_by_key(|s| s.number("Pid"));
        all
    }
}

/// The lines of a `status`: proc_pid_status(5).
#[derive(Debug)]
pub(crate) struct Status(pub(crate) String);

impl Status {
    pub(crate) fn field(&self, name: &str) -> Option<&str> {
        self.0.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(':')).map(str::trim)
    }

    pub(crate) fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.split_whitespace().next()?.parse().ok()
    }

    /// Returns a mask, which is written in hexadecimal digits.
    pub(crate) fn mask(&self, name: &str) -> Option<u64> {
        u64::from_str_radix(self.field(name)?, 16).ok()
    }
}
