//! What rules often say: groups of expressions for single questions about a packet.

use ipnet::IpNet;

use super::expr::{CmpOp, Expr, MetaKey, Reg};
use crate::net::Family;

/// `NF_CT_STATE_BIT(IP_CT_NEW)` of linux/netfilter/nf_conntrack_common.h.
pub(crate) const CT_NEW: u32 = 8;
/// `IPS_DST_NAT`.
pub(crate) const CT_DNAT: u32 = 1 << 5;

/// Registers that an address fills.
pub(crate) fn address_regs(family: Family) -> Reg {
    if family == Family::V4 { 1 } else { 4 }
}

/// Loads the source address.
pub(crate) fn load_source(family: Family, dreg: Reg) -> Expr {
    match family {
        Family::V4 => Expr::NetworkHeader { dreg, offset: 12, len: 4 },
        Family::V6 => Expr::NetworkHeader { dreg, offset: 8, len: 16 },
    }
}

/// Loads the destination address.
pub(crate) fn load_destination(family: Family, dreg: Reg) -> Expr {
    match family {
        Family::V4 => Expr::NetworkHeader { dreg, offset: 16, len: 4 },
        Family::V6 => Expr::NetworkHeader { dreg, offset: 24, len: 16 },
    }
}

/// Loads protocol and destination port, two registers.
pub(crate) fn load_port(dreg: Reg) -> Vec<Expr> {
    vec![
        Expr::Meta { dreg, key: MetaKey::L4Proto },
        Expr::TransportHeader { dreg: dreg + 1, offset: 2, len: 2 },
    ]
}

/// Ends the rule unless register 0 has the type of local routes.
pub(crate) fn local_type() -> Expr {
    Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: RTN_LOCAL.to_ne_bytes().to_vec() }
}

/// `RTN_LOCAL` of linux/rtnetlink.h.
const RTN_LOCAL: u32 = 2;

/// Compares an address, which `load` puts into register 0, with a network.
pub(crate) fn in_network(load: Expr, net: &IpNet, op: CmpOp) -> Vec<Expr> {
    let (mask, addr) = match net {
        IpNet::V4(net) => (net.netmask().octets().to_vec(), net.network().octets().to_vec()),
        IpNet::V6(net) => (net.netmask().octets().to_vec(), net.network().octets().to_vec()),
    };
    let xor = vec![0; mask.len()];
    vec![load, Expr::Bitwise { sreg: 0, dreg: 0, mask, xor }, Expr::Cmp { sreg: 0, op, data: addr }]
}

/// Ends the rule unless register 0 has one of the bits.
pub(crate) fn any_bit(bits: u32) -> Vec<Expr> {
    vec![
        Expr::Bitwise { sreg: 0, dreg: 0, mask: bits.to_ne_bytes().to_vec(), xor: vec![0; 4] },
        Expr::Cmp { sreg: 0, op: CmpOp::Neq, data: vec![0; 4] },
    ]
}

/// Ends the rule unless the packet is of the family.
pub(crate) fn of_family(family: Family) -> Vec<Expr> {
    let number = match family {
        Family::V4 => 2,
        Family::V6 => 10,
    };
    vec![
        Expr::Meta { dreg: 0, key: MetaKey::NfProto },
        Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: vec![number] },
    ]
}

/// Ends the rule if the destination is a loopback address.
pub(crate) fn not_loopback(family: Family) -> Vec<Expr> {
    compare_loopback(family, CmpOp::Neq)
}

/// Ends the rule unless the destination is, or is not, a loopback address.
pub(crate) fn compare_loopback(family: Family, op: CmpOp) -> Vec<Expr> {
    let load = load_destination(family, 0);
    match family {
        Family::V4 => {
            let mask = vec![255, 0, 0, 0];
            vec![
                load,
                Expr::Bitwise { sreg: 0, dreg: 0, mask, xor: vec![0; 4] },
                Expr::Cmp { sreg: 0, op, data: vec![127, 0, 0, 0] },
            ]
        }
        Family::V6 => {
            let data = std::net::Ipv6Addr::LOCALHOST.octets().to_vec();
            vec![load, Expr::Cmp { sreg: 0, op, data }]
        }
    }
}

/// The mask of a prefix length, in so many bytes.
pub(crate) fn prefix_mask(length: u8, bytes: usize) -> Vec<u8> {
    (0..bytes)
        .map(|i| {
            let bits = usize::from(length).saturating_sub(i * 8).min(8);
            (0xff00u16 >> bits) as u8
        })
        .collect()
}
