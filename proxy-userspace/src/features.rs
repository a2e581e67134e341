//! The features of this daemon. Another one has an entry here, a room, and a wall around it
//! (`xtask/src/tidy/walls.rs`).

use crate::config::Settings;
use crate::feature::Feature;
use crate::watch::Kinds;
use crate::{network, service};

/// All of them, in the order in which reports show them.
pub(crate) const FEATURES: [Feature; 2] = [
    Feature { interests: service::interests, owned: service::owned },
    Feature { interests: network::interests, owned: network::owned },
];

/// What any of them reads.
pub fn interests(settings: &Settings) -> Kinds {
    FEATURES.iter().map(|feature| (feature.interests)(settings)).fold(Kinds::default(), Kinds::and)
}
