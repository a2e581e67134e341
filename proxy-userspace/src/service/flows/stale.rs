//! Which UDP flows and sockets go to endpoints that do not serve any more, or by frontends that are
//! gone or another Service's. Pure.

use std::collections::{BTreeSet, HashMap, HashSet};

use sluice_common::Address;
use sluice_common::flow::{Flow, FlowKey, flag};
use sluice_common::node::{Config, address, option};
use sluice_common::service::{Frontend, FrontendKey, MemberKey, kind, list};
use sluice_common::socket::{Peer, Pick, SocketKey};
use sluice_core::ebpf::ip;
use sluice_sys::sockets::Connected;

use super::expiry::is_original;

const UDP: u32 = 17;

/// Where UDP flows may go: which frontends there are, and which endpoints serve them.
#[derive(Debug, Default)]
pub(super) struct Serving {
    members: HashSet<MemberKey>,
    /// Group ids without their lists.
    frontends: HashMap<FrontendKey, u64>,
    /// Addresses on which node ports answer.
    node_port_addresses: HashSet<Address>,
    /// Node ports answer on loopback addresses, too: of IPv4, of IPv6.
    on_loopback: [bool; 2],
}

impl Serving {
    /// From what is in the maps `MEMBERS`, `FRONTENDS` and `ADDRESSES`, and the configuration.
    pub(super) fn new(
        members: impl IntoIterator<Item = MemberKey>,
        frontends: impl IntoIterator<Item = (FrontendKey, Frontend)>,
        addresses: impl IntoIterator<Item = (Address, u32)>,
        config: &Config,
    ) -> Self {
        let of_udp = |key: &MemberKey| key.group & list::MASK == list::SERVING;
        let frontends = frontends.into_iter().filter(|(key, _)| u32::from(key.protocol) == UDP);
        let addresses = addresses.into_iter().filter(|(_, bits)| bits & address::NODE_PORTS != 0);
        Serving {
            members: members.into_iter().filter(of_udp).collect(),
            frontends: frontends.map(|(key, frontend)| (key, frontend.group)).collect(),
            node_port_addresses: addresses.map(|(address, _)| address).collect(),
            on_loopback: [option::SERVES_LOOPBACK4, option::SERVES_LOOPBACK6]
                .map(|serves| config.options & serves != 0),
        }
    }

    /// The group that a destination leads to, as `service::find` of the programs has it.
    fn group(&self, address: Address, port: u16) -> Option<u64> {
        let key = FrontendKey { address, port, protocol: UDP as u8, kind: kind::ADDRESS };
        let on_loopback = self.on_loopback[usize::from(!address.is_v4())];
        let is_node_port =
            || self.node_port_addresses.contains(&address) || (on_loopback && ip(address).is_loopback());
        let any = if address.is_v4() { Address::v4(0) } else { Address::default() };
        let node_port = FrontendKey { address: any, kind: kind::NODE_PORT, ..key };
        let found =
            self.frontends.get(&key).or_else(|| self.frontends.get(&node_port).filter(|_| is_node_port()));
        found.copied()
    }

    /// Whether a frontend still leads to this group, and the endpoint still serves that.
    fn has(&self, frontend: (Address, u16), group: u64, address: Address, port: u16) -> bool {
        let member = group & !list::MASK | list::SERVING;
        self.group(frontend.0, frontend.1) == Some(group)
            && self.members.contains(&MemberKey { group: member, address, port, reserved: [0; 3] })
    }

    /// Whether an entry of the flow table is of a flow that goes where it must not. Each of its two
    /// entries tells: a full table may have dropped the other one.
    pub(super) fn ended(&self, key: &FlowKey, flow: &Flow) -> bool {
        let (frontend, endpoint) = if is_original(flow) {
            ((key.destination, key.destination_port), (flow.destination, flow.destination_port))
        } else {
            ((flow.source, flow.source_port), (key.source, key.source_port))
        };
        key.protocol == UDP
            && flow.flags & flag::STRAIGHT == 0
            && !self.has(frontend, flow.group, endpoint.0, endpoint.1)
    }

    /// Whether an unconnected socket's next datagram to a frontend must go elsewhere.
    pub(super) fn ended_pick(&self, key: &SocketKey, pick: &Pick) -> bool {
        if pick.endpoint.port == Pick::BY_PACKETS {
            return self.group(key.address, key.port) != Some(pick.group);
        }
        !self.has((key.address, key.port), pick.group, pick.endpoint.address, pick.endpoint.port)
    }

    /// The socket that is, if it is connected, connected to an endpoint that does not serve, or by
    /// a frontend that is gone.
    pub(super) fn ended_socket(&self, key: &SocketKey, peer: &Peer) -> Option<Connected> {
        udp_socket(key).filter(|_| !self.has((peer.address, peer.port), peer.group, key.address, key.port))
    }
}

/// What is to end if it must still, when that is looked at again.
#[derive(Debug, Default)]
pub(super) struct Suspects {
    /// Entries of flows, of each table.
    pub(super) flows: [Vec<(FlowKey, Flow)>; 2],
    /// Choices of unconnected sockets.
    pub(super) picks: Vec<(SocketKey, Pick)>,
    /// Connected sockets.
    pub(super) sockets: BTreeSet<Connected>,
    /// What the maps said of these.
    pub(super) peers: Vec<(SocketKey, Peer)>,
}

impl Suspects {
    pub(super) fn is_empty(&self) -> bool {
        self.flows.iter().all(Vec::is_empty) && self.picks.is_empty() && self.peers.is_empty()
    }

    /// Leaves out what goes on by what was read later than this: a flow may have begun by a
    /// frontend that was added between two looks.
    pub(super) fn retain(&mut self, serving: &Serving) {
        for flows in &mut self.flows {
            flows.retain(|(key, flow)| serving.ended(key, flow));
        }
        self.picks.retain(|(key, pick)| serving.ended_pick(key, pick));
        self.peers.retain(|(key, peer)| serving.ended_socket(key, peer).is_some());
        self.sockets = self.peers.iter().filter_map(|(key, peer)| serving.ended_socket(key, peer)).collect();
    }
}

/// Whether an entry is still of the flow that it was of, used since or not.
pub(super) fn is_same_flow(one: &Flow, other: &Flow) -> bool {
    let bare = |flow: &Flow| Flow { seen: 0, used: 0, ..*flow };
    bare(one) == bare(other)
}

/// The UDP socket that is, if it is connected, connected to the endpoint of this key.
pub(super) fn udp_socket(key: &SocketKey) -> Option<Connected> {
    let connected = || Connected { cookie: key.cookie, remote: (ip(key.address), u16::from_be(key.port)) };
    (u32::from(key.protocol) == UDP).then(connected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::service::Endpoint;

    const GROUP: u64 = 0x70;
    const VIP: Address = Address::v4(9);
    const PORT: u16 = 5300;

    fn frontend(address: Address, kind: u8, group: u64) -> (FrontendKey, Frontend) {
        let key = FrontendKey { address, port: PORT, protocol: UDP as u8, kind };
        (key, Frontend { group, ..Frontend::default() })
    }

    fn serving_by(frontends: &[(FrontendKey, Frontend)], config: &Config) -> Serving {
        let key = |group| MemberKey { group, address: Address::v4(1), port: 53, reserved: [0; 3] };
        // The Cluster list of a service port with affinity does not count.
        let members = [key(GROUP | list::SERVING), MemberKey { port: 54, ..key(GROUP | list::CLUSTER) }];
        let addresses =
            [(Address::v4(7), address::OWN | address::NODE_PORTS), (Address::v4(8), address::OWN)];
        Serving::new(members, frontends.iter().copied(), addresses, config)
    }

    fn serving() -> Serving {
        serving_by(&[frontend(VIP, kind::ADDRESS, GROUP)], &Config::default())
    }

    fn to(destination: Address) -> FlowKey {
        FlowKey { protocol: UDP, destination, destination_port: PORT, ..FlowKey::default() }
    }

    const FLOW: Flow = Flow {
        source: VIP,
        destination: Address::v4(1),
        source_port: 1,
        destination_port: 53,
        seen: 0,
        flags: 0,
        used: 0,
        group: GROUP,
    };

    #[test]
    fn flows_to_endpoints_that_serve_go_on() {
        let key = to(VIP);
        assert!(!serving().ended(&key, &FLOW));
        assert!(serving().ended(&key, &Flow { destination_port: 54, ..FLOW }));
        assert!(serving().ended(&key, &Flow { group: 0x80, ..FLOW }), "the Service is gone");
        let straight = Flow { destination_port: 54, flags: flag::STRAIGHT, ..FLOW };
        assert!(!serving().ended(&key, &straight));
        assert!(!serving().ended(&key.other(&straight), &straight.turned(&key)));
        assert!(!serving().ended(&FlowKey { protocol: 6, ..key }, &Flow { destination_port: 54, ..FLOW }));
    }

    #[test]
    fn half_a_flow_is_judged_by_the_entry_that_is_left() {
        let back = |flow: Flow| {
            let there = to(VIP);
            (there.other(&flow), flow.turned(&there))
        };
        let (key, reply) = back(FLOW);
        assert_eq!(reply.flags & flag::REPLY, flag::REPLY);
        assert!(!serving().ended(&key, &reply));
        // The source is translated, too.
        let (key, reply) = back(Flow { source: Address::v4(5), source_port: 20_000, ..FLOW });
        assert!(!serving().ended(&key, &reply));
        let (key, reply) = back(Flow { destination_port: 54, ..FLOW });
        assert!(serving().ended(&key, &reply), "the endpoint does not serve");
        let (key, reply) = back(FLOW);
        assert!(serving().ended(&key, &Flow { group: 0x80, ..reply }), "the Service is gone");
        assert!(serving_by(&[], &Config::default()).ended(&key, &reply), "the frontend is gone");
        assert!(!serving_by(&[], &Config::default()).ended(&FlowKey { protocol: 6, ..key }, &reply));
    }

    #[test]
    fn flows_of_a_frontend_added_meanwhile_are_kept() {
        let (before, after) = (serving_by(&[], &Config::default()), serving());
        let (gone, key) = (Address::v4(4), to(VIP));
        let socket = |address| SocketKey { cookie: 5, address, port: 53, protocol: 17, reserved: 0 };
        let peer = |address| Peer { address, port: PORT, group: GROUP, ..Peer::default() };
        let pick = Pick {
            group: GROUP,
            endpoint: Endpoint { address: Address::v4(1), port: 53, reserved: 0 },
            used: 0,
        };
        let picked = |address| (SocketKey { address, port: PORT, ..socket(address) }, pick);
        let mut found = Suspects {
            flows: [vec![(key, FLOW), (to(gone), FLOW)], vec![(key, FLOW)]],
            picks: vec![picked(VIP), picked(gone)],
            peers: [VIP, gone].map(|frontend| (socket(Address::v4(1)), peer(frontend))).to_vec(),
            ..Suspects::default()
        };
        found.retain(&before);
        assert_eq!(
            (found.flows.each_ref().map(Vec::len), found.picks.len(), found.peers.len()),
            ([2, 1], 2, 2)
        );
        assert_eq!(found.sockets.len(), 1, "both are of one socket");
        found.retain(&after);
        assert_eq!(
            (found.flows.each_ref().map(Vec::len), found.picks.len(), found.peers.len()),
            ([1, 0], 1, 1)
        );
        assert_eq!(found.flows[0][0].0, to(gone));
        found.peers.clear();
        found.retain(&after);
        assert!(found.sockets.is_empty() && !found.is_empty());
    }

    #[test]
    fn another_flow_of_the_same_key_is_not_the_one_that_was_looked_at() {
        assert!(is_same_flow(&FLOW, &Flow { used: 7, seen: 1, ..FLOW }));
        assert!(!is_same_flow(&FLOW, &Flow { group: 0x80, ..FLOW }));
        assert!(!is_same_flow(&FLOW, &Flow { destination: Address::v4(2), ..FLOW }));
    }

    #[test]
    fn flows_end_with_their_frontend() {
        let plain = Config::default();
        let (vip, moved) = (frontend(VIP, kind::ADDRESS, GROUP), frontend(VIP, kind::ADDRESS, 0x80));
        let node_port = frontend(Address::v4(0), kind::NODE_PORT, GROUP);
        let of_tcp = (FrontendKey { protocol: 6, ..vip.0 }, vip.1);
        let ended = |frontends: &[_], config: &Config, to_address| {
            serving_by(frontends, config).ended(&to(to_address), &FLOW)
        };
        assert!(ended(&[], &plain, VIP) && ended(&[of_tcp], &plain, VIP));
        assert!(ended(&[moved], &plain, VIP), "the address is another Service's");
        let (own, not_chosen) = (Address::v4(7), Address::v4(8));
        assert!(!ended(&[node_port], &plain, own) && ended(&[], &plain, own));
        assert!(ended(&[node_port], &plain, not_chosen));
        assert!(ended(&[node_port, (FrontendKey { address: own, ..moved.0 }, moved.1)], &plain, own));
        let loopback = Address::v4(u32::from_ne_bytes([127, 0, 0, 1]));
        let on_loopback = Config { options: option::SERVES_LOOPBACK4, ..plain };
        assert!(ended(&[node_port], &plain, loopback) && !ended(&[node_port], &on_loopback, loopback));
        let on_loopback6 = Config { options: option::SERVES_LOOPBACK6, ..plain };
        assert!(ended(&[node_port], &on_loopback6, loopback), "each family by itself");
    }

    #[test]
    fn sockets_are_told_by_what_they_are_connected_to() {
        let address = Address::v4(u32::from_ne_bytes([10, 0, 0, 1]));
        let key = SocketKey { cookie: 5, address, port: 53u16.to_be(), protocol: 17, reserved: 0 };
        let peer = Peer { address: VIP, port: PORT, group: GROUP, ..Peer::default() };
        let expected = Connected { cookie: 5, remote: ("10.0.0.1".parse().unwrap(), 53) };
        assert_eq!(serving().ended_socket(&key, &peer), Some(expected));
        assert_eq!(serving().ended_socket(&SocketKey { protocol: 6, ..key }, &peer), None);
        let served = SocketKey { address: Address::v4(1), port: 53, ..key };
        assert_eq!(serving().ended_socket(&served, &peer), None);
        let of_another = Peer { port: PORT + 1, ..peer };
        assert!(serving().ended_socket(&served, &of_another).is_some(), "the frontend is gone");
        let pick = Pick { group: GROUP, endpoint: Endpoint { address, port: 53, reserved: 0 }, used: 0 };
        let by = SocketKey { address: VIP, port: PORT, ..key };
        assert!(serving().ended_pick(&by, &pick));
        let serves = Pick { endpoint: Endpoint { address: Address::v4(1), ..pick.endpoint }, ..pick };
        let serves = Pick { endpoint: Endpoint { port: 53, ..serves.endpoint }, ..serves };
        assert!(!serving().ended_pick(&by, &serves));
        assert!(serving().ended_pick(&SocketKey { port: PORT + 1, ..by }, &serves), "the frontend is gone");
        let by_packets = Pick { group: GROUP, ..Pick::default() };
        assert!(!serving().ended_pick(&by, &by_packets), "whichever endpoints there are");
        assert!(
            serving().ended_pick(&by, &Pick { group: 0x80, ..by_packets }),
            "the address is another Service's"
        );
    }
}
