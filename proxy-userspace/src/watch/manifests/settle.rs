//! Which of the files that define an object counts, and what follows when one no longer has it.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::path::Path;
use std::sync::Arc;

use sluice_core::event::Event;
use sluice_core::kind::ObjectKey;

use super::file::{ReadError, read_text};
use super::{EMPTY, Manifests, hash};
use crate::watch::doubt::Known;
use crate::watch::{send, split};

/// Who defines an object.
pub(super) struct Definers {
    /// The files; the first by path counts.
    files: BTreeSet<Arc<Path>>,
    /// The file whose word was sent last.
    in_force: Arc<Path>,
}

impl Manifests {
    /// A file says what an object is.
    pub(super) async fn define(&mut self, path: &Arc<Path>, event: Event) {
        let Some(key) = event.key() else { return };
        let new = || Definers { files: BTreeSet::new(), in_force: path.clone() };
        let definers = self.definers.entry(key.clone()).or_insert_with(new);
        definers.files.insert(path.clone());
        match definers.files.first() {
            Some(first) if first != path => {
                let reason = format!(
                    "{} {} is also defined in {}, which takes precedence",
                    key.0,
                    key.1,
                    first.display()
                );
                self.report(path, None, &reason);
            }
            _ => {
                definers.in_force = path.clone();
                self.unsettled.remove(&key);
                self.put_off.remove(&key);
                send(&self.events, event).await;
            }
        }
    }

    /// An object is no longer in a file. What that means shows when everything that changed with it
    /// has been read.
    pub(super) fn undefine(&mut self, path: &Path, key: ObjectKey) {
        let Some(definers) = self.definers.get_mut(&key) else { return };
        definers.files.remove(path);
        if definers.files.is_empty() || *definers.in_force == *path {
            self.put_off.remove(&key);
            if self.unsettled.insert(key) {
                self.vanished = self.vanished.wrapping_add(1);
            }
        }
    }

    /// Settles all that waits.
    pub(super) async fn settle_all(&mut self) {
        let keys = std::mem::take(&mut self.unsettled);
        self.settle(keys).await;
    }

    /// Withdraws what no file has any more; of other objects the next file that defines them
    /// counts. Each of these is read once. What was put off is tried again with them.
    pub(super) async fn settle(&mut self, mut keys: BTreeSet<ObjectKey>) {
        let again = std::mem::take(&mut self.put_off);
        keys.extend(again.iter().cloned());
        while !keys.is_empty() {
            let mut heirs: BTreeMap<Arc<Path>, BTreeSet<ObjectKey>> = BTreeMap::new();
            for key in std::mem::take(&mut keys) {
                self.unsettled.remove(&key);
                let Some(definers) = self.definers.get(&key) else { continue };
                match definers.files.first() {
                    None => {
                        self.definers.remove(&key);
                        let (kind, name) = key;
                        send(&self.events, kind.deletion(name)).await;
                    }
                    Some(first) if *first == definers.in_force => {}
                    Some(first) => {
                        heirs.entry(first.clone()).or_default().insert(key);
                    }
                }
            }
            for (path, mut inherited) in heirs {
                let events = match self.inherited(&path, &inherited) {
                    Ok(events) => events,
                    Err(reason) => {
                        if !inherited.is_subset(&again) {
                            self.report(&path, None, &reason);
                        }
                        self.put_off.extend(inherited);
                        continue;
                    }
                };
                for event in events {
                    let Some(key) = event.key() else { continue };
                    if let Some(definers) = self.definers.get_mut(&key) {
                        definers.in_force = path.clone();
                    }
                    inherited.remove(&key);
                    send(&self.events, event).await;
                }
                // A document that cannot be read now does not hide that another was removed.
                self.forget(&path, &inherited);
                keys.extend(inherited);
            }
        }
    }

    /// What a file says of objects that it was read to have, or why that cannot be told now.
    fn inherited(&mut self, path: &Path, keys: &BTreeSet<ObjectKey>) -> Result<Vec<Event>, String> {
        let text = match read_text(path) {
            Ok(text) if text.trim().is_empty() => return Err(EMPTY.into()),
            Ok(text) => text,
            Err(ReadError::Failed(reason)) => return Err(reason),
            Err(ReadError::Gone | ReadError::Unusable(_)) => return Ok(Vec::new()),
        };
        let wanted: HashSet<&ObjectKey> = keys.iter().collect();
        let mut pieces = split::documents(&text);
        if let Some(file) = self.files.get(path).filter(|file| file.content == hash(&text)) {
            let mut documents = file.documents.iter();
            let has = |known: &Known| known.objects.iter().any(|key| wanted.contains(key));
            pieces.retain(|_| documents.next().is_none_or(has));
        }
        Ok(self.definitions(&pieces, &wanted))
    }

    /// What a file was read to have cannot be read there now: it counts again when it can.
    fn forget(&mut self, path: &Path, keys: &BTreeSet<ObjectKey>) {
        for key in keys {
            if let Some(definers) = self.definers.get_mut(key) {
                definers.files.remove(path);
            }
        }
        if let Some(file) = self.files.get_mut(path) {
            file.lost.extend(keys.iter().cloned());
        }
    }
}
