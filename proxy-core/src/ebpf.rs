//! Lowering a plan to the maps of the eBPF programs.
//!
//! A packet's destination is looked up in `FRONTENDS`; what is found says, for pods, this node and
//! others, whether to refuse or which list of the service port's group to use. `GROUPS` tells how
//! many slots that list has, `ENDPOINTS` who is in each of them. The layouts are those of
//! `sluice-common`.
//!
//! Invariants:
//! - Each [`Op`] is one update of one map, and packets pass between any two of them. There are no
//!   transactions, so the order of operations is what keeps every lookup right; [`Ledger`] says
//!   how.
//! - Group ids are hashes of the service port's identity, so the same plan gives the same entries
//!   in every run: nothing has to be remembered over a restart but the order of slots, which the
//!   maps tell.

mod edits;
mod entry;
mod ledger;
mod lower;
mod maglev;
mod node;
mod quarantine;

pub use entry::{Entry, EntryId, MapKind, Op, address, ip};
pub use ledger::Ledger;
pub use lower::{Endpoints, cluster_ip, group_number, lower};
pub use maglev::table;
pub use node::{NodeView, PortRuns, Timeouts, free_ports, interface_is_pod, leaves_ports};
pub use quarantine::Apart;
