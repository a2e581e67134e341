//! Short strings of bytes: keys and data of elements.

use std::fmt;
use std::hash::{Hash, Hasher};

/// A short byte string without an allocation of its own.
#[derive(Clone, Copy)]
pub struct Bytes<const N: usize> {
    len: u8,
    bytes: [u8; N],
}

impl<const N: usize> Bytes<N> {
    /// The longest one.
    pub const ROOM: usize = N;

    /// Copies a slice; what does not fit is cut off (callers build keys of known, fitting lengths).
    pub fn new(slice: &[u8]) -> Self {
        let mut bytes = [0; N];
        let len = slice.len().min(N);
        bytes[..len].copy_from_slice(&slice[..len]);
        Bytes { len: len as u8, bytes }
    }

    /// The empty string.
    pub fn empty() -> Self {
        Bytes { len: 0, bytes: [0; N] }
    }

    /// Appends bytes.
    #[must_use]
    pub fn with(mut self, more: &[u8]) -> Self {
        let start = usize::from(self.len);
        let end = (start + more.len()).min(N);
        self.bytes[start..end].copy_from_slice(&more[..end - start]);
        self.len = end as u8;
        self
    }

    /// The bytes.
    pub fn as_slice(&self) -> &[u8] {
        &self.bytes[..usize::from(self.len)]
    }
}

impl<const N: usize> PartialEq for Bytes<N> {
    fn eq(&self, other: &Self) -> bool {
        self.as_slice() == other.as_slice()
    }
}
impl<const N: usize> Eq for Bytes<N> {}
impl<const N: usize> PartialOrd for Bytes<N> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<const N: usize> Ord for Bytes<N> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.as_slice().cmp(other.as_slice())
    }
}
impl<const N: usize> Hash for Bytes<N> {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.as_slice().hash(state);
    }
}
impl<const N: usize> fmt::Debug for Bytes<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for byte in self.as_slice() {
            write!(f, "{byte:02x}")?;
        }
        Ok(())
    }
}

impl<const N: usize> std::ops::Deref for Bytes<N> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.as_slice()
    }
}

/// The longest key: IPv6 destination, protocol, port, IPv6 source network, prefix length.
pub type Key = Bytes<44>;
