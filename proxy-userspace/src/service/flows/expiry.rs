//! When a flow is over. Pure.

use std::collections::HashMap;

use sluice_common::flow::{Flow, FlowKey, Order, flag, seen};
use sluice_common::node::Config;

const TCP: u32 = 6;
const SECOND: u64 = 1_000_000_000;
/// Seconds that a TCP connection has for its handshake, and for stragglers after its end.
const TCP_OTHER: u64 = 60;

/// Nanoseconds after which silent flows end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Limits {
    udp: u64,
    udp_stream: u64,
    tcp_established: u64,
}

impl From<Config> for Limits {
    fn from(config: Config) -> Self {
        let nanos = |seconds: u32| u64::from(seconds) * SECOND;
        Limits {
            udp: nanos(config.udp_timeout),
            udp_stream: nanos(config.udp_stream_timeout),
            tcp_established: nanos(config.tcp_established_timeout),
        }
    }
}

/// The entry that was found at the key of a flow's other one, if it is of this flow: another flow
/// may have that key when a full table has dropped the other entry.
pub(super) fn own(key: &FlowKey, found: Option<Flow>) -> Option<Flow> {
    found.filter(|other| other.is_other_of(key))
}

/// What removes a flow as it was when it was looked at, or nothing.
pub(super) fn order(key: &FlowKey, flow: &Flow, other: Option<&Flow>) -> Order {
    let other_used = other.map_or(0, |other| other.used);
    Order { key: *key, other: key.other(flow), used: flow.used, other_used }
}

/// Whether a flow has been silent for too long, by both of its entries; the other one may have been
/// evicted.
pub(super) fn is_over(key: &FlowKey, flow: &Flow, other: Option<&Flow>, limits: &Limits, now: u64) -> bool {
    if flow.flags & flag::PASSES != 0 {
        return passed(flow, now);
    }
    let other = other.copied().unwrap_or(Flow { seen: 0, used: 0, ..*flow });
    let either = flow.seen | other.seen;
    let both = flow.seen & other.seen;
    let limit = if key.protocol == TCP {
        let is_ended = either & seen::RST != 0 || both & seen::FIN != 0;
        let is_up = either & seen::ESTABLISHED != 0;
        if is_up && !is_ended { limits.tcp_established } else { TCP_OTHER * SECOND }
    } else if both & seen::PACKET != 0 {
        limits.udp_stream
    } else {
        limits.udp
    };
    now.saturating_sub(flow.used.max(other.used)) > limit
}

/// Whether an entry that lets packets pass is over. If the connection that has its ends goes on
/// later, the next flow to meet it makes such an entry again.
fn passed(flow: &Flow, now: u64) -> bool {
    now.saturating_sub(flow.used) > TCP_OTHER * SECOND
}

/// Whether a flow might be over by what one entry tells: if not, the other one need not be looked
/// at. Of flows that are over, at least one entry says so.
pub(super) fn may_be_over(key: &FlowKey, flow: &Flow, limits: &Limits, now: u64) -> bool {
    if flow.flags & flag::PASSES != 0 {
        return passed(flow, now);
    }
    let least = if key.protocol == TCP {
        let is_up = flow.seen & seen::ESTABLISHED != 0 && flow.seen & (seen::FIN | seen::RST) == 0;
        if is_up { limits.tcp_established } else { TCP_OTHER * SECOND }
    } else {
        limits.udp
    };
    now.saturating_sub(flow.used) > least
}

/// An entry that may be of a flow that is over, with the other one if that may be, too.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Suspect {
    pub(super) key: FlowKey,
    pub(super) flow: Flow,
    pub(super) other: Option<Flow>,
}

/// Each flow once, though both of its entries were found: so that neither is read again, nor looked
/// for when it has ended with the other.
pub(super) fn pairs(entries: Vec<(FlowKey, Flow)>) -> Vec<Suspect> {
    let mut by_key: HashMap<FlowKey, Flow> = entries.iter().copied().collect();
    let mut found = Vec::new();
    for (key, flow) in entries {
        if by_key.remove(&key).is_none() {
            continue;
        }
        let other_key = key.other(&flow);
        let other = own(&key, by_key.get(&other_key).copied());
        if other.is_some() {
            by_key.remove(&other_key);
        }
        found.push(Suspect { key, flow, other });
    }
    found
}

/// Whether an entry is of packets of the client.
pub(super) fn is_original(flow: &Flow) -> bool {
    flow.flags & flag::REPLY == 0
}

#[cfg(test)]
mod tests {
    use super::*;
    use sluice_common::Address;

    const UDP: u32 = 17;

    fn limits() -> Limits {
        Config {
            udp_timeout: 30,
            udp_stream_timeout: 180,
            tcp_established_timeout: 86_400,
            ..Config::default()
        }
        .into()
    }

    fn key(protocol: u32) -> FlowKey {
        FlowKey { protocol, ..FlowKey::default() }
    }

    fn flow(seen: u16, used: u64) -> Flow {
        Flow { seen: seen | seen::PACKET, used: used * SECOND, ..Flow::default() }
    }

    /// The second at which a flow whose directions were used at 0 and 10 is over.
    fn ends(protocol: u32, one: u16, other: u16) -> u64 {
        let (one, other) = (flow(one, 0), flow(other, 10));
        let over = |at: u64| is_over(&key(protocol), &one, Some(&other), &limits(), at * SECOND);
        let at = (0..100_000).find(|at| over(*at)).unwrap();
        // Somebody must have noticed.
        let noticed =
            [one, other].iter().any(|flow| may_be_over(&key(protocol), flow, &limits(), at * SECOND));
        assert!(noticed);
        at - 1
    }

    #[test]
    fn tcp_ends_by_its_segments_or_by_silence() {
        use seen::{ESTABLISHED, FIN, RST};
        assert_eq!(ends(TCP, 0, 0), 10 + 60);
        assert_eq!(ends(TCP, ESTABLISHED, 0), 10 + 86_400);
        assert_eq!(ends(TCP, ESTABLISHED, ESTABLISHED), 10 + 86_400);
        assert_eq!(ends(TCP, ESTABLISHED | FIN, ESTABLISHED), 10 + 86_400, "half closed");
        assert_eq!(ends(TCP, ESTABLISHED | FIN, ESTABLISHED | FIN), 10 + 60);
        assert_eq!(ends(TCP, ESTABLISHED, RST), 10 + 60);
    }

    #[test]
    fn flows_that_pass_packets_unchanged_end_only_when_idle() {
        let passes = Flow { flags: flag::REPLY | flag::PASSES, ..flow(seen::ESTABLISHED, 0) };
        for at in [60, 61] {
            let over = at > 60;
            assert_eq!(is_over(&key(TCP), &passes, None, &limits(), at * SECOND), over);
            assert_eq!(may_be_over(&key(TCP), &passes, &limits(), at * SECOND), over);
        }
    }

    #[test]
    fn udp_that_was_answered_lives_longer() {
        assert_eq!(ends(UDP, 0, 0), 10 + 180);
        let one_way = |at: u64| {
            let silent = Flow { seen: 0, used: 0, ..Flow::default() };
            is_over(&key(UDP), &flow(0, 0), Some(&silent), &limits(), at * SECOND)
        };
        assert!(!one_way(30) && one_way(31));
        assert!(is_over(&key(UDP), &flow(0, 0), None, &limits(), 31 * SECOND), "the other one was evicted");
    }

    #[test]
    fn an_entry_of_another_flow_is_not_the_other_one() {
        let address = |n| Address::v4(n);
        let there = FlowKey {
            source: address(1),
            destination: address(2),
            source_port: 10,
            destination_port: 20,
            protocol: TCP,
        };
        let flow = Flow {
            source: address(3),
            destination: address(4),
            source_port: 30,
            destination_port: 40,
            ..Flow::default()
        };
        let back = flow.turned(&there);
        assert_eq!(own(&there, Some(back)), Some(back));
        assert_eq!(own(&there, Some(Flow { destination_port: 11, ..back })), None);
        assert_eq!(own(&there, None), None);
        let (flow, back) = (Flow { used: 5, ..flow }, Flow { used: 7, ..back });
        let (whole, half) = (order(&there, &flow, Some(&back)), order(&there, &flow, None));
        assert_eq!((whole.used, whole.other_used), (5, 7));
        assert_eq!((half.used, half.other_used), (5, 0));
        assert!(flow.is_other_of(&whole.other));
    }

    #[test]
    fn a_flow_of_which_both_entries_are_silent_is_looked_at_once() {
        let there = |port| FlowKey {
            source: Address::v4(1),
            destination: Address::v4(2),
            source_port: port,
            destination_port: 20,
            protocol: UDP,
        };
        let translated = |port| Flow {
            source: Address::v4(1),
            destination: Address::v4(4),
            source_port: port,
            destination_port: 40,
            ..Flow::default()
        };
        let entries = |port| {
            let (key, flow) = (there(port), translated(port));
            [(key, flow), (key.other(&flow), flow.turned(&key))]
        };
        let [whole, half, foreign] = [10, 11, 12].map(entries);
        let of_another = Flow { destination: Address::v4(9), ..foreign[1].1 };
        let all = vec![whole[1], half[0], whole[0], foreign[0], (foreign[1].0, of_another)];
        let suspect = |(key, flow), other| Suspect { key, flow, other };
        assert_eq!(
            pairs(all),
            [
                suspect(whole[1], Some(whole[0].1)),
                suspect(half[0], None),
                suspect(foreign[0], None),
                suspect((foreign[1].0, of_another), None),
            ]
        );
    }

    #[test]
    fn what_somebody_else_removes_is_left_to_him() {
        use sluice_common::flow::CLAIMED;
        let (silent, claimed) = (flow(0, 1), Flow { used: CLAIMED, ..flow(0, 0) });
        let (key, at) = (key(UDP), 1_000_000 * SECOND);
        assert!(!may_be_over(&key, &claimed, &limits(), at));
        assert!(!is_over(&key, &silent, Some(&claimed), &limits(), at));
    }

    #[test]
    fn a_clock_that_went_back_a_little_ends_nothing() {
        assert!(!may_be_over(&key(UDP), &flow(0, 100), &limits(), 50 * SECOND));
    }
}
