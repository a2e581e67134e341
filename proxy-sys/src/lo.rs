//! The interface `lo`, by which the eBPF programs hand IPv4 packets to the stack that are too big
//! for their way out, and that may be cut up. Source of all numbers: linux/ip.h.
//!
//! They come from the node's own addresses, or from Services', which the stack takes from an
//! interface only where its settings say so. On `lo` these let nobody else in: other packets come
//! in there only when this node has sent them.
//!
//! What is written goes by rtnetlink, for which CAP_NET_ADMIN is enough: containers cannot write to
//! /proc/sys, unless they are privileged.

use netlink_packet_core::{DefaultNla, Emitable, NLA_F_NESTED};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{AfSpecInet, AfSpecUnspec, LinkAttribute, LinkMessage};
use sluice_link::sysctl::{ProcError, read_number};
use sluice_link::{LOOPBACK, Netlink, NetlinkError, Request, request};

/// `IFLA_INET_CONF`.
const INET_CONF: u16 = 1;

/// What went wrong with the settings.
#[derive(Debug, thiserror::Error)]
pub enum LoError {
    /// They cannot be read.
    #[error("lo: {0}")]
    Read(#[from] ProcError),
    /// They cannot be written.
    #[error("lo: {0}")]
    Write(#[from] NetlinkError),
}

/// A setting: below `net.ipv4.conf.lo`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Setting {
    name: &'static str,
    /// `IPV4_DEVCONF_*`.
    number: u16,
    /// What the stack needs.
    needed: u32,
}

const SETTINGS: [Setting; 3] = [
    // Packets from the node's own addresses.
    Setting { name: "accept_local", number: 23, needed: 1 },
    Setting { name: "forwarding", number: 1, needed: 1 },
    // Packets whose answers would leave by another interface, where this or `all` is 1: the greater
    // one counts.
    Setting { name: "rp_filter", number: 8, needed: 2 },
];

/// What settings were before they were changed, for a number that others keep: 4 bits each, of
/// which 0 says that it was not changed, and others are greater by one than what it was.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Before(pub u32);

impl Before {
    fn get(self, at: usize) -> Option<u32> {
        (self.0 >> (4 * at) & 0xf).checked_sub(1)
    }

    /// What was there first counts.
    fn note(&mut self, at: usize, value: u32) {
        if self.get(at).is_none() {
            self.0 |= (value.min(0xe) + 1) << (4 * at);
        }
    }
}

/// Settings to be written, and what they were before.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Change {
    /// To be kept, before the change is made.
    pub before: Before,
    values: Vec<(u16, u32)>,
}

impl Change {
    /// So many settings.
    pub fn len(&self) -> usize {
        self.values.len()
    }

    /// Nothing is to be changed.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    /// Makes it.
    pub fn make(&self) -> Result<(), LoError> {
        if self.is_empty() {
            return Ok(());
        }
        let request = Request::new(RouteNetlinkMessage::SetLink(message(&self.values)), 0);
        Ok(Netlink::open()?.apply(vec![request.named("set")])?)
    }
}

fn message(values: &[(u16, u32)]) -> LinkMessage {
    let settings: Vec<DefaultNla> =
        values.iter().map(|(number, value)| DefaultNla::new(*number, value.to_ne_bytes().to_vec())).collect();
    let mut bytes = vec![0; settings.as_slice().buffer_len()];
    settings.as_slice().emit(&mut bytes);
    // What the crate has for this leaves zeros out, which are settings too.
    let settings = AfSpecInet::Other(DefaultNla::new(INET_CONF | NLA_F_NESTED, bytes));
    let mut message = request::link(LOOPBACK);
    message.attributes.push(LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet(vec![settings])]));
    message
}

/// What is to be changed so that the stack takes such packets. `before`: of changes that were made
/// earlier.
pub fn opening(before: Before) -> Result<Change, LoError> {
    Ok(needed(before, read()?, read_number(&path("all", "rp_filter"))?))
}

fn needed(mut before: Before, found: [u32; 3], all_rp_filter: u32) -> Change {
    let mut values = Vec::new();
    for (at, (setting, value)) in SETTINGS.into_iter().zip(found).enumerate() {
        let is_right = match setting.name {
            "rp_filter" => value.max(all_rp_filter) != 1,
            _ => value == setting.needed,
        };
        if !is_right {
            before.note(at, value);
            values.push((setting.number, setting.needed));
        }
    }
    Change { before, values }
}

/// What is to be changed so that all is as it was before; but what others have changed since stays.
pub fn closing(before: Before) -> Result<Change, LoError> {
    if before == Before::default() {
        return Ok(Change::default());
    }
    Ok(undone(before, read()?))
}

fn undone(before: Before, found: [u32; 3]) -> Change {
    let settings = SETTINGS.into_iter().zip(found).enumerate();
    let values = settings.filter(|(_, (setting, value))| setting.needed == *value);
    let values = values.filter_map(|(at, (setting, _))| Some((setting.number, before.get(at)?)));
    Change { before: Before::default(), values: values.collect() }
}

fn read() -> Result<[u32; 3], LoError> {
    let mut values = [0; 3];
    for (value, setting) in values.iter_mut().zip(SETTINGS) {
        *value = read_number(&path("lo", setting.name))?;
    }
    Ok(values)
}

fn path(interface: &str, name: &str) -> std::path::PathBuf {
    // Of the thread's network namespace: /proc/sys/net is, too.
    ["/proc/sys/net/ipv4/conf", interface, name].iter().collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn correct_values_stay_and_previous_values_are_remembered() {
        let none = Before::default();
        assert!(needed(none, [1, 1, 0], 0).is_empty());
        assert!(needed(none, [1, 1, 0], 2).is_empty());
        assert!(needed(none, [1, 1, 2], 1).is_empty());
        let change = needed(none, [0, 1, 0], 1);
        assert_eq!(change.values, [(23, 1), (8, 2)]);
        // Somebody has set one back, and another one to what it was not.
        let again = needed(change.before, [0, 0, 1], 0);
        assert_eq!(again.values, [(23, 1), (1, 1), (8, 2)]);
        assert_eq!(undone(again.before, [1, 1, 2]).values, [(23, 0), (1, 0), (8, 0)]);
        assert_eq!(undone(change.before, [1, 1, 2]).values, [(23, 0), (8, 0)]);
        assert_eq!(undone(again.before, [0, 1, 0]).values, [(1, 0)], "others have changed the rest");
        assert!(undone(none, [1, 1, 2]).is_empty());
    }
}
