//! Removes what is ours, and what kube-proxy left, from the kernel.

use std::path::PathBuf;

use crate::exit::ExitError;
use crate::feature::{NotRemoved, Owned, Places, Removal, Turn};
use crate::features::FEATURES;
use crate::node::alone;
use crate::output::say;
use crate::service::kube_proxy::{self, Step};

/// What `sluice cleanup` is to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Options {
    /// Removes what kube-proxy left, too.
    pub kube_proxy: bool,
    /// Goes on although a daemon is at work, which will write some of it again.
    pub force: bool,
    /// Where what is to go may be.
    pub places: Places,
}

impl Options {
    /// Those of `--cleanup`, as kube-proxy has it.
    pub fn of_kube_proxy() -> Self {
        let bpffs =
            std::env::var_os("SLUICE_BPFFS").map_or_else(|| crate::config::BPFFS.into(), PathBuf::from);
        let places = Places { bpffs, run_dir: sluice_cni::spec::RUN.into() };
        Options { kube_proxy: true, force: false, places }
    }
}

/// `sluice cleanup`: removes our table, our eBPF programs and maps and, when asked, kube-proxy's
/// leftovers. A step that fails is told, and the others still run. Beside a daemon that is at work
/// nothing is removed, unless forced.
pub fn cleanup(options: &Options) -> Result<(), ExitError> {
    let _lock = match alone::take_or_holder() {
        Ok(Ok(lock)) => Some(lock),
        Ok(Err(holder)) if !options.force => return Err(ExitError::BesideDaemon(holder)),
        Ok(Err(_)) => None,
        Err(error) => {
            say(format_args!("cannot find out whether a daemon is running: {error}"));
            None
        }
    };
    let mut steps = Steps::default();
    let places = &options.places;
    let mut owned: Vec<_> = FEATURES.iter().flat_map(|feature| (feature.owned)(places)).collect();
    owned.sort_by_key(|owned| owned.turn());
    let (in_kernel, files): (Vec<_>, Vec<_>) =
        owned.into_iter().partition(|owned| owned.turn() < Turn::Files);
    in_kernel.iter().try_for_each(|owned| steps.remove(owned.as_ref(), options.force))?;
    if options.kube_proxy {
        steps.remove_kube_proxy();
    }
    files.iter().try_for_each(|owned| steps.remove(owned.as_ref(), options.force))?;
    if steps.failures.is_empty() { Ok(()) } else { Err(ExitError::Cleanup(steps.failures)) }
}

/// What could not be done.
#[derive(Default)]
struct Steps {
    failures: Vec<String>,
}

impl Steps {
    /// Removes something of ours. An error ends the whole.
    fn remove(&mut self, owned: &dyn Owned, force: bool) -> Result<(), ExitError> {
        match owned.remove(force) {
            Ok(Removal::Gone(gone)) => gone.iter().for_each(|what| say(format_args!("removed {what}"))),
            Ok(Removal::Nothing(why)) => say(format_args!("nothing to remove: {why}")),
            Ok(Removal::Kept(why)) => say(format_args!("kept, {why}")),
            Err(NotRemoved::Right) => return Err(ExitError::Capability),
            Err(NotRemoved::Because(error)) => self.failed(&owned.name(), error),
        }
        Ok(())
    }

    fn remove_kube_proxy(&mut self) {
        let found = kube_proxy::remove(kube_proxy::Servers::Removed);
        if found.is_empty() {
            say("nothing to remove: kube-proxy left nothing");
        }
        for Step { what, result } in found {
            match result {
                Ok(()) => say(format_args!("removed {what}")),
                Err(error) => self.failed(&what, error),
            }
        }
    }

    fn failed(&mut self, what: &str, error: impl std::fmt::Display) {
        self.failures.push(format!("{what}: {error}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_ours_goes_in_this_order() {
        let options = Options::of_kube_proxy();
        let mut owned: Vec<_> =
            FEATURES.iter().flat_map(|feature| (feature.owned)(&options.places)).collect();
        owned.sort_by_key(|owned| owned.turn());
        let names: Vec<String> = owned.iter().map(|owned| owned.name()).collect();
        assert_eq!(
            names,
            [
                "the node settings for the CNI plugin",
                "table inet sluice",
                "virtual servers",
                "the pod network",
                &format!("eBPF programs and maps in {}", options.places.bpffs.display()),
                "files for container runtimes",
            ]
        );
    }
}
