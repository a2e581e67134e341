//! How many connections there may be, and which one goes when there are too many.

use std::cmp::Reverse;
use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv6Addr};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustc_hash::FxHashMap;
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio::time::Instant;

/// Connections of a server, at most.
const CONNECTIONS: usize = 256;
/// The part of all files that a process may open which the connections of a server may take. There
/// are three, and files are needed for the kernel and the API too.
const FILES: usize = 8;
/// The part of all places that is for connections that have been told to leave, so that nobody
/// waits for the end of just one.
const LEAVING: usize = 4;
/// The part of all connections that processes of this host do not lose to others: the kubelet's
/// probes.
const RESERVED: usize = 8;

/// Lets connections in, each into a place. Servers that share a gate share its places.
#[derive(Clone)]
pub struct Gate {
    places: Arc<Semaphore>,
    guests: Arc<Mutex<Guests>>,
    /// How many may stay.
    stay: usize,
    reserved: usize,
}

/// Who has a place.
#[derive(Default)]
struct Guests {
    next: u64,
    by_number: FxHashMap<u64, Guest>,
    /// Numbers of the guests from each source, those first that have asked for nothing for the
    /// longest time.
    by_source: FxHashMap<Source, BTreeSet<(Instant, u64)>>,
    of_this_host: usize,
}

struct Guest {
    source: Source,
    /// When it came, or asked for the last time.
    last: Instant,
    /// Dropped when it has to leave.
    leave: oneshot::Sender<()>,
}

/// Who counts as one: a host, or what may be the addresses of one host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Source {
    network: IpAddr,
    /// It is this host.
    own: bool,
}

impl Source {
    /// Of a connection from `peer` to our address `own`. To reach its own addresses, a host uses
    /// the same as source.
    fn new(peer: IpAddr, own: IpAddr) -> Source {
        let (peer, own) = (peer.to_canonical(), own.to_canonical());
        let network = match peer {
            IpAddr::V4(_) => peer,
            IpAddr::V6(ip) => Ipv6Addr::from_bits(ip.to_bits() >> 64 << 64).into(),
        };
        Source { network, own: peer == own || peer.is_loopback() }
    }
}

/// A place at a gate, free when it is dropped.
pub(super) struct Place {
    guests: Arc<Mutex<Guests>>,
    number: u64,
    _permit: OwnedSemaphorePermit,
}

fn lock(guests: &Mutex<Guests>) -> MutexGuard<'_, Guests> {
    guests.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Gate {
    /// A gate for a server of a process that may open so many files.
    pub fn new(files: u64) -> Gate {
        let connections = usize::try_from(files).map_or(CONNECTIONS, |files| files / FILES);
        let connections = connections.clamp(8, CONNECTIONS);
        // One more has been accepted and waits for a place.
        let places = Arc::new(Semaphore::new(connections - 1));
        let stay = connections - connections / LEAVING - 1;
        Gate { places, guests: Arc::default(), stay, reserved: connections / RESERVED }
    }

    /// Gives a connection from `peer` to our address `own` a place, which another one may have to
    /// leave for it. All that is waited for is that not too many are about to leave. The receiver
    /// hears when the new one has to. (`None` does not happen: the gate is never closed.)
    pub(super) async fn enter(&self, peer: IpAddr, own: IpAddr) -> Option<(Place, oneshot::Receiver<()>)> {
        if lock(&self.guests).by_number.len() >= self.stay {
            self.make_room();
        }
        let permit = self.places.clone().acquire_owned().await.ok()?;
        let (sender, leave) = oneshot::channel();
        let number = lock(&self.guests).add(Source::new(peer, own), Instant::now(), sender);
        Some((Place { guests: self.guests.clone(), number, _permit: permit }, leave))
    }

    /// Asks a connection to leave.
    pub(super) fn make_room(&self) {
        let mut guests = lock(&self.guests);
        if let Some(number) = guests.first_to_leave(self.reserved) {
            guests.remove(number);
        }
    }
}

impl Guests {
    fn add(&mut self, source: Source, now: Instant, leave: oneshot::Sender<()>) -> u64 {
        let number = self.next;
        self.next += 1;
        self.by_number.insert(number, Guest { source, last: now, leave });
        self.by_source.entry(source).or_default().insert((now, number));
        self.of_this_host += usize::from(source.own);
        number
    }

    fn asked(&mut self, number: u64, now: Instant) {
        let Some(guest) = self.by_number.get_mut(&number) else { return };
        let before = std::mem::replace(&mut guest.last, now);
        if let Some(all) = self.by_source.get_mut(&guest.source) {
            all.remove(&(before, number));
            all.insert((now, number));
        }
    }

    /// Once for each: who has been asked to leave is not here any more.
    fn remove(&mut self, number: u64) {
        let Some(Guest { source, last, leave }) = self.by_number.remove(&number) else { return };
        drop(leave);
        self.of_this_host -= usize::from(source.own);
        if let Some(all) = self.by_source.get_mut(&source) {
            all.remove(&(last, number));
            if all.is_empty() {
                self.by_source.remove(&source);
            }
        }
    }

    /// Who leaves for another one: of those who have most connections, the one that has asked for
    /// nothing for the longest time. So one host cannot push out others, and many hosts push out
    /// the newest last. Processes of this host, as long as they have no more than is `reserved` for
    /// them, leave only for each other.
    fn first_to_leave(&self, reserved: usize) -> Option<u64> {
        let spared = self.of_this_host <= reserved && self.of_this_host < self.by_number.len();
        let sources = self.by_source.iter().filter(|(source, _)| !(spared && source.own));
        let oldest = sources.filter_map(|(_, all)| Some((Reverse(all.len()), *all.first()?)));
        oldest.min().map(|(_, (_, number))| number)
    }
}

impl Place {
    /// The connection asks for something.
    pub(super) fn asked(&self, now: Instant) {
        lock(&self.guests).asked(self.number, now);
    }

    /// When it asked for the last time, or came; `None` when it has to leave.
    pub(super) fn last(&self) -> Option<Instant> {
        lock(&self.guests).by_number.get(&self.number).map(|guest| guest.last)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        lock(&self.guests).remove(self.number);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    /// Connections from these, the oldest first.
    fn guests(peers: &[&str]) -> Guests {
        let (begun, mut guests) = (Instant::now(), Guests::default());
        for (n, peer) in (0..).zip(peers) {
            let now = begun + Duration::from_millis(n);
            guests.add(Source::new(ip(peer), ip("192.0.2.1")), now, oneshot::channel().0);
        }
        guests
    }

    fn leaves(peers: &[&str], reserved: usize) -> Option<u64> {
        guests(peers).first_to_leave(reserved)
    }

    #[test]
    fn the_oldest_of_those_who_have_most_leaves() {
        assert_eq!(leaves(&[], 1), None);
        assert_eq!(leaves(&["10.0.0.1", "10.0.0.2", "10.0.0.3"], 1), Some(0));
        assert_eq!(leaves(&["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.2"], 1), Some(1));
        // What may be one host with any number of addresses.
        assert_eq!(leaves(&["10.0.0.1", "fd00::1", "fd00::2"], 1), Some(1));
        let mut guests = guests(&["10.0.0.1", "10.0.0.2", "10.0.0.3"]);
        guests.asked(0, Instant::now() + Duration::from_secs(1));
        assert_eq!(guests.first_to_leave(1), Some(1));
        guests.remove(1);
        assert_eq!(guests.first_to_leave(1), Some(2));
    }

    #[test]
    fn this_host_leaves_for_itself_only_unless_it_takes_too_much() {
        assert_eq!(leaves(&["127.0.0.1", "192.0.2.1", "10.0.0.1"], 2), Some(2));
        assert_eq!(leaves(&["127.0.0.1", "127.0.0.1", "127.0.0.1", "10.0.0.1"], 2), Some(0));
        assert_eq!(leaves(&["::ffff:192.0.2.1", "127.0.0.1"], 2), Some(0));
        // Who took much before is the one of this host that leaves.
        assert_eq!(leaves(&["192.0.2.1", "127.0.0.1", "127.0.0.1"], 1), Some(1));
    }

    #[tokio::test]
    async fn a_full_server_closes_an_idle_connection_for_a_new_one() {
        let gate = Gate::new(64);
        let (peer, own) = (ip("10.0.0.1"), ip("192.0.2.1"));
        assert_eq!((gate.stay, gate.places.available_permits()), (5, 7));
        let mut guests = Vec::new();
        for _ in 0..7 {
            guests.push(gate.enter(peer, own).await.unwrap());
        }
        let stays: Vec<bool> = guests.iter().map(|(place, _)| place.last().is_some()).collect();
        assert_eq!(stays, [false, false, true, true, true, true, true]);
        guests[2].0.asked(Instant::now() + Duration::from_secs(1));
        let one_more = tokio::spawn({
            let gate = gate.clone();
            async move { gate.enter(peer, own).await }
        });
        let (place, leave) = guests.remove(3);
        leave.await.unwrap_err();
        assert!(place.last().is_none() && !one_more.is_finished());
        drop(place);
        let (last, _leave) = one_more.await.unwrap().unwrap();
        assert!(last.last().is_some());
        drop((last, guests));
        let left = lock(&gate.guests);
        assert_eq!((left.by_number.len(), left.by_source.len(), left.of_this_host), (0, 0, 0));
        assert_eq!(gate.places.available_permits(), 7);
    }
}
