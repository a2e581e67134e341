//! The packet path: the time of one run of the program at a node's uplink, on built packets
//! (BPF_PROG_TEST_RUN), with the maps as the daemon has filled them.

use std::borrow::Cow;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, ensure};
use aya::programs::{SchedClassifier, TestRun, TestRunOptions, loaded_programs};
use etherparse::PacketBuilder;
use serde_json::Value;
use sluice_sys::bpf::{Directory, Place, View};
use sluice_tests::lab::Lab;
use sluice_tests::target::From;

use super::{Arguments, NODE, spread};
use crate::bench::scale::{cluster_ip, write_services};
use crate::passes::await_sync;

pub(super) const TOPOLOGY: &str = r#"{"nodes": {"node-a": {}}, "pods": {}}"#;

const CLIENT: [u8; 4] = [192, 168, 77, 100];
const OTHER_POD: [u8; 4] = [10, 244, 9, 9];
/// TC_ACT_UNSPEC and TC_ACT_REDIRECT of include/uapi/linux/pkt_cls.h.
const PASSED: u32 = u32::MAX;
const SENT_ON: u32 = 7;
/// Of `struct __sk_buff`: bytes up to the interface's index, and with it.
const IFINDEX: usize = 40;

pub(super) fn heading() {
    println!(
        "\npacket path, one run of the program at eth0; median of the samples' medians (lowest to highest), ns"
    );
    println!(
        "{:>9} {:>28} {:>28} {:>28}",
        "services", "new connection", "packet of a connection", "packet of no Service"
    );
}

/// Measures with so many services and prints a line.
pub(super) fn run(arguments: &Arguments, mut lab: Lab, services: usize) -> Result<()> {
    write_services(&lab.dir().join("manifests"), services, arguments.endpoints)?;
    lab.start_proxy(NODE, &Value::Null)?;
    await_sync(&mut lab, NODE, Duration::from_secs(600), |sync| sync.kind == "full")?;
    let (bpffs, netns) = (lab.bpffs(NODE), lab.namespace(&From::Host(NODE.into())));
    let netns = Path::new(sluice_tests::process::NETNS_DIR).join(netns.name());
    let (runs, samples) = (arguments.runs, arguments.samples);
    // A thread of its own, because it stays in the node's namespace, where routes are looked up.
    let measuring = std::thread::spawn(move || -> Result<[(f64, f64, f64); 3]> {
        nix::sched::setns(std::fs::File::open(netns)?, nix::sched::CloneFlags::CLONE_NEWNET)?;
        measure(&Uplink::open(&bpffs)?, services, runs, samples)
    });
    let results = measuring.join().map_err(|_| anyhow!("measuring panicked"))??;
    let text = results.map(|(median, low, high)| format!("{median:.0} ({low:.0} to {high:.0})"));
    println!("{services:>9} {:>28} {:>28} {:>28}", text[0], text[1], text[2]);
    Ok(())
}

fn measure(uplink: &Uplink, services: usize, runs: u32, samples: usize) -> Result<[(f64, f64, f64); 3]> {
    let mut results = [const { Vec::new() }; 3];
    let each = runs / u32::try_from(samples).unwrap_or(u32::MAX).max(1);
    for _ in 0..samples {
        let mut times = [const { Vec::new() }; 3];
        for run in 0..each {
            // Another client port and another Service each time, spread over all of them.
            let port = 1024 + (run % 60_000) as u16;
            let service = (run as usize).wrapping_mul(7919) % services;
            let ip: std::net::Ipv4Addr = cluster_ip(service).parse()?;
            let first = uplink.packet(CLIENT, ip.octets(), port, 80, true)?;
            let later = uplink.packet(CLIENT, ip.octets(), port, 80, false)?;
            let other = uplink.packet(CLIENT, OTHER_POD, port, 80, false)?;
            for (times, (packet, wanted)) in
                times.iter_mut().zip([(&first, SENT_ON), (&later, SENT_ON), (&other, PASSED)])
            {
                times.push(uplink.run(packet, wanted)?);
            }
        }
        for (result, times) in results.iter_mut().zip(&mut times) {
            result.push(spread(times).0);
        }
    }
    Ok(results.map(|mut samples| spread(&mut samples)))
}

/// The program that sees what comes in by the uplink.
struct Uplink {
    program: SchedClassifier,
    index: u32,
    mac: [u8; 6],
}

impl Uplink {
    fn open(bpffs: &Path) -> Result<Self> {
        let index = nix::net::if_::if_nametoindex("eth0")?;
        let view = View::open(&Directory::new(bpffs))?;
        let here = |place: &Place| *place == Place::Interface(index);
        let link = view.links.iter().find(|link| here(&link.place) && link.program.starts_with("ingress"));
        let id = link.context("eth0 has no program")?.program_id;
        let info = loaded_programs().filter_map(Result::ok).find(|program| program.id() == id);
        let program = SchedClassifier::from_program_info(
            info.context("the program is gone")?,
            Cow::Borrowed("ingress"),
        )?;
        Ok(Uplink { program, index, mac: mac("eth0")? })
    }

    fn packet(
        &self,
        from: [u8; 4],
        to: [u8; 4],
        source: u16,
        destination: u16,
        first: bool,
    ) -> Result<Vec<u8>> {
        let builder = PacketBuilder::ethernet2([2, 0, 0, 0, 0, 1], self.mac).ipv4(from, to, 64).tcp(
            source,
            destination,
            1,
            64_000,
        );
        let builder = if first { builder.syn() } else { builder.ack(1) };
        let mut bytes = Vec::with_capacity(builder.size(0));
        builder.write(&mut bytes, &[])?;
        Ok(bytes)
    }

    /// Runs the program once; nanoseconds.
    fn run(&self, packet: &[u8], wanted: u32) -> Result<f64> {
        let mut context = [0; IFINDEX + 4];
        context[IFINDEX..].copy_from_slice(&self.index.to_ne_bytes());
        let options =
            TestRunOptions { data_in: Some(packet), ctx_in: Some(&context), ..TestRunOptions::default() };
        let result = self.program.test_run(options)?;
        ensure!(
            result.return_value == wanted,
            "the program returned {}, not {wanted}",
            result.return_value as i32
        );
        Ok(result.duration.as_nanos() as f64)
    }
}

/// The Ethernet address of an interface of this thread's namespace.
fn mac(interface: &str) -> Result<[u8; 6]> {
    for address in nix::ifaddrs::getifaddrs()? {
        let link = address.address.as_ref().and_then(|address| address.as_link_addr());
        if let Some(mac) = link.filter(|_| address.interface_name == interface).and_then(|link| link.addr()) {
            return Ok(mac);
        }
    }
    Err(anyhow!("{interface} has no Ethernet address"))
}
