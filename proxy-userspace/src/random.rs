//! Random numbers where nobody could gain anything by guessing them.

use std::hash::{BuildHasher, Hasher, RandomState};

/// 64 random bits.
pub(crate) fn bits() -> u64 {
    // Each RandomState has its own random keys.
    RandomState::new().build_hasher().finish()
}
