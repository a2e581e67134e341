//! The table of kinds: which objects the daemon reads, and what the API calls them.
//!
//! An entry gives a kind its [`Kind`], its [`Event`], its path in the API and its place in
//! manifests. Two things are said elsewhere: what an object becomes, in the daemon's
//! `watch/kinds.rs`, and what a change of it touches, in [`crate::index`].

use std::fmt;

use crate::event::Change;
use crate::model::{EndpointSlice, Named, Namespace, Node, ObjectName, Pod, Service, ServiceCidr};

macro_rules! kinds {
    ($($(#[$doc:meta])* $kind:ident: $model:ty = $name:literal, $version:literal, $plural:literal, $namespaced:literal;)+) => {
        /// A kind of object that the daemon reads.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Kind {
            $($(#[$doc])* $kind),+
        }

        /// A change of the world that the daemon serves.
        #[derive(Clone, Debug, PartialEq, Eq)]
        pub enum Event {
            $($(#[$doc])* $kind(Change<$model>)),+
        }

        $(impl Named for $model {
            fn object_name(&self) -> &ObjectName {
                &self.name
            }
        })+

        impl Kind {
            /// All kinds. Backwards, those that plans depend on come before Services.
            pub const ALL: &'static [Kind] = &[$(Kind::$kind),+];

            const fn entry(self) -> Entry {
                match self {
                    $(Kind::$kind => Entry {
                        name: $name, api_version: $version, plural: $plural, namespaced: $namespaced,
                    }),+
                }
            }

            /// The mark that a complete listing of the kind begins.
            #[must_use]
            pub fn list_begin(self) -> Event {
                match self { $(Kind::$kind => Event::$kind(Change::ListBegin)),+ }
            }

            /// The mark that the listing is complete.
            #[must_use]
            pub fn list_end(self) -> Event {
                match self { $(Kind::$kind => Event::$kind(Change::ListEnd)),+ }
            }

            /// The event that an object is gone.
            #[must_use]
            pub fn deletion(self, name: ObjectName) -> Event {
                match self { $(Kind::$kind => Event::$kind(Change::Delete(name))),+ }
            }

            /// The event that an object's new state cannot be read.
            #[must_use]
            pub fn kept(self, name: ObjectName) -> Event {
                match self { $(Kind::$kind => Event::$kind(Change::Keep(name))),+ }
            }
        }

        impl Event {
            /// The kind of objects that it is about.
            #[must_use]
            pub fn kind(&self) -> Kind {
                match self { $(Event::$kind(_) => Kind::$kind),+ }
            }

            /// The object that it is about; none of the marks around lists is about one.
            #[must_use]
            pub fn key(&self) -> Option<ObjectKey> {
                let (kind, name) = match self {
                    $(Event::$kind(change) => (Kind::$kind, change.object_name()?)),+
                };
                Some((kind, name.clone()))
            }
        }
    };
}

// Name, apiVersion and plural as the API has them, and whether objects are in namespaces.
kinds! {
    /// Services.
    Service: Service = "Service", "v1", "services", true;
    /// EndpointSlices.
    Slice: EndpointSlice = "EndpointSlice", "discovery.k8s.io/v1", "endpointslices", true;
    /// ServiceCIDRs.
    ServiceCidr: ServiceCidr = "ServiceCIDR", "networking.k8s.io/v1", "servicecidrs", false;
    /// Nodes.
    Node: Node = "Node", "v1", "nodes", false;
    /// Pods.
    Pod: Pod = "Pod", "v1", "pods", true;
    /// Namespaces.
    Namespace: Namespace = "Namespace", "v1", "namespaces", false;
}

/// An object among those of all kinds.
pub type ObjectKey = (Kind, ObjectName);

struct Entry {
    name: &'static str,
    api_version: &'static str,
    plural: &'static str,
    namespaced: bool,
}

impl Kind {
    /// Its name in the API, such as `EndpointSlice`.
    #[must_use]
    pub const fn name(self) -> &'static str {
        self.entry().name
    }

    /// Its apiVersion, such as `discovery.k8s.io/v1`.
    #[must_use]
    pub const fn api_version(self) -> &'static str {
        self.entry().api_version
    }

    /// A kind by its name in the API, whatever its apiVersion.
    #[must_use]
    pub fn parse(name: &str) -> Option<Kind> {
        Kind::ALL.iter().copied().find(|kind| kind.name() == name)
    }

    /// The path of its objects in all namespaces, such as
    /// `/apis/discovery.k8s.io/v1/endpointslices`.
    #[must_use]
    pub fn path(self) -> String {
        let Entry { api_version, plural, .. } = self.entry();
        let root = if api_version.contains('/') { "apis" } else { "api" };
        format!("/{root}/{api_version}/{plural}")
    }

    /// The name of an object of this kind; without a namespace it is in `default`, if it is in any.
    #[must_use]
    pub fn object(self, namespace: Option<&str>, name: &str) -> ObjectName {
        match self.entry().namespaced {
            true => ObjectName::new(namespace.unwrap_or("default"), name),
            false => ObjectName::cluster_scoped(name),
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_those_of_the_core_api_or_of_a_group() {
        assert_eq!(Kind::Pod.path(), "/api/v1/pods");
        assert_eq!(Kind::Slice.path(), "/apis/discovery.k8s.io/v1/endpointslices");
    }

    #[test]
    fn events_name_their_object() {
        for kind in Kind::ALL.iter().copied() {
            let name = kind.object(None, "a");
            assert_eq!((kind.list_begin().kind(), kind.kept(name.clone()).kind()), (kind, kind));
            assert_eq!(kind.deletion(name.clone()).key(), Some((kind, name.clone())));
            assert_eq!(kind.kept(name.clone()).key(), Some((kind, name)));
            assert_eq!((kind.list_begin().key(), kind.list_end().key()), (None, None));
            assert_eq!(Kind::parse(&kind.to_string()), Some(kind));
        }
        assert_eq!(Kind::Node.object(Some("x"), "n"), ObjectName::cluster_scoped("n"));
        assert_eq!(Kind::Pod.object(Some("x"), "p"), ObjectName::new("x", "p"));
    }
}
