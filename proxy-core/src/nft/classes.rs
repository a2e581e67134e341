//! Class chains: how an endpoint is picked and translated, shared by all frontends of one class.
//!
//! Register layout of all picking rules, the same for both families (IPv4 leaves the gaps unused):
//! 0.. frontend key, later the affinity key; 5.. the frontend's data, of which 6, 7 is the group
//! id; 8 slot, then 8.. endpoint address, port.
//!
//! The nft program must be able to list these rules. It follows by register number what was loaded
//! where, takes a map's data for zero bits wide, and aborts when such a register is part of a key
//! (nft 1.0.6 to 1.1, `netlink_parse_concat_expr`) or of a dynset's data. So no key and no stored
//! data may start at a register that a lookup wrote:
//! - A frontend's data begin with a word of padding and are loaded one register early; the register
//!   of the group id itself gets a wide dummy load first, by which nft takes the whole key for one
//!   value. The same goes for the class and for refusals.
//! - `members` gives the endpoint again behind a word of padding; loaded one register early, the
//!   copy is what a dynset stores.

use super::NftConfig;
use super::sets::SetKind;
use crate::group::GroupId;
use crate::ipvs::server_mark;
use crate::lang::nftables::{
    Chain, ChainName, CmpOp, DynsetOp, Expr, MetaKey, NumgenKind, Reg, Rule, SetId, address_regs, in_network,
    load_destination, load_port, load_source, local_type,
};
use crate::net::Family;
use crate::plan::Detector;

/// Which map tells the group of a frontend.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum IdTable {
    /// By address, protocol and port.
    Services,
    /// By protocol and port.
    NodePorts,
}

impl IdTable {
    pub(super) fn prefix(self, family: Family) -> &'static str {
        match (self, family) {
            (IdTable::Services, Family::V4) => "svc4",
            (IdTable::Services, Family::V6) => "svc6",
            (IdTable::NodePorts, Family::V4) => "np4",
            (IdTable::NodePorts, Family::V6) => "np6",
        }
    }

    /// The map of frontends.
    pub(super) fn frontends(self, family: Family) -> SetId {
        match self {
            IdTable::Services => SetKind::Services.set(family),
            IdTable::NodePorts => SetKind::NodePorts.set(family),
        }
    }

    /// The class of eTP=Local frontends, whose chain tells inside from outside clients first.
    pub(super) fn local_policy_class(self) -> [u8; 8] {
        const LOCAL_POLICY: u32 = 1 << 5;
        class_bytes(0, LOCAL_POLICY | self.bit())
    }

    fn bit(self) -> u32 {
        match self {
            IdTable::Services => 0,
            IdTable::NodePorts => 1,
        }
    }

    /// Loads the frontend key into registers 0 and on.
    pub(super) fn load_key(self, family: Family) -> Vec<Expr> {
        match self {
            IdTable::Services => load_tuple(family),
            IdTable::NodePorts => load_port(0),
        }
    }
}

/// Which connections of a class get the masquerade mark.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum MasqueradeRule {
    /// None, except hairpin connections (which another chain sees to).
    Never,
    /// All.
    Always,
    /// Those that do not come from pods.
    NotPods,
}

/// How a class picks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Pick {
    /// At random among `size` slots, with an affinity timeout in seconds.
    Random {
        /// Number of slots.
        size: u32,
        /// Affinity timeout in seconds.
        affinity: Option<u32>,
    },
    /// As the group's own chain says.
    ByGroup,
    /// IPVS does, later.
    ByServer,
}

/// A class of frontends that share a chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClassChain {
    /// Family.
    pub family: Family,
    /// Where the group id comes from.
    pub table: IdTable,
    /// Use the Cluster group of a frontend whose id names the Local group: pods and this node are
    /// short-circuited past eTP=Local.
    pub short: bool,
    /// Masquerading.
    pub masquerade: MasqueradeRule,
    /// Picking.
    pub pick: Pick,
}

impl ClassChain {
    /// The chain's name, for example `svc4-snat-3` or `np6-keep-short-10-t10800`.
    pub fn name(&self) -> ChainName {
        let mut name = String::from(self.table.prefix(self.family));
        name.push_str(match self.masquerade {
            MasqueradeRule::Never => "-keep",
            MasqueradeRule::Always => "-snat",
            MasqueradeRule::NotPods => "-snat-others",
        });
        if self.short {
            name.push_str("-short");
        }
        match self.pick {
            Pick::ByGroup => name.push_str("-rr"),
            Pick::ByServer => name.push_str("-ipvs"),
            Pick::Random { size, affinity } => {
                name.push_str(&format!("-{size}"));
                if let Some(seconds) = affinity {
                    name.push_str(&format!("-t{seconds}"));
                }
            }
        }
        ChainName::new(&name)
    }

    /// The class as a number that says all of it: the size, then the rest as bits.
    pub(super) fn bytes(&self) -> [u8; 8] {
        const SHORT: u32 = 1 << 1;
        const BY_GROUP: u32 = 1 << 4;
        const BY_SERVER: u32 = 1 << 6;
        let masquerade = match self.masquerade {
            MasqueradeRule::Never => 0,
            MasqueradeRule::Always => 1 << 2,
            MasqueradeRule::NotPods => 2 << 2,
        };
        let (size, pick) = match self.pick {
            Pick::ByGroup => (0, BY_GROUP),
            Pick::ByServer => (0, BY_SERVER),
            // The API allows timeouts up to a day, 17 bits.
            Pick::Random { size, affinity } => (size, affinity.unwrap_or(0) << 8),
        };
        class_bytes(size, self.table.bit() | if self.short { SHORT } else { 0 } | masquerade | pick)
    }

    /// The chain with its rules.
    pub fn chain(&self, config: &NftConfig) -> Chain {
        let mut rules = Vec::new();
        match self.masquerade {
            MasqueradeRule::Never => {}
            MasqueradeRule::Always => rules.push(Rule::new("masquerade", set_mark(config))),
            MasqueradeRule::NotPods => {
                let mut exprs = is_pod(config.detector(self.family), self.family, false);
                exprs.extend(set_mark(config));
                rules.push(Rule::new("masquerade clients that are not pods", exprs));
            }
        }
        let find = self.find_group();
        match self.pick {
            // To its own addresses the node speaks with the very address that it calls, from which
            // no endpoint elsewhere could answer.
            Pick::ByServer if self.masquerade != MasqueradeRule::Always => {
                let mut exprs = from_host();
                exprs.extend(set_mark(config));
                rules.push(Rule::new("masquerade this node", exprs));
            }
            Pick::ByServer => {}
            Pick::Random { size, affinity } => {
                rules.extend(pick_rules(self.family, &find, random(size), affinity));
            }
            Pick::ByGroup => {
                let mut exprs = find;
                let set = SetKind::Groups.set(self.family);
                exprs.push(Expr::LookupVerdict { set, sreg: GROUP });
                rules.push(Rule::new("the group's own turn", exprs));
            }
        }
        Chain { name: self.name(), hook: None, rules }
    }

    /// Loads the group id of the packet's frontend.
    fn find_group(&self) -> Vec<Expr> {
        let mut exprs = dummy_loads(self.family).to_vec();
        exprs.extend(self.table.load_key(self.family));
        let set = self.table.frontends(self.family);
        exprs.push(Expr::LookupData { set, sreg: 0, dreg: FRONTEND });
        if self.short {
            exprs.push(clear_local_bit(GROUP, GROUP));
        }
        exprs
    }
}

fn class_bytes(size: u32, rest: u32) -> [u8; 8] {
    let mut bytes = [0; 8];
    bytes[..4].copy_from_slice(&size.to_ne_bytes());
    bytes[4..].copy_from_slice(&rest.to_ne_bytes());
    bytes
}

/// Where the data of a frontend are loaded, and where its parts are then.
pub(super) const FRONTEND: Reg = 5;
const GROUP: Reg = 6;
pub(super) const CLASS: Reg = 8;
pub(super) const OUTSIDE: Reg = 10;
pub(super) const INSIDE: Reg = 12;
/// Where a refusal is, behind its padding.
pub(super) const REFUSAL: Reg = 6;
const SLOT: Reg = 8;
const ENDPOINT: Reg = 8;
/// Where the copy of the endpoint is after `members` was loaded over the group id.
const COPY: Reg = 7;

/// Makes nft believe that a value of `len` bytes starts at a register.
pub(super) fn dummy_load(dreg: Reg, len: u32) -> Expr {
    Expr::NetworkHeader { dreg, offset: 0, len }
}

/// Makes nft believe that values wide enough for every key and for stored data start at the group
/// id and at the copy.
fn dummy_loads(family: Family) -> [Expr; 2] {
    let (key, data) = match family {
        Family::V4 => (16, 8),
        Family::V6 => (28, 20),
    };
    [dummy_load(GROUP, key), dummy_load(COPY, data)]
}

/// The chain of one group under round robin: only a rule's own counter takes turns exactly.
pub(super) fn round_robin_chain(group: GroupId, family: Family, size: u32, affinity: Option<u32>) -> Chain {
    let id = Expr::Immediate { dreg: GROUP - 1, data: group.padded_bytes().to_vec() };
    let mut find = dummy_loads(family).to_vec();
    find.push(id);
    let turn = Expr::Numgen { dreg: SLOT, modulus: size, kind: NumgenKind::Incremental };
    Chain {
        name: round_robin_name(group, family),
        hook: None,
        rules: pick_rules(family, &find, turn, affinity),
    }
}

pub(super) fn round_robin_name(group: GroupId, family: Family) -> ChainName {
    let prefix = if family == Family::V4 { "rr4" } else { "rr6" };
    ChainName::new(&format!("{prefix}-{:016x}", group.number()))
}

/// Whether a chain belongs to one group.
pub(super) fn is_round_robin(name: &ChainName) -> bool {
    name.as_str().starts_with("rr")
}

fn random(size: u32) -> Expr {
    match size {
        1 => Expr::Immediate { dreg: SLOT, data: 0u32.to_ne_bytes().to_vec() },
        _ => Expr::Numgen { dreg: SLOT, modulus: size, kind: NumgenKind::Random },
    }
}

fn pick_rules(family: Family, find: &[Expr], turn: Expr, affinity: Option<u32>) -> Vec<Rule> {
    let mut pick = find.to_vec();
    pick.push(turn);
    let endpoints = SetKind::Endpoints.set(family);
    pick.push(Expr::LookupData { set: endpoints, sreg: GROUP, dreg: ENDPOINT });
    let mut plain = pick.clone();
    plain.push(dnat(family));
    let Some(seconds) = affinity else { return vec![Rule::new("pick", plain)] };
    let affinity = SetKind::Affinity.set(family);
    let recall = Expr::LookupData { set: affinity, sreg: 0, dreg: ENDPOINT };

    let mut sticky = find.to_vec();
    sticky.extend(load_affinity_key(family));
    sticky.push(recall.clone());
    sticky.push(copy_member(family));
    sticky.push(dynset(affinity, DynsetOp::Update, seconds));
    sticky.extend([recall.clone(), dnat(family)]);

    let mut remember = pick;
    remember.extend(load_affinity_key(family));
    remember.push(copy_member(family));
    // An update leaves the data of an existing element as it is, so one that points to an endpoint
    // that is gone has to be removed first.
    remember.push(dynset(affinity, DynsetOp::Delete, seconds));
    remember.push(dynset(affinity, DynsetOp::Update, seconds));
    remember.extend([recall, dnat(family)]);
    vec![
        Rule::new("same endpoint as before for this client", sticky),
        Rule::new("pick an endpoint and remember it", remember),
        // Reached only when the affinity map is full: the connection must not fail for that.
        Rule::new("pick", plain),
    ]
}

/// Ends the rule unless the endpoint is a member of the group; makes the copy that a dynset can
/// store.
fn copy_member(family: Family) -> Expr {
    Expr::LookupData { set: SetKind::Members.set(family), sreg: GROUP, dreg: GROUP }
}

fn dynset(set: SetId, op: DynsetOp, seconds: u32) -> Expr {
    Expr::Dynset { set, op, key: 0, data: COPY, timeout_ms: u64::from(seconds) * 1000 }
}

/// Affinity id (the group id without the bit that tells Cluster from Local: both lists of a service
/// port share what they remember) and client address.
fn load_affinity_key(family: Family) -> Vec<Expr> {
    vec![clear_local_bit(GROUP, 0), load_source(family, 2)]
}

fn clear_local_bit(sreg: Reg, dreg: Reg) -> Expr {
    Expr::Bitwise { sreg, dreg, mask: GroupId::without_local_bit_mask().to_vec(), xor: vec![0; 8] }
}

fn dnat(family: Family) -> Expr {
    Expr::Dnat { family, address: ENDPOINT, port: ENDPOINT + address_regs(family) }
}

/// Loads destination address, protocol and destination port into registers 0 and on.
pub(super) fn load_tuple(family: Family) -> Vec<Expr> {
    let mut exprs = vec![load_destination(family, 0)];
    exprs.extend(load_port(address_regs(family)));
    exprs
}

/// Sets the packet mark to what stands for the group of the packet's frontend: the mark of a
/// virtual server.
pub(super) fn set_server_mark(table: IdTable, family: Family) -> Vec<Expr> {
    let mut exprs = vec![dummy_load(GROUP, 4)];
    exprs.extend(table.load_key(family));
    exprs.push(Expr::LookupData { set: table.frontends(family), sreg: 0, dreg: FRONTEND });
    exprs.push(Expr::SetMark { sreg: GROUP });
    exprs
}

/// Ends the rule unless the packet carries the mark of a virtual server.
pub(super) fn has_server_mark() -> Vec<Expr> {
    let mask = server_mark::MASK.to_ne_bytes().to_vec();
    vec![
        Expr::Meta { dreg: 0, key: MetaKey::Mark },
        Expr::Bitwise { sreg: 0, dreg: 0, mask, xor: vec![0; 4] },
        Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: server_mark::PREFIX.to_ne_bytes().to_vec() },
    ]
}

/// Ends the rule unless the source address is this node's.
pub(super) fn from_host() -> Vec<Expr> {
    vec![Expr::FibSourceType { dreg: 0 }, local_type()]
}

/// Sets the masquerade bit of the packet mark and leaves the others alone.
pub(super) fn set_mark(config: &NftConfig) -> Vec<Expr> {
    let mark = config.mark();
    vec![
        Expr::Meta { dreg: 0, key: MetaKey::Mark },
        Expr::Bitwise {
            sreg: 0,
            dreg: 0,
            mask: (!mark).to_ne_bytes().to_vec(),
            xor: mark.to_ne_bytes().to_vec(),
        },
        Expr::SetMark { sreg: 0 },
    ]
}

/// Ends the rule unless the packet comes from a pod (or, with `wanted` false, unless it does not).
pub(super) fn is_pod(detector: &Detector, family: Family, wanted: bool) -> Vec<Expr> {
    let op = if wanted { CmpOp::Eq } else { CmpOp::Neq };
    match detector {
        Detector::None => Vec::new(),
        Detector::Cidr(net) => in_network(load_source(family, 0), net, op),
        Detector::Interface(name) => {
            let mut data = name.clone().into_bytes();
            data.resize(16, 0);
            vec![Expr::Meta { dreg: 0, key: MetaKey::IifName }, Expr::Cmp { sreg: 0, op, data }]
        }
        Detector::InterfacePrefix(prefix) => vec![
            Expr::Meta { dreg: 0, key: MetaKey::IifName },
            Expr::Cmp { sreg: 0, op, data: prefix.clone().into_bytes() },
        ],
    }
}
