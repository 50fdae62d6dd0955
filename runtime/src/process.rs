//! What is one per process: numbers and contexts, helper threads, descriptors, locked memory, and a look at its threads.

pub(crate) mod audit;
pub(crate) mod descriptors;
pub(crate) mod helper;
pub(crate) mod mlock;
pub(crate) mod opened;
pub(crate) mod registry;
