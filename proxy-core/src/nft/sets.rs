//! The sets and maps of the table of Services.

use super::Balancer;
use crate::lang::nftables::{Field, Set, SetId, SetSpec, Table, TableId};
use crate::net::Family;

const ID: TableId = TableId::inet("sluice");

/// The table that Sluice owns for Services; it reads and writes nothing outside of it.
pub static TABLE: Table = Table::new(ID, &SETS);

static SETS: [Set; 2 * SetKind::ALL.len()] = ID.sets(SetKind::specs());

/// More clients than this cannot be remembered at once in one family; further ones are balanced
/// anew.
const AFFINITY_SIZE: u32 = 1 << 20;

/// The sets and maps, each once for IPv4 and once for IPv6. The order is the order in which new
/// elements are written: what is looked up late in the packet path comes first.
///
/// Only small maps hold verdicts ([`SetSpec::verdicts`]): so frontends map to data, and a small map
/// takes the data to the verdict.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
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
    /// Protocol and port of node ports that are refused on loopback.
    LoopbackRefusals,
    /// With IPVS: addresses of other nodes, whose other ports are theirs.
    OthersAddresses,
}

impl SetKind {
    /// All kinds, in the order of writing.
    pub const ALL: [SetKind; 21] = [
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
    ];

    /// The set of a family.
    pub fn set(self, family: Family) -> SetId {
        SETS[2 * self as usize + family as usize].id()
    }

    /// The family whose set it is, if it is of this kind.
    pub fn family_of(self, set: SetId) -> Option<Family> {
        Family::BOTH.into_iter().find(|family| self.set(*family) == set)
    }

    /// Whether a set is of this kind.
    pub fn is(self, set: SetId) -> bool {
        self.family_of(set).is_some()
    }

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
            _ => true,
        }
    }

    /// All kinds of both families, IPv4 first.
    const fn specs() -> [SetSpec; 2 * SetKind::ALL.len()] {
        let mut specs = [SetKind::ALL[0].spec(Family::V4); 2 * SetKind::ALL.len()];
        let mut i = 0;
        while i < specs.len() {
            specs[i] = SetKind::ALL[i / 2].spec(Family::BOTH[i % 2]);
            i += 1;
        }
        specs
    }

    const fn spec(self, family: Family) -> SetSpec {
        use Field::{Number, Port, Protocol};
        let ip = match family {
            Family::V4 => Field::Ipv4,
            Family::V6 => Field::Ipv6,
        };
        let name = self.names()[family as usize];
        let tuple = &[ip, Protocol, Port];
        let port = &[Protocol, Port];
        match self {
            SetKind::Endpoints => SetSpec::map(name, &[Number, Number, Number], &[ip, Port]),
            SetKind::Members => SetSpec::map(name, &[Number, Number, ip, Port], &[Number, ip, Port]),
            SetKind::Affinity => {
                SetSpec::map(name, &[Number, Number, ip], &[ip, Port]).filled_by_packets(AFFINITY_SIZE)
            }
            SetKind::Hairpin => SetSpec::plain(name, &[ip, ip, Protocol, Port]),
            SetKind::AllowedSources => SetSpec::plain(name, &[ip, Protocol, Port, ip, Number]),
            SetKind::Groups | SetKind::Classes | SetKind::Entries => {
                SetSpec::verdicts(name, &[Number, Number])
            }
            SetKind::Refusals => SetSpec::verdicts(name, &[Number]),
            SetKind::ClusterIps
            | SetKind::NodePortAddresses
            | SetKind::OwnAddresses
            | SetKind::OthersAddresses
            | SetKind::Closed => SetSpec::plain(name, &[ip]),
            SetKind::Filtered => SetSpec::plain(name, tuple),
            SetKind::HealthPorts | SetKind::LoopbackRefusals => SetSpec::plain(name, port),
            SetKind::NoEndpoints => SetSpec::map(name, tuple, &[Number; 2]),
            SetKind::NodePortNoEndpoints => SetSpec::map(name, port, &[Number; 2]),
            SetKind::Services => SetSpec::map(name, tuple, &[Number; 9]),
            SetKind::NodePorts => SetSpec::map(name, port, &[Number; 9]),
        }
    }

    /// Names in the kernel, of IPv4's and of IPv6's.
    const fn names(self) -> [&'static str; 2] {
        match self {
            SetKind::Endpoints => ["endpoints4", "endpoints6"],
            SetKind::Members => ["members4", "members6"],
            SetKind::Affinity => ["affinity4", "affinity6"],
            SetKind::Hairpin => ["hairpin4", "hairpin6"],
            SetKind::AllowedSources => ["allowed_sources4", "allowed_sources6"],
            SetKind::Groups => ["groups4", "groups6"],
            SetKind::Classes => ["classes4", "classes6"],
            SetKind::Entries => ["entries4", "entries6"],
            SetKind::Refusals => ["refusals4", "refusals6"],
            SetKind::Filtered => ["filtered4", "filtered6"],
            SetKind::ClusterIps => ["cluster_ips4", "cluster_ips6"],
            SetKind::NodePortAddresses => ["nodeport_addresses4", "nodeport_addresses6"],
            SetKind::OwnAddresses => ["own_addresses4", "own_addresses6"],
            SetKind::OthersAddresses => ["others_addresses4", "others_addresses6"],
            SetKind::HealthPorts => ["health_ports4", "health_ports6"],
            SetKind::Closed => ["closed4", "closed6"],
            SetKind::NoEndpoints => ["no_endpoints4", "no_endpoints6"],
            SetKind::NodePortNoEndpoints => ["nodeport_no_endpoints4", "nodeport_no_endpoints6"],
            SetKind::Services => ["services4", "services6"],
            SetKind::NodePorts => ["nodeports4", "nodeports6"],
            SetKind::LoopbackRefusals => ["loopback_refusals4", "loopback_refusals6"],
        }
    }
}

/// All sets of a balancer's ruleset.
pub fn sets(balancer: Balancer) -> Vec<SetId> {
    let kinds = SetKind::ALL.into_iter().filter(|kind| kind.is_of(balancer));
    kinds.flat_map(|kind| Family::BOTH.map(|family| kind.set(family))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_has_its_own_sets() {
        for (place, kind) in SetKind::ALL.into_iter().enumerate() {
            assert_eq!(kind as usize, place);
            for family in Family::BOTH {
                let set = kind.set(family);
                assert_eq!((set.name(), kind.family_of(set)), (kind.names()[family as usize], Some(family)));
                assert_eq!(TABLE.set(set.name()), Some(set));
            }
        }
        assert!(!SetKind::Services.is(SetKind::NodePorts.set(Family::V4)));
    }
}
