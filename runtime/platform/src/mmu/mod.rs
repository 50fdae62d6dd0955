//! The host's page tables, as arenas may change them: through userfaultfd, or through protection.

pub mod budget;
#[cfg(feature = "userfaultfd")]
pub mod exclusive;
pub mod segv;
#[cfg(feature = "userfaultfd")]
pub mod uffd;
