//! Rule expressions, as the kernel's virtual machine has them (linux/netfilter/nf_tables.h).

use super::chain::Verdict;
use super::set::SetId;

/// A 32-bit register, 0 to 15 (`NFT_REG32_00` and on).
pub type Reg = u8;

/// Keys of the `meta` expression, with their numbers in the kernel (`NFT_META_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MetaKey {
    /// The packet mark, four bytes in host order.
    Mark = 3,
    /// The input interface's name, 16 bytes; empty for locally generated packets.
    IifName = 6,
    /// `NFPROTO_IPV4` or `NFPROTO_IPV6`, one byte.
    NfProto = 15,
    /// The transport protocol, one byte.
    L4Proto = 16,
    /// The kind of the input interface (`vrf`), 16 bytes; ends the rule where an interface has
    /// none.
    IifKind = 26,
    /// The output interface's name, 16 bytes.
    OifName = 7,
    /// The kind of the output interface (`veth`), 16 bytes; ends the rule where an interface has
    /// none.
    OifKind = 27,
}

/// Comparisons (`NFT_CMP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CmpOp {
    /// Equal.
    Eq = 0,
    /// Not equal.
    Neq = 1,
    /// Less or equal, byte by byte.
    Lte = 3,
    /// Greater or equal, byte by byte.
    Gte = 5,
}

/// What a dynset does (`NFT_DYNSET_OP_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum DynsetOp {
    /// Adds the element, or refreshes its timeout. Does not change the data of an existing one.
    Update = 1,
    /// Removes the element, if it is there.
    Delete = 2,
}

/// Number generators (`NFT_NG_*`).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum NumgenKind {
    /// A counter of the rule.
    Incremental = 0,
    /// Uniformly random.
    Random = 1,
}

/// The address family of a translation.
pub type NatFamily = crate::net::Family;

/// One expression. Registers that it reads must have been written earlier in the same rule.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expr {
    /// Loads bytes of the network header.
    NetworkHeader {
        /// Destination register.
        dreg: Reg,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
    /// Loads bytes of the transport header; ends the rule for fragments.
    TransportHeader {
        /// Destination register.
        dreg: Reg,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
    /// Loads packet metadata.
    Meta {
        /// Destination register.
        dreg: Reg,
        /// What to load.
        key: MetaKey,
    },
    /// Stores the packet mark.
    SetMark {
        /// Source register.
        sreg: Reg,
    },
    /// Ends the rule unless the comparison holds.
    Cmp {
        /// Source register.
        sreg: Reg,
        /// Comparison.
        op: CmpOp,
        /// Right-hand side; its length is the number of bytes compared.
        data: Vec<u8>,
    },
    /// `dreg = (sreg & mask) ^ xor`.
    Bitwise {
        /// Source register.
        sreg: Reg,
        /// Destination register.
        dreg: Reg,
        /// Mask; its length is the number of bytes.
        mask: Vec<u8>,
        /// Bits to flip, as long as the mask.
        xor: Vec<u8>,
    },
    /// Loads a constant.
    Immediate {
        /// Destination register.
        dreg: Reg,
        /// The constant.
        data: Vec<u8>,
    },
    /// Ends the rule unless the key is in the set.
    Lookup {
        /// The set.
        set: SetId,
        /// First register of the key.
        sreg: Reg,
    },
    /// Looks the key up in a map and loads its data; ends the rule if it is not there.
    LookupData {
        /// The map.
        set: SetId,
        /// First register of the key.
        sreg: Reg,
        /// First register of the data.
        dreg: Reg,
    },
    /// Looks the key up in a verdict map and does what it says; ends the rule if it is not there.
    LookupVerdict {
        /// The map.
        set: SetId,
        /// First register of the key.
        sreg: Reg,
    },
    /// Adds, refreshes or removes an element from the packet path.
    Dynset {
        /// The map.
        set: SetId,
        /// What to do.
        op: DynsetOp,
        /// First register of the key.
        key: Reg,
        /// First register of the data.
        data: Reg,
        /// Lifetime in milliseconds.
        timeout_ms: u64,
    },
    /// A number below `modulus`.
    Numgen {
        /// Destination register.
        dreg: Reg,
        /// One more than the greatest number.
        modulus: u32,
        /// Kind of generator.
        kind: NumgenKind,
    },
    /// The route type of the packet's source address (`RTN_LOCAL` is 2), four bytes in host order.
    FibSourceType {
        /// Destination register.
        dreg: Reg,
    },
    /// The route type of the packet's destination address.
    FibDestinationType {
        /// Destination register.
        dreg: Reg,
    },
    /// Connection tracking state bits, four bytes in host order.
    CtState {
        /// Destination register.
        dreg: Reg,
    },
    /// Connection tracking status bits, four bytes in host order.
    CtStatus {
        /// Destination register.
        dreg: Reg,
    },
    /// Translates the destination.
    Dnat {
        /// Family of the address.
        family: NatFamily,
        /// First register of the address.
        address: Reg,
        /// Register of the port.
        port: Reg,
    },
    /// Translates the source to the address of the outgoing interface, with a fully random port.
    Masquerade,
    /// Refuses with an ICMP or ICMPv6 port unreachable.
    RejectPortUnreachable,
    /// Ends with a verdict.
    Verdict(Verdict),
    /// Counts packets and bytes.
    Counter,
    /// Loads bytes of the link layer's header.
    LinkHeader {
        /// Destination register.
        dreg: Reg,
        /// Offset in bytes.
        offset: u32,
        /// Length in bytes.
        len: u32,
    },
    /// The index of the interface that packets to this one's source leave by, if it is the one that
    /// this one came in by; else zero. Four bytes.
    FibSourceDevice {
        /// Destination register.
        dreg: Reg,
    },
}
