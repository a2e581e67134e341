//! The protocol of before, in which the model must find the faults that were found on machines.

use crate::explore::{Outcome, Protocol};
use crate::table::{Actor, DAEMON, Entry, Packet, State, Wrong, is_reply, number, replies};

/// What was wrong with it.
pub(crate) struct Before {
    /// Ports for masquerading.
    pub(crate) ports: u8,
    /// `expire` removed pairs that it had decided on from a dump.
    pub(crate) removes_later: bool,
    /// A first segment went on with half a flow.
    pub(crate) goes_on_by_half: bool,
}

fn next(mut state: State, who: usize, at: u8) -> State {
    state.actors[who].at = at;
    state
}

fn done(mut state: State, who: usize) -> State {
    let Actor { packet, key, out, .. } = state.actors[who];
    state.actors[who] = Actor { packet, key, out, ..Actor::IDLE };
    state
}

const OWN: usize = 0;

impl Protocol for Before {
    fn trim(&self, _: &mut Actor) {}

    fn calm(&self) -> Self {
        Before { ..*self }
    }

    fn run(&self, state: &State, who: usize) -> Outcome {
        let (mut s, actor) = (*state, state.actors[who]);
        let Actor { key, other, packet, .. } = actor;
        let begins = packet == Packet::First && !is_reply(key);
        let after = |s: State| if begins { next(s, who, 6) } else { done(s, who) };
        Ok(match actor.at {
            // find
            1 => match s.get(key) {
                None => vec![after(s)],
                Some(entry) => {
                    let actor = &mut s.actors[who];
                    actor.memos[OWN] = State::memo(key);
                    (actor.other, actor.over, actor.out) = (entry.other(key), entry.over, Some(entry.to));
                    vec![next(s, who, if packet == Packet::First { 2 } else { 3 })]
                }
            },
            // goes_on: whichever entry is at the other key
            2 => match s.get(other) {
                None if self.goes_on_by_half || is_reply(key) => vec![next(s, who, 3)],
                None => vec![next(s, who, 4)],
                Some(entry) if entry.over || actor.over => vec![next(s, who, 4)],
                Some(_) => vec![next(s, who, 3)],
            },
            // note
            3 => {
                if let Some(entry) = s.behind(actor.memos[OWN]) {
                    entry.over = packet == Packet::Last || entry.over && packet != Packet::Later;
                }
                s.touch(actor.memos[OWN]);
                vec![done(s, who)]
            }
            // forget: the other key, whatever is there
            4 => {
                s.actors[who].out = None;
                s.put(other, None);
                vec![next(s, who, 5)]
            }
            // ...and its own
            5 => {
                s.put(key, None);
                vec![after(s)]
            }
            // enter
            6 => (0..self.ports)
                .map(|port| {
                    let mut s = *state;
                    let added = s.add(replies(port), Entry::new(key));
                    s.actors[who].other = replies(port);
                    next(s, who, if added { 9 } else { 7 })
                })
                .collect(),
            // is_finished
            7 => match s.get(other) {
                Some(held) if !held.is_other_of(key) && !held.over => {
                    let actor = &mut s.actors[who];
                    actor.tried += 1;
                    vec![if actor.tried < 2 { next(s, who, 6) } else { done(s, who) }]
                }
                // gives_way: the key of the client's entry, whatever is there
                Some(held) if !held.is_other_of(key) => {
                    s.put(held.other(other), None);
                    vec![next(s, who, 8)]
                }
                _ => vec![next(s, who, 8)],
            },
            8 => {
                s.put(other, Some(Entry::new(key)));
                vec![next(s, who, 9)]
            }
            _ => {
                s.put(key, Some(Entry::new(number(other))));
                s.actors[who].out = Some(number(other));
                vec![done(s, who)]
            }
        })
    }

    fn expire(&self, state: &State) -> Outcome {
        let (mut s, actor) = (*state, state.actors[DAEMON]);
        let Actor { key, other, .. } = actor;
        Ok(match actor.at {
            // is_over
            1 => match s.get(other) {
                Some(entry) if !entry.old => vec![done(s, DAEMON)],
                _ if self.removes_later => vec![next(s, DAEMON, 2)],
                _ => {
                    (s.table[key as usize], s.table[other as usize]) = (None, None);
                    vec![done(s, DAEMON)]
                }
            },
            // delete_all
            at => {
                let key = if at == 2 { key } else { other };
                if s.get(key).is_some_and(|entry| !entry.old) {
                    return Err(Wrong::LiveFlowExpired);
                }
                s.put(key, None);
                vec![if at == 2 { next(s, DAEMON, 3) } else { done(s, DAEMON) }]
            }
        })
    }

    fn begin(&self) -> (u8, u8, u8) {
        (1, 1, 1)
    }

    fn is_program(&self, _: u8) -> bool {
        false
    }
}
