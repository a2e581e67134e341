//! Addresses, protocols and the lenient parsers that old stored objects need.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use ipnet::{IpNet, Ipv6Net};

/// An IP family. kube-proxy labels its metrics with these names.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both families, IPv4 first.
    pub const BOTH: [Family; 2] = [Family::V4, Family::V6];

    /// The family of an address.
    pub fn of(addr: &IpAddr) -> Family {
        if addr.is_ipv4() { Family::V4 } else { Family::V6 }
    }

    /// The family of a network.
    pub fn of_net(net: &IpNet) -> Family {
        Family::of(&net.addr())
    }

    /// `IPv4` or `IPv6`, as in the Kubernetes API and in kube-proxy's `ip_family` label.
    pub fn name(self) -> &'static str {
        match self {
            Family::V4 => "IPv4",
            Family::V6 => "IPv6",
        }
    }

    /// A network that no packet comes from: the unspecified address, which is never a source of
    /// what is forwarded. As the only source range it lets nobody in.
    pub fn nobody(self) -> IpNet {
        match self {
            Family::V4 => IpAddr::from(Ipv4Addr::UNSPECIFIED).into(),
            Family::V6 => IpAddr::from(Ipv6Addr::UNSPECIFIED).into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Why an address is nobody's in particular: what it is, of those that mean something else on each
/// node or link, or no single machine (RFC 6890, RFC 4291). A Service or endpoint with one would
/// take what others say to themselves.
pub fn special(ip: &IpAddr) -> Option<&'static str> {
    let ip = ip.to_canonical();
    let is_link_local = match ip {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    if ip.is_loopback() {
        Some("a loopback address")
    } else if ip.is_unspecified() {
        Some("the unspecified address")
    } else if is_link_local {
        Some("a link-local address")
    } else if ip.is_multicast() {
        Some("a multicast address")
    } else if ip == IpAddr::from(Ipv4Addr::BROADCAST) {
        Some("the broadcast address")
    } else {
        None
    }
}

/// A transport protocol that a service port can have.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    /// TCP.
    Tcp,
    /// UDP.
    Udp,
    /// SCTP.
    Sctp,
}

impl Protocol {
    /// The IANA protocol number, one byte on the wire.
    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => 6,
            Protocol::Udp => 17,
            Protocol::Sctp => 132,
        }
    }

    /// Parses the API's case-exact enum (`TCP`, `UDP`, `SCTP`).
    pub fn parse(text: &str) -> Option<Protocol> {
        match text {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    /// The lower-case name (`tcp`, `udp`, `sctp`).
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Parses an address as kube-proxy does: IPv4 octets may have leading zeros and are read as decimal
/// (`172.30.0.041` is `172.30.0.41`), also where they end an IPv6 address. IPv4-mapped IPv6
/// addresses count as IPv4. Reference 1.3.
pub fn parse_ip(text: &str) -> Option<IpAddr> {
    match parse_ipv6(text) {
        Some(ip) => Some(IpAddr::V6(ip).to_canonical()),
        None => parse_ipv4(text).map(IpAddr::V4),
    }
}

fn parse_ipv6(text: &str) -> Option<Ipv6Addr> {
    let (head, tail) = text.rsplit_once(':')?;
    match parse_ipv4(tail) {
        Some(quad) => format!("{head}:{quad}").parse().ok(),
        None => text.parse().ok(),
    }
}

fn parse_ipv4(text: &str) -> Option<Ipv4Addr> {
    let mut octets = [0u8; 4];
    let mut parts = text.split('.');
    for octet in &mut octets {
        let part = parts.next()?;
        if part.is_empty() || !part.bytes().all(|b| b.is_ascii_digit()) {
            return None;
        }
        let digits = part.trim_start_matches('0');
        *octet = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    }
    parts.next().is_none().then(|| Ipv4Addr::from(octets))
}

/// Parses a CIDR as kube-proxy does: surrounding white space is ignored, leading zeros in octets
/// and in the prefix length are accepted, host bits are cleared. A network within `::ffff:0:0/96`
/// counts as IPv4 (`::ffff:10.0.0.0/104` is `10.0.0.0/8`); a larger one around it is IPv6.
/// Reference 1.3.
pub fn parse_cidr(text: &str) -> Option<IpNet> {
    let (addr, prefix) = text.trim().split_once('/')?;
    if prefix.is_empty() || !prefix.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    let digits = prefix.trim_start_matches('0');
    let prefix = if digits.is_empty() { 0 } else { digits.parse().ok()? };
    match parse_ipv6(addr) {
        Some(addr) => {
            let net = Ipv6Net::new(addr, prefix).ok()?.trunc();
            let mapped = net.network().to_ipv4_mapped().zip(prefix.checked_sub(MAPPED_BITS));
            match mapped {
                Some((network, bits)) => Some(IpNet::new(network.into(), bits).ok()?),
                None => Some(net.into()),
            }
        }
        None => Some(IpNet::new(parse_ipv4(addr)?.into(), prefix).ok()?.trunc()),
    }
}

/// The prefix length of the network that holds the IPv4-mapped addresses.
const MAPPED_BITS: u8 = 96;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_with_leading_zeros_are_read_as_decimal() {
        assert_eq!(parse_ip("172.30.0.041"), Some("172.30.0.41".parse().unwrap()));
        assert_eq!(parse_ip("010.000.0.1"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(parse_ip("::ffff:10.0.0.1"), Some("10.0.0.1".parse().unwrap()));
        assert_eq!(parse_ip("fd00::1"), Some("fd00::1".parse().unwrap()));
        for bad in ["", "10.0.0", "10.0.0.256", "10.0.0.1.2", "10.0.0.x", "10..0.1", "+1.0.0.1", "web"] {
            assert_eq!(parse_ip(bad), None, "{bad}");
        }
    }

    #[test]
    fn networks_lose_their_host_bits_and_leading_zeros() {
        assert_eq!(parse_cidr(" 203.0.113.000/025 "), Some("203.0.113.0/25".parse().unwrap()));
        assert_eq!(parse_cidr("10.1.2.3/8"), Some("10.0.0.0/8".parse().unwrap()));
        assert_eq!(parse_cidr("fd00::1/64"), Some("fd00::/64".parse().unwrap()));
        assert_eq!(parse_cidr("0.0.0.0/0"), Some("0.0.0.0/0".parse().unwrap()));
        // Answers of k8s.io/utils/net.ParseCIDRSloppy.
        for (text, network) in [
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:a01:203/120", "10.1.2.0/24"),
            ("::ffff:192.0.2.7/128", "192.0.2.7/32"),
            ("::ffff:10.0.0.010/127", "10.0.0.10/31"),
            ("::ffff:10.0.0.0/96", "0.0.0.0/0"),
            ("::ffff:10.0.0.0/90", "::ffc0:0:0/90"),
            ("::ffff:10.0.0.0/8", "::/8"),
        ] {
            assert_eq!(parse_cidr(text), Some(network.parse().unwrap()), "{text}");
        }
        for bad in [
            "::ffff:10.0.0.0/129",
            "10.0.0.1",
            "10.0.0.0/33",
            "10.0.0.0/",
            "10.0.0.0/-1",
            "/24",
            "fd00::/129",
        ] {
            assert_eq!(parse_cidr(bad), None, "{bad}");
        }
    }
}
