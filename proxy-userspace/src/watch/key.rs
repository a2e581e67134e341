//! Which object an event is about, across kinds.

use sluice_core::event::{Change, Event};
use sluice_core::model::ObjectName;

/// The kinds that are read from files.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) enum Kind {
    Service,
    Slice,
    Node,
    ServiceCidr,
    Pod,
    Namespace,
}

impl Kind {
    /// A kind by its name in the API.
    pub(super) fn parse(name: &str) -> Option<Kind> {
        match name {
            "Service" => Some(Kind::Service),
            "EndpointSlice" => Some(Kind::Slice),
            "Node" => Some(Kind::Node),
            "ServiceCIDR" => Some(Kind::ServiceCidr),
            "Pod" => Some(Kind::Pod),
            "Namespace" => Some(Kind::Namespace),
            _ => None,
        }
    }

    /// The name of an object of this kind.
    pub(super) fn object(self, namespace: Option<&str>, name: &str) -> ObjectName {
        match self {
            Kind::Node | Kind::ServiceCidr | Kind::Namespace => ObjectName::cluster_scoped(name),
            Kind::Service | Kind::Slice | Kind::Pod => ObjectName::new(namespace.unwrap_or("default"), name),
        }
    }
}

/// An object.
pub(super) type ObjectKey = (Kind, ObjectName);

/// The object that an event is about; none of the marks around lists.
pub(super) fn key(event: &Event) -> Option<ObjectKey> {
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

/// The event that withdraws an object.
pub(super) fn deletion((kind, name): ObjectKey) -> Event {
    match kind {
        Kind::Service => Event::Service(Change::Delete(name)),
        Kind::Slice => Event::Slice(Change::Delete(name)),
        Kind::Node => Event::Node(Change::Delete(name)),
        Kind::ServiceCidr => Event::ServiceCidr(Change::Delete(name)),
        Kind::Pod => Event::Pod(Change::Delete(name)),
        Kind::Namespace => Event::Namespace(Change::Delete(name)),
    }
}
