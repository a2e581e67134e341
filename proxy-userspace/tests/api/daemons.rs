//! Whole proxies, ours and kube-proxy, each with an API server of its own in a network namespace
//! that goes with the test.

use std::future::Future;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};

use crate::fake_api::{FakeApi, ObjectWriter, Options};
use crate::observer::{scratch_directory, service, write_kubeconfig};

/// The address of the Node.
const NODE: &str = "192.0.2.1";

/// Runs a test in a thread with a network namespace of its own. Without root: a skip that says so.
pub(crate) fn in_namespace<F: Future<Output = ()>>(test: impl FnOnce() -> F + Send + 'static) {
    sluice_skips::in_namespaces(nix::sched::CloneFlags::CLONE_NEWNET, move || {
        for arguments in [&["link", "set", "lo", "up"][..], &["address", "add", NODE, "dev", "lo"]] {
            assert!(Command::new("ip").args(arguments).status().unwrap().success());
        }
        // Its threads are children of this one, so they are in the namespace too.
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build();
        runtime.unwrap().block_on(test());
    });
}

/// A proxy that runs until this is dropped.
pub(crate) struct Proxy {
    child: Child,
    directory: PathBuf,
}

impl Drop for Proxy {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        let _ = std::fs::remove_dir_all(&self.directory);
    }
}

impl Proxy {
    pub(crate) fn spawn(program: &Path, arguments: &[&str], api: &FakeApi) -> Proxy {
        Proxy::spawn_at(program, arguments, api.url(), &[])
    }

    /// Sluice with another URL of the server, and in an environment.
    pub(crate) fn sluice_at(url: &str, environment: &[(&str, &str)]) -> Proxy {
        Proxy::spawn_at(Path::new(env!("CARGO_BIN_EXE_sluice")), &["run"], url, environment)
    }

    fn spawn_at(program: &Path, arguments: &[&str], url: &str, environment: &[(&str, &str)]) -> Proxy {
        let directory = scratch_directory();
        let kubeconfig = write_kubeconfig(&directory, url, "secret");
        let log = std::fs::File::create(directory.join("log")).unwrap();
        let mut command = Command::new(program);
        command.args(arguments).arg("--kubeconfig").arg(kubeconfig).args(["--hostname-override", "node-a"]);
        command.envs(environment.iter().copied());
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        Proxy { child, directory }
    }

    pub(crate) fn sluice(arguments: &[&str], api: &FakeApi) -> Proxy {
        let program = Path::new(env!("CARGO_BIN_EXE_sluice"));
        Proxy::spawn(program, &[&["run"], arguments].concat(), api)
    }

    /// Sluice with limits of open files, as the shell's ulimit takes them.
    pub(crate) fn sluice_with_files(limits: &str, api: &FakeApi) -> Proxy {
        let script = format!("ulimit {limits} && exec \"$0\" \"$@\"");
        let sluice = [env!("CARGO_BIN_EXE_sluice"), "run", "--proxy-mode=nftables"];
        Proxy::spawn(Path::new("/bin/sh"), &[&["-c", &script], &sluice[..]].concat(), api)
    }

    /// How many sockets it has.
    pub(crate) fn sockets(&self) -> usize {
        let files = std::fs::read_dir(format!("/proc/{}/fd", self.child.id())).unwrap().flatten();
        let is_socket = |target: PathBuf| target.to_string_lossy().starts_with("socket:");
        files.filter(|file| std::fs::read_link(file.path()).is_ok_and(is_socket)).count()
    }

    /// How many files it may open, and might if it asked.
    pub(crate) fn limits_of_files(&self) -> (u64, u64) {
        let limits = std::fs::read_to_string(format!("/proc/{}/limits", self.child.id())).unwrap();
        let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
        let numbers: Vec<u64> = line.split_whitespace().filter_map(|word| word.parse().ok()).collect();
        (numbers[0], numbers[1])
    }

    pub(crate) fn log(&self) -> String {
        std::fs::read_to_string(self.directory.join("log")).unwrap_or_default()
    }

    /// The exit code, if the process ends soon.
    pub(crate) async fn ended(&mut self) -> Option<i32> {
        for _ in 0..500 {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code();
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        None
    }
}

/// An API server with a Node and a Service.
pub(crate) async fn cluster() -> FakeApi {
    let api = FakeApi::start(Options::default()).await;
    api.put(json!({"apiVersion": "v1", "kind": "Node", "metadata": {"name": "node-a"},
        "status": {"addresses": [{"type": "InternalIP", "address": NODE}]}}));
    api.put(with_udp(service("web", 80)));
    api
}

/// A port of UDP: only such have stale flows to look for.
fn with_udp(mut service: Value) -> Value {
    service["spec"]["clusterIPs"] = json!(["10.96.0.10"]);
    service["spec"]["ipFamilies"] = json!(["IPv4"]);
    service["spec"]["ports"] = json!([{"port": 80, "protocol": "TCP", "name": "t"},
        {"port": 53, "protocol": "UDP", "name": "u"}]);
    service
}

/// Endpoints of `web` that were made just now.
pub(crate) fn slice(address: &str) -> Value {
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    let now = jiff::Timestamp::from_microsecond(now.as_micros().try_into().unwrap()).unwrap();
    json!({"apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": "default", "name": "web-1", "labels": {"kubernetes.io/service-name": "web"},
            "annotations": {"endpoints.kubernetes.io/last-change-trigger-time": format!("{now:.6}")}},
        "ports": [{"name": "t", "port": 80, "protocol": "TCP"}, {"name": "u", "port": 53, "protocol": "UDP"}],
        "endpoints": [{"addresses": [address], "conditions": {"ready": true}}]})
}

/// The body of a page, once it can be had.
pub(crate) async fn page(address: &str, path: &str) -> Option<String> {
    let mut stream = TcpStream::connect(address).ok()?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: x\r\n\r\n").as_bytes()).ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    Some(text.split_once("\r\n\r\n")?.1.to_owned())
}
