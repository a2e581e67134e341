//! Notices that the configuration file changed.

use std::io;
use std::path::{Path, PathBuf};

use futures::StreamExt;
use inotify::{Inotify, WatchMask};

use super::resolve::ConfigFile;

/// Returns when the file holds something else than it did. A ConfigMap volume changes by a symbolic
/// link (`..data`) that is exchanged in the file's directory, so directories are watched, not the
/// file. A file that is away, or cannot be read, has not changed.
pub async fn changed(file: &ConfigFile) -> io::Result<()> {
    let path = &file.path;
    let inotify = Inotify::init()?;
    for directory in directories(path) {
        inotify.watches().add(directory, WatchMask::CLOSE_WRITE | WatchMask::MOVED_TO | WatchMask::CREATE)?;
    }
    let mut events = inotify.into_event_stream([0; 4096])?;
    loop {
        // What changed between its reading and the watch counts too. An empty file is taken for a
        // half-written one.
        if std::fs::read_to_string(path).is_ok_and(|now| now != file.text && !now.is_empty()) {
            return Ok(());
        }
        match events.next().await {
            Some(Ok(_)) => {}
            Some(Err(error)) => return Err(error),
            None => return Err(io::Error::other("inotify ended")),
        }
    }
}

/// Where a change of the file shows: its directory, and the one where a link leads.
fn directories(path: &Path) -> Vec<PathBuf> {
    let parent = |path: &Path| match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent.to_owned(),
        _ => PathBuf::from("."),
    };
    let mut found = vec![parent(path)];
    found.extend(std::fs::canonicalize(path).ok().map(|target| parent(&target)));
    found
}
