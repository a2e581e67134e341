//! The lab (a small cluster made of network namespaces) and the conformance runner on top of it.
//!
//! [`lab::Lab`] builds nodes, pods and an outside client and removes them again, whatever happened;
//! demos and benchmarks use it directly. [`case`] reads a case file, [`runner`] executes it,
//! [`expect`] decides whether what was observed is what the case demands.

pub mod address;
pub mod agent;
pub mod bursts;
pub mod capture;
pub mod case;
pub mod cluster;
pub mod expect;
pub mod fault_proxy;
pub mod interrupt;
pub mod known;
pub mod lab;
pub mod needs;
pub mod objects;
pub mod patience;
pub mod process;
pub mod proxy;
pub mod replay;
pub mod report;
pub mod runner;
pub mod scenarios;
pub mod self_test;
pub mod soak;
pub mod target;
pub mod topology;
pub mod torture;
pub mod vm;
