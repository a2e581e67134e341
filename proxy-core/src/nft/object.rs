//! nf_tables objects as values: sets, chains, rules, elements, and operations on them.

use std::fmt;
use std::hash::{Hash, Hasher};

use crate::diff::Keyed;
use crate::net::Family;
use crate::nft::Balancer;
use crate::nft::expr::Expr;

/// A short byte string without an allocation of its own.
#[derive(Clone, Copy)]
pub struct Bytes<const N: usize> {
    len: u8,
    bytes: [u8; N],
}

impl<const N: usize> Bytes<N> {
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

/// The longest key: IPv6 destination, protocol, port, IPv6 source network, prefix length.
pub type Key = Bytes<44>;

/// A chain's name; ours are at most 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Bytes<40>);

impl ChainName {
    /// A name.
    pub fn new(name: &str) -> Self {
        ChainName(Bytes::new(name.as_bytes()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.0.as_slice()).unwrap_or_default()
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a rule or a verdict map's element does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Leaves this base chain.
    Accept,
    /// Drops the packet.
    Drop,
    /// Continues in a chain and comes back.
    Jump(ChainName),
    /// Continues in a chain for good.
    Goto(ChainName),
}

/// The sets and maps, each once for IPv4 and once for IPv6. The order is the order in which new
/// elements are written: what is looked up late in the packet path comes first.
///
/// Only small maps hold verdicts. After a change of any element with a verdict, the kernel
/// validates all elements of all verdict maps before it commits (`nft_table_validate`), which took
/// 4.7 ms with 50,000 frontends; so frontends map to data, and a small map takes the data to the
/// verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum SetKind {
    /// Group id, slot → endpoint address, port.
    Endpoints,
    /// Group id, endpoint address, port → padding, the same address and port: whom an affine client
    /// may still stick to.
    Members,
    /// Affinity id, client address → endpoint address, port; written by the packet path.
    Affinity,
    /// Address, address, protocol, port of local endpoints that may reach themselves.
    Hairpin,
    /// Load balancer address, protocol, port, source network, prefix length: who may pass.
    AllowedSources,
    /// Group id → chain of the group; only with the scheduler `rr`.
    Groups,
    /// Class of eTP=Local's outside and inside clients → class chain.
    Classes,
    /// Class of a frontend → class chain, or entry chain of eTP=Local. Two maps, because the kernel
    /// takes an entry chain that looks up a map in which it stands itself for a loop.
    Entries,
    /// Refusal → reject chain, or drop.
    Refusals,
    /// Load balancer address, protocol, port of frontends with source ranges.
    Filtered,
    /// All ClusterIPs.
    ClusterIps,
    /// The node's addresses that node ports answer on.
    NodePortAddresses,
    /// With IPVS: addresses of other interfaces than the one that holds the services' addresses.
    OwnAddresses,
    /// With IPVS: protocol and port of health-check node ports.
    HealthPorts,
    /// With IPVS: addresses of services that are gone, which are still bound for connections of
    /// before.
    Closed,
    /// Address, protocol, port → padding, refusal.
    NoEndpoints,
    /// Protocol, port → padding, refusal.
    NodePortNoEndpoints,
    /// Address, protocol, port → padding, group id (with IPVS: a mark), class, class of outside
    /// clients, class of inside clients (the latter two for eTP=Local only).
    Services,
    /// The same for node ports: protocol, port.
    NodePorts,
    /// Protocol and port of node ports that are refused on loopback. What is new comes last,
    /// because the fingerprints of rules have the place of a set in this list in them.
    LoopbackRefusals,
    /// With IPVS: addresses of other nodes, whose other ports are theirs.
    OthersAddresses,
    /// Of the pod network's table: addresses of other nodes.
    Underlay,
    /// Of the pod network's table, for the family of outer packets: outer source, inner source
    /// network of IPv4, prefix length.
    TunnelSources4,
    /// The same for inner sources of IPv6.
    TunnelSources6,
    /// Of the pod network's table of bridges, which has IPv4's only: names of pods' ports.
    PodPorts,
    /// Of the same table: name of a port, hardware address, address of the pod behind it.
    PodSources,
}

impl SetKind {
    /// All kinds, in the order of writing.
    pub const ALL: [SetKind; 26] = [
        SetKind::Endpoints,
        SetKind::Members,
        SetKind::Affinity,
        SetKind::Hairpin,
        SetKind::AllowedSources,
        SetKind::Groups,
        SetKind::Classes,
        SetKind::Entries,
        SetKind::Refusals,
        SetKind::Filtered,
        SetKind::ClusterIps,
        SetKind::NodePortAddresses,
        SetKind::OwnAddresses,
        SetKind::HealthPorts,
        SetKind::Closed,
        SetKind::NoEndpoints,
        SetKind::NodePortNoEndpoints,
        SetKind::Services,
        SetKind::NodePorts,
        SetKind::LoopbackRefusals,
        SetKind::OthersAddresses,
        SetKind::Underlay,
        SetKind::TunnelSources4,
        SetKind::TunnelSources6,
        SetKind::PodPorts,
        SetKind::PodSources,
    ];

    /// Whether rulesets of a balancer have such a set.
    pub fn is_of(self, balancer: Balancer) -> bool {
        match self {
            SetKind::OwnAddresses | SetKind::OthersAddresses | SetKind::HealthPorts | SetKind::Closed => {
                balancer == Balancer::Ipvs
            }
            SetKind::Endpoints
            | SetKind::Members
            | SetKind::Affinity
            | SetKind::Groups
            | SetKind::Classes => balancer == Balancer::Ruleset,
            SetKind::Underlay
            | SetKind::TunnelSources4
            | SetKind::TunnelSources6
            | SetKind::PodPorts
            | SetKind::PodSources => false,
            _ => true,
        }
    }
}

/// One set or map.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SetId {
    /// What it holds.
    pub kind: SetKind,
    /// For which family.
    pub family: Family,
}

impl SetId {
    /// A set.
    pub fn new(kind: SetKind, family: Family) -> Self {
        SetId { kind, family }
    }

    /// All sets.
    pub fn all() -> impl Iterator<Item = SetId> {
        SetKind::ALL.into_iter().flat_map(|kind| Family::BOTH.map(|family| SetId { kind, family }))
    }

    /// The set's name in the kernel.
    pub fn name(self) -> &'static str {
        let (v4, v6) = match self.kind {
            SetKind::Endpoints => ("endpoints4", "endpoints6"),
            SetKind::Members => ("members4", "members6"),
            SetKind::Affinity => ("affinity4", "affinity6"),
            SetKind::Hairpin => ("hairpin4", "hairpin6"),
            SetKind::AllowedSources => ("allowed_sources4", "allowed_sources6"),
            SetKind::Groups => ("groups4", "groups6"),
            SetKind::Classes => ("classes4", "classes6"),
            SetKind::Entries => ("entries4", "entries6"),
            SetKind::Refusals => ("refusals4", "refusals6"),
            SetKind::Filtered => ("filtered4", "filtered6"),
            SetKind::ClusterIps => ("cluster_ips4", "cluster_ips6"),
            SetKind::NodePortAddresses => ("nodeport_addresses4", "nodeport_addresses6"),
            SetKind::OwnAddresses => ("own_addresses4", "own_addresses6"),
            SetKind::OthersAddresses => ("others_addresses4", "others_addresses6"),
            SetKind::HealthPorts => ("health_ports4", "health_ports6"),
            SetKind::Closed => ("closed4", "closed6"),
            SetKind::NoEndpoints => ("no_endpoints4", "no_endpoints6"),
            SetKind::NodePortNoEndpoints => ("nodeport_no_endpoints4", "nodeport_no_endpoints6"),
            SetKind::Services => ("services4", "services6"),
            SetKind::NodePorts => ("nodeports4", "nodeports6"),
            SetKind::LoopbackRefusals => ("loopback_refusals4", "loopback_refusals6"),
            SetKind::Underlay => ("underlay4", "underlay6"),
            SetKind::TunnelSources4 => ("pods4_over4", "pods4_over6"),
            SetKind::TunnelSources6 => ("pods6_over4", "pods6_over6"),
            SetKind::PodPorts => ("ports", "ports6"),
            SetKind::PodSources => ("sources4", "sources6"),
        };
        match self.family {
            Family::V4 => v4,
            Family::V6 => v6,
        }
    }

    /// The set of a name.
    pub fn by_name(name: &str) -> Option<SetId> {
        SetId::all().find(|set| set.name() == name)
    }
}

/// How a set is declared.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SetSpec {
    /// Which set.
    pub id: SetId,
    /// Key length in bytes, every field padded to four.
    pub key_len: u32,
    /// nft's data type of the key, so that `nft list` can print it (six bits a field).
    pub key_type: u32,
    /// What elements map to.
    pub value: SetValue,
    /// Greatest number of elements, 0 for no limit.
    pub size: u32,
    /// Elements are added by the packet path and end after a timeout.
    pub dynamic: bool,
}

/// What the elements of a set map to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetValue {
    /// Nothing: a plain set.
    None,
    /// Data of a length and of nft's data type.
    Data(u32, u32),
    /// A verdict.
    Verdict,
}

/// Which element: set and key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ElementId {
    /// The set.
    pub set: SetId,
    /// The key.
    pub key: Key,
}

/// What an element maps to.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Value {
    /// Nothing.
    None,
    /// A frontend's group and classes, a refusal, or an endpoint's address and port.
    Data(Bytes<36>),
    /// A verdict.
    Verdict(Verdict),
}

/// One element.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Element {
    /// Set and key.
    pub id: ElementId,
    /// Value.
    pub value: Value,
}

impl Keyed for Element {
    type Key<'a> = &'a ElementId;
    fn key(&self) -> &ElementId {
        &self.id
    }
    fn same_content(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

/// The hook of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hook {
    /// `filter` or `nat`.
    pub chain_type: &'static str,
    /// `NF_INET_*` hook number.
    pub number: u32,
    /// Priority.
    pub priority: i32,
}

/// A rule, with a comment that says what it is for.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Rule {
    /// What it is for; the kernel keeps it with the rule's fingerprint.
    pub about: &'static str,
    /// Its expressions.
    pub exprs: Vec<Expr>,
}

impl Rule {
    /// The comment in the kernel: what it is for, and a fingerprint of the expressions by which a
    /// restarted or newer daemon tells whether the rule is still right.
    pub fn comment(&self) -> String {
        let mut hasher = rustc_hash::FxHasher::default();
        self.exprs.hash(&mut hasher);
        format!("{} #{:016x}", self.about, hasher.finish())
    }
}

/// A chain with all its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: ChainName,
    /// Hook, for base chains.
    pub hook: Option<Hook>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}

/// One operation of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Deletes our table with all in it, if it is there.
    DeleteTable,
    /// Creates the table, if it is not there.
    AddTable,
    /// Creates a set.
    AddSet(SetSpec),
    /// Creates a chain without its rules, if it is not there. All chains come before rules that
    /// jump.
    AddChain(ChainName, Option<Hook>),
    /// Replaces all rules of a chain.
    SetRules(ChainName, Vec<Rule>),
    /// Deletes a chain with its rules; nothing may refer to it.
    DeleteChain(ChainName),
    /// Removes all elements of a set.
    EmptySet(SetId),
    /// Adds an element; an element with this key and another value must not exist.
    AddElement(Element),
    /// Deletes an element, which must exist.
    DeleteElement(ElementId),
}
