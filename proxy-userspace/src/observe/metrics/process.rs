//! What the kernel knows of this process, read when the page is asked for.

use std::fmt::Error;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;

/// Ticks a second in /proc, fixed by the kernel's interface to programs.
const TICKS: f64 = 100.0;

/// The `process_*` metrics. What cannot be read is left out.
#[derive(Debug)]
pub(super) struct Process;

impl Collector for Process {
    fn encode(&self, mut encoder: DescriptorEncoder) -> Result<(), Error> {
        let mut gauge = |name, help, value: Option<f64>| {
            let Some(metric) = value.map(ConstGauge::new) else { return Ok(()) };
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        let read = |file| std::fs::read_to_string(file).unwrap_or_default();
        let (stat, limits) = (read("/proc/self/stat"), read("/proc/self/limits"));
        let resident = sluice_sys::proc::resident_bytes().map(|bytes| bytes as f64);
        gauge("process_resident_memory_bytes", "Resident memory", resident)?;
        gauge("process_virtual_memory_bytes", "Virtual memory", field(&stat, 23))?;
        let virtual_max = limit(&limits, "Max address space");
        gauge("process_virtual_memory_max_bytes", "Limit of virtual memory", virtual_max)?;
        let open = std::fs::read_dir("/proc/self/fd").ok().map(|all| all.count() as f64);
        gauge("process_open_fds", "Open file descriptors", open)?;
        gauge("process_max_fds", "Limit of open file descriptors", limit(&limits, "Max open files"))?;
        let begun = begun(&stat, &read("/proc/stat"));
        gauge("process_start_time_seconds", "Unix time when the process began", begun)?;

        let mut counter = |name, help, value: Option<f64>| {
            let Some(metric) = value.map(ConstCounter::new) else { return Ok(()) };
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        counter("process_cpu_seconds", "Processor time used", cpu_seconds(&stat))?;
        let netstat = read("/proc/self/net/netstat");
        let received = octets(&netstat, "InOctets");
        let sent = octets(&netstat, "OutOctets");
        counter("process_network_receive_bytes", "IP bytes received in this network namespace", received)?;
        counter("process_network_transmit_bytes", "IP bytes sent in this network namespace", sent)
    }
}

/// A numbered field of /proc/PID/stat (the first is 1). The second is the program's name, with any
/// byte in it.
fn field(stat: &str, number: usize) -> Option<f64> {
    let after_name = stat.rsplit_once(')')?.1;
    after_name.split_whitespace().nth(number - 3)?.parse().ok()
}

fn cpu_seconds(stat: &str) -> Option<f64> {
    Some((field(stat, 14)? + field(stat, 15)?) / TICKS)
}

fn begun(stat: &str, system: &str) -> Option<f64> {
    let boot = system.lines().find_map(|line| line.strip_prefix("btime "))?;
    Some(boot.trim().parse::<f64>().ok()? + field(stat, 22)? / TICKS)
}

/// The soft limit of a row of /proc/PID/limits.
fn limit(limits: &str, name: &str) -> Option<f64> {
    let row = limits.lines().find_map(|line| line.strip_prefix(name))?;
    match row.split_whitespace().next()? {
        "unlimited" => Some(u64::MAX as f64),
        number => number.parse().ok(),
    }
}

/// A value of the IpExt rows of netstat: one row of names, one of numbers.
fn octets(netstat: &str, name: &str) -> Option<f64> {
    let mut rows = netstat.lines().filter_map(|line| line.strip_prefix("IpExt:"));
    let at = rows.next()?.split_whitespace().position(|column| column == name)?;
    rows.next()?.split_whitespace().nth(at)?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fields_are_found_behind_a_name_with_spaces_and_brackets() {
        let stat = "7 (a) b) S 1 7 7 0 -1 4194560 100 0 0 0 250 50 0 0 20 0 3 0 1000 4096 25 184";
        assert_eq!(cpu_seconds(stat), Some(3.0));
        assert_eq!(begun(stat, "cpu 1\nbtime 5000\n"), Some(5010.0));
        assert_eq!(field(stat, 23), Some(4096.0));
        assert_eq!(field("", 23), None);
    }

    #[test]
    fn limits_and_octets_are_found_by_name() {
        let limits = "Limit  Soft Limit Hard Limit Units\nMax open files   1024   4096   files\n\
                      Max address space  unlimited  unlimited  bytes\n";
        assert_eq!(limit(limits, "Max open files"), Some(1024.0));
        assert_eq!(limit(limits, "Max address space"), Some(u64::MAX as f64));
        let netstat = "TcpExt: A B\nTcpExt: 1 2\nIpExt: X InOctets OutOctets\nIpExt: 0 77 88\n";
        assert_eq!(octets(netstat, "InOctets"), Some(77.0));
        assert_eq!(octets(netstat, "OutOctets"), Some(88.0));
    }
}
