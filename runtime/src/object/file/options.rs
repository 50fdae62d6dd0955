//! What is known of a file's object: which file it is, and what was asked of it: whoever opens it again asks for the same.
//!
//! # Context: control plane

use crate::cache::state::RuntimeInner;
use crate::object::options::ObjectOptions;
use crate::process::descriptors::Inode;
use softfault_mm::mapping::FailurePolicy;
use softfault_platform::store::retry::Retries;

/// Of which file an object is, and how that was opened.
#[derive(Debug)]
pub(crate) struct FileOf {
    pub(crate) inode: Inode,
    pub(crate) asked: Asked,
}

/// The options that are the object's, and not one value's.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub(crate) direct: bool,
    policy: FailurePolicy,
    retries: Retries,
    synchronous_writes: bool,
    dsync: bool,
    private_past_cache: bool,
    cache_limit_bytes: Option<u64>,
    exclusive: Option<bool>,
    huge_pages: bool,
    growable: bool,
    /// `None`: the runtime's, whatever that is.
    fill_window_pages: Option<u32>,
    readahead_pages: Option<u32>,
}

impl Asked {
    /// Returns what these options ask for, in this runtime.
    pub(super) fn new(runtime: &RuntimeInner, b: &ObjectOptions, direct: bool) -> Self {
        Self {
            direct,
            policy: b.policy,
            retries: b.retries,
            synchronous_writes: b.mkwrite,
            dsync: b.dsync,
            private_past_cache: b.private_past_cache,
            cache_limit_bytes: b.cache_limit_bytes,
            exclusive: b.exclusive,
            huge_pages: b.huge_pages,
            growable: b.growable,
            fill_window_pages: (b.fill_window_pages != runtime.fill_window_pages).then_some(b.fill_window_pages),
            readahead_pages: b.readahead_pages.filter(|_| b.readahead_pages != runtime.readahead_pages),
        }
    }

    /// Returns the name of an option that is not as in `open`.
    pub(super) fn differs_from(&self, open: &Self) -> Option<&'static str> {
        let (a, b) = (self, open);
        let retries = |r: &Retries| (r.times, r.backoff_ns);
        let rows = [
            ("direct", a.direct == b.direct),
            ("dsync", a.dsync == b.dsync),
            ("synchronous_writes", a.synchronous_writes == b.synchronous_writes),
            ("exclusive", a.exclusive == b.exclusive),
            ("on_failure", a.policy == b.policy),
            ("retries", retries(&a.retries) == retries(&b.retries)),
            ("cache_limit", a.cache_limit_bytes == b.cache_limit_bytes),
            ("private_past_cache", a.private_past_cache == b.private_past_cache),
            ("huge_pages", a.huge_pages == b.huge_pages),
            ("growable", b.growable || !a.growable),
            ("fill_window_pages", a.fill_window_pages == b.fill_window_pages),
            ("readahead_pages", a.readahead_pages == b.readahead_pages),
        ];
        rows.iter().find(|(_, same)| !same).map(|(name, _)| *name)
    }
}
