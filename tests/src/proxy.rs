//! The proxy under test as a process in a node: its configuration, start, stop, and what its log says.

use std::ffi::OsString;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};

use crate::address::CLUSTER_CIDR;
use crate::process::{self, Namespace};

/// Which proxy is tested.
#[derive(Debug, Clone)]
pub struct ProxyProgram {
    /// The binary
    pub sluice: PathBuf,
    /// Its mode: `nftables`, …
    pub mode: String,
}

impl ProxyProgram {
    /// The binary, made absolute; it must exist.
    pub fn new(sluice: &Path, mode: &str) -> Result<Self> {
        let sluice = sluice.canonicalize().with_context(|| format!("no proxy at {}", sluice.display()))?;
        Ok(Self { sluice, mode: mode.to_owned() })
    }

    /// PATH for programs in a node: the proxy's directory comes first.
    #[must_use]
    pub fn path_variable(&self) -> OsString {
        let own = self.sluice.parent().unwrap_or(Path::new("/")).as_os_str().to_owned();
        let mut path = own;
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap_or_else(|| "/usr/sbin:/usr/bin:/sbin:/bin".into()));
        path
    }
}

/// The configuration of a lab's proxy with a case's own merged over it.
#[must_use]
pub fn configuration(mode: &str, over: &Value) -> Value {
    let mut config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "mode": mode,
        "detectLocalMode": "ClusterCIDR",
        "clusterCIDR": CLUSTER_CIDR,
    });
    merge(&mut config, over);
    config
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
}

impl Proxy {
    /// Starts it; it may take a moment until it has done its first sync.
    pub fn start(
        program: &ProxyProgram,
        node: &str,
        namespace: &Namespace,
        dir: &Path,
        manifests: &Path,
        config: &Value,
    ) -> Result<Self> {
        let file = dir.join("config.yaml");
        std::fs::write(&file, serde_json::to_string_pretty(&configuration(&program.mode, config))?)?;
        let log = dir.join("proxy.log");
        let output = File::options().create(true).append(true).open(&log)?;
        let mut command = namespace.command(&program.sluice)?;
        command.arg("run").arg("--config").arg(&file);
        command.args(["--hostname-override", node]).arg("--manifests").arg(manifests);
        command.env("PATH", program.path_variable()).current_dir(dir);
        command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = command.spawn().with_context(|| format!("starting {}", program.sluice.display()))?;
        Ok(Self { child, node: node.to_owned(), log })
    }

    /// Fails if it has ended.
    pub fn check(&mut self) -> Result<()> {
        match self.child.try_wait()? {
            None => Ok(()),
            Some(status) => bail!(
                "the proxy on {} ended by itself ({status}):\n{}",
                self.node,
                process::tail(&self.log, 20)
            ),
        }
    }

    /// Kills it.
    pub fn kill(mut self) {
        process::kill(&mut self.child);
    }

    /// Asks it to end; one that does not within 10 s is killed, and that is a failure.
    pub fn stop(mut self) -> Result<()> {
        let pid = i32::try_from(self.child.id()).map_err(|_| anyhow!("a strange process id"))?;
        kill(Pid::from_raw(pid), Signal::SIGTERM)?;
        if process::wait(&mut self.child, Duration::from_secs(10))?.is_none() {
            bail!(
                "the proxy on {} did not end within 10 s of SIGTERM:\n{}",
                self.node,
                process::tail(&self.log, 20)
            );
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
    fn a_case_overrides_single_fields() {
        let over = json!({"nftables": {"masqueradeAll": true}, "clusterCIDR": "10.0.0.0/8"});
        let config = configuration("nftables", &over);
        assert_eq!(config["nftables"], json!({"masqueradeAll": true}));
        assert_eq!(config["clusterCIDR"], "10.0.0.0/8");
        assert_eq!(config["detectLocalMode"], "ClusterCIDR");
        assert_eq!(configuration("nftables", &Value::Null)["mode"], "nftables");
    }
}
