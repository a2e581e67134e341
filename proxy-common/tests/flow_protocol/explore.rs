//! Goes through every state that can be reached, and from each in which nobody is at work, through
//! every way a client's connection may take.

use std::collections::{HashMap, HashSet};
use std::hash::{BuildHasherDefault, Hasher};

use crate::table::{Actor, DAEMON, EACH, Entry, IDLE, KEYS, Packet, State, Table, Wrong, is_reply, replies};

/// The states that a step may lead to, or what is wrong with it.
pub(crate) type Outcome = Result<Vec<State>, Wrong>;

/// What programs and daemon do.
pub(crate) trait Protocol {
    /// Clears what a run does not need any more.
    fn trim(&self, actor: &mut Actor);
    /// The same without what fails by chance, for a while.
    fn calm(&self) -> Self;
    /// One step of a packet's run.
    fn run(&self, state: &State, who: usize) -> Outcome;
    /// One step of the daemon.
    fn expire(&self, state: &State) -> Outcome;
    /// The first steps of both, and of a program that a flow gives way to.
    fn begin(&self) -> (u8, u8, u8);
    /// Whether the daemon is in a program in the kernel, which takes no time that counts.
    fn is_program(&self, daemon_at: u8) -> bool;
}

/// How much happens at once.
#[derive(Clone, Copy, Debug)]
pub(crate) struct World {
    /// Packets at once, on so many processors.
    pub(crate) processors: usize,
    /// Ports for masquerading.
    pub(crate) ports: u8,
    /// The daemon looks for silent flows meanwhile.
    pub(crate) daemon: bool,
    /// A full table drops entries.
    pub(crate) full: bool,
    /// Clients have connections straight to the endpoint.
    pub(crate) straight: bool,
    /// So many flows begin that those which only have begun give way.
    pub(crate) flood: bool,
}

/// What was found.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    /// So many states, all of them right.
    Right(usize),
    /// Something that must not be done.
    Wrong(Wrong, State),
    /// A client's connections never get through from here.
    Stuck(u8, State),
}

/// Looks at everything.
pub(crate) fn explore(protocol: &impl Protocol, world: World) -> Verdict {
    let mut attempts = Attempts { protocol: protocol.calm(), known: HashMap::default() };
    let mut seen: HashSet<State, Hashing> = HashSet::from_iter([State::EMPTY]);
    let mut next = vec![State::EMPTY];
    while let Some(state) = next.pop() {
        if state.actors.iter().all(|actor| actor.at == IDLE)
            && let Some(client) =
                (0..EACH).find(|client| !attempts.get_through(state.table, *client, ATTEMPTS))
        {
            return Verdict::Stuck(client, state);
        }
        let found = match steps(protocol, world, &state) {
            Ok(found) => found,
            Err(wrong) => return Verdict::Wrong(wrong, state),
        };
        next.extend(
            found
                .into_iter()
                .map(|state| canonical(state, protocol, world))
                .filter(|state| seen.insert(*state)),
        );
    }
    Verdict::Right(seen.len())
}

/// A fast hash: there are millions of states.
#[derive(Default)]
struct Mix(u64);

type Hashing = BuildHasherDefault<Mix>;

impl Hasher for Mix {
    fn write(&mut self, bytes: &[u8]) {
        bytes.iter().for_each(|byte| self.write_u8(*byte));
    }

    fn write_u8(&mut self, byte: u8) {
        self.0 = (self.0.rotate_left(5) ^ u64::from(byte)).wrapping_mul(0x517c_c1b7_2722_0a95);
    }

    fn write_isize(&mut self, number: isize) {
        self.write_u8(number as u8);
    }

    fn finish(&self) -> u64 {
        self.0
    }
}

/// One of the states that are the same but for the numbers of clients, ports and processors,
/// without what does not matter any more.
fn canonical(mut state: State, protocol: &impl Protocol, world: World) -> State {
    for (who, actor) in state.actors.iter_mut().enumerate() {
        if actor.at == IDLE {
            *actor = Actor::IDLE;
        } else if who != DAEMON {
            actor.out = None;
            protocol.trim(actor);
        }
    }
    let clients = [state, state.renumbered(|key| if is_reply(key) { key } else { 1 - key })];
    let all = clients.into_iter().flat_map(|state| {
        let ports = |key| if is_reply(key) && world.ports > 1 { 2 * EACH + 1 - key } else { key };
        [state, state.renumbered(ports)]
    });
    let least = |all: &mut dyn Iterator<Item = State>| all.min().unwrap_or(state);
    if world.processors == 1 {
        return least(&mut all.into_iter());
    }
    least(&mut all.flat_map(|state| [state, state.on_other_processors()]))
}

fn steps(protocol: &impl Protocol, world: World, state: &State) -> Outcome {
    let mut found = Vec::new();
    for who in 0..world.processors {
        if state.actors[who].at != IDLE {
            found.extend(protocol.run(state, who)?);
            continue;
        }
        for key in 0..EACH + world.ports {
            for packet in [Packet::First, Packet::Later, Packet::Last] {
                found.push(with(protocol, state, who, key, packet));
            }
            if world.straight && is_reply(key) {
                found.push(with(protocol, state, who, key, Packet::Strange));
            }
        }
    }
    if state.actors[DAEMON].at != IDLE {
        found.extend(protocol.expire(state)?);
    } else {
        if world.daemon {
            found.extend((0..KEYS).filter_map(|key| suspect(protocol, state, key)));
        }
        if world.flood {
            found.extend((0..EACH).filter_map(|key| displaced(protocol, state, key)));
        }
    }
    let is_still = state.actors[..DAEMON].iter().all(|actor| actor.at == IDLE);
    for key in 0..KEYS {
        let Some(entry) = state.get(key) else { continue };
        // A minute, between packets.
        if is_still && !entry.old && !protocol.is_program(state.actors[DAEMON].at) {
            let mut later = *state;
            later.table[key as usize] = Some(Entry { old: true, ..entry });
            found.push(later);
        }
        if world.full {
            let mut without = *state;
            without.put(key, None);
            found.push(without);
        }
    }
    Ok(found)
}

/// A packet comes.
fn with(protocol: &impl Protocol, state: &State, who: usize, key: u8, packet: Packet) -> State {
    let mut state = *state;
    state.actors[who] = Actor { at: protocol.begin().0, packet, key, ..Actor::IDLE };
    state
}

/// The daemon's dump has an entry that was silent for long.
fn suspect(protocol: &impl Protocol, state: &State, key: u8) -> Option<State> {
    let entry = state.get(key).filter(|entry| entry.old && entry.claimed.is_none())?;
    let mut state = *state;
    let memos = [State::memo(key), None, None];
    let other = entry.other(key);
    state.actors[DAEMON] = Actor { at: protocol.begin().1, key, other, memos, ..Actor::IDLE };
    Some(state)
}

/// A ring of flows has begun since the one of this key, and its slot says when it was entered.
fn displaced(protocol: &impl Protocol, state: &State, key: u8) -> Option<State> {
    let entry = state.get(key).filter(|entry| entry.fresh && entry.claimed.is_none())?;
    let mut state = *state;
    let (at, other, memos) = (protocol.begin().2, entry.other(key), [State::memo(key), None, None]);
    state.actors[DAEMON] = Actor { at, key, other, displaces: true, memos, ..Actor::IDLE };
    Some(state)
}

/// First segments that a client sends before it gives up.
const ATTEMPTS: u32 = 4;

/// Connections while nobody else sends anything.
struct Attempts<P> {
    protocol: P,
    known: HashMap<(Table, u8, u32), bool, Hashing>,
}

impl<P: Protocol> Attempts<P> {
    /// Whether a connection of a client gets through, whatever port it gets.
    fn get_through(&mut self, table: Table, client: u8, attempts: u32) -> bool {
        if attempts == 0 {
            return false;
        }
        if let Some(known) = self.known.get(&(table, client, attempts)) {
            return *known;
        }
        let failed: HashSet<Table> = self.attempt(table, client).into_iter().collect();
        let known = failed.into_iter().all(|table| {
            let later = self.later(table, client);
            self.get_through(later, client, attempts - 1)
        });
        self.known.insert((table, client, attempts), known);
        known
    }

    /// What is left by attempts that come to nothing.
    fn attempt(&self, table: Table, client: u8) -> Vec<Table> {
        let mut failed = Vec::new();
        for sent in self.to_end(table, client, Packet::First) {
            let Some(port) = sent.actors[0].out else {
                failed.push(sent.table);
                continue;
            };
            for answered in self.to_end(sent.table, replies(port), Packet::First) {
                if answered.actors[0].out != Some(client) {
                    failed.push(answered.table);
                    continue;
                }
                let last = self.to_end(answered.table, client, Packet::Later);
                failed.extend(last.iter().filter(|s| s.actors[0].out != Some(port)).map(|s| s.table));
            }
        }
        failed
    }

    /// A minute later: the daemon has looked for silent flows, and the client, which alone was not
    /// silent, tries once more.
    fn later(&self, table: Table, client: u8) -> Table {
        let mut state = State { table, ..State::EMPTY };
        for key in (0..KEYS).filter(|key| *key != client) {
            if let Some(entry) = &mut state.table[key as usize] {
                entry.old = true;
            }
        }
        for key in 0..KEYS {
            let mut next = suspect(&self.protocol, &state, key);
            while let Some(found) = next {
                state = found;
                next = match state.actors[DAEMON].at {
                    IDLE => None,
                    _ => self.protocol.expire(&state).ok().and_then(|found| found.first().copied()),
                };
            }
        }
        state.table
    }

    /// All ends of a packet's run that nothing comes between.
    fn to_end(&self, table: Table, key: u8, packet: Packet) -> Vec<State> {
        let begun = with(&self.protocol, &State { table, ..State::EMPTY }, 0, key, packet);
        let (mut ends, mut next) = (Vec::new(), vec![begun]);
        while let Some(state) = next.pop() {
            if state.actors[0].at == IDLE {
                ends.push(state);
            } else {
                next.extend(self.protocol.run(&state, 0).unwrap_or_default());
            }
        }
        ends
    }
}
