//! Objects from a directory of YAML and JSON files, watched with inotify.
//!
//! The rule for anything doubtful is to keep what is served: a broken document keeps what it could have been
//! ([`doubt`](super::doubt)), an empty file is taken for a half-written one, and a directory that vanishes withdraws
//! nothing. Objects are withdrawn when their file is deleted, or when it no longer has them.
//!
//! Of a file that changed only the documents that did are read: of the others a hash is kept, and what they define.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use sluice_core::event::{Change, Event};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::decode::decode;
use super::doubt::{self, Known};
use super::key::{ObjectKey, deletion, key};
use super::split::{self, Piece};
use super::{Events, send};
use crate::metrics::Metrics;

/// A directory cannot be used as a source from the start.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch manifest directory {}: {source}. Create it, or name another with --manifests", path.display())]
pub struct ManifestsError {
    /// The directory.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: std::io::Error,
}

/// Deletions wait until none has come for this long: a directory that is being removed loses its files one
/// by one before it is gone itself.
const DELETION_QUIET: Duration = Duration::from_millis(100);
/// How often a vanished directory is looked for.
const RETURN_POLL: Duration = Duration::from_millis(500);
/// A directory that came back may still be filling: what is missing from it is withdrawn only after this.
const RETURN_QUIET: Duration = Duration::from_secs(5);
const MAX_FILE_BYTES: u64 = 256 << 20;
/// After files of this size the allocator is asked to give back what it holds.
const LARGE_FILE_BYTES: usize = 1 << 20;

fn listing(begin: bool) -> [Event; 6] {
    fn mark<T>(begin: bool) -> Change<T> {
        if begin { Change::ListBegin } else { Change::ListEnd }
    }
    [
        Event::Namespace(mark(begin)),
        Event::Pod(mark(begin)),
        Event::Node(mark(begin)),
        Event::ServiceCidr(mark(begin)),
        Event::Slice(mark(begin)),
        Event::Service(mark(begin)),
    ]
}

/// One file as it was read last.
struct File {
    content: u64,
    documents: Vec<Known>,
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// Watches a directory.
pub struct Manifests {
    directory: PathBuf,
    events: Events,
    metrics: Metrics,
    files: BTreeMap<Arc<Path>, File>,
    /// The files that define an object; the first by path counts.
    definers: BTreeMap<ObjectKey, BTreeSet<Arc<Path>>>,
    /// inotify cannot be used; this has been told.
    polling: bool,
}

impl Manifests {
    /// A source for a directory, which must exist now.
    pub fn new(directory: PathBuf, events: Events, metrics: Metrics) -> Result<Self, ManifestsError> {
        match std::fs::read_dir(&directory) {
            Ok(_) => Ok(Manifests {
                directory,
                events,
                metrics,
                files: BTreeMap::new(),
                definers: BTreeMap::new(),
                polling: false,
            }),
            Err(source) => Err(ManifestsError { path: directory, source }),
        }
    }

    /// Reads everything, then follows changes until nobody listens any more.
    pub async fn run(mut self) {
        let mut stream = self.watch();
        for event in listing(true) {
            send(&self.events, event).await;
        }
        for path in self.present().unwrap_or_default() {
            self.read(&path).await;
        }
        for event in listing(false) {
            send(&self.events, event).await;
        }
        info!(directory = %self.directory.display(), files = self.files.len(), objects = self.definers.len(),
            "manifests read");
        while !self.events.is_closed() {
            stream = match stream {
                Some(stream) => self.follow(stream).await,
                None if self.present().is_some() => self.poll().await,
                None => self.await_return().await,
            };
        }
    }

    fn watch(&mut self) -> Option<EventStream<Vec<u8>>> {
        let mask = WatchMask::CLOSE_WRITE
            | WatchMask::MOVED_TO
            | WatchMask::MOVED_FROM
            | WatchMask::DELETE
            | WatchMask::CREATE
            | WatchMask::DELETE_SELF
            | WatchMask::MOVE_SELF
            | WatchMask::ONLYDIR;
        let open = || {
            let inotify = Inotify::init()?;
            inotify.watches().add(&self.directory, mask)?;
            inotify.into_event_stream(vec![0; 64 * 1024])
        };
        match open() {
            Ok(stream) => {
                self.polling = false;
                Some(stream)
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => None,
            Err(error) => {
                if !self.polling {
                    error!(directory = %self.directory.display(), %error,
                        "cannot watch the manifest directory, looking at it twice a second instead; raise \
                         fs.inotify.max_user_instances or max_user_watches");
                }
                self.polling = true;
                None
            }
        }
    }

    /// Applies changes until the directory vanishes.
    async fn follow(&mut self, mut stream: EventStream<Vec<u8>>) -> Option<EventStream<Vec<u8>>> {
        let mut missing: BTreeSet<PathBuf> = BTreeSet::new();
        let mut withdraw_at: Option<Instant> = None;
        loop {
            let timer = async {
                match withdraw_at {
                    Some(at) => tokio::time::sleep_until(at).await,
                    None => std::future::pending().await,
                }
            };
            let event = tokio::select! {
                event = stream.next() => event?,
                () = timer => {
                    withdraw_at = None;
                    self.present()?;
                    for path in std::mem::take(&mut missing) {
                        self.read(&path).await;
                    }
                    continue;
                }
                () = self.events.closed() => return None,
            };
            let Ok(event) = event else { return None };
            if event.mask.intersects(EventMask::DELETE_SELF | EventMask::MOVE_SELF | EventMask::IGNORED) {
                return None;
            }
            let name = event.name.unwrap_or_default();
            let path = self.directory.join(&name);
            if event.mask.contains(EventMask::Q_OVERFLOW) || name.to_string_lossy().starts_with("..") {
                // Events were lost, or a ConfigMap volume was swapped: look at everything.
                missing.extend(self.known());
                missing.extend(self.present().unwrap_or_default());
                withdraw_at = Some(Instant::now());
            } else if !is_manifest(&path) {
                // Also what a writer calls its file until it is whole: never read, even when it is gone.
            } else if event.mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
                missing.insert(path);
                withdraw_at = Some(Instant::now() + DELETION_QUIET);
            } else if event.mask.contains(EventMask::CREATE) && is_being_written(&path) {
                // It comes again when it is closed.
            } else {
                missing.remove(&path);
                self.read(&path).await;
            }
        }
    }

    /// Without inotify (its instances or watches are used up), looks at everything from time to time.
    async fn poll(&mut self) -> Option<EventStream<Vec<u8>>> {
        loop {
            tokio::time::sleep(RETURN_POLL).await;
            let stream = self.watch();
            let present = self.present()?;
            let known: BTreeSet<PathBuf> = self.known().chain(present).collect();
            for path in known {
                self.read(&path).await;
            }
            if stream.is_some() || self.events.is_closed() {
                return stream;
            }
        }
    }

    /// Keeps what there was until the directory is back and has come to rest.
    async fn await_return(&mut self) -> Option<EventStream<Vec<u8>>> {
        error!(directory = %self.directory.display(), objects = self.definers.len(),
            "the manifest directory is gone; its objects stay in force until it is back");
        self.metrics.manifest_errors.inc();
        while self.present().is_none() {
            tokio::time::sleep(RETURN_POLL).await;
            if self.events.is_closed() {
                return None;
            }
        }
        let stream = self.watch()?;
        let mut before = BTreeSet::new();
        let mut quiet_since = Instant::now();
        while quiet_since.elapsed() < RETURN_QUIET {
            let now: BTreeSet<PathBuf> = self.present()?.into_iter().collect();
            if now != before {
                quiet_since = Instant::now();
            }
            for path in &now {
                self.read(path).await;
            }
            if self.files.keys().all(|path| now.contains(&**path)) {
                break;
            }
            before = now;
            tokio::time::sleep(RETURN_POLL).await;
        }
        info!(directory = %self.directory.display(), "the manifest directory is back");
        let known: Vec<PathBuf> = self.known().collect();
        for path in known {
            self.read(&path).await;
        }
        Some(stream)
    }

    /// The files that were read.
    fn known(&self) -> impl Iterator<Item = PathBuf> {
        self.files.keys().map(|path| path.to_path_buf())
    }

    /// The manifest files, sorted; `None` when the directory is gone.
    fn present(&self) -> Option<Vec<PathBuf>> {
        let entries = std::fs::read_dir(&self.directory).ok()?;
        let mut paths: Vec<PathBuf> =
            entries.flatten().map(|entry| entry.path()).filter(|path| is_manifest(path)).collect();
        paths.sort_unstable();
        Some(paths)
    }

    /// Reads a file and sends what it changes. A file that is gone withdraws its objects.
    async fn read(&mut self, path: &Path) {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(ReadError::Gone) => return self.remove_file(path).await,
            Err(ReadError::Unusable(reason)) => return self.report(path, None, &reason),
        };
        let content = hash(&text);
        if self.files.get(path).is_some_and(|file| file.content == content) {
            return;
        }
        if text.trim().is_empty() && self.files.contains_key(path) {
            return self.report(path, None, "is empty: its objects stay; delete the file to withdraw them");
        }
        let path: Arc<Path> = path.into();
        let old = self.files.remove(&path).map(|file| file.documents).unwrap_or_default();
        let documents = self.take_over(&path, &text, &old).await;
        let held: HashSet<&ObjectKey> = documents.iter().flat_map(Known::holds).collect();
        let before: BTreeSet<&ObjectKey> = old.iter().flat_map(Known::holds).collect();
        let gone: Vec<ObjectKey> = before.into_iter().filter(|key| !held.contains(*key)).cloned().collect();
        self.files.insert(path.clone(), File { content, documents });
        for key in gone {
            self.undefine(&path, key).await;
        }
        if text.len() >= LARGE_FILE_BYTES {
            drop((text, old));
            sluice_sys::proc::release_free_memory();
        }
    }

    /// Reads the documents of a text that are not as they were, and sends what they define.
    async fn take_over(&mut self, path: &Arc<Path>, text: &str, old: &[Known]) -> Vec<Known> {
        let pieces = split::documents(text);
        // Documents of one text follow each other as before: broken ones keep different objects.
        let mut unchanged: HashMap<u64, VecDeque<&Known>> = HashMap::new();
        for known in old {
            unchanged.entry(known.content).or_default().push_back(known);
        }
        let (mut new, mut broken, mut cut_off) = (Vec::with_capacity(pieces.len()), Vec::new(), false);
        for (number, piece) in pieces.iter().enumerate() {
            let content = hash(piece.text);
            if let Some(known) = unchanged.get_mut(&content).and_then(VecDeque::pop_front) {
                new.push(known.clone());
                broken.push(Vec::new());
                continue;
            }
            let document = decode(piece.text);
            for problem in document.problems {
                self.report(path, Some((number + 1, piece.line)), &problem);
            }
            for part in &document.broken {
                let reason =
                    format!("{}; what it may have held stays in force until it can be read", part.reason);
                self.report(path, Some((number + 1, piece.line)), &reason);
            }
            let last_line = piece.text.lines().count() as u64;
            cut_off = number + 1 == pieces.len()
                && !text.ends_with('\n')
                && document.broken.iter().any(|part| part.line.is_none_or(|line| line >= last_line));
            new.push(Known {
                content,
                objects: document.events.iter().filter_map(key).collect(),
                kept: Vec::new(),
            });
            broken.push(document.broken.into_iter().map(|part| part.may_be).collect());
            for event in document.events {
                self.define(path, event).await;
            }
        }
        doubt::keep(old, &mut new, &broken, cut_off);
        self.settle(path, &pieces, old, &new).await;
        new
    }

    /// Of an object that several documents of a file define, or did, the last counts, read anew or not.
    async fn settle(&mut self, path: &Arc<Path>, pieces: &[Piece<'_>], old: &[Known], new: &[Known]) {
        let repeated = |documents: &[Known]| -> BTreeSet<ObjectKey> {
            let mut seen = HashSet::new();
            let keys = documents.iter().flat_map(|known| known.objects.iter());
            keys.filter(|key| !seen.insert(*key)).cloned().collect()
        };
        let contested = &repeated(old) | &repeated(new);
        for key in contested {
            let last = new.iter().rposition(|known| known.objects.contains(&key));
            if let Some(event) = last.and_then(|i| definition(pieces.get(i)?, &key)) {
                self.define(path, event).await;
            }
        }
    }

    async fn define(&mut self, path: &Arc<Path>, event: Event) {
        let Some(key) = key(&event) else { return };
        let definers = self.definers.entry(key.clone()).or_default();
        definers.insert(path.clone());
        match definers.first() {
            Some(first) if first != path => {
                let reason =
                    format!("{:?} {} is defined in {} too, which counts", key.0, key.1, first.display());
                self.report(path, None, &reason);
            }
            _ => {
                send(&self.events, event).await;
            }
        }
    }

    /// An object is no longer in a file: it goes, or the next file that defines it counts.
    async fn undefine(&mut self, path: &Path, key: ObjectKey) {
        let Some(definers) = self.definers.get_mut(&key) else { return };
        let counted = definers.first().is_some_and(|first| **first == *path);
        definers.remove(path);
        let heir = definers.first().cloned();
        if definers.is_empty() {
            self.definers.remove(&key);
        }
        if !counted {
            return;
        }
        let Some(heir) = heir else {
            send(&self.events, deletion(key)).await;
            return;
        };
        // If the heir cannot be read now, the object stays as it is until it can.
        let Ok(text) = read_text(&heir) else { return };
        let found = split::documents(&text).iter().rev().find_map(|piece| definition(piece, &key));
        if let Some(event) = found {
            send(&self.events, event).await;
        }
    }

    async fn remove_file(&mut self, path: &Path) {
        let documents = self.files.remove(path).map(|file| file.documents).unwrap_or_default();
        let objects: BTreeSet<&ObjectKey> = documents.iter().flat_map(Known::holds).collect();
        for key in objects {
            self.undefine(path, key.clone()).await;
        }
    }

    fn report(&self, path: &Path, document: Option<(usize, usize)>, reason: &str) {
        self.metrics.manifest_errors.inc();
        let file = path.display();
        match document {
            Some((document, line)) => warn!(%file, document, line, "manifest: {reason}"),
            None => warn!(%file, "manifest: {reason}"),
        }
    }
}

/// What a document says of an object; the last word, if it says several.
fn definition(piece: &Piece<'_>, wanted: &ObjectKey) -> Option<Event> {
    let events = decode(piece.text).events.into_iter();
    events.rev().find(|event| key(event).as_ref() == Some(wanted))
}

/// Whether a name that appeared is a file that somebody is writing, and not a link to one that is there.
fn is_being_written(path: &Path) -> bool {
    std::fs::symlink_metadata(path).is_ok_and(|file| file.is_file() && file.nlink() == 1)
}

fn is_manifest(path: &Path) -> bool {
    let hidden = path.file_name().and_then(OsStr::to_str).is_none_or(|name| name.starts_with('.'));
    let known = path.extension().and_then(OsStr::to_str);
    !hidden && matches!(known, Some("yaml" | "yml" | "json"))
}

enum ReadError {
    Gone,
    Unusable(String),
}

fn read_text(path: &Path) -> Result<String, ReadError> {
    let unusable = |error: std::io::Error| match error.kind() {
        std::io::ErrorKind::NotFound => ReadError::Gone,
        _ => ReadError::Unusable(format!("cannot be read: {error}; what it held stays in force")),
    };
    let metadata = std::fs::metadata(path).map_err(unusable)?;
    // Reading a pipe would wait for a writer, and reading a device would never end.
    if !metadata.is_file() {
        return Err(ReadError::Unusable("is no regular file; what it held stays in force".into()));
    }
    if metadata.len() > MAX_FILE_BYTES {
        return Err(ReadError::Unusable(format!("has {} bytes, more than {MAX_FILE_BYTES}", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(unusable)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ReadError::Unusable(format!("is no text (byte {at} is not UTF-8); what it held stays in force"))
    })
}
