//! Objects from a directory of YAML and JSON files, watched with inotify.
//!
//! The rule for anything doubtful is to keep what is served: a broken document keeps what it could
//! have been ([`doubt`](super::doubt)), an empty file is taken for a half-written one, and a
//! directory that vanishes withdraws nothing. Objects are withdrawn when their file is deleted, or
//! when it no longer has them, and no other file that changed at the same time has them now.
//!
//! Of a file that changed only the documents that did are read: of the others a hash is kept, and
//! what they define.

mod file;
mod settle;

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use inotify::{EventMask, EventStream, Inotify, WatchMask};
use sluice_core::event::Event;
use sluice_core::kind::{Kind, ObjectKey};
use tokio::time::Instant;
use tracing::{error, info, warn};

use super::decode::{Document, decode};
use super::doubt::{self, Known};
use super::split::{self, Piece};
use super::{Events, send};
use crate::observe::metrics::Metrics;
use file::{ReadError, is_being_written, is_manifest, read_text};
use settle::Definers;

/// A directory cannot be used as a source from the start.
#[derive(Debug, thiserror::Error)]
#[error("cannot watch manifest directory {}: {source}. Name a directory with --manifests", path.display())]
pub struct ManifestsError {
    /// The directory.
    pub path: PathBuf,
    /// The system's answer.
    #[source]
    pub source: std::io::Error,
}

/// Deletions of files and objects wait until none has come for this long: a directory that is being
/// removed loses its files one by one before it is gone itself, and an object may move to a file
/// that is written next.
const DELETION_QUIET: Duration = Duration::from_millis(100);
/// But no longer than this after the first: something else may vanish all the time.
const DELETION_LATEST: Duration = Duration::from_secs(1);
/// How often a vanished directory is looked for, and a file that could not be opened when it was
/// needed.
const RETURN_POLL: Duration = Duration::from_millis(500);
/// A directory that came back may still be filling: what is missing from it is withdrawn only after
/// this.
const RETURN_QUIET: Duration = Duration::from_secs(5);
const EMPTY: &str = "is empty: its objects stay; delete the file to withdraw them";
/// After files of this size the allocator is asked to give back what it holds.
const LARGE_FILE_BYTES: usize = 1 << 20;

/// One file as it was read last.
struct File {
    content: u64,
    documents: Vec<Known>,
    /// Objects that it had, and that could not be read when they were needed.
    lost: HashSet<ObjectKey>,
}

fn hash(text: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    text.hash(&mut hasher);
    hasher.finish()
}

/// When what vanished is withdrawn.
#[derive(Default)]
struct Quiet {
    at: Option<Instant>,
    latest: Option<Instant>,
}

impl Quiet {
    /// Something has vanished.
    fn vanished(&mut self, now: Instant) {
        let latest = *self.latest.get_or_insert(now + DELETION_LATEST);
        self.at = Some(latest.min(now + DELETION_QUIET));
    }

    /// Everything is looked at at once.
    fn ends(&mut self, now: Instant) {
        *self = Quiet { at: Some(now), latest: Some(now) };
    }
}

/// Watches a directory.
pub struct Manifests {
    directory: PathBuf,
    events: Events,
    metrics: Metrics,
    files: BTreeMap<Arc<Path>, File>,
    definers: BTreeMap<ObjectKey, Definers>,
    /// Objects that the file whose word counts no longer has.
    unsettled: BTreeSet<ObjectKey>,
    /// How often an object became unsettled.
    vanished: usize,
    /// Objects whose next file could not be opened, or was empty: it is tried again, and until then
    /// they stay.
    put_off: BTreeSet<ObjectKey>,
    /// Documents decoded so far.
    decoded: usize,
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
                unsettled: BTreeSet::new(),
                vanished: 0,
                put_off: BTreeSet::new(),
                decoded: 0,
                polling: false,
            }),
            Err(source) => Err(ManifestsError { path: directory, source }),
        }
    }

    /// Reads everything, then follows changes until nobody listens any more.
    pub async fn run(mut self) {
        let mut stream = self.watch();
        for event in Kind::ALL.iter().rev().map(|kind| kind.list_begin()) {
            send(&self.events, event).await;
        }
        for path in self.present().unwrap_or_default() {
            self.read(&path).await;
        }
        for event in Kind::ALL.iter().rev().map(|kind| kind.list_end()) {
            send(&self.events, event).await;
        }
        info!(directory = %self.directory.display(), files = self.files.len(), documents = self.decoded,
            objects = self.definers.len(), "manifests read");
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
                        "cannot watch the manifest directory, reading it twice a second instead; raise \
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
        let mut quiet = Quiet::default();
        if !self.unsettled.is_empty() {
            quiet.vanished(Instant::now());
        }
        let mut try_again = self.try_again();
        loop {
            let until = async |at: Option<Instant>| match at {
                Some(at) => tokio::time::sleep_until(at).await,
                None => std::future::pending().await,
            };
            let event = tokio::select! {
                event = stream.next() => event?,
                () = until(try_again) => {
                    self.present()?;
                    self.settle(BTreeSet::new()).await;
                    try_again = self.try_again();
                    continue;
                }
                () = until(quiet.at) => {
                    quiet = Quiet::default();
                    self.present()?;
                    for path in std::mem::take(&mut missing) {
                        self.read(&path).await;
                    }
                    self.settle_all().await;
                    try_again = self.try_again();
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
                quiet.ends(Instant::now());
            } else if !is_manifest(&path) {
                // Also what a writer calls its file until it is whole: never read, even when it is
                // gone.
            } else if event.mask.intersects(EventMask::DELETE | EventMask::MOVED_FROM) {
                missing.insert(path);
                quiet.vanished(Instant::now());
            } else if event.mask.contains(EventMask::CREATE) && is_being_written(&path) {
                // It comes again when it is closed.
            } else {
                missing.remove(&path);
                let before = self.vanished;
                self.read(&path).await;
                if self.vanished != before {
                    quiet.vanished(Instant::now());
                }
            }
        }
    }

    /// When files that could not be opened are tried again.
    fn try_again(&self) -> Option<Instant> {
        (!self.put_off.is_empty()).then(|| Instant::now() + RETURN_POLL)
    }

    /// Without inotify (its instances or watches are used up), looks at everything from time to
    /// time.
    async fn poll(&mut self) -> Option<EventStream<Vec<u8>>> {
        loop {
            tokio::time::sleep(RETURN_POLL).await;
            let stream = self.watch();
            let present = self.present()?;
            self.scan(present).await;
            if stream.is_some() || self.events.is_closed() {
                return stream;
            }
        }
    }

    /// Looks at the files that are there, and those that were. What this look is the first to miss
    /// may be found by the next.
    async fn scan(&mut self, present: Vec<PathBuf>) {
        let before = self.unsettled.clone();
        let known: BTreeSet<PathBuf> = self.known().chain(present).collect();
        for path in known {
            self.read(&path).await;
        }
        let keys = self.unsettled.intersection(&before).cloned().collect();
        self.settle(keys).await;
    }

    /// Keeps what there was until the directory is back and has come to rest.
    async fn await_return(&mut self) -> Option<EventStream<Vec<u8>>> {
        error!(directory = %self.directory.display(), objects = self.definers.len(),
            "the manifest directory was removed; its objects stay in force until it exists again");
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
        info!(directory = %self.directory.display(), "the manifest directory exists again");
        let known: Vec<PathBuf> = self.known().collect();
        for path in known {
            self.read(&path).await;
        }
        self.settle_all().await;
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

    /// Reads a file and sends what it defines. What it no longer has, all if it is gone, waits to
    /// be settled.
    async fn read(&mut self, path: &Path) {
        let text = match read_text(path) {
            Ok(text) => text,
            Err(ReadError::Gone) => return self.remove_file(path),
            Err(ReadError::Failed(reason) | ReadError::Unusable(reason)) => {
                return self.report(path, None, &reason);
            }
        };
        let content = hash(&text);
        if self.files.get(path).is_some_and(|file| file.content == content && file.lost.is_empty()) {
            return;
        }
        if text.trim().is_empty() && self.files.contains_key(path) {
            return self.report(path, None, EMPTY);
        }
        let path: Arc<Path> = path.into();
        let (old, lost) =
            self.files.remove(&path).map(|file| (file.documents, file.lost)).unwrap_or_default();
        let documents = self.take_over(&path, &text, &old, &lost).await;
        let held = doubt::held(&documents);
        let gone: Vec<ObjectKey> =
            doubt::held(&old).into_iter().filter(|key| !held.contains(*key)).cloned().collect();
        self.files.insert(path.clone(), File { content, documents, lost: HashSet::new() });
        for key in gone {
            self.undefine(&path, key);
        }
        if text.len() >= LARGE_FILE_BYTES {
            drop((text, old));
            sluice_sys::proc::release_free_memory();
        }
    }

    /// Reads the documents of a text that are not as they were, or had what was lost, and sends
    /// what they define.
    async fn take_over(
        &mut self,
        path: &Arc<Path>,
        text: &str,
        old: &[Known],
        lost: &HashSet<ObjectKey>,
    ) -> Vec<Known> {
        let pieces = split::documents(text);
        // Documents of one text follow each other as before: broken ones keep different objects.
        let mut unchanged: HashMap<u64, VecDeque<&Known>> = HashMap::new();
        let is_lost = |known: &Known| known.holds().any(|key| lost.contains(key));
        for known in old.iter().filter(|known| lost.is_empty() || !is_lost(known)) {
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
            let document = self.decode(piece);
            for problem in document.problems {
                self.report(path, Some((number + 1, piece.line)), &problem);
            }
            for part in &document.broken {
                let reason = format!(
                    "{}; objects that it may have contained stay in force until it can be read",
                    part.reason
                );
                self.report(path, Some((number + 1, piece.line)), &reason);
            }
            let last_line = piece.text.lines().count() as u64;
            cut_off = number + 1 == pieces.len()
                && !text.ends_with('\n')
                && document.broken.iter().any(|part| part.line.is_none_or(|line| line >= last_line));
            new.push(Known {
                content,
                objects: document.events.iter().filter_map(Event::key).collect(),
                kept: Arc::default(),
            });
            broken.push(document.broken.into_iter().map(|part| part.may_be).collect());
            for event in document.events {
                self.define(path, event).await;
            }
        }
        doubt::keep(old, &mut new, &broken, cut_off);
        self.repeat(path, &pieces, old, &new).await;
        new
    }

    /// Of an object that several documents of a file define, or did, the last counts, read anew or
    /// not.
    async fn repeat(&mut self, path: &Arc<Path>, pieces: &[Piece<'_>], old: &[Known], new: &[Known]) {
        let repeated = |documents: &[Known]| -> BTreeSet<ObjectKey> {
            let mut seen = HashSet::new();
            let keys = documents.iter().flat_map(|known| known.objects.iter());
            keys.filter(|key| !seen.insert(*key)).cloned().collect()
        };
        let contested = &repeated(old) | &repeated(new);
        let mut last: HashMap<&ObjectKey, usize> = HashMap::new();
        for (number, known) in new.iter().enumerate() {
            last.extend(known.objects.iter().filter_map(|key| Some((contested.get(key)?, number))));
        }
        let mut wanted: BTreeMap<usize, HashSet<&ObjectKey>> = BTreeMap::new();
        for (key, number) in last {
            wanted.entry(number).or_default().insert(key);
        }
        for (number, keys) in wanted {
            let Some(piece) = pieces.get(number) else { continue };
            for event in self.definitions([piece], &keys) {
                self.define(path, event).await;
            }
        }
    }

    /// What documents say of objects: the last word of each that they have.
    fn definitions<'a>(
        &mut self,
        pieces: impl IntoIterator<Item = &'a Piece<'a>>,
        wanted: &HashSet<&ObjectKey>,
    ) -> Vec<Event> {
        let mut found: BTreeMap<ObjectKey, Event> = BTreeMap::new();
        for piece in pieces {
            let events = self.decode(piece).events.into_iter();
            found.extend(events.filter_map(|event| {
                let key = event.key()?;
                wanted.contains(&key).then_some((key, event))
            }));
        }
        found.into_values().collect()
    }

    fn decode(&mut self, piece: &Piece<'_>) -> Document {
        self.decoded += 1;
        decode(piece.text)
    }

    fn remove_file(&mut self, path: &Path) {
        let documents = self.files.remove(path).map(|file| file.documents).unwrap_or_default();
        for key in doubt::held(&documents) {
            self.undefine(path, key.clone());
        }
    }

    /// Looks at a file, and settles what comes of it.
    #[cfg(test)]
    pub(super) async fn look_at(&mut self, path: &Path) {
        self.read(path).await;
        self.settle_all().await;
    }

    /// Nothing is in force, and nothing waits.
    #[cfg(test)]
    pub(super) fn is_forgotten(&self) -> bool {
        self.files.is_empty()
            && self.definers.is_empty()
            && self.unsettled.is_empty()
            && self.put_off.is_empty()
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

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_core::event::Change;
    use tokio::sync::mpsc;

    const MANY: usize = 500;

    fn service(n: usize, port: u16) -> String {
        format!(
            "---\napiVersion: v1\nkind: Service\nmetadata: {{name: s{n}}}\nspec: {{clusterIP: 10.96.0.1, ports: [{{port: {port}}}]}}\n"
        )
    }

    fn services(port: u16) -> String {
        (0..MANY).map(|n| service(n, port)).collect()
    }

    /// Applies and deletions that came.
    fn counts(events: &mut mpsc::Receiver<crate::watch::Received>) -> (usize, usize) {
        let mut counts = (0, 0);
        while let Ok(received) = events.try_recv() {
            match received.event {
                Event::Service(Change::Apply(_)) => counts.0 += 1,
                Event::Service(Change::Delete(_)) => counts.1 += 1,
                _ => {}
            }
        }
        counts
    }

    #[tokio::test]
    async fn a_file_of_many_documents_is_renamed_removed_and_repeated_in_linear_work() {
        let directory = std::env::temp_dir().join(format!("sluice-work-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).unwrap();
        let (sender, mut events) = mpsc::channel(16 * MANY);
        let mut manifests = Manifests::new(directory.clone(), sender, Metrics::default()).unwrap();
        let [a, z] = ["a.yaml", "z.yaml"].map(|name| directory.join(name));
        std::fs::write(&a, services(80)).unwrap();
        manifests.read(&a).await;
        manifests.settle_all().await;
        assert_eq!((manifests.decoded, counts(&mut events)), (MANY, (MANY, 0)));
        // Renamed, in either order of events.
        std::fs::rename(&a, &z).unwrap();
        manifests.read(&z).await;
        manifests.read(&a).await;
        manifests.settle_all().await;
        assert_eq!((manifests.decoded, counts(&mut events)), (3 * MANY, (MANY, 0)));
        std::fs::rename(&z, &a).unwrap();
        manifests.read(&z).await;
        manifests.read(&a).await;
        manifests.settle_all().await;
        assert_eq!((manifests.decoded, counts(&mut events)), (4 * MANY, (MANY, 0)));
        // Each document twice, in one text and in one List.
        std::fs::write(&a, format!("{}{}", services(80), services(81))).unwrap();
        manifests.read(&a).await;
        manifests.settle_all().await;
        assert_eq!(manifests.decoded, 6 * MANY, "what is read, and the last of each again");
        assert_eq!(counts(&mut events), (2 * MANY, 0));
        // Removed.
        std::fs::remove_file(&a).unwrap();
        manifests.read(&a).await;
        manifests.settle_all().await;
        assert_eq!((manifests.decoded, counts(&mut events)), (6 * MANY, (0, MANY)));
        assert!(manifests.definers.is_empty() && manifests.files.is_empty());
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[tokio::test]
    async fn without_inotify_an_object_that_moves_between_two_looks_is_not_withdrawn() {
        let directory = std::env::temp_dir().join(format!("sluice-scan-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        std::fs::create_dir(&directory).unwrap();
        let (sender, mut events) = mpsc::channel(16);
        let mut manifests = Manifests::new(directory.clone(), sender, Metrics::default()).unwrap();
        let [a, z] = ["a.yaml", "z.yaml"].map(|name| directory.join(name));
        let look = async |manifests: &mut Manifests| {
            let present = manifests.present().unwrap();
            manifests.scan(present).await;
        };
        std::fs::write(&a, service(1, 80)).unwrap();
        look(&mut manifests).await;
        assert_eq!(counts(&mut events), (1, 0));
        // Gone from the one at this look, in the other at the next.
        std::fs::remove_file(&a).unwrap();
        look(&mut manifests).await;
        assert_eq!(counts(&mut events), (0, 0));
        std::fs::write(&z, service(1, 81)).unwrap();
        look(&mut manifests).await;
        look(&mut manifests).await;
        assert_eq!(counts(&mut events), (1, 0));
        // What is nowhere at two looks goes.
        std::fs::remove_file(&z).unwrap();
        look(&mut manifests).await;
        look(&mut manifests).await;
        assert_eq!(counts(&mut events), (0, 1));
        std::fs::remove_dir_all(&directory).unwrap();
    }

    #[test]
    fn what_vanishes_all_the_time_does_not_put_off_withdrawals_without_an_end() {
        let start = Instant::now();
        let mut quiet = Quiet::default();
        for turn in 0..100 {
            quiet.vanished(start + turn * (DELETION_QUIET / 2));
            let expected = start + (turn * (DELETION_QUIET / 2) + DELETION_QUIET).min(DELETION_LATEST);
            assert_eq!(quiet.at, Some(expected));
        }
    }
}
