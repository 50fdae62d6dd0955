//! What runtimes divide that were given no limit: one share for the process, half of its memory, in equal parts.
//!
//! Each would take half of the memory otherwise, and three of them more than there is. Limits that the program sets are the
//! program's to add up.
//!
//! The lock of the list is a leaf but for the locks of queues that grow; a reference that is made under it is dropped behind it,
//! since it may be the last one.
//!
//! # Context: control plane

use super::state::RuntimeInner;
use crate::memory;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

static SHARERS: Mutex<Vec<Weak<RuntimeInner>>> = Mutex::new(Vec::new());

fn sharers() -> MutexGuard<'static, Vec<Weak<RuntimeInner>>> {
    SHARERS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the part of each of `nr`, in pages.
fn part(nr: usize) -> u64 {
    memory::limit_pages(memory::default_limit_bytes() / nr.max(1) as u64)
}

/// Returns the limit of a runtime that is about to join.
pub(crate) fn next_limit_pages() -> u64 {
    part(sharers().iter().filter(|s| s.strong_count() > 0).count() + 1)
}

/// Has a runtime share; the others' parts become smaller.
pub(crate) fn join(runtime: &Arc<RuntimeInner>) {
    sharers().push(Arc::downgrade(runtime));
    divide();
}

/// Takes a runtime out that has a limit of its own now; the others' parts become larger.
pub(crate) fn leave(runtime: &Arc<RuntimeInner>) {
    let was = {
        let mut list = sharers();
        let before = list.len();
        list.retain(|s| !std::ptr::eq(s.as_ptr(), Arc::as_ptr(runtime)));
        list.len() < before
    };
    if was {
        divide();
    }
}

/// Gives every runtime that shares its part: after one has come or gone.
pub(crate) fn divide() {
    let alive: Vec<Arc<RuntimeInner>> = {
        let mut list = sharers();
        list.retain(|s| s.strong_count() > 0);
        let alive: Vec<_> = list.iter().filter_map(Weak::upgrade).collect();
        for runtime in &alive {
            runtime.set_limit(part(alive.len()));
        }
        alive
    };
    drop(alive);
}
