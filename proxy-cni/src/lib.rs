//! The CNI plugin: what a container runtime asks for, and which addresses a pod gets.

pub mod ipam;
pub mod spec;
pub mod store;
