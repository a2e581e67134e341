//! A lab: a small cluster of network namespaces on this machine, removed again when it is dropped.
//!
//! Labs use the same addresses and do not see each other, so any number can run at once. Processes
//! of a lab are killed when the thread that started them ends: use a lab from the thread that
//! created it.

pub mod bpffs;
pub mod cgroup;
mod network;
pub mod plugin;
pub mod prune;
mod starting;

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail, ensure};
use serde_json::{Value, json};

use crate::address::NodeAddresses;
use crate::agent::Agent;
use crate::agent::protocol::{Attempt, ProbeRequest};
use crate::cluster::Cluster;
use crate::needs;
use crate::objects::{self, Key, Manifests, Objects};
use crate::process::{self, Finished, Namespace, ip_batch};
use crate::proxy::{self, Proxy, ProxyProgram, Source};
use crate::target::{From, Target};
use crate::topology::{PodSpec, Topology};
use bpffs::Pins;
use cgroup::Cgroups;
use plugin::{Plugin, PodNetwork};

/// What a lab needs to know beside its topology.
#[derive(Debug, Clone)]
pub struct LabOptions {
    /// The `sluice-conformance` binary, which is also the agent
    pub agent: PathBuf,
    /// The proxy under test
    pub proxy: ProxyProgram,
    /// Who wires pods and joins nodes
    pub pod_network: PodNetwork,
}

impl LabOptions {
    /// The lab wires pods itself.
    #[must_use]
    pub fn new(agent: PathBuf, proxy: ProxyProgram) -> Self {
        Self { agent, proxy, pod_network: PodNetwork::Lab }
    }
}

/// A running lab.
#[derive(Debug)]
pub struct Lab {
    // Fields are dropped in this order: processes first, then what they live in.
    /// By node and program
    proxies: BTreeMap<(String, String), Proxy>,
    agents: BTreeMap<From, Arc<Agent>>,
    objects: Objects,
    options: LabOptions,
    topology: Topology,
    places: Places,
}

/// The namespaces, cgroups, pins and files of a lab; dropping it removes them.
#[derive(Debug)]
struct Places {
    prefix: String,
    namespaces: Vec<String>,
    cgroups: Option<Cgroups>,
    pins: Pins,
    dir: PathBuf,
}

impl Places {
    fn create(topology: &Topology) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let name = format!("sluice-lab-{id}");
        let dir = std::env::temp_dir().join(&name);
        let (prefix, pins) = (format!("sl{id}"), Pins::new(name.clone()));
        let mut places = Self { prefix, namespaces: Vec::new(), cgroups: None, pins, dir };
        std::fs::create_dir(&places.dir).with_context(|| format!("creating {}", places.dir.display()))?;
        let members =
            topology.nodes.keys().chain(topology.pods.keys()).map(String::as_str).chain(["client", "switch"]);
        places.namespaces = members.map(|name| places.netns(name)).collect();
        if let Some(root) = cgroup::root() {
            // A machine that does not let us is good enough for every backend but eBPF.
            places.cgroups = Cgroups::create(&root, &name, topology.nodes.keys()).ok();
        }
        let lines: String = places.namespaces.iter().map(|name| format!("netns add {name}\n")).collect();
        ip_batch(None, &lines)?;
        Ok(places)
    }

    fn netns(&self, member: &str) -> String {
        format!("{}-{member}", self.prefix)
    }

    fn namespace(&self, member: &str, node: Option<&str>) -> Namespace {
        let cgroup = node.and_then(|node| self.cgroups.as_ref().map(|cgroups| cgroups.of(node)));
        Namespace::new(self.netns(member), cgroup)
    }
}

impl Drop for Places {
    fn drop(&mut self) {
        prune::kill_inhabitants(&self.namespaces);
        if let Some(cgroups) = &self.cgroups {
            cgroups.remove();
        }
        self.pins.remove();
        prune::remove_namespaces(&self.namespaces);
        // Nothing can be done about files that do not go; the next prune tries again.
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

impl Lab {
    /// Builds a lab: namespaces, network, echo servers, and the objects of its own nodes, in files.
    /// No proxy runs yet.
    pub fn create(topology: &Topology, options: LabOptions) -> Result<Self> {
        Self::build(topology, options, None)
    }

    /// The same with the objects in an API server, which is emptied first and plugged into the
    /// lab's switch.
    pub fn create_with(topology: &Topology, options: LabOptions, cluster: Rc<Cluster>) -> Result<Self> {
        Self::build(topology, options, Some(cluster))
    }

    fn build(topology: &Topology, options: LabOptions, cluster: Option<Rc<Cluster>>) -> Result<Self> {
        topology.check()?;
        let places = Places::create(topology)?;
        let objects = match &cluster {
            None => Objects::Files(Manifests::create(places.dir.join("manifests"))?),
            Some(cluster) => {
                cluster.api().empty()?;
                Objects::Api(Rc::clone(cluster))
            }
        };
        let mut lab = Self {
            proxies: BTreeMap::new(),
            agents: BTreeMap::new(),
            objects,
            options,
            topology: topology.clone(),
            places,
        };
        lab.start_agents()?;
        lab.connect()?;
        if let Some(cluster) = &cluster {
            cluster.plug_into(&lab.places.netns("switch"), needs::has_ipv6())?;
        }
        lab.start_echo_servers()?;
        for (key, object) in objects::of_the_lab(topology) {
            lab.objects.put(&key, &object)?;
        }
        Ok(lab)
    }

    fn start_agents(&mut self) -> Result<()> {
        let v6 = needs::has_ipv6();
        let nodes = self.topology.nodes.keys().cloned().map(From::Host);
        let places: Vec<From> =
            nodes.chain(self.topology.pods.keys().cloned().map(From::Pod)).chain([From::Client]).collect();
        for place in places {
            let agent = Agent::start(&self.options.agent, &self.namespace(&place))?;
            agent.sysctl(network::EVERYWHERE)?;
            if v6 {
                agent.sysctl(network::EVERYWHERE6)?;
            }
            if matches!(place, From::Host(_)) {
                agent.sysctl(network::FORWARDING)?;
                if v6 {
                    agent.sysctl(network::FORWARDING6)?;
                }
            }
            self.agents.insert(place, Arc::new(agent));
        }
        Ok(())
    }

    fn connect(&self) -> Result<()> {
        let v6 = needs::has_ipv6();
        let netns = |member: &str| self.places.netns(member);
        let batch = |member: &str, batch: &network::Batch| ip_batch(Some(&netns(member)), batch.text());
        batch("switch", &network::switch(&self.topology, v6, netns))?;
        for node in self.topology.nodes.keys() {
            batch(node, &network::node(node, v6))?;
            match self.options.pod_network {
                PodNetwork::Lab => batch(node, &network::pods_of(&self.topology, node, v6, netns))?,
                PodNetwork::Sluice | PodNetwork::SluiceDirect => batch(node, &network::gateways(node, v6))?,
                // The bridge has them.
                PodNetwork::SluiceBridge => {}
            }
        }
        for (name, pod) in &self.topology.pods {
            if self.options.pod_network.is_sluice() {
                self.add_pod(name, pod)?;
            } else {
                batch(name, &network::pod(pod, v6))?;
            }
        }
        batch("client", &network::client(&self.topology, v6))
    }

    /// Has a pod wired by our plugin.
    fn add_pod(&self, name: &str, pod: &PodSpec) -> Result<()> {
        let (node, dir) = (self.namespace(&From::Host(pod.node.clone())), self.node_dir(&pod.node)?);
        self.plugin(&node, &dir).call("ADD", name, &self.places.netns(name), pod, &json!({}))
    }

    /// Takes a pod off the network, and wires it anew with what a runtime may ask for
    /// (`runtimeConfig`).
    pub fn rewire(&self, name: &str, runtime_config: &Value) -> Result<()> {
        let pod = self.topology.pods.get(name).ok_or_else(|| anyhow!("no pod {name}"))?;
        let (node, dir) = (self.namespace(&From::Host(pod.node.clone())), self.node_dir(&pod.node)?);
        let plugin = self.plugin(&node, &dir);
        plugin.call("DEL", name, &self.places.netns(name), pod, &json!({}))?;
        plugin.call("ADD", name, &self.places.netns(name), pod, runtime_config)
    }

    /// A network namespace that is no pod of the topology, to be removed with the lab. Its name for
    /// `ip netns`.
    pub fn extra_namespace(&mut self, name: &str) -> Result<String> {
        let name = self.places.netns(name);
        ip_batch(None, &format!("netns add {name}\n"))?;
        self.places.namespaces.push(name.clone());
        Ok(name)
    }

    fn plugin<'a>(&self, node: &'a Namespace, dir: &'a Path) -> Plugin<'a> {
        let program = self.options.proxy.sluice.with_file_name("sluice-cni");
        Plugin { program, node, dir, network: self.options.pod_network }
    }

    fn start_echo_servers(&self) -> Result<()> {
        for (name, pod) in &self.topology.pods {
            for listen in pod.listeners() {
                self.agent(&From::Pod(name.clone()))?.listen(listen, name)?;
            }
        }
        for (host, listeners) in &self.topology.hosts {
            let place = if host == "client" { From::Client } else { From::Host(host.clone()) };
            for listen in listeners {
                self.agent(&place)?.listen(*listen, host)?;
            }
        }
        Ok(())
    }

    /// What it was built from.
    #[must_use]
    pub fn topology(&self) -> &Topology {
        &self.topology
    }

    /// The proxy under test, as `--proxy` calls it.
    #[must_use]
    pub fn mode(&self) -> &str {
        &self.options.proxy.name
    }

    /// Its directory of temporary files.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.places.dir
    }

    /// The agent at a place.
    pub fn agent(&self, place: &From) -> Result<&Agent> {
        Ok(self.agents.get(place).ok_or_else(|| anyhow!("the lab has no {place}"))?)
    }

    /// The same, to be used by another thread while this one changes the lab.
    pub fn shared_agent(&self, place: &From) -> Result<Arc<Agent>> {
        self.agents.get(place).map(Arc::clone).ok_or_else(|| anyhow!("the lab has no {place}"))
    }

    /// The namespace of a place.
    #[must_use]
    pub fn namespace(&self, place: &From) -> Namespace {
        match place {
            From::Pod(pod) => {
                self.places.namespace(pod, self.topology.pods.get(pod).map(|pod| pod.node.as_str()))
            }
            From::Host(node) => self.places.namespace(node, Some(node)),
            From::Client => self.places.namespace("client", None),
        }
    }

    /// A command in a node, with the proxy's own directory first in PATH.
    pub fn command(&self, node: &str, argv: &[String]) -> Result<Command> {
        self.topology.check_node(node)?;
        let (program, rest) = argv.split_first().ok_or_else(|| anyhow!("an empty argv"))?;
        let path = self.options.proxy.path_variable();
        // The standard library resolves a bare name with the child's PATH, as long as that was set
        // explicitly.
        let mut command = self.namespace(&From::Host(node.to_owned())).command(program)?;
        command.args(rest).env("PATH", path).current_dir(self.node_dir(node)?);
        // Where `sluice cleanup` looks for this node's maps and programs, and not for the
        // machine's.
        command.env("SLUICE_BPFFS", self.places.pins.of(node));
        Ok(command)
    }

    /// Runs a program in a node to its end, for at most 30 s.
    pub fn run(&self, node: &str, argv: &[String]) -> Result<Finished> {
        process::run(self.command(node, argv)?, None, Duration::from_secs(30))
    }

    /// Runs a line of shell at a place, for at most 30 s, and returns what it prints; fails if it
    /// does.
    pub fn shell(&self, place: &From, line: &str) -> Result<String> {
        let mut command = self.namespace(place).command("sh")?;
        command.args(["-ec", line]);
        let done = process::run(command, None, Duration::from_secs(30))?;
        ensure!(done.status.success(), "{place}: {line}: {}", done.stderr.trim());
        Ok(done.stdout)
    }

    fn node_dir(&self, node: &str) -> Result<PathBuf> {
        let dir = self.places.dir.join(node);
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// The lab's own proxy lives in the node's directory, any other in one below.
    fn program_dir(&self, node: &str, name: &str) -> Result<PathBuf> {
        let dir = self.node_dir(node)?;
        let dir = if name == self.options.proxy.name { dir } else { dir.join(name) };
        std::fs::create_dir_all(&dir)?;
        Ok(dir)
    }

    /// Creates or replaces the objects of a YAML text.
    pub fn apply(&self, yaml: &str) -> Result<()> {
        self.apply_all(&objects::parse(yaml)?)
    }

    /// Creates or replaces objects.
    pub fn apply_all(&self, objects: &[(Key, Value)]) -> Result<()> {
        objects.iter().try_for_each(|(key, object)| self.apply_object(key, object))
    }

    /// Creates or replaces one object.
    pub fn apply_object(&self, key: &Key, object: &Value) -> Result<()> {
        self.objects.put(key, object)
    }

    /// Has all files of objects read again.
    pub fn exchange_files(&self) -> Result<()> {
        match &self.objects {
            Objects::Files(manifests) => manifests.exchange(),
            Objects::Api(_) => bail!("there are no files: objects come from an API server"),
        }
    }

    /// Deletes an object.
    pub fn delete(&self, key: &Key) -> Result<()> {
        self.objects.remove(key)
    }

    /// Opens connections from a place; with `via`, the client sends through that node meanwhile.
    pub fn probe(&self, from: &From, request: ProbeRequest, via: Option<&str>) -> Result<Vec<Attempt>> {
        let agent = self.agent(from)?;
        let Some(via) = via else { return agent.probe(request) };
        if *from != From::Client {
            bail!("only the client can choose the node that it sends through");
        }
        let node = NodeAddresses::of(via).ok_or_else(|| anyhow!("no node {via}"))?;
        let mut dests: Vec<IpAddr> = request.dests.iter().map(|dest: &Target| dest.addr).collect();
        dests.sort_unstable();
        dests.dedup();
        let netns = self.places.netns("client");
        let lines =
            |add: bool| dests.iter().map(|dest| network::client_via(&node, *dest, add)).collect::<String>();
        ip_batch(Some(&netns), &lines(true))?;
        let attempts = agent.probe(request);
        ip_batch(Some(&netns), &lines(false))?;
        attempts
    }

    /// Starts the proxy in a node, with `config` merged over the lab's own configuration.
    pub fn start_proxy(&mut self, node: &str, config: &Value) -> Result<()> {
        let program = self.options.proxy.clone();
        self.start_program(node, &program, config)
    }

    /// Starts a proxy in a node that may be another than the lab's own, and run beside it.
    pub fn start_program(&mut self, node: &str, program: &ProxyProgram, config: &Value) -> Result<()> {
        self.topology.check_node(node)?;
        let key = (node.to_owned(), program.name.clone());
        if self.proxies.contains_key(&key) {
            bail!("{} on {node} is already running", program.name);
        }
        let dir = self.program_dir(node, &program.name)?;
        let namespace = self.namespace(&From::Host(node.to_owned()));
        let source = match &self.objects {
            Objects::Files(manifests) => Source::Manifests(manifests.dir().to_owned()),
            Objects::Api(cluster) => {
                Source::Api(cluster.kubeconfig(program.account(), &dir.join("kubeconfig"), false)?)
            }
        };
        let config = match program.mode() {
            "ebpf" => &proxy::merged(self.of_the_node(node)?, config),
            // It removes what the eBPF backend left, and must not look for that where the machine
            // has it.
            _ if program.is_sluice() => {
                &proxy::merged(json!({"sluice": {"ebpf": {"bpffs": self.places.pins.of(node)}}}), config)
            }
            _ => config,
        };
        let with_pods = match self.options.pod_network {
            network if network.is_sluice() && program.is_sluice() => {
                &proxy::merged(network.section(&self.node_dir(node)?), config)
            }
            _ => config,
        };
        let config = proxy::configuration(program.mode(), &source, with_pods);
        let metrics = starting::metrics_url(&config);
        let proxy = Proxy::start(program, node, &namespace, &dir, &source, &config, metrics)?;
        self.proxies.insert(key, proxy);
        Ok(())
    }

    /// Where a node's eBPF backend pins its maps and links.
    #[must_use]
    pub fn bpffs(&self, node: &str) -> PathBuf {
        self.places.pins.of(node)
    }

    /// What the eBPF backend has to know in order to leave other nodes and the machine alone.
    fn of_the_node(&self, node: &str) -> Result<Value> {
        let cgroups = self.places.cgroups.as_ref();
        let cgroup = cgroups.context("mode ebpf needs a writable cgroup2 mount")?.of(node);
        let bpffs = self.places.pins.create(node)?;
        Ok(json!({"sluice": {"ebpf": {"cgroupRoot": cgroup, "bpffs": bpffs}}}))
    }

    /// Starts the proxy in every node.
    pub fn start_proxies(&mut self, config: &Value) -> Result<()> {
        let nodes: Vec<String> = self.topology.nodes.keys().cloned().collect();
        nodes.iter().try_for_each(|node| self.start_proxy(node, config))
    }

    /// Kills the proxy in a node (SIGKILL).
    pub fn kill_proxy(&mut self, node: &str) -> Result<()> {
        let program = self.options.proxy.clone();
        self.take_proxy(node, &program)?.kill();
        Ok(())
    }

    /// Asks the proxy in a node to end (SIGTERM) and waits for it.
    pub fn stop_proxy(&mut self, node: &str) -> Result<()> {
        let program = self.options.proxy.clone();
        self.stop_program(node, &program)
    }

    /// The same for a proxy that [`Self::start_program`] started.
    pub fn stop_program(&mut self, node: &str, program: &ProxyProgram) -> Result<()> {
        self.take_proxy(node, program)?.stop()
    }

    fn take_proxy(&mut self, node: &str, program: &ProxyProgram) -> Result<Proxy> {
        self.check_proxies()?;
        let key = (node.to_owned(), program.name.clone());
        self.proxies.remove(&key).ok_or_else(|| anyhow!("no {} runs on {node}", program.name))
    }

    /// Kills a proxy that [`Self::start_program`] started.
    pub fn kill_program(&mut self, node: &str, program: &ProxyProgram) -> Result<()> {
        self.take_proxy(node, program)?.kill();
        Ok(())
    }

    /// The process of a proxy in a node.
    pub fn program_pid(&self, node: &str, program: &ProxyProgram) -> Result<u32> {
        let key = (node.to_owned(), program.name.clone());
        self.proxies.get(&key).map(Proxy::pid).ok_or_else(|| anyhow!("no {} runs on {node}", program.name))
    }

    /// Fails if a proxy ended by itself.
    pub fn check_proxies(&mut self) -> Result<()> {
        self.proxies.values_mut().try_for_each(Proxy::check)
    }

    /// The last lines of each proxy's log.
    #[must_use]
    pub fn proxy_logs(&self, lines: usize) -> BTreeMap<String, String> {
        let others = self.proxies.keys().filter(|(_, name)| *name != self.options.proxy.name);
        let others = others.map(|(node, name)| (format!("{name} on {node}"), format!("{node}/{name}")));
        let own = self.topology.nodes.keys().map(|node| (format!("the proxy on {node}"), node.clone()));
        let log = |dir: &str| process::tail(&self.places.dir.join(dir).join("proxy.log"), lines);
        own.chain(others).map(|(place, dir)| (place, log(&dir))).collect()
    }
}
