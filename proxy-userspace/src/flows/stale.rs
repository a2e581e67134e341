//! Which UDP flows and sockets go to endpoints that do not serve any more. Pure.

use std::collections::HashSet;

use sluice_common::Address;
use sluice_common::flow::{Flow, FlowKey};
use sluice_common::service::{MemberKey, list};
use sluice_common::socket::{Peer, Pick, SocketKey};
use sluice_core::ebpf::ip;
use sluice_sys::sockets::Connected;

use super::expiry::is_original;

const UDP: u32 = 17;

/// The endpoints that UDP flows may go to.
#[derive(Debug, Default)]
pub(super) struct Serving {
    members: HashSet<MemberKey>,
}

impl FromIterator<MemberKey> for Serving {
    fn from_iter<T: IntoIterator<Item = MemberKey>>(keys: T) -> Self {
        let of_udp = keys.into_iter().filter(|key| key.group & list::MASK == list::SERVING);
        Serving { members: of_udp.collect() }
    }
}

impl Serving {
    fn has(&self, group: u64, address: Address, port: u16) -> bool {
        let group = group & !list::MASK | list::SERVING;
        self.members.contains(&MemberKey { group, address, port, reserved: [0; 3] })
    }

    /// Whether an entry of the flow table is one of a client that goes where it must not.
    pub(super) fn ended(&self, key: &FlowKey, flow: &Flow) -> bool {
        key.protocol == UDP
            && is_original(flow)
            && !self.has(flow.group, flow.destination, flow.destination_port)
    }

    /// Whether an unconnected socket's next datagram must go elsewhere.
    pub(super) fn ended_pick(&self, pick: &Pick) -> bool {
        !self.has(pick.group, pick.endpoint.address, pick.endpoint.port)
    }

    /// The socket that is, if it is connected, connected to an endpoint that does not serve.
    pub(super) fn ended_socket(&self, key: &SocketKey, peer: &Peer) -> Option<Connected> {
        udp_socket(key).filter(|_| !self.has(peer.group, key.address, key.port))
    }
}

/// The UDP socket that is, if it is connected, connected to the endpoint of this key.
pub(super) fn udp_socket(key: &SocketKey) -> Option<Connected> {
    let connected = || Connected { cookie: key.cookie, remote: (ip(key.address), u16::from_be(key.port)) };
    (u32::from(key.protocol) == UDP).then(connected)
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::flow::flag;
    use sluice_common::service::Endpoint;

    const GROUP: u64 = 0x70;

    fn serving() -> Serving {
        let key = |group| MemberKey { group, address: Address::v4(1), port: 53, reserved: [0; 3] };
        // The Cluster list of a service port with affinity does not count.
        [key(GROUP | list::SERVING), MemberKey { port: 54, ..key(GROUP | list::CLUSTER) }]
            .into_iter()
            .collect()
    }

    #[test]
    fn flows_to_endpoints_that_serve_go_on() {
        let key = FlowKey { protocol: UDP, ..FlowKey::default() };
        let flow =
            Flow { destination: Address::v4(1), destination_port: 53, group: GROUP, ..Flow::default() };
        assert!(!serving().ended(&key, &flow));
        assert!(serving().ended(&key, &Flow { destination_port: 54, ..flow }));
        assert!(serving().ended(&key, &Flow { group: 0x80, ..flow }), "the Service is gone");
        assert!(!serving().ended(&key, &Flow { destination_port: 54, flags: flag::REPLY, ..flow }));
        assert!(!serving().ended(&FlowKey { protocol: 6, ..key }, &Flow { destination_port: 54, ..flow }));
    }

    #[test]
    fn sockets_are_told_by_what_they_are_connected_to() {
        let address = Address::v4(u32::from_ne_bytes([10, 0, 0, 1]));
        let key = SocketKey { cookie: 5, address, port: 53u16.to_be(), protocol: 17, reserved: 0 };
        let peer = Peer { group: GROUP, ..Peer::default() };
        let expected = Connected { cookie: 5, remote: ("10.0.0.1".parse().unwrap(), 53) };
        assert_eq!(serving().ended_socket(&key, &peer), Some(expected));
        assert_eq!(serving().ended_socket(&SocketKey { protocol: 6, ..key }, &peer), None);
        let served = SocketKey { address: Address::v4(1), port: 53, ..key };
        assert_eq!(serving().ended_socket(&served, &peer), None);
        let pick = Pick { group: GROUP, endpoint: Endpoint { address, port: 53, reserved: 0 }, used: 0 };
        assert!(serving().ended_pick(&pick));
    }
}
