//! Which objects are captured: each by one capture at a time, since its bits are that one's.
//!
//! # Context: control plane

use std::sync::{Mutex, PoisonError};

/// The numbers of the objects that are captured.
static CLAIMED: Mutex<Vec<u32>> = Mutex::new(Vec::new());

/// Objects that nobody else captures. It is shared by who touches their bits: the capture until it is ended, and its saver.
#[derive(Debug)]
pub(super) struct Claim(Vec<u32>);

impl Claim {
    /// Claims objects by their numbers; `None`: one of them is somebody else's.
    pub(super) fn take(ids: Vec<u32>) -> Option<Self> {
        let mut claimed = CLAIMED.lock().unwrap_or_else(PoisonError::into_inner);
        if ids.iter().any(|id| claimed.contains(id)) {
            return None;
        }
        claimed.extend(&ids);
        Some(Self(ids))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        CLAIMED.lock().unwrap_or_else(PoisonError::into_inner).retain(|id| !self.0.contains(id));
    }
}
