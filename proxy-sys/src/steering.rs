//! Rules of routing that lead packets for others' addresses to this host's input hook, by protocol and port. Source of all
//! numbers: linux/rtnetlink.h, linux/fib_rules.h.
//!
//! A rule sends what it matches to a table of our own, whose only route says that everything is local. This way a virtual
//! server takes the packets for one port of an address that the host does not have, and all others go on to whoever has it.

use std::net::IpAddr;

use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE};
use sluice_core::ipvs::{Op, ServerKey};
use sluice_core::net::{Family, Protocol};

use crate::netlink::{BatchError, NetfilterSocket, NetlinkError, Writer, find};

/// `RTM_*`.
const NEW_ROUTE: u16 = 24;
const DELETE_ROUTE: u16 = 25;
const NEW_RULE: u16 = 32;
const DELETE_RULE: u16 = 33;
const GET_RULE: u16 = 34;

/// The table, whose number no other program is known to use, and whom it and the rules belong to (as for other routes of ours).
const TABLE: u32 = 0x5392;
const PROTOCOL: u8 = 92;
/// Behind the table of local addresses (0), before all that administrators usually have.
const PRIORITY: u32 = 92;

/// `FRA_*`.
const DESTINATION: u16 = 1;
const RULE_PRIORITY: u16 = 6;
const RULE_TABLE: u16 = 15;
const RULE_PROTOCOL: u16 = 21;
const IP_PROTOCOL: u16 = 22;
const DESTINATION_PORTS: u16 = 24;
/// `FR_ACT_TO_TBL`.
const TO_TABLE: u8 = 1;
/// `struct fib_rule_hdr`.
const RULE_HEAD: usize = 12;

/// `RTA_*`.
const OUT_INTERFACE: u16 = 4;
const PREFERRED_SOURCE: u16 = 7;
const ROUTE_TABLE: u16 = 15;
/// `LOOPBACK_IFINDEX` of net/flow.h: that of `lo` in every network namespace.
const LOOPBACK: u32 = 1;
/// `RT_SCOPE_HOST` and `RTN_LOCAL`.
const SCOPE_HOST: u8 = 254;
const LOCAL: u8 = 2;

/// The rules of the current network namespace.
pub struct Steering {
    socket: NetfilterSocket,
}

impl Steering {
    /// Opens a connection in the current network namespace.
    pub fn open() -> Result<Self, NetlinkError> {
        Ok(Steering { socket: NetfilterSocket::route()? })
    }

    /// What is led here.
    pub fn led(&mut self) -> Result<Vec<ServerKey>, NetlinkError> {
        let mut found = Vec::new();
        self.socket.dump(
            "list rules of routing",
            GET_RULE,
            [0; 4],
            |writer| writer.raw(&[0; RULE_HEAD - 4]),
            |answer| found.extend(rule(answer.body)),
        )?;
        Ok(found)
    }

    /// Makes everything local in the table. `sources` are the host's addresses, of either family, that its own processes have
    /// towards what is led here; a family without one stays out.
    pub fn deliver(&mut self, sources: [Option<IpAddr>; 2]) -> Result<(), NetlinkError> {
        for source in sources.into_iter().flatten() {
            let head = [family(&source), 0, 0, 0];
            self.socket.request("lead packets to this host", NEW_ROUTE, head, |writer| {
                writer.add_flags(NLM_F_CREATE | NLM_F_REPLACE);
                route(writer);
                writer.attr(PREFERRED_SOURCE, &octets(&source));
            })?;
        }
        Ok(())
    }

    /// Does the operations on rules, in their order, and passes over the others. One that is there already, or gone already, is no
    /// error. The error has all those that were refused; the others are done.
    pub fn apply(&mut self, ops: &[Op]) -> Result<(), BatchError<Op>> {
        let ops = ops.iter().copied().filter(|op| matches!(op, Op::LeadHere(_) | Op::LetPass(_)));
        match self.socket.send_batch(ops, write) {
            Err(BatchError::Refused(mut refusals)) => {
                refusals.0.retain(|refusal| !is_done_already(&refusal.item, refusal.error.errno()));
                if refusals.0.is_empty() { Ok(()) } else { Err(refusals.into()) }
            }
            other => other,
        }
    }

    /// Removes all rules of ours, and the table. Returns whether there were any rules.
    pub fn remove(&mut self) -> Result<bool, BatchError<Op>> {
        let ops: Vec<Op> = self.led()?.into_iter().map(Op::LetPass).collect();
        self.apply(&ops)?;
        for family in [libc::AF_INET, libc::AF_INET6] {
            let deleted =
                self.socket.request("leave packets alone", DELETE_ROUTE, [family as u8, 0, 0, 0], route);
            match deleted {
                // There is no such route, or no such family.
                Err(error) if error.errno().is_some_and(|errno| GONE.contains(&errno)) => {}
                other => other?,
            }
        }
        Ok(!ops.is_empty())
    }
}

const GONE: [i32; 4] = [libc::ESRCH, libc::ENOENT, libc::EAFNOSUPPORT, libc::EOPNOTSUPP];

/// The rest of `struct rtmsg`, and what the route is known by.
fn route(writer: &mut Writer) {
    // The table is told below; protocol, scope, type; no flags.
    writer.raw(&[0, PROTOCOL, SCOPE_HOST, LOCAL, 0, 0, 0, 0]);
    writer.host_u32(ROUTE_TABLE, TABLE);
    writer.host_u32(OUT_INTERFACE, LOOPBACK);
}

fn write(writer: &mut Writer, sequence: u32, op: &Op) {
    let (kind, flags, key) = match op {
        Op::LeadHere(key) => (NEW_RULE, NLM_F_CREATE | NLM_F_EXCL, key),
        Op::LetPass(key) => (DELETE_RULE, 0, key),
        _ => return,
    };
    let ServerKey::Address(ip, protocol, port) = key else { return };
    let destination = octets(ip);
    writer.begin_with(kind, flags, sequence, [family(ip), 8 * destination.len() as u8, 0, 0]);
    writer.raw(&[0, 0, 0, TO_TABLE, 0, 0, 0, 0]);
    writer.attr(DESTINATION, &destination);
    writer.host_u32(RULE_PRIORITY, PRIORITY);
    writer.host_u32(RULE_TABLE, TABLE);
    writer.attr(RULE_PROTOCOL, &[PROTOCOL]);
    writer.attr(IP_PROTOCOL, &[protocol.number()]);
    // struct fib_rule_port_range, both ends of it.
    writer.attr(DESTINATION_PORTS, &[port.to_ne_bytes(), port.to_ne_bytes()].concat());
    writer.end();
}

/// A rule of ours.
fn rule(body: &[u8]) -> Option<ServerKey> {
    let attributes = body.get(RULE_HEAD..)?;
    let is_ours = find(attributes, RULE_PROTOCOL)?.value == [PROTOCOL]
        && find(attributes, RULE_TABLE)?.host_u32() == Some(TABLE);
    is_ours.then_some(())?;
    let destination = find(attributes, DESTINATION)?.value;
    let ip = match destination.len() {
        4 => IpAddr::from(<[u8; 4]>::try_from(destination).ok()?),
        _ => IpAddr::from(<[u8; 16]>::try_from(destination).ok()?),
    };
    let number = *find(attributes, IP_PROTOCOL)?.value.first()?;
    let all = [Protocol::Tcp, Protocol::Udp, Protocol::Sctp];
    let protocol = all.into_iter().find(|protocol| protocol.number() == number)?;
    let ports = find(attributes, DESTINATION_PORTS)?.value;
    let port = u16::from_ne_bytes(ports.get(..2)?.try_into().ok()?);
    Some(ServerKey::Address(ip, protocol, port))
}

fn is_done_already(op: &Op, errno: Option<i32>) -> bool {
    match op {
        Op::LeadHere(_) => errno == Some(libc::EEXIST),
        _ => errno.is_some_and(|errno| GONE.contains(&errno)),
    }
}

fn family(ip: &IpAddr) -> u8 {
    match Family::of(ip) {
        Family::V4 => libc::AF_INET as u8,
        Family::V6 => libc::AF_INET6 as u8,
    }
}

fn octets(ip: &IpAddr) -> Vec<u8> {
    match ip {
        IpAddr::V4(ip) => ip.octets().to_vec(),
        IpAddr::V6(ip) => ip.octets().to_vec(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::netlink::messages;

    #[test]
    fn fuzz_rules_of_routing() {
        let keys =
            ["10.96.0.1", "fd00::1"].map(|ip| ServerKey::Address(ip.parse().unwrap(), Protocol::Udp, 53));
        let valid = keys.map(|key| {
            let mut writer = Writer::default();
            write(&mut writer, 1, &Op::LeadHere(key));
            assert_eq!(messages(writer.bytes()).find_map(|message| rule(message.body)), Some(key));
            (RULE_HEAD, writer.bytes().to_vec())
        });
        crate::fuzz::bodies("rules-of-routing", &valid, |body| {
            rule(body);
        });
    }
}
