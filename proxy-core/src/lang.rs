//! What the kernel's packet filters understand, as values that belong to no feature.
//!
//! Whatever wants packets to be handled says it in these words and knows what it means by them;
//! here are only the words, and how two states of one table are compared. So nothing below this
//! module knows what a table is for (`cargo xtask tidy` checks it), and a feature that needs a
//! table changes nothing here.

pub mod nftables;
