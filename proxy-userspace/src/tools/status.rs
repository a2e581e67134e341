//! `sluice status`: what the features have in the kernel, read from there; no daemon is needed.

use std::fmt::{self, Display, Formatter};
use std::path::Path;

use serde::Serialize;
use sluice_sys::node_lock;

use crate::cli::OutputFormat;
use crate::exit::ExitError;
use crate::feature::{Places, Reason, Section, Seen, Unseen};
use crate::features::FEATURES;
use crate::output;

/// What there is.
#[derive(Debug, Default)]
struct Status {
    daemon: Daemon,
    /// Where the eBPF backend was looked for.
    bpffs: String,
    sections: Vec<Section>,
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
    /// Looks at everything. A part that cannot be looked at keeps no other from being shown.
    fn read(places: &Places) -> Status {
        let mut unseen = Vec::new();
        let daemon = Unseen::note("daemon", daemon(), &mut unseen);
        let bpffs = places.bpffs.display().to_string();
        let mut status = Status { daemon: daemon.unwrap_or_default(), bpffs, ..Status::default() };
        for owned in FEATURES.iter().flat_map(|feature| (feature.owned)(places)) {
            let Seen { section, unseen: more } = owned.observe();
            status.sections.extend(section);
            unseen.extend(more);
        }
        status.not_looked_at = unseen;
        status
    }

    fn verdict(&self) -> Verdict {
        if self.not_looked_at.iter().any(|unseen| unseen.is_right) {
            return Verdict::Right;
        }
        if !self.not_looked_at.is_empty() {
            return Verdict::Problem;
        }
        match (self.sections.is_empty(), self.daemon.at_work) {
            (true, false) => Verdict::Nothing,
            (true, true) => Verdict::Problem,
            _ if self.sections.iter().any(|section| section.altered) => Verdict::Differs,
            _ => Verdict::Fine,
        }
    }

    /// The state for programs: fields are only added.
    fn json(&self) -> serde_json::Result<String> {
        let time = jiff::Timestamp::now();
        let mut value = serde_json::json!({
            "apiVersion": "sluice/v1",
            "kind": "Status",
            "source": "kernel",
            "time": time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string(),
            "daemon": serde_json::to_value(&self.daemon)?,
            "bpffs": self.bpffs,
            "notLookedAt": serde_json::to_value(&self.not_looked_at)?,
        });
        for Section { field, value: of_section, .. } in &self.sections {
            value[*field] = of_section.clone();
        }
        Ok(format!("{value:#}\n"))
    }
}

fn daemon() -> Result<Option<Daemon>, Reason> {
    let holder = node_lock::holder().map_err(|error| Reason::Other(error.to_string()))?;
    Ok(holder.map(|holder| Daemon { at_work: true, pid: holder.pid }))
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
        if self.sections.is_empty() && self.not_looked_at.is_empty() {
            return writeln!(
                f,
                "the kernel has no state of sluice (eBPF state: {} was read; --bpffs selects another \
                 directory)",
                self.bpffs
            );
        }
        self.sections.iter().try_for_each(|section| f.write_str(&section.text))
    }
}

/// Prints it.
pub fn status(bpffs: &Path, format: OutputFormat) -> Result<Verdict, ExitError> {
    let places = Places { bpffs: bpffs.to_owned(), run_dir: sluice_cni::spec::RUN.into() };
    let status = Status::read(&places);
    let printed = match format {
        OutputFormat::Text => output::print(&status),
        OutputFormat::Json => status.json().map_err(std::io::Error::from).and_then(output::print),
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

    fn section(altered: bool) -> Vec<Section> {
        vec![Section { field: "a", value: 7.into(), text: "a: seven\n".into(), altered }]
    }

    #[test]
    fn status_distinguishes_no_state_from_fine_and_unreadable_state() {
        let of = |sections| Status { sections, ..Status::default() };
        let daemon = || Daemon { at_work: true, pid: None };
        for (status, verdict) in [
            (Status::default(), Verdict::Nothing),
            (Status { daemon: daemon(), ..Status::default() }, Verdict::Problem),
            (of(section(false)), Verdict::Fine),
            (Status { daemon: daemon(), ..of(section(false)) }, Verdict::Fine),
            (of(section(true)), Verdict::Differs),
            (of(section(false).into_iter().chain(section(true)).collect()), Verdict::Differs),
            (Status { not_looked_at: unseen(true), ..Status::default() }, Verdict::Right),
            (Status { not_looked_at: unseen(true), ..of(section(false)) }, Verdict::Right),
            (Status { not_looked_at: unseen(false), ..of(section(false)) }, Verdict::Problem),
        ] {
            assert_eq!(status.verdict(), verdict, "{status:?}");
        }
    }

    #[test]
    fn all_parts_are_shown_or_that_there_is_none() {
        let nothing = Status { bpffs: "/b".into(), ..Status::default() }.to_string();
        assert!(nothing.contains("the kernel has no state of sluice (eBPF state: /b was read"), "{nothing}");
        assert!(nothing.starts_with("daemon: none is running"), "{nothing}");
        let daemon = Daemon { at_work: true, pid: Some(42) };
        let whole = Status { daemon, sections: section(false), ..Status::default() };
        assert_eq!(whole.to_string(), "daemon: process 42 is running\na: seven\n");
        let value: serde_json::Value = serde_json::from_str(&whole.json().unwrap()).unwrap();
        assert_eq!(
            (value["apiVersion"].as_str(), value["kind"].as_str()),
            (Some("sluice/v1"), Some("Status"))
        );
        assert_eq!(value["daemon"], serde_json::json!({"atWork": true, "pid": 42}));
        assert_eq!((&value["a"], &value["notLookedAt"]), (&7.into(), &serde_json::json!([])));
        assert!(value["time"].as_str().unwrap().ends_with('Z'), "{value}");
    }

    #[test]
    fn unreadable_state_is_not_shown_as_no_state() {
        let unseen = Unseen { part: "nftables", reason: "no right".into(), is_right: true };
        let text = Status { not_looked_at: vec![unseen], ..Status::default() }.to_string();
        assert!(text.contains("nftables: not read: no right") && !text.contains("no state"), "{text}");
    }
}
