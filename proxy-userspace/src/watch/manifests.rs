//! Objects from a directory of YAML and JSON files, watched with inotify.
//!
//! The rule for anything doubtful is to keep what is served: a broken document keeps its file's earlier
//! objects, an empty file is taken for a half-written one, and a directory that vanishes withdraws nothing.
//! Objects are withdrawn when their file is deleted, or when a file that is wholly valid no longer has them.

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsStr;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use sluice_core::event::{Change, Event};
use sluice_core::model::ObjectName;
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::decode::{decode, split_documents};
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

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Kind {
    Service,
    Slice,
    Node,
    ServiceCidr,
    Pod,
    Namespace,
}

type ObjectKey = (Kind, ObjectName);

fn key(event: &Event) -> Option<ObjectKey> {
    fn of<T>(kind: Kind, change: &Change<T>, name: impl Fn(&T) -> &ObjectName) -> Option<ObjectKey> {
        match change {
            Change::Apply(object) => Some((kind, name(object).clone())),
            Change::Delete(name) | Change::Keep(name) => Some((kind, name.clone())),
            Change::ListBegin | Change::ListEnd => None,
        }
    }
    match event {
        Event::Service(change) => of(Kind::Service, change, |o| &o.name),
        Event::Slice(change) => of(Kind::Slice, change, |o| &o.name),
        Event::Node(change) => of(Kind::Node, change, |o| &o.name),
        Event::ServiceCidr(change) => of(Kind::ServiceCidr, change, |o| &o.name),
        Event::Pod(change) => of(Kind::Pod, change, |o| &o.name),
        Event::Namespace(change) => of(Kind::Namespace, change, |o| &o.name),
    }
}

fn deletion((kind, name): ObjectKey) -> Event {
    match kind {
        Kind::Service => Event::Service(Change::Delete(name)),
        Kind::Slice => Event::Slice(Change::Delete(name)),
        Kind::Node => Event::Node(Change::Delete(name)),
        Kind::ServiceCidr => Event::ServiceCidr(Change::Delete(name)),
        Kind::Pod => Event::Pod(Change::Delete(name)),
        Kind::Namespace => Event::Namespace(Change::Delete(name)),
    }
}

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
    objects: BTreeSet<ObjectKey>,
}

/// Watches a directory.
pub struct Manifests {
    directory: PathBuf,
    events: Events,
    metrics: Metrics,
    files: BTreeMap<PathBuf, File>,
    /// The files that define an object; the first by path counts.
    definers: BTreeMap<ObjectKey, BTreeSet<PathBuf>>,
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
                missing.extend(self.files.keys().cloned());
                missing.extend(self.present().unwrap_or_default());
                withdraw_at = Some(Instant::now());
            } else if event.mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
                missing.insert(path);
                withdraw_at = Some(Instant::now() + DELETION_QUIET);
            } else if event.mask.contains(EventMask::CREATE) && is_being_written(&path) {
                // It comes again when it is closed.
            } else if is_manifest(&path) {
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
            let known: BTreeSet<PathBuf> = self.files.keys().cloned().chain(present).collect();
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
            if self.files.keys().all(|path| now.contains(path)) {
                break;
            }
            before = now;
            tokio::time::sleep(RETURN_POLL).await;
        }
        info!(directory = %self.directory.display(), "the manifest directory is back");
        let known: Vec<PathBuf> = self.files.keys().cloned().collect();
        for path in known {
            self.read(&path).await;
        }
        Some(stream)
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
        let mut hasher = DefaultHasher::new();
        text.hash(&mut hasher);
        let content = hasher.finish();
        if self.files.get(path).is_some_and(|file| file.content == content) {
            return;
        }
        if text.trim().is_empty() && self.files.contains_key(path) {
            return self.report(path, None, "is empty: its objects stay; delete the file to withdraw them");
        }
        let (found, sound) = self.decode(path, &text);
        let mut objects: BTreeSet<ObjectKey> = found.iter().filter_map(key).collect();
        let old = self.files.remove(path).map(|file| file.objects).unwrap_or_default();
        if !sound {
            objects.extend(old.iter().cloned());
        }
        let gone: Vec<ObjectKey> = old.difference(&objects).cloned().collect();
        self.files.insert(path.to_owned(), File { content, objects });
        for event in found {
            self.define(path, event).await;
        }
        for key in gone {
            self.undefine(path, key).await;
        }
    }

    /// The objects of a text; false when a document could not be used.
    fn decode(&self, path: &Path, text: &str) -> (Vec<Event>, bool) {
        let (mut found, mut sound) = (Vec::new(), true);
        for (number, (line, document)) in split_documents(text).into_iter().enumerate() {
            match decode(document) {
                Ok(document) => {
                    for problem in document.problems {
                        self.report(path, Some((number + 1, line)), &problem);
                    }
                    found.extend(document.events);
                }
                Err(error) => {
                    sound = false;
                    self.report(path, Some((number + 1, line)), &format!("{error}; skipped"));
                }
            }
        }
        (found, sound)
    }

    async fn define(&mut self, path: &Path, event: Event) {
        let Some(key) = key(&event) else { return };
        let definers = self.definers.entry(key.clone()).or_default();
        definers.insert(path.to_owned());
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
        let counted = definers.first().is_some_and(|first| first == path);
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
        let events = self.decode(&heir, &text).0;
        if let Some(event) = events.into_iter().find(|event| self::key(event).as_ref() == Some(&key)) {
            send(&self.events, event).await;
        }
    }

    async fn remove_file(&mut self, path: &Path) {
        if let Some(file) = self.files.remove(path) {
            for key in file.objects {
                self.undefine(path, key).await;
            }
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
    if metadata.len() > MAX_FILE_BYTES {
        return Err(ReadError::Unusable(format!("has {} bytes, more than {MAX_FILE_BYTES}", metadata.len())));
    }
    let bytes = std::fs::read(path).map_err(unusable)?;
    String::from_utf8(bytes).map_err(|error| {
        let at = error.utf8_error().valid_up_to();
        ReadError::Unusable(format!("is no text (byte {at} is not UTF-8); what it held stays in force"))
    })
}
