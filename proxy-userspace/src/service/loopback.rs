//! TCP node ports on 127.0.0.1 and ::1: a listener for each, which opens a connection to an
//! endpoint for each that it takes. Which listeners, and which endpoint, is decided in
//! [`sluice_core::loopback`].

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::sys::socket::{setsockopt, sockopt};
use sluice_core::loopback::{Backends, Picker};
use sluice_core::net::Family;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tracing::{debug, info, warn};

use crate::observe::metrics::{Metrics, family_label};
use crate::random;
use crate::service::facts::NodeFacts;

/// The listeners that there should be, and where their connections go.
pub type Listeners = BTreeMap<SocketAddr, Arc<Backends>>;

/// How long an endpoint may take to answer; there is no second try.
const CONNECT: Duration = Duration::from_secs(5);
/// Between two tries to accept, when that fails: nearly always because there are too many open
/// files.
const PAUSE: Duration = Duration::from_millis(100);
/// Bytes that are on their way in one direction of a connection, at most.
const CHUNK: usize = 16 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;

/// A listener. Dropping it ends its connections.
struct Open {
    picker: Arc<Mutex<Picker>>,
    tasks: JoinSet<()>,
}

/// Keeps listeners in step with what is wanted until nobody publishes any more. What cannot be
/// opened, because some process listens there, is tried again with each publication and after
/// `retry`.
pub async fn run(
    (mut wanted, facts): (watch::Receiver<Listeners>, watch::Receiver<NodeFacts>),
    retry: Duration,
    metrics: Metrics,
) {
    let mut open: BTreeMap<SocketAddr, Open> = BTreeMap::new();
    let mut failed = BTreeSet::new();
    loop {
        let now = wanted.borrow_and_update().clone();
        close(&mut open, &now).await;
        failed = renew(&mut open, now, &failed, (&facts, &metrics));
        for family in Family::BOTH {
            let count = open.keys().filter(|at| Family::of(&at.ip()) == family).count();
            metrics.loopback_listeners.get_or_create(&family_label(family)).set(count as i64);
        }
        tokio::select! {
            changed = wanted.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(retry), if !failed.is_empty() => {}
        }
    }
}

/// Closes what is not wanted any more, with its connections: its port may be another process's
/// next.
async fn close(open: &mut BTreeMap<SocketAddr, Open>, wanted: &Listeners) {
    let gone: Vec<SocketAddr> = open.keys().filter(|at| !wanted.contains_key(at)).copied().collect();
    for at in gone {
        if let Some(mut listener) = open.remove(&at) {
            listener.tasks.shutdown().await;
            info!(address = %at, "node port closed on loopback");
        }
    }
}

/// Opens what is missing, and tells the others where their connections go from now on. Returns what
/// could not be opened, which is logged when it was not among those that `failed` before.
fn renew(
    open: &mut BTreeMap<SocketAddr, Open>,
    wanted: Listeners,
    failed: &BTreeSet<SocketAddr>,
    (facts, metrics): (&watch::Receiver<NodeFacts>, &Metrics),
) -> BTreeSet<SocketAddr> {
    let mut refused = BTreeSet::new();
    for (at, backends) in wanted {
        if let Some(listener) = open.get(&at) {
            if let Ok(mut picker) = listener.picker.lock() {
                picker.renew(backends);
            }
            continue;
        }
        match listen(at) {
            Ok(socket) => {
                info!(address = %at, "node port open on loopback");
                let picker = Arc::new(Mutex::new(Picker::new(backends)));
                let mut tasks = JoinSet::new();
                tasks.spawn(accept(socket, picker.clone(), facts.clone()));
                open.insert(at, Open { picker, tasks });
            }
            Err(error) => {
                if !failed.contains(&at) {
                    warn!(address = %at, %error, "cannot open a node port on loopback; trying again");
                }
                let family = family_label(Family::of(&at.ip()));
                metrics.loopback_listener_failures.get_or_create(&family).inc();
                refused.insert(at);
            }
        }
    }
    refused
}

fn listen(at: SocketAddr) -> io::Result<TcpListener> {
    let socket = if at.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    socket.set_reuseaddr(true)?;
    socket.bind(at)?;
    socket.listen(BACKLOG)
}

async fn accept(listener: TcpListener, picker: Arc<Mutex<Picker>>, facts: watch::Receiver<NodeFacts>) {
    let begun = Instant::now();
    let mut connections = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Some(_) = connections.join_next() => continue,
        };
        match accepted {
            Ok((_, peer)) if !is_own(&peer.ip(), &facts) => {
                debug!(%peer, "closed a connection to loopback from outside this node");
            }
            Ok((client, _)) => {
                let endpoint =
                    picker.lock().ok().and_then(|mut picker| picker.pick(begun.elapsed(), random::bits()));
                if let Some(endpoint) = endpoint {
                    connections.spawn(relay(client, endpoint));
                }
            }
            Err(error) => {
                debug!(%error, "cannot accept a connection");
                tokio::time::sleep(PAUSE).await;
            }
        }
    }
}

/// Whether an address is this node's. Where the sysctl route_localnet is set, as kube-proxy's mode
/// iptables leaves it, neighbours of the node reach its loopback addresses.
fn is_own(ip: &IpAddr, facts: &watch::Receiver<NodeFacts>) -> bool {
    ip.is_loopback() || facts.borrow().interfaces.contains(ip)
}

/// Carries a connection until both sides have ended it. Without an endpoint that answers, the
/// client's is closed.
async fn relay(client: TcpStream, endpoint: SocketAddr) {
    let connected = match tokio::time::timeout(CONNECT, TcpStream::connect(endpoint)).await {
        Ok(connected) => connected,
        Err(_) => Err(io::ErrorKind::TimedOut.into()),
    };
    let backend = match connected {
        Ok(backend) => backend,
        Err(error) => {
            debug!(%endpoint, %error, "an endpoint does not answer");
            return;
        }
    };
    for leg in [&client, &backend] {
        // What is small must not wait for more.
        let _ = leg.set_nodelay(true);
        keep_alive(leg);
    }
    let ((from_client, to_client), (from_backend, to_backend)) = (client.into_split(), backend.into_split());
    // One that breaks off ends the other.
    if let Err(error) = tokio::try_join!(pump(from_client, to_backend), pump(from_backend, to_client)) {
        debug!(%endpoint, %error, "a connection broke off");
    }
}

/// Ends a connection whose other side has gone without a word, as those of kube-proxy do: Go's net
/// asks after 15 s of silence, then every 15 s, nine times.
fn keep_alive(leg: &TcpStream) {
    let _ = setsockopt(leg, sockopt::TcpKeepIdle, &15);
    let _ = setsockopt(leg, sockopt::TcpKeepInterval, &15);
    let _ = setsockopt(leg, sockopt::TcpKeepCount, &9);
    if let Err(error) = setsockopt(leg, sockopt::KeepAlive, &true) {
        debug!(%error, "a connection has no keepalive");
    }
}

/// Passes on what comes until its end, and then the end: dropping the half that is written shuts it
/// down.
async fn pump(from: OwnedReadHalf, to: OwnedWriteHalf) -> io::Result<()> {
    let mut buffer = vec![0; CHUNK];
    loop {
        from.readable().await?;
        let count = match from.try_read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        };
        write_all(&to, &buffer[..count]).await?;
    }
}

async fn write_all(to: &OwnedWriteHalf, mut rest: &[u8]) -> io::Result<()> {
    while !rest.is_empty() {
        to.writable().await?;
        match to.try_write(rest) {
            Ok(count) => rest = &rest[count..],
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::net::{Shutdown, TcpListener as Listener, TcpStream as Stream};

    use sluice_core::plan::Target;

    /// Says its name, then all that it was told until the end.
    fn endpoint(name: &'static str) -> SocketAddr {
        let listener = Listener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        std::thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                std::thread::spawn(move || {
                    let _ = client.write_all(name.as_bytes());
                    let mut heard = Vec::new();
                    let _ = client.read_to_end(&mut heard);
                    let _ = client.write_all(&heard);
                });
            }
        });
        address
    }

    /// A port that nobody uses.
    fn free() -> SocketAddr {
        Listener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
    }

    fn to(endpoints: &[SocketAddr]) -> Arc<Backends> {
        let target = |at: &SocketAddr| Target { address: at.ip(), port: at.port(), local: false };
        Arc::new(Backends { endpoints: endpoints.iter().map(target).collect(), affinity: None })
    }

    struct Running {
        wanted: watch::Sender<Listeners>,
        metrics: Metrics,
        _facts: watch::Sender<NodeFacts>,
    }

    fn start(retry: Duration) -> Running {
        let (wanted, receiver) = watch::channel(Listeners::new());
        let (facts, facts_receiver) = watch::channel(NodeFacts::default());
        let metrics = Metrics::default();
        tokio::spawn(run((receiver, facts_receiver), retry, metrics.clone()));
        Running { wanted, metrics, _facts: facts }
    }

    impl Running {
        async fn has_listeners(&self, count: i64) {
            let label = family_label(Family::V4);
            becomes(|| self.metrics.loopback_listeners.get_or_create(&label).get() == count).await;
        }

        async fn has_failed(&self, times: u64) {
            let label = family_label(Family::V4);
            becomes(|| self.metrics.loopback_listener_failures.get_or_create(&label).get() >= times).await;
        }
    }

    async fn becomes(holds: impl Fn() -> bool) {
        let waiting = async {
            while !holds() {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(20), waiting).await.unwrap();
    }

    fn connect(at: SocketAddr) -> Stream {
        let client = Stream::connect(at).unwrap();
        client.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
        client
    }

    fn name(client: &mut Stream) -> u8 {
        let mut name = [0; 1];
        client.read_exact(&mut name).unwrap();
        name[0]
    }

    const HOUR: Duration = Duration::from_secs(3600);

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn half_closed_connections_go_on_in_the_other_direction() {
        let (running, at) = (start(HOUR), free());
        running.wanted.send_replace([(at, to(&[endpoint("a")]))].into());
        running.has_listeners(1).await;
        let mut client = connect(at);
        let request = vec![b'x'; 10 * CHUNK + 1];
        client.write_all(&request).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(name(&mut client), b'a');
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert!(answer == request, "{} bytes came back", answer.len());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn other_endpoints_are_for_new_connections_and_a_closed_listener_ends_all() {
        let (running, at) = (start(HOUR), free());
        running.wanted.send_replace([(at, to(&[endpoint("a")]))].into());
        running.has_listeners(1).await;
        let mut old = connect(at);
        assert_eq!(name(&mut old), b'a');
        running.wanted.send_replace([(at, to(&[endpoint("b")]))].into());
        let until = Instant::now() + Duration::from_secs(20);
        while name(&mut connect(at)) != b'b' {
            assert!(Instant::now() < until, "connections still go to the endpoint of before");
        }
        old.write_all(b"x").unwrap();
        running.wanted.send_replace(Listeners::new());
        running.has_listeners(0).await;
        assert!(!matches!(old.read(&mut [0; 1]), Ok(1..)), "its connections are closed");
        assert!(Stream::connect(at).is_err());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn an_endpoint_that_refuses_costs_the_client_its_connection_and_no_data() {
        let (running, at) = (start(HOUR), free());
        running.wanted.send_replace([(at, to(&[free()]))].into());
        running.has_listeners(1).await;
        let mut heard = Vec::new();
        assert!(connect(at).read_to_end(&mut heard).is_ok() && heard.is_empty());
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_taken_port_is_counted_and_tried_again() {
        let running = start(HOUR);
        let taken = Listener::bind("127.0.0.1:0").unwrap();
        let at = taken.local_addr().unwrap();
        let wanted = || Listeners::from([(at, to(&[free()]))]);
        running.wanted.send_replace(wanted());
        running.has_failed(1).await;
        running.wanted.send_replace(wanted());
        running.has_failed(2).await;
        drop(taken);
        running.wanted.send_replace(wanted());
        running.has_listeners(1).await;
    }

    #[test]
    fn only_this_node_is_served() {
        let ip = |text: &str| -> IpAddr { text.parse().unwrap() };
        let interfaces = vec![ip("192.168.0.2")];
        let (_sender, facts) = watch::channel(NodeFacts { interfaces, ..NodeFacts::default() });
        assert!(is_own(&ip("127.0.0.1"), &facts) && is_own(&ip("::1"), &facts));
        assert!(is_own(&ip("192.168.0.2"), &facts), "a process may use any of them");
        assert!(!is_own(&ip("192.168.0.3"), &facts));
    }
}
