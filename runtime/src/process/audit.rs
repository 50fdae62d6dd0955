//! Threads that could not take our signals: a fault there kills the process, and nothing can be done at fault time.
//!
//! The kernel delivers a synchronous signal that is blocked or ignored by killing. So this is checked beforehand: for
//! each thread `SigBlk` of `/proc/self/task/*/status` (proc_pid_status(5)), for the process the dispositions.
//!
//! A thread that is resolving a fault has every signal masked, those of the C library too, which the program's own calls
//! leave open: it is looked at again until it has come out.
//!
//! # Context: control plane

use crate::by_std;
use crate::error::{Error, Result};
use crate::short::Short;
use softfault_platform::sys::signal::{self, EVERY_SIGNAL, SIGBUS, SIGSEGV, mask_bit};
use softfault_platform::sys::thread;
use softfault_platform::trap::{self, chain};
use std::fmt;
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// What is wrong with a thread, or with the process.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Offender {
    /// The thread's id; 0 for the whole process.
    pub tid: u32,
    /// The thread's name.
    pub name: String,
    /// What is wrong, and what to do.
    pub why: String,
}

/// The result of [`Runtime::audit_threads`](crate::Runtime::audit_threads). Empty: every thread may touch arenas.
#[derive(Clone, PartialEq, Eq, Default)]
pub struct Audit {
    /// Who may not touch an arena, and why.
    pub offenders: Vec<Offender>,
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Audit").field(&Short(self)).finish()
    }
}

impl fmt::Display for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.offenders.is_empty() {
            return f.write_str("every thread can take SIGBUS and SIGSEGV\n");
        }
        for o in &self.offenders {
            writeln!(f, "{} ({}): {}", o.tid, o.name, o.why)?;
        }
        Ok(())
    }
}

/// More warnings than this are one too many for anybody to read.
const NR_WARNINGS_MAX: usize = 64;

/// Threads that made or mapped something while they could not have touched it.
#[derive(Debug, Default)]
pub(crate) struct Warnings(Mutex<Vec<Offender>>);

impl Warnings {
    /// Notes it if the calling thread blocks our signals: it most likely is one of those that will touch the arena. Once for
    /// each thread and call.
    pub(crate) fn note(&self, op: &'static str) {
        let blocked = named(signal::block(0));
        if blocked.is_empty() {
            return;
        }
        let tid = thread::gettid();
        let why =
            format!("blocked {blocked} when it called {op}: a fault of this thread on an arena kills the process");
        let mut list = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if list.len() < NR_WARNINGS_MAX && !list.iter().any(|o| o.tid == tid && o.why == why) {
            let name = by_std::read_to_string(format!("/proc/self/task/{tid}/comm")).unwrap_or_default();
            list.push(Offender { tid, name: name.trim_end().to_owned(), why });
        }
    }

    /// Returns what was noted, in the order of the calls.
    pub(crate) fn list(&self) -> Vec<Offender> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns the names of our signals in a mask.
fn named(set: u64) -> String {
    let names = [(SIGBUS, "SIGBUS"), (SIGSEGV, "SIGSEGV")];
    let hit: Vec<_> = names.iter().filter(|(s, _)| set & mask_bit(*s) != 0).map(|(_, n)| *n).collect();
    hit.join(" and ")
}

/// Looks at every thread of the process.
pub(crate) fn audit_threads() -> Result<Audit> {
    let io = |source| Error::Io { op: "audit_threads", path: None, source };
    let mut offenders = Vec::new();
    if !chain::is_installed(trap::on_signal) {
        let why = "SIGBUS or SIGSEGV belongs to another handler; call Runtime::reinstall_handlers";
        offenders.push(Offender { tid: 0, name: "process".into(), why: why.into() });
    }
    let opened = crate::process::opened::close();
    if opened > 0 {
        let why = format!(
            "mprotect(2) has opened {opened} pages of Segv arenas that were closed: they read as zeros; Arena::protect"
        );
        offenders.push(Offender { tid: 0, name: "process".into(), why });
    }
    let mut tasks = Vec::new();
    for task in by_std::read_dir("/proc/self/task").map_err(io)? {
        tasks.push(task.map_err(io)?.path());
    }
    offenders.extend(audit_tasks(tasks, || std::thread::sleep(Duration::from_millis(1))));
    offenders.sort_by_key(|o| o.tid);
    Ok(Audit { offenders })
}

/// Looks at each thread until it is in no handler of ours, or has had its time: at all of them in each round, after which it pauses,
/// so that many cost no more time than one.
fn audit_tasks(tasks: Vec<PathBuf>, mut pause: impl FnMut()) -> Vec<Offender> {
    let mut offenders = Vec::new();
    let mut left: Vec<_> = tasks.into_iter().map(|task| Looked { task, asleep: 0, busy: 0 }).collect();
    while !left.is_empty() {
        left.retain_mut(|thread| match look(thread) {
            Look::Again => true,
            Look::Gone => false,
            Look::Is(status) => {
                offenders.extend(audit_status(&status));
                false
            }
        });
        if !left.is_empty() {
            pause();
        }
    }
    offenders
}

/// A thread that is being looked at, and how often it was found asleep or busy.
struct Looked {
    task: PathBuf,
    asleep: u32,
    busy: u32,
}

enum Look {
    /// It may be in a handler of ours.
    Again,
    /// It has ended, or ended between the listing and the reading.
    Gone,
    Is(String),
}

/// How often a thread is looked at that sleeps with everything masked, a millisecond apart.
const LOOKS: u32 = 50;
/// How often one is looked at that would run if it had a processor, or waits inside the kernel for what no signal ends: in a
/// handler of ours, or on its way in or out of the C library, which masks everything while a thread begins and while it ends.
/// (Its last descriptors are closed then, which may be those of userfaultfds.)
const LOOKS_BUSY: u32 = 2_000;

/// Reads a thread's `status`.
fn look(thread: &mut Looked) -> Look {
    let Ok(status) = by_std::read_to_string(thread.task.join("status")) else { return Look::Gone };
    match field(&status, "State:").chars().next() {
        // It touches nothing any more.
        Some('Z' | 'X') => return Look::Gone,
        Some('S') => thread.asleep += 1,
        _ => thread.busy += 1,
    }
    if is_in_handler(&status) && thread.asleep < LOOKS && thread.busy < LOOKS_BUSY {
        return Look::Again;
    }
    Look::Is(status)
}

/// Returns whether every signal is masked that can be: SIGKILL and SIGSTOP (9 and 19) cannot. A thread that the C library is
/// ending has one open, by which it asks all threads to change their user (33); what a program blocks leaves 32 open, too.
fn is_in_handler(status: &str) -> bool {
    let blocked = u64::from_str_radix(field(status, "SigBlk:"), 16).unwrap_or(0);
    blocked | mask_bit(33) == EVERY_SIGNAL & !mask_bit(9) & !mask_bit(19)
}

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    status.lines().find_map(|l| l.strip_prefix(name)).unwrap_or("").trim()
}

/// Judges one `status` file.
fn audit_status(status: &str) -> Option<Offender> {
    let mask = |name| u64::from_str_radix(field(status, name), 16).unwrap_or(0);
    let (blocked, ignored) = (named(mask("SigBlk:")), named(mask("SigIgn:")));
    let why = match (blocked.is_empty(), ignored.is_empty()) {
        (true, true) => return None,
        (false, _) => format!("blocks {blocked}: a fault on an arena would kill the process; unblock it"),
        (true, false) => format!("ignores {ignored}: a fault on an arena would kill the process"),
    };
    let tid = field(status, "Pid:").parse().unwrap_or(0);
    Some(Offender { tid, name: field(status, "Name:").to_owned(), why })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_with_sigbus_blocked_is_named() {
        let text = "Name:\tworker\nPid:\t77\nSigBlk:\t0000000000000040\nSigIgn:\t0000000000000000\n";
        let o = audit_status(text).expect("blocked");
        assert_eq!((o.tid, o.name.as_str()), (77, "worker"));
        assert!(o.why.contains("SIGBUS") && !o.why.contains("SIGSEGV"), "{}", o.why);
    }

    #[test]
    fn a_mask_of_everything_is_a_handlers() {
        assert!(is_in_handler("SigBlk:\tfffffffffffbfeff\n"));
        assert!(is_in_handler("SigBlk:\tfffffffefffbfeff\n"), "or of a thread that ends");
        assert!(!is_in_handler("SigBlk:\tfffffffe7ffbfeff\n"), "what a program's sigfillset(3) blocks");
        assert!(!is_in_handler("SigBlk:\t0000000000000040\n"));
    }

    /// Threads that are in no hurry cost their time once, and not each of them.
    #[test]
    fn many_threads_in_handlers_are_waited_for_together() {
        let dir = std::env::temp_dir().join(format!("softfault-audit-{}", std::process::id()));
        let task = |tid: u32, state: &str| {
            let task = dir.join(tid.to_string());
            std::fs::create_dir_all(&task).expect("a directory");
            let text = format!("Name:\tx\nState:\t{state}\nPid:\t{tid}\nSigBlk:\tfffffffffffbfeff\n");
            std::fs::write(task.join("status"), text).expect("a file");
            task
        };
        let rounds = |state: &str, nr: u32| {
            let mut rounds = 0;
            let offenders = audit_tasks((1..=nr).map(|tid| task(tid, state)).collect(), || rounds += 1);
            assert_eq!(offenders.len(), nr as usize, "each of them blocks our signals for as long as anybody looks");
            rounds
        };
        for (state, looks) in [("S (sleeping)", LOOKS), ("D (disk sleep)", LOOKS_BUSY)] {
            assert_eq!(rounds(state, 1), looks - 1, "{state}");
            assert_eq!(rounds(state, 8), looks - 1, "{state}: eight of them");
        }
        std::fs::remove_dir_all(&dir).expect("removed");
    }

    #[test]
    fn a_clean_status_is_no_offender() {
        assert_eq!(audit_status("Name:\tx\nPid:\t1\nSigBlk:\t0000000000000000\n"), None);
    }
}
