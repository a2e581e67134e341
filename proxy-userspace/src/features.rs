//! The features of this daemon. Another one has an entry here, a room, and a wall around it
//! (`xtask/src/tidy/walls.rs`).

use crate::feature::Feature;
use crate::{network, service};

/// All of them, in the order in which reports show them.
pub(crate) const FEATURES: [Feature; 2] =
    [Feature { owned: service::owned }, Feature { owned: network::owned }];
