//! Settings of the process itself, and the first line of its log.

use sluice_link::sysctl;
use sluice_sys::proc;
use tracing::{info, warn};

use crate::config::Settings;
use crate::node::sysctls::{self, Left};

/// The limit of open files that processes usually start with.
const USUAL_FILES: u64 = 1024;

/// The first line: which program, with which configuration.
pub(super) fn tell_start(settings: &Settings) {
    let listener = |address: Option<std::net::SocketAddr>| {
        address.map_or_else(|| "off".to_owned(), |address| address.to_string())
    };
    let config = settings.config_file.as_ref().map(|file| file.path.display().to_string());
    info!(
        version = env!("CARGO_PKG_VERSION"),
        mode = settings.backend.name(),
        node = settings.node_name,
        objects = %settings.source,
        config = config.as_deref().unwrap_or("flags"),
        healthz = listener(settings.healthz_bind),
        metrics = listener(settings.metrics_bind),
        "sluice starts"
    );
}

/// Settings of the process and the node's connection tracking (reference 3.6). Failures are told,
/// not fatal: in a container /proc/sys may be read-only, and the proxy works without them.
pub(super) fn prepare_process(settings: &Settings) {
    const OOM: &str = "/proc/self/oom_score_adj";
    let mut left = Left::default();
    let oom = settings.oom_score_adj;
    left.note(OOM, oom.into(), sysctl::write_if_different(OOM.into(), &oom.to_string()));
    for setting in sysctls::conntrack(&settings.conntrack, sysctls::cpus()) {
        left.note(setting.path, setting.value, setting.write());
    }
    if !left.forbidden.is_empty() {
        info!(
            "continuing without settings that this process may not write: {}. A privileged container can write them: see \
             --init-only (deploy/components/node-sysctls)",
            left.forbidden.join(", ")
        );
    }
    for error in left.failed {
        warn!(%error, "cannot write a setting");
    }
}

/// How many files may be open: as many as ever may. Each connection of a client is one, and one
/// that is carried from loopback to an endpoint two; the rest of the daemon must not go short of
/// them.
pub(super) fn open_files() -> u64 {
    proc::raise_open_files().unwrap_or_else(|error| {
        warn!(%error, "cannot raise the limit of open files");
        USUAL_FILES
    })
}
