//! The packet path: what becomes of each packet.

use aya_ebpf::bindings::{__sk_buff, bpf_fib_lookup};
use aya_ebpf::maps::lpm_trie::Key;
use sluice_common::Address;
use sluice_common::counters::Counter;
use sluice_common::flow::{Flow, flag};
use sluice_common::node::{Config, address, interface, network, option};
use sluice_common::service::{Frontend, FrontendKey, action};

use crate::Hook;
use crate::debug::{tell, tell_flow};
use crate::flow::{self, Entered, Follow};
use crate::icmp::{self, Error};
use crate::maps::{INTERFACES, NETWORKS, config, count};
use crate::newest;
use crate::packet::{
    ETH_IPV4, ETH_IPV6, ETH_SERVICE_VLAN, ETH_VLAN, Packet, Scratch, forget_fragment, is, load, parse,
    protocol, remember_fragment, scratch,
};
use crate::rewrite;
use crate::route::{self, Route};
use crate::service::{Loopback, find, forwards, hash, is_allowed, is_cluster_ip, own_address, pick};
use crate::source;

/// The next program, or the stack.
const NEXT: i32 = -1;
const DROP: i32 = 2;

/// Packet types, of include/uapi/linux/if_packet.h.
const TO_THIS_HOST: u32 = 0;
const TO_ANOTHER_HOST: u32 = 3;

/// What the packet is by itself.
struct Context<'a> {
    skb: *mut __sk_buff,
    config: &'a Config,
    hook: Hook,
    /// It is a bridge's business where the packet goes.
    bridged: bool,
}

/// A packet's whole way.
#[inline(always)]
pub fn run<const L2: u32>(skb: *mut __sk_buff, hook: Hook) -> i32 {
    // SAFETY: the context is valid, and plain fields of it are read.
    let (ether_type, kind, from, vlan) =
        unsafe { ((*skb).protocol as u16, (*skb).pkt_type, (*skb).ingress_ifindex, (*skb).vlan_present) };
    if ether_type != ETH_IPV4 && ether_type != ETH_IPV6 {
        return unknown(skb, ether_type, hook);
    }
    let (Some(config), Some(scratch)) = (config(), scratch()) else { return NEXT };
    scratch.interface = 0;
    let mut bridge = 0;
    // SAFETY: the context is valid; elements of a map without preallocation are freed after a grace
    // period.
    if hook == Hook::Ingress
        && let Some(interface) = unsafe { INTERFACES.get((*skb).ifindex) }
    {
        (scratch.interface, bridge) = (interface.flags, interface.bridge);
        // Whatever else it is: the stack takes frames to groups, and those with a tag of priority
        // only.
        if interface.flags & interface::OWN_SOURCES != 0
            && !source::is_own(skb, scratch, L2, ether_type == ETH_IPV4)
        {
            count(Counter::DropPodSource);
            return DROP;
        }
    }
    // What has a VLAN's tag beside it comes by the VLAN's own interface next, without.
    if vlan != 0 {
        return NEXT;
    }
    if hook == Hook::Ingress && kind != TO_THIS_HOST && kind != TO_ANOTHER_HOST {
        return NEXT;
    }
    let bridged = hook == Hook::Ingress && kind == TO_ANOTHER_HOST;
    if scratch.interface & interface::BRIDGE_PORT != 0
        && is_for_bridge::<L2>(skb, kind, bridge, &mut scratch.bytes)
    {
        return NEXT;
    }
    if !parse(skb, L2, ether_type == ETH_IPV4, &mut scratch.bytes, &mut scratch.packet) {
        return NEXT;
    }
    let context = Context { skb, config, hook, bridged };
    if hook == Hook::Egress && from != 0 {
        return leaving(&scratch.packet, config);
    }
    if scratch.packet.is(is::FIRST_FRAGMENT) {
        forget_fragment(&scratch.packet);
    }
    if scratch.packet.is(is::ICMP_ERROR) {
        if hook == Hook::Egress && is_port(skb) {
            return NEXT;
        }
        return error_about::<L2>(&context, scratch);
    }
    if scratch.packet.is(is::PORTS)
        && let Some(flow) = flow::find(&scratch.packet.key)
    {
        // What leaves by a port has left by the bridge before. From port to port nothing begins,
        // and what the endpoint does not know by its own port there has none.
        let is_straight = flow.flags & (flag::STRAIGHT | flag::REPLY) == flag::STRAIGHT;
        if (bridged && is_straight) || (hook == Hook::Egress && is_port(skb)) {
            return NEXT;
        }
        if is_kept_out(&context, scratch, GOING_ON) {
            return kept_out(&context);
        }
        match flow::follow(flow, &scratch.packet, &mut scratch.key, &mut scratch.reply, config) {
            Follow::GoesOn => {
                scratch.flow = *flow;
                return translate::<L2>(&context, scratch, None);
            }
            Follow::Lost => {
                count(Counter::DropFlowTable);
                return DROP;
            }
            Follow::Passes => return NEXT,
            Follow::Ended => {}
        }
    }
    if bridged || (scratch.packet.key.protocol == protocol::TCP && !scratch.packet.is_syn()) {
        return NEXT;
    }
    begin::<L2>(&context, scratch)
}

/// What is neither IPv4 nor IPv6 is the stack's, but for what hides IP from here: the stack takes a
/// tag off before programs see a packet, and one behind it, if both are of priority only, after
/// that. A pod needs none.
#[inline(always)]
fn unknown(skb: *mut __sk_buff, ether_type: u16, hook: Hook) -> i32 {
    if hook == Hook::Egress || (ether_type != ETH_VLAN && ether_type != ETH_SERVICE_VLAN) {
        return NEXT;
    }
    // SAFETY: the context is valid; elements of a map without preallocation are freed after a grace
    // period.
    let of_pod = unsafe { INTERFACES.get((*skb).ifindex) };
    if of_pod.is_some_and(|link| link.flags & interface::OWN_SOURCES != 0) {
        count(Counter::DropPodSource);
        return DROP;
    }
    NEXT
}

/// Whether an interface is a port of a bridge.
#[inline(always)]
fn is_port(skb: *mut __sk_buff) -> bool {
    // SAFETY: the context is valid; elements of a map without preallocation are freed after a grace
    // period.
    unsafe { INTERFACES.get((*skb).ifindex) }.is_some_and(|port| port.flags & interface::BRIDGE_PORT != 0)
}

/// Whether a frame that comes in by a port of a bridge is for this node, so that the bridge's own
/// programs see it next: it is for the bridge's Ethernet address, of which `bridge` is the last
/// four bytes, or the port's own, which may be the same. Were it translated here, it would be
/// twice; and it could come from the node's own address, and the stack takes no such packet.
#[inline(always)]
fn is_for_bridge<const L2: u32>(skb: *mut __sk_buff, kind: u32, bridge: u32, bytes: &mut [u32; 32]) -> bool {
    L2 != 0 && (kind == TO_THIS_HOST || load(skb, 2, bytes.as_mut_ptr(), 4) && bytes[0] == bridge)
}

/// Whether `rp_filter` of the interface that it came in by, as far as it is of these kinds, keeps a
/// packet out.
#[inline(always)]
fn is_kept_out(context: &Context<'_>, scratch: &mut Scratch, kinds: u32) -> bool {
    if scratch.interface & kinds == 0 || source::has_way_back(context.skb, scratch, kinds) {
        return false;
    }
    if !context.bridged {
        tell(&scratch.packet, "dropped: rp_filter");
        count(Counter::DropReversePath);
    }
    true
}

/// What becomes of a packet that is kept out. One for another hardware address does not enter the
/// stack by this interface, but it may by one above it (macvlan), whose programs see it next.
#[inline(always)]
fn kept_out(context: &Context<'_>) -> i32 {
    if context.bridged { NEXT } else { DROP }
}

/// What a flow's packets must pass, and what the first ones must.
const GOING_ON: u32 = interface::STRICT;
const FIRST: u32 = interface::STRICT | interface::LOOSE;

/// Whether a packet could be the first of a connection.
#[inline(always)]
fn may_begin(packet: &Packet) -> bool {
    packet.key.protocol != protocol::TCP || packet.is_syn()
}

/// Addresses out of the service networks that no Service has lead nowhere: on the way out, after
/// other proxies had their turn.
#[inline(always)]
fn leaving(packet: &Packet, config: &Config) -> i32 {
    if !may_begin(packet) || config.options & option::DRAINING != 0 {
        return NEXT;
    }
    if networks_of(&packet.key.destination) & network::SERVICES != 0 {
        tell(packet, "dropped: no Service has this address");
        count(Counter::DropUnallocated);
        return DROP;
    }
    NEXT
}

#[inline(always)]
fn networks_of(address: &Address) -> u32 {
    NETWORKS.get(Key::new(128, *address)).copied().unwrap_or(0)
}

/// A packet that belongs to no flow yet.
#[inline(always)]
fn begin<const L2: u32>(context: &Context<'_>, scratch: &mut Scratch) -> i32 {
    match choose::<L2>(context, scratch) {
        Ok(masquerade) => forward::<L2>(context, scratch, masquerade),
        Err(verdict) => verdict,
    }
}

/// Leaves in `scratch.flow` where a packet goes that belongs to no flow yet, and says whether it is
/// masqueraded; or what becomes of one that begins none.
#[inline(always)]
fn choose<const L2: u32>(context: &Context<'_>, scratch: &mut Scratch) -> Result<bool, i32> {
    let config = context.config;
    if config.options & option::DRAINING != 0 || scratch.packet.is(is::LATER_FRAGMENT) {
        return Err(NEXT);
    }
    let packet = &scratch.packet;
    if context.hook == Hook::Ingress && is_nobody_outside(&packet.key.source) {
        return Err(NEXT);
    }
    scratch.frontend = FrontendKey {
        address: packet.key.destination,
        port: packet.key.destination_port,
        protocol: packet.key.protocol as u8,
        kind: 0,
    };
    let own_process = context.hook == Hook::Egress;
    let found = if packet.is(is::PORTS) { find(&mut scratch.frontend, Loopback::Elsewhere) } else { None };
    let key = scratch.packet.key;
    let what = match found {
        Some(frontend) => match admitted::<L2>(context, scratch, frontend) {
            Ok(what) => what,
            Err(verdict) => return Err(verdict),
        },
        None => {
            // Of ICMP only what asks for an answer is refused.
            let asks = !scratch.packet.is_icmp() || scratch.packet.is_echo_request();
            if asks && is_cluster_ip(&mut scratch.frontend) {
                if is_kept_out(context, scratch, FIRST) {
                    return Err(DROP);
                }
                tell(&scratch.packet, "refused: no such port of a ClusterIP");
                return Err(refuse::<L2>(context, scratch));
            }
            if own_process {
                // It may have been translated already: a redirected packet comes by here once more.
                return Err(leaving(&scratch.packet, config));
            }
            if !scratch.packet.is(is::PORTS) || !flow::meets_service(&key, &mut scratch.key) {
                return Err(NEXT);
            }
            if is_kept_out(context, scratch, FIRST) {
                return Err(DROP);
            }
            0
        }
    };
    // Not before: most packets belong to no Service.
    scratch.flow = Flow {
        source: key.source,
        destination: key.destination,
        source_port: key.source_port,
        destination_port: key.destination_port,
        seen: flow::seen_in(&scratch.packet),
        flags: flag::STRAIGHT,
        used: flow::now(),
        group: 0,
    };
    let Some(frontend) = found else { return Ok(false) };
    let hash = hash(&key.source, key.source_port, &scratch.frontend);
    let Some(endpoint) = pick(frontend, what, &key.source, hash, config) else {
        count(Counter::DropNoEndpoint);
        return Err(DROP);
    };
    scratch.flow.destination = endpoint.address;
    scratch.flow.destination_port = endpoint.port;
    scratch.flow.flags = 0;
    scratch.flow.group = frontend.group;
    let hairpin = endpoint.address == key.source;
    Ok(what & action::MASQUERADE != 0 || hairpin)
}

/// What a frontend's actions are for a packet, or what becomes of one that it does not forward.
#[inline(always)]
fn admitted<const L2: u32>(
    context: &Context<'_>,
    scratch: &mut Scratch,
    frontend: &Frontend,
) -> Result<u8, i32> {
    if is_kept_out(context, scratch, FIRST) {
        return Err(DROP);
    }
    if !is_allowed(frontend, &scratch.frontend, &scratch.packet.key.source) {
        tell(&scratch.packet, "dropped: not in loadBalancerSourceRanges");
        count(Counter::DropSourceRange);
        return Err(DROP);
    }
    let what = action_for(context, frontend, &scratch.packet);
    if what == action::REJECT {
        tell(&scratch.packet, "refused: no endpoints");
        return Err(refuse::<L2>(context, scratch));
    }
    if !forwards(what) {
        tell(&scratch.packet, "dropped: no local endpoints");
        count(Counter::DropNoLocalEndpoints);
        return Err(DROP);
    }
    Ok(what)
}

/// Sources that nobody outside of this node can have: the node's own addresses, loopback,
/// multicast, none. The stack drops them.
#[inline(always)]
fn is_nobody_outside(source: &Address) -> bool {
    let [a, b, c, d] = source.words;
    let strange = if source.is_v4() {
        let first = u32::from_be(d) >> 24;
        first == 0 || first == 127 || first >= 224
    } else {
        u32::from_be(a) >> 24 == 0xff || (a == 0 && b == 0 && c == 0 && u32::from_be(d) <= 1)
    };
    strange || own_address(source) & address::OWN != 0
}

/// What a packet's sender gets (reference 2.1). What comes in is not from this node's own
/// processes.
#[inline(always)]
fn action_for(context: &Context<'_>, frontend: &Frontend, packet: &Packet) -> u8 {
    match context.hook {
        Hook::Egress => frontend.host,
        Hook::Ingress if is_pod(context, packet) => frontend.pod,
        Hook::Ingress => frontend.other,
    }
}

#[inline(always)]
fn is_pod(context: &Context<'_>, packet: &Packet) -> bool {
    let detects = if packet.is(is::V4) { option::DETECTS4 } else { option::DETECTS6 };
    if context.config.options & detects == 0 {
        return false;
    }
    if context.config.options & option::BY_INTERFACE == 0 {
        return networks_of(&packet.key.source) & network::PODS != 0;
    }
    // SAFETY: the context is valid; elements of a map without preallocation are freed after a grace
    // period.
    unsafe { INTERFACES.get((*context.skb).ifindex) }.is_some_and(|i| i.flags & interface::PODS != 0)
}

/// Refuses a packet.
#[inline(always)]
fn refuse<const L2: u32>(context: &Context<'_>, scratch: &mut Scratch) -> i32 {
    count(Counter::Rejected);
    answer::<L2>(context, scratch, Error::Port)
}

#[inline(always)]
fn answer<const L2: u32>(context: &Context<'_>, scratch: &mut Scratch, error: Error) -> i32 {
    icmp::answer::<L2>(context.skb, scratch, context.config, error, context.hook)
}

/// Begins the flow that was chosen.
#[inline(always)]
fn forward<const L2: u32>(context: &Context<'_>, scratch: &mut Scratch, masquerade: bool) -> i32 {
    // The way decides by which address of the node the endpoint sees the connection.
    let way = if masquerade {
        route::find_with_source(context.skb, &scratch.packet, &scratch.flow, &mut scratch.fib)
    } else {
        route::find(context.skb, &scratch.packet, &scratch.flow, &mut scratch.fib)
    };
    if way == Route::TooBig && !scratch.packet.is(is::MAY_FRAGMENT) {
        return too_big::<L2>(context, scratch);
    }
    if way == Route::None || is_stuck(context, way) {
        tell(&scratch.packet, "dropped: no route");
        count(Counter::DropNoRoute);
        return DROP;
    }
    if masquerade && way != Route::Stack {
        let Some(own) = masquerade_address(&scratch.fib, scratch.packet.is(is::V4), context.config) else {
            tell(&scratch.packet, "dropped: no address to masquerade with");
            count(Counter::DropNoAddress);
            return DROP;
        };
        scratch.flow.source = own;
        scratch.flow.flags = flag::MASQUERADED;
    }
    newest::remember(&scratch.packet.key, scratch.flow.used, context.config.newest, &mut scratch.key);
    let entered = flow::enter(
        context.skb,
        &scratch.packet.key,
        &mut scratch.flow,
        &mut scratch.reply,
        &mut scratch.key,
        context.config,
    );
    let way = match entered {
        Entered::Before => None,
        Entered::Done => {
            tell_flow(&scratch.packet, &scratch.flow);
            count(Counter::FlowsBegun);
            Some(way)
        }
        Entered::NoPort => {
            tell(&scratch.packet, "dropped: no port to masquerade with");
            count(Counter::DropNoPort);
            return DROP;
        }
        Entered::Refused => {
            count(Counter::DropFlowTable);
            return DROP;
        }
    };
    translate::<L2>(context, scratch, way)
}

/// The address that masqueraded packets have on a way out: the one that the kernel chooses for it,
/// or, where the kernel does not tell, the first of the interface, or of the node.
#[inline(always)]
fn masquerade_address(fib: &bpf_fib_lookup, v4: bool, config: &Config) -> Option<Address> {
    let none = Address::default();
    let chosen = route::source(fib, v4);
    if chosen != none {
        return Some(chosen);
    }
    // SAFETY: elements of a map without preallocation are freed after a grace period.
    let out = unsafe { INTERFACES.get(fib.ifindex) };
    let (own, common) = if v4 {
        (out.map_or(none, |i| i.address4), config.address4)
    } else {
        (out.map_or(none, |i| i.address6), config.address6)
    };
    let address = if own == none { common } else { own };
    (address != none).then_some(address)
}

/// Whether a packet that leaves would have to turn back to this node itself: the stack takes no
/// such packet. Processes that the socket path serves never send one.
#[inline(always)]
fn is_stuck(context: &Context<'_>, way: Route) -> bool {
    context.hook == Hook::Egress && way == Route::Stack
}

#[inline(always)]
fn too_big<const L2: u32>(context: &Context<'_>, scratch: &mut Scratch) -> i32 {
    count(Counter::TooBig);
    // SAFETY: the route lookup has written the smaller of the two fields of the same size.
    let mtu = u32::from(unsafe { scratch.fib.__bindgen_anon_1.mtu_result });
    answer::<L2>(context, scratch, Error::TooBig(mtu))
}

/// Translates the packet as `scratch.flow` says and sends it on; by `way`, if it is known, which
/// `scratch.fib` has then.
#[inline(always)]
fn translate<const L2: u32>(context: &Context<'_>, scratch: &mut Scratch, way: Option<Route>) -> i32 {
    let same_way = scratch.flow.destination == scratch.packet.key.destination;
    // A reply that a process of this node sends, and one between two ports of a bridge, is on its
    // way already.
    let on_its_way = same_way && (context.bridged || context.hook == Hook::Egress);
    let way = match way {
        Some(way) => way,
        None if on_its_way || context.bridged => Route::Stack,
        // Its first part went by the stack, which may hold all of them until they are whole.
        None if scratch.packet.is(is::CUT) => Route::TooBig,
        None => route::find(context.skb, &scratch.packet, &scratch.flow, &mut scratch.fib),
    };
    if way == Route::TooBig && scratch.packet.is(is::MAY_FRAGMENT) {
        scratch.packet.flags |= is::CUT;
    }
    if scratch.packet.is(is::FIRST_FRAGMENT) {
        remember_fragment(&scratch.packet);
    }
    if on_its_way {
        return rewritten::<L2>(context, scratch, NEXT);
    }
    if context.bridged {
        return NEXT;
    }
    let cut = scratch.packet.is(is::CUT);
    match way {
        Route::Stack if context.hook == Hook::Ingress => return rewritten::<L2>(context, scratch, NEXT),
        Route::TooBig if !cut => return too_big::<L2>(context, scratch),
        Route::Stack | Route::None => {
            tell(&scratch.packet, "dropped: no route");
            count(Counter::DropNoRoute);
            return DROP;
        }
        Route::Forward | Route::Resolve | Route::TooBig => {}
    }
    if context.hook == Hook::Ingress && scratch.packet.ttl <= 1 {
        count(Counter::TimeExceeded);
        return answer::<L2>(context, scratch, Error::Time);
    }
    // The stack ages what it forwards.
    let aged =
        cut || context.hook == Hook::Egress || rewrite::age(context.skb, L2, scratch.packet.is(is::V4));
    if !aged || rewritten::<L2>(context, scratch, NEXT) == DROP {
        count(Counter::DropMalformed);
        return DROP;
    }
    if cut {
        return route::send_cut::<L2>(context.skb);
    }
    route::send::<L2>(context.skb, way, &mut scratch.fib, context.hook)
}

#[inline(always)]
fn rewritten<const L2: u32>(context: &Context<'_>, scratch: &Scratch, then: i32) -> i32 {
    if rewrite::translate(context.skb, L2, &scratch.packet, &scratch.flow) { then } else { DROP }
}

/// An ICMP error about a packet that was translated: it is about the other direction of its flow.
#[inline(always)]
fn error_about<const L2: u32>(context: &Context<'_>, scratch: &mut Scratch) -> i32 {
    let quoted = scratch.packet.transport + 8;
    let v4 = scratch.packet.is(is::V4);
    if !parse(context.skb, quoted, v4, &mut scratch.bytes, &mut scratch.inner)
        || !scratch.inner.is(is::PORTS)
        || scratch.inner.is(is::LATER_FRAGMENT)
    {
        return NEXT;
    }
    let inner = &scratch.inner.key;
    scratch.key.source = inner.destination;
    scratch.key.destination = inner.source;
    scratch.key.source_port = inner.destination_port;
    scratch.key.destination_port = inner.source_port;
    scratch.key.protocol = inner.protocol;
    let Some(flow) = flow::find(&scratch.key) else { return NEXT };
    if flow.flags & flag::PASSES != 0 {
        return NEXT;
    }
    if is_kept_out(context, scratch, GOING_ON) {
        return kept_out(context);
    }
    // Its receiver sent the quoted packet, as it was before it was translated: the flow's end,
    // turned round.
    scratch.flow = *flow;
    scratch.reply = Flow {
        source: flow.destination,
        destination: flow.source,
        source_port: flow.destination_port,
        destination_port: flow.source_port,
        ..*flow
    };
    let same_way = scratch.flow.destination == scratch.packet.key.destination;
    if context.bridged && !same_way {
        return NEXT;
    }
    // A router's own address stays where the flow keeps its source's.
    if scratch.key.source == scratch.flow.source {
        scratch.flow.source = scratch.packet.key.source;
    }
    let way = if same_way && (context.bridged || context.hook == Hook::Egress) {
        Route::Stack
    } else {
        route::find(context.skb, &scratch.packet, &scratch.flow, &mut scratch.fib)
    };
    let ages = context.hook == Hook::Ingress && way != Route::Stack;
    // There are no errors about errors.
    if matches!(way, Route::TooBig | Route::None) || (ages && scratch.packet.ttl <= 1) {
        count(Counter::DropNoRoute);
        return DROP;
    }
    let outer = [&scratch.flow.source, &scratch.flow.destination];
    let done = rewrite::translate_error(
        context.skb,
        L2,
        &scratch.packet,
        quoted,
        &scratch.inner,
        &scratch.reply,
        outer,
    );
    if !done {
        count(Counter::DropMalformed);
        return DROP;
    }
    if way == Route::Stack {
        return NEXT;
    }
    if ages && !rewrite::age(context.skb, L2, v4) {
        return DROP;
    }
    route::send::<L2>(context.skb, way, &mut scratch.fib, context.hook)
}
