//! From what there should be to steps in the kernel.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::{Hop, Mac, PodNetwork, Route};
use crate::net::Family;

/// The VXLAN device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// What tells this VXLAN from others.
    pub vni: u32,
    /// The UDP port of outer packets.
    pub port: u16,
    /// Its hardware address.
    pub mac: Mac,
    /// The family of outer packets.
    pub underlay: Family,
    /// The node's address that outer packets come from, if it is on an interface; else the kernel chooses.
    pub local: Option<IpAddr>,
    /// Whether outer packets carry a UDP checksum. Wanted: no. Inner packets have their own, receivers take zero (RFC 7348,
    /// section 5; RFC 6935), and network cards and hypervisors that get the outer one wrong lose whole connections.
    pub checksums: bool,
    /// The largest inner packet.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl Device {
    /// Whether one can be made of the other: the kernel changes MTU and addresses only.
    fn is_same(&self, other: &Device) -> bool {
        let fixed = |device: &Device| (device.vni, device.port, device.mac, device.local, device.checksums);
        fixed(self) == fixed(other)
    }
}

/// What the kernel should hold, or holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// The VXLAN device.
    pub device: Option<Device>,
    /// Whether it is up. Wanted: always.
    pub up: bool,
    /// Ways to the pods of others.
    pub routes: BTreeSet<Route>,
    /// Which hardware address an inner next hop has.
    pub neighbours: BTreeSet<(IpAddr, Mac)>,
    /// Which node a hardware address is at.
    pub forwarding: BTreeSet<(Mac, IpAddr)>,
}

/// A step from one state to another.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the device, and sets it up.
    AddDevice(Device),
    /// Deletes the device, with all that hangs on it.
    DeleteDevice,
    /// Sets the device's MTU, and sets it up.
    SetDevice(u32),
    /// Gives the device an address.
    AddAddress(IpAddr),
    /// Takes an address from the device.
    DeleteAddress(IpAddr),
    /// Says which hardware address a next hop has.
    AddNeighbour(IpAddr, Mac),
    /// Forgets it.
    DeleteNeighbour(IpAddr, Mac),
    /// Says which node a hardware address is at.
    AddForwarding(Mac, IpAddr),
    /// Forgets it.
    DeleteForwarding(Mac, IpAddr),
    /// Adds a route; there is none of ours to the same network.
    AddRoute(Route),
    /// Replaces our route to the same network.
    ReplaceRoute(Route),
    /// Deletes a route.
    DeleteRoute(Route),
}

impl KernelState {
    /// What a pod network takes in the kernel.
    ///
    /// `device` is the VXLAN device, if there shall be one, without its addresses.
    pub fn wanted(network: &PodNetwork, device: Device) -> Self {
        let addresses = network.device.clone();
        let device = (!addresses.is_empty()).then_some(Device { addresses, ..device });
        KernelState {
            up: device.is_some(),
            device,
            routes: network.routes.clone(),
            neighbours: network
                .vteps
                .iter()
                .flat_map(|vtep| vtep.addresses.iter().map(|address| (*address, vtep.mac)))
                .collect(),
            forwarding: network.vteps.iter().map(|vtep| (vtep.mac, vtep.node)).collect(),
        }
    }

    /// Steps from here to there. What a route needs comes before it and goes after it.
    pub fn steps_to(&self, wanted: &KernelState) -> Vec<Step> {
        let mut steps = Vec::new();
        let keeps = match (&self.device, &wanted.device) {
            (Some(is), Some(shall)) => is.is_same(shall),
            (None, None) => true,
            _ => false,
        };
        if !keeps && self.device.is_some() {
            steps.push(Step::DeleteDevice);
        }
        // With a device everything on it is gone.
        let empty = KernelState::default();
        let (here, kept_routes): (&KernelState, BTreeSet<Route>) = if keeps {
            (self, self.routes.clone())
        } else {
            let is_elsewhere = |route: &&Route| matches!(route.via, Hop::Node(_));
            (&empty, self.routes.iter().filter(is_elsewhere).cloned().collect())
        };
        let gone = |route: &&Route| !wanted.routes.iter().any(|other| other.to == route.to);
        steps.extend(kept_routes.iter().filter(gone).cloned().map(Step::DeleteRoute));
        if let Some(shall) = &wanted.device {
            device_steps(here, shall, &mut steps);
        }
        steps.extend(
            wanted.forwarding.difference(&here.forwarding).map(|(mac, ip)| Step::AddForwarding(*mac, *ip)),
        );
        steps.extend(
            wanted.neighbours.difference(&here.neighbours).map(|(ip, mac)| Step::AddNeighbour(*ip, *mac)),
        );
        steps.extend(wanted.routes.difference(&kept_routes).cloned().map(|route| {
            let is_there = kept_routes.iter().any(|other| other.to == route.to);
            if is_there { Step::ReplaceRoute(route) } else { Step::AddRoute(route) }
        }));
        let stale =
            here.neighbours.iter().filter(|(ip, _)| !wanted.neighbours.iter().any(|(other, _)| other == ip));
        steps.extend(stale.map(|(ip, mac)| Step::DeleteNeighbour(*ip, *mac)));
        steps.extend(
            here.forwarding.difference(&wanted.forwarding).map(|(mac, ip)| Step::DeleteForwarding(*mac, *ip)),
        );
        steps
    }
}

fn device_steps(here: &KernelState, shall: &Device, steps: &mut Vec<Step>) {
    let had = match &here.device {
        Some(is) => {
            if is.mtu != shall.mtu || !here.up {
                steps.push(Step::SetDevice(shall.mtu));
            }
            is.addresses.clone()
        }
        None => {
            steps.push(Step::AddDevice(shall.clone()));
            BTreeSet::new()
        }
    };
    steps.extend(shall.addresses.difference(&had).map(|ip| Step::AddAddress(*ip)));
    steps.extend(had.difference(&shall.addresses).map(|ip| Step::DeleteAddress(*ip)));
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device() -> Device {
        Device {
            vni: 1,
            port: 4789,
            mac: [2, 0, 0, 0, 0, 1],
            underlay: Family::V4,
            local: Some("192.168.1.1".parse().unwrap()),
            checksums: false,
            mtu: 1450,
            addresses: BTreeSet::from(["10.244.1.0".parse().unwrap()]),
        }
    }

    fn vtep_route(to: &str, via: &str) -> Route {
        Route { to: to.parse().unwrap(), via: Hop::Vtep(via.parse().unwrap()) }
    }

    fn full() -> KernelState {
        let (mac, vtep) = ([2, 0, 0, 0, 0, 2], "10.244.2.0".parse().unwrap());
        let direct = Hop::Node("192.168.1.3".parse().unwrap());
        KernelState {
            device: Some(device()),
            up: true,
            routes: BTreeSet::from([
                vtep_route("10.244.2.0/24", "10.244.2.0"),
                Route { to: "10.244.3.0/24".parse().unwrap(), via: direct },
            ]),
            neighbours: BTreeSet::from([(vtep, mac)]),
            forwarding: BTreeSet::from([(mac, "192.168.1.2".parse().unwrap())]),
        }
    }

    /// A kernel that does what it is told, and loses what hangs on a device with it.
    fn play(mut state: KernelState, steps: &[Step]) -> KernelState {
        for step in steps {
            match step.clone() {
                Step::AddDevice(device) => {
                    assert!(state.device.is_none());
                    state.device = Some(Device { addresses: BTreeSet::new(), ..device });
                    state.up = true;
                }
                Step::DeleteDevice => {
                    let routes = state.routes.into_iter().filter(|route| matches!(route.via, Hop::Node(_)));
                    state = KernelState { routes: routes.collect(), ..KernelState::default() };
                }
                Step::SetDevice(mtu) => {
                    state.device.as_mut().unwrap().mtu = mtu;
                    state.up = true;
                }
                Step::AddAddress(ip) => assert!(state.device.as_mut().unwrap().addresses.insert(ip)),
                Step::DeleteAddress(ip) => assert!(state.device.as_mut().unwrap().addresses.remove(&ip)),
                Step::AddNeighbour(ip, mac) => {
                    state.neighbours.retain(|(other, _)| *other != ip);
                    state.neighbours.insert((ip, mac));
                }
                Step::DeleteNeighbour(ip, mac) => assert!(state.neighbours.remove(&(ip, mac))),
                Step::AddForwarding(mac, ip) => assert!(state.forwarding.insert((mac, ip))),
                Step::DeleteForwarding(mac, ip) => assert!(state.forwarding.remove(&(mac, ip))),
                Step::AddRoute(route) | Step::ReplaceRoute(route) => {
                    assert!(state.up || matches!(route.via, Hop::Node(_)));
                    let before = state.routes.len();
                    state.routes.retain(|other| other.to != route.to);
                    assert_eq!(state.routes.len() < before, matches!(step, Step::ReplaceRoute(_)));
                    state.routes.insert(route);
                }
                Step::DeleteRoute(route) => assert!(state.routes.remove(&route)),
            }
        }
        state
    }

    #[test]
    fn any_state_becomes_any_other_and_then_nothing_is_to_be_done() {
        let mut moved = full();
        moved.forwarding = BTreeSet::from([([2, 0, 0, 0, 0, 2], "192.168.1.9".parse().unwrap())]);
        moved.neighbours = BTreeSet::from([("10.244.2.0".parse().unwrap(), [2, 0, 0, 0, 0, 9])]);
        moved.routes = BTreeSet::from([vtep_route("10.244.3.0/24", "10.244.3.0")]);
        let other_port = KernelState { device: Some(Device { port: 8472, ..device() }), ..full() };
        let other_mtu = KernelState { device: Some(Device { mtu: 1400, ..device() }), ..full() };
        let other_address = KernelState {
            device: Some(Device { addresses: BTreeSet::from(["10.9.0.0".parse().unwrap()]), ..device() }),
            ..full()
        };
        let down = KernelState { up: false, ..full() };
        let direct = KernelState {
            routes: full().routes.into_iter().filter(|route| matches!(route.via, Hop::Node(_))).collect(),
            ..KernelState::default()
        };
        let summed = KernelState { device: Some(Device { checksums: true, ..device() }), ..full() };
        let wanted =
            [full(), moved, other_port, summed, other_mtu, other_address, direct, KernelState::default()];
        for from in wanted.iter().chain([&down]) {
            for to in &wanted {
                let steps = from.steps_to(to);
                assert_eq!(&play(from.clone(), &steps), to, "{steps:?}");
                assert_eq!(steps.is_empty(), from == to);
                assert_eq!(to.steps_to(to), []);
            }
        }
    }
}
