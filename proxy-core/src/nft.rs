//! Lowering a plan to nf_tables objects: all service state is map elements, chains exist per class.
//!
//! One table `inet sluice`, whose sets are declared in `sets`. A new connection is looked up in
//! `services4` (address, protocol, port) or `nodeports4` (protocol, port): the data there are the
//! group of endpoints and the *class* of the frontend, which the small map `entries4` takes to a
//! chain. The chain is shared by all frontends of the same masquerade rule, group size and affinity
//! timeout: it looks the group up once more, picks a slot, finds the endpoint in `endpoints4` and
//! translates. See `docs/nftables.md` for the whole packet path.
//!
//! Invariants:
//! - Group ids are hashes of the service port's identity, so the same plan gives the same elements
//!   in every run: nothing has to be remembered over a restart but the order of slots, which the
//!   kernel tells.
//! - What sets, chains and rules are, and how two states of a table are compared, is in
//!   [`crate::lang::nftables`]; what they mean for Services is here.

mod backlog;
mod classes;
pub mod eviction;
mod ledger;
mod lower;
pub mod quarantine;
mod sets;
mod skeleton;
mod timeouts;

pub use backlog::Backlog;
pub use classes::{ClassChain, IdTable, MasqueradeRule, Pick};
pub use ledger::Ledger;
pub use lower::{Lowered, Shared, lower};
pub(crate) use lower::{close_address, closed_address};
pub use sets::{SetKind, TABLE, sets};
pub use skeleton::{NodeView, chains, loopback_refusal_chain};

pub use crate::group::{GroupId, Member};
pub use crate::plan::Scheduler;

use crate::lang::nftables::{Chain, Expr, Op, Rule};
use crate::loopback::Loopback;
use crate::net::Family;
use crate::plan::Detector;

/// Operations that need every kind of set, chain and expression that any configuration does, and
/// leave nothing.
pub fn probe() -> Vec<Op> {
    let config = NftConfig { match_all_node_addresses: [true, true], ..NftConfig::default() };
    let mut ops = Ledger::new(config.clone(), NodeView::default()).create_skeleton();
    for family in Family::BOTH {
        let pick = Pick::Random { size: 2, affinity: Some(1) };
        let (table, masquerade) = (IdTable::Services, MasqueradeRule::Always);
        let chain = ClassChain { family, table, short: false, masquerade, pick }.chain(&config);
        ops.push(Op::AddChain(chain.name, None));
        ops.push(Op::SetRules(chain.name, chain.rules));
    }
    ops.push(Op::DeleteTable);
    ops
}

/// Operations that leave nothing of the table, which may exist or not, but chains at the NAT hooks
/// that do nothing.
///
/// When another backend takes over, connections that were translated here, or by kube-proxy, go on:
/// conntrack knows their translation, but applies it only as long as some NAT chain is registered,
/// and works only as long as some rule asks for it.
pub fn remnant(exists: bool) -> Vec<Op> {
    let chains = chains(&NftConfig::default(), &NodeView::default(), &[]).into_iter();
    let nat: Vec<Chain> =
        chains.filter(|chain| chain.hook.is_some_and(|hook| hook.chain_type == "nat")).collect();
    let mut ops = if exists { vec![Op::DeleteTable, Op::AddTable] } else { vec![Op::AddTable] };
    ops.extend(nat.iter().map(|chain| Op::AddChain(chain.name, chain.hook)));
    let tracking = || Rule::new("keep connection tracking on", vec![Expr::CtState { dreg: 0 }]);
    ops.extend(nat.iter().map(|chain| Op::SetRules(chain.name, vec![tracking()])));
    ops
}

/// Who picks the endpoint of a connection and translates it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Default)]
pub enum Balancer {
    /// The ruleset itself.
    #[default]
    Ruleset,
    /// IPVS ([`crate::ipvs`]). The ruleset does the rest: it filters and refuses before IPVS sees a
    /// connection, tells by marks who is masqueraded and who is short-circuited past eTP=Local, and
    /// masquerades behind IPVS.
    Ipvs,
}

/// Settings of the nftables backend that do not change while it runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NftConfig {
    /// The bit of the packet mark that asks for masquerading (reference 3.3), 0 to 31.
    pub masquerade_bit: u8,
    /// How pods are told from others, for IPv4 and IPv6.
    pub detectors: [Detector; 2],
    /// How endpoints are picked. There is no [`Scheduler::Maglev`] here: settings that ask for it
    /// are refused.
    pub scheduler: Scheduler,
    /// Whether node ports answer on all local addresses of a family, or on listed ones.
    pub match_all_node_addresses: [bool; 2],
    /// What becomes of node ports on loopback, for IPv4 and IPv6.
    pub loopback: [Loopback; 2],
    /// Who picks endpoints.
    pub balancer: Balancer,
}

impl Default for NftConfig {
    fn default() -> Self {
        NftConfig {
            masquerade_bit: 14,
            detectors: [Detector::None, Detector::None],
            scheduler: Scheduler::Random,
            match_all_node_addresses: [false, false],
            loopback: [Loopback::LocalStack; 2],
            balancer: Balancer::Ruleset,
        }
    }
}

impl NftConfig {
    /// The masquerade mark.
    pub fn mark(&self) -> u32 {
        1 << self.masquerade_bit
    }

    /// The detector of a family.
    pub fn detector(&self, family: Family) -> &Detector {
        &self.detectors[family as usize]
    }
}
