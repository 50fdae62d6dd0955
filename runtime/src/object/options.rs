//! What an object is to be, as its builder was told.
//!
//! # Context: control plane

use softfault_mm::mapping::FailurePolicy;
use softfault_platform::store::retry::Retries;
use std::time::Duration;

/// The options of an object; each is documented where the builder sets it.
#[derive(Clone)]
pub(crate) struct ObjectOptions {
    pub(crate) len_bytes: u64,
    pub(crate) max_len_bytes: u64,
    pub(crate) writable: bool,
    pub(crate) policy: FailurePolicy,
    pub(crate) deadline: Option<Duration>,
    pub(crate) retries: Retries,
    pub(crate) mkwrite: bool,
    pub(crate) dsync: bool,
    pub(crate) fill_window_pages: u32,
    pub(crate) readahead_pages: Option<u32>,
    pub(crate) private_past_cache: bool,
    pub(crate) cache_limit_bytes: Option<u64>,
    /// `Some`: it is exclusive; `true`: by copying only.
    pub(crate) exclusive: Option<bool>,
    pub(crate) huge_pages: bool,
    pub(crate) growable: bool,
    pub(crate) label: Option<String>,
}

impl ObjectOptions {
    /// Returns the defaults, in a runtime with these windows.
    pub(crate) fn new(len_bytes: u64, fill_window_pages: u32, readahead_pages: Option<u32>) -> Self {
        Self {
            len_bytes,
            max_len_bytes: len_bytes,
            writable: false,
            policy: FailurePolicy::Poison,
            deadline: None,
            retries: Retries::default(),
            mkwrite: false,
            dsync: false,
            fill_window_pages,
            readahead_pages,
            private_past_cache: true,
            cache_limit_bytes: None,
            exclusive: None,
            huge_pages: false,
            growable: false,
            label: None,
        }
    }

    /// Returns what the object is called: what the program says, or else its number.
    pub(crate) fn label_of(&self, id: u32) -> String {
        self.label.clone().unwrap_or_else(|| format!("object {id}"))
    }
}
