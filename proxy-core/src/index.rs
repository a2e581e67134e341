//! The index: the current objects, joined by name, and which Services an event touched.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use rustc_hash::{FxHashMap, FxHashSet};

use crate::event::{Change, Event};
use crate::model::{
    Conditions, EndpointSlice, Hints, Named, Namespace, Node, ObjectName, Pod, Service, ServiceCidr,
    ServicePortName, SliceEndpoint,
};
use crate::net::Protocol;

/// What must be planned anew.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Dirty {
    /// Services whose own object or endpoints changed.
    pub services: BTreeSet<ObjectName>,
    /// The own Node or the ServiceCIDRs changed.
    pub node: bool,
    /// [`Index::nodes`] may have another answer.
    pub nodes: bool,
    /// [`Index::opted_out`] may have another answer.
    pub opted_out: bool,
}

impl Dirty {
    /// Adds what changed later.
    pub fn add(&mut self, later: Dirty) {
        self.services.extend(later.services);
        self.node |= later.node;
        self.nodes |= later.nodes;
        self.opted_out |= later.opted_out;
    }
}

/// An endpoint of one service port, merged from all slices.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Endpoint<'a> {
    /// The endpoint's address.
    pub address: IpAddr,
    /// The endpoint's port.
    pub port: u16,
    /// Conditions.
    pub conditions: Conditions,
    /// Node of the endpoint.
    pub node: Option<&'a str>,
    /// Hints.
    pub hints: Option<&'a Hints>,
}

/// Objects of one kind, with the names seen since a listing began.
struct Store<T> {
    objects: FxHashMap<ObjectName, T>,
    listing: Option<FxHashSet<ObjectName>>,
    listed: bool,
}

impl<T> Default for Store<T> {
    fn default() -> Self {
        Store { objects: FxHashMap::default(), listing: None, listed: false }
    }
}

/// An old and a new state of one object.
type Replaced<T> = (ObjectName, Option<T>);

impl<T: PartialEq + Named> Store<T> {
    /// Applies a change; returns the names that really changed, with what they were before.
    fn change(&mut self, change: Change<T>) -> Vec<Replaced<T>> {
        match change {
            Change::ListBegin => {
                self.listing = Some(FxHashSet::default());
                Vec::new()
            }
            Change::Apply(object) => {
                let name = object.object_name().clone();
                if let Some(seen) = &mut self.listing {
                    seen.insert(name.clone());
                }
                if self.objects.get(&name) == Some(&object) {
                    return Vec::new();
                }
                let old = self.objects.insert(name.clone(), object);
                vec![(name, old)]
            }
            Change::Delete(name) => {
                if let Some(seen) = &mut self.listing {
                    seen.remove(&name);
                }
                let old = self.objects.remove(&name);
                if old.is_some() { vec![(name, old)] } else { Vec::new() }
            }
            Change::Keep(name) => {
                if let Some(seen) = &mut self.listing {
                    seen.insert(name);
                }
                Vec::new()
            }
            Change::ListEnd => {
                self.listed = true;
                // Without a beginning nothing can be told to be missing.
                let Some(seen) = self.listing.take() else { return Vec::new() };
                let gone: Vec<ObjectName> =
                    self.objects.keys().filter(|name| !seen.contains(*name)).cloned().collect();
                gone.into_iter()
                    .map(|name| {
                        let old = self.objects.remove(&name);
                        (name, old)
                    })
                    .collect()
            }
        }
    }
}

/// The current objects.
///
/// Slices of Services that do not exist (yet) are kept and come to life when the Service appears.
#[derive(Default)]
pub struct Index {
    services: Store<Service>,
    slices: Store<Arc<EndpointSlice>>,
    nodes: Store<Node>,
    service_cidrs: Store<ServiceCidr>,
    pods: Store<Pod>,
    namespaces: Store<Namespace>,
    slices_of: FxHashMap<ObjectName, BTreeMap<ObjectName, Arc<EndpointSlice>>>,
    names: FxHashSet<Arc<str>>,
    dirty: Dirty,
}

impl Index {
    /// Applies an event and remembers what it touched until [`Index::take_dirty`]. Returns whether
    /// anything changed.
    pub fn apply(&mut self, event: Event) -> bool {
        match event {
            Event::Service(change) => {
                let changed = self.services.change(change);
                let any = !changed.is_empty();
                self.dirty.services.extend(changed.into_iter().map(|(name, _)| name));
                any
            }
            Event::Slice(change) => self.apply_slice(change),
            Event::Node(change) => {
                let ends = matches!(change, Change::ListEnd);
                let any = !self.nodes.change(change).is_empty();
                self.dirty.node |= any;
                self.dirty.nodes |= any || ends;
                any
            }
            Event::ServiceCidr(change) => {
                let any = !self.service_cidrs.change(change).is_empty();
                self.dirty.node |= any;
                any
            }
            Event::Pod(change) => {
                let ends = matches!(change, Change::ListEnd);
                let any = !self.pods.change(change).is_empty();
                // The end of the first list is what makes the answer known.
                self.dirty.opted_out |= any || ends;
                any
            }
            Event::Namespace(change) => self.apply_namespace(change),
        }
    }

    fn apply_namespace(&mut self, change: Change<Namespace>) -> bool {
        let ends = matches!(change, Change::ListEnd);
        let changed = self.namespaces.change(change);
        // A Namespace that says nothing is as good as none.
        let matters = changed
            .iter()
            .any(|(name, old)| self.says(name) != old.as_ref().and_then(|namespace| namespace.socket_path));
        self.dirty.opted_out |= matters || ends;
        !changed.is_empty()
    }

    fn apply_slice(&mut self, change: Change<EndpointSlice>) -> bool {
        let change = match change {
            Change::Apply(mut slice) => {
                self.share_names(&mut slice);
                Change::Apply(Arc::new(slice))
            }
            Change::ListBegin => Change::ListBegin,
            Change::Delete(name) => Change::Delete(name),
            Change::Keep(name) => Change::Keep(name),
            Change::ListEnd => Change::ListEnd,
        };
        let changed = self.slices.change(change);
        let any = !changed.is_empty();
        for (name, old) in changed {
            // A slice may have been given to another Service: both are touched.
            if let Some(old) = old {
                if let Some(names) = self.slices_of.get_mut(&old.service) {
                    names.remove(&name);
                    if names.is_empty() {
                        self.slices_of.remove(&old.service);
                    }
                }
                self.dirty.services.insert(old.service.clone());
            }
            if let Some(new) = self.slices.objects.get(&name) {
                self.slices_of.entry(new.service.clone()).or_default().insert(name, new.clone());
                self.dirty.services.insert(new.service.clone());
            }
        }
        any
    }

    /// Lets equal node and port names share one allocation: there are few of them and many
    /// endpoints.
    fn share_names(&mut self, slice: &mut EndpointSlice) {
        let names = &mut self.names;
        let mut share = |name: &mut Arc<str>| match names.get(name.as_ref()) {
            Some(known) => *name = known.clone(),
            None => {
                names.insert(name.clone());
            }
        };
        slice.ports.iter_mut().for_each(|port| share(&mut port.name));
        for endpoint in &mut slice.endpoints {
            endpoint.node.iter_mut().for_each(&mut share);
        }
        slice.endpoints.shrink_to_fit();
        slice.ports.shrink_to_fit();
    }

    /// What changed since the last call.
    pub fn take_dirty(&mut self) -> Dirty {
        if self.names.len() > 4096 && self.names.len() > 2 * self.nodes.objects.len() {
            self.names.retain(|name| Arc::strong_count(name) > 1);
        }
        std::mem::take(&mut self.dirty)
    }

    /// Whether the initial lists that rules depend on (Services and EndpointSlices) are complete.
    pub fn is_complete(&self) -> bool {
        self.services.listed && self.slices.listed
    }

    /// Whether Nodes and ServiceCIDRs have been listed as well.
    pub fn is_fully_listed(&self) -> bool {
        self.is_complete() && self.nodes.listed && self.service_cidrs.listed
    }

    /// Whether Nodes have been listed.
    pub fn has_listed_nodes(&self) -> bool {
        self.nodes.listed
    }

    /// The addresses of a node's pods whose sockets are to be left alone, sorted. `None`: not known
    /// before Pods and Namespaces have been listed, which nothing else waits for.
    pub fn opted_out(&self, node: &str) -> Option<Vec<IpAddr>> {
        if !self.pods.listed || !self.namespaces.listed {
            return None;
        }
        let here = |pod: &Pod| pod.node.as_deref().is_none_or(|name| name == node);
        let pods = self.pods.objects.values().filter(|pod| here(pod) && self.is_opted_out(pod));
        let mut ips: Vec<IpAddr> = pods.flat_map(|pod| pod.ips.iter().copied()).collect();
        ips.sort_unstable();
        ips.dedup();
        Some(ips)
    }

    /// A pod's own word counts more than its Namespace's.
    fn is_opted_out(&self, pod: &Pod) -> bool {
        let namespace = || self.says(&ObjectName::cluster_scoped(pod.name.namespace()));
        pod.socket_path.or_else(namespace) == Some(false)
    }

    /// What a Namespace says of the socket path.
    fn says(&self, namespace: &ObjectName) -> Option<bool> {
        self.namespaces.objects.get(namespace).and_then(|namespace| namespace.socket_path)
    }

    /// A Service by name.
    pub fn service(&self, name: &ObjectName) -> Option<&Service> {
        self.services.objects.get(name)
    }

    /// All Services, in no particular order.
    pub fn services(&self) -> impl Iterator<Item = &Service> {
        self.services.objects.values()
    }

    /// The number of EndpointSlices.
    pub fn slice_count(&self) -> usize {
        self.slices.objects.len()
    }

    /// A Node by name.
    pub fn node(&self, name: &str) -> Option<&Node> {
        self.nodes.objects.get(&ObjectName::cluster_scoped(name))
    }

    /// All Nodes, in the order of their names; `None`: they have not been listed yet.
    pub fn nodes(&self) -> Option<Vec<Node>> {
        let mut all: Vec<Node> = self.nodes.listed.then(|| self.nodes.objects.values().cloned().collect())?;
        all.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Some(all)
    }

    /// All networks out of which ClusterIPs are allocated, sorted, without duplicates.
    pub fn service_networks(&self) -> Vec<IpNet> {
        let mut nets: Vec<IpNet> =
            self.service_cidrs.objects.values().flat_map(|cidr| cidr.cidrs.iter().copied()).collect();
        nets.sort_unstable();
        nets.dedup();
        nets
    }

    /// The slices of a Service, in the order of their names. One that has not changed is the same
    /// allocation as before.
    pub fn slices(&self, service: &ObjectName) -> impl Iterator<Item = &Arc<EndpointSlice>> {
        self.slices_of.get(service).into_iter().flat_map(BTreeMap::values)
    }

    /// All addresses of a Service's endpoints with TCP ports, whatever their conditions.
    pub fn tcp_addresses(&self, service: &ObjectName) -> BTreeSet<(IpAddr, u16)> {
        let mut found = BTreeSet::new();
        for slice in self.slices(service) {
            for port in slice.ports.iter().filter(|port| port.protocol == Protocol::Tcp) {
                found.extend(slice.endpoints.iter().map(|endpoint| (endpoint.address, port.port)));
            }
        }
        found
    }

    /// The endpoints of a service port, merged over all slices (reference 1.5): sorted by address
    /// and port, each pair once.
    ///
    /// Where several slices list the same pair, a non-terminating entry beats a terminating one,
    /// then a ready one an unready one, then the first slice by name wins. kube-proxy's winner is
    /// random in that last case.
    pub fn endpoints(&self, id: &ServicePortName) -> Vec<Endpoint<'_>> {
        let mut found: Vec<Endpoint<'_>> = Vec::new();
        for slice in self.slices(&id.service).filter(|slice| slice.family == id.family) {
            for port in slice.ports.iter().filter(|p| p.name == id.port && p.protocol == id.protocol) {
                found.extend(slice.endpoints.iter().map(|endpoint| merged(endpoint, port.port)));
            }
        }
        sort(&mut found);
        found.dedup_by_key(|e| (e.address, e.port));
        found
    }
}

/// Sorts by address, port and worth; among equals, the first slice stays first.
fn sort(found: &mut Vec<Endpoint<'_>>) {
    let worth = |e: &Endpoint<'_>| u64::from(e.conditions.terminating) << 1 | u64::from(!e.conditions.ready);
    let rest = |e: &Endpoint<'_>| u64::from(e.port) << 2 | worth(e);
    let only_v4 = |e: &Endpoint<'_>| match e.address {
        IpAddr::V4(ip) => Some(u64::from(ip.to_bits()) << 18 | rest(e)),
        IpAddr::V6(_) => None,
    };
    // Numbers are sorted much faster than endpoints, and a Service may have a quarter of a million.
    let keys: Option<Vec<u64>> = found.iter().map(only_v4).collect();
    match keys {
        Some(keys) => sort_by(found, keys),
        None => {
            let key = |e: &Endpoint<'_>| match e.address {
                IpAddr::V4(ip) => (0, u128::from(ip.to_bits()), rest(e)),
                IpAddr::V6(ip) => (1, ip.to_bits(), rest(e)),
            };
            let keys: Vec<(u8, u128, u64)> = found.iter().map(key).collect();
            sort_by(found, keys);
        }
    }
}

/// Sorts a list by the keys of its members; those with equal keys stay in order.
fn sort_by<T: Copy, K: Ord + Copy>(list: &mut Vec<T>, keys: Vec<K>) {
    if keys.is_sorted() {
        return;
    }
    let mut order: Vec<(K, u32)> = keys.into_iter().zip(0..).collect();
    order.sort_unstable();
    *list = order.into_iter().map(|(_, at)| list[at as usize]).collect();
}

pub(crate) fn merged(endpoint: &SliceEndpoint, port: u16) -> Endpoint<'_> {
    Endpoint {
        address: endpoint.address,
        port,
        conditions: endpoint.conditions,
        node: endpoint.node.as_deref(),
        hints: endpoint.hints.as_deref(),
    }
}
