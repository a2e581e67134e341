//! Backends: each drives one kernel container from plans, and touches nothing outside of it.

pub mod nftables;
