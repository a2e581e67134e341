//! Configuration as kube-proxy reads it. What kube-proxy does is checked in here, and compared with
//! the real program where there is one: `SLUICE_KUBE_PROXY`, or
//! `target/cluster-tools/bin/kube-proxy`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "integration tests fail by panicking")]

#[path = "support/kube_proxy.rs"]
mod kube_proxy;

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::sync::atomic::{AtomicUsize, Ordering};

use kube_proxy::kube_proxy;
use serde_json::{Value, json};

/// kube-proxy's flags on Linux.
const FLAGS: &str = "bind-address bind-address-hard-fail boot-id-file cleanup cluster-cidr config config-sync-period
    conntrack-max-per-core conntrack-min conntrack-tcp-be-liberal conntrack-tcp-timeout-close-wait
    conntrack-tcp-timeout-established conntrack-udp-timeout conntrack-udp-timeout-stream detect-local-mode
    feature-gates healthz-bind-address healthz-port help hostname-override init-only iptables-localhost-nodeports
    iptables-masquerade-bit iptables-min-sync-period iptables-sync-period ipvs-exclude-cidrs ipvs-min-sync-period
    ipvs-scheduler ipvs-strict-arp ipvs-sync-period ipvs-tcp-timeout ipvs-tcpfin-timeout ipvs-udp-timeout
    kube-api-burst kube-api-content-type kube-api-qps kubeconfig log-flush-frequency log-json-info-buffer-size
    log-json-split-stream log-text-info-buffer-size log-text-split-stream logging-format machine-id-file
    masquerade-all master metrics-bind-address metrics-port nodeport-addresses oom-score-adj pod-bridge-interface
    pod-interface-name-prefix profiling proxy-mode show-hidden-metrics-for-version v version vmodule write-config-to";

fn sluice() -> PathBuf {
    env!("CARGO_BIN_EXE_sluice").into()
}

/// A directory that goes with the test.
struct Scratch(PathBuf);

impl Scratch {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let n = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("sluice-configuration-{}-{n}", std::process::id()));
        std::fs::create_dir_all(&path).unwrap();
        Scratch(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

/// What a program makes of flags and a file: the configuration in force, or its words of refusal.
fn effective(program: &Path, flags: &[&str], file: Option<&str>) -> Result<Value, Output> {
    let scratch = Scratch::new();
    let written = scratch.0.join("written.yaml");
    let mut command = Command::new(program);
    command.arg("--write-config-to").arg(&written).args(flags).env_remove("RUST_LOG");
    if let Some(file) = file {
        let head = "apiVersion: kubeproxy.config.k8s.io/v1alpha1\nkind: KubeProxyConfiguration\n";
        let is_whole = file.contains("kind:") || file.contains("\"kind\":");
        let text = if is_whole { file.to_owned() } else { format!("{head}{file}\n") };
        std::fs::write(scratch.0.join("config.yaml"), text).unwrap();
        command.arg("--config").arg(scratch.0.join("config.yaml"));
    }
    let output = command.output().unwrap();
    if !output.status.success() {
        return Err(output);
    }
    Ok(serde_saphyr::from_str(&std::fs::read_to_string(written).unwrap()).unwrap())
}

/// Ours without what only we have.
fn ours(flags: &[&str], file: Option<&str>) -> Value {
    let mut value =
        effective(&sluice(), flags, file).unwrap_or_else(|output| panic!("{flags:?} {file:?}: {output:?}"));
    value.as_object_mut().unwrap().remove("sluice");
    value
}

#[test]
fn the_configuration_in_force_has_kube_proxys_fields_and_defaults() {
    let value = ours(&["--proxy-mode=nftables"], None);
    let period = |sync, min| json!({"syncPeriod": sync, "minSyncPeriod": min});
    let with = |mut value: Value, more: Value| {
        value.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        value
    };
    let iptables = json!({"masqueradeBit": 14, "masqueradeAll": false, "localhostNodePorts": true});
    let ipvs = json!({
        "scheduler": "", "excludeCIDRs": null, "strictARP": false, "tcpTimeout": "0s", "tcpFinTimeout": "0s",
        "udpTimeout": "0s",
    });
    let expected = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1", "kind": "KubeProxyConfiguration",
        "clientConnection": {
            "kubeconfig": "", "acceptContentTypes": "", "contentType": "application/vnd.kubernetes.protobuf",
            "qps": 5, "burst": 10,
        },
        "logging": {
            "format": "text", "flushFrequency": "5s", "verbosity": 0,
            "options": {"text": {"infoBufferSize": "0"}, "json": {"infoBufferSize": "0"}},
        },
        "hostnameOverride": "", "bindAddress": "0.0.0.0", "healthzBindAddress": "0.0.0.0:10256",
        "metricsBindAddress": "127.0.0.1:10249", "bindAddressHardFail": false, "enableProfiling": false,
        "showHiddenMetricsForVersion": "", "mode": "nftables",
        "iptables": with(iptables, period("0s", "0s")),
        "ipvs": with(ipvs, period("0s", "0s")),
        "nftables": with(json!({"masqueradeBit": 14, "masqueradeAll": false}), period("30s", "1s")),
        "winkernel": {
            "networkName": "", "sourceVip": "", "enableDSR": false, "rootHnsEndpointName": "",
            "forwardHealthCheckVip": false,
        },
        "detectLocalMode": "ClusterCIDR", "detectLocal": {"bridgeInterface": "", "interfaceNamePrefix": ""},
        "clusterCIDR": "", "nodePortAddresses": ["primary"], "oomScoreAdj": -999,
        "conntrack": {
            "maxPerCore": 32768, "min": 131072, "tcpEstablishedTimeout": "24h0m0s",
            "tcpCloseWaitTimeout": "1h0m0s", "tcpBeLiberal": false, "udpTimeout": "0s", "udpStreamTimeout": "0s",
        },
        "configSyncPeriod": "15m0s", "portRange": "",
    });
    assert_eq!(value, expected);
}

/// Command lines that kube-proxy takes, with and without a file.
const TAKEN: &[(&[&str], Option<&str>)] = &[
    (&[], None),
    (&["--masquerade-all", "--iptables-sync-period=10s", "--ipvs-sync-period", "7s"], None),
    (&["--iptables-masquerade-bit=3", "--iptables-min-sync-period=2s"], None),
    (&["--feature-gates=", "--vmodule", "", "--nodeport-addresses=", "--ipvs-exclude-cidrs="], None),
    (&["--feature-gates=WatchList=true,", "--proxy-mode", "", "--hostname-override="], None),
    (&["--healthz-port=0"], None),
    (&["--metrics-port=9"], None),
    (&["--healthz-bind-address=", "--metrics-bind-address", ""], None),
    (&["--bind-address=::", "--bind-address-hard-fail"], None),
    (&["--healthz-bind-address=[::1]:99", "--metrics-bind-address=10.0.0.1:98"], None),
    (&["--feature-gates=AllAlpha=true,WatchList=false"], None),
    (&["--v=3", "--vmodule=a=1,b*=2", "--log-flush-frequency=7s"], None),
    (&["-v", "3", "--logging-format=json"], None),
    (
        &[
            "--log-json-split-stream",
            "--feature-gates=LoggingAlphaOptions=true",
            "--log-json-info-buffer-size=1Ki",
        ],
        None,
    ),
    (&["--nodeport-addresses=1.2.3.0/24", "--nodeport-addresses=2.0.0.0/8,fd00::/8"], None),
    (&["--hostname-override= ABC ", "--profiling", "--show-hidden-metrics-for-version=1.35"], None),
    (&["--cluster-cidr=10.0.0.1/8,fd00::/8", "--oom_score_adj=-1", "--config-sync-period=1m30s"], None),
    (&["--detect-local-mode=BridgeInterface", "--pod-bridge-interface=br0"], None),
    (&["--detect-local-mode", "InterfaceNamePrefix", "--pod-interface-name-prefix", "veth"], None),
    (
        &[
            "--conntrack-max-per-core=0",
            "--conntrack-min=5",
            "--conntrack-tcp-be-liberal",
            "--conntrack-tcp-timeout-close-wait=0",
            "--conntrack-tcp-timeout-established=1h",
            "--conntrack-udp-timeout=10s",
            "--conntrack-udp-timeout-stream=20s",
        ],
        None,
    ),
    (&["--kube-api-qps=2.5", "--kube-api-burst=7", "--kube-api-content-type=application/json"], None),
    (&["--kubeconfig=/k", "--master=http://x", "--iptables-localhost-nodeports=false"], None),
    (
        &[
            "--ipvs-exclude-cidrs=1.0.0.0/8,x",
            "--ipvs-scheduler=lc",
            "--ipvs-strict-arp",
            "--ipvs-udp-timeout=1s",
        ],
        None,
    ),
    (
        &["--ipvs-tcp-timeout=1s", "--ipvs-tcpfin-timeout=2s", "--machine-id-file=/x", "--boot-id-file=/y"],
        None,
    ),
    (&["--hostname-override=X", "--cluster-cidr=1.0.0.0/8", "--oom-score-adj=5"], Some("")),
    (
        &["--v=4", "--vmodule=b=1,c=2"],
        Some("logging: {verbosity: 2, vmodule: [{filePattern: a, verbosity: 3}]}"),
    ),
    (&["--feature-gates=AllAlpha=true"], Some("featureGates: {WatchList: false}")),
    (&[], Some("healthzBindAddress: 1.2.3.4\nmetricsBindAddress: '::1'")),
    (&[], Some("bindAddress: '::'\nhealthzBindAddress: ''")),
    (
        &[],
        Some(
            "nftables: {syncPeriod: 10s, minSyncPeriod: 0s, masqueradeBit: 5}\niptables: {masqueradeAll: true}",
        ),
    ),
    (&[], Some("clientConnection: {qps: 0, burst: 0}\nconfigSyncPeriod: 0s\nnodePortAddresses: []")),
    (
        &[],
        Some(
            "conntrack: {maxPerCore: null, min: 0}\noomScoreAdj: null\nlogging: {format: '', flushFrequency: 0}",
        ),
    ),
    (
        &[],
        Some("bogus: 1\nhostnameOverride: ' ABC '\nwindowsRunAsService: true\nwinkernel: {enableDSR: true}"),
    ),
    (
        &[],
        Some("logging: {flushFrequency: 7000000000, options: {json: {infoBufferSize: 0}}}\nportRange: 1-2"),
    ),
    (&[], Some("ipvs: {excludeCIDRs: [], tcpTimeout: -1s, syncPeriod: 3s}\niptables: {syncPeriod: 9s}")),
    (&[], Some("clusterCIDR: a\ndetectLocalMode: NodeCIDR")),
];

/// The same, for mode ipvs.
const TAKEN_IN_MODE_IPVS: &[(&[&str], Option<&str>)] = &[
    (&[], None),
    (&["--ipvs-sync-period=7s", "--ipvs-min-sync-period=2s", "--iptables-sync-period=9s"], None),
    (&["--ipvs-scheduler=wlc", "--ipvs-strict-arp", "--ipvs-exclude-cidrs=1.0.0.0/8,fd00::/8"], None),
    (&["--ipvs-tcp-timeout=1s", "--ipvs-tcpfin-timeout=2s", "--ipvs-udp-timeout=3s"], None),
    (&["--masquerade-all", "--iptables-masquerade-bit=3", "--nodeport-addresses=1.2.3.0/24"], None),
    (&[], Some("")),
    (
        &[],
        Some(
            "ipvs: {syncPeriod: 3s, minSyncPeriod: 1s, scheduler: sh, excludeCIDRs: [1.0.0.0/8], strictARP: true}",
        ),
    ),
    (&[], Some("iptables: {masqueradeBit: 5, masqueradeAll: true, syncPeriod: 5s}\nipvs: {syncPeriod: 0s}")),
    (
        &[],
        Some(
            "nftables: {masqueradeBit: 5, masqueradeAll: true, syncPeriod: 5s}\nnodePortAddresses: [primary]",
        ),
    ),
];

#[test]
fn what_kube_proxy_takes_is_taken_with_the_same_result() {
    let oracle = kube_proxy();
    let mut different: Vec<String> = Vec::new();
    let modes = [("nftables", TAKEN), ("ipvs", TAKEN_IN_MODE_IPVS)];
    for (mode, (flags, file)) in
        modes.into_iter().flat_map(|(mode, all)| all.iter().map(move |one| (mode, one)))
    {
        // kube-proxy's own default is iptables, so both are told.
        let (mut flags, mut file) = (flags.to_vec(), file.map(str::to_owned));
        let said = format!("--proxy-mode={mode}");
        match &mut file {
            Some(file) => *file += &format!("\nmode: {mode}"),
            None => flags.push(&said),
        }
        let ours = ours(&flags, file.as_deref());
        assert_eq!(ours["mode"], mode);
        if let Some(oracle) = &oracle {
            let theirs = effective(oracle, &flags, file.as_deref())
                .unwrap_or_else(|output| panic!("kube-proxy {flags:?} {file:?}: {output:?}"));
            different.extend(differences(&ours, &theirs).map(|field| format!("{flags:?} {file:?}: {field}")));
        }
    }
    assert!(different.is_empty(), "{}", different.join("\n"));
}

/// The fields in which two configurations differ.
fn differences<'a>(ours: &'a Value, theirs: &'a Value) -> impl Iterator<Item = String> + 'a {
    let (ours, theirs) = (ours.as_object().unwrap(), theirs.as_object().unwrap());
    let names: BTreeSet<&String> = ours.keys().chain(theirs.keys()).collect();
    let different = names.into_iter().filter(|name| ours.get(*name) != theirs.get(*name));
    different.map(|name| format!("{name}: {:?}, kube-proxy: {:?}", ours.get(name), theirs.get(name)))
}

/// What kube-proxy refuses, and the fields that we name.
const REFUSED: &[(&[&str], Option<&str>, &[&str])] = &[
    (&["--feature-gates=A=true"], None, &["featureGates.A"]),
    (&["--logging-format=xml"], None, &["logging.format"]),
    (&["--log-json-split-stream"], None, &["logging.options.json.splitStream"]),
    (&["--nodeport-addresses=primary,1.2.3.0/24,primary"], None, &["nodePortAddresses[2]"]),
    (
        &["--oom-score-adj=2000", "--proxy-mode=foo", "--config-sync-period=0s", "--bind-address=x"],
        None,
        &["oomScoreAdj", "mode", "bindAddress"],
    ),
    (&["--conntrack-udp-timeout=-1s"], None, &["conntrack.udpTimeout"]),
    (&["--show-hidden-metrics-for-version=1.2"], None, &["showHiddenMetricsForVersion"]),
    (&["--detect-local-mode=x"], None, &["detectLocalMode"]),
    (&["--detect-local-mode=BridgeInterface"], None, &["detectLocal.bridgeInterface"]),
    (&["--kube-api-burst=-1"], None, &["clientConnection.burst"]),
    (&["--cluster-cidr=10.0.0.0/8,11.0.0.0/8"], None, &["clusterCIDR"]),
    (&["--bogus"], None, &["--bogus"]),
    (&["extra"], None, &["extra"]),
    (&["--profiling=maybe"], None, &["--profiling"]),
    (&["--version=foo"], None, &["--version"]),
    (&[], Some("metricsBindAddress: '0'"), &["metricsBindAddress"]),
    (
        &[],
        Some("metricsBindAddress: 1.2.3.4:0\nhealthzBindAddress: 1.2.3.4:0"),
        &["metricsBindAddress", "healthzBindAddress"],
    ),
    (&[], Some("mode: nftables\niptables: {masqueradeBit: 40}"), &["iptables.masqueradeBit"]),
    (&[], Some("mode: nftables\nnftables: {masqueradeBit: -1}"), &["nftables.masqueradeBit"]),
    (&[], Some("mode: nftables\nnftables: {minSyncPeriod: 40s}"), &["nftables.minSyncPeriod"]),
    (&[], Some("mode: iptables\niptables: {minSyncPeriod: 40s}"), &["iptables.minSyncPeriod"]),
    (&[], Some("mode: nftables\nnftables: {syncPeriod: -1s}"), &["nftables.syncPeriod"]),
    (&[], Some("mode: IPTables"), &["mode"]),
    (&[], Some("mode: kernelspace"), &["mode"]),
    (
        &[],
        Some("mode: ipvs\nipvs: {tcpTimeout: -1s, excludeCIDRs: [x]}"),
        &["ipvs.tcpTimeout", "ipvs.excludeCIDRs[0]"],
    ),
    (&[], Some("featureGates: {Foo: true}"), &["featureGates.Foo"]),
    (
        &[],
        Some(
            "bindAddress: x\nclusterCIDR: ba\nnodePortAddresses: [a, b]\noomScoreAdj: 5000\nconfigSyncPeriod: -1s\n\
             conntrack: {maxPerCore: -1, min: -1, tcpEstablishedTimeout: -1s, tcpCloseWaitTimeout: -1s, \
             udpTimeout: -1s, udpStreamTimeout: -1s}\nclientConnection: {burst: -1}\n\
             showHiddenMetricsForVersion: x",
        ),
        &[
            "bindAddress",
            "clusterCIDR",
            "nodePortAddresses[0]",
            "nodePortAddresses[1]",
            "oomScoreAdj",
            "configSyncPeriod",
            "conntrack.maxPerCore",
            "conntrack.min",
            "conntrack.tcpEstablishedTimeout",
            "conntrack.tcpCloseWaitTimeout",
            "conntrack.udpTimeout",
            "conntrack.udpStreamTimeout",
            "clientConnection.burst",
            "showHiddenMetricsForVersion",
        ],
    ),
    (&[], Some("oomScoreAdj: x"), &["x"]),
    (&[], Some("conntrack: {udpTimeout: 5}"), &["conntrack.udpTimeout: 5 is not a duration"]),
    (&[], Some("logging: {verbosity: -1}"), &["-1"]),
    (&[], Some("kind: Foo\napiVersion: v1"), &["kind", "apiVersion"]),
];

#[test]
fn what_kube_proxy_refuses_is_refused_at_once_with_the_fields() {
    let oracle = kube_proxy();
    for (flags, file, fields) in REFUSED {
        let output =
            effective(&sluice(), flags, *file).err().unwrap_or_else(|| panic!("{flags:?} {file:?} is taken"));
        let text = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(2), "{flags:?} {file:?}: {text}");
        for field in *fields {
            assert!(text.contains(field), "{field} is missing: {text}");
        }
        if let Some(oracle) = &oracle {
            assert!(effective(oracle, flags, *file).is_err(), "kube-proxy takes {flags:?} {file:?}");
        }
    }
}

#[test]
fn all_errors_of_a_file_are_reported_at_once_with_path_and_line() {
    let file = "oomScoreAdj: 2000\nconntrack:\n  min: many\n  maxPerCore: 1\nmode: nftables\nclusterCIDR: x\n\
                sluice:\n  podNetwork:\n    backend: ipip\n    vni: -1\n  ebpf: [1]\n";
    let refused = effective(&sluice(), &["--scheduler=wrr"], Some(file)).unwrap_err();
    let text = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{text}");
    // The head takes two lines.
    for line in [
        "oomScoreAdj: 2000 is not between -1000 and 1000 (line 3)",
        "conntrack.min: \"many\" is not a 32-bit integer (line 5)",
        "clusterCIDR: \"x\" is not a CIDR such as 10.244.0.0/16 (line 8)",
        "sluice.podNetwork.vni: -1 is not between 0 and 16777215 (line 12)",
        "sluice.ebpf: [1] is not a section (line 13)",
        "--scheduler (sluice.scheduler): \"wrr\"",
    ] {
        assert!(text.contains(line), "{line} is missing: {text}");
    }
    assert!(text.contains("sluice.podNetwork.backend: \"ipip\"") && text.contains("(line 11)"), "{text}");
    assert!(text.contains("config.yaml"), "{text}");
}

#[test]
fn a_file_can_be_checked_without_a_daemon() {
    let scratch = Scratch::new();
    let file = scratch.0.join("config.yaml");
    let check = |text: &str| {
        std::fs::write(&file, text).unwrap();
        let output = Command::new(sluice()).args(["config", "check"]).arg(&file).output().unwrap();
        let text = String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr);
        (output.status.code(), text)
    };
    let (code, text) = check("mode: nftables\nclusterCIDR: 10.0.0.0/8\nenableProfiling: true\n");
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("enableProfiling: has no effect") && text.contains("(line 3)"), "{text}");
    assert!(text.ends_with("config.yaml can be used\n"), "{text}");
    // kube-proxy does not look at these networks in this mode, and starts.
    let (code, text) = check(
        "mode: nftables\nclusterCIDR: 10.0.0.0/8\nipvs:\n  excludeCIDRs: [10.1.0.0/16, nonsense]\n  strictARP: true\n",
    );
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("ipvs, except excludeCIDRs: has no effect"), "{text}");
    assert!(text.contains("ipvs.excludeCIDRs[1]: \"nonsense\" is not a CIDR"), "{text}");
    let (_, text) = check("mode: nftables\nclusterCIDR: 10.0.0.0/8\nipvs:\n  excludeCIDRs: [10.1.0.0/16]\n");
    assert!(!text.contains("excludeCIDRs"), "{text}");
    let (code, text) = check("mode: nftables\nclusterCIDR: x\n");
    assert_eq!(code, Some(2), "{text}");
    assert!(text.contains("clusterCIDR: \"x\"") && text.contains("(line 2)"), "{text}");
}

#[test]
fn the_sync_periods_of_ipvs_count_in_that_mode_only() {
    let scratch = Scratch::new();
    let log = |mode: &str| {
        let mut command = Command::new(sluice());
        command.arg("--write-config-to").arg(scratch.0.join("written.yaml"));
        command.args(["--proxy-mode", mode, "--ipvs-sync-period=5s"]).env_remove("RUST_LOG");
        let output = command.output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
    };
    let ignored = "--ipvs-sync-period: has no effect";
    assert!(!log("ipvs").contains(ignored));
    assert!(log("nftables").contains(ignored));
}

#[test]
fn the_version_is_a_command_too() {
    let output = Command::new(sluice()).arg("version").output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.starts_with("sluice 0."), "{text}");
    assert!(text.contains("as kube-proxy 1.36 to"), "{text}");
}

#[test]
fn errors_name_the_flags_that_were_typed() {
    for (flag, told) in [
        ("--cluster-cidr=foo", "--cluster-cidr (clusterCIDR): \"foo\" is not a CIDR"),
        ("--proxy-mode=foo", "--proxy-mode (mode): \"foo\" is unknown"),
        ("--iptables-sync-period=-1s", "--iptables-sync-period (iptables.syncPeriod): must not be negative"),
        (
            "--detect-local-mode=BridgeInterface",
            "--pod-bridge-interface (detectLocal.bridgeInterface): must be set",
        ),
    ] {
        let refused = effective(&sluice(), &[flag], None).unwrap_err();
        let text = String::from_utf8(refused.stderr).unwrap();
        assert!(text.contains(told), "{told} is missing: {text}");
    }
}

#[test]
fn a_log_in_json_is_json_to_the_last_line() {
    let json = |command: &mut Command| {
        let output = command.env_remove("RUST_LOG").output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let text = String::from_utf8(output.stderr).unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let last = lines.last().unwrap_or_else(|| panic!("{text}"));
        assert_eq!(last["level"], "ERROR", "{text}");
        last["fields"]["message"].as_str().unwrap().to_owned()
    };
    let run = |flags: &[&str]| json(Command::new(sluice()).arg("run").args(flags));
    assert!(run(&["--logging-format=json", "--bogus"]).contains("--bogus"));
    assert!(run(&["--logging-format=json", "--cluster-cidr=x"]).contains("--cluster-cidr"));
    let scratch = Scratch::new();
    let config = scratch.0.join("config.yaml");
    std::fs::write(&config, "mode: nftables\nlogging: {format: json}\noomScoreAdj: x\n").unwrap();
    assert!(json(Command::new(sluice()).arg("run").arg("--config").arg(&config)).contains("oomScoreAdj"));
}

#[test]
fn files_that_were_refused_are_taken_with_the_values_of_go() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/collection/faults");
    for (name, bit, oom) in [
        ("05-config-trailing-marker", 14, -999),
        ("06b-numbers-config", 14, -900),
        ("07-config-with-a-closing-document-marker", 14, -999),
        ("08-config-with-an-octal-number", 14, -999),
        ("14-keywords-and-gates-of-1-37", 14, -999),
    ] {
        let text = std::fs::read_to_string(directory.join(name).with_extension("yaml")).unwrap();
        let value = ours(&[], Some(&text));
        assert_eq!(
            (&value["nftables"]["masqueradeBit"], &value["oomScoreAdj"]),
            (&json!(bit), &json!(oom)),
            "{name}"
        );
        assert_eq!(value["mode"], "nftables", "{name}");
        let is_of_1_37 = name.starts_with("14");
        let list =
            if is_of_1_37 { json!(["primary", "localhost", "10.0.0.0/8"]) } else { json!(["primary"]) };
        assert_eq!(value["nodePortAddresses"], list, "{name}");
    }
    // An octal number that is not the default.
    assert_eq!(
        ours(&[], Some("mode: nftables\nnftables: {masqueradeBit: 012}"))["nftables"]["masqueradeBit"],
        10
    );
}

/// The gates that a help page names, with what it says of their stage.
fn gates_of(help: &str) -> Vec<(String, String)> {
    let lines = help.lines().filter_map(|line| line.trim().split_once("=true|false "));
    lines
        .map(|(name, stage)| (name.rsplit(' ').next().unwrap_or(name).to_owned(), stage.to_owned()))
        .collect()
}

#[test]
fn the_table_of_gates_says_what_kube_proxy_says() {
    let newer = std::env::var_os("SLUICE_KUBE_PROXY_1_37").map(PathBuf::from);
    let table = include_str!("../src/config/feature-gates.txt");
    for (column, oracle) in [(1, kube_proxy()), (2, newer)] {
        let Some(oracle) = oracle else { continue };
        let gates = gates_of(&help(&oracle));
        assert!(gates.len() > 100, "kube-proxy's help is not understood: {gates:?}");
        for (name, stage) in gates {
            let line = table.lines().find(|line| line.split(' ').next() == Some(&name));
            let state = line.and_then(|line| line.split(' ').nth(column)).unwrap_or_default();
            let letter = if stage.starts_with("(ALPHA") { 'a' } else { 'b' };
            // What follows is for another --min-compatibility-version.
            let stage = stage.split(')').next().unwrap_or_default();
            let sign = if stage.contains("default=true") { '+' } else { '-' };
            assert_eq!(state, format!("{letter}{sign}"), "{name} {stage}");
        }
    }
}

/// The flags in a help page, with their defaults.
fn flags_of(help: &str) -> Vec<(String, Option<String>)> {
    let mut found: Vec<(String, Option<String>)> = Vec::new();
    for line in help.lines() {
        let trimmed = line.trim_start();
        let is_flag = line.len() - trimmed.len() <= 10 && trimmed.starts_with('-');
        if let Some((_, rest)) = trimmed.split_once("--").filter(|_| is_flag) {
            let end = rest.find(|c: char| !c.is_ascii_lowercase() && !c.is_ascii_digit() && c != '-');
            found.push((rest[..end.unwrap_or(rest.len())].to_owned(), None));
        }
        let default = line.rsplit_once("(default ").and_then(|(_, rest)| rest.strip_suffix(')'));
        if let (Some((_, slot)), Some(default)) = (found.last_mut(), default) {
            *slot = Some(default.trim_matches('"').to_owned());
        }
    }
    found
}

fn help(program: &Path) -> String {
    let output = Command::new(program).args(["--help"]).output().unwrap();
    String::from_utf8(output.stdout).unwrap() + &String::from_utf8_lossy(&output.stderr)
}

#[test]
fn every_flag_of_kube_proxy_is_known_with_its_default() {
    let scratch = Scratch::new();
    let link = scratch.0.join("kube-proxy");
    std::os::unix::fs::symlink(sluice(), &link).unwrap();
    let ours: BTreeSet<String> = flags_of(&help(&link)).into_iter().map(|(flag, _)| flag).collect();
    let listed: BTreeSet<String> = FLAGS.split_ascii_whitespace().map(str::to_owned).collect();
    assert_eq!(listed.difference(&ours).collect::<Vec<_>>(), Vec::<&String>::new());
    let Some(oracle) = kube_proxy() else { return };
    let theirs = flags_of(&help(&oracle));
    assert!(theirs.len() > 50, "kube-proxy's help is not understood: {theirs:?}");
    for (flag, default) in theirs {
        assert!(ours.contains(&flag), "--{flag}");
        let known = sluice::cli::DEFAULTS.iter().find(|(name, _)| *name == flag).map(|(_, value)| *value);
        // Where a machine's ids are has no effect here.
        if let Some(default) = default.filter(|_| !flag.ends_with("-id-file")) {
            assert_eq!(known, Some(default.as_str()), "--{flag}");
        }
    }
}

#[cfg(feature = "ebpf")]
#[test]
fn the_flag_of_the_scheduler_counts_with_and_without_a_file() {
    for (flags, file) in [
        (&["--proxy-mode=ebpf", "--scheduler=maglev"][..], None),
        (&["--scheduler=maglev"], Some("mode: ebpf\nsluice: {scheduler: rr}")),
    ] {
        let value = effective(&sluice(), flags, file).unwrap_or_else(|output| panic!("{output:?}"));
        assert_eq!((&value["mode"], &value["sluice"]["scheduler"]), (&json!("ebpf"), &json!("maglev")));
        assert_eq!(value["nodePortAddresses"], json!(["primary"]));
        assert_eq!(value["sluice"]["ebpf"]["bpffs"], "/sys/fs/bpf/sluice");
        // What was written means the same when it is read.
        assert_eq!(effective(&sluice(), &[], Some(&value.to_string())).unwrap(), value);
    }
    let refused = effective(&sluice(), &["--scheduler=maglev"], Some("mode: nftables")).unwrap_err();
    assert!(String::from_utf8_lossy(&refused.stderr).contains("sluice.scheduler"));
}

#[test]
fn mode_iptables_runs_as_nftables_with_the_values_of_its_section() {
    let file = "mode: iptables\niptables: {masqueradeBit: 7, masqueradeAll: true, syncPeriod: 20s}\n\
                nftables: {masqueradeBit: 9, syncPeriod: 5s}";
    let value = ours(&[], Some(file));
    assert_eq!(value["mode"], "nftables");
    assert_eq!(
        value["nftables"],
        json!({"masqueradeBit": 7, "masqueradeAll": true, "syncPeriod": "20s", "minSyncPeriod": "1s"})
    );
    // Node ports answer on all addresses, as they did.
    assert_eq!(value["nodePortAddresses"], json!(["0.0.0.0/0", "::/0"]));
    // What was written means the same when it is read.
    assert_eq!(ours(&[], Some(&value.to_string())), value);
    // No mode is the same to kube-proxy.
    assert_eq!(ours(&[], Some(&file.replace("mode: iptables\n", ""))), value);
    assert_eq!(ours(&[], Some("mode: nftables"))["nodePortAddresses"], json!(["primary"]));
}

#[test]
fn flags_of_every_mode_count_without_a_mode_too() {
    let flags = ["--masquerade-all", "--iptables-sync-period=40s", "--iptables-min-sync-period=2s"];
    for mode in [&[][..], &["--proxy-mode=iptables"], &["--proxy-mode=nftables"]] {
        let value = ours(&[&flags[..], mode].concat(), None);
        assert_eq!(
            value["nftables"],
            json!({"masqueradeBit": 14, "masqueradeAll": true, "syncPeriod": "40s", "minSyncPeriod": "2s"}),
            "{mode:?}"
        );
    }
}

#[test]
fn settings_without_effect_are_logged() {
    let scratch = Scratch::new();
    let written = scratch.0.join("written.yaml");
    let output = Command::new(sluice())
        .args(["run", "--proxy-mode=iptables", "--kube-api-qps=50", "--profiling", "--ipvs-strict-arp"])
        .args([
            "--iptables-min-sync-period=10s",
            "--feature-gates=WatchList=false",
            "--config-sync-period=1m",
        ])
        .args(["--log-flush-frequency=9s", "--boot-id-file=/x", "--ipvs-sync-period=9s", "--healthz-port=5"])
        .arg("--write-config-to")
        .arg(&written)
        .env_remove("RUST_LOG")
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stderr);
    for told in [
        "--proxy-mode (mode): \"iptables\" runs as nftables",
        "clientConnection.qps",
        "enableProfiling",
        "ipvs",
        "minSyncPeriod",
        "featureGates.WatchList",
        "configSyncPeriod",
        "logging.flushFrequency",
        "--boot-id-file",
        "--ipvs-sync-period",
        "--healthz-port",
    ] {
        assert!(text.contains(told), "{told} is missing: {text}");
    }
}
