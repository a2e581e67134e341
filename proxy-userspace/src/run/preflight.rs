//! Whether this process may, and the kernel can, do what the backend needs; and which backend it
//! is.

use sluice_core::nft;
use sluice_sys::bpf::{BpfError, Directory};
use sluice_sys::capability;
use sluice_sys::nft::Nft;
use tracing::info;

use crate::config::{BackendKind, Settings};
use crate::exit::ExitError;
use crate::node::sysctls::{self, Setting};
use crate::service::backend::{self, BackendError, Opened, ebpf, ipvs};
use crate::service::facts::NodeFacts;

/// Checks that this process may and the kernel can do what the nftables backend needs.
fn preflight() -> Result<(), ExitError> {
    let probe = || Nft::open()?.probe(&nft::TABLE, &nft::probe());
    probe().map_err(|error| match error.errno() {
        Some(libc::EPERM) => ExitError::Capability,
        _ => ExitError::Kernel(error),
    })
}

/// Opens the backend that is asked for, after a check that it can do everything that it will have
/// to. Decides what is left to be decided.
pub(super) fn open_backend(settings: &mut Settings) -> Result<Opened, ExitError> {
    if capability::has_net_admin() == Some(false) {
        return Err(ExitError::Capability);
    }
    if matches!(settings.backend, BackendKind::Ebpf | BackendKind::Auto) {
        match open_ebpf(settings) {
            Ok(backend) => return Ok(backend),
            Err(error) if settings.backend == BackendKind::Auto && is_lack(&error) => {
                info!("mode auto: the backend is nftables: {error}");
                settings.backend = BackendKind::Nftables;
            }
            Err(error) => return Err(ExitError::Backend(error)),
        }
    }
    preflight()?;
    backend::open(settings, &NodeFacts::default()).map_err(ExitError::Backend)
}

/// Whether the machine, or this program, lacks something that it will lack at the next start too.
/// Anything else, like another daemon that is still at work or memory that is short, passes; with
/// another backend meanwhile, connections would go from one to the other and back.
fn is_lack(error: &BackendError) -> bool {
    matches!(error, BackendError::Missing(_) | BackendError::NotBuilt)
}

/// To open it is to load the programs. What is missing is looked for when that fails, and in mode
/// auto before the first time, because there is no way back once the programs have been chosen.
fn open_ebpf(settings: &mut Settings) -> Result<Opened, BackendError> {
    if settings.backend == BackendKind::Auto && !Directory::new(&settings.ebpf.bpffs).exists() {
        nothing_missing(settings)?;
    }
    let wanted = std::mem::replace(&mut settings.backend, BackendKind::Ebpf);
    let opened = backend::open(settings, &NodeFacts::default());
    if let Err(error) = &opened {
        settings.backend = wanted;
        if !passes(error) {
            nothing_missing(settings)?;
        }
    }
    opened
}

/// Whether an error says nothing about what the machine can do.
fn passes(error: &BackendError) -> bool {
    match error {
        BackendError::Bpf(BpfError::Busy(_)) => true,
        BackendError::Bpf(error) => matches!(error.errno(), Some(libc::ENOMEM)),
        _ => false,
    }
}

fn nothing_missing(settings: &Settings) -> Result<(), BackendError> {
    let missing = ebpf::missing(settings)?;
    if missing.is_empty() { Ok(()) } else { Err(BackendError::Missing(missing)) }
}

/// What needs full privileges: the node's sysctls. Afterwards CAP_NET_ADMIN is enough.
pub fn init(settings: &Settings) -> Result<(), ExitError> {
    if capability::has_net_admin() == Some(false) {
        return Err(ExitError::Capability);
    }
    if settings.backend == BackendKind::Ebpf {
        nothing_missing(settings).map_err(ExitError::Backend)?;
    } else {
        // This loads the modules too, without which there are no sysctls of connection tracking.
        preflight()?;
    }
    if settings.backend == BackendKind::Ipvs {
        ipvs::prepare(settings).map_err(ExitError::Backend)?;
    }
    let written = sysctls::conntrack(&settings.conntrack, sysctls::cpus()).into_iter().map(Setting::write);
    let failed: Vec<String> = written.filter_map(Result::err).map(|error| error.to_string()).collect();
    if !failed.is_empty() {
        return Err(ExitError::Sysctls(failed));
    }
    info!("the node is prepared");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_the_machine_lacks_leads_to_another_backend() {
        let busy = BackendError::Bpf(BpfError::Busy("/b".into()));
        let no_memory = BackendError::Bpf(BpfError::System {
            operation: "create map".into(),
            source: std::io::Error::from_raw_os_error(libc::ENOMEM),
        });
        assert!(passes(&busy) && !is_lack(&busy));
        assert!(passes(&no_memory) && !is_lack(&no_memory));
        let refused = BackendError::Bpf(BpfError::Object("x".into()));
        assert!(!passes(&refused) && !is_lack(&refused));
        assert!(is_lack(&BackendError::Missing(vec![])) && is_lack(&BackendError::NotBuilt));
        assert_eq!(ExitError::Backend(busy).exit_code(), 3);
    }
}
