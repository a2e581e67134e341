//! One map: entries as bytes or as values, one by one and many at once.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::Path;
use std::time::Duration;

use sluice_common::maps::MapType;

use super::layout::Spec;
use super::plain::Plain;
use super::{BpfError, syscall};

/// Entries of one operation: enough that system calls do not count, little enough that the kernel
/// is not held up...
const BATCH: usize = 4096;
/// ...and that buffers stay small.
const BATCH_BYTES: usize = 1 << 20;
/// The kernel refills its stock of entries beside the work. When much is written at once, it may be
/// empty for a moment.
const ATTEMPTS: u32 = 200;
const PAUSE: Duration = Duration::from_millis(1);
/// `ENOTSUPP`, which is in no header for user space: the map has no operations on many entries.
const NOT_SUPPORTED: i32 = 524;

/// An open map.
#[derive(Debug)]
pub struct Map {
    fd: OwnedFd,
    spec: Spec,
    max_entries: u32,
}

/// How full a map is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage {
    /// Entries in it.
    pub entries: usize,
    /// Entries that it has room for.
    pub capacity: usize,
}

impl Usage {
    /// Whether more than 80 % are taken.
    #[must_use]
    pub fn is_high(&self) -> bool {
        self.entries * 5 > self.capacity * 4
    }

    /// Whether less than 70 % are taken.
    #[must_use]
    pub fn has_room(&self) -> bool {
        self.entries * 10 < self.capacity * 7
    }
}

impl Map {
    /// Makes a map that nobody else knows.
    pub(super) fn create(spec: Spec, max_entries: u32) -> Result<Self, BpfError> {
        let fd = syscall::create_map(spec.map.name(), spec.shape(max_entries)).map_err(|source| {
            BpfError::system(format!("create map {} of {max_entries} entries", spec.map), source)
        })?;
        Ok(Map { fd, spec, max_entries })
    }

    /// Opens a pinned map; `None` if there is none, or another kind of map.
    pub(super) fn open(spec: Spec, path: &Path) -> Result<Option<Self>, BpfError> {
        let failed = |source| BpfError::system(format!("open {}", path.display()), source);
        let fd = match syscall::open(path) {
            Ok(fd) => fd,
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // Anything else than a map has another shape, or none.
        let shape = syscall::map_shape(fd.as_fd()).map_err(failed)?;
        let fits = shape == spec.shape(shape.max_entries) && shape.max_entries > 0;
        Ok(fits.then_some(Map { fd, spec, max_entries: shape.max_entries }))
    }

    pub(super) fn pin(&self, path: &Path) -> Result<(), BpfError> {
        syscall::pin(self.fd.as_fd(), path).map_err(|source| {
            BpfError::system(format!("pin map {} to {}", self.spec.map, path.display()), source)
        })
    }

    /// The same map in another role.
    pub(super) fn with_spec(&self, spec: Spec) -> Result<Self, BpfError> {
        let fd = self.fd.try_clone().map_err(self.failed("open"))?;
        Ok(Map { fd, spec, max_entries: self.max_entries })
    }

    /// What map this is.
    pub fn spec(&self) -> &Spec {
        &self.spec
    }

    /// Its name.
    pub fn name(&self) -> &'static str {
        self.spec.map.name()
    }

    /// Entries that it has room for.
    pub fn max_entries(&self) -> u32 {
        self.max_entries
    }

    fn key_size(&self) -> usize {
        self.spec.key_size as usize
    }

    fn value_size(&self) -> usize {
        let size = self.spec.value_size as usize;
        if self.spec.map_type == MapType::PerCpuArray {
            size.next_multiple_of(8) * possible_cpus()
        } else {
            size
        }
    }

    fn failed(&self, doing: &str) -> impl Fn(io::Error) -> BpfError {
        let operation = format!("{doing} map {}", self.spec.map);
        move |source| {
            let full = source.raw_os_error() == Some(libc::E2BIG);
            BpfError::system(
                if full { format!("{operation}, which is full") } else { operation.clone() },
                source,
            )
        }
    }

    fn check(&self, len: usize, unit: usize, doing: &str) -> Result<(), BpfError> {
        if len != unit {
            return Err(self.failed(doing)(io::Error::from_raw_os_error(libc::EINVAL)));
        }
        Ok(())
    }

    /// The value of a key.
    pub fn get(&self, key: &[u8]) -> Result<Option<Vec<u8>>, BpfError> {
        self.check(key.len(), self.key_size(), "read")?;
        let mut value = vec![0; self.value_size()];
        // SAFETY: the key's length was just checked, and the value has the map's length.
        match unsafe { syscall::lookup(self.fd.as_fd(), key, &mut value) } {
            Ok(()) => Ok(Some(value)),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
            Err(error) => Err(self.failed("read")(error)),
        }
    }

    /// Writes an entry.
    pub fn put(&self, key: &[u8], value: &[u8]) -> Result<(), BpfError> {
        self.check(key.len(), self.key_size(), "write to")?;
        self.check(value.len(), self.value_size(), "write to")?;
        let mut attempts = 0;
        loop {
            // SAFETY: both lengths were just checked.
            match unsafe { syscall::update(self.fd.as_fd(), key, value, 0) } {
                Err(error) if is_passing(&error) && attempts < ATTEMPTS => attempts += 1,
                result => return result.map_err(self.failed("write to")),
            }
            std::thread::sleep(PAUSE);
        }
    }

    /// Deletes an entry; returns whether it was there.
    pub fn delete(&self, key: &[u8]) -> Result<bool, BpfError> {
        self.check(key.len(), self.key_size(), "delete from")?;
        // SAFETY: the length was just checked.
        match unsafe { syscall::delete(self.fd.as_fd(), key) } {
            Ok(()) => Ok(true),
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(false),
            Err(error) => Err(self.failed("delete from")(error)),
        }
    }

    /// [`Map::get`] for values of known types.
    pub fn get_value<K: Plain, V: Plain>(&self, key: &K) -> Result<Option<V>, BpfError> {
        Ok(self.get(key.bytes())?.and_then(|value| V::read(&value)))
    }

    /// [`Map::put`] for values of known types.
    pub fn put_value<K: Plain, V: Plain>(&self, key: &K, value: &V) -> Result<(), BpfError> {
        self.put(key.bytes(), value.bytes())
    }

    /// Writes entries whose keys and values stand one after another.
    pub fn put_all(&self, keys: &[u8], values: &[u8]) -> Result<(), BpfError> {
        let (key_size, value_size) = (self.key_size(), self.value_size());
        let count = keys.len() / key_size;
        self.check(keys.len(), count * key_size, "write to")?;
        self.check(values.len(), count * value_size, "write to")?;
        let batch = self.batch();
        let (mut done, mut attempts) = (0, 0);
        while done < count {
            let end = count.min(done + batch);
            let keys = &keys[done * key_size..end * key_size];
            let values = &values[done * value_size..end * value_size];
            // SAFETY: both hold the same number of whole entries.
            let progress = unsafe { syscall::update_batch(self.fd.as_fd(), keys, values, end - done) };
            match progress.result {
                Ok(()) => done = end,
                Err(error) if is_unknown(&error) => {
                    for (key, value) in keys.chunks(key_size).zip(values.chunks(value_size)) {
                        self.put(key, value)?;
                    }
                    done = end;
                }
                Err(error) if is_passing(&error) && attempts < ATTEMPTS => {
                    attempts = if progress.done > 0 { 0 } else { attempts + 1 };
                    done += progress.done;
                    std::thread::sleep(PAUSE);
                }
                Err(error) => return Err(self.failed("write to")(error)),
            }
        }
        Ok(())
    }

    /// Entries of one operation.
    fn batch(&self) -> usize {
        (BATCH_BYTES / (self.key_size() + self.value_size())).clamp(1, BATCH)
    }

    /// Deletes entries whose keys stand one after another; those that are not there do not matter.
    /// Returns how many were.
    pub fn delete_all(&self, keys: &[u8]) -> Result<usize, BpfError> {
        let key_size = self.key_size();
        self.check(keys.len(), keys.len() / key_size * key_size, "delete from")?;
        let (mut rest, mut deleted) = (keys, 0);
        while !rest.is_empty() {
            let part = &rest[..rest.len().min(self.batch() * key_size)];
            // SAFETY: `part` holds so many whole keys.
            let progress = unsafe { syscall::delete_batch(self.fd.as_fd(), part, part.len() / key_size) };
            let passed = match progress.result {
                Ok(()) => part.len(),
                // The one after those that are done is not there.
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => (progress.done + 1) * key_size,
                Err(error) if is_unknown(&error) => {
                    for key in part.chunks(key_size) {
                        deleted += usize::from(self.delete(key)?);
                    }
                    rest = &rest[part.len()..];
                    continue;
                }
                Err(error) => return Err(self.failed("delete from")(error)),
            };
            deleted += progress.done;
            rest = rest.get(passed..).unwrap_or_default();
        }
        Ok(deleted)
    }

    /// Deletes everything.
    pub fn clear(&self) -> Result<usize, BpfError> {
        let mut keys = Vec::new();
        self.each(|key, _| keys.extend_from_slice(key))?;
        self.delete_all(&keys)
    }

    /// Reads all entries. What others write meanwhile may or may not be among them.
    pub fn each(&self, mut each: impl FnMut(&[u8], &[u8])) -> Result<(), BpfError> {
        let (key_size, value_size) = (self.key_size(), self.value_size());
        let mut room = self.batch().min(self.max_entries as usize).max(1);
        let mut at: Option<Vec<u8>> = None;
        let mut next = vec![0; key_size.max(4)];
        let (mut keys, mut values) = (vec![0; room * key_size], vec![0; room * value_size]);
        loop {
            // SAFETY: keys and values have room for `room` entries, and the cursors for a key or 4
            // bytes.
            let progress = unsafe {
                syscall::lookup_batch(self.fd.as_fd(), at.as_deref(), &mut next, &mut keys, &mut values, room)
            };
            let error = match &progress.result {
                Ok(()) => None,
                Err(error) => error.raw_os_error(),
            };
            match error {
                None | Some(libc::ENOENT) => {}
                // More entries with one hash than there is room for.
                Some(libc::ENOSPC) => {
                    room *= 2;
                    keys.resize(room * key_size, 0);
                    values.resize(room * value_size, 0);
                    continue;
                }
                Some(libc::EINVAL | NOT_SUPPORTED) if at.is_none() => return self.each_by_key(each),
                Some(libc::EINTR | libc::EAGAIN) => continue,
                _ => return progress.result.map_err(self.failed("read")),
            }
            let read = keys.chunks(key_size).zip(values.chunks(value_size)).take(progress.done);
            read.for_each(|(key, value)| each(key, value));
            if error.is_some() {
                return Ok(());
            }
            at.get_or_insert_default().clone_from(&next);
        }
    }

    /// [`Map::each`], entry by entry.
    fn each_by_key(&self, mut each: impl FnMut(&[u8], &[u8])) -> Result<(), BpfError> {
        let mut at: Option<Vec<u8>> = None;
        let mut next = vec![0; self.key_size()];
        loop {
            // SAFETY: both have the length of the map's keys.
            match unsafe { syscall::next_key(self.fd.as_fd(), at.as_deref(), &mut next) } {
                Ok(()) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(()),
                Err(error) => return Err(self.failed("read")(error)),
            }
            if let Some(value) = self.get(&next)? {
                each(&next, &value);
            }
            at.get_or_insert_default().clone_from(&next);
        }
    }

    /// All entries as values.
    pub fn values<K: Plain, V: Plain>(&self) -> Result<Vec<(K, V)>, BpfError> {
        let mut found = Vec::new();
        self.each(|key, value| found.extend(K::read(key).zip(V::read(value))))?;
        Ok(found)
    }

    /// Counts the entries.
    pub fn usage(&self) -> Result<Usage, BpfError> {
        let mut entries = 0;
        self.each(|_, _| entries += 1)?;
        Ok(Usage { entries, capacity: self.max_entries as usize })
    }

    /// Bytes of kernel memory that it takes, as the kernel counts them (`memlock` in fdinfo).
    pub fn memory(&self) -> Result<u64, BpfError> {
        let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let info = std::fs::read_to_string(path).map_err(self.failed("ask the size of"))?;
        let bytes = info.lines().find_map(|line| line.strip_prefix("memlock:")?.trim().parse().ok());
        bytes.ok_or_else(|| self.failed("ask the size of")(io::ErrorKind::Unsupported.into()))
    }

    /// The sum over all CPUs of a number of a per-CPU array.
    pub fn sum(&self, index: u32) -> Result<u64, BpfError> {
        let values = self.get(index.bytes())?.unwrap_or_default();
        Ok(values.chunks(8).filter_map(u64::read).fold(0, u64::wrapping_add))
    }
}

/// Whether the kernel has no such operation for this map.
fn is_unknown(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINVAL | NOT_SUPPORTED))
}

/// Whether it may go well in a moment.
fn is_passing(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOMEM | libc::EAGAIN | libc::EBUSY | libc::EINTR))
}

/// CPUs that there could ever be, for each of which a per-CPU map has a value.
pub(super) fn possible_cpus() -> usize {
    static CPUS: std::sync::OnceLock<usize> = std::sync::OnceLock::new();
    *CPUS.get_or_init(|| {
        let text = std::fs::read_to_string("/sys/devices/system/cpu/possible").unwrap_or_default();
        cpus_in(&text)
            .unwrap_or_else(|| std::thread::available_parallelism().map_or(1, std::num::NonZero::get))
    })
}

/// The CPUs of a list like `0-3,8`.
fn cpus_in(text: &str) -> Option<usize> {
    let mut count = 0;
    for range in text.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        count += last.parse::<usize>().ok()?.checked_sub(first.parse().ok()?)? + 1;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cpus_are_counted() {
        assert_eq!(cpus_in("0\n"), Some(1));
        assert_eq!(cpus_in("0-3,8,10-11\n"), Some(7));
        assert_eq!(cpus_in(""), None);
    }

    #[test]
    fn usage_is_high_beyond_four_fifths() {
        assert!(!Usage { entries: 80, capacity: 100 }.is_high());
        assert!(Usage { entries: 81, capacity: 100 }.is_high());
    }
}
