//! What sources (Kubernetes API, manifests) tell the index.

pub use crate::kind::Event;
use crate::model::{Named, ObjectName};

/// A change of one kind of object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change<T> {
    /// A complete listing begins: what is not applied until [`Change::ListEnd`] is gone. Nothing is
    /// withdrawn before.
    ListBegin,
    /// The object exists and looks like this.
    Apply(T),
    /// The object is gone, or no longer ours to serve.
    Delete(ObjectName),
    /// The object exists, but its new state cannot be read: what was known stays.
    Keep(ObjectName),
    /// The listing that began is complete.
    ListEnd,
}

impl<T: Named> Change<T> {
    /// The object that it is about.
    pub fn object_name(&self) -> Option<&ObjectName> {
        match self {
            Change::Apply(object) => Some(object.object_name()),
            Change::Delete(name) | Change::Keep(name) => Some(name),
            Change::ListBegin | Change::ListEnd => None,
        }
    }
}
