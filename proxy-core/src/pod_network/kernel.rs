//! From what there should be to steps in the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::net::IpAddr;

use ipnet::IpNet;

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
    /// The node's address that outer packets come from, if it is on an interface; else the kernel
    /// chooses.
    pub local: Option<IpAddr>,
    /// Whether outer packets carry a UDP checksum. Wanted: no. Inner packets have their own,
    /// receivers take zero (RFC 7348, section 5; RFC 6935), and network cards and hypervisors that
    /// get the outer one wrong lose whole connections.
    pub checksums: bool,
    /// The largest inner packet.
    pub mtu: u32,
    /// Its addresses.
    pub addresses: BTreeSet<IpAddr>,
}

impl Device {
    /// Whether one can be made of the other: the kernel changes MTU and addresses only.
    fn is_same(&self, other: &Device) -> bool {
        let fixed = |device: &Device| {
            (device.underlay, device.vni, device.port, device.mac, device.local, device.checksums)
        };
        fixed(self) == fixed(other)
    }
}

/// A VXLAN device with what hangs on it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tunnel {
    /// The device.
    pub device: Device,
    /// Whether it is up. Wanted: always.
    pub up: bool,
    /// Which hardware address an inner next hop has.
    pub neighbours: BTreeSet<(IpAddr, Mac)>,
    /// Which node a hardware address is at.
    pub forwarding: BTreeSet<(Mac, IpAddr)>,
}

/// What the kernel should hold, or holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct KernelState {
    /// The VXLAN devices, each by the family that its name stands for. A device of an earlier
    /// version may have another.
    pub tunnels: BTreeMap<Family, Tunnel>,
    /// Ways to pods.
    pub routes: BTreeSet<Route>,
}

/// A step from one state to another. The family says which device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Step {
    /// Makes the device of its underlay's family, and sets it up.
    AddDevice(Device),
    /// Deletes the device, with all that hangs on it.
    DeleteDevice(Family),
    /// Sets the device's MTU, and sets it up.
    SetDevice(Family, u32),
    /// Gives the device an address.
    AddAddress(Family, IpAddr),
    /// Takes an address from the device.
    DeleteAddress(Family, IpAddr),
    /// Says which hardware address a next hop has.
    AddNeighbour(Family, IpAddr, Mac),
    /// Forgets it.
    DeleteNeighbour(Family, IpAddr, Mac),
    /// Says which node a hardware address is at.
    AddForwarding(Family, Mac, IpAddr),
    /// Forgets it.
    DeleteForwarding(Family, Mac, IpAddr),
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
    /// `device` makes the VXLAN device of a family, without its addresses.
    pub fn wanted(network: &PodNetwork, device: impl Fn(Family) -> Device) -> Self {
        let tunnel = |family: &Family| {
            let vteps = || network.vteps.iter().filter(|vtep| Family::of(&vtep.node) == *family);
            let neighbours =
                vteps().flat_map(|vtep| vtep.addresses.iter().map(|address| (*address, vtep.mac))).collect();
            let forwarding = vteps().map(|vtep| (vtep.mac, vtep.node)).collect();
            let device = Device { addresses: network.addresses.clone(), ..device(*family) };
            (*family, Tunnel { device, up: true, neighbours, forwarding })
        };
        KernelState {
            tunnels: network.underlays.iter().map(tunnel).collect(),
            routes: network.routes.iter().cloned().chain(network.own.iter().map(to_nobody)).collect(),
        }
    }

    /// Steps from here to there. What a route needs comes before it and goes after it.
    pub fn steps_to(&self, wanted: &KernelState) -> Vec<Step> {
        let mut steps = Vec::new();
        let kept: BTreeMap<Family, &Tunnel> = self
            .tunnels
            .iter()
            .filter(|(family, is)| stays(is, wanted.tunnels.get(family)))
            .map(by_family)
            .collect();
        // One that nobody needs goes in the end, unless it is in the way of another: one VNI, port
        // and family have one device. Without a local address nobody knows for sure of which family
        // it is.
        let (late, early): (Vec<_>, Vec<_>) =
            self.tunnels.iter().filter(|(family, _)| !kept.contains_key(family)).partition(|(family, is)| {
                let is_certain = is.device.underlay == **family && is.device.local.is_some();
                is_certain && !wanted.tunnels.contains_key(family)
            });
        steps.extend(early.iter().map(|(family, _)| Step::DeleteDevice(**family)));
        // With a device everything on it is gone.
        let is_there = |route: &&Route| match route.via {
            Hop::Vtep(family, _) => !early.iter().any(|(gone, _)| **gone == family),
            Hop::Node(_) | Hop::Nobody => true,
        };
        let routes: BTreeSet<&Route> = self.routes.iter().filter(is_there).collect();
        let is_unwanted = |route: &&&Route| !wanted.routes.iter().any(|other| is_in_place_of(other, route));
        steps.extend(routes.iter().filter(is_unwanted).map(|route| Step::DeleteRoute((*route).clone())));
        for (family, shall) in &wanted.tunnels {
            tunnel_steps(*family, kept.get(family).copied(), shall, &mut steps);
        }
        steps.extend(wanted.routes.iter().filter(|route| !routes.contains(route)).cloned().map(|route| {
            let replaces = routes.iter().any(|other| is_in_place_of(other, &route));
            if replaces { Step::ReplaceRoute(route) } else { Step::AddRoute(route) }
        }));
        for (family, is) in kept {
            if let Some(shall) = wanted.tunnels.get(&family) {
                stale_steps(family, is, shall, &mut steps);
            }
        }
        steps.extend(late.iter().map(|(family, _)| Step::DeleteDevice(**family)));
        steps
    }
}

/// That packets to addresses in a network that nobody has end here. Whoever has one has a route of
/// his own, a longer or a nearer one.
fn to_nobody(to: &IpNet) -> Route {
    Route { to: *to, via: Hop::Nobody, source: None }
}

/// Whether the kernel takes one route for the other: those to nobody have a metric of their own.
fn is_in_place_of(one: &Route, other: &Route) -> bool {
    one.to == other.to && (one.via == Hop::Nobody) == (other.via == Hop::Nobody)
}

fn by_family<'a>((family, tunnel): (&Family, &'a Tunnel)) -> (Family, &'a Tunnel) {
    (*family, tunnel)
}

/// Whether a device stays, with other settings perhaps.
fn stays(is: &Tunnel, shall: Option<&Tunnel>) -> bool {
    shall.is_some_and(|shall| is.device.is_same(&shall.device))
}

/// What a tunnel lacks.
fn tunnel_steps(family: Family, is: Option<&Tunnel>, shall: &Tunnel, steps: &mut Vec<Step>) {
    let (wanted, none) = (&shall.device, Tunnel::none(&shall.device));
    let here = is.unwrap_or(&none);
    match is {
        Some(is) if is.device.mtu != wanted.mtu || !is.up => steps.push(Step::SetDevice(family, wanted.mtu)),
        Some(_) => {}
        None => steps.push(Step::AddDevice(wanted.clone())),
    }
    let had = &here.device.addresses;
    steps.extend(wanted.addresses.difference(had).map(|ip| Step::AddAddress(family, *ip)));
    steps.extend(had.difference(&wanted.addresses).map(|ip| Step::DeleteAddress(family, *ip)));
    let forwarding = shall.forwarding.difference(&here.forwarding);
    steps.extend(forwarding.map(|(mac, ip)| Step::AddForwarding(family, *mac, *ip)));
    let neighbours = shall.neighbours.difference(&here.neighbours);
    steps.extend(neighbours.map(|(ip, mac)| Step::AddNeighbour(family, *ip, *mac)));
}

/// What a tunnel has too much.
fn stale_steps(family: Family, is: &Tunnel, shall: &Tunnel, steps: &mut Vec<Step>) {
    let is_stale = |(ip, _): &&(IpAddr, Mac)| !shall.neighbours.iter().any(|(other, _)| other == ip);
    let neighbours = is.neighbours.iter().filter(is_stale);
    steps.extend(neighbours.map(|(ip, mac)| Step::DeleteNeighbour(family, *ip, *mac)));
    let forwarding = is.forwarding.difference(&shall.forwarding);
    steps.extend(forwarding.map(|(mac, ip)| Step::DeleteForwarding(family, *mac, *ip)));
}

impl Tunnel {
    /// A device that has just been made.
    fn none(device: &Device) -> Self {
        let device = Device { addresses: BTreeSet::new(), ..device.clone() };
        Tunnel { device, up: true, neighbours: BTreeSet::new(), forwarding: BTreeSet::new() }
    }
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

    fn vtep_route(to: &str, family: Family, via: &str) -> Route {
        Route { to: to.parse().unwrap(), via: Hop::Vtep(family, via.parse().unwrap()), source: None }
    }

    fn tunnel(device: Device, node: &str) -> Tunnel {
        let (mac, vtep) = ([2, 0, 0, 0, 0, 2], "10.244.2.0".parse().unwrap());
        Tunnel {
            device,
            up: true,
            neighbours: BTreeSet::from([(vtep, mac)]),
            forwarding: BTreeSet::from([(mac, node.parse().unwrap())]),
        }
    }

    fn direct() -> Route {
        let source = Some("192.168.1.1".parse().unwrap());
        Route { to: "10.244.3.0/24".parse().unwrap(), via: Hop::Node("192.168.1.3".parse().unwrap()), source }
    }

    fn with(change: impl Fn(&mut Tunnel)) -> KernelState {
        let mut tunnel = tunnel(device(), "192.168.1.2");
        change(&mut tunnel);
        KernelState {
            tunnels: BTreeMap::from([(Family::V4, tunnel)]),
            routes: BTreeSet::from([vtep_route("10.244.2.0/24", Family::V4, "10.244.2.0"), direct()]),
        }
    }

    fn full() -> KernelState {
        with(|_| {})
    }

    /// Another node is reached by IPv6.
    fn over_ipv6() -> KernelState {
        let device = Device { underlay: Family::V6, local: Some("fd01::1".parse().unwrap()), ..device() };
        KernelState {
            tunnels: BTreeMap::from([(Family::V6, tunnel(device, "fd01::2"))]),
            routes: BTreeSet::from([vtep_route("10.244.2.0/24", Family::V6, "10.244.2.0"), direct()]),
        }
    }

    /// A kernel that does what it is told, and loses what hangs on a device with it.
    fn play(mut state: KernelState, steps: &[Step]) -> KernelState {
        for step in steps {
            let on = |state: &mut KernelState, family: Family, change: &dyn Fn(&mut Tunnel)| {
                change(state.tunnels.get_mut(&family).expect("a device"));
            };
            match step.clone() {
                Step::AddDevice(device) => {
                    let is_other = |tunnel: &Tunnel| tunnel.device.underlay != device.underlay;
                    assert!(state.tunnels.values().all(is_other), "EEXIST");
                    let new = state.tunnels.insert(device.underlay, Tunnel::none(&device));
                    assert!(new.is_none());
                }
                Step::DeleteDevice(family) => {
                    assert!(state.tunnels.remove(&family).is_some());
                    state.routes.retain(|route| !matches!(route.via, Hop::Vtep(other, _) if other == family));
                }
                Step::SetDevice(family, mtu) => on(&mut state, family, &|tunnel| {
                    (tunnel.device.mtu, tunnel.up) = (mtu, true);
                }),
                Step::AddAddress(family, ip) => {
                    on(&mut state, family, &|tunnel| assert!(tunnel.device.addresses.insert(ip)));
                }
                Step::DeleteAddress(family, ip) => {
                    on(&mut state, family, &|tunnel| assert!(tunnel.device.addresses.remove(&ip)));
                }
                Step::AddNeighbour(family, ip, mac) => on(&mut state, family, &|tunnel| {
                    tunnel.neighbours.retain(|(other, _)| *other != ip);
                    tunnel.neighbours.insert((ip, mac));
                }),
                Step::DeleteNeighbour(family, ip, mac) => {
                    on(&mut state, family, &|tunnel| assert!(tunnel.neighbours.remove(&(ip, mac))));
                }
                Step::AddForwarding(family, mac, ip) => {
                    on(&mut state, family, &|tunnel| assert!(tunnel.forwarding.insert((mac, ip))));
                }
                Step::DeleteForwarding(family, mac, ip) => {
                    on(&mut state, family, &|tunnel| assert!(tunnel.forwarding.remove(&(mac, ip))));
                }
                Step::AddRoute(route) | Step::ReplaceRoute(route) => {
                    if let Hop::Vtep(family, _) = route.via {
                        assert!(state.tunnels[&family].up);
                    }
                    let before = state.routes.len();
                    state.routes.retain(|other| !is_in_place_of(other, &route));
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
        let mut moved = with(|tunnel| {
            tunnel.forwarding = BTreeSet::from([([2, 0, 0, 0, 0, 2], "192.168.1.9".parse().unwrap())]);
            tunnel.neighbours = BTreeSet::from([("10.244.2.0".parse().unwrap(), [2, 0, 0, 0, 0, 9])]);
        });
        moved.routes = BTreeSet::from([vtep_route("10.244.3.0/24", Family::V4, "10.244.3.0")]);
        let other_port = with(|tunnel| tunnel.device.port = 8472);
        let other_mtu = with(|tunnel| tunnel.device.mtu = 1400);
        let other_address =
            with(|tunnel| tunnel.device.addresses = BTreeSet::from(["10.9.0.0".parse().unwrap()]));
        let summed = with(|tunnel| tunnel.device.checksums = true);
        let down = with(|tunnel| tunnel.up = false);
        // As versions before had it: the only device, whatever its family.
        let mut of_before = over_ipv6();
        of_before.tunnels = of_before.tunnels.into_values().map(|tunnel| (Family::V4, tunnel)).collect();
        of_before.routes = BTreeSet::from([vtep_route("10.244.2.0/24", Family::V4, "10.244.2.0"), direct()]);
        let both = KernelState {
            tunnels: full().tunnels.into_iter().chain(over_ipv6().tunnels).collect(),
            routes: full().routes,
        };
        let only_direct = KernelState { routes: BTreeSet::from([direct()]), ..KernelState::default() };
        let mut any_source = full();
        any_source.routes = BTreeSet::from([Route { source: None, ..direct() }]);
        let mut nobody = full();
        nobody.routes = BTreeSet::from([to_nobody(&"10.244.3.0/24".parse().unwrap())]);
        let wanted = [
            nobody,
            full(),
            moved,
            other_port,
            summed,
            other_mtu,
            other_address,
            over_ipv6(),
            both,
            only_direct,
            any_source,
            KernelState::default(),
        ];
        for from in wanted.iter().chain([&down, &of_before]) {
            for to in &wanted {
                let steps = from.steps_to(to);
                assert_eq!(&play(from.clone(), &steps), to, "{steps:?}");
                assert_eq!(steps.is_empty(), from == to);
                assert_eq!(to.steps_to(to), []);
            }
        }
    }

    #[test]
    fn a_tunnel_of_another_family_is_added_before_the_old_one_is_removed() {
        let steps = full().steps_to(&over_ipv6());
        assert!(matches!(steps.first(), Some(Step::AddDevice(_))), "{steps:?}");
        let replaced = steps.iter().position(|step| matches!(step, Step::ReplaceRoute(_)));
        assert!(replaced.is_some());
        assert_eq!(steps.last(), Some(&Step::DeleteDevice(Family::V4)));
    }
}
