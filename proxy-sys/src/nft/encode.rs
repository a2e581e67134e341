//! From operations to nf_tables messages. Attribute numbers: linux/netfilter/nf_tables.h.

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE};
use sluice_core::lang::nftables::{
    ChainName, Element, ElementId, Expr, Hook, MetaKey, Op, Reg, Rule, SetId, SetSpec, SetValue, Table,
    Value, Verdict,
};
use sluice_core::net::Family;

use super::{Command, acknowledge, family_number};
use crate::netlink::Writer;

const BATCH_BEGIN: u16 = 0x10;
const BATCH_END: u16 = 0x11;
const SUBSYSTEM: u16 = 10;
/// Elements of one message are nested in one attribute, whose length has 16 bits.
const MESSAGE_LIMIT: usize = 48 * 1024;

/// An encoded transaction.
pub(super) struct Batch {
    pub(super) writer: Writer,
    /// Messages between begin and end.
    pub(super) messages: u32,
    /// For each operation, the offset of its message.
    pub(super) starts: Vec<u32>,
}

impl Batch {
    /// Names the operations behind a message, for errors.
    pub(super) fn describe(&self, offset: u32, ops: &[Op]) -> String {
        let at = self.starts.partition_point(|start| *start < offset);
        match (ops.get(at), self.starts.get(at)) {
            (Some(op), Some(start)) if *start == offset => format!("nf_tables transaction, {}", name(op)),
            _ => "nf_tables transaction".to_owned(),
        }
    }
}

fn name(op: &Op) -> String {
    match op {
        Op::DeleteTable => "delete the table".into(),
        Op::AddTable => "create the table".into(),
        Op::AddSet(spec) => format!("create set {}", spec.name),
        Op::AddChain(name, _) => format!("create chain {name}"),
        Op::SetRules(name, _) => format!("write rules of chain {name}"),
        Op::DeleteChain(name) => format!("delete chain {name}"),
        Op::EmptySet(id) => format!("empty set {}", id.name()),
        Op::AddElement(element) => {
            format!("add elements from {:?} to {}", element.id.key, element.id.set.name())
        }
        Op::DeleteElement(id) => format!("delete elements from {:?} of {}", id.key, id.set.name()),
    }
}

/// Encodes one transaction whose first message (the begin) has the given sequence number.
pub(super) fn batch(table: &Table, ops: &[Op], first: u32) -> Batch {
    let mut writer = Writer::default();
    let mut encoder = Encoder::new(&mut writer, table, first);
    let mut starts = Vec::with_capacity(ops.len());
    let mut rest = ops;
    while let Some(op) = rest.first() {
        let used = encoder.op(op, rest);
        starts.resize(starts.len() + used, encoder.messages);
        rest = &rest[used..];
    }
    let messages = encoder.finish();
    Batch { writer, messages, starts }
}

/// Writes the messages of a transaction.
struct Encoder<'a> {
    writer: &'a mut Writer,
    table: &'static str,
    family: u8,
    first: u32,
    messages: u32,
}

impl<'a> Encoder<'a> {
    fn new(writer: &'a mut Writer, table: &Table, first: u32) -> Self {
        writer.begin(BATCH_BEGIN, 0, first, 0, SUBSYSTEM);
        writer.end();
        Encoder { writer, table: table.id.name, family: family_number(table), first, messages: 0 }
    }

    /// Ends the transaction; the last message before the end asks for an acknowledgement.
    fn finish(self) -> u32 {
        acknowledge(self.writer);
        let sequence = self.first.wrapping_add(self.messages).wrapping_add(1);
        self.writer.begin(BATCH_END, 0, sequence, 0, SUBSYSTEM);
        self.writer.end();
        self.messages
    }

    fn begin(&mut self, command: Command, flags: u16) {
        self.messages += 1;
        let sequence = self.first.wrapping_add(self.messages);
        self.writer.begin(command.message_type(), flags, sequence, self.family, 0);
    }

    /// Writes the first of `ops`, with as many of the same kind behind it as fit into one message;
    /// returns how many were written.
    fn op(&mut self, op: &Op, ops: &[Op]) -> usize {
        match op {
            Op::DeleteTable => self.table(Command::DelTable, 0),
            Op::AddTable => self.table(Command::NewTable, NLM_F_CREATE),
            Op::AddSet(spec) => self.set(spec),
            Op::AddChain(name, hook) => self.chain(name, hook.as_ref()),
            Op::SetRules(name, rules) => self.rules(name, rules),
            Op::DeleteChain(name) => self.delete_chain(name),
            Op::EmptySet(id) => self.empty_set(*id),
            Op::AddElement(element) => return self.elements(Command::NewSetElem, element.id.set, ops),
            Op::DeleteElement(id) => return self.elements(Command::DelSetElem, id.set, ops),
        }
        1
    }

    fn table(&mut self, command: Command, flags: u16) {
        self.begin(command, flags);
        self.writer.text(1, self.table);
        self.writer.end();
    }

    fn set(&mut self, spec: &SetSpec) {
        const MAP: u32 = 0x8;
        const TIMEOUT: u32 = 0x10;
        const EVAL: u32 = 0x20;
        self.begin(Command::NewSet, NLM_F_CREATE);
        let mut flags = if spec.value == SetValue::None { 0 } else { MAP };
        if spec.dynamic {
            flags |= TIMEOUT | EVAL;
        }
        let writer = &mut *self.writer;
        writer.text(1, self.table);
        writer.text(2, spec.name);
        writer.u32(3, flags);
        writer.u32(4, spec.key_type);
        writer.u32(5, spec.key_len);
        match spec.value {
            SetValue::None => {}
            SetValue::Data(len, data_type) => {
                writer.u32(6, data_type);
                writer.u32(7, len);
            }
            SetValue::Verdict => writer.u32(6, 0xffff_ff00),
        }
        if spec.size > 0 {
            let nest = writer.nest(9);
            writer.u32(1, spec.size);
            writer.close(nest);
        }
        writer.u32(10, self.messages);
        writer.end();
    }

    fn chain(&mut self, name: &ChainName, hook: Option<&Hook>) {
        self.begin(Command::NewChain, NLM_F_CREATE);
        let writer = &mut *self.writer;
        writer.text(1, self.table);
        writer.text(3, name.as_str());
        if let Some(hook) = hook {
            let nest = writer.nest(4);
            writer.u32(1, hook.number);
            writer.attr(2, &hook.priority.to_be_bytes());
            writer.close(nest);
            writer.text(7, hook.chain_type);
        }
        writer.end();
    }

    fn delete_chain(&mut self, name: &ChainName) {
        self.delete_rules(name);
        self.begin(Command::DelChain, 0);
        self.writer.text(1, self.table);
        self.writer.text(3, name.as_str());
        self.writer.end();
    }

    fn delete_rules(&mut self, chain: &ChainName) {
        self.begin(Command::DelRule, 0);
        self.writer.text(1, self.table);
        self.writer.text(2, chain.as_str());
        self.writer.end();
    }

    fn rules(&mut self, chain: &ChainName, rules: &[Rule]) {
        self.delete_rules(chain);
        for rule in rules {
            self.begin(Command::NewRule, NLM_F_CREATE | NLM_F_APPEND);
            self.writer.text(1, self.table);
            self.writer.text(2, chain.as_str());
            let nest = self.writer.nest(4);
            for expr in &rule.exprs {
                expression(self.writer, expr);
            }
            self.writer.close(nest);
            self.writer.attr(7, &comment(&rule.comment()));
            self.writer.end();
        }
    }

    fn empty_set(&mut self, id: SetId) {
        self.begin(Command::DelSetElem, 0);
        self.writer.text(1, self.table);
        self.writer.text(2, id.name());
        self.writer.end();
    }

    fn elements(&mut self, command: Command, set: SetId, ops: &[Op]) -> usize {
        // Without NLM_F_EXCL an element that is there already, with the same value, is no error: a
        // dump that the kernel writes while it resizes a set can miss elements, which are then
        // written once more.
        let flags = match command {
            Command::NewSetElem => NLM_F_CREATE,
            _ => 0,
        };
        self.begin(command, flags);
        self.writer.text(1, self.table);
        self.writer.text(2, set.name());
        let list = self.writer.nest(3);
        let mut written = 0;
        for op in ops {
            match (command, op) {
                (Command::NewSetElem, Op::AddElement(e)) if e.id.set == set => element(self.writer, e),
                (Command::DelSetElem, Op::DeleteElement(id)) if id.set == set => key(self.writer, id),
                _ => break,
            }
            written += 1;
            if self.writer.message_len() > MESSAGE_LIMIT {
                break;
            }
        }
        self.writer.close(list);
        self.writer.end();
        written
    }
}

/// nft's user data of a rule: type 0 is the comment, a text with its final zero.
fn comment(text: &str) -> Vec<u8> {
    let text = &text.as_bytes()[..text.len().min(250)];
    let mut data = vec![0, text.len() as u8 + 1];
    data.extend(text);
    data.push(0);
    data
}

fn element(writer: &mut Writer, element: &Element) {
    let item = writer.nest(1);
    let nest = writer.nest(1);
    writer.attr(1, element.id.key.as_slice());
    writer.close(nest);
    match &element.value {
        Value::None => {}
        Value::Data(data) => {
            let nest = writer.nest(2);
            writer.attr(1, data.as_slice());
            writer.close(nest);
        }
        Value::Verdict(verdict) => {
            let nest = writer.nest(2);
            verdict_data(writer, verdict);
            writer.close(nest);
        }
    }
    writer.close(item);
}

pub(super) fn key(writer: &mut Writer, id: &ElementId) {
    let item = writer.nest(1);
    let nest = writer.nest(1);
    writer.attr(1, id.key.as_slice());
    writer.close(nest);
    writer.close(item);
}

fn verdict_data(writer: &mut Writer, verdict: &Verdict) {
    const JUMP: i32 = -3;
    const GOTO: i32 = -4;
    let (code, chain) = match verdict {
        Verdict::Drop => (0, None),
        Verdict::Accept => (1, None),
        Verdict::Jump(chain) => (JUMP, Some(chain)),
        Verdict::Goto(chain) => (GOTO, Some(chain)),
    };
    let nest = writer.nest(2);
    writer.attr(1, &code.to_be_bytes());
    if let Some(chain) = chain {
        writer.text(2, chain.as_str());
    }
    writer.close(nest);
}

/// `NFT_REG32_00` and on.
fn reg(register: Reg) -> u32 {
    8 + u32::from(register)
}

fn expression(writer: &mut Writer, expr: &Expr) {
    let item = writer.nest(1);
    writer.text(1, kernel_name(expr));
    let data = writer.nest(2);
    match expr {
        Expr::LinkHeader { dreg, offset, len } => payload(writer, *dreg, 0, *offset, *len),
        Expr::NetworkHeader { dreg, offset, len } => payload(writer, *dreg, 1, *offset, *len),
        Expr::TransportHeader { dreg, offset, len } => payload(writer, *dreg, 2, *offset, *len),
        Expr::Meta { dreg, key } => {
            writer.u32(1, reg(*dreg));
            writer.u32(2, *key as u32);
        }
        Expr::SetMark { sreg } => {
            writer.u32(2, MetaKey::Mark as u32);
            writer.u32(3, reg(*sreg));
        }
        Expr::Cmp { sreg, op, data } => {
            writer.u32(1, reg(*sreg));
            writer.u32(2, *op as u32);
            value(writer, 3, data);
        }
        Expr::Bitwise { sreg, dreg, mask, xor } => {
            writer.u32(1, reg(*sreg));
            writer.u32(2, reg(*dreg));
            writer.u32(3, mask.len() as u32);
            value(writer, 4, mask);
            value(writer, 5, xor);
        }
        Expr::Immediate { dreg, data } => {
            writer.u32(1, reg(*dreg));
            value(writer, 2, data);
        }
        Expr::Lookup { set, sreg } => lookup(writer, *set, *sreg, None),
        Expr::LookupData { set, sreg, dreg } => lookup(writer, *set, *sreg, Some(reg(*dreg))),
        Expr::LookupVerdict { set, sreg } => lookup(writer, *set, *sreg, Some(0)),
        Expr::Dynset { set, op, key, data, timeout_ms } => {
            writer.text(1, set.name());
            writer.u32(3, *op as u32);
            writer.u32(4, reg(*key));
            writer.u32(5, reg(*data));
            writer.u64(6, *timeout_ms);
        }
        Expr::Numgen { dreg, modulus, kind } => {
            writer.u32(1, reg(*dreg));
            writer.u32(2, *modulus);
            writer.u32(3, *kind as u32);
        }
        Expr::FibSourceType { dreg } => fib(writer, *dreg, ADDRESS_TYPE, 1),
        Expr::FibDestinationType { dreg } => fib(writer, *dreg, ADDRESS_TYPE, 2),
        // NFTA_FIB_F_SADDR, NFTA_FIB_F_IIF
        Expr::FibSourceDevice { dreg } => fib(writer, *dreg, DEVICE, 1 | 8),
        Expr::CtState { dreg } => {
            writer.u32(1, reg(*dreg));
            writer.u32(2, 0);
        }
        Expr::CtStatus { dreg } => {
            writer.u32(1, reg(*dreg));
            writer.u32(2, 2);
        }
        Expr::Dnat { family, address, port } => {
            writer.u32(1, 1);
            writer.u32(2, if *family == Family::V4 { 2 } else { 10 });
            writer.u32(3, reg(*address));
            writer.u32(5, reg(*port));
        }
        // NF_NAT_RANGE_PROTO_RANDOM_FULLY
        Expr::Masquerade => writer.u32(1, 1 << 4),
        // NFT_REJECT_ICMPX_UNREACH, NFT_REJECT_ICMPX_PORT_UNREACH
        Expr::RejectPortUnreachable => {
            writer.u32(1, 2);
            writer.attr(2, &[1]);
        }
        // The kernel begins at zero.
        Expr::Counter => {}
        Expr::Verdict(verdict) => {
            writer.u32(1, 0);
            let nest = writer.nest(2);
            verdict_data(writer, verdict);
            writer.close(nest);
        }
    }
    writer.close(data);
    writer.close(item);
}

fn kernel_name(expr: &Expr) -> &'static str {
    match expr {
        Expr::LinkHeader { .. } | Expr::NetworkHeader { .. } | Expr::TransportHeader { .. } => "payload",
        Expr::Meta { .. } | Expr::SetMark { .. } => "meta",
        Expr::Cmp { .. } => "cmp",
        Expr::Bitwise { .. } => "bitwise",
        Expr::Immediate { .. } | Expr::Verdict(_) => "immediate",
        Expr::Lookup { .. } | Expr::LookupData { .. } | Expr::LookupVerdict { .. } => "lookup",
        Expr::Dynset { .. } => "dynset",
        Expr::Numgen { .. } => "numgen",
        Expr::FibSourceType { .. } | Expr::FibDestinationType { .. } | Expr::FibSourceDevice { .. } => "fib",
        Expr::CtState { .. } | Expr::CtStatus { .. } => "ct",
        Expr::Dnat { .. } => "nat",
        Expr::Masquerade => "masq",
        Expr::RejectPortUnreachable => "reject",
        Expr::Counter => "counter",
    }
}

fn payload(writer: &mut Writer, dreg: Reg, base: u32, offset: u32, len: u32) {
    writer.u32(1, reg(dreg));
    writer.u32(2, base);
    writer.u32(3, offset);
    writer.u32(4, len);
}

fn lookup(writer: &mut Writer, set: SetId, sreg: Reg, dreg: Option<u32>) {
    writer.text(1, set.name());
    writer.u32(2, reg(sreg));
    if let Some(dreg) = dreg {
        writer.u32(3, dreg);
    }
}

/// `NFT_FIB_RESULT_OIF`.
const DEVICE: u32 = 1;
/// `NFT_FIB_RESULT_ADDRTYPE`.
const ADDRESS_TYPE: u32 = 3;

/// What the routing tables say of the source (flag 1) or destination (flag 2) address.
fn fib(writer: &mut Writer, dreg: Reg, result: u32, flags: u32) {
    writer.u32(1, reg(dreg));
    writer.u32(2, result);
    writer.u32(3, flags);
}

fn value(writer: &mut Writer, kind: u16, data: &[u8]) {
    let nest = writer.nest(kind);
    writer.attr(1, data);
    writer.close(nest);
}
