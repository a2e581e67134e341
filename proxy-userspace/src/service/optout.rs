//! Pods that leave the socket path: from their addresses to the network namespaces that the socket
//! programs know.
//!
//! Level-triggered, beside the programming of Services: the wanted addresses come in, the set of
//! namespaces goes out, whole each time. What cannot be found out keeps what is in force. Sockets
//! that are connected stay as they are.

use std::collections::BTreeSet;
use std::fmt::Display;
use std::net::IpAddr;
use std::time::Duration;

use sluice_sys::netns::Namespace;
use tokio::sync::watch;
use tokio::time::Instant;
use tracing::{info, warn};

/// While a pod's namespace cannot be found, since its address may come a moment after its object...
const SOON: Duration = Duration::from_secs(1);
/// ...this long...
const PATIENCE: Duration = Duration::from_secs(60);
/// ...and after that.
const LATER: Duration = Duration::from_secs(30);
/// Namespaces end without a word, and others may write the map.
const AUDIT: Duration = Duration::from_secs(60);

/// Where addresses are.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Resolved {
    /// Cookies of the namespaces that have one of the addresses.
    pub cookies: BTreeSet<u64>,
    /// Addresses that none of them has.
    pub missing: BTreeSet<IpAddr>,
}

/// Finds the namespaces of pods by the pods' addresses.
pub fn resolve(wanted: &[IpAddr], namespaces: &[Namespace]) -> Resolved {
    let wanted = wanted.iter().copied().filter(tells_a_pod);
    let mut resolved = Resolved { missing: wanted.collect(), cookies: BTreeSet::new() };
    let wanted = resolved.missing.clone();
    for namespace in namespaces {
        for address in namespace.addresses.iter().filter(|address| wanted.contains(*address)) {
            resolved.cookies.insert(namespace.cookie);
            resolved.missing.remove(address);
        }
    }
    resolved
}

/// Addresses that many namespaces have tell nothing.
fn tells_a_pod(address: &IpAddr) -> bool {
    let is_link_local = match address {
        IpAddr::V4(ip) => ip.is_link_local(),
        IpAddr::V6(ip) => ip.is_unicast_link_local(),
    };
    !(address.is_loopback() || address.is_unspecified() || is_link_local)
}

/// When to look again, by how long something has not been as it should.
fn pause(unsettled: Option<Duration>) -> Duration {
    match unsettled {
        None => AUDIT,
        Some(time) if time < PATIENCE => SOON,
        Some(_) => LATER,
    }
}

/// Tells `write` whose sockets are to be left alone, until nobody says any more which addresses are
/// `wanted` (`None`: not known yet). `scan` looks into the network namespaces of the machine.
/// `write` gets all cookies each time, makes the kernel hold just these, and returns how many
/// entries that took.
pub async fn run<S, E, W, F>(mut wanted: watch::Receiver<Option<Vec<IpAddr>>>, scan: S, mut write: W)
where
    S: Fn() -> Result<Vec<Namespace>, E> + Clone + Send + 'static,
    E: Display + Send + 'static,
    W: FnMut(&BTreeSet<u64>) -> Result<usize, F>,
    F: Display,
{
    let mut state = State::default();
    loop {
        let addresses = wanted.borrow_and_update().clone();
        if let Some(addresses) = addresses {
            let resolved = look(&addresses, scan.clone()).await;
            let result = resolved.and_then(|resolved| {
                let changed = write(&resolved.cookies).map_err(|error| error.to_string())?;
                Ok((resolved, changed))
            });
            state.note(result);
        }
        tokio::select! {
            changed = wanted.changed() => match changed {
                Ok(()) => state.begin_anew(),
                Err(_) => return,
            },
            () = tokio::time::sleep(pause(state.unsettled())) => {}
        }
    }
}

async fn look<S, E>(wanted: &[IpAddr], scan: S) -> Result<Resolved, String>
where
    S: Fn() -> Result<Vec<Namespace>, E> + Send + 'static,
    E: Display + Send + 'static,
{
    // Where nobody opts out, which is the rule, nobody looks into namespaces.
    if wanted.is_empty() {
        return Ok(Resolved::default());
    }
    let scanned = tokio::task::spawn_blocking(scan).await.map_err(|error| error.to_string())?;
    Ok(resolve(wanted, &scanned.map_err(|error| error.to_string())?))
}

/// How it has been going, for the next look and for the log.
#[derive(Debug, Default)]
struct State {
    unsettled_since: Option<Instant>,
    /// What the last round failed for has been told.
    failing: bool,
    /// Which addresses cannot be found has been told.
    told: bool,
}

impl State {
    fn begin_anew(&mut self) {
        self.unsettled_since = None;
        self.told = false;
    }

    fn unsettled(&self) -> Option<Duration> {
        self.unsettled_since.map(|since| since.elapsed())
    }

    /// Takes in what a round came to: what was resolved, and how many entries that changed.
    fn note(&mut self, result: Result<(Resolved, usize), String>) {
        let resolved = match result {
            Ok((resolved, changed)) => {
                self.failing = false;
                if changed > 0 {
                    info!(namespaces = resolved.cookies.len(), "pods that leave the socket path");
                }
                resolved
            }
            Err(error) => {
                if !std::mem::replace(&mut self.failing, true) {
                    warn!(
                        error,
                        "cannot find out which pods leave the socket path; the last known state stays in \
                         force, trying again"
                    );
                }
                self.unsettled_since.get_or_insert_with(Instant::now);
                return;
            }
        };
        if resolved.missing.is_empty() {
            self.unsettled_since = None;
            return;
        }
        let since = *self.unsettled_since.get_or_insert_with(Instant::now);
        if since.elapsed() >= PATIENCE && !std::mem::replace(&mut self.told, true) {
            warn!(
                addresses = ?resolved.missing,
                "cannot enter the network namespaces of pods that should leave the socket path, so their \
                 sockets are translated: this needs CAP_SYS_ADMIN, and the node's process ids (hostPID, \
                 with CAP_SYS_PTRACE) or its /run/netns"
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex};

    use super::*;

    fn ips(text: &str) -> Vec<IpAddr> {
        text.split_whitespace().map(|ip| ip.parse().unwrap()).collect()
    }

    fn namespace(cookie: u64, addresses: &str) -> Namespace {
        Namespace { cookie, addresses: ips(addresses) }
    }

    #[test]
    fn a_namespace_is_known_by_any_address_of_its_pod() {
        let namespaces = [
            namespace(7, "127.0.0.1 10.0.0.1 fe80::1 fd00::1"),
            namespace(8, "127.0.0.1 ::1 10.0.0.2"),
            namespace(9, "127.0.0.1 10.0.0.3"),
        ];
        let resolved = resolve(&ips("10.0.0.1 fd00::1 10.0.0.3 10.0.0.4"), &namespaces);
        assert_eq!(resolved.cookies, BTreeSet::from([7, 9]));
        assert_eq!(resolved.missing, BTreeSet::from_iter(ips("10.0.0.4")));
        assert_eq!(resolve(&[], &namespaces), Resolved::default());
    }

    #[test]
    fn addresses_that_every_namespace_has_tell_nothing() {
        let everywhere = "127.0.0.1 127.0.0.2 ::1 fe80::1 169.254.1.1 0.0.0.0 ::";
        assert_eq!(resolve(&ips(everywhere), &[namespace(7, everywhere)]), Resolved::default());
    }

    #[test]
    fn what_is_missing_is_looked_for_often_at_first() {
        assert_eq!(pause(None), Duration::from_secs(60));
        assert_eq!(pause(Some(Duration::ZERO)), Duration::from_secs(1));
        assert_eq!(pause(Some(Duration::from_secs(59))), Duration::from_secs(1));
        assert_eq!(pause(Some(Duration::from_secs(60))), Duration::from_secs(30));
    }

    type Shared<T> = Arc<Mutex<T>>;

    /// The task, with what there is and what was written last.
    struct Running {
        wanted: watch::Sender<Option<Vec<IpAddr>>>,
        there: Shared<Result<Vec<Namespace>, &'static str>>,
        written: Shared<Option<BTreeSet<u64>>>,
        /// How many scans have begun.
        scans: Arc<AtomicUsize>,
    }

    fn start() -> Running {
        let (wanted, receiver) = watch::channel(None);
        let there = Arc::new(Mutex::new(Ok(vec![namespace(7, "10.0.0.1")])));
        let (written, scans) = (Shared::default(), Arc::<AtomicUsize>::default());
        let (scanned, kept, count) = (there.clone(), written.clone(), scans.clone());
        let scan = move || {
            count.fetch_add(1, Ordering::SeqCst);
            scanned.lock().unwrap().clone()
        };
        let write = move |cookies: &BTreeSet<u64>| {
            *kept.lock().unwrap() = Some(cookies.clone());
            Ok::<usize, String>(1)
        };
        tokio::spawn(run(receiver, scan, write));
        Running { wanted, there, written, scans }
    }

    impl Running {
        async fn until(&self, cookies: &[u64]) {
            let wanted: BTreeSet<u64> = cookies.iter().copied().collect();
            for _ in 0..500 {
                if self.written.lock().unwrap().as_ref() == Some(&wanted) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            unreachable!("never {cookies:?}: {:?}", self.written.lock().unwrap());
        }

        /// Sends addresses, and waits until the next scan begins. Whatever the scan before led to
        /// has then been written.
        async fn rescan(&self, addresses: &str) {
            let before = self.scans.load(Ordering::SeqCst);
            self.wanted.send_replace(Some(ips(addresses)));
            for _ in 0..500 {
                if self.scans.load(Ordering::SeqCst) > before {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            unreachable!("no scan for {addresses}");
        }
    }

    #[tokio::test]
    async fn nothing_is_written_before_the_pods_are_known() {
        let task = start();
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(*task.written.lock().unwrap(), None);
        task.wanted.send_replace(Some(vec![]));
        task.until(&[]).await;
    }

    #[tokio::test]
    async fn a_late_namespace_is_added_and_an_unwanted_one_removed() {
        let task = start();
        task.wanted.send_replace(Some(ips("10.0.0.1 10.0.0.2")));
        task.until(&[7]).await;
        task.there.lock().unwrap().as_mut().unwrap().push(namespace(8, "10.0.0.2"));
        task.until(&[7, 8]).await;
        task.wanted.send_replace(Some(ips("10.0.0.2")));
        task.until(&[8]).await;
    }

    #[tokio::test]
    async fn failed_scans_change_nothing_in_the_kernel() {
        let task = start();
        task.wanted.send_replace(Some(ips("10.0.0.1")));
        task.until(&[7]).await;
        *task.there.lock().unwrap() = Err("no");
        // What a failed scan wrote would be seen here, even if it were the same.
        *task.written.lock().unwrap() = None;
        for _ in 0..3 {
            task.rescan("10.0.0.1 10.0.0.2").await;
        }
        assert_eq!(*task.written.lock().unwrap(), None);
        *task.there.lock().unwrap() = Ok(vec![namespace(8, "10.0.0.2")]);
        task.until(&[8]).await;
    }
}
