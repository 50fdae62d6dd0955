//! Snapshots of other programs as images. Their files are read in place: nothing is converted, and nothing has digests.

mod bytes;
pub mod cloud_hypervisor;
pub mod criu;
pub mod qemu;
