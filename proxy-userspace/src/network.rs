//! The pod network: what the nodes say, in the kernel, and repaired when somebody takes it away.
//!
//! A task of its own beside the reconcile loop, level-triggered: any notice leads to a pass that
//! looks at the kernel, takes the steps that are missing, and does nothing when none is.

mod abandoned;
mod host_ports;
mod install;
mod kernel;
mod localnet;
mod mtu;
mod node;
mod notices;
mod owned;
mod ports;
mod rules;
mod uninstall;

use std::collections::BTreeSet;
use std::future::pending;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

use futures::{FutureExt, Stream, StreamExt};
use inotify::{Inotify, WatchMask};
use rtnetlink::{Handle, MulticastGroup};
use sluice_cni::node_file::NodeFile;
use sluice_cni::store::{self, StoreError};
use sluice_core::kind::Kind;
use sluice_core::model::Node;
use sluice_core::net::Family;
use sluice_core::pod_network::{Device, KernelState, Own, PodNetwork, Problem, Step, pod_network, vtep_mac};
use sluice_sys::bpf::{BpfError, Maps};
use sluice_sys::netlink::NetlinkError;
use sluice_sys::nft::Notice;
use tokio::sync::{mpsc, watch};
use tracing::{debug, error, info, warn};

use crate::config::{PodNetworkSettings, Settings};
use crate::feature::Context;
use crate::node::addresses::Network;
use crate::observe::metrics::Metrics;
use crate::observe::recorder::{Event, Recorder};
use crate::state::World;
use crate::watch::{Kinds, Reach};

pub use install::InstallError;
pub use kernel::{KernelError, device_name};
pub use localnet::LocalnetError;
pub use node::NodeError;
pub(crate) use owned::owned;
use rules::Rules;

/// A pass at least this often, in case a notice was lost.
const AUDIT: Duration = Duration::from_secs(30);
/// One change often comes with several notices.
const SETTLE: Duration = Duration::from_millis(10);
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LAST_RETRY: Duration = Duration::from_secs(10);
/// An address whose pod has no link for so long is nobody's: its plugin was killed, or its runtime
/// forgot it.
const ABANDONED: Duration = Duration::from_secs(120);

/// Why a pass failed.
#[derive(Debug, thiserror::Error)]
enum PassError {
    #[error(transparent)]
    Kernel(#[from] KernelError),
    #[error("interface {0} is not a VXLAN device; rename or delete it")]
    NameTaken(&'static str),
    #[error(transparent)]
    Node(#[from] NodeError),
    #[error("cannot write the rules of the pod network: {0}")]
    Rules(#[source] NetlinkError),
    #[error("cannot write the pods' addresses for the eBPF programs: {0}")]
    Programs(#[from] BpfError),
    #[error(transparent)]
    Localnet(#[from] LocalnetError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Install(#[from] InstallError),
    #[error(
        "the path to {} has an MTU of {path} bytes, less {overhead} for the tunnel, but pods need \
         {needed}; larger packets to it are lost",
        peer.map_or_else(|| "other nodes".to_owned(), |peer| peer.to_string())
    )]
    Mtu { path: u32, overhead: u32, needed: u32, peer: Option<IpAddr> },
}

/// What it reads: a tunnel leads to each Node.
pub fn interests(settings: &Settings) -> Kinds {
    settings.pod_network.iter().map(|_| (Kind::Node, Reach::Cluster)).collect()
}

/// Keeps the pod network, or, without one, does not end. To be called before the first event comes.
/// `programs`: the maps of mode ebpf.
pub fn run(
    prepared: Option<Prepared>,
    world: &World,
    context: &Context,
    programs: Option<Maps>,
) -> impl Future<Output = ()> + use<> {
    let work = prepared.map(|prepared| {
        let nodes = world.follow(|index, dirty| dirty.nodes.then(|| index.nodes().map(Arc::new)));
        let inputs = Inputs { nodes, network: context.network.clone() };
        PodNetworkTask::new(prepared, context, programs).run(inputs)
    });
    async {
        match work {
            Some(work) => work.await,
            None => pending().await,
        }
    }
}

/// What there must be before anything is begun.
pub struct Prepared {
    settings: PodNetworkSettings,
    plugin: PathBuf,
}

/// Finds the plugin to install, if there is to be a pod network.
pub fn prepare(settings: &Settings) -> Result<Option<Prepared>, InstallError> {
    let Some(settings) = settings.pod_network.clone() else { return Ok(None) };
    let plugin = install::plugin(&settings)?;
    Ok(Some(Prepared { settings, plugin }))
}

/// What the task listens to.
struct Inputs {
    /// All Nodes, once they have been listed.
    nodes: watch::Receiver<Option<Arc<Vec<Node>>>>,
    /// Interfaces and addresses, once they have been listed.
    network: watch::Receiver<Option<Network>>,
}

/// Everything that the task knows.
struct PodNetworkTask {
    settings: PodNetworkSettings,
    node_name: String,
    plugin: PathBuf,
    recorder: Recorder,
    metrics: Metrics,
    rules: Rules,
    told: BTreeSet<Problem>,
    told_ports: BTreeSet<host_ports::Refusal>,
    told_loopback: bool,
    /// Pods' links that are not there yet, and are waited for.
    awaited: BTreeSet<String>,
    /// By which of them packets from loopback leave.
    opened: localnet::Opened,
    /// The indices of the VXLAN devices.
    devices: kernel::Indices,
    /// Those that there were to be after the last pass.
    made: BTreeSet<Family>,
    /// What the plugin was told last.
    node_file: Option<NodeFile>,
    installed: install::Known,
    waits: bool,
    /// What the last pass failed with.
    last_error: Option<String>,
    audited: Instant,
    abandoned: abandoned::Watch,
}

impl PodNetworkTask {
    /// A task that has done nothing yet.
    fn new(prepared: Prepared, context: &Context, programs: Option<Maps>) -> Self {
        let Prepared { settings, plugin } = prepared;
        let Context { recorder, metrics, .. } = context.clone();
        let node_name = context.settings.node_name.clone();
        PodNetworkTask {
            settings,
            node_name,
            plugin,
            recorder,
            metrics,
            rules: Rules::new(programs),
            told: BTreeSet::new(),
            told_ports: BTreeSet::new(),
            told_loopback: false,
            awaited: BTreeSet::new(),
            opened: localnet::Opened::default(),
            devices: kernel::Indices::new(),
            made: BTreeSet::new(),
            node_file: None,
            installed: install::Known::default(),
            waits: false,
            last_error: None,
            audited: Instant::now(),
            abandoned: abandoned::Watch::default(),
        }
    }

    /// Runs for as long as somebody tells of Nodes. Everything stays in force afterwards.
    async fn run(mut self, mut inputs: Inputs) {
        self.metrics.count_drops();
        if !install::was_ready(&self.settings)
            && let Err(error) = install::withdraw(&self.settings)
        {
            warn!(%error, "cannot remove the CNI configuration from before the boot");
        }
        let (notices, mut rule_notices) = mpsc::channel(16);
        self.rules.tell_changes_to(notices);
        loop {
            if let Err(error) = self.follow(&mut inputs, &mut rule_notices).await {
                warn!(%error, "cannot watch links, addresses and routes; trying again");
            }
            if inputs.nodes.has_changed().is_err() {
                return;
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    async fn follow(
        &mut self,
        inputs: &mut Inputs,
        rule_notices: &mut mpsc::Receiver<Notice>,
    ) -> std::io::Result<()> {
        let groups = [
            MulticastGroup::Link,
            MulticastGroup::Neigh,
            MulticastGroup::Ipv4Ifaddr,
            MulticastGroup::Ipv6Ifaddr,
            MulticastGroup::Ipv4Route,
            MulticastGroup::Ipv6Route,
        ];
        let (connection, handle, mut messages) = rtnetlink::new_multicast_connection(&groups)?;
        tokio::spawn(connection);
        // Without it, what the plugin writes down is found when the network is looked at anyway.
        let mut written = match self.follow_store() {
            Ok(written) => written.left_stream(),
            Err(error) => {
                let directory = self.settings.cni.data_dir.display();
                warn!(%error, "cannot watch {directory}: host ports take effect with a delay of up to {} s", AUDIT.as_secs());
                futures::stream::pending().right_stream()
            }
        };
        let (mut retry, mut delay) = (None, FIRST_RETRY);
        loop {
            let known =
                inputs.nodes.borrow_and_update().clone().zip(inputs.network.borrow_and_update().clone());
            if let Some((nodes, network)) = known {
                match self.pass(&handle, &nodes, &network).await {
                    Ok(()) => {
                        (retry, delay) = (None, FIRST_RETRY);
                        if self.last_error.take().is_some() {
                            info!("the pod network has recovered");
                        }
                    }
                    Err(error) => {
                        self.failed(&error, delay);
                        retry = Some(delay);
                        delay = (delay * 2).min(LAST_RETRY);
                    }
                }
            }
            let wait =
                tokio::time::sleep(retry.map_or(self.until_repair(), |retry| retry.min(self.until_repair())));
            tokio::pin!(wait);
            tokio::select! {
                changed = inputs.nodes.changed() => if changed.is_err() { return Ok(()) },
                changed = inputs.network.changed() => if changed.is_err() { return Ok(()) },
                Some(notice) = rule_notices.recv() => self.rules.noticed(notice),
                there = notices::until_of_interest(&mut messages, &self.devices, &self.awaited) => if !there { return Ok(()) },
                Some(_) = written.next() => {}
                () = &mut wait => {}
            }
            tokio::time::sleep(SETTLE).await;
            // One pass for all that has come, our own changes among it.
            while let Some(Some(_)) = messages.next().now_or_never() {}
            // Also what came while something else was waited for.
            while let Ok(notice) = rule_notices.try_recv() {
                self.rules.noticed(notice);
            }
        }
    }

    /// How long to rest when nothing is noticed: until the table has to be written anew for what
    /// was, or until the next audit.
    fn until_repair(&self) -> Duration {
        let due = self.rules.due().map(|due| due.saturating_duration_since(Instant::now()));
        due.map_or(AUDIT, |due| due.clamp(FIRST_RETRY, AUDIT))
    }

    /// Tells of an error once, however often it comes again.
    fn failed(&mut self, error: &PassError, delay: Duration) {
        let (text, retry_ms) = (error.to_string(), delay.as_millis() as u64);
        if self.last_error.as_ref() == Some(&text) {
            debug!(%error, retry_ms, "the pod network still cannot be set up completely");
        } else {
            error!(%error, retry_ms, "the pod network cannot be set up completely");
        }
        self.recorder.record(Event::pod_network("PodNetworkFailed", text.clone()));
        self.metrics.pod_network_failures.inc();
        if matches!(error, PassError::Rules(_)) {
            self.rules.distrust();
        }
        self.last_error = Some(text);
    }

    /// Tells when the plugin has written something down.
    fn follow_store(&self) -> std::io::Result<impl Stream<Item = ()> + Unpin + use<>> {
        let cni = &self.settings.cni;
        let file = store::file(&cni.data_dir, &cni.name);
        let directory = file.parent().unwrap_or(&cni.data_dir);
        std::fs::create_dir_all(directory)?;
        let inotify = Inotify::init()?;
        inotify.watches().add(directory, WatchMask::MOVED_TO)?;
        Ok(inotify.into_event_stream(vec![0; 4096])?.map(drop))
    }

    /// Makes everything as it should be.
    async fn pass(&mut self, handle: &Handle, nodes: &[Node], network: &Network) -> Result<(), PassError> {
        let Some((own, wanted)) = self.decide(nodes, network) else {
            return tokio::task::block_in_place(|| self.rules.restore(network));
        };
        // What is wrong with one thing keeps no other from being done; the first error is told in
        // the end.
        let prepared = node::prepare(&families(&own), self.settings.mode).map_err(PassError::from);
        let (mtu, small) = mtu::of_pods(handle, &self.settings, &own, &wanted, network).await?;
        // Before the device and the routes: what is for nobody else never comes in, and what
        // another node sends passes as soon as this one can answer.
        let from_loopback = self.can_open_loopback();
        let written = tokio::task::block_in_place(|| {
            let is_due = self.audited.elapsed() >= AUDIT;
            let known = rules::Known { own: &own, pod_network: &wanted, nodes, network };
            self.rules.write(&self.settings, &known, from_loopback, is_due)
        });
        let settled = self.settle(handle, &own, &wanted, network, mtu).await;
        self.tell(&wanted, mtu);
        tokio::task::block_in_place(|| {
            self.tell_of_ports();
            let opened = if written.is_ok() && from_loopback { self.open_loopback() } else { Ok(()) };
            // Pods that cannot be reached do not start; those that could so far go on.
            let can_start = prepared.is_ok() && settled.is_ok() || self.node_file.is_some();
            let installed = if can_start { self.install(&own, mtu) } else { Ok(()) };
            let audited = self.audit();
            let unreachable = settled.and_then(|of_peer| of_peer.map_or(Ok(()), |error| Err(error.into())));
            prepared.and(unreachable).and(written).and(opened).and(installed).and(audited)
        })?;
        small.map_or(Ok(()), Err)
    }

    /// `None`: this node does not know enough of itself yet.
    fn decide(&mut self, nodes: &[Node], network: &Network) -> Option<(Own, PodNetwork)> {
        let node = nodes.iter().find(|node| node.name.name() == self.node_name);
        let own = node.map(|node| Own { node: node.clone(), networks: network.networks.clone() });
        let decided = own.and_then(|own| {
            let wanted = pod_network(self.settings.between, &own, nodes.iter())?;
            Some((own, wanted))
        });
        if decided.is_none() && !self.waits {
            let what = match node {
                None => "there is no Node with this name yet",
                Some(node) if node.addresses.is_empty() => "the Node has no address yet",
                Some(_) => {
                    "the Node has no pod CIDR yet; does kube-controller-manager run with --allocate-node-cidrs?"
                }
            };
            warn!(node = self.node_name, "pods cannot start: {what}");
            self.recorder.record(Event::pod_network("PodNetworkWaiting", what.into()));
        }
        self.waits = decided.is_none();
        decided
    }

    /// Takes the steps that are missing in the kernel. Returns an error that concerns the way to
    /// one other node only.
    async fn settle(
        &mut self,
        handle: &Handle,
        own: &Own,
        wanted: &PodNetwork,
        network: &Network,
        mtu: u32,
    ) -> Result<Option<KernelError>, PassError> {
        let observed = kernel::observe(handle).await?;
        self.devices = observed.indices;
        if let Some(name) = observed.taken {
            return Err(PassError::NameTaken(name));
        }
        let state = KernelState::wanted(wanted, |family| self.device(family, own, network, mtu));
        let steps = observed.state.steps_to(&state);
        let begun = Instant::now();
        // One that fails does not keep the others from being taken.
        let (mut taken, mut of_node, mut of_peer) = (Vec::new(), None, None);
        for step in &steps {
            debug!("{}", kernel::describe(step));
            match (kernel::take(handle, step, &self.devices).await, step) {
                (Ok(()), Step::AddDevice(device)) => {
                    let family = device.underlay;
                    let index = kernel::device_index(handle, family).await?;
                    self.devices.extend(index.map(|index| (family, index)));
                    taken.push(step);
                    if self.made.contains(&family) && !steps.contains(&Step::DeleteDevice(family)) {
                        warn!("another program deleted {}; created it again", device_name(family));
                    }
                }
                (Ok(()), _) => taken.push(step),
                (Err(error), Step::AddRoute(_) | Step::ReplaceRoute(_)) => drop(of_peer.get_or_insert(error)),
                (Err(error), _) => drop(of_node.get_or_insert(error)),
            }
        }
        self.made = wanted.underlays.clone();
        if let Some(first) = taken.first().map(|step| kernel::describe(step)) {
            let seconds = begun.elapsed().as_secs_f64();
            info!(steps = taken.len(), first, seconds, "pod network changed");
            self.metrics.pod_network_steps.inc_by(taken.len() as u64);
        }
        of_node.map_or(Ok(of_peer), |error| Err(error.into()))
    }

    /// The VXLAN device of a family, without its addresses.
    fn device(&self, family: Family, own: &Own, network: &Network, mtu: u32) -> Device {
        let vni = self.settings.between.vni;
        Device {
            vni,
            port: self.settings.port,
            mac: vtep_mac(&own.node.name, vni),
            underlay: family,
            local: own.node.address(family).filter(|ip| network.addresses.contains(ip)),
            checksums: false,
            mtu,
            addresses: BTreeSet::new(),
        }
    }

    fn install(&mut self, own: &Own, mtu: u32) -> Result<(), PassError> {
        let node_file = NodeFile { pod_cidrs: own.node.pod_cidrs.clone(), mtu };
        let is_known = self.node_file.as_ref() == Some(&node_file);
        if is_known && self.audited.elapsed() < AUDIT {
            return Ok(());
        }
        let changed = install::install(
            &self.settings,
            &self.plugin,
            &node_file,
            &mut self.installed,
            SystemTime::now(),
        )?;
        if !is_known {
            let cidrs: Vec<String> = node_file.pod_cidrs.iter().map(ToString::to_string).collect();
            info!(pod_cidrs = cidrs.join(","), mtu, changed, "pods can start");
        } else if changed {
            warn!("another program changed the CNI plugin or its configuration; restored");
        }
        self.node_file = Some(node_file);
        Ok(())
    }

    /// Takes addresses back whose pods are gone: the host's end of a pod's cable goes with the
    /// pod's network namespace.
    fn audit(&mut self) -> Result<(), PassError> {
        if self.audited.elapsed() < AUDIT {
            return Ok(());
        }
        self.audited = Instant::now();
        let cni = &self.settings.cni;
        let count = self.abandoned.collect(&cni.data_dir, &cni.name, ABANDONED)?;
        if count > 0 {
            warn!(
                count,
                "released addresses of pods that no longer exist; did the container runtime call DEL?"
            );
        }
        Ok(())
    }

    /// Where it cannot be opened, ports of the node do not answer to 127.0.0.1, and everything else
    /// goes on.
    fn can_open_loopback(&mut self) -> bool {
        let Err(error) = localnet::can_open() else { return true };
        if !std::mem::replace(&mut self.told_loopback, true) {
            info!(
                %error,
                "host ports do not answer processes that call from 127.0.0.1, because the sysctl \
                 route_localnet cannot be written; a privileged container can write it"
            );
        }
        false
    }

    /// Behind the rules, which drop what would come in by it.
    fn open_loopback(&mut self) -> Result<(), PassError> {
        self.awaited = self.opened.follow(self.rules.on_loopback())?;
        Ok(())
    }

    /// Says which ports of the node are asked for and not served: their pods start all the same.
    fn tell_of_ports(&mut self) {
        let refusals = self.rules.refusals();
        for refusal in refusals.difference(&self.told_ports) {
            warn!("{refusal}");
            self.recorder.record(Event::pod_network("PodNetworkProblem", refusal.to_string()));
        }
        self.told_ports.clone_from(refusals);
    }

    /// Says what is new.
    fn tell(&mut self, wanted: &PodNetwork, mtu: u32) {
        for problem in wanted.problems.difference(&self.told) {
            warn!("{problem}");
            self.recorder.record(Event::pod_network("PodNetworkProblem", problem.to_string()));
        }
        for problem in self.told.difference(&wanted.problems) {
            info!("resolved: {problem}");
        }
        self.told.clone_from(&wanted.problems);
        self.metrics.pod_network_routes.set(wanted.routes.len() as i64);
        self.metrics.pod_network_problems.set(wanted.problems.len() as i64);
        self.metrics.pod_network_mtu.set(i64::from(mtu));
    }
}

fn families(own: &Own) -> Vec<Family> {
    let has = |family| own.node.pod_cidr(family).is_some();
    Family::BOTH.into_iter().filter(|family| has(*family)).collect()
}
