//! Tests in namespaces of their own, which not everybody may make.

use std::panic::Location;
use std::thread::Builder;

use nix::sched::{CloneFlags, unshare};

use crate::{Skip, Why, running_test, tell};

/// Runs a test in a thread with namespaces of its own. Without the rights for them: a skip, and
/// `None`.
///
/// # Panics
/// If the test does, and if its skip cannot be counted.
#[track_caller]
pub fn in_namespaces<T: Send + 'static>(
    kinds: CloneFlags,
    test: impl FnOnce() -> T + Send + 'static,
) -> Option<T> {
    let place = Location::caller();
    // Under the name of the test, for its own skips.
    let name = std::thread::current().name().unwrap_or("main").to_owned();
    let done = Builder::new().name(name).spawn(move || unshare(kinds).map(|()| test()));
    match done.map(std::thread::JoinHandle::join) {
        Ok(Ok(Ok(value))) => Some(value),
        Ok(Ok(Err(error))) => {
            let lack = Why::lack("root", format_args!("namespaces cannot be made ({error})"));
            tell(Skip { test: running_test(place), why: lack });
            None
        }
        Ok(Err(panic)) => std::panic::resume_unwind(panic),
        Err(error) => std::panic::resume_unwind(Box::new(error.to_string())),
    }
}
