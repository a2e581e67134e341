//! The proxy under test as a process in a node: its configuration, start, stop, and what its log
//! says.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::address::CLUSTER_CIDR;
use crate::cluster::Account;
use crate::process::{self, Namespace};

/// Programs of iptables, which kube-proxy runs by these names. The kernel's own tables, not those
/// of nf_tables.
const IPTABLES: [&str; 6] =
    ["iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"];
/// What they are links to.
const IPTABLES_LEGACY: &str = "/usr/sbin/xtables-legacy-multi";

/// Which proxy is tested.
#[derive(Debug, Clone)]
pub struct ProxyProgram {
    /// What `--proxy` calls it: `nftables`, `ebpf`, `kube-proxy-nftables`, …
    pub name: String,
    /// The sluice binary, which cases may run whatever the proxy is
    pub sluice: PathBuf,
    /// The binary of the real kube-proxy, if it is the one that is tested
    pub kube_proxy: Option<PathBuf>,
    /// Its version, such as 1.36.3
    pub version: Option<String>,
}

/// Where a proxy gets its objects from.
#[derive(Debug)]
pub enum Source {
    /// The files of a directory
    Manifests(PathBuf),
    /// The API server of a kubeconfig
    Api(PathBuf),
}

impl ProxyProgram {
    /// Sluice in a mode; the binary is made absolute and must exist.
    pub fn sluice(binary: &Path, mode: &str) -> Result<Self> {
        let sluice = binary.canonicalize().with_context(|| format!("no proxy at {}", binary.display()))?;
        Ok(Self { name: mode.to_owned(), sluice, kube_proxy: None, version: None })
    }

    /// The real kube-proxy in a mode.
    pub fn kube_proxy(binary: &Path, mode: &str, sluice: &Path) -> Result<Self> {
        let own = Self::sluice(sluice, &format!("kube-proxy-{mode}"))?;
        let binary =
            binary.canonicalize().with_context(|| format!("no kube-proxy at {}", binary.display()))?;
        let version = kube_proxy_version(&binary)?;
        Ok(Self { kube_proxy: Some(binary), version: Some(version), ..own })
    }

    /// The names that a case may except it by: `kube-proxy-nftables`, and with `@1.37` or `@1.37.2`
    /// behind.
    #[must_use]
    pub fn names(&self) -> Vec<String> {
        let mut names = vec![self.name.clone()];
        if let Some(version) = &self.version {
            let minor = version.rsplit_once('.').map(|(minor, _)| minor);
            names.extend(
                minor.into_iter().chain([version.as_str()]).map(|number| format!("{}@{number}", self.name)),
            );
        }
        names
    }

    /// Its mode, as its configuration calls it.
    #[must_use]
    pub fn mode(&self) -> &str {
        self.name.strip_prefix("kube-proxy-").unwrap_or(&self.name)
    }

    /// Whether it is sluice, in whatever mode.
    #[must_use]
    pub fn is_sluice(&self) -> bool {
        self.kube_proxy.is_none()
    }

    /// Its account at the API server.
    #[must_use]
    pub fn account(&self) -> Account {
        if self.is_sluice() { Account::Sluice } else { Account::KubeProxy }
    }

    /// PATH for programs in a node: sluice's directory comes first.
    #[must_use]
    pub fn path_variable(&self) -> OsString {
        let own = self.sluice.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
        let mut path = own;
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
        path
    }

    /// PATH for kube-proxy: its iptables come first.
    fn kube_proxy_path(&self, dir: &Path) -> Result<OsString> {
        let mut path = legacy_iptables(dir)?.into_os_string();
        path.push(":");
        path.push(self.path_variable());
        Ok(path)
    }

    fn command(&self, namespace: &Namespace, dir: &Path, node: &str, source: &Source) -> Result<Command> {
        let mut path = self.path_variable();
        let mut command = match (&self.kube_proxy, source) {
            (None, source) => {
                let mut command = namespace.command(&self.sluice)?;
                command.arg("run");
                if let Source::Manifests(dir) = source {
                    command.arg("--manifests").arg(dir);
                }
                command
            }
            (Some(_), Source::Manifests(_)) => bail!("{} reads no manifests: use --source api", self.name),
            (Some(kube_proxy), Source::Api(_)) => {
                path = self.kube_proxy_path(dir)?;
                namespace.command(kube_proxy)?
            }
        };
        command.arg("--config").arg(dir.join("config.yaml")).args(["--hostname-override", node]);
        command.env("PATH", path).current_dir(dir);
        Ok(command)
    }
}

/// What `kube-proxy --version` says.
fn kube_proxy_version(binary: &Path) -> Result<String> {
    let mut command = Command::new(binary);
    command.arg("--version");
    let said = process::run(command, None, Duration::from_secs(30))?.stdout;
    let version = said.trim().strip_prefix("Kubernetes v");
    Ok(version.with_context(|| format!("{} --version prints {said:?}", binary.display()))?.to_owned())
}

/// A directory, in `dir`, with links that call iptables by its legacy variant.
pub fn legacy_iptables(dir: &Path) -> Result<PathBuf> {
    let links = dir.join("iptables");
    if !links.is_dir() {
        std::fs::create_dir(&links)?;
        for name in IPTABLES {
            std::os::unix::fs::symlink(IPTABLES_LEGACY, links.join(name))?;
        }
    }
    Ok(links)
}

/// The configuration of a lab's proxy with a case's own merged over it.
#[must_use]
pub fn configuration(mode: &str, source: &Source, over: &Value) -> Value {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDR": CLUSTER_CIDR,
    });
    if let Source::Api(kubeconfig) = source {
        // The size of the connection table can be set outside of namespaces only; kube-proxy ends
        // when it cannot.
        let of_the_lab = json!({
            "clientConnection": {"kubeconfig": kubeconfig},
            "conntrack": {"maxPerCore": 0},
        });
        merge(&mut config, &of_the_lab);
    }
    merge(&mut config, over);
    config
}

/// A configuration with another one merged over it.
#[must_use]
pub fn merged(mut base: Value, over: &Value) -> Value {
    merge(&mut base, over);
    base
}

fn merge(base: &mut Value, over: &Value) {
    match (base, over) {
        (Value::Object(base), Value::Object(over)) => {
            for (key, value) in over {
                merge(base.entry(key).or_insert(Value::Null), value);
            }
        }
        (_, Value::Null) => {}
        (base, over) => *base = over.clone(),
    }
}

/// A running proxy. Dropping it kills the process.
#[derive(Debug)]
pub struct Proxy {
    child: Child,
    node: String,
    log: PathBuf,
    started: Instant,
    /// Its metrics, until they have told of its first sync
    metrics: Option<String>,
}

impl Proxy {
    /// Starts it with a whole configuration, which has its metrics at that URL; it may take a
    /// moment until it has done its first sync.
    pub fn start(
        program: &ProxyProgram,
        node: &str,
        namespace: &Namespace,
        dir: &Path,
        source: &Source,
        config: &Value,
        metrics: Option<String>,
    ) -> Result<Self> {
        std::fs::write(dir.join("config.yaml"), serde_json::to_string_pretty(config)?)?;
        let log = dir.join("proxy.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = program.command(namespace, dir, node, source)?;
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {}", program.name))?;
        Ok(Self { child, node: node.to_owned(), log, started: Instant::now(), metrics })
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!("the proxy on {} ended by itself ({status}):\n{}", self.node, self.log(20)),
        }
    }

    /// Where its metrics are, as long as they have not told of a sync.
    #[must_use]
    pub fn starting(&self) -> Option<&str> {
        self.metrics.as_deref()
    }

    /// Notes that it has synced.
    pub fn has_started(&mut self) {
        self.metrics = None;
    }

    /// How long it has been running.
    #[must_use]
    pub fn age(&self) -> Duration {
        self.started.elapsed()
    }

    /// The last lines of its log.
    #[must_use]
    pub fn log(&self, lines: usize) -> String {
        process::tail(&self.log, lines)
    }

    /// Its process.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Kills it.
    pub fn kill(mut self) {
        process::kill(&mut self.child);
    }

    /// Asks it to end; one that does not within 10 s is killed, and that is a failure.
    pub fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(|_| anyhow!("an invalid process id"))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        if process::wait(&mut self.child, Duration::from_secs(10))?.is_none() {
            bail!("the proxy on {} did not end within 10 s of SIGTERM:\n{}", self.node, self.log(20));
        }
        Ok(())
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_can_be_excepted_by_itself() {
        let proxy = |version: Option<&str>| ProxyProgram {
            name: "kube-proxy-nftables".to_owned(),
            sluice: PathBuf::new(),
            kube_proxy: None,
            version: version.map(str::to_owned),
        };
        let names = ["kube-proxy-nftables", "kube-proxy-nftables@1.37", "kube-proxy-nftables@1.37.2"];
        assert_eq!(proxy(Some("1.37.2")).names(), names);
        assert_eq!(proxy(None).names(), names[..1]);
    }

    #[test]
    fn a_case_overrides_single_fields() {
        let files = Source::Manifests("/m".into());
        let over = json!({"nftables": {"masqueradeAll": true}, "clusterCIDR": "10.0.0.0/8"});
        let config = configuration("nftables", &files, &over);
        assert_eq!(config["nftables"], json!({"masqueradeAll": true}));
        assert_eq!(config["clusterCIDR"], "10.0.0.0/8");
        assert_eq!(config["detectLocalMode"], "ClusterCIDR");
        assert_eq!(configuration("nftables", &files, &Value::Null)["mode"], "nftables");
        let of_the_node = json!({"sluice": {"ebpf": {"bpffs": "/b"}}});
        let of_the_case = json!({"sluice": {"scheduler": "maglev", "ebpf": {"flows": 1024}}});
        assert_eq!(
            configuration("ebpf", &files, &merged(of_the_node, &of_the_case))["sluice"],
            json!({"scheduler": "maglev", "ebpf": {"bpffs": "/b", "flows": 1024}})
        );
    }
}
