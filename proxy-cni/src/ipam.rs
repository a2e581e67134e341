//! Our own management of addresses: which address a pod gets.
//!
//! All of it is decided here, from what is written down about who has what; who writes it down is
//! not of interest.

mod allocate;
mod range;

pub use allocate::{AllocationError, Family, Lease, Leases, allocate};
pub use range::RangeError;
