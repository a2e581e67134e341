//! Answers of IPVS.

use std::net::IpAddr;

use sluice_core::ipvs::{
    Destination, DestinationKey, Load, ObservedDestination, ObservedServer, SchedulerName, Server,
    ServerFlags, ServerKey,
};
use sluice_core::net::{Family, Protocol};

use super::encode::{MASQUERADE, PERSISTENT, attribute, dest, family_number, host_mask, service};
use super::{Info, Timeouts};
use crate::netlink::find;

/// `IP_VS_CONN_F_LOCALNODE`: what the kernel may make of [`MASQUERADE`] for a destination that is
/// the node itself.
const LOCAL_NODE: u32 = 1;

pub(super) fn info(attributes: &[u8]) -> Option<Info> {
    // IPVS_INFO_ATTR_*
    let [_, major, minor, patch] = find(attributes, 1)?.host_u32()?.to_be_bytes();
    Some(Info { version: (major, minor, patch), table_size: find(attributes, 2)?.host_u32()? })
}

pub(super) fn timeouts(attributes: &[u8]) -> Timeouts {
    let seconds = |kind| find(attributes, kind).and_then(|value| value.host_u32()).unwrap_or(0);
    Timeouts {
        tcp: seconds(attribute::TIMEOUT_TCP),
        tcp_fin: seconds(attribute::TIMEOUT_TCP_FIN),
        udp: seconds(attribute::TIMEOUT_UDP),
    }
}

/// A virtual server. `None` for one of a protocol that Services do not have, or that cannot be
/// read.
pub(super) fn server(attributes: &[u8]) -> Option<ObservedServer> {
    let nested = find(attributes, attribute::SERVICE)?.value;
    let number = |kind| find(nested, kind)?.host_u32();
    let key = server_key(nested)?;
    let flags =
        find(nested, service::FLAGS)?.value.first_chunk::<4>().map(|flags| u32::from_ne_bytes(*flags))?;
    let persistence =
        if flags & PERSISTENT == 0 { None } else { Some(number(service::TIMEOUT).unwrap_or_default()) };
    let server = Server {
        key,
        scheduler: SchedulerName::new(find(nested, service::SCHED_NAME)?.text()).ok()?,
        flags: ServerFlags::from_bits(flags),
        persistence,
    };
    let is_for_hosts = persistence.is_none() || number(service::NETMASK) == Some(host_mask(key.family()));
    let has_engine = find(nested, service::PE_NAME).is_some_and(|name| !name.text().is_empty());
    Some(ObservedServer { server, is_exact: is_for_hosts && !has_engine, destinations: Vec::new() })
}

fn server_key(nested: &[u8]) -> Option<ServerKey> {
    let family = family(find(nested, service::AF)?.host_u16()?)?;
    if let Some(mark) = find(nested, service::FWMARK) {
        return Some(ServerKey::Mark(family, mark.host_u32()?));
    }
    let number = find(nested, service::PROTOCOL)?.host_u16()?;
    let protocol = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp]
        .into_iter()
        .find(|protocol| u16::from(protocol.number()) == number)?;
    let address = address(family, find(nested, service::ADDR)?.value)?;
    Some(ServerKey::Address(address, protocol, port(find(nested, service::PORT)?.value)?))
}

/// A destination of a virtual server of a family.
pub(super) fn destination(server: Family, attributes: &[u8]) -> Option<ObservedDestination> {
    let nested = find(attributes, attribute::DEST)?.value;
    let number = |kind| find(nested, kind).and_then(|value| value.host_u32());
    let family =
        find(nested, dest::ADDR_FAMILY).map_or(Some(server), |number| self::family(number.host_u16()?))?;
    let address = address(family, find(nested, dest::ADDR)?.value)?;
    let key = DestinationKey { address, port: port(find(nested, dest::PORT)?.value)? };
    let is_translated = matches!(number(dest::FWD_METHOD), Some(MASQUERADE | LOCAL_NODE));
    let has_threshold =
        [dest::U_THRESH, dest::L_THRESH].into_iter().any(|kind| number(kind).is_some_and(|limit| limit > 0));
    Some(ObservedDestination {
        destination: Destination { key, weight: number(dest::WEIGHT)? },
        is_exact: is_translated && !has_threshold,
        load: Load {
            active: number(dest::ACTIVE_CONNS).unwrap_or_default(),
            inactive: number(dest::INACT_CONNS).unwrap_or_default(),
        },
    })
}

fn family(number: u16) -> Option<Family> {
    Family::BOTH.into_iter().find(|family| family_number(*family) == number)
}

/// An address: `union nf_inet_addr`, of which IPv4 takes the first word.
fn address(family: Family, bytes: &[u8]) -> Option<IpAddr> {
    match family {
        Family::V4 => bytes.first_chunk::<4>().map(|octets| IpAddr::from(*octets)),
        Family::V6 => bytes.first_chunk::<16>().map(|octets| IpAddr::from(*octets)),
    }
}

fn port(bytes: &[u8]) -> Option<u16> {
    Some(u16::from_be_bytes(bytes.try_into().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fuzz::{HEAD, answers, split};
    use crate::ipvs::encode::op;
    use crate::netlink::{Writer, messages};
    use sluice_core::ipvs::Op;

    #[test]
    fn fuzz_ipvs() {
        let mut writer = Writer::default();
        for ip in ["10.96.0.1", "fd00::1"] {
            let address: IpAddr = ip.parse().unwrap();
            for key in
                [ServerKey::Address(address, Protocol::Tcp, 80), ServerKey::Mark(Family::of(&address), 7)]
            {
                let scheduler = SchedulerName::ROUND_ROBIN;
                for persistence in [None, Some(60)] {
                    let server = Server { key, scheduler, flags: ServerFlags::NONE, persistence };
                    op(&mut writer, 30, 1, &Op::AddServer(server));
                }
                let key_of = DestinationKey { address, port: 8080 };
                op(&mut writer, 30, 1, &Op::AddDestination(key, Destination { key: key_of, weight: 1 }));
            }
        }
        let valid: Vec<_> = split(writer.bytes()).into_iter().map(|bytes| (HEAD, bytes)).collect();
        let read = |bytes: &[u8]| {
            let known = |told: &[u8]| server(told).is_some() || destination(Family::V4, told).is_some();
            messages(bytes).any(|message| known(message.attributes()))
        };
        assert!(valid.iter().all(|(_, bytes)| read(bytes)), "what is written can be read");
        answers("ipvs", &valid, |input| {
            for message in messages(input) {
                let attributes = message.attributes();
                server(attributes);
                for family in Family::BOTH {
                    destination(family, attributes);
                }
                info(attributes);
                timeouts(attributes);
            }
        });
    }
}
