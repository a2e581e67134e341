//! Commands that work without a daemon, on what the features leave in the kernel and on disk.

pub mod cleanup;
pub mod status;
