//! Requests to IPVS. Numbers are in the byte order of this machine, but for ports and IPv4 masks.

use std::net::IpAddr;

use sluice_core::ipvs::{Destination, DestinationKey, Op, Server, ServerKey};
use sluice_core::net::Family;

use super::{Command, Timeouts};
use crate::netlink::Writer;

/// `IPVS_CMD_ATTR_*`.
pub(super) mod attribute {
    pub(in crate::ipvs) const SERVICE: u16 = 1;
    pub(in crate::ipvs) const DEST: u16 = 2;
    pub(in crate::ipvs) const TIMEOUT_TCP: u16 = 4;
    pub(in crate::ipvs) const TIMEOUT_TCP_FIN: u16 = 5;
    pub(in crate::ipvs) const TIMEOUT_UDP: u16 = 6;
}

/// `IPVS_SVC_ATTR_*`.
pub(super) mod service {
    pub(in crate::ipvs) const AF: u16 = 1;
    pub(in crate::ipvs) const PROTOCOL: u16 = 2;
    pub(in crate::ipvs) const ADDR: u16 = 3;
    pub(in crate::ipvs) const PORT: u16 = 4;
    pub(in crate::ipvs) const FWMARK: u16 = 5;
    pub(in crate::ipvs) const SCHED_NAME: u16 = 6;
    pub(in crate::ipvs) const FLAGS: u16 = 7;
    pub(in crate::ipvs) const TIMEOUT: u16 = 8;
    pub(in crate::ipvs) const NETMASK: u16 = 9;
    pub(in crate::ipvs) const PE_NAME: u16 = 11;
}

/// `IPVS_DEST_ATTR_*`.
pub(super) mod dest {
    pub(in crate::ipvs) const ADDR: u16 = 1;
    pub(in crate::ipvs) const PORT: u16 = 2;
    pub(in crate::ipvs) const FWD_METHOD: u16 = 3;
    pub(in crate::ipvs) const WEIGHT: u16 = 4;
    pub(in crate::ipvs) const U_THRESH: u16 = 5;
    pub(in crate::ipvs) const L_THRESH: u16 = 6;
    pub(in crate::ipvs) const ACTIVE_CONNS: u16 = 7;
    pub(in crate::ipvs) const INACT_CONNS: u16 = 8;
    pub(in crate::ipvs) const ADDR_FAMILY: u16 = 11;
}

/// `IP_VS_SVC_F_PERSISTENT`.
pub(super) const PERSISTENT: u32 = 0x1;
/// `IP_VS_SVC_F_HASHED`, the kernel's own.
const HASHED: u32 = 0x2;
/// `IP_VS_CONN_F_MASQ`.
pub(super) const MASQUERADE: u32 = 0;

/// The mask of a persistent server for which each address is a client: bits for IPv4, their number
/// for IPv6.
pub(super) fn host_mask(family: Family) -> u32 {
    match family {
        Family::V4 => u32::MAX,
        Family::V6 => 128,
    }
}

pub(super) fn family_number(family: Family) -> u16 {
    match family {
        Family::V4 => libc::AF_INET as u16,
        Family::V6 => libc::AF_INET6 as u16,
    }
}

/// Writes one message. Operations on addresses are not for IPVS, and never get here.
pub(super) fn op(writer: &mut Writer, family: u16, sequence: u32, op: &Op) {
    let mut message = |command: Command, fill: &dyn Fn(&mut Writer)| {
        writer.begin_with(family, 0, sequence, command.head());
        fill(writer);
        writer.end();
    };
    match op {
        Op::AddServer(server) => message(Command::NewService, &|writer| whole_server(writer, server)),
        Op::SetServer(server) => message(Command::SetService, &|writer| whole_server(writer, server)),
        Op::DeleteServer(key) => message(Command::DelService, &|writer| name(writer, key)),
        Op::AddDestination(key, to) => message(Command::NewDest, &|writer| {
            name(writer, key);
            whole_destination(writer, to);
        }),
        Op::SetDestination(key, to) => message(Command::SetDest, &|writer| {
            name(writer, key);
            whole_destination(writer, to);
        }),
        Op::DeleteDestination(key, to) => message(Command::DelDest, &|writer| {
            name(writer, key);
            let nest = writer.nest(attribute::DEST);
            destination_key(writer, to);
            writer.close(nest);
        }),
        Op::BindAddress(_) | Op::UnbindAddress(_) | Op::LeadHere(_) | Op::LetPass(_) => {}
    }
}

/// Writes which virtual server is meant.
pub(super) fn name(writer: &mut Writer, key: &ServerKey) {
    let nest = writer.nest(attribute::SERVICE);
    server_key(writer, key);
    writer.close(nest);
}

fn server_key(writer: &mut Writer, key: &ServerKey) {
    writer.host_u16(service::AF, family_number(key.family()));
    match key {
        ServerKey::Address(ip, protocol, port) => {
            writer.host_u16(service::PROTOCOL, u16::from(protocol.number()));
            address(writer, service::ADDR, ip);
            writer.attr(service::PORT, &port.to_be_bytes());
        }
        ServerKey::Mark(_, mark) => writer.host_u32(service::FWMARK, *mark),
    }
}

fn whole_server(writer: &mut Writer, server: &Server) {
    let nest = writer.nest(attribute::SERVICE);
    server_key(writer, &server.key);
    writer.text(service::SCHED_NAME, server.scheduler.as_str());
    let persistent = if server.persistence.is_some() { PERSISTENT } else { 0 };
    // struct ip_vs_flags: flags, and which of them are meant.
    let mut flags = [0; 8];
    flags[..4].copy_from_slice(&(server.flags.bits() | persistent).to_ne_bytes());
    flags[4..].copy_from_slice(&(!HASHED).to_ne_bytes());
    writer.attr(service::FLAGS, &flags);
    writer.host_u32(service::TIMEOUT, server.persistence.unwrap_or(0));
    writer.host_u32(service::NETMASK, host_mask(server.key.family()));
    writer.close(nest);
}

fn destination_key(writer: &mut Writer, key: &DestinationKey) {
    address(writer, dest::ADDR, &key.address);
    writer.attr(dest::PORT, &key.port.to_be_bytes());
    writer.host_u16(dest::ADDR_FAMILY, family_number(Family::of(&key.address)));
}

fn whole_destination(writer: &mut Writer, to: &Destination) {
    let nest = writer.nest(attribute::DEST);
    destination_key(writer, &to.key);
    writer.host_u32(dest::FWD_METHOD, MASQUERADE);
    writer.host_u32(dest::WEIGHT, to.weight);
    writer.host_u32(dest::U_THRESH, 0);
    writer.host_u32(dest::L_THRESH, 0);
    writer.close(nest);
}

fn address(writer: &mut Writer, kind: u16, ip: &IpAddr) {
    match ip {
        IpAddr::V4(ip) => writer.attr(kind, &ip.octets()),
        IpAddr::V6(ip) => writer.attr(kind, &ip.octets()),
    }
}

/// The kernel leaves what is not written as it is.
pub(super) fn timeouts(writer: &mut Writer, timeouts: Timeouts) {
    let all = [
        (attribute::TIMEOUT_TCP, timeouts.tcp),
        (attribute::TIMEOUT_TCP_FIN, timeouts.tcp_fin),
        (attribute::TIMEOUT_UDP, timeouts.udp),
    ];
    for (kind, seconds) in all.into_iter().filter(|(_, seconds)| *seconds > 0) {
        writer.host_u32(kind, seconds);
    }
}
