//! Chains and rules, where chains are called from, and what rules decide.

use std::fmt;

use super::bytes::Bytes;
use super::expr::Expr;
use super::fingerprint;

/// Numbers of hooks, `NF_INET_PRE_ROUTING` and on (linux/netfilter.h).
pub(crate) const PREROUTING: u32 = 0;
pub(crate) const INPUT: u32 = 1;
pub(crate) const FORWARD: u32 = 2;
pub(crate) const OUTPUT: u32 = 3;
pub(crate) const POSTROUTING: u32 = 4;

/// `NF_IP_PRI_RAW`: before connection tracking, which turns the addresses of answers back.
pub(crate) const RAW: i32 = -300;
/// `NF_IP_PRI_NAT_DST`.
pub(crate) const DNAT: i32 = -100;
/// `NF_IP_PRI_NAT_SRC`.
pub(crate) const SNAT: i32 = 100;

/// A chain's name; ours are at most 40 bytes.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChainName(Bytes<40>);

impl ChainName {
    /// A name.
    pub fn new(name: &str) -> Self {
        ChainName(Bytes::new(name.as_bytes()))
    }

    /// The name as text.
    pub fn as_str(&self) -> &str {
        std::str::from_utf8(self.0.as_slice()).unwrap_or_default()
    }
}

impl fmt::Debug for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl fmt::Display for ChainName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// What a rule or a verdict map's element does with the packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Verdict {
    /// Leaves this base chain.
    Accept,
    /// Drops the packet.
    Drop,
    /// Continues in a chain and comes back.
    Jump(ChainName),
    /// Continues in a chain for good.
    Goto(ChainName),
}

/// The hook of a base chain.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Hook {
    /// `filter` or `nat`.
    pub chain_type: &'static str,
    /// `NF_INET_*` hook number.
    pub number: u32,
    /// Priority.
    pub priority: i32,
}

/// A rule, with a comment that says what it is for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    /// What it is for; the kernel keeps it with the rule's fingerprint.
    pub about: &'static str,
    /// Its expressions.
    pub exprs: Vec<Expr>,
}

impl Rule {
    /// A rule.
    pub fn new(about: &'static str, exprs: Vec<Expr>) -> Self {
        Rule { about, exprs }
    }

    /// The comment in the kernel: what it is for, and a fingerprint of the expressions by which a
    /// restarted or newer daemon tells whether the rule is still right.
    pub fn comment(&self) -> String {
        format!("{} #{:016x}", self.about, fingerprint::of(&self.exprs))
    }
}

/// A chain with all its rules.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Chain {
    /// Name.
    pub name: ChainName,
    /// Hook, for base chains.
    pub hook: Option<Hook>,
    /// Rules in order.
    pub rules: Vec<Rule>,
}
