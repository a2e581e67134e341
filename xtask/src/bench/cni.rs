//! The CNI plugin beside Debian's bridge and host-local: how long ADD and DEL take, one after the
//! other and 100 at once.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use serde_json::{Value, json};
use sluice_tests::process::{NETNS_DIR, Namespace, ip_batch, run as run_program};

use crate::image::binary;
use crate::machine;

/// Arguments of `bench cni`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Pods of each plugin in a turn; they are added one after the other, deleted, and added all at
    /// once
    #[arg(long, default_value_t = 100)]
    pods: usize,
    /// Number of turns of each plugin
    #[arg(long, default_value_t = 5)]
    turns: usize,
    /// IPv4 only; this makes plugins that wait for duplicate address detection look faster
    #[arg(long)]
    ipv4_only: bool,
}

/// Where Debian has the plugins of github.com/containernetworking/plugins.
const DEBIAN: &str = "/usr/lib/cni";
const LIMIT: Duration = Duration::from_secs(120);

/// A plugin with its configuration.
struct Contestant {
    name: &'static str,
    program: PathBuf,
    config: Value,
}

/// The namespaces and files of a run; dropping it removes them.
struct Node {
    namespace: Namespace,
    pods: Vec<String>,
    directory: PathBuf,
}

impl Drop for Node {
    fn drop(&mut self) {
        let names = self.pods.iter().map(String::as_str).chain([self.namespace.name()]);
        let lines: String = names.map(|name| format!("netns del {name}\n")).collect();
        // What is left is removed by the next run's clean-up of labs.
        drop(ip_batch(None, &lines));
        drop(std::fs::remove_dir_all(&self.directory));
    }
}

impl Node {
    fn create(pods: usize) -> Result<Self> {
        let prefix = format!("sl{}-0", std::process::id());
        let directory = std::env::temp_dir().join(format!("sluice-lab-{}-cni", std::process::id()));
        std::fs::create_dir_all(&directory)?;
        let name = format!("{prefix}-node");
        let pods: Vec<String> = (0..pods).map(|i| format!("{prefix}-pod{i}")).collect();
        let lines: String = pods.iter().chain([&name]).map(|name| format!("netns add {name}\n")).collect();
        ip_batch(None, &lines)?;
        ip_batch(Some(&name), "link set lo up\n")?;
        Ok(Node { namespace: Namespace::new(name, None), pods, directory })
    }

    /// Makes the pods' namespaces anew.
    fn renew(&self) -> Result<()> {
        let lines = |verb: &str| -> String {
            self.pods.iter().map(|name| format!("netns {verb} {name}\n")).collect()
        };
        ip_batch(None, &lines("del"))?;
        ip_batch(None, &lines("add"))
    }

    fn start(&self, plugin: &Contestant, verb: &str, pod: &str) -> Result<std::process::Child> {
        let mut command: Command = self.namespace.command(&plugin.program)?;
        command.env_clear().envs([("CNI_COMMAND", verb), ("CNI_CONTAINERID", pod), ("CNI_IFNAME", "eth0")]);
        command.env("CNI_NETNS", Path::new(NETNS_DIR).join(pod)).env("CNI_PATH", DEBIAN);
        let config = std::fs::File::open(self.directory.join(plugin.name))?;
        command.stdin(config).stdout(Stdio::piped()).stderr(Stdio::piped());
        command.spawn().with_context(|| format!("starting {}", plugin.program.display()))
    }

    /// Calls a plugin; how long it took, in milliseconds, and the addresses that it gave.
    fn call(&self, plugin: &Contestant, verb: &str, pod: &str) -> Result<(f64, Vec<String>)> {
        let begun = Instant::now();
        let output = self.start(plugin, verb, pod)?.wait_with_output()?;
        let millis = begun.elapsed().as_secs_f64() * 1e3;
        let text = String::from_utf8_lossy(&output.stdout);
        ensure!(output.status.success(), "{}: {verb} of {pod}: {text}", plugin.name);
        Ok((millis, addresses(&text)))
    }
}

fn addresses(text: &str) -> Vec<String> {
    let value: Value = serde_json::from_str(text).unwrap_or_default();
    let ips = value["ips"].as_array().cloned().unwrap_or_default();
    ips.iter().filter_map(|ip| ip["address"].as_str()).map(str::to_owned).collect()
}

/// Samples by what was measured, then by plugin.
type Samples = BTreeMap<(&'static str, &'static str), Vec<f64>>;

/// Measures and prints.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    machine::prepare()?;
    machine::install(&[("/usr/lib/cni/bridge", "containernetworking-plugins")])?;
    // What nodes get, and not what is quick to build.
    let sluice = binary::plugin()?;
    sluice_tests::interrupt::install()?;
    sluice_tests::lab::prune::stale();
    let node = Node::create(arguments.pods)?;
    let plugins = contestants(&node, &sluice, arguments.ipv4_only)?;
    let mut samples = Samples::new();
    for _ in 0..arguments.turns {
        serial(&node, &plugins, &mut samples)?;
        for plugin in &plugins {
            node.renew()?;
            parallel(&node, plugin, &mut samples)?;
        }
        node.renew()?;
    }
    for plugin in &plugins {
        leaves_nothing(&node, plugin)?;
    }
    print(arguments, &plugins, &mut samples);
    Ok(())
}

fn contestants(node: &Node, sluice: &Path, ipv4_only: bool) -> Result<Vec<Contestant>> {
    let subnets = |number: u8| {
        let v4 = json!([{"subnet": format!("10.{number}.0.0/16")}]);
        let v6 = json!([{"subnet": format!("fd00:{number}::/64")}]);
        if ipv4_only { json!([v4]) } else { json!([v4, v6]) }
    };
    let data = |name: &str| node.directory.join(format!("{name}.data"));
    let of_sluice = |name: &'static str, mode: &str, number: u8| Contestant {
        name,
        program: sluice.to_owned(),
        config: json!({
            "cniVersion": "1.0.0", "name": name, "type": "sluice-cni", "mode": mode, "bridge": "sluice0",
            "dataDir": data(name), "ipam": {"ranges": subnets(number)},
        }),
    };
    let default_routes = json!([{"dst": "0.0.0.0/0"}, {"dst": "::/0"}]);
    let plugins = vec![
        of_sluice("sluice-routed", "routed", 51),
        of_sluice("sluice-bridge", "bridge", 52),
        Contestant {
            name: "bridge+host-local",
            program: Path::new(DEBIAN).join("bridge"),
            config: json!({
                "cniVersion": "1.0.0", "name": "debian", "type": "bridge", "bridge": "cni0", "isGateway": true,
                "hairpinMode": true, "ipam": {"type": "host-local", "dataDir": data("debian"),
                    "ranges": subnets(53), "routes": if ipv4_only { json!([{"dst": "0.0.0.0/0"}]) } else { default_routes }},
            }),
        },
    ];
    for plugin in &plugins {
        std::fs::write(node.directory.join(plugin.name), plugin.config.to_string())?;
    }
    Ok(plugins)
}

/// Each pod is given to one plugin after the other, so that all see the same machine.
fn serial(node: &Node, plugins: &[Contestant], samples: &mut Samples) -> Result<()> {
    for pod in &node.pods {
        for plugin in plugins {
            let (add, _) = node.call(plugin, "ADD", pod)?;
            let (del, _) = node.call(plugin, "DEL", pod)?;
            samples.entry(("ADD, one after the other", plugin.name)).or_default().push(add);
            samples.entry(("DEL, one after the other", plugin.name)).or_default().push(del);
        }
    }
    Ok(())
}

/// All pods at once.
fn parallel(node: &Node, plugin: &Contestant, samples: &mut Samples) -> Result<()> {
    for verb in ["ADD", "DEL"] {
        let begun = Instant::now();
        let mut running = Vec::new();
        for pod in &node.pods {
            running.push(node.start(plugin, verb, pod)?);
        }
        let mut given = BTreeSet::new();
        for child in running {
            let output = child.wait_with_output()?;
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            ensure!(output.status.success(), "{}: parallel {verb}: {text}", plugin.name);
            for address in addresses(&text) {
                ensure!(given.insert(address.clone()), "{}: {address} was allocated twice", plugin.name);
            }
        }
        let millis = begun.elapsed().as_secs_f64() * 1e3;
        let what = if verb == "ADD" { "ADD, all at once" } else { "DEL, all at once" };
        samples.entry((what, plugin.name)).or_default().push(millis);
    }
    Ok(())
}

/// After as many DELs as ADDs there is no link and no address.
fn leaves_nothing(node: &Node, plugin: &Contestant) -> Result<()> {
    let mut command = node.namespace.command("ip")?;
    command.args(["-o", "link", "show", "type", "veth"]);
    let links = run_program(command, None, LIMIT)?.stdout;
    if !links.trim().is_empty() {
        bail!("links are left: {links}");
    }
    let leases = node.directory.join(format!("{0}.data/{0}/leases.json", plugin.name));
    if let Ok(text) = std::fs::read(&leases) {
        let held = serde_json::from_slice::<Value>(&text)?["leases"].as_array().map_or(0, Vec::len);
        ensure!(held == 0, "{}: {held} addresses are left", plugin.name);
    }
    Ok(())
}

fn print(arguments: &Arguments, plugins: &[Contestant], samples: &mut Samples) {
    let families = if arguments.ipv4_only { "IPv4" } else { "IPv4 and IPv6" };
    println!(
        "{} pods, {} turns, {families}; one after the other: milliseconds of a call; all at once: until the last is done",
        arguments.pods, arguments.turns
    );
    println!("{:<26} {:<18} {:>9} {:>9} {:>9} {:>9}", "what", "plugin", "median", "p99", "min", "max");
    for what in
        ["ADD, one after the other", "DEL, one after the other", "ADD, all at once", "DEL, all at once"]
    {
        for plugin in plugins {
            let Some(series) = samples.get_mut(&(what, plugin.name)) else { continue };
            series.sort_by(f64::total_cmp);
            let at = |share: f64| {
                let place = (series.len() as f64 * share).ceil() as usize;
                series.get(place.saturating_sub(1)).copied().unwrap_or(f64::NAN)
            };
            println!(
                "{what:<26} {:<18} {:>9.2} {:>9.2} {:>9.2} {:>9.2}",
                plugin.name,
                at(0.5),
                at(0.99),
                at(0.0),
                at(1.0)
            );
        }
    }
}
