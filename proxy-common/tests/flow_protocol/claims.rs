//! The protocol of `proxy-ebpf/src/stage/flow.rs` and `flow/claim.rs`, and of `expire` in
//! `proxy-userspace/src/service/flows.rs`, step by step. Each step is named after the line of code
//! that it stands for.

use crate::explore::{Outcome, Protocol};
use crate::table::{Actor, DAEMON, Entry, IDLE, Packet, State, Wrong, is_reply, number, replies};

/// Steps of a packet's run.
mod at {
    /// `flow::find`
    pub(crate) const FIND: u8 = 1;
    /// `goes_on`: looks the other entry up
    pub(crate) const GOES_ON: u8 = 2;
    /// `note_seen`
    pub(crate) const NOTE: u8 = 3;
    /// `is_whole`: looks the other entry up
    pub(crate) const WHOLE: u8 = 4;
    /// `is_whole`: restores it
    pub(crate) const RESTORE: u8 = 5;
    /// `claim::touch`
    pub(crate) const TOUCH: u8 = 6;
    /// `end`: claims the packet's own entry
    pub(crate) const END_CLAIM: u8 = 7;
    /// `end_other`: looks the other one up
    pub(crate) const END_FIND: u8 = 8;
    /// ...claims it
    pub(crate) const END_OTHER: u8 = 9;
    /// ...and removes it
    pub(crate) const END_REMOVE: u8 = 10;
    /// `end`: removes the packet's own
    pub(crate) const END: u8 = 11;
    /// `enter`: tries a port
    pub(crate) const ENTER: u8 = 12;
    /// `takes_over`: looks up who holds it
    pub(crate) const HELD: u8 = 13;
    /// ...claims that
    pub(crate) const HELD_CLAIM: u8 = 14;
    /// `end_client`: looks the client's entry up
    pub(crate) const CLIENT: u8 = 15;
    /// ...claims it
    pub(crate) const CLIENT_CLAIM: u8 = 16;
    /// ...and removes it
    pub(crate) const CLIENT_REMOVE: u8 = 17;
    /// `takes_over`: replaces the entry of replies
    pub(crate) const REPLACE: u8 = 18;
    /// ...or gives up
    pub(crate) const GIVE_UP: u8 = 19;
    /// `enter`: adds the client's entry
    pub(crate) const ADD: u8 = 20;
    /// `give_way`: lets packets pass
    pub(crate) const PASS: u8 = 21;
    /// ...or gives up
    pub(crate) const PASS_GIVE_UP: u8 = 22;
}

/// Steps of the daemon, and of the program that it runs.
mod daemon {
    /// `expire`: looks the suspect's other entry up
    pub(crate) const OTHER: u8 = 1;
    /// `claim::obey`: claims the suspect
    pub(crate) const CLAIM: u8 = 2;
    /// ...its other entry
    pub(crate) const CLAIM_OTHER: u8 = 3;
    /// ...or gives up
    pub(crate) const GIVE_UP: u8 = 4;
    /// ...removes the other one
    pub(crate) const REMOVE_OTHER: u8 = 5;
    /// ...and the suspect
    pub(crate) const REMOVE: u8 = 6;
    /// `newest::end`: looks the other entry up of one that was written down; goes on as above
    pub(crate) const GIVES_WAY: u8 = 7;
}

const OWN: usize = 0;
const OTHER: usize = 1;
const CLIENT: usize = 2;
/// Ports that a run tries.
const TRIES: u8 = 2;

/// The protocol.
pub(crate) struct Claims {
    /// Ports for masquerading.
    pub(crate) ports: u8,
    /// Removing may fail for a moment (`EBUSY`).
    pub(crate) busy: bool,
    /// A full table may have dropped an entry that was claimed, so that another one is removed in
    /// its place.
    pub(crate) full: bool,
    /// Flows that only have begun give way.
    pub(crate) flood: bool,
    /// The first segment after a beginning is noted by its time, too.
    pub(crate) notes_more: bool,
}

impl Claims {
    /// A packet looks its flow up.
    fn find(&self, mut s: State, who: usize) -> Vec<State> {
        let Actor { key, packet, .. } = s.actors[who];
        match s.get(key) {
            None => vec![ended(s, who)],
            Some(entry) if entry.claimed.is_some() => vec![done(s, who)],
            Some(entry) if entry.passes => {
                let memo = State::memo(key);
                if let Some(entry) = s.behind(memo) {
                    entry.over = packet == Packet::Last || entry.over && packet == Packet::First;
                }
                s.touch(memo);
                vec![done(s, who)]
            }
            // Whenever it comes: what the entry has seen is not part of this.
            Some(entry) if packet == Packet::Strange => {
                let other = entry.other(key);
                let is_whole = s.get(other).is_some_and(|other| other.is_other_of(key));
                let actor = &mut s.actors[who];
                (actor.memos[OWN], actor.other) = (State::memo(key), other);
                vec![if is_whole { next(s, who, at::END_CLAIM) } else { done(s, who) }]
            }
            Some(entry) => {
                let actor = &mut s.actors[who];
                actor.memos[OWN] = State::memo(key);
                (actor.other, actor.over, actor.out) = (entry.other(key), entry.over, Some(entry.to));
                vec![next(s, who, if packet == Packet::First { at::GOES_ON } else { at::NOTE })]
            }
        }
    }

    /// A packet of a flow says what it has seen.
    fn note(&self, mut s: State, who: usize) -> Vec<State> {
        let Actor { key, packet, memos, .. } = s.actors[who];
        let own = memos[OWN];
        let is_old = s.behind(own).is_some_and(|entry| entry.old);
        let is_fresh = s.behind(own).is_some_and(|entry| entry.fresh);
        if let Some(entry) = s.behind(own) {
            entry.over = packet == Packet::Last || entry.over && packet != Packet::Later;
        }
        let whole = next(s, who, at::WHOLE);
        if packet == Packet::First && !is_reply(key) {
            return vec![done(s, who)];
        }
        let is_more = self.notes_more && is_fresh && packet == Packet::Later;
        if is_old || packet == Packet::First || is_more {
            return vec![whole];
        }
        // Only once a second.
        self.goes_by(&mut s, who);
        vec![whole, done(s, who)]
    }

    /// A packet has gone by an entry that it was in time for.
    fn goes_by(&self, state: &mut State, who: usize) {
        let Actor { key, packet, memos, .. } = state.actors[who];
        if let Some(entry) = state.behind(memos[OWN]) {
            entry.up |= self.flood && !is_reply(key) && packet == Packet::Later;
        }
    }

    /// Whether a connection gives way.
    fn harms(&self, state: &State) -> bool {
        let Actor { key, displaces, .. } = state.actors[DAEMON];
        displaces && state.get(key).is_some_and(|entry| entry.claimed == Some(DAEMON as u8) && entry.up)
    }

    /// `claim::remove`, of a claimed entry.
    fn remove(&self, state: &State, who: usize, key: u8, memo: usize) -> Result<Vec<(State, bool)>, Wrong> {
        if !self.full && !state.is_own(key, who) {
            return Err(Wrong::NotOnesOwn);
        }
        let mut found = Vec::new();
        let mut done = *state;
        done.put(key, None);
        found.push((done, true));
        if self.busy {
            let mut kept = *state;
            kept.release(state.actors[who].memos[memo]);
            found.push((kept, false));
        }
        Ok(found)
    }
}

fn next(mut state: State, who: usize, at: u8) -> State {
    state.actors[who].at = at;
    state
}

/// The run ends. What it knows does not matter any more, but for where its packet went.
fn done(mut state: State, who: usize) -> State {
    let Actor { packet, key, out, .. } = state.actors[who];
    state.actors[who] = Actor { packet, key, out, ..Actor::IDLE };
    state
}

/// After the flow of before has ended: a first segment begins another one.
fn ended(mut state: State, who: usize) -> State {
    let actor = &mut state.actors[who];
    (actor.memos, actor.over, actor.other) = ([None; 3], false, 0);
    if actor.packet == Packet::First && !is_reply(actor.key) {
        next(state, who, at::ENTER)
    } else {
        done(state, who)
    }
}

/// Another port, or none.
fn again(mut state: State, who: usize) -> State {
    let actor = &mut state.actors[who];
    actor.tried += 1;
    (actor.memos, actor.other) = ([None; 3], 0);
    if actor.tried < TRIES { next(state, who, at::ENTER) } else { done(state, who) }
}

impl Protocol for Claims {
    fn trim(&self, actor: &mut Actor) {
        let keeps = |actor: &mut Actor, memos: [bool; 3]| {
            for (memo, keep) in actor.memos.iter_mut().zip(memos) {
                *memo = memo.filter(|_| keep);
            }
        };
        match actor.at {
            at::FIND => {}
            at::GOES_ON | at::NOTE | at::WHOLE | at::RESTORE | at::TOUCH | at::END_CLAIM => {
                actor.over &= actor.at == at::GOES_ON;
                keeps(actor, [true, false, false]);
            }
            at::PASS | at::PASS_GIVE_UP => {
                actor.over = false;
                keeps(actor, [true, false, false]);
            }
            at::END_FIND..=at::END => {
                actor.over = false;
                keeps(actor, [true, matches!(actor.at, at::END_OTHER | at::END_REMOVE), false]);
            }
            _ => {
                actor.packet = Packet::First;
                let client = matches!(actor.at, at::CLIENT_CLAIM | at::CLIENT_REMOVE);
                let held = matches!(actor.at, at::HELD_CLAIM..=at::CLIENT_REMOVE | at::GIVE_UP);
                keeps(actor, [false, held, client]);
                if actor.at == at::ADD {
                    actor.tried = 0;
                }
            }
        }
    }

    fn calm(&self) -> Self {
        Claims { busy: false, ..*self }
    }

    fn run(&self, state: &State, who: usize) -> Outcome {
        let (mut s, actor) = (*state, state.actors[who]);
        let Actor { key, other, packet, .. } = actor;
        let own = actor.memos[OWN];
        Ok(match actor.at {
            at::FIND => self.find(s, who),
            at::GOES_ON => {
                let half = if is_reply(key) { at::NOTE } else { at::END_CLAIM };
                match s.get(other).filter(|other| other.is_other_of(key) && other.claimed.is_none()) {
                    None => vec![next(s, who, half)],
                    Some(entry) if entry.over || actor.over => vec![next(s, who, at::END_CLAIM)],
                    // Both were silent: a handshake that came to nothing, or not.
                    Some(entry) if entry.old => {
                        vec![next(s, who, at::END_CLAIM), next(s, who, at::NOTE)]
                    }
                    Some(_) => vec![next(s, who, at::NOTE)],
                }
            }
            at::NOTE => self.note(s, who),
            at::WHOLE => match s.get(other) {
                None => vec![next(s, who, at::RESTORE)],
                Some(entry) if entry.is_other_of(key) => vec![next(s, who, at::TOUCH)],
                Some(_) => vec![next(s, who, at::END_CLAIM)],
            },
            at::RESTORE => {
                s.add(other, Entry::new(number(key)));
                vec![next(s, who, at::TOUCH)]
            }
            at::TOUCH => {
                if s.touch(own) {
                    self.goes_by(&mut s, who);
                } else {
                    s.actors[who].out = None;
                }
                vec![done(s, who)]
            }
            at::END_CLAIM => {
                s.actors[who].out = None;
                let claimed = s.claim(own, who);
                vec![if claimed { next(s, who, at::END_FIND) } else { done(s, who) }]
            }
            at::END_FIND => match s.get(other).filter(|other| other.is_other_of(key)) {
                None => vec![next(s, who, if packet == Packet::Strange { at::PASS } else { at::END })],
                Some(_) => {
                    s.actors[who].memos[OTHER] = State::memo(other);
                    vec![next(s, who, at::END_OTHER)]
                }
            },
            at::END_OTHER => {
                let claimed = s.claim(actor.memos[OTHER], who);
                let or = if packet == Packet::Strange { at::PASS_GIVE_UP } else { at::END };
                vec![next(s, who, if claimed { at::END_REMOVE } else { or })]
            }
            at::END_REMOVE => {
                let removed = self.remove(&s, who, other, OTHER)?;
                let then = |gone| match packet {
                    Packet::Strange if gone => at::PASS,
                    Packet::Strange => at::PASS_GIVE_UP,
                    _ => at::END,
                };
                removed.into_iter().map(|(s, gone)| next(s, who, then(gone))).collect()
            }
            at::PASS => {
                if let Some(entry) = s.behind(own) {
                    (entry.passes, entry.old, entry.over) = (true, false, false);
                }
                s.release(own);
                vec![done(s, who)]
            }
            at::PASS_GIVE_UP => {
                s.release(own);
                vec![done(s, who)]
            }
            at::END => {
                let removed = self.remove(&s, who, key, OWN)?;
                removed.into_iter().map(|(s, gone)| if gone { ended(s, who) } else { done(s, who) }).collect()
            }
            _ => return self.enter(state, who),
        })
    }

    fn expire(&self, state: &State) -> Outcome {
        let (mut s, actor) = (*state, state.actors[DAEMON]);
        let Actor { key, other, memos, .. } = actor;
        let finish = |removed: Vec<(State, bool)>, to: u8| {
            removed
                .into_iter()
                .map(|(s, _)| if to == IDLE { done(s, DAEMON) } else { next(s, DAEMON, to) })
                .collect()
        };
        Ok(match actor.at {
            daemon::OTHER => match s.get(other).filter(|other| other.is_other_of(key)) {
                Some(entry) if !entry.old || entry.claimed.is_some() => vec![done(s, DAEMON)],
                Some(_) => {
                    s.actors[DAEMON].memos[OTHER] = State::memo(other);
                    vec![next(s, DAEMON, daemon::CLAIM)]
                }
                None => vec![next(s, DAEMON, daemon::CLAIM)],
            },
            daemon::GIVES_WAY => {
                if s.get(other).is_some_and(|other| other.is_other_of(key)) {
                    s.actors[DAEMON].memos[OTHER] = State::memo(other);
                }
                vec![next(s, DAEMON, daemon::CLAIM)]
            }
            daemon::REMOVE_OTHER | daemon::REMOVE if self.harms(&s) => return Err(Wrong::ConnectionGaveWay),
            daemon::CLAIM => {
                let claimed = s.claim(memos[OWN], DAEMON);
                let then = if memos[OTHER].is_some() { daemon::CLAIM_OTHER } else { daemon::REMOVE };
                vec![if claimed { next(s, DAEMON, then) } else { done(s, DAEMON) }]
            }
            daemon::CLAIM_OTHER => {
                let claimed = s.claim(memos[OTHER], DAEMON);
                vec![next(s, DAEMON, if claimed { daemon::REMOVE_OTHER } else { daemon::GIVE_UP })]
            }
            daemon::GIVE_UP => {
                s.release(memos[OWN]);
                vec![done(s, DAEMON)]
            }
            daemon::REMOVE_OTHER => finish(self.remove(&s, DAEMON, other, OTHER)?, daemon::REMOVE),
            _ => finish(self.remove(&s, DAEMON, key, OWN)?, IDLE),
        })
    }

    fn begin(&self) -> (u8, u8, u8) {
        (at::FIND, daemon::OTHER, daemon::GIVES_WAY)
    }

    fn is_program(&self, daemon_at: u8) -> bool {
        daemon_at >= daemon::CLAIM
    }
}

impl Claims {
    /// Steps of `flow::enter`.
    fn enter(&self, state: &State, who: usize) -> Outcome {
        let (mut s, actor) = (*state, state.actors[who]);
        let Actor { key, other, memos, .. } = actor;
        let first = s.get(other).map_or(0, |held| held.other(other));
        Ok(match actor.at {
            // By chance.
            at::ENTER => (0..self.ports)
                .map(|port| {
                    let mut s = *state;
                    let added = s.add(replies(port), Entry::new(key));
                    s.actors[who].other = replies(port);
                    next(s, who, if added { at::ADD } else { at::HELD })
                })
                .collect(),
            at::HELD => match s.get(other) {
                None => {
                    s.add(other, Entry::new(key));
                    vec![next(s, who, at::ADD)]
                }
                Some(held) if held.claimed.is_none() && (held.is_other_of(key) || held.over) => {
                    s.actors[who].memos[OTHER] = State::memo(other);
                    vec![next(s, who, at::HELD_CLAIM)]
                }
                Some(_) => vec![again(s, who)],
            },
            at::HELD_CLAIM => {
                let is_own = s.get(other).is_some_and(|held| held.is_other_of(key));
                let then = if is_own { at::REPLACE } else { at::CLIENT };
                let claimed = s.claim(memos[OTHER], who);
                vec![if claimed { next(s, who, then) } else { again(s, who) }]
            }
            at::CLIENT => match s.get(first).filter(|entry| entry.is_other_of(other)) {
                None => vec![next(s, who, at::REPLACE)],
                Some(_) => {
                    s.actors[who].memos[CLIENT] = State::memo(first);
                    vec![next(s, who, at::CLIENT_CLAIM)]
                }
            },
            at::CLIENT_CLAIM => {
                let claimed = s.claim(memos[CLIENT], who);
                vec![next(s, who, if claimed { at::CLIENT_REMOVE } else { at::GIVE_UP })]
            }
            at::CLIENT_REMOVE => {
                let first = memos[CLIENT].map_or(first, |memo| memo.key);
                let removed = self.remove(&s, who, first, CLIENT)?;
                let then = |gone| if gone { at::REPLACE } else { at::GIVE_UP };
                removed.into_iter().map(|(s, gone)| next(s, who, then(gone))).collect()
            }
            at::REPLACE => {
                if !self.full && !s.is_own(other, who) {
                    return Err(Wrong::NotOnesOwn);
                }
                s.put(other, Some(Entry::new(key)));
                vec![next(s, who, at::ADD)]
            }
            at::GIVE_UP => {
                s.release(memos[OTHER]);
                vec![again(s, who)]
            }
            _ => {
                s.add(key, Entry { fresh: self.flood, ..Entry::new(number(other)) });
                // Its own, or that of who was faster.
                s.actors[who].out = s.get(key).map(|entry| entry.to);
                vec![done(s, who)]
            }
        })
    }
}
