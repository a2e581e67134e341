//! Services on real nodes: VMs with kernels of their own. What must be true is read off conntrack
//! in the node and off the frames between the nodes, by programs that know nothing of sluice.

#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helpers fail the test")]

mod cluster;

use std::collections::BTreeSet;

use cluster::{CLIENT, Cluster, HOST_PORT, NODES, Wiring};
use sluice_tests::agent::protocol::Answer;

/// Opens a connection.
const SYN: &str = "tcp[tcpflags] & (tcp-syn|tcp-ack) == tcp-syn";
const USER: &str = "10.244.1.20";
const WEB: [(&str, &str); 2] = [("web-a", "10.244.1.11"), ("web-b", "10.244.2.11")];

/// A Service with endpoints out of [`WEB`].
fn service(name: &str, spec: &str, protocol: &str, endpoints: &[usize]) -> String {
    let list: String = endpoints
        .iter()
        .map(|i| {
            format!(
                "- {{addresses: [{}], conditions: {{ready: true}}, nodeName: {}}}\n",
                WEB[*i].1,
                ["node-a", "node-b"][*i]
            )
        })
        .collect();
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: default}}\nspec: {{{spec}}}\n---\n\
         apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n\
         metadata: {{name: {name}, namespace: default, labels: {{kubernetes.io/service-name: {name}}}}}\n\
         addressType: IPv4\nports: [{{name: '', port: 8080, protocol: {protocol}}}]\nendpoints:\n{list}---\n"
    )
}

fn objects(of_dns: &[usize]) -> String {
    let node = |name, address, cidr| {
        format!(
            "apiVersion: v1\nkind: Node\nmetadata: {{name: {name}}}\nspec: {{podCIDRs: [{cidr}]}}\n\
             status: {{addresses: [{{type: InternalIP, address: {address}}}]}}\n---\n"
        )
    };
    let tcp = "protocol: TCP, port: 80, targetPort: 8080";
    [
        node("node-a", NODES[0], "10.244.1.0/24"),
        node("node-b", NODES[1], "10.244.2.0/24"),
        service(
            "web",
            &format!("type: NodePort, clusterIP: 10.96.0.10, ports: [{{{tcp}, nodePort: 30080}}]"),
            "TCP",
            &[0, 1],
        ),
        service(
            "local",
            &format!(
                "type: NodePort, clusterIP: 10.96.0.11, externalTrafficPolicy: Local, ports: [{{{tcp}, nodePort: 30081}}]"
            ),
            "TCP",
            &[0, 1],
        ),
        service(
            "sticky",
            &format!("clusterIP: 10.96.0.12, sessionAffinity: ClientIP, ports: [{{{tcp}}}]"),
            "TCP",
            &[0, 1],
        ),
        service(
            "dns",
            "clusterIP: 10.96.0.13, ports: [{protocol: UDP, port: 53, targetPort: 8080}]",
            "UDP",
            of_dns,
        ),
    ]
    .concat()
}

fn pods(answers: &[Answer]) -> Vec<&str> {
    answers.iter().map(|answer| answer.pod.as_str()).collect()
}

fn take_turns(answers: &[Answer]) {
    let pods = pods(answers);
    assert!(pods.windows(2).all(|two| two[0] != two[1]), "they do not take turns: {pods:?}");
}

#[test]
fn nodes_with_nftables() {
    services_work("nftables", true);
}

#[test]
fn nodes_with_ipvs() {
    services_work("ipvs", true);
}

/// Pods of sluice's plugin, and VXLAN between the nodes: read off the wire.
#[test]
fn nodes_with_the_pod_network() {
    let Some(mut cluster) = Cluster::start("nftables", Wiring::Sluice) else { return };
    cluster.start_proxies(
        &objects(&[0]),
        "sluice: {scheduler: rr, podNetwork: {backend: vxlan, vni: 77, port: 4790}}",
    );
    let answers = cluster.probe("user", "tcp://10.244.2.11:8080", 5);
    assert!(answers.iter().all(|answer| answer.peer.to_string() == USER), "{answers:?}");
    // tcpdump knows VXLAN by its usual port only, so its header is read here: the flag, and the
    // network (RFC 7348, 5).
    let outer = format!(
        "src host {} and dst host {} and udp dst port 4790 and udp[8:4] = 0x08000000 and udp[12:4] = {}",
        NODES[0],
        NODES[1],
        77 << 8
    );
    assert!(cluster.wire(&outer).len() >= 5, "{:#?}", cluster.wire("udp port 4790"));
    let bare = cluster.wire("net 10.244.0.0/16");
    assert_eq!(bare, Vec::<String>::new(), "a packet between pods crossed the wire as it is");
    // With Services too.
    take_turns(&cluster.probe("user", "tcp://10.96.0.10:80", 6));
    cluster.send_datagrams("user", "udp://10.96.0.13:53");
    cluster.datagrams_reach("user", "udp://10.96.0.13:53", "web-a");
    cluster.write(&objects(&[1]));
    cluster.datagrams_reach("user", "udp://10.96.0.13:53", "web-b");
    // Ports of the nodes, by SCTP, which few machines offer beside these.
    for (node, (pod, _)) in WEB.into_iter().enumerate() {
        let answers = cluster.probe("client", &format!("sctp://{}:{HOST_PORT}", NODES[node]), 1);
        assert_eq!((pods(&answers), answers[0].peer.to_string()), (vec![pod], CLIENT.to_owned()));
    }
    // The device is deleted, and is there again before a connection gives up.
    cluster.shell(0, "ip link delete sluice-vxlan0");
    assert_eq!(pods(&cluster.probe("user", "tcp://10.244.2.11:8080", 1)), ["web-b"]);
    // Outside the cluster a pod has the node's address.
    cluster.kill_proxy(0);
    cluster.shell(
        0,
        "ip netns exec user timeout 2 bash -c 'echo > /dev/tcp/192.168.78.50/9' 2>/dev/null || true",
    );
    let left = cluster.wire(&format!("src host {} and dst host {CLIENT} and tcp dst port 9", NODES[0]));
    assert!(!left.is_empty(), "a pod does not get out, or shows its own address");
    cluster.start_proxy(0);
    take_turns(&cluster.probe("user", "tcp://10.96.0.10:80", 4));
}

#[test]
fn nodes_with_ebpf() {
    // Its flows are not in the kernel's connection tracking.
    services_work("ebpf", false);
}

fn services_work(mode: &'static str, is_tracked: bool) {
    let Some(mut cluster) = Cluster::start(mode, Wiring::ByHand) else { return };
    cluster.start_proxies(&objects(&[0]), "sluice: {scheduler: rr}");
    cluster_ip(&mut cluster, is_tracked);
    node_port(&mut cluster, is_tracked);
    local_policy(&mut cluster, is_tracked);
    affinity(&mut cluster, is_tracked);
    datagrams_move(&mut cluster, is_tracked);
    cluster.kill_proxy(0);
    take_turns(&cluster.probe("user", "tcp://10.96.0.10:80", 4));
    cluster.start_proxy(0);
    take_turns(&cluster.probe("user", "tcp://10.96.0.10:80", 4));
}

/// A pod's connections take turns, and go from its own address to those of the endpoints.
fn cluster_ip(cluster: &mut Cluster, is_tracked: bool) {
    let answers = cluster.probe("user", "tcp://10.96.0.10:80", 6);
    take_turns(&answers);
    assert!(answers.iter().all(|answer| answer.peer.to_string() == USER), "{answers:?}");
    let to_b = format!("src host {USER} and dst host {} and dst port 8080 and {SYN}", WEB[1].1);
    assert_eq!(cluster.wire(&to_b).len(), 3);
    assert_eq!(cluster.wire("host 10.96.0.10"), Vec::<String>::new());
    let tracked = cluster.conntrack(0, "-p tcp -d 10.96.0.10");
    if !is_tracked {
        assert_eq!(tracked, Vec::<String>::new(), "the socket path leaves no trace");
        return;
    }
    for (_, address) in WEB {
        let translated = format!("src={address} dst={USER} sport=8080");
        let count = tracked.iter().filter(|line| line.contains(&translated)).count();
        assert_eq!(count, 3, "{address}: {tracked:#?}");
    }
}

/// A client outside sees the node only, and endpoints on other nodes see the node instead of the
/// client.
fn node_port(cluster: &mut Cluster, is_tracked: bool) {
    let [node, _] = NODES;
    let answers = cluster.probe("client", &format!("tcp://{node}:30080"), 4);
    take_turns(&answers);
    for answer in answers.iter().filter(|answer| answer.pod == "web-b") {
        assert_eq!(answer.peer.to_string(), node, "{answer:?}");
    }
    let masqueraded = format!("src host {node} and dst host {} and dst port 8080 and {SYN}", WEB[1].1);
    assert_eq!(cluster.wire(&masqueraded).len(), 2);
    let of_client = |more: &str| cluster.wire(&format!("host {CLIENT} and tcp and {more}"));
    assert_eq!(of_client("port 8080"), Vec::<String>::new());
    let opened = of_client(&format!("dst port 30080 and {SYN}")).len();
    assert_eq!(opened, 4);
    if is_tracked {
        let tracked = cluster.conntrack(0, &format!("-p tcp -s {CLIENT} -d {node}"));
        let translated = format!("src={} dst={node} sport=8080", WEB[1].1);
        let count = tracked.iter().filter(|line| line.contains(&translated)).count();
        assert_eq!(count, 2, "{tracked:#?}");
    }
}

/// With policy Local the endpoints see the client, and only those of the node that it calls.
fn local_policy(cluster: &mut Cluster, is_tracked: bool) {
    for (node, (pod, address)) in WEB.into_iter().enumerate() {
        let answers = cluster.probe("client", &format!("tcp://{}:30081", NODES[node]), 3);
        assert_eq!(pods(&answers), [pod; 3]);
        assert!(answers.iter().all(|answer| answer.peer.to_string() == CLIENT), "{answers:?}");
        if is_tracked {
            let tracked = cluster.conntrack(node, &format!("-p tcp -s {CLIENT} -d {}", NODES[node]));
            let translated = format!("src={address} dst={CLIENT} sport=8080");
            assert_eq!(tracked.iter().filter(|line| line.contains(&translated)).count(), 3, "{tracked:#?}");
        }
    }
}

fn affinity(cluster: &mut Cluster, is_tracked: bool) {
    let answers = cluster.probe("user", "tcp://10.96.0.12:80", 6);
    let pods: BTreeSet<&str> = pods(&answers).into_iter().collect();
    assert_eq!(pods.len(), 1, "{pods:?}");
    if is_tracked {
        let address = answers[0].local;
        let tracked = cluster.conntrack(0, "-p tcp -d 10.96.0.12");
        let translated = format!("src={address} dst={USER} sport=8080");
        assert_eq!(tracked.iter().filter(|line| line.contains(&translated)).count(), 6, "{tracked:#?}");
    }
}

/// A socket that goes on sending is answered by another endpoint when its own one is gone.
fn datagrams_move(cluster: &mut Cluster, is_tracked: bool) {
    const DNS: &str = "udp://10.96.0.13:53";
    let to_b = format!("udp and src host {USER} and dst host {} and dst port 8080", WEB[1].1);
    cluster.send_datagrams("user", DNS);
    cluster.datagrams_reach("user", DNS, "web-a");
    assert_eq!(cluster.wire(&to_b), Vec::<String>::new());
    cluster.write(&objects(&[1]));
    cluster.datagrams_reach("user", DNS, "web-b");
    assert!(!cluster.wire(&to_b).is_empty());
    if is_tracked {
        let tracked = cluster.conntrack(0, "-p udp -d 10.96.0.13");
        let [line] = tracked.as_slice() else { panic!("not one flow: {tracked:#?}") };
        assert!(line.contains(&format!("src={} dst={USER} sport=8080", WEB[1].1)), "{line}");
    }
}
