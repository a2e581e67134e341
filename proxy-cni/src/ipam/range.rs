//! Ranges of addresses.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::IpNet;

use crate::spec::Range;

/// Why a range cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum RangeError {
    /// The network's address has bits behind its prefix.
    #[error("{0} has host bits set; its network is {1}")]
    HasHostBits(IpNet, IpNet),
    /// The network is so small that nobody beside the gateway has an address.
    #[error("{0} has no addresses for pods besides the gateway")]
    TooSmall(IpNet),
    /// A bound or the gateway is not of the network.
    #[error("{name} {address} is not in {subnet}")]
    Outside {
        /// Of which field.
        name: &'static str,
        /// What it says.
        address: IpAddr,
        /// The network.
        subnet: IpNet,
    },
    /// The first comes after the last.
    #[error("rangeStart {0} is after rangeEnd {1}")]
    Reversed(IpAddr, IpAddr),
}

/// An address as a number, to count with.
pub(super) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(ip) => u128::from(u32::from(ip)),
        IpAddr::V6(ip) => u128::from(ip),
    }
}

/// A number as an address of the family of another.
pub(super) fn address(number: u128, like: IpAddr) -> IpAddr {
    match like {
        IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::from(u32::try_from(number).unwrap_or(u32::MAX))),
        IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::from(number)),
    }
}

impl Range {
    /// A whole network, as the API has a node's pod CIDR.
    pub fn of(subnet: IpNet) -> Self {
        Range { subnet, range_start: None, range_end: None, gateway: None }
    }

    /// Whether it can be used.
    pub fn check(&self) -> Result<(), RangeError> {
        let subnet = self.subnet;
        if subnet != subnet.trunc() {
            return Err(RangeError::HasHostBits(subnet, subnet.trunc()));
        }
        if subnet.max_prefix_len() - subnet.prefix_len() < 2 {
            return Err(RangeError::TooSmall(subnet));
        }
        let named =
            [("rangeStart", self.range_start), ("rangeEnd", self.range_end), ("gateway", self.gateway)];
        for (name, given) in named {
            if let Some(address) = given.filter(|address| !subnet.contains(address)) {
                return Err(RangeError::Outside { name, address, subnet });
            }
        }
        let (first, last) = self.bounds();
        if first > last {
            return Err(RangeError::Reversed(first, last));
        }
        Ok(())
    }

    /// The node's address in the network.
    pub fn gateway(&self) -> IpAddr {
        let first = self.subnet.network();
        self.gateway.unwrap_or_else(|| address(number(first) + 1, first))
    }

    /// The first and the last address that may be given out.
    pub fn bounds(&self) -> (IpAddr, IpAddr) {
        let network = self.subnet.network();
        let size = self.subnet.max_prefix_len() - self.subnet.prefix_len();
        let last = number(network) + ((1_u128 << size.min(127)) - 1);
        // Of IPv4 the last address is everybody's.
        let last = if network.is_ipv4() { last - 1 } else { last };
        let start = self.range_start.unwrap_or_else(|| address(number(network) + 1, network));
        (start, self.range_end.unwrap_or_else(|| address(last, network)))
    }

    /// Whether an address may be given out.
    pub fn contains(&self, address: &IpAddr) -> bool {
        let (first, last) = self.bounds();
        address.is_ipv4() == first.is_ipv4()
            && (first..=last).contains(address)
            && *address != self.gateway()
            && self.subnet.network() != *address
    }

    /// Whether two have an address in common.
    pub fn overlaps(&self, other: &Range) -> bool {
        let ((first, last), (others_first, others_last)) = (self.bounds(), other.bounds());
        first.is_ipv4() == others_first.is_ipv4() && first <= others_last && others_first <= last
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn range(subnet: &str) -> Range {
        Range::of(subnet.parse().unwrap())
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn a_network_has_a_gateway_and_room_behind_it() {
        let v4 = range("10.1.2.0/24");
        assert_eq!((v4.gateway(), v4.bounds()), (ip("10.1.2.1"), (ip("10.1.2.1"), ip("10.1.2.254"))));
        assert!(v4.contains(&ip("10.1.2.2")) && v4.contains(&ip("10.1.2.254")));
        for not in ["10.1.2.0", "10.1.2.1", "10.1.2.255", "10.1.3.2", "fd00::2"] {
            assert!(!v4.contains(&ip(not)), "{not}");
        }
        let v6 = range("fd00::/64");
        assert_eq!((v6.gateway(), v6.bounds().1), (ip("fd00::1"), ip("fd00::ffff:ffff:ffff:ffff")));
        assert_eq!(range("::/0").bounds().1, ip("7fff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"));
    }

    #[test]
    fn invalid_ranges_are_refused_with_the_reason() {
        let of = |subnet: &str, start: Option<&str>, end: Option<&str>| {
            Range { range_start: start.map(ip), range_end: end.map(ip), ..range(subnet) }.check()
        };
        assert_eq!(of("10.0.0.0/30", None, None), Ok(()));
        assert_eq!(of("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.9")), Ok(()));
        assert!(matches!(of("10.0.0.0/31", None, None), Err(RangeError::TooSmall(_))));
        assert!(matches!(of("10.0.0.1/24", None, None), Err(RangeError::HasHostBits(..))));
        assert!(matches!(of("10.0.0.0/24", Some("10.0.1.1"), None), Err(RangeError::Outside { .. })));
        assert!(matches!(
            of("10.0.0.0/24", Some("10.0.0.9"), Some("10.0.0.8")),
            Err(RangeError::Reversed(..))
        ));
    }

    #[test]
    fn overlaps() {
        assert!(range("10.0.0.0/24").overlaps(&range("10.0.0.128/25")));
        assert!(!range("10.0.0.0/25").overlaps(&range("10.0.0.128/25")));
        assert!(!range("10.0.0.0/24").overlaps(&range("fd00::/64")));
    }
}
