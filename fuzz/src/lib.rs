//! Fuzzing on stable Rust: inputs are made from valid ones by seeded mutation, and given to a
//! reader, which must neither panic nor take long. Targets are tests of the crates that they look
//! into; `cargo xtask fuzz` runs them with many inputs.
//!
//! Each input has a random generator of its own, made from the seed and the input's number, so that
//! a run can be repeated. What a reader fails on is made smaller, and written to a file.

mod attributes;
mod bytes;
mod files;
mod run;
mod settings;
mod smaller;
mod tree;
mod watch;

pub use attributes::Attributes;
pub use bytes::Bytes;
pub use fastrand::Rng;
pub use files::{below, corpus};
pub use run::fuzz;
pub use settings::cases;
pub use tree::{Trees, objects};
pub use watch::Watch;
