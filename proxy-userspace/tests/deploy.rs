//! The manifests of `deploy/`: they are what the API server would read, fit each other, and grant
//! what the daemon asks for.
#![expect(clippy::unwrap_used, reason = "integration tests fail by panicking")]

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use clap::Parser;
use k8s_openapi::api::apps::v1::DaemonSet;
use k8s_openapi::api::core::v1::{ConfigMap, Container, PodSpec, ServiceAccount};
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use sluice::cli::{Cli, Command};
use sluice::config::{BackendKind, Flags, Settings, resolve};
use sluice::features;
use sluice::observe::metrics::Metrics;
use sluice::watch::kubernetes::{self, Access, Origin, Scope, Timing};
use tokio::sync::mpsc;

fn directory() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../deploy")
}

fn text(file: &str) -> String {
    std::fs::read_to_string(directory().join(file)).unwrap()
}

/// The only object of a kind in a file. Nothing of it may be unknown to the API.
fn object<T: DeserializeOwned + Serialize>(file: &str, kind: &str) -> T {
    let text = text(file);
    let documents = text.split("\n---\n").map(|document| serde_saphyr::from_str::<Value>(document).unwrap());
    let mut of_kind: Vec<Value> = documents.filter(|document| document["kind"] == kind).collect();
    assert_eq!(of_kind.len(), 1, "{kind} in {file}");
    let value = of_kind.remove(0);
    let typed: T = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(serde_json::to_value(&typed).unwrap(), value, "what the API knows of {kind}, and the file");
    typed
}

const RBAC_OF_EBPF: &str = "components/ebpf/rbac.yaml";

fn pod() -> PodSpec {
    object::<DaemonSet>("daemonset.yaml", "DaemonSet").spec.unwrap().template.spec.unwrap()
}

fn config_map() -> ConfigMap {
    object("configmap.yaml", "ConfigMap")
}

/// What a configuration comes to. Nothing is odd about it. The name tells the files of several
/// tests apart.
fn settings(name: &str, text: &str) -> Settings {
    let file = std::env::temp_dir().join(format!("sluice-deploy-{name}-{}.conf", std::process::id()));
    std::fs::write(&file, text).unwrap();
    let loaded = sluice::config::load(&file).unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(loaded.odd.is_empty(), "{:?}", loaded.odd);
    let settings = resolve(loaded.config, &Flags::default(), "host").unwrap();
    assert!(settings.warnings.is_empty(), "{:?}", settings.warnings);
    settings
}

/// The arguments as the daemon would see them.
fn parsed(container: &Container) -> Box<sluice::cli::RunArgs> {
    let arguments = container.args.clone().unwrap();
    match Cli::try_parse_from(std::iter::once("sluice".to_owned()).chain(arguments)).unwrap().command {
        Command::Run(run) => run,
        _ => unreachable!("the DaemonSet runs the proxy"),
    }
}

#[test]
fn the_account_that_the_pods_use_is_the_one_with_the_role() {
    let account: ServiceAccount = object("rbac.yaml", "ServiceAccount");
    let role: ClusterRole = object("rbac.yaml", "ClusterRole");
    let binding: ClusterRoleBinding = object("rbac.yaml", "ClusterRoleBinding");
    let daemon_set: DaemonSet = object("daemonset.yaml", "DaemonSet");
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    let subjects = binding.subjects.unwrap();
    assert_eq!(subjects.len(), 1);
    assert_eq!(
        (&subjects[0].kind[..], Some(&subjects[0].name)),
        ("ServiceAccount", account.metadata.name.as_ref())
    );
    assert_eq!(subjects[0].namespace, account.metadata.namespace);
    // What a component adds is for the same account.
    let role: ClusterRole = object(RBAC_OF_EBPF, "ClusterRole");
    let binding: ClusterRoleBinding = object(RBAC_OF_EBPF, "ClusterRoleBinding");
    assert_eq!(Some(binding.role_ref.name), role.metadata.name);
    assert_eq!(binding.subjects.unwrap(), subjects);
    let component: Value = serde_saphyr::from_str(&text("components/ebpf/kustomization.yaml")).unwrap();
    assert_eq!(component["resources"], json!(["rbac.yaml"]));
    assert_eq!(pod().service_account_name, account.metadata.name);
    for namespace in [daemon_set.metadata.namespace, config_map().metadata.namespace] {
        assert_eq!(namespace, account.metadata.namespace);
    }
    let spec = daemon_set.spec.unwrap();
    assert_eq!(spec.selector.match_labels, spec.template.metadata.unwrap().labels);
}

#[test]
fn the_pod_finds_its_configuration_and_the_daemon_accepts_it() {
    let (pod, map) = (pod(), config_map());
    let data = map.data.unwrap();
    let container = &pod.containers[0];
    let volume = pod.volumes.unwrap()[0].config_map.clone().unwrap();
    assert_eq!(Some(volume.name), map.metadata.name);
    let item = &volume.items.unwrap()[0];
    let mount = &container.volume_mounts.as_ref().unwrap()[0];
    assert_eq!(parsed(container).config.unwrap(), Path::new(&mount.mount_path).join(&item.path));
    for variable in container.env.iter().flatten() {
        let source = variable.value_from.as_ref().unwrap();
        if let Some(reference) = &source.config_map_key_ref {
            assert_eq!(Some(&reference.name), map.metadata.name.as_ref());
            assert!(data.contains_key(&reference.key), "{}", reference.key);
        }
    }

    let settings = settings("base", &data[&item.key]);
    let port = json!(settings.healthz_bind.unwrap().port());
    for probe in [&container.startup_probe, &container.liveness_probe, &container.readiness_probe] {
        let get = probe.as_ref().unwrap().http_get.as_ref().unwrap();
        assert_eq!(serde_json::to_value(&get.port).unwrap(), port);
    }
}

#[test]
fn the_container_has_one_capability_and_the_image_of_this_version() {
    let container = pod().containers.remove(0);
    assert_eq!(container.image.as_deref(), Some(concat!("sluice:", env!("CARGO_PKG_VERSION"))));
    let security = container.security_context.unwrap();
    let capabilities = security.capabilities.unwrap();
    assert_eq!(capabilities.drop.unwrap(), ["ALL"]);
    assert_eq!(capabilities.add.unwrap(), ["NET_ADMIN"]);
    assert_eq!(security.read_only_root_filesystem, Some(true));
    assert_eq!(security.allow_privilege_escalation, Some(false));
    assert_eq!(security.privileged, None);
}

#[test]
fn kustomize_is_given_every_manifest() {
    let list: Value = serde_saphyr::from_str(&text("kustomization.yaml")).unwrap();
    let listed: BTreeSet<String> = serde_json::from_value(list["resources"].clone()).unwrap();
    let entries = std::fs::read_dir(directory()).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let there: BTreeSet<String> =
        names.filter(|name| name.ends_with(".yaml") && name != "kustomization.yaml").collect();
    assert_eq!(listed, there);
}

#[test]
fn the_init_container_of_the_component_shares_what_the_pod_has() {
    let patch: Value = serde_saphyr::from_str(&text("components/node-sysctls/init-container.yaml")).unwrap();
    let daemon_set: DaemonSet = object("daemonset.yaml", "DaemonSet");
    assert_eq!(patch["metadata"]["name"], json!(daemon_set.metadata.name));
    let init: Container =
        serde_json::from_value(patch["spec"]["template"]["spec"]["initContainers"][0].clone()).unwrap();
    let main = pod().containers.remove(0);
    assert_eq!(init.image, main.image);
    assert_eq!(init.volume_mounts, main.volume_mounts);
    let (init_arguments, main_arguments) = (init.args.unwrap(), main.args.unwrap());
    assert_eq!(init_arguments[..main_arguments.len()], main_arguments);
}

#[cfg(feature = "ebpf")]
#[test]
fn the_component_for_mode_ebpf_has_what_the_mode_needs_where_its_configuration_says() {
    use k8s_openapi::api::core::v1::Volume;

    let component =
        |file: &str| -> Value { serde_saphyr::from_str(&text(&format!("components/ebpf/{file}"))).unwrap() };
    let (map, base) = (object::<ConfigMap>("components/ebpf/configmap.yaml", "ConfigMap"), config_map());
    assert_eq!(map.metadata.name, base.metadata.name);
    let (data, base) = (map.data.unwrap(), base.data.unwrap());
    let (config, base) = (&data["config.conf"], &base["config.conf"]);
    let settings = settings("ebpf", config);
    assert_eq!(settings.backend, BackendKind::Ebpf);
    let shared = |text: &str| {
        let mut config: Value = serde_saphyr::from_str(text).unwrap();
        let fields = config.as_object_mut().unwrap();
        fields.remove("mode");
        fields.remove("sluice");
        config
    };
    assert_eq!(shared(config), shared(base), "but for the mode, the component changes nothing");

    let patch = component("daemonset.yaml");
    let daemon_set: DaemonSet = object("daemonset.yaml", "DaemonSet");
    assert_eq!(patch["metadata"]["name"], json!(daemon_set.metadata.name));
    let spec = &patch["spec"]["template"]["spec"];
    let container: Container = serde_json::from_value(spec["containers"][0].clone()).unwrap();
    assert_eq!(container.name, pod().containers[0].name);
    let security = container.security_context.unwrap();
    assert_eq!(security.privileged, None);
    assert_eq!(security.capabilities.unwrap().add.unwrap(), ["NET_ADMIN", "BPF", "PERFMON", "SYS_ADMIN"]);
    let variable = container.env.unwrap().remove(0);
    assert_eq!(variable.name, "SLUICE_BPFFS");
    assert_eq!(variable.value.as_deref(), settings.ebpf.bpffs.to_str());

    let volumes: Vec<Volume> = serde_json::from_value(spec["volumes"].clone()).unwrap();
    let mounts = container.volume_mounts.unwrap();
    // Where a path of the container is on the node, and whether later mounts of the node are seen
    // there.
    let on_the_node = |path: &Path| {
        let mount = mounts.iter().find(|mount| path.starts_with(&mount.mount_path)).unwrap();
        let volume = volumes.iter().find(|volume| volume.name == mount.name).unwrap();
        let inside = path.strip_prefix(&mount.mount_path).unwrap();
        let place = Path::new(&volume.host_path.as_ref().unwrap().path).join(inside);
        (place, mount.mount_propagation.as_deref() == Some("HostToContainer"))
    };
    // This directory and no other: beside it are the pins of others.
    let bpffs = mounts.iter().find(|mount| Path::new(&mount.mount_path) == settings.ebpf.bpffs).unwrap();
    let bpffs = volumes.iter().find(|volume| volume.name == bpffs.name).unwrap().host_path.clone().unwrap();
    assert_eq!((&*bpffs.path, bpffs.type_.as_deref()), ("/sys/fs/bpf/sluice", Some("DirectoryOrCreate")));
    let cgroup = settings.ebpf.cgroup_root.unwrap();
    assert_eq!(on_the_node(&cgroup).0, Path::new("/sys/fs/cgroup"));
    assert_eq!(on_the_node(Path::new("/run/netns")), (PathBuf::from("/run/netns"), true));
    assert_eq!(mounts.len(), volumes.len());

    let init = |patch: Value| -> Container {
        serde_json::from_value(patch["spec"]["template"]["spec"]["initContainers"][0].clone()).unwrap()
    };
    let of_sysctls: Value =
        serde_saphyr::from_str(&text("components/node-sysctls/init-container.yaml")).unwrap();
    let (init, of_sysctls) = (init(component("init-container.yaml")), init(of_sysctls));
    assert_eq!(init.name, of_sysctls.name);
    assert!(init.volume_mounts.unwrap().iter().all(|mount| mounts.contains(mount)));
}

#[test]
fn the_component_for_mode_ipvs_sets_the_mode_and_brings_what_writes_its_sysctls() {
    let map = object::<ConfigMap>("components/ipvs/configmap.yaml", "ConfigMap");
    assert_eq!(map.metadata.name, config_map().metadata.name);
    let data = map.data.unwrap();
    let settings = settings("ipvs", &data["config.conf"]);
    assert_eq!(settings.backend, BackendKind::Ipvs);
    let component: Value = serde_saphyr::from_str(&text("components/ipvs/kustomization.yaml")).unwrap();
    assert_eq!(component["components"], json!(["../node-sysctls"]));
    assert_eq!(component["patches"], json!([{"path": "configmap.yaml"}]));
}

#[test]
fn the_component_for_the_pod_network_has_the_nodes_directories_at_their_own_places() {
    use k8s_openapi::api::core::v1::Volume;

    let patch: Value = serde_saphyr::from_str(&text("components/pod-network/daemonset.yaml")).unwrap();
    let spec = &patch["spec"]["template"]["spec"];
    let container: Container = serde_json::from_value(spec["containers"][0].clone()).unwrap();
    let mut arguments = pod().containers.remove(0).args.unwrap();
    arguments.push("--cni".to_owned());
    assert_eq!(container.args.as_ref(), Some(&arguments));
    assert_eq!(parsed(&container).own.cni, Some(true));
    let settings = settings(
        "pod-network",
        "mode: nftables\nclusterCIDR: 10.244.0.0/16\nsluice: {podNetwork: {backend: vxlan}}",
    );
    let cni = settings.pod_network.unwrap().cni;
    let wanted = [cni.bin_dir, cni.conf_dir, cni.data_dir, cni.run_dir];
    let volumes: Vec<Volume> = serde_json::from_value(spec["volumes"].clone()).unwrap();
    let mounts = container.volume_mounts.unwrap();
    for place in &wanted {
        let mount = mounts.iter().find(|mount| Path::new(&mount.mount_path) == place).unwrap();
        let volume = volumes.iter().find(|volume| volume.name == mount.name).unwrap();
        assert_eq!(Path::new(&volume.host_path.as_ref().unwrap().path), place);
    }
    assert_eq!((mounts.len(), volumes.len()), (wanted.len(), wanted.len()));
}

/// API group, resource and verb.
type Request = (String, String, String);

/// A server that has no streamed lists: answers every list with nothing and every watch with
/// silence, and remembers them.
async fn serve(State(seen): State<Arc<Mutex<BTreeSet<Request>>>>, uri: Uri) -> Response {
    let parts: Vec<&str> = uri.path().trim_matches('/').split('/').collect();
    let (group, resource) = match parts[..] {
        ["api", "v1", resource] => ("", resource),
        ["apis", group, "v1", resource] => (group, resource),
        _ => ("unexpected path", uri.path()),
    };
    if uri.query().is_some_and(|query| query.contains("sendInitialEvents")) {
        return StatusCode::UNPROCESSABLE_ENTITY.into_response();
    }
    let watch = uri.query().is_some_and(|query| query.split('&').any(|part| part == "watch=true"));
    let verb = if watch { "watch" } else { "list" };
    seen.lock().unwrap().insert((group.into(), resource.into(), verb.into()));
    if watch {
        return Body::from_stream(futures::stream::pending::<Result<Bytes, std::io::Error>>())
            .into_response();
    }
    json!({"apiVersion": "v1", "kind": "List", "metadata": {"resourceVersion": "1"}, "items": []})
        .to_string()
        .into_response()
}

/// What a file's role grants, but for events.
fn granted(file: &str) -> BTreeSet<Request> {
    let mut granted = BTreeSet::new();
    for rule in object::<ClusterRole>(file, "ClusterRole").rules.unwrap() {
        for group in rule.api_groups.unwrap().iter().filter(|group| *group != "events.k8s.io") {
            for resource in rule.resources.iter().flatten() {
                for verb in &rule.verbs {
                    granted.insert((group.clone(), resource.clone(), verb.clone()));
                }
            }
        }
    }
    granted
}

#[tokio::test(flavor = "multi_thread")]
async fn the_roles_grant_reading_of_exactly_what_the_daemon_reads() {
    let base = granted("rbac.yaml");
    reads_exactly(BackendKind::Nftables, &base).await;
    let more = granted(RBAC_OF_EBPF);
    assert!(base.is_disjoint(&more));
    reads_exactly(BackendKind::Ebpf, &base.union(&more).cloned().collect()).await;
}

/// Fails unless a daemon of a mode asks for all of this and nothing else.
async fn reads_exactly(backend: BackendKind, granted: &BTreeSet<Request>) {
    let seen = Arc::<Mutex<BTreeSet<Request>>>::default();
    let router = Router::new().fallback(serve).with_state(seen.clone());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
    let access = Access::new(Origin { kubeconfig: None, master: Some(url) }).await.unwrap();
    let (sender, _events) = mpsc::channel(256);
    let mut settings = resolve(Default::default(), &Flags::default(), "node-a").unwrap();
    settings.backend = backend;
    let scope = Scope { node_name: "node-a".into(), kinds: features::interests(&settings) };
    tokio::spawn(kubernetes::run(access, scope, sender, Metrics::default(), Timing::default()));

    let end = Instant::now() + Duration::from_secs(20);
    while *seen.lock().unwrap() != *granted && Instant::now() < end {
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    // A request that is not granted would come right after the lists.
    tokio::time::sleep(Duration::from_millis(500)).await;
    let by_resource = |requests: &BTreeSet<Request>| -> BTreeMap<String, Vec<String>> {
        requests.iter().fold(BTreeMap::new(), |mut map, (group, resource, verb)| {
            map.entry(format!("{group}/{resource}")).or_insert_with(Vec::new).push(verb.clone());
            map
        })
    };
    assert_eq!(by_resource(&seen.lock().unwrap()), by_resource(granted));
}
