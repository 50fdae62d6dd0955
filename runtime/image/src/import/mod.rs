//! Snapshots of other programs as images. Their files are read in place: nothing is converted, and nothing has digests.
//!
//! # Context: control plane; allocates, and waits for files

mod bytes;
pub mod cloud_hypervisor;
pub mod criu;
pub mod qemu;
