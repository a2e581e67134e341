//! The flow table, and what runs of programs remember of it. Each function is one step that nothing
//! comes between.

/// Clients, and ports for masquerading. Client 0 and 1 have the keys 0 and 1, replies to port 0 and
/// 1 the keys 2 and 3.
pub(crate) const EACH: u8 = 2;
/// Keys.
pub(crate) const KEYS: u8 = 2 * EACH;

/// The key of replies to a port.
pub(crate) fn replies(port: u8) -> u8 {
    EACH + port
}

/// Whether a key is of replies.
pub(crate) fn is_reply(key: u8) -> bool {
    key >= EACH
}

/// The number of the client or of the port of a key.
pub(crate) fn number(key: u8) -> u8 {
    key % EACH
}

/// An entry, as far as its protocol needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Entry {
    /// The port of a client's entry, the client of one of replies.
    pub(crate) to: u8,
    /// Silent for longer than flows may be. A packet ends that; time begins it.
    pub(crate) old: bool,
    /// It has seen a RST, or is closed.
    pub(crate) over: bool,
    /// Who has claimed it; only the new protocol has that.
    pub(crate) claimed: Option<u8>,
    /// Of an entry of replies: they pass (`flag::PASSES`); only the new protocol has that.
    pub(crate) passes: bool,
    /// Of a client's entry, in a flood: its time is that of its first packet.
    pub(crate) fresh: bool,
    /// Of a client's entry, in a flood: a later packet has gone by it.
    pub(crate) up: bool,
}

impl Entry {
    /// A new one.
    pub(crate) fn new(to: u8) -> Self {
        Entry { to, old: false, over: false, claimed: None, passes: false, fresh: false, up: false }
    }

    /// The key of the other entry of its flow (`FlowKey::other`).
    pub(crate) fn other(&self, key: u8) -> u8 {
        if is_reply(key) { self.to } else { replies(self.to) }
    }

    /// Whether the other entry of its flow has that key (`Flow::is_other_of`).
    pub(crate) fn is_other_of(&self, key: u8) -> bool {
        self.to == number(key) && !self.passes
    }
}

/// What a run remembers of an entry that it has looked up: a pointer, and the time of its last use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Memo {
    /// Where it was.
    pub(crate) key: u8,
    /// It is the same entry still.
    pub(crate) same: bool,
    /// Nobody has used it since.
    pub(crate) unused: bool,
}

/// Somebody at work: a packet's run of a program, or the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct Actor {
    /// What comes next; what the numbers mean is the protocol's.
    pub(crate) at: u8,
    /// What it is about.
    pub(crate) packet: Packet,
    /// The key of the packet, or of the daemon's suspect.
    pub(crate) key: u8,
    /// The other key, of a flow that is looked at or made.
    pub(crate) other: u8,
    /// What the entry at `key` said when it was found.
    pub(crate) over: bool,
    /// Of the daemon's place: it is a program that a flow gives way to.
    pub(crate) displaces: bool,
    /// Ports tried.
    pub(crate) tried: u8,
    /// Where the packet goes: a port, or a client.
    pub(crate) out: Option<u8>,
    /// Pointers that it has: to the entry of `key`, to that of `other`, and to that of another
    /// client.
    pub(crate) memos: [Option<Memo>; 3],
}

/// Not at work.
pub(crate) const IDLE: u8 = 0;

impl Actor {
    /// Nobody.
    pub(crate) const IDLE: Actor = Actor {
        at: IDLE,
        packet: Packet::First,
        key: 0,
        other: 0,
        over: false,
        displaces: false,
        tried: 0,
        out: None,
        memos: [None; 3],
    };
}

/// Packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) enum Packet {
    /// A SYN of a client; the SYN-ACK of an endpoint.
    First,
    /// A later segment.
    Later,
    /// One that ends the connection.
    Last,
    /// One of an endpoint that is no answer to its flow's first segment.
    Strange,
}

/// What was done that must not be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wrong {
    /// Expiry removed an entry that was used a moment ago.
    LiveFlowExpired,
    /// A connection gave way to a flow that begins.
    ConnectionGaveWay,
    /// An entry was removed or replaced that another one had, or nobody had claimed.
    NotOnesOwn,
}

/// Entries by their keys.
pub(crate) type Table = [Option<Entry>; KEYS as usize];

/// All there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(crate) struct State {
    /// The table.
    pub(crate) table: Table,
    /// Programs at work, then the daemon.
    pub(crate) actors: [Actor; 3],
}

/// The daemon; in a flood, another program that a flow gives way to.
pub(crate) const DAEMON: usize = 2;

impl State {
    /// An empty table, and nobody at work.
    pub(crate) const EMPTY: State = State { table: [None; KEYS as usize], actors: [Actor::IDLE; 3] };

    /// The same with other numbers of clients or ports: `new` says what becomes of each key.
    pub(crate) fn renumbered(&self, new: impl Fn(u8) -> u8) -> State {
        let mut state = *self;
        for key in 0..KEYS {
            let entry = self.get(key).map(|entry| Entry { to: number(new(entry.other(key))), ..entry });
            state.table[new(key) as usize] = entry;
        }
        for actor in state.actors.iter_mut().filter(|actor| actor.at != IDLE) {
            (actor.key, actor.other) = (new(actor.key), new(actor.other));
            for memo in actor.memos.iter_mut().flatten() {
                memo.key = new(memo.key);
            }
        }
        state
    }

    /// The same with the processors changed over.
    pub(crate) fn on_other_processors(&self) -> State {
        let mut state = *self;
        state.actors.swap(0, 1);
        for entry in state.table.iter_mut().flatten() {
            entry.claimed = entry.claimed.map(|who| if who as usize == DAEMON { who } else { 1 - who });
        }
        state
    }

    /// `bpf_map_lookup_elem`.
    pub(crate) fn get(&self, key: u8) -> Option<Entry> {
        self.table[key as usize]
    }

    /// A pointer to what is at a key now.
    pub(crate) fn memo(key: u8) -> Option<Memo> {
        Some(Memo { key, same: true, unused: true })
    }

    /// What a pointer points to, if it is the same entry still.
    pub(crate) fn behind(&mut self, memo: Option<Memo>) -> Option<&mut Entry> {
        let memo = memo.filter(|memo| memo.same)?;
        self.table[memo.key as usize].as_mut()
    }

    fn forget(&mut self, key: u8, same: bool) {
        for memo in self.actors.iter_mut().flat_map(|actor| actor.memos.iter_mut().flatten()) {
            if memo.key == key {
                (memo.unused, memo.same) = (false, memo.same && same);
            }
        }
    }

    /// `bpf_map_update_elem` or `bpf_map_delete_elem` without a condition.
    pub(crate) fn put(&mut self, key: u8, entry: Option<Entry>) {
        self.table[key as usize] = entry;
        self.forget(key, false);
    }

    /// `bpf_map_update_elem` with `BPF_NOEXIST`.
    pub(crate) fn add(&mut self, key: u8, entry: Entry) -> bool {
        if self.get(key).is_some() {
            return false;
        }
        self.put(key, Some(entry));
        true
    }

    /// `claim::touch`, or a write of the time.
    pub(crate) fn touch(&mut self, memo: Option<Memo>) -> bool {
        let Some(entry) = self.behind(memo) else { return true };
        if entry.claimed.is_some() {
            return false;
        }
        (entry.old, entry.fresh) = (false, false);
        if let Some(memo) = memo {
            self.forget(memo.key, true);
        }
        true
    }

    /// `claim::claim`.
    pub(crate) fn claim(&mut self, memo: Option<Memo>, who: usize) -> bool {
        let unused = memo.is_some_and(|memo| memo.unused);
        match self.behind(memo) {
            Some(entry) if unused && entry.claimed.is_none() => {
                entry.claimed = Some(who as u8);
                true
            }
            _ => false,
        }
    }

    /// `claim::release`: the time is what it was before.
    pub(crate) fn release(&mut self, memo: Option<Memo>) {
        if let Some(entry) = self.behind(memo) {
            entry.claimed = None;
        }
    }

    /// Whether `who` may remove or replace what is at a key.
    pub(crate) fn is_own(&self, key: u8, who: usize) -> bool {
        self.get(key).is_none_or(|entry| entry.claimed == Some(who as u8))
    }
}
