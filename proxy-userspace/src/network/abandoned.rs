//! Addresses whose pods are gone without a DEL: a plugin that was killed, a runtime that lost its
//! state.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_cni::net;
use sluice_cni::spec::Attachment;
use sluice_cni::store::{Store, StoreError, boot_id, look};
use sluice_cni::wiring::host_name;
use tracing::debug;

/// Who has been seen without a link, and since when.
#[derive(Debug, Default)]
pub(super) struct Watch(BTreeMap<Attachment, Instant>);

impl Watch {
    /// Takes back what those have who have had no link for `patience`. Returns how many they were.
    ///
    /// A plugin writes an address down before it makes the link, and takes it back after the link,
    /// so a moment without says nothing.
    pub(super) fn collect(
        &mut self,
        directory: &Path,
        network: &str,
        patience: Duration,
    ) -> Result<usize, StoreError> {
        let seen_without = lonely(network, look(directory, network)?.holders());
        let now = Instant::now();
        let seen = |who: &Attachment| *self.0.get(who).unwrap_or(&now);
        self.0 = seen_without.into_iter().map(|who| (who.clone(), seen(&who))).collect();
        let gone: BTreeSet<Attachment> = self
            .0
            .iter()
            .filter(|(_, since)| since.elapsed() >= patience)
            .map(|(who, _)| who.clone())
            .collect();
        if gone.is_empty() {
            return Ok(0);
        }
        let mut store = Store::open(directory, network, &boot_id()?)?;
        // Under the lock: one of them may just have been wired anew.
        let gone = lonely(network, gone);
        store.keep(|holder| !gone.contains(holder))?;
        self.0.retain(|who, _| !gone.contains(who));
        Ok(gone.len())
    }
}

/// Those of some who have no link. Links are known by their names alone.
fn lonely(network: &str, among: BTreeSet<Attachment>) -> BTreeSet<Attachment> {
    match net::link_names() {
        Ok(links) => among.into_iter().filter(|who| !links.contains(&host_name(network, who))).collect(),
        Err(error) => {
            debug!(%error, "cannot list links, so no pod counts as gone");
            BTreeSet::new()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_without_a_link_is_released_after_a_delay() {
        let directory = std::env::temp_dir().join(format!("sluice-abandoned-{}", std::process::id()));
        let _ = std::fs::remove_dir_all(&directory);
        let whose = Attachment::new("no-such-container", "eth0").unwrap();
        let boot = boot_id().unwrap();
        Store::open(&directory, "pods", &boot)
            .unwrap()
            .give(&whose, &["10.9.9.9".parse().unwrap()], None, None)
            .unwrap();
        let mut watch = Watch::default();
        assert_eq!(watch.collect(&directory, "pods", Duration::from_secs(60)).unwrap(), 0);
        assert_eq!(watch.collect(&directory, "pods", Duration::ZERO).unwrap(), 1);
        assert!(look(&directory, "pods").unwrap().leases.held.is_empty());
        assert_eq!(watch.collect(&directory, "pods", Duration::ZERO).unwrap(), 0);
        std::fs::remove_dir_all(directory).unwrap();
    }
}
