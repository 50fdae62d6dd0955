//! The walk of one fault, from the address to the page that the kernel maps.

pub mod fault;
pub mod memory;
pub mod shmem;
#[cfg(feature = "userfaultfd")]
pub mod userfaultfd;
