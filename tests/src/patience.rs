//! How much longer than usual an expectation may take to be met, on a machine that is slow, such as
//! an emulated one.

use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

static FACTOR: AtomicU32 = AtomicU32::new(1);

/// Sets the factor of this process.
pub fn set(factor: u32) {
    FACTOR.store(factor, Ordering::Relaxed);
}

/// The factor of this process.
#[must_use]
pub fn factor() -> u32 {
    FACTOR.load(Ordering::Relaxed)
}

/// A time limit on this machine. What must not happen for some time is no limit, and stays as it
/// is.
#[must_use]
pub fn stretched(limit: Duration) -> Duration {
    limit.saturating_mul(factor())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_are_as_written_unless_said_otherwise() {
        assert_eq!(stretched(Duration::from_secs(5)), Duration::from_secs(5));
    }
}
