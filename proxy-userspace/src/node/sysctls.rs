//! The node's sysctls of connection tracking (reference 3.6): which, and how they are written.

use sluice_link::sysctl::{self, ProcError};
use sluice_sys::proc;

use crate::config::raw::Conntrack;

/// More entries than this are not asked for, however many cores there are.
const MOST: i64 = 1 << 20;

/// A setting of the node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Setting {
    /// Its file.
    pub(crate) path: &'static str,
    /// The value that is wanted.
    pub(crate) value: i64,
    /// A greater value is somebody's choice, and stays.
    pub(crate) at_least: bool,
}

impl Setting {
    /// Writes it, unless the file holds what is wanted.
    pub(crate) fn write(self) -> Result<bool, ProcError> {
        if self.at_least {
            sysctl::write_if_lower(self.path.into(), self.value)
        } else {
            sysctl::write_if_different(self.path.into(), &self.value.to_string())
        }
    }
}

/// The CPUs of the host that are online. The maximum is of the host, so neither the affinity of
/// this process nor a CPU limit of its pod counts.
pub(crate) fn cpus() -> i64 {
    let fallback = || std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    i64::try_from(proc::online_cpus().unwrap_or_else(fallback)).unwrap_or(1)
}

/// What became of the settings that could not be written.
#[derive(Debug, Default)]
pub(crate) struct Left {
    /// Those that this process may not write, with what they should be and what they are.
    pub(crate) forbidden: Vec<String>,
    /// Those that failed in another way.
    pub(crate) failed: Vec<ProcError>,
}

impl Left {
    /// Takes note of an attempt.
    pub(crate) fn note(&mut self, path: &str, value: i64, result: Result<bool, ProcError>) {
        let Err(error) = result else { return };
        // Read-only for lack of privilege, as /proc/sys in a container; or not of this container's
        // namespaces.
        let is_forbidden =
            matches!(error.source.raw_os_error(), Some(libc::EROFS | libc::EACCES | libc::EPERM));
        if is_forbidden {
            let name = path.rsplit('/').next().unwrap_or(path);
            let now = std::fs::read_to_string(path)
                .map_or_else(|_| "unknown".into(), |text| text.trim().to_owned());
            self.forbidden.push(format!("{name}={value} (now {now})"));
        } else {
            self.failed.push(error);
        }
    }
}

/// What to write.
pub(crate) fn conntrack(conntrack: &Conntrack, cpus: i64) -> Vec<Setting> {
    let at_least = |path, value| Setting { path, value, at_least: true };
    let exact = |path, value| Setting { path, value, at_least: false };
    let mut settings = Vec::new();
    if let Some(max) = maximum(conntrack, cpus).filter(|max| *max > 0) {
        settings.push(at_least("/proc/sys/net/netfilter/nf_conntrack_max", max));
        // Chains of more than four entries make each look-up slow.
        settings.push(at_least("/sys/module/nf_conntrack/parameters/hashsize", max / 4));
    }
    let timeouts = [
        ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", conntrack.tcp_established_timeout),
        ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", conntrack.tcp_close_wait_timeout),
        ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", conntrack.udp_timeout),
        ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", conntrack.udp_stream_timeout),
    ];
    for (path, timeout) in timeouts {
        let seconds = timeout.map_or(0, |timeout| timeout.value.as_secs() as i64);
        settings.extend((seconds > 0).then(|| exact(path, seconds)));
    }
    if conntrack.tcp_be_liberal {
        settings.push(exact("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", 1));
    }
    settings
}

/// The number of connections, if one is asked for.
fn maximum(conntrack: &Conntrack, cpus: i64) -> Option<i64> {
    let per_core = i64::from(conntrack.max_per_core.filter(|per_core| *per_core > 0)?);
    let scaled = per_core * cpus;
    Some(if scaled > MOST { MOST } else { scaled.max(i64::from(conntrack.min.unwrap_or(0))) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::GoDuration;

    fn settings(cpus: i64) -> Vec<(String, i64, bool)> {
        let config = Conntrack {
            max_per_core: Some(32768),
            min: Some(131_072),
            tcp_close_wait_timeout: Some(GoDuration::seconds(3600)),
            udp_timeout: Some(GoDuration::default()),
            ..Conntrack::default()
        };
        let name = |path: &str| path.rsplit('/').next().unwrap().to_owned();
        conntrack(&config, cpus).into_iter().map(|s| (name(s.path), s.value, s.at_least)).collect()
    }

    #[test]
    fn forbidden_sysctls_are_reported_with_values_apart_from_other_failures() {
        let file = std::env::temp_dir().join(format!("sluice-left-{}", std::process::id()));
        std::fs::write(&file, "7\n").unwrap();
        let path = file.to_str().unwrap();
        let error = |errno| ProcError {
            operation: "write",
            path: path.into(),
            source: std::io::Error::from_raw_os_error(errno),
        };
        let mut left = Left::default();
        left.note(path, 5, Ok(true));
        for errno in [libc::EROFS, libc::EACCES, libc::EPERM, libc::EINVAL] {
            left.note(path, 5, Err(error(errno)));
        }
        std::fs::remove_file(&file).unwrap();
        let name = file.file_name().unwrap().to_str().unwrap();
        assert_eq!(left.forbidden, vec![format!("{name}=5 (now 7)"); 3]);
        assert_eq!(left.failed.len(), 1);
    }

    #[test]
    fn the_maximum_follows_the_cores_and_zeros_are_left_alone() {
        let expected = [
            ("nf_conntrack_max".to_owned(), 131_072, true),
            ("hashsize".to_owned(), 32_768, true),
            ("nf_conntrack_tcp_timeout_close_wait".to_owned(), 3600, false),
        ];
        assert_eq!(settings(2), expected);
        assert_eq!((settings(8)[0].1, settings(8)[1].1), (262_144, 65_536));
        assert_eq!(settings(64)[0].1, 1 << 20);
        let none = Conntrack { max_per_core: Some(0), min: Some(7), ..Conntrack::default() };
        assert_eq!(conntrack(&none, 4), []);
    }

    #[test]
    fn each_setting_is_written_to_its_own_file() {
        let seconds = |seconds| Some(GoDuration::seconds(seconds));
        let config = Conntrack {
            tcp_established_timeout: seconds(1),
            tcp_close_wait_timeout: seconds(2),
            udp_timeout: seconds(3),
            udp_stream_timeout: seconds(4),
            tcp_be_liberal: true,
            ..Conntrack::default()
        };
        let expected = [
            ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_established", 1),
            ("/proc/sys/net/netfilter/nf_conntrack_tcp_timeout_close_wait", 2),
            ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout", 3),
            ("/proc/sys/net/netfilter/nf_conntrack_udp_timeout_stream", 4),
            ("/proc/sys/net/netfilter/nf_conntrack_tcp_be_liberal", 1),
        ];
        assert_eq!(
            conntrack(&config, 1),
            expected.map(|(path, value)| Setting { path, value, at_least: false })
        );
    }
}
