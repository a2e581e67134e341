//! The state as text and as JSON.

use std::fmt::{self, Display, Formatter};

use sluice_core::nft::TABLE;
use sluice_core::pod_network::TABLE as PODS;

use super::{Ebpf, Entries, Ipvs, PodNetwork, Status, Table};
use crate::backend::ipvs::LINK;
use crate::pod_network::SeenTunnel;

/// The state for programs: fields are only added.
pub(super) struct Json<'a>(pub(super) &'a Status);

impl Display for Json<'_> {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let mut value = serde_json::to_value(self.0).map_err(|_| fmt::Error)?;
        let time = jiff::Timestamp::now();
        value["apiVersion"] = "sluice/v1".into();
        value["kind"] = "Status".into();
        value["source"] = "kernel".into();
        value["time"] = time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string().into();
        writeln!(f, "{value:#}")
    }
}

impl Display for Status {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let daemon = &self.daemon;
        match daemon.pid {
            Some(pid) => writeln!(f, "daemon: process {pid} is running")?,
            None if daemon.at_work => writeln!(f, "daemon: running in another PID namespace")?,
            None => writeln!(f, "daemon: none is running in this network namespace")?,
        }
        for unseen in &self.not_looked_at {
            writeln!(f, "{}: not read: {}", unseen.part, unseen.reason)?;
        }
        if self.is_empty() && self.not_looked_at.is_empty() {
            return writeln!(
                f,
                "the kernel has no state of sluice (eBPF state: {} was read; --bpffs selects another \
                 directory)",
                self.bpffs
            );
        }
        self.nftables.iter().try_for_each(|table| table.fmt(f))?;
        self.ipvs.iter().try_for_each(|ipvs| ipvs.fmt(f))?;
        self.ebpf.iter().try_for_each(|ebpf| {
            writeln!(f, "ebpf: {}", self.bpffs)?;
            ebpf.fmt(f)
        })?;
        self.pod_network.iter().try_for_each(|network| network.fmt(f))
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Table { frontends, node_ports, without_endpoints, altered } = self;
        writeln!(f, "nftables: table {TABLE} (nft list table {TABLE})")?;
        writeln!(
            f,
            "  served: {frontends} addresses with ports, {node_ports} node ports; refused, without endpoints: {without_endpoints}"
        )?;
        if *altered {
            writeln!(f, "    altered: another program changed or disabled it; a daemon repairs it")?;
        }
        Ok(())
    }
}

impl Display for Ipvs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Ipvs { addresses, servers, destinations, draining } = self;
        writeln!(f, "ipvs: link {LINK} with {addresses} addresses (ipvsadm -Ln)")?;
        writeln!(
            f,
            "  virtual servers: {servers}, destinations: {destinations}, of which {draining} get no new connections"
        )
    }
}

impl Display for Ebpf {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "  entries of maps:")?;
        for (name, Entries { entries, capacity }) in &self.maps {
            writeln!(f, "    {name:<12} {entries:>9} of {capacity}")?;
        }
        writeln!(f, "    counters since the maps were created:")?;
        for (counter, count) in &self.counted {
            writeln!(f, "    {counter:<26} {count:>12}")?;
        }
        writeln!(f, "  programs:")?;
        for (place, programs) in &self.programs {
            writeln!(f, "    {place}: {}", programs.join(" "))?;
        }
        if self.programs.is_empty() {
            writeln!(f, "        none attached")?;
        }
        Ok(())
    }
}

impl Display for PodNetwork {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        writeln!(f, "pod network: {} routes to pods of other nodes (ip route show proto 92)", self.routes)?;
        match self.table {
            Some(true) => writeln!(f, "  table {PODS} (nft list table {PODS})")?,
            Some(false) => writeln!(f, "  there is no table {PODS}: no masquerading, no host ports")?,
            None => {}
        }
        for SeenTunnel { name, vni, port, mtu, up, peers } in &self.devices {
            let state = if *up { "up" } else { "down" };
            writeln!(
                f,
                "  device {name}: {state}, VNI {vni}, UDP port {port}, MTU {mtu}, tunnels to {peers} nodes"
            )?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::{Daemon, Unseen};
    use super::*;
    use std::collections::BTreeMap;

    fn whole() -> Status {
        let usage = Entries { entries: 3, capacity: 10 };
        let ebpf = Ebpf {
            maps: BTreeMap::from([("FLOWS", usage)]),
            counted: BTreeMap::from([("rejected", 7)]),
            programs: BTreeMap::from([("eth0".into(), vec!["egress".into(), "ingress".into()])]),
        };
        let device = SeenTunnel { name: "sluice-vxlan0", vni: 1, port: 4789, mtu: 1450, up: true, peers: 4 };
        Status {
            daemon: Daemon { at_work: true, pid: Some(42) },
            bpffs: "/b".into(),
            nftables: Some(Table { frontends: 5, node_ports: 6, without_endpoints: 1, altered: false }),
            ipvs: Some(Ipvs { addresses: 2, servers: 3, destinations: 9, draining: 1 }),
            ebpf: Some(ebpf),
            pod_network: Some(PodNetwork { devices: vec![device], routes: 4, table: Some(true) }),
            not_looked_at: Vec::new(),
        }
    }

    #[test]
    fn all_parts_are_shown_or_that_there_is_none() {
        let nothing = Status { bpffs: "/b".into(), ..Status::default() }.to_string();
        assert!(nothing.contains("the kernel has no state of sluice (eBPF state: /b was read"), "{nothing}");
        assert!(nothing.starts_with("daemon: none is running"), "{nothing}");
        let text = whole().to_string();
        for line in [
            "daemon: process 42 is running",
            "nftables: table inet sluice",
            "served: 5 addresses with ports, 6 node ports; refused, without endpoints: 1",
            "sluice-ipvs0 with 2 addresses",
            "servers: 3, destinations: 9, of which 1 get no new",
            "ebpf: /b",
            "3 of 10",
            "rejected",
            "    eth0: egress ingress\n",
            "pod network: 4 routes",
            "table inet sluice-pods",
            "sluice-vxlan0: up, VNI 1, UDP port 4789, MTU 1450, tunnels to 4 nodes",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
    }

    #[test]
    fn what_cannot_be_seen_is_not_called_nothing() {
        let unseen = Unseen { part: "nftables", reason: "no right".into(), is_right: true };
        let text = Status { not_looked_at: vec![unseen], ..Status::default() }.to_string();
        assert!(text.contains("nftables: not read: no right") && !text.contains("no state"), "{text}");
    }

    #[test]
    fn json_has_what_the_text_has() {
        let value: serde_json::Value = serde_json::from_str(&Json(&whole()).to_string()).unwrap();
        assert_eq!(
            (value["apiVersion"].as_str(), value["kind"].as_str()),
            (Some("sluice/v1"), Some("Status"))
        );
        assert_eq!(value["daemon"], serde_json::json!({"atWork": true, "pid": 42}));
        assert_eq!(value["nftables"]["withoutEndpoints"], 1);
        assert_eq!(value["ebpf"]["maps"]["FLOWS"]["capacity"], 10);
        assert_eq!(value["podNetwork"]["devices"][0]["name"], "sluice-vxlan0");
        assert!(value["time"].as_str().unwrap().ends_with('Z'), "{value}");
    }
}
