//! What an exclusive object is made of.
//!
//! # Context: control plane

use crate::object::options::ObjectOptions;
use softfault_mm::folio::FolioWord;
use softfault_platform::store::Store;

/// What an exclusive object is made of, beside its plan.
#[cfg_attr(not(feature = "userfaultfd"), expect(dead_code, reason = "there are no exclusive objects"))]
pub(crate) struct Parts<'a> {
    pub(crate) options: &'a ObjectOptions,
    pub(crate) store: &'static dyn Store,
    pub(crate) folios: &'static [FolioWord],
    pub(crate) handler_safe: bool,
    pub(crate) name: u64,
}
