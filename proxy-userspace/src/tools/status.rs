//! `sluice status`: what is in the kernel, read from there; no daemon is needed.

mod read;
mod show;

use std::collections::BTreeMap;
use std::path::Path;

use serde::Serialize;
use sluice_sys::bpf::Usage;

use crate::cli::OutputFormat;
use crate::exit::ExitError;
use crate::network::SeenTunnel;
use crate::output;

/// What there is.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Status {
    daemon: Daemon,
    /// Where the eBPF backend was looked for.
    bpffs: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    nftables: Option<Table>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ipvs: Option<Ipvs>,
    #[serde(skip_serializing_if = "Option::is_none")]
    ebpf: Option<Ebpf>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pod_network: Option<PodNetwork>,
    /// What could not be looked at.
    not_looked_at: Vec<Unseen>,
}

/// Whether a daemon is at work in this network namespace.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Daemon {
    at_work: bool,
    /// Its process, if that can be seen.
    #[serde(skip_serializing_if = "Option::is_none")]
    pid: Option<u32>,
}

/// The table of Services, by the entries of its maps.
#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Table {
    frontends: usize,
    node_ports: usize,
    without_endpoints: usize,
    /// Something is as no daemon of this version writes it.
    altered: bool,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ipvs {
    /// Of the link.
    addresses: usize,
    /// Of the node, others' too.
    servers: usize,
    destinations: usize,
    draining: usize,
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct Ebpf {
    maps: BTreeMap<&'static str, Entries>,
    counted: BTreeMap<&'static str, u64>,
    /// Programs by where they are.
    programs: BTreeMap<String, Vec<String>>,
}

/// How full a map is.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Entries {
    entries: usize,
    capacity: usize,
}

impl From<Usage> for Entries {
    fn from(usage: Usage) -> Self {
        Entries { entries: usage.entries, capacity: usage.capacity }
    }
}

#[derive(Debug, Default, Serialize)]
#[serde(rename_all = "camelCase")]
struct PodNetwork {
    devices: Vec<SeenTunnel>,
    /// To the pods of other nodes.
    routes: usize,
    /// Whether its table is there, if that could be looked at.
    #[serde(skip_serializing_if = "Option::is_none")]
    table: Option<bool>,
}

/// A part that could not be looked at.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
struct Unseen {
    part: &'static str,
    reason: String,
    /// Whether a right is all that lacks.
    #[serde(skip)]
    is_right: bool,
}

/// What the exit code says, as `sluice --help` lists them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// All that was found is as it should be, as far as the kernel tells.
    Fine,
    /// A daemon is at work, and nothing of it is in the kernel; or something could not be looked
    /// at.
    Problem,
    /// A right is missing.
    Right,
    /// There is nothing, and no daemon.
    Nothing,
    /// The kernel does not hold what a daemon writes.
    Differs,
}

impl Verdict {
    /// The exit code.
    pub fn exit_code(self) -> u8 {
        match self {
            Verdict::Fine => 0,
            Verdict::Problem => 1,
            Verdict::Right => 3,
            Verdict::Nothing => 4,
            Verdict::Differs => 6,
        }
    }
}

impl Status {
    fn is_empty(&self) -> bool {
        self.nftables.is_none() && self.ipvs.is_none() && self.ebpf.is_none() && self.pod_network.is_none()
    }

    fn verdict(&self) -> Verdict {
        if self.not_looked_at.iter().any(|unseen| unseen.is_right) {
            return Verdict::Right;
        }
        if !self.not_looked_at.is_empty() {
            return Verdict::Problem;
        }
        match (self.is_empty(), self.daemon.at_work) {
            (true, false) => Verdict::Nothing,
            (true, true) => Verdict::Problem,
            _ if self.nftables.as_ref().is_some_and(|table| table.altered) => Verdict::Differs,
            _ => Verdict::Fine,
        }
    }
}

/// Prints it.
pub fn status(bpffs: &Path, format: OutputFormat) -> Result<Verdict, ExitError> {
    let status = read::status(bpffs);
    let printed = match format {
        OutputFormat::Text => output::print(&status),
        OutputFormat::Json => output::print(show::Json(&status)),
    };
    printed.map_err(|source| ExitError::System { operation: "write to stdout", source })?;
    Ok(status.verdict())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unseen(is_right: bool) -> Vec<Unseen> {
        vec![Unseen { part: "ebpf", reason: "for a reason".into(), is_right }]
    }

    #[test]
    fn nothing_is_told_from_fine_and_from_what_cannot_be_seen() {
        let something = || Status { pod_network: Some(PodNetwork::default()), ..Status::default() };
        let daemon = || Daemon { at_work: true, pid: None };
        let table = |altered| Some(Table { altered, ..Table::default() });
        for (status, verdict) in [
            (Status::default(), Verdict::Nothing),
            (Status { daemon: daemon(), ..Status::default() }, Verdict::Problem),
            (something(), Verdict::Fine),
            (Status { daemon: daemon(), ..something() }, Verdict::Fine),
            (Status { nftables: table(false), ..Status::default() }, Verdict::Fine),
            (Status { nftables: table(true), ..something() }, Verdict::Differs),
            (Status { not_looked_at: unseen(true), ..Status::default() }, Verdict::Right),
            (Status { not_looked_at: unseen(true), ..something() }, Verdict::Right),
            (Status { not_looked_at: unseen(false), ..something() }, Verdict::Problem),
        ] {
            assert_eq!(status.verdict(), verdict, "{status:?}");
        }
    }
}
