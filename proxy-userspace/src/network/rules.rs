//! The table of the pod network: written when it should be another one, or when somebody may have
//! changed it.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use ipnet::IpNet;
use sluice_cni::spec::Mode;
use sluice_cni::store::{self, Contents};
use sluice_core::model::Node;
use sluice_core::net::Protocol;
use sluice_core::pod_network::{
    HostPort, Own, PodNetwork, PodPorts, PodRules, Sources, TABLE, Transport, TunnelGuard,
};
use sluice_sys::bpf::{BpfError, Maps, PodSources, set_pod_sources};
use sluice_sys::conntrack::Conntrack;
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::{Nft, Notice};
use tokio::sync::mpsc;
use tracing::warn;

use super::PassError;
use super::host_ports::{self, Refusal};
use super::ports::{Ports, pod_ports, pod_sources};
use crate::config::PodNetworkSettings;
use crate::node::addresses::Network;
use crate::node::nft_monitor;
use crate::node::repairs::{Repairs, Tally};

/// What is known of the table.
#[derive(Default)]
pub(super) struct Rules {
    nft: Option<Nft>,
    notices: Option<mpsc::Sender<Notice>>,
    /// As it was written last.
    written: Option<PodRules>,
    /// It is so still, for all that is known.
    is_trusted: bool,
    /// The table of pods on a bridge.
    ports: Ports,
    /// The maps of programs that see packets before the rules do; `None`: there are none.
    programs: Option<Maps>,
    /// What they know of pods is as it was written last, for all that is known.
    sources: Option<BTreeMap<u32, PodSources>>,
    /// Those that flows were compared with last.
    host_ports: Vec<HostPort>,
    /// What pods asked for and do not get.
    refusals: BTreeSet<Refusal>,
    /// Links of pods with ports on loopback.
    on_loopback: BTreeSet<String>,
    /// What others do to the table.
    repairs: Repairs,
}

/// What the rules follow from, beside settings and pods.
#[derive(Clone, Copy)]
pub(super) struct Known<'a> {
    pub(super) own: &'a Own,
    pub(super) pod_network: &'a PodNetwork,
    pub(super) nodes: &'a [Node],
    pub(super) network: &'a Network,
}

impl Rules {
    /// Nothing is known yet.
    pub(super) fn new(programs: Option<Maps>) -> Self {
        Rules { programs, ..Rules::default() }
    }

    /// Who is told when somebody else changes the table.
    pub(super) fn tell_changes_to(&mut self, notices: mpsc::Sender<Notice>) {
        self.notices = Some(notices);
    }

    /// The next pass writes the table anew.
    pub(super) fn distrust(&mut self) {
        self.is_trusted = false;
        self.ports.distrust();
    }

    /// Somebody else may have changed the table.
    pub(super) fn noticed(&mut self, notice: Notice) {
        self.repairs.noticed(notice.may_harm(), Instant::now());
    }

    /// When a pass has to follow for that.
    pub(super) fn due(&self) -> Option<Instant> {
        self.repairs.due()
    }

    /// Makes the table as it should be. `from_loopback`: as the table has it. With `audits` also
    /// looks whether it has gone without a notice.
    pub(super) fn write(
        &mut self,
        settings: &PodNetworkSettings,
        known: &Known<'_>,
        from_loopback: bool,
        audits: bool,
    ) -> Result<(), PassError> {
        let Known { own, pod_network, nodes, network } = *known;
        // A file that cannot be read takes no port away.
        let (contents, unread) = match store::look(&settings.cni.data_dir, &settings.cni.name) {
            Ok(contents) => (Some(contents), None),
            Err(error) => (None, Some(error)),
        };
        let host_ports = contents.as_ref().map_or_else(|| self.host_ports.clone(), host_ports::host_ports);
        if let Some(contents) = &contents {
            self.refusals = host_ports::refusals(contents);
            self.on_loopback = host_ports::on_loopback(contents, &settings.cni.name);
        }
        let mut inside = settings.inside.clone();
        inside.extend(nodes.iter().flat_map(|node| node.pod_cidrs.iter().copied()));
        let masqueraded = if settings.masquerade { pods_of(own, contents.as_ref()) } else { Vec::new() };
        let tunnel = (settings.between.transport != Transport::Direct).then(|| TunnelGuard {
            vni: settings.between.vni,
            port: settings.port,
            peers: pod_network.peers.clone(),
            checks_inner: settings.checks_sources,
        });
        let sources = match (settings.checks_sources, self.programs.is_some()) {
            (false, _) => Sources::Any,
            (true, false) => Sources::Own,
            (true, true) => Sources::OwnOf(pods_of_all(nodes, own, contents.as_ref())),
        };
        let bridge = (settings.mode == Mode::Bridge).then(|| settings.bridge.clone());
        let rules = PodRules {
            masqueraded,
            inside,
            host_ports,
            own: network.holds_services.then(|| own_networks(&network.addresses)),
            from_loopback,
            tunnel,
            sources: sources.clone(),
            bridge,
        };
        let checked = match sources {
            Sources::Any => None,
            Sources::Own => Some(None),
            Sources::OwnOf(networks) => Some(Some(networks)),
        };
        let checked = checked.filter(|_| settings.mode == Mode::Bridge);
        let ports = contents
            .as_ref()
            .map(|contents| checked.map(|checked| pod_ports(contents, &settings.cni.name, checked)));
        let told = self.tell_programs(settings, contents.as_ref(), network, audits);
        self.put(rules, ports, network, audits).map_err(PassError::Rules)?;
        told?;
        unread.map_or(Ok(()), |error| Err(error.into()))
    }

    /// Lets programs at pods' links know whose they are; a file that cannot be read says nothing
    /// new.
    fn tell_programs(
        &mut self,
        settings: &PodNetworkSettings,
        contents: Option<&Contents>,
        network: &Network,
        audits: bool,
    ) -> Result<(), BpfError> {
        let (Some(maps), Some(contents)) = (&self.programs, contents) else { return Ok(()) };
        let wanted = if settings.checks_sources {
            pod_sources(contents, &settings.cni.name, &network.devices)
        } else {
            BTreeMap::new()
        };
        if audits || self.sources.as_ref() != Some(&wanted) {
            self.sources = None;
            set_pod_sources(maps, &wanted)?;
            self.sources = Some(wanted);
        }
        Ok(())
    }

    /// Makes both tables so. `ports`: `None` where nobody knows who is behind which port, so that
    /// what is known stays.
    fn put(
        &mut self,
        rules: PodRules,
        ports: Option<Option<PodPorts>>,
        network: &Network,
        audits: bool,
    ) -> Result<(), NetlinkError> {
        let begun = Instant::now();
        if self.repairs.is_due(begun) || audits && self.lacks_table()? {
            self.distrust();
        }
        // A mere difference puts nothing right that others have done.
        let is_anew = !self.is_trusted;
        if is_anew || self.written.as_ref() != Some(&rules) {
            let done = self.commit(rules, network);
            // It may not be as we believe.
            done.inspect_err(|_| self.distrust())?;
        }
        if let (Some(wanted), Some(nft)) = (ports, &mut self.nft) {
            self.ports.write(nft, wanted, audits)?;
        }
        if is_anew {
            self.repairs.done(begun, Instant::now(), 1);
        }
        if let Some(Tally { changes, looks, .. }) = self.repairs.line(begun) {
            let name = TABLE.id.name;
            warn!(changes, repairs = looks, "another program changed a table {name}; restored");
        }
        Ok(())
    }

    /// What pods asked for and do not get, as of the last pass.
    pub(super) fn refusals(&self) -> &BTreeSet<Refusal> {
        &self.refusals
    }

    /// Names of the links of pods with ports on loopback, as of the last pass.
    pub(super) fn on_loopback(&self) -> &BTreeSet<String> {
        &self.on_loopback
    }

    fn commit(&mut self, rules: PodRules, network: &Network) -> Result<(), NetlinkError> {
        match &mut self.nft {
            Some(nft) => {
                let ops = match &self.written {
                    Some(written) if self.is_trusted => rules.difference(written),
                    _ => rules.replace(),
                };
                nft.commit(&TABLE, &ops)?;
            }
            None => {
                let mut nft = Nft::open()?;
                nft.commit(&TABLE, &rules.replace())?;
                if let Some(notices) = &self.notices {
                    nft_monitor::follow(&TABLE, nft.port(), notices.clone());
                }
                self.nft = Some(nft);
            }
        }
        let changed = host_ports::Changed::between(&self.host_ports, &rules.host_ports);
        end_flows(&changed, network)?;
        self.host_ports.clone_from(&rules.host_ports);
        self.written = Some(rules);
        self.is_trusted = true;
        Ok(())
    }

    /// While this node does not know enough of itself to say what there should be: what there was
    /// stays, and comes back.
    pub(super) fn restore(&mut self, network: &Network) -> Result<(), PassError> {
        match self.written.clone().filter(|_| self.repairs.is_due(Instant::now())) {
            Some(rules) => self.put(rules, self.ports.written(), network, false).map_err(PassError::Rules),
            None => Ok(()),
        }
    }

    fn lacks_table(&mut self) -> Result<bool, NetlinkError> {
        let Some(nft) = &mut self.nft else { return Ok(false) };
        Ok(!nft.has_table(&TABLE)?)
    }
}

/// Networks of this node's pods: its pod CIDRs, and the addresses of pods that are from before it
/// had these.
fn pods_of(own: &Own, contents: Option<&Contents>) -> Vec<IpNet> {
    let cidrs = &own.node.pod_cidrs;
    let held = contents.into_iter().flat_map(|contents| contents.leases.held.keys());
    let before = held.filter(|ip| !cidrs.iter().any(|cidr| cidr.contains(*ip))).map(|ip| IpNet::from(*ip));
    cidrs.iter().copied().chain(before).collect()
}

/// Networks of pods, of all nodes, out of which no other address is a pod's: as few as possible,
/// because each is a rule that packets of pods go through.
fn pods_of_all(nodes: &[Node], own: &Own, contents: Option<&Contents>) -> BTreeSet<IpNet> {
    let others = nodes.iter().flat_map(|node| node.pod_cidrs.iter().copied());
    let all: Vec<IpNet> = others.chain(pods_of(own, contents)).collect();
    IpNet::aggregate(&all).into_iter().collect()
}

/// Networks of which every address is the node's own, but for those of Services that a link holds.
/// Addresses of links come and go with pods, so all of them count.
fn own_networks(addresses: &[IpAddr]) -> Vec<IpNet> {
    let is_listed = |ip: &&IpAddr| match ip {
        IpAddr::V4(ip) => !ip.is_loopback(),
        IpAddr::V6(ip) => !ip.is_loopback() && !ip.is_unicast_link_local(),
    };
    let always = [([127, 0, 0, 0].into(), 8), (Ipv6Addr::LOCALHOST.into(), 128), (LINK_LOCAL.into(), 10)];
    let always = always.into_iter().filter_map(|(ip, length)| IpNet::new(ip, length).ok());
    always.chain(addresses.iter().filter(is_listed).map(|ip| IpNet::from(*ip))).collect()
}

/// RFC 4291, section 2.4.
const LINK_LOCAL: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0);

/// Ends UDP flows to ports of the node that lead elsewhere now.
fn end_flows(changed: &host_ports::Changed, network: &Network) -> Result<(), NetlinkError> {
    if changed.is_empty() {
        return Ok(());
    }
    let is_local = |ip: &IpAddr| ip.is_loopback() || network.addresses.contains(ip);
    let mut connection = Conntrack::open()?;
    for family in changed.families() {
        let stale = connection.all_flows(family, Protocol::Udp, |flow| {
            changed.is_stale(flow.destination, flow.replier, is_local)
        })?;
        for flow in &stale {
            connection.delete(flow)?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use sluice_core::lang::nftables::{ChainName, Op};
    use sluice_core::pod_network::PORTS_TABLE;

    use super::*;

    fn in_netns(test: impl FnOnce() + Send + 'static) {
        let _ = sluice_skips::in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, test);
    }

    /// What the table's guard of loopback has: whether others have taken it away.
    fn has_guard() -> bool {
        let chain = ["list", "chain", "inet", TABLE.id.name, "loopback-guard"];
        let output = std::process::Command::new("nft").args(chain).output().unwrap();
        String::from_utf8(output.stdout).unwrap().contains("drop")
    }

    #[test]
    fn foreign_changes_are_undone_although_another_change_is_written_first() {
        in_netns(|| {
            let (mut rules, network) = (Rules::default(), Network::default());
            let put = |rules: &mut Rules, bridge: &str| {
                let wanted = PodRules { bridge: Some(bridge.into()), ..PodRules::default() };
                rules.put(wanted, Some(None), &network, false).unwrap();
            };
            put(&mut rules, "a");
            assert!(has_guard());
            let nothing = [Op::SetRules(ChainName::new("loopback-guard"), Vec::new())];
            Nft::open().unwrap().commit(&TABLE, &nothing).unwrap();
            // Just after the last look: not due yet, and what changes is written without one.
            rules.noticed(Notice::Changed);
            put(&mut rules, "b");
            assert!(!has_guard());
            let due = rules.due().expect("a look is due");
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            put(&mut rules, "b");
            assert!(has_guard());
        });
    }

    #[test]
    fn both_tables_come_back_while_the_node_does_not_know_itself() {
        in_netns(|| {
            let (mut rules, network) = (Rules::default(), Network::default());
            rules.put(PodRules::default(), Some(Some(PodPorts::default())), &network, false).unwrap();
            let mut others = Nft::open().unwrap();
            let tables = [&TABLE, &PORTS_TABLE];
            for table in tables {
                assert!(others.delete(table).unwrap());
            }
            rules.noticed(Notice::Changed);
            let due = rules.due().expect("a look is due");
            std::thread::sleep(due.saturating_duration_since(Instant::now()));
            rules.restore(&network).unwrap();
            assert_eq!(tables.map(|table| others.has_table(table).unwrap()), [true, true]);
            assert_eq!(rules.due(), None);
        });
    }

    #[test]
    fn the_pods_of_many_nodes_are_few_networks() {
        let node = |i: u8| Node {
            name: sluice_core::model::ObjectName::new("", &format!("n{i}")),
            addresses: Vec::new(),
            pod_cidrs: vec![format!("10.244.{i}.0/24").parse().unwrap()],
            zone: None,
            eligible: true,
        };
        let nodes: Vec<Node> = (0..=255).map(node).collect();
        let own = Own { node: node(7), networks: Vec::new() };
        let found: Vec<String> = pods_of_all(&nodes, &own, None).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["10.244.0.0/16"]);
    }

    #[test]
    fn all_addresses_of_links_are_the_node_s_own() {
        let addresses: Vec<IpAddr> = ["127.0.0.1", "192.168.77.11", "::1", "fd00::1", "fe80::7"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let found: Vec<String> = own_networks(&addresses).iter().map(ToString::to_string).collect();
        assert_eq!(found, ["127.0.0.0/8", "::1/128", "fe80::/10", "192.168.77.11/32", "fd00::1/128"]);
    }
}
