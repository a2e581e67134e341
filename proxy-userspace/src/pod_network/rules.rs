//! The table of the pod network: written when it should be another one, or when somebody may have changed it.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::time::Instant;

use ipnet::IpNet;
use sluice_cni::spec::Mode;
use sluice_cni::store::{self, Contents};
use sluice_core::model::Node;
use sluice_core::net::Protocol;
use sluice_core::pod_network::{HostPort, Own, PodNetwork, PodRules, Sources, TABLE, Transport, TunnelGuard};
use sluice_sys::conntrack::Conntrack;
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::{Nft, Notice, Table};
use tokio::sync::mpsc;
use tracing::warn;

use super::PassError;
use super::host_ports::{self, Refusal};
use super::ports::{Ports, pod_ports};
use crate::addresses::Network;
use crate::config::PodNetworkSettings;
use crate::repairs::{Repairs, Tally};
use crate::{conntrack, nft_monitor};

/// What is known of the table.
#[derive(Default)]
pub(super) struct Rules {
    nft: Option<Nft>,
    notices: Option<mpsc::Sender<Notice>>,
    /// As it was written last, and is still, for all that is known.
    written: Option<PodRules>,
    /// The last that was.
    known: Option<PodRules>,
    /// The table of pods on a bridge.
    ports: Ports,
    /// Whether programs at the ports of bridges see packets before its rules do.
    programs_at_ports: bool,
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
    pub(super) fn new(programs_at_ports: bool) -> Self {
        Rules { programs_at_ports, ..Rules::default() }
    }

    /// Who is told when somebody else changes the table.
    pub(super) fn tell_changes_to(&mut self, notices: mpsc::Sender<Notice>) {
        self.notices = Some(notices);
    }

    /// The next pass writes the table anew.
    pub(super) fn distrust(&mut self) {
        self.written = None;
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

    /// Makes the table as it should be. `from_loopback`: as the table has it. With `audits` also looks whether it has gone without a notice.
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
        let own_node = own;
        let own = network.holds_services.then(|| own_networks(&network.addresses));
        let tunnel = (settings.between.transport != Transport::Direct).then(|| TunnelGuard {
            vni: settings.between.vni,
            port: settings.port,
            peers: pod_network.peers.clone(),
            checks_inner: settings.checks_sources,
        });
        let sources = match (settings.checks_sources, self.programs_at_ports) {
            (false, _) => Sources::Any,
            (true, false) => Sources::Own,
            (true, true) => Sources::OwnOf(pods_of_all(nodes, own_node, contents.as_ref())),
        };
        let bridge = (settings.mode == Mode::Bridge).then(|| settings.bridge.clone());
        let rules = PodRules {
            masqueraded,
            inside,
            host_ports,
            own,
            from_loopback,
            tunnel,
            sources: sources.clone(),
            bridge,
        };
        let begun = Instant::now();
        if self.repairs.is_due(begun) {
            self.distrust();
        }
        let is_there = self.written.as_ref() == Some(&rules) && !(audits && self.lacks_table()?);
        if !is_there {
            let done = self.commit(rules, network);
            // It may not be as we believe.
            done.inspect_err(|_| self.distrust()).map_err(PassError::Rules)?;
            self.repairs.done(begun, Instant::now(), 1);
        }
        // Without the file nobody knows who is behind which port: what is known stays.
        if let (Some(contents), Some(nft)) = (&contents, &mut self.nft) {
            let checked = match sources {
                Sources::Any => None,
                Sources::Own => Some(None),
                Sources::OwnOf(networks) => Some(Some(networks)),
            };
            let checked = checked.filter(|_| settings.mode == Mode::Bridge);
            let wanted = checked.map(|checked| pod_ports(contents, &settings.cni.name, checked));
            self.ports.write(nft, wanted, audits).map_err(PassError::Rules)?;
        }
        if let Some(Tally { changes, looks, .. }) = self.repairs.line(begun) {
            warn!(changes, repairs = looks, "somebody else changed a table {TABLE}: written anew");
        }
        unread.map_or(Ok(()), |error| Err(error.into()))
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
                    Some(written) => rules.difference(written),
                    None => rules.replace(),
                };
                nft.commit_to(Table::inet(TABLE), &ops)?;
            }
            None => {
                let mut nft = Nft::open()?;
                nft.commit_to(Table::inet(TABLE), &rules.replace())?;
                if let Some(notices) = &self.notices {
                    nft_monitor::follow(TABLE, nft.port(), notices.clone());
                }
                self.nft = Some(nft);
            }
        }
        let changed = host_ports::Changed::between(&self.host_ports, &rules.host_ports);
        end_flows(&changed, network)?;
        self.host_ports.clone_from(&rules.host_ports);
        self.known = Some(rules.clone());
        self.written = Some(rules);
        Ok(())
    }

    /// While this node does not know enough of itself to say what there should be: what there was stays, and comes back.
    pub(super) fn restore(&mut self, network: &Network) -> Result<(), PassError> {
        let begun = Instant::now();
        if !self.repairs.is_due(begun) {
            return Ok(());
        }
        let known = self.known.clone();
        self.written = None;
        let done = known.map_or(Ok(()), |rules| self.commit(rules, network));
        self.repairs.done(begun, Instant::now(), 1);
        done.map_err(PassError::Rules)
    }

    fn lacks_table(&mut self) -> Result<bool, PassError> {
        let Some(nft) = &mut self.nft else { return Ok(false) };
        let is_there = nft.has_table(Table::inet(TABLE)).map_err(PassError::Rules)?;
        if !is_there {
            self.written = None;
        }
        Ok(!is_there)
    }
}

/// Networks of this node's pods: its pod CIDRs, and the addresses of pods that are from before it had these.
fn pods_of(own: &Own, contents: Option<&Contents>) -> Vec<IpNet> {
    let cidrs = &own.node.pod_cidrs;
    let held = contents.into_iter().flat_map(|contents| contents.leases.held.keys());
    let before = held.filter(|ip| !cidrs.iter().any(|cidr| cidr.contains(*ip))).map(|ip| IpNet::from(*ip));
    cidrs.iter().copied().chain(before).collect()
}

/// Networks of pods, of all nodes, out of which no other address is a pod's.
fn pods_of_all(nodes: &[Node], own: &Own, contents: Option<&Contents>) -> BTreeSet<IpNet> {
    let others = nodes.iter().flat_map(|node| node.pod_cidrs.iter().copied());
    others.chain(pods_of(own, contents)).map(|net| net.trunc()).collect()
}

/// Networks of which every address is the node's own, but for those of Services that a link holds. Addresses of links come and
/// go with pods, so all of them count.
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
        let stale = conntrack::list(&mut connection, family, Protocol::Udp, |flow| {
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
    use super::*;

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
