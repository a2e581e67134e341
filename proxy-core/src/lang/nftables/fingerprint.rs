//! Fingerprints of rules, by which a restarted or newer daemon tells whether a rule in the kernel
//! is still right.
//!
//! They are of names and of the kernel's numbers, and not of places in any list here: one
//! expression or set more leaves those of all rules as they are. What becomes another one is
//! written once more by the first start after an upgrade.
//!
//! What `sluice-sys` makes of an expression is part of its fingerprint only by [`ENCODING`].

use super::chain::Verdict;
use super::expr::{Expr, Reg};

/// Raise it when expressions that stay the same are encoded otherwise than before, such as with
/// other flags: only then are rules of an older version written once more.
const ENCODING: u64 = 0;

/// The fingerprint of a rule with these expressions.
pub(super) fn of(exprs: &[Expr]) -> u64 {
    let mut fingerprint = Fingerprint(ENCODING);
    exprs.iter().for_each(|expr| fingerprint.expr(expr));
    fingerprint.0
}

/// The hash of `rustc-hash` 1, which is written out here because that crate may change what it
/// computes.
struct Fingerprint(u64);

impl Fingerprint {
    fn number(&mut self, number: impl Into<u64>) {
        self.0 = (self.0.rotate_left(5) ^ number.into()).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    /// With the length, so that the end of one is not the beginning of the next.
    fn bytes(&mut self, bytes: &[u8]) {
        self.number(bytes.len() as u64);
        for chunk in bytes.chunks(8) {
            let mut word = [0; 8];
            word[..chunk.len()].copy_from_slice(chunk);
            self.number(u64::from_le_bytes(word));
        }
    }

    fn call(&mut self, name: &str, registers: &[Reg]) {
        self.bytes(name.as_bytes());
        self.bytes(registers);
    }

    fn expr(&mut self, expr: &Expr) {
        match expr {
            Expr::NetworkHeader { dreg, offset, len } => self.load("network header", *dreg, *offset, *len),
            Expr::TransportHeader { dreg, offset, len } => {
                self.load("transport header", *dreg, *offset, *len);
            }
            Expr::LinkHeader { dreg, offset, len } => self.load("link header", *dreg, *offset, *len),
            Expr::Meta { dreg, key } => {
                self.call("meta", &[*dreg]);
                self.number(*key as u32);
            }
            Expr::SetMark { sreg } => self.call("set mark", &[*sreg]),
            Expr::Cmp { sreg, op, data } => {
                self.call("cmp", &[*sreg]);
                self.number(*op as u32);
                self.bytes(data);
            }
            Expr::Bitwise { sreg, dreg, mask, xor } => {
                self.call("bitwise", &[*sreg, *dreg]);
                self.bytes(mask);
                self.bytes(xor);
            }
            Expr::Immediate { dreg, data } => {
                self.call("immediate", &[*dreg]);
                self.bytes(data);
            }
            Expr::Lookup { set, sreg } => self.look_up("lookup", set.name(), &[*sreg]),
            Expr::LookupData { set, sreg, dreg } => self.look_up("lookup data", set.name(), &[*sreg, *dreg]),
            Expr::LookupVerdict { set, sreg } => self.look_up("lookup verdict", set.name(), &[*sreg]),
            Expr::Dynset { set, op, key, data, timeout_ms } => {
                self.look_up("dynset", set.name(), &[*key, *data]);
                self.number(*op as u32);
                self.number(*timeout_ms);
            }
            Expr::Numgen { dreg, modulus, kind } => {
                self.call("numgen", &[*dreg]);
                self.number(*modulus);
                self.number(*kind as u32);
            }
            Expr::FibSourceType { dreg } => self.call("fib source type", &[*dreg]),
            Expr::FibDestinationType { dreg } => self.call("fib destination type", &[*dreg]),
            Expr::FibSourceDevice { dreg } => self.call("fib source device", &[*dreg]),
            Expr::CtState { dreg } => self.call("ct state", &[*dreg]),
            Expr::CtStatus { dreg } => self.call("ct status", &[*dreg]),
            Expr::Dnat { family, address, port } => {
                self.call("dnat", &[*address, *port]);
                self.bytes(family.name().as_bytes());
            }
            Expr::Masquerade => self.call("masquerade", &[]),
            Expr::RejectPortUnreachable => self.call("reject port unreachable", &[]),
            Expr::Verdict(verdict) => self.verdict(verdict),
            Expr::Counter => self.call("counter", &[]),
        }
    }

    fn load(&mut self, header: &str, dreg: Reg, offset: u32, len: u32) {
        self.call(header, &[dreg]);
        self.number(offset);
        self.number(len);
    }

    fn look_up(&mut self, name: &str, set: &str, registers: &[Reg]) {
        self.call(name, registers);
        self.bytes(set.as_bytes());
    }

    fn verdict(&mut self, verdict: &Verdict) {
        match verdict {
            Verdict::Accept => self.call("accept", &[]),
            Verdict::Drop => self.call("drop", &[]),
            Verdict::Jump(chain) => {
                self.call("jump", &[]);
                self.bytes(chain.as_str().as_bytes());
            }
            Verdict::Goto(chain) => {
                self.call("goto", &[]);
                self.bytes(chain.as_str().as_bytes());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::super::chain::ChainName;
    use super::super::expr::{CmpOp, MetaKey};
    use super::super::set::{Field, Set, SetSpec};
    use super::super::table::TableId;
    use super::*;
    use crate::net::Family;

    const SPEC: SetSpec = SetSpec::plain("guests", &[Field::Ipv4]);
    static FIRST: [Set; 1] = TableId::inet("one").sets([SPEC]);
    static SECOND: [Set; 2] = TableId::inet("one").sets([SetSpec::plain("new", &[Field::Ipv4]), SPEC]);

    fn look_up(set: &'static Set) -> u64 {
        of(&[
            Expr::Meta { dreg: 0, key: MetaKey::IifName },
            Expr::Cmp { sreg: 0, op: CmpOp::Eq, data: vec![b'l', b'o'] },
            Expr::Lookup { set: set.id(), sreg: 0 },
            Expr::Verdict(Verdict::Goto(ChainName::new("next"))),
        ])
    }

    #[test]
    fn fingerprints_stay_when_there_are_other_sets_and_are_the_same_everywhere() {
        assert_eq!(look_up(&FIRST[0]), look_up(&SECOND[1]));
        assert_ne!(look_up(&SECOND[0]), look_up(&SECOND[1]));
        assert_eq!(look_up(&FIRST[0]), 0x8195_f5ad_0fd1_5320);
    }

    /// Each differs from all others in one thing.
    #[test]
    fn whatever_differs_has_another_fingerprint() {
        let set = SECOND[1].id();
        let cmp = |sreg, op, data: &[u8]| vec![Expr::Cmp { sreg, op, data: data.to_vec() }];
        let bitwise = |mask: &[u8], xor: &[u8]| {
            vec![Expr::Bitwise { sreg: 0, dreg: 0, mask: mask.to_vec(), xor: xor.to_vec() }]
        };
        let goto = |name| Expr::Verdict(Verdict::Goto(ChainName::new(name)));
        let different = [
            vec![],
            vec![Expr::Counter],
            vec![Expr::Counter, Expr::Counter],
            vec![Expr::Counter, Expr::Masquerade],
            vec![Expr::Masquerade, Expr::Counter],
            cmp(0, CmpOp::Eq, &[0]),
            cmp(1, CmpOp::Eq, &[0]),
            cmp(0, CmpOp::Neq, &[0]),
            cmp(0, CmpOp::Eq, &[0, 0]),
            cmp(0, CmpOp::Eq, &[1]),
            bitwise(&[1], &[0]),
            bitwise(&[0], &[1]),
            vec![Expr::Lookup { set, sreg: 0 }],
            vec![Expr::Lookup { set: SECOND[0].id(), sreg: 0 }],
            vec![Expr::LookupVerdict { set, sreg: 0 }],
            vec![Expr::LookupData { set, sreg: 0, dreg: 1 }],
            vec![Expr::LookupData { set, sreg: 1, dreg: 0 }],
            vec![Expr::NetworkHeader { dreg: 0, offset: 1, len: 2 }],
            vec![Expr::NetworkHeader { dreg: 0, offset: 2, len: 1 }],
            vec![Expr::TransportHeader { dreg: 0, offset: 1, len: 2 }],
            vec![Expr::Dnat { family: Family::V4, address: 0, port: 1 }],
            vec![Expr::Dnat { family: Family::V6, address: 0, port: 1 }],
            vec![Expr::Verdict(Verdict::Drop)],
            vec![Expr::Verdict(Verdict::Accept)],
            vec![goto("a")],
            vec![goto("b")],
            vec![Expr::Verdict(Verdict::Jump(ChainName::new("a")))],
        ];
        let fingerprints: BTreeSet<u64> = different.iter().map(|exprs| of(exprs)).collect();
        assert_eq!(fingerprints.len(), different.len());
    }
}
