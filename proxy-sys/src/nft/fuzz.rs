//! Readers of nf_tables given anything.

use std::cell::RefCell;

use sluice_core::lang::nftables::{Bytes, Element, Key, Op, SetId, Strangers, Value, Verdict};
use sluice_core::nft::{Ledger, NftConfig, NodeView, TABLE};

use super::monitor::judge;
use super::{Nft, SUBSYSTEM, dropped, encode, loopback_refusals, observe, without_present};
use crate::fuzz::{HEAD, Kernel, answers, split};
use crate::netlink::messages;

/// A table as it is made: requests that make objects look as the answers that tell of them.
fn valid() -> Vec<(usize, Vec<u8>)> {
    let ledger = Ledger::new(NftConfig::default(), NodeView::default());
    let mut ops = ledger.create_skeleton();
    ops.extend(ledger.finish_load());
    ops.extend(TABLE.sets().map(element).map(Op::AddElement));
    let batch = encode::batch(&TABLE, &ops, 1);
    // Without begin and end.
    let of_table = |bytes: &Vec<u8>| bytes[5] == SUBSYSTEM as u8;
    split(batch.writer.bytes()).into_iter().filter(of_table).map(|bytes| (HEAD, bytes)).collect()
}

fn element(set: SetId) -> Element {
    let value = match set.rank() / 2 % 3 {
        0 => Value::None,
        1 => Value::Data(Bytes::new(&[10, 0, 0, 1])),
        _ => Value::Verdict(Verdict::Drop),
    };
    Element::new(set, Key::new(&[10, 0, 0, 1, 0, 80, 0, 0, 6, 0, 0, 0]), value)
}

#[test]
fn fuzz_nf_tables() {
    let valid = valid();
    // NFT_MSG_GET…, behind which there is NFT_MSG_NEW…
    let kernel = RefCell::new(Kernel::new(&valid, |request| request - 1));
    let mut strangers = Strangers::new(0);
    let mut turn = 0_u64;
    answers("nf-tables", &valid, |input| {
        turn += 1;
        for message in messages(input) {
            for own in [message.port, message.port.wrapping_add(1)] {
                judge(&mut strangers, &TABLE, own, &message);
            }
        }
        kernel.borrow_mut().tells(input, |socket| {
            let mut nft = Nft { socket };
            // Whatever is told, it is read or refused.
            match turn % 4 {
                0 => drop(observe(&mut nft, &TABLE)),
                1 => drop((nft.foreign_chains(), nft.foreign_jumps())),
                2 => drop((loopback_refusals(&mut nft), dropped(&mut nft))),
                _ => {
                    let set = TABLE.sets().nth(turn as usize % 8).unwrap();
                    let adds = vec![Op::AddElement(element(set))];
                    drop((nft.has_table(&TABLE), without_present(&mut nft, &TABLE, adds)));
                }
            }
            (nft.socket, ())
        });
        if turn.is_multiple_of(10_000) {
            strangers = Strangers::new(0);
        }
    });
}

#[test]
fn a_kernel_that_tells_the_truth_is_understood() {
    let valid = valid();
    let mut kernel = Kernel::new(&valid, |request| request - 1);
    let observed = kernel.tells(&[], |socket| {
        let mut nft = Nft { socket };
        let observed = observe(&mut nft, &TABLE).unwrap().unwrap();
        (nft.socket, observed)
    });
    assert!(observed.sets.len() > 20 && observed.chains.len() > 5, "{observed:?}");
    assert!(observed.chains.iter().any(|chain| !chain.rules.is_empty()));
    assert!(observed.elements.len() > 20);
}
