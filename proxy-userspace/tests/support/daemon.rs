//! A daemon in namespaces of a test's own.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// Runs a test in a fresh network namespace with a directory of its own. Without root: a skip that
/// says so.
pub(crate) fn in_netns(name: &str, test: impl FnOnce(&Path) + Send + 'static) {
    let directory = std::env::temp_dir().join(format!("sluice-daemon-{name}-{}", std::process::id()));
    sluice_skips::in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, move || {
        std::fs::create_dir_all(directory.join("manifests")).unwrap();
        shell("ip link set lo up", "");
        test(&directory);
        std::fs::remove_dir_all(&directory).unwrap();
    });
}

/// Runs a command line with some input; it has to succeed.
pub(crate) fn shell(line: &str, input: &str) -> String {
    let path = format!("{}:/usr/sbin:/sbin", std::env::var("PATH").unwrap_or_default());
    let mut child = Command::new("sh")
        .args(["-c", line])
        .env("PATH", path)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    assert!(output.status.success(), "{line}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Called by kube-proxy's name, as a DaemonSet whose image was exchanged does.
pub(crate) fn kube_proxy(directory: &Path) -> Command {
    let link = directory.join("kube-proxy");
    if !link.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_sluice"), &link).unwrap();
    }
    let mut command = Command::new(link);
    command.env_remove("RUST_LOG");
    command
}

/// A running daemon; it ends with the test.
pub(crate) struct Daemon {
    pub(crate) child: Child,
    pub(crate) log: PathBuf,
}

impl Daemon {
    /// Waits until its rules are in force.
    pub(crate) fn start(directory: &Path, config: &Path, more: &[&str]) -> Daemon {
        let mut daemon = Daemon::spawn(directory, "log", config, more);
        daemon.wait_for("ruleset in place");
        daemon
    }

    /// With a log of that name.
    pub(crate) fn spawn(directory: &Path, log: &str, config: &Path, more: &[&str]) -> Daemon {
        let log = directory.join(log);
        let mut command = kube_proxy(directory);
        command.arg(format!("--config={}", config.display())).arg("--hostname-override=n1").args(more);
        command.arg("--manifests").arg(directory.join("manifests"));
        let child = command.stderr(std::fs::File::create(&log).unwrap()).spawn().unwrap();
        Daemon { child, log }
    }

    pub(crate) fn wait_for(&mut self, words: &str) {
        let end = Instant::now() + Duration::from_secs(20);
        loop {
            let log = std::fs::read_to_string(&self.log).unwrap();
            if log.contains(words) {
                return;
            }
            assert!(
                Instant::now() < end && self.child.try_wait().unwrap().is_none(),
                "no {words:?} in: {log}"
            );
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    pub(crate) fn exit_code(&mut self) -> Option<i32> {
        let end = Instant::now() + Duration::from_secs(20);
        while Instant::now() < end {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        None
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub(crate) const CONFIG: &str = "apiVersion: kubeproxy.config.k8s.io/v1alpha1
kind: KubeProxyConfiguration
mode: nftables
oomScoreAdj: 0
clientConnection: {qps: 50}
conntrack: {maxPerCore: 0, tcpEstablishedTimeout: 0s, tcpCloseWaitTimeout: 0s}
";

pub(crate) fn configured(directory: &Path) -> PathBuf {
    let path = directory.join("config.conf");
    std::fs::write(&path, CONFIG).unwrap();
    path
}
