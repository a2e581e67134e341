//! A control plane for labs: etcd, kube-apiserver and, where wanted, kube-controller-manager, in a
//! namespace of their own.
//!
//! One control plane serves one lab at a time: it is plugged into the lab's switch, and emptied
//! before the next. Its processes are killed when the thread that started it ends.

pub mod api;
mod credentials;
mod kinds;
pub mod tools;

use std::cell::RefCell;
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::address::{CLUSTER_CIDR, SERVICE_CIDRS};
use crate::interrupt;
use crate::lab::prune;
use crate::process::{self, Namespace, ip_batch};
use api::ApiClient;
use credentials::Credentials;
use tools::Tools;

/// The API server's addresses on the underlay.
pub const ADDRESSES: [IpAddr; 2] =
    [IpAddr::V4(Ipv4Addr::new(192, 168, 77, 2)), IpAddr::V6(Ipv6Addr::new(0xfd00, 0x77, 0, 0, 0, 0, 0, 2))];
/// The port of the API server.
pub const PORT: u16 = 6443;
/// The account of the proxy under test, with the rights of the manifests that users install; one
/// control plane serves labs of all modes.
const RBAC: [&str; 2] =
    [include_str!("../../deploy/rbac.yaml"), include_str!("../../deploy/components/ebpf/rbac.yaml")];
/// How long a control plane may take to start: two cores are often shared by several.
const START_LIMIT: Duration = Duration::from_secs(180);

/// Who talks to the API server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Account {
    /// The service account `kube-system/sluice`
    Sluice,
    /// The user `system:kube-proxy`, whose rights the API server itself defines
    KubeProxy,
    /// Everything is allowed
    Admin,
}

/// A running control plane; dropping it ends it.
#[derive(Debug)]
pub struct Cluster {
    // Dropped in this order: the client, the processes, then what they live in.
    api: ApiClient,
    processes: RefCell<Processes>,
    tools: Tools,
    credentials: Credentials,
    sluice_token: String,
    place: Place,
}

/// Programs of the control plane; each is killed when it is dropped or replaced.
#[derive(Debug, Default)]
struct Processes {
    controllers: Option<Running>,
    apiserver: Option<Running>,
    etcd: Option<Running>,
}

impl Processes {
    /// A server that is no longer there although it should be.
    fn ended(&mut self) -> Result<Option<(&'static str, ExitStatus)>> {
        for (name, running) in [("etcd", &mut self.etcd), ("kube-apiserver", &mut self.apiserver)] {
            let status = running.as_mut().map(|running| running.0.try_wait()).transpose()?.flatten();
            if let Some(status) = status {
                return Ok(Some((name, status)));
            }
        }
        Ok(None)
    }
}

#[derive(Debug)]
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        process::kill(&mut self.0);
    }
}

/// The namespace and the files of a control plane.
#[derive(Debug)]
struct Place {
    namespace: Namespace,
    dir: PathBuf,
}

impl Place {
    fn create() -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let id = format!("{}-c{}", std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let dir = std::env::temp_dir().join(format!("sluice-lab-{id}"));
        std::fs::create_dir(&dir).with_context(|| format!("creating {}", dir.display()))?;
        let place = Self { namespace: Namespace::new(format!("sl{id}-control"), None), dir };
        ip_batch(None, &format!("netns add {}\n", place.namespace.name()))?;
        ip_batch(Some(place.namespace.name()), "link set lo up\n")?;
        Ok(place)
    }

    fn spawn(&self, program: &Path, arguments: &[String]) -> Result<Running> {
        let name = program.file_name().unwrap_or_default().to_string_lossy().into_owned();
        let log = File::options().create(true).append(true).open(self.dir.join(format!("{name}.log")))?;
        let mut command: Command = self.namespace.command(program)?;
        command.args(arguments).current_dir(&self.dir).stdin(Stdio::null());
        command.stdout(log.try_clone()?).stderr(log);
        let child = command.spawn().with_context(|| format!("starting {}", program.display()))?;
        Ok(Running(child))
    }

    fn log(&self, name: &str) -> String {
        process::tail(&self.dir.join(format!("{name}.log")), 15)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let names = [self.namespace.name().to_owned()];
        prune::kill_inhabitants(&names);
        prune::remove_namespaces(&names);
        // Nothing can be done about files that do not go; the next prune tries again.
        drop(std::fs::remove_dir_all(&self.dir));
    }
}

impl Cluster {
    /// Starts etcd and the API server, and waits until it is ready.
    pub fn start(tools: &Tools) -> Result<Self> {
        let place = Place::create()?;
        let credentials = Credentials::create(&place.dir)?;
        let processes = RefCell::new(Processes {
            etcd: Some(place.spawn(&tools.etcd, &etcd_arguments())?),
            apiserver: Some(place.spawn(&tools.apiserver, &apiserver_arguments(&credentials))?),
            controllers: None,
        });
        let api = ApiClient::start(&place.namespace, &credentials)?;
        let mut cluster =
            Self { api, processes, tools: tools.clone(), credentials, sluice_token: String::new(), place };
        cluster.wait_ready()?;
        for manifest in RBAC {
            for (key, object) in crate::objects::parse(manifest)? {
                cluster.api.put(&key, &object)?;
            }
        }
        cluster.sluice_token = cluster.api.token_of("kube-system", "sluice")?;
        Ok(cluster)
    }

    /// The client of the administrator.
    #[must_use]
    pub fn api(&self) -> &ApiClient {
        &self.api
    }

    /// The namespace that the control plane lives in.
    #[must_use]
    pub fn namespace(&self) -> &Namespace {
        &self.place.namespace
    }

    /// Waits until the API server says that it is ready.
    pub fn wait_ready(&self) -> Result<()> {
        let end = Instant::now() + START_LIMIT;
        loop {
            let Some(error) = self.api.ready().err() else { return Ok(()) };
            if let Some((name, status)) = self.processes.borrow_mut().ended()? {
                bail!("{name} ended ({status}):\n{}", self.place.log(name));
            }
            if Instant::now() > end {
                let log = self.place.log("kube-apiserver");
                return Err(
                    error.context(format!("the API server is not ready after {START_LIMIT:?}:\n{log}"))
                );
            }
            interrupt::sleep(Duration::from_millis(100))?;
        }
    }

    /// Kills the API server; etcd keeps what it knows.
    pub fn kill_apiserver(&self) {
        self.processes.borrow_mut().apiserver = None;
    }

    /// Starts the API server again after [`Self::kill_apiserver`], and waits until it is ready.
    pub fn start_apiserver(&self) -> Result<()> {
        let arguments = apiserver_arguments(&self.credentials);
        self.processes.borrow_mut().apiserver = Some(self.place.spawn(&self.tools.apiserver, &arguments)?);
        self.wait_ready()
    }

    /// Starts kube-controller-manager with the controllers that make EndpointSlices of Pods and
    /// Services.
    pub fn start_controllers(&self) -> Result<()> {
        let kubeconfig =
            self.kubeconfig(Account::Admin, &self.place.dir.join("controllers.kubeconfig"), true)?;
        let arguments = [
            format!("--kubeconfig={}", kubeconfig.display()),
            "--leader-elect=false".into(),
            "--controllers=deployment-controller,replicaset-controller,endpointslice-controller,\
             endpointslice-mirroring-controller,endpoints-controller,service-cidr-controller"
                .into(),
            format!("--service-account-private-key-file={}", self.credentials.account_key.display()),
            format!("--cluster-cidr={CLUSTER_CIDR}"),
            "--concurrent-service-endpoint-syncs=2".into(),
            "--secure-port=0".into(),
        ];
        self.processes.borrow_mut().controllers =
            Some(self.place.spawn(&self.tools.controller_manager, &arguments)?);
        Ok(())
    }

    /// The last lines of a program's log.
    #[must_use]
    pub fn log(&self, program: &str) -> String {
        self.place.log(program)
    }

    /// The bearer token of an account.
    #[must_use]
    pub fn token(&self, account: Account) -> &str {
        match account {
            Account::Sluice => &self.sluice_token,
            Account::KubeProxy => credentials::KUBE_PROXY_TOKEN,
            Account::Admin => credentials::ADMIN_TOKEN,
        }
    }

    /// Writes a kubeconfig; `inside` the control plane's own namespace, else for labs.
    pub fn kubeconfig(&self, account: Account, file: &Path, inside: bool) -> Result<PathBuf> {
        let host = if inside { IpAddr::V4(Ipv4Addr::LOCALHOST) } else { ADDRESSES[0] };
        let user = json!({"token": self.token(account)});
        self.kubeconfig_for(&format!("https://{host}:{PORT}"), &user, file)
    }

    /// Writes a kubeconfig for another way to the API server, or for other credentials.
    pub fn kubeconfig_for(&self, server: &str, user: &Value, file: &Path) -> Result<PathBuf> {
        std::fs::write(file, self.credentials.kubeconfig(server, user))
            .with_context(|| format!("writing {}", file.display()))?;
        Ok(file.to_owned())
    }

    /// Writes the same for a server whose certificate is nobody's.
    pub fn unchecked_kubeconfig_for(&self, server: &str, user: &Value, file: &Path) -> Result<()> {
        let cluster = json!({"server": server, "insecure-skip-tls-verify": true});
        std::fs::write(file, credentials::kubeconfig(&cluster, user))
            .with_context(|| format!("writing {}", file.display()))
    }

    /// Plugs the control plane into a lab's switch, out of the one before.
    pub fn plug_into(&self, switch: &str, ipv6: bool) -> Result<()> {
        let name = self.place.namespace.name();
        self.unplug();
        let cable = format!("link add portc type veth peer name eth0 netns {name}\n");
        ip_batch(Some(switch), &format!("{cable}link set portc master br0 up\n"))?;
        let mut lines = format!("addr add {}/24 dev eth0\n", ADDRESSES[0]);
        if ipv6 {
            lines += &format!("addr add {}/64 dev eth0 nodad\n", ADDRESSES[1]);
        }
        ip_batch(Some(name), &(lines + "link set eth0 up\n"))
    }

    /// Takes the cable away, if there is one.
    pub fn unplug(&self) {
        // It is gone already when the lab's switch is.
        drop(ip_batch(Some(self.place.namespace.name()), "link del eth0\n"));
    }
}

fn etcd_arguments() -> Vec<String> {
    [
        "--data-dir=etcd",
        "--listen-client-urls=http://127.0.0.1:2379",
        "--advertise-client-urls=http://127.0.0.1:2379",
        "--listen-peer-urls=http://127.0.0.1:2380",
        "--initial-advertise-peer-urls=http://127.0.0.1:2380",
        "--initial-cluster=default=http://127.0.0.1:2380",
        "--log-level=warn",
        // A test's data need not survive the machine.
        "--unsafe-no-fsync",
        "--quota-backend-bytes=4294967296",
    ]
    .map(str::to_owned)
    .to_vec()
}

fn apiserver_arguments(credentials: &Credentials) -> Vec<String> {
    vec![
        "--etcd-servers=http://127.0.0.1:2379".into(),
        "--bind-address=0.0.0.0".into(),
        format!("--secure-port={PORT}"),
        format!("--advertise-address={}", ADDRESSES[0]),
        format!("--service-cluster-ip-range={}", SERVICE_CIDRS.join(",")),
        "--authorization-mode=RBAC".into(),
        format!("--token-auth-file={}", credentials.tokens.display()),
        format!("--tls-cert-file={}", credentials.server_cert.display()),
        format!("--tls-private-key-file={}", credentials.server_key.display()),
        "--service-account-issuer=https://kubernetes.default.svc".into(),
        format!("--service-account-key-file={}", credentials.account_public_key.display()),
        format!("--service-account-signing-key-file={}", credentials.account_key.display()),
        // Pods of a lab have no account, and its nodes no kubelet that would take the not-ready
        // taint away.
        "--disable-admission-plugins=ServiceAccount,TaintNodesByCondition".into(),
    ]
}
