//! One daemon in a network namespace: waiting for a predecessor to end.

use std::time::{Duration, Instant};

use sluice_sys::node_lock::{Holder, NodeLock, NodeLockError};
use tracing::{info, warn};

/// How long a predecessor may take to end.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long somebody who cannot be a daemon may keep `sluice cleanup` waiting.
const DOUBT: Duration = Duration::from_secs(1);
/// Between two attempts.
const PERIOD: Duration = Duration::from_millis(50);

/// Takes the lock of the network namespace; must be kept for as long as the daemon works. `None`:
/// somebody has the name who is no daemon, which must not keep Services from being served.
pub(crate) async fn wait() -> Result<Option<NodeLock>, NodeLockError> {
    let begun = Instant::now();
    let mut told = false;
    loop {
        match NodeLock::take() {
            Ok(lock) => {
                tokio::spawn(receive(lock.visitors().map_err(NodeLockError::from)?));
                return Ok(Some(lock));
            }
            Err(error @ NodeLockError::System(_)) => return Err(error),
            Err(NodeLockError::Squatted(by)) if begun.elapsed() >= PATIENCE => {
                warn!(
                    by,
                    "continuing without the lock that keeps out a second daemon: another program holds \
                     its name"
                );
                return Ok(None);
            }
            Err(error) if begun.elapsed() >= PATIENCE => return Err(error),
            Err(error) => {
                if !std::mem::replace(&mut told, true) {
                    info!("{error}; waiting up to {} s for it to end", PATIENCE.as_secs());
                }
            }
        }
        tokio::time::sleep(PERIOD).await;
    }
}

/// Lets everybody go who has asked for the holder.
async fn receive(visitors: std::os::unix::net::UnixListener) {
    let visitors = match tokio::net::UnixListener::from_std(visitors) {
        Ok(visitors) => visitors,
        Err(error) => return warn!(%error, "requests for this daemon's process id may get no answer"),
    };
    loop {
        if visitors.accept().await.is_err() {
            // No descriptors are left, for one.
            tokio::time::sleep(PERIOD).await;
        }
    }
}

/// Takes the lock, or tells which daemon is at work.
pub(crate) fn take_or_holder() -> Result<Result<NodeLock, Holder>, NodeLockError> {
    let begun = Instant::now();
    loop {
        match NodeLock::take() {
            Ok(lock) => return Ok(Ok(lock)),
            Err(NodeLockError::Held(holder)) => return Ok(Err(holder)),
            Err(NodeLockError::Squatted(_)) if begun.elapsed() < DOUBT => std::thread::sleep(PERIOD),
            Err(error) => return Err(error),
        }
    }
}
