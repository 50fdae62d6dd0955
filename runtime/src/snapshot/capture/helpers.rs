//! The helper threads of a capture: the saver and the watch.
//!
//! # Context: control plane

use super::claim::Claim;
use super::state::State;
use super::{end, saver, watch};
use crate::error::{Error, Result};
use crate::process::helper::Thread;
use softfault_platform::area;
use softfault_platform::sys::futex;
use std::sync::Arc;

/// Both, from before the cut until the capture is ended.
#[derive(Debug)]
pub(super) struct Helpers {
    saver: Thread,
    watch: Thread,
}

impl Helpers {
    /// Starts them; where one cannot be, the frames go.
    ///
    /// # Errors
    /// [`Error::Io`].
    pub(super) fn start(state: &Arc<State>, claim: Arc<Claim>) -> Result<Self> {
        Self::try_start(state, claim).map_err(|source| {
            end::close_area(state);
            Error::Io { op: "CaptureBuilder::begin: start a thread", path: None, source }
        })
    }

    fn try_start(state: &Arc<State>, claim: Arc<Claim>) -> std::io::Result<Self> {
        let (theirs, ours) = (Arc::clone(state), Arc::clone(state));
        let mut watch = Thread::start_helper("softfault-watch", move |_| watch::run(&theirs))?;
        let saver = Thread::start_helper("softfault-save", move |_| {
            saver::run(&ours);
            drop(claim);
        });
        match saver {
            Ok(saver) => Ok(Self { saver, watch }),
            Err(error) => {
                end::stop(state);
                watch.end(|| futex::wake_word(&state.stop));
                Err(error)
            }
        }
    }

    /// Waits until they have ended, which [`end::end`] has told them to, and gives the frames back.
    pub(super) fn end(mut self, state: &State) {
        self.watch.end(|| futex::wake_word(&state.stop));
        self.saver.end(|| area::ring(state.number()));
        end::close_area(state);
    }
}
