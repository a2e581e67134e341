//! The CNI plugin: what a container runtime asks for, and which addresses a pod gets.

pub mod delegate;
pub mod ipam;
pub mod loopback;
pub mod net;
pub mod node_file;
pub mod plugin;
pub mod spec;
pub mod store;
pub mod wiring;
