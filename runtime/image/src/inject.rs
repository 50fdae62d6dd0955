//! Failures of the calls by which files are made, named and removed, for tests. In release builds nothing of it is left.
//!
//! Each call of `durable` is a step. A thread arms a [`Plan`], does what is to be tested, and takes the plan
//! back: with it the steps can be told, have failed, or have ended the process.
//!
//! # Context: control plane; allocates

#![cfg_attr(not(debug_assertions), allow(dead_code, reason = "nothing is armed in release builds"))]

use std::cell::RefCell;
use std::io;
use std::path::PathBuf;

/// A call that changes files.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// A file is made that may become the one of that name.
    Create(PathBuf),
    /// A folder is made.
    CreateFolder(PathBuf),
    /// Bytes are written.
    Write(PathBuf, u64, Vec<u8>),
    /// A file gets a length.
    SetLen(PathBuf, u64),
    /// A file is made durable.
    Sync(PathBuf),
    /// A file gets another name.
    Rename(PathBuf, PathBuf),
    /// The names in a folder are made durable.
    SyncFolder(PathBuf),
    /// A name is removed.
    Remove(PathBuf),
}

/// What happens to steps.
#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// The steps so far; their bytes are kept if `keeps_bytes`.
    pub steps: Vec<Step>,
    /// Whether [`Step::Write`] has its bytes.
    pub keeps_bytes: bool,
    /// The number of the step that fails, and the errno that it fails with.
    pub fail_at: Option<(usize, i32)>,
    /// Whether all steps from then on fail, too, but for removals.
    pub for_good: bool,
    /// The number of the step at which the process is killed, before it is done.
    pub die_at: Option<usize>,
}

thread_local! {
    static PLAN: RefCell<Option<Plan>> = const { RefCell::new(None) };
}

/// Has this thread's steps follow a plan.
pub fn arm(plan: Plan) {
    PLAN.with_borrow_mut(|p| *p = Some(plan));
}

/// Ends the plan, and returns it with the steps that there were.
pub fn disarm() -> Plan {
    PLAN.take().unwrap_or_default()
}

/// Says that a step comes.
///
/// # Errors
/// The one that the plan says: then the step is not done.
pub(crate) fn step(step: impl FnOnce(bool) -> Step) -> io::Result<()> {
    if cfg!(not(debug_assertions)) {
        return Ok(());
    }
    PLAN.with_borrow_mut(|plan| {
        let Some(plan) = plan else { return Ok(()) };
        let (at, step) = (plan.steps.len(), step(plan.keeps_bytes));
        let is_removal = matches!(step, Step::Remove(_));
        plan.steps.push(step);
        if plan.die_at == Some(at) {
            let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        }
        match plan.fail_at {
            Some((wanted, errno)) if wanted == at || plan.for_good && at > wanted && !is_removal => {
                Err(io::Error::from_raw_os_error(errno))
            }
            _ => Ok(()),
        }
    })
}
