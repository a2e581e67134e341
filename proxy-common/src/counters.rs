//! Counters of the map `COUNTERS` (one array slot each, on each CPU).

macro_rules! counters {
    ($($(#[$about:meta])* $name:ident = $text:literal),+ $(,)?) => {
        /// What is counted.
        #[repr(u32)]
        #[derive(Clone, Copy, Debug, PartialEq, Eq)]
        pub enum Counter { $($(#[$about])* $name),+ }

        impl Counter {
            /// All of them, in order.
            pub const ALL: &'static [Counter] = &[$(Counter::$name),+];

            /// Its name in metrics.
            #[must_use]
            pub const fn name(self) -> &'static str {
                match self { $(Counter::$name => $text),+ }
            }
        }
    };
}

counters! {
    /// Connections and first datagrams translated on the socket path
    SocketTranslated = "socket_translated",
    /// System calls refused on the socket path, because a service has no endpoints
    SocketRefused = "socket_refused",
    /// System calls of this node's processes that end as if nothing came back, because the client
    /// is not in loadBalancerSourceRanges or there is no local endpoint
    SocketDropped = "socket_dropped",
    /// Flows begun on the packet path
    FlowsBegun = "flows_begun",
    /// Refused with an ICMP port unreachable: no endpoints, or no such port of a ClusterIP
    Rejected = "rejected",
    /// Answered with an ICMP error for a packet that is too big
    TooBig = "too_big",
    /// Answered with an ICMP error for a packet whose time is up
    TimeExceeded = "time_exceeded",
    /// Dropped: a Local policy without local endpoints
    DropNoLocalEndpoints = "drop_no_local_endpoints",
    /// Dropped: the client is not in loadBalancerSourceRanges
    DropSourceRange = "drop_source_range",
    /// Dropped: an address out of a service network that no service has
    DropUnallocated = "drop_unallocated",
    /// Dropped: a group without an endpoint in the slot picked
    DropNoEndpoint = "drop_no_endpoint",
    /// Dropped: no free port for masquerading
    DropNoPort = "drop_no_port",
    /// Dropped: no source address for masquerading
    DropNoAddress = "drop_no_address",
    /// Dropped: the flow table refused an entry, or the flow was just being removed
    DropFlowTable = "drop_flow_table",
    /// Dropped: no route to the endpoint or back
    DropNoRoute = "drop_no_route",
    /// Dropped: the packet cannot be read or rewritten
    DropMalformed = "drop_malformed",
    /// Flows that only had begun, and gave way to newer ones
    FlowsGaveWay = "flows_gave_way",
    /// Dropped: a pod that sends with an address that is not its own
    DropPodSource = "drop_pod_source",
    /// Dropped: what `rp_filter` keeps out
    DropReversePath = "drop_reverse_path",
}

/// Number of counters.
pub const COUNT: usize = Counter::ALL.len();

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_numbers_have_no_holes() {
        for (at, counter) in Counter::ALL.iter().enumerate() {
            assert_eq!(*counter as usize, at);
            assert_eq!(Counter::ALL.iter().filter(|other| other.name() == counter.name()).count(), 1);
        }
    }
}
