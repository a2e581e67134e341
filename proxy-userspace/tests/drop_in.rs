//! `sluice` in the place of kube-proxy on a node: what it removes, what it serves, and when it
//! ends. Each test has a network namespace of its own.
#![expect(clippy::unwrap_used, clippy::panic, reason = "integration tests fail by panicking")]

#[path = "support/daemon.rs"]
mod daemon;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use daemon::{CONFIG, Daemon, configured, in_netns, kube_proxy, shell};

fn has(program: &str) -> bool {
    let found = ["/usr/sbin", "/sbin", "/usr/bin"].iter().any(|dir| Path::new(dir).join(program).exists());
    if !found {
        sluice_skips::skip(program, "the program is not installed, so this part is not tested");
    }
    found
}

/// The programs with which kube-proxy writes rules for IPv4. Without any of them the test has
/// nothing to do, which is a skip of the whole test.
fn iptables_variants() -> Vec<&'static str> {
    let variants: Vec<_> =
        ["iptables-legacy", "iptables-nft"].into_iter().filter(|variant| has(variant)).collect();
    if variants.is_empty() {
        sluice_skips::skip("iptables", "no variant of the program is installed");
    }
    variants
}

/// The rules of kube-proxy's iptables mode, in short, beside rules of others.
const IPTABLES_NAT: &str = "*nat
:KUBE-SERVICES - [0:0]
:KUBE-POSTROUTING - [0:0]
:KUBE-MARK-MASQ - [0:0]
:KUBE-SVC-ERIFXISQEP7F7OF4 - [0:0]
:KUBE-SEP-QFOJ7QVAOGOYVRXE - [0:0]
:KUBE-KUBELET-CANARY - [0:0]
:OTHERS - [0:0]
-A PREROUTING -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A OUTPUT -m comment --comment \"kubernetes service portals\" -j KUBE-SERVICES
-A POSTROUTING -j KUBE-POSTROUTING
-A PREROUTING -j OTHERS
-A OTHERS -p tcp -j RETURN
-A KUBE-SERVICES -d 10.96.0.9/32 -p tcp --dport 80 -j KUBE-SVC-ERIFXISQEP7F7OF4
-A KUBE-SVC-ERIFXISQEP7F7OF4 -j KUBE-MARK-MASQ
-A KUBE-SVC-ERIFXISQEP7F7OF4 -j KUBE-SEP-QFOJ7QVAOGOYVRXE
-A KUBE-SEP-QFOJ7QVAOGOYVRXE -p tcp -j DNAT --to-destination 10.244.0.5:80
COMMIT
";

const NFTABLES: &str = "table ip kube-proxy { chain services {
type nat hook prerouting priority -100
}; }
table ip6 kube-proxy { chain services {
type nat hook prerouting priority -100
}; }
table ip others { chain KUBE-SERVICES {
}; }
";

/// What kube-proxy leaves in its modes; returns the variants of iptables that are there.
fn leave_behind() -> Vec<&'static str> {
    shell("nft -f -", NFTABLES);
    shell("ip link add kube-ipvs0 type dummy || true", "");
    if !has_link() {
        sluice_skips::skip("dummy", "the kernel has no such links, so this part is not tested");
    }
    let nat6 = IPTABLES_NAT.replace("10.96.0.9/32", "fd00::9/128").replace("10.244.0.5:80", "[fd00::5]:80");
    let mut variants = Vec::new();
    for variant in ["iptables-legacy", "iptables-nft", "ip6tables-legacy", "ip6tables-nft"] {
        if has(variant) {
            let rules = if variant.starts_with("ip6") { &nat6 } else { IPTABLES_NAT };
            shell(&format!("{variant}-restore --noflush"), rules);
            variants.push(variant);
        }
    }
    if has("ipset") {
        shell("ipset create KUBE-CLUSTER-IP hash:ip,port", "");
        shell("ipset create KUBE-6-LOOP-BACK hash:ip,port,ip family inet6", "");
        shell("ipset create OTHERS hash:ip", "");
        if variants.contains(&"iptables-legacy") {
            shell(
                "iptables-legacy -t nat -I KUBE-SERVICES -m set --match-set KUBE-CLUSTER-IP dst,dst -j KUBE-MARK-MASQ",
                "",
            );
        }
    }
    variants
}

/// Nothing of kube-proxy is there, and everything of others.
fn assert_gone(variants: &[&str]) {
    let tables = shell("nft list tables", "");
    assert!(!tables.contains("kube-proxy"), "{tables}");
    assert!(tables.contains("table ip others"), "{tables}");
    assert!(shell("nft list table ip others", "").contains("KUBE-SERVICES"));
    for variant in variants {
        let saved = shell(&format!("{variant}-save -t nat"), "");
        for gone in [
            "kubernetes service portals",
            "KUBE-SERVICES",
            "KUBE-SVC",
            "KUBE-SEP",
            "KUBE-MARK-MASQ",
            "KUBE-POSTROUTING",
        ] {
            assert!(!saved.contains(gone), "{variant}: {gone} is left: {saved}");
        }
        for kept in [":KUBE-KUBELET-CANARY", "-A PREROUTING -j OTHERS", "-A OTHERS -p tcp -j RETURN"] {
            assert!(saved.contains(kept), "{variant}: {kept} is gone: {saved}");
        }
    }
    if has("ipset") {
        assert_eq!(shell("ipset list -name", "").trim(), "OTHERS");
    }
    assert!(!has_link());
}

fn has_link() -> bool {
    shell("ip -o link", "").contains("kube-ipvs0")
}

#[test]
fn cleanup_removes_what_kube_proxy_left_and_nothing_else() {
    in_netns("cleanup", |directory| {
        let variants = leave_behind();
        // Ours only: kube-proxy's stay.
        let sluice = env!("CARGO_BIN_EXE_sluice");
        shell(&format!("{sluice} cleanup"), "");
        assert!(shell("nft list tables", "").contains("kube-proxy"));
        let had_link = has_link();
        let output = kube_proxy(directory).arg("--cleanup").output().unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_gone(&variants);
        let told = String::from_utf8(output.stdout).unwrap();
        assert!(told.contains("removed table ip6 kube-proxy"), "{told}");
        assert_eq!(told.contains("removed interface kube-ipvs0"), had_link, "{told}");
        let again = shell(&format!("{sluice} cleanup --kube-proxy"), "");
        assert!(again.contains("kube-proxy left nothing"), "{again}");
    });
}

#[test]
fn rules_of_others_that_use_a_chain_of_kube_proxy_keep_working() {
    in_netns("users", |directory| {
        let mine = "-A PREROUTING -s 10.9.0.0/16 -m comment --comment mine -j KUBE-MARK-MASQ";
        let marks = "-A KUBE-MARK-MASQ -j MARK --set-xmark 0x4000/0x4000";
        let variants = iptables_variants();
        if variants.is_empty() {
            return;
        }
        for variant in &variants {
            shell(&format!("{variant}-restore --noflush"), IPTABLES_NAT);
            for rule in [mine, marks] {
                shell(&format!("{variant} -t nat {rule}"), "");
            }
        }
        let output = kube_proxy(directory).arg("--cleanup").output().unwrap();
        let told = format!("{output:?}");
        for variant in variants {
            let saved = shell(&format!("{variant}-save -t nat"), "");
            assert!(saved.contains(mine) && saved.contains(marks), "{variant}: {saved}{told}");
            assert!(
                !saved.contains("KUBE-SERVICES") && !saved.contains("KUBE-SVC"),
                "{variant}: {saved}{told}"
            );
        }
    });
}

#[test]
fn a_failed_step_of_cleanup_is_reported_and_the_others_still_run() {
    in_netns("failing", |directory| {
        if !has("iptables-legacy") {
            return;
        }
        shell("nft -f -", NFTABLES);
        shell("iptables-legacy-restore --noflush", IPTABLES_NAT);
        if has("ip6tables-legacy") {
            let nat6 =
                IPTABLES_NAT.replace("10.96.0.9/32", "fd00::9/128").replace("10.244.0.5:80", "[fd00::5]:80");
            shell("ip6tables-legacy-restore --noflush", &nat6);
        }
        // As in an image without programs.
        let cleanup = |directory: &Path| -> Output {
            let path = "mount -t tmpfs none /usr/sbin && mount -t tmpfs none /sbin; PATH=/nowhere exec \"$0\" --cleanup";
            let program = kube_proxy(directory).get_program().to_owned();
            Command::new("unshare").args(["-m", "sh", "-c", path]).arg(program).output().unwrap()
        };
        let output = cleanup(directory);
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        assert!(told.contains("iptables-legacy-save"), "{told}");
        assert!(!shell("nft list tables", "").contains("kube-proxy"));
        // The chains are there, and have no effect.
        let saved = shell("iptables-legacy-save -t nat", "");
        assert!(saved.contains(":KUBE-SERVICES") && saved.contains("-A PREROUTING -j OTHERS"), "{saved}");
        for built_in in ["PREROUTING", "OUTPUT", "POSTROUTING"] {
            let jumps = |line: &&str| line.starts_with(&format!("-A {built_in} ")) && line.contains("KUBE-");
            assert_eq!(saved.lines().find(jumps), None, "{saved}");
        }
        assert!(saved.contains("-A KUBE-SVC-ERIFXISQEP7F7OF4 -j KUBE-SEP-QFOJ7QVAOGOYVRXE"), "{saved}");
        let others = "-A OTHERS -p udp -j KUBE-MARK-MASQ";
        shell(&format!("iptables-legacy -t nat {others}"), "");
        assert_eq!(cleanup(directory).status.code(), Some(1));
        assert!(shell("iptables-legacy-save -t nat", "").contains(others));
        // With the programs, all goes but what others use.
        let output = kube_proxy(directory).arg("--cleanup").output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{output:?}");
        let saved = shell("iptables-legacy-save -t nat", "");
        assert!(saved.contains(others) && !saved.contains("KUBE-SVC"), "{saved}");
    });
}

#[test]
fn the_daemon_removes_leftovers_once_its_own_rules_are_in_force() {
    in_netns("takeover", |directory| {
        let variants = leave_behind();
        let config = configured(directory);
        let mut daemon = Daemon::start(directory, &config, &["--cleanup-kube-proxy=false"]);
        std::thread::sleep(Duration::from_millis(300));
        assert!(shell("nft list tables", "").contains("table ip kube-proxy"));
        drop(daemon);
        daemon = Daemon::start(directory, &config, &[]);
        daemon.wait_for("what kube-proxy left");
        let end = Instant::now() + Duration::from_secs(10);
        let is_left = || has_link() || has("ipset") && shell("ipset list -name", "").contains("KUBE-");
        while is_left() && Instant::now() < end {
            std::thread::sleep(Duration::from_millis(50));
        }
        assert_gone(&variants);
        assert!(shell("nft list tables", "").contains("table inet sluice"));
        let log = std::fs::read_to_string(&daemon.log).unwrap();
        let (ours, theirs) =
            (log.find("ruleset in place").unwrap(), log.find("what kube-proxy left").unwrap());
        assert!(ours < theirs, "{log}");
    });
}

/// A Service on 10.96.0.9:80 with its endpoint on this machine.
const OBJECTS: &str = "apiVersion: v1
kind: Node
metadata: {name: n1}
status: {addresses: [{type: InternalIP, address: 10.0.0.1}]}
---
apiVersion: v1
kind: Service
metadata: {name: a, namespace: d}
spec: {type: ClusterIP, clusterIP: 10.96.0.9, clusterIPs: [10.96.0.9], ports: [{port: 80, targetPort: 9000, protocol: TCP}]}
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata: {name: a-1, namespace: d, labels: {kubernetes.io/service-name: a}}
addressType: IPv4
ports: [{port: 9000, protocol: TCP}]
endpoints: [{addresses: [10.0.0.1], conditions: {ready: true}, nodeName: n1}]
";

/// Answers each byte with itself, in threads that end with the process.
fn serve_echo() {
    let listener = std::net::TcpListener::bind("10.0.0.1:9000").unwrap();
    std::thread::spawn(move || {
        for mut stream in listener.incoming().flatten() {
            std::thread::spawn(move || {
                let mut byte = [0];
                while stream.read_exact(&mut byte).is_ok() && stream.write_all(&byte).is_ok() {}
            });
        }
    });
}

fn echo(stream: &mut TcpStream) -> std::io::Result<()> {
    stream.set_read_timeout(Some(Duration::from_secs(2)))?;
    stream.write_all(b"x")?;
    stream.read_exact(&mut [0])
}

fn connect() -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&"10.96.0.9:80".parse().unwrap(), Duration::from_secs(2))
}

/// Installs what another proxy had, lets the daemon take over under load, and expects no connection
/// to fail.
fn take_over_under_load(directory: &Path, install: impl FnOnce(), is_left: impl Fn() -> bool) {
    shell("ip link add br0 type bridge && ip addr add 10.0.0.1/24 dev br0 && ip link set br0 up", "");
    shell("ip route add 10.96.0.0/16 dev br0", "");
    std::fs::write(directory.join("manifests/objects.yaml"), OBJECTS).unwrap();
    serve_echo();
    install();
    let mut old = connect().unwrap();
    echo(&mut old).unwrap();
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let stopped = stop.clone();
    let load = std::thread::spawn(move || {
        let (mut tried, mut failed) = (0, 0);
        while !stopped.load(std::sync::atomic::Ordering::Relaxed) {
            tried += 1;
            failed += usize::from(connect().and_then(|mut stream| echo(&mut stream)).is_err());
            std::thread::sleep(Duration::from_millis(2));
        }
        (tried, failed)
    });
    let mut daemon = Daemon::start(directory, &configured(directory), &[]);
    daemon.wait_for("removed what kube-proxy left");
    let end = Instant::now() + Duration::from_secs(10);
    while is_left() && Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
    }
    assert!(!is_left());
    std::thread::sleep(Duration::from_millis(200));
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (tried, failed) = load.join().unwrap();
    assert!(tried > 20, "only {tried} connections were tried");
    assert_eq!(failed, 0, "of {tried} connections");
    echo(&mut old).unwrap();
}

#[test]
fn no_connection_is_lost_when_nftables_rules_of_kube_proxy_go() {
    in_netns("load-nft", |directory| {
        let rules = "table ip kube-proxy { chain out {
            type nat hook output priority -100
            ip daddr 10.96.0.9 tcp dport 80 dnat to 10.0.0.1:9000
        }; }";
        let is_left = || shell("nft list tables", "").contains("kube-proxy");
        take_over_under_load(directory, || drop(shell("nft -f -", rules)), is_left);
    });
}

#[test]
fn no_connection_is_lost_when_iptables_chains_of_kube_proxy_go() {
    for variant in iptables_variants() {
        in_netns(variant, move |directory| {
            let rules = IPTABLES_NAT.replace("10.244.0.5:80", "10.0.0.1:9000");
            let is_left = || shell(&format!("{variant}-save -t nat"), "").contains("KUBE-SVC");
            let install = || drop(shell(&format!("{variant}-restore --noflush"), &rules));
            take_over_under_load(directory, install, is_left);
        });
    }
}

#[test]
fn a_changed_configuration_file_ends_the_daemon_and_rules_stay() {
    in_netns("changed", |directory| {
        let config = configured(directory);
        let mut daemon = Daemon::start(directory, &config, &[]);
        // The same content is no change.
        std::fs::write(&config, CONFIG).unwrap();
        std::thread::sleep(Duration::from_millis(300));
        assert!(daemon.child.try_wait().unwrap().is_none());
        std::fs::write(&config, format!("{CONFIG}clusterCIDR: 10.0.0.0/8\n")).unwrap();
        assert_eq!(daemon.exit_code(), Some(1));
        let log = std::fs::read_to_string(&daemon.log).unwrap();
        assert!(log.contains("configuration file") && log.contains("changed: exiting"), "{log}");
        assert!(shell("nft list tables", "").contains("table inet sluice"));
    });
}

#[test]
fn an_exchanged_configmap_volume_ends_the_daemon() {
    in_netns("configmap", |directory| {
        let volume = directory.join("volume");
        let version = |name: &str, text: &str| {
            std::fs::create_dir_all(volume.join(name)).unwrap();
            std::fs::write(volume.join(name).join("config.conf"), text).unwrap();
            std::os::unix::fs::symlink(name, volume.join("..data_tmp")).unwrap();
            std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
        };
        version("..2026_1", CONFIG);
        let config = volume.join("config.conf");
        std::os::unix::fs::symlink("..data/config.conf", &config).unwrap();
        let mut daemon = Daemon::start(directory, &config, &[]);
        version("..2026_2", CONFIG);
        std::thread::sleep(Duration::from_millis(300));
        assert!(daemon.child.try_wait().unwrap().is_none());
        version("..2026_3", &format!("{CONFIG}clusterCIDR: 10.0.0.0/8\n"));
        assert_eq!(daemon.exit_code(), Some(1));
    });
}

/// Head and body of an answer.
fn get(path: &str, more: &str) -> (String, String) {
    let mut stream = TcpStream::connect("127.0.0.1:10249").unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: a\r\nConnection: close\r\n{more}\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{path}: {text}"));
    (head.to_lowercase(), body.to_owned())
}

#[test]
fn the_metrics_server_has_kube_proxys_pages() {
    in_netns("pages", |directory| {
        let config = configured(directory);
        let _daemon = Daemon::start(directory, &config, &["-v=2"]);
        let plain = "content-type: text/plain; charset=utf-8";
        let (head, body) = get("/proxyMode", "");
        assert!(
            head.starts_with("http/1.1 200") && head.contains(plain) && head.contains("nosniff"),
            "{head}"
        );
        assert_eq!(body, "nftables");
        assert_eq!(get("/healthz", "").1, "ok");
        assert_eq!(get("/healthz?verbose", "").1, "[+]ping ok\nhealthz check passed\n");
        assert_eq!(get("/healthz/ping", "").1, "ok");
        for path in ["/", "/nope", "/healthz/nope", "/debug/pprof/"] {
            let (head, body) = get(path, "");
            assert!(head.starts_with("http/1.1 404") && head.contains("nosniff"), "{path}: {head}");
            assert_eq!(body, "404 page not found\n");
        }
        let (_, body) = get("/configz", "");
        let value: serde_json::Value = serde_json::from_str(&body).unwrap();
        let config = &value["kubeproxy.config.k8s.io"];
        assert_eq!(config["clientConnection"]["qps"], 50);
        assert_eq!(config["hostnameOverride"], "n1");
        assert_eq!(config["nodePortAddresses"], serde_json::json!(["primary"]));
        assert!(get("/metrics/slis", "").1.contains("\nprocess_start_time_seconds "));
        let (_, text) = get("/flagz", "");
        assert!(text.contains("\nhostname-override: n1\n") && text.contains("\nv: 2\n"), "{text}");
        assert!(get("/statusz", "").1.contains("\nUp: 0 hr 00 min"));
        let accept = "Accept: application/json;g=config.k8s.io;v=v1beta1;as=Flagz\r\n";
        let flags: serde_json::Value = serde_json::from_str(&get("/flagz", accept).1).unwrap();
        assert_eq!(flags["flags"]["oom-score-adj"], "-999");
        assert!(get("/flagz", "Accept: application/json\r\n").0.starts_with("http/1.1 406"));
    });
}

#[test]
fn the_ipv4_wildcard_answers_ipv6_too_and_port_zero_switches_servers_off() {
    in_netns("listen", |directory| {
        let daemon = Daemon::start(directory, &configured(directory), &[]);
        assert!(TcpStream::connect("[::1]:10256").is_ok());
        assert!(TcpStream::connect("127.0.0.1:10256").is_ok());
        drop(daemon);
        let log = directory.join("log2");
        let child = kube_proxy(directory)
            .args(["--healthz-port=0", "--metrics-port=0", "--hostname-override=n1", "--oom-score-adj=0"])
            .args(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"])
            .args(["--conntrack-tcp-timeout-close-wait=0", "--manifests"])
            .arg(directory.join("manifests"))
            .stderr(std::fs::File::create(&log).unwrap())
            .spawn()
            .unwrap();
        let mut daemon = Daemon { child, log };
        daemon.wait_for("ruleset in place");
        assert!(TcpStream::connect("127.0.0.1:10256").is_err());
        assert!(TcpStream::connect("127.0.0.1:10249").is_err());
    });
}

#[test]
fn init_only_sets_sysctls_and_ends() {
    in_netns("init", |directory| {
        let read = || shell("cat /proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", "");
        let output = kube_proxy(directory)
            .args(["--init-only", "--hostname-override=n1", "--conntrack-tcp-timeout-close-wait=11m"])
            .args(["--conntrack-max-per-core=0", "--conntrack-tcp-timeout-established=0"])
            .output()
            .unwrap();
        assert!(output.status.success(), "{output:?}");
        assert_eq!(read().trim(), "660");
        assert!(!shell("nft list tables", "").contains("sluice"));
    });
}
