//! The link of mode ipvs and its virtual servers.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use sluice_sys::dummy::Link;

use crate::feature::{NotRemoved, Owned, Reason, Removal, Section, Seen, Turn};
use crate::node::addresses::IPVS_LINK;
use crate::service::virtual_servers;

pub(super) struct Balancer;

impl Owned for Balancer {
    fn name(&self) -> String {
        "virtual servers".to_owned()
    }

    fn turn(&self) -> Turn {
        Turn::Kernel
    }

    fn observe(&self) -> Seen {
        Seen::of("ipvs", ipvs().map(|ipvs| ipvs.map(|ipvs| Section::new("ipvs", &ipvs))))
    }

    fn remove(&self, _force: bool) -> Result<Removal, NotRemoved> {
        Ok(match virtual_servers::remove(&[IPVS_LINK])? {
            true => Removal::Gone(vec![format!("interface {IPVS_LINK} and its virtual servers")]),
            false => Removal::Nothing(format!("there is no interface {IPVS_LINK}")),
        })
    }
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

/// `None` without the link. Without IPVS there are no virtual servers.
fn ipvs() -> Result<Option<Ipvs>, Reason> {
    let Some(mut link) = Link::find(IPVS_LINK)? else { return Ok(None) };
    let addresses = link.addresses()?.len();
    let servers = match sluice_sys::ipvs::Ipvs::find()? {
        Some(mut ipvs) => ipvs.dump()?,
        None => Vec::new(),
    };
    let destinations = || servers.iter().flat_map(|server| &server.destinations);
    let draining = destinations().filter(|held| held.destination.weight == 0).count();
    Ok(Some(Ipvs { addresses, servers: servers.len(), destinations: destinations().count(), draining }))
}

impl Display for Ipvs {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Ipvs { addresses, servers, destinations, draining } = self;
        writeln!(f, "ipvs: link {IPVS_LINK} with {addresses} addresses (ipvsadm -Ln)")?;
        writeln!(
            f,
            "  virtual servers: {servers}, destinations: {destinations}, of which {draining} get no new connections"
        )
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let ipvs = Ipvs { addresses: 2, servers: 3, destinations: 9, draining: 1 };
        let Section { value, text, .. } = Section::new("ipvs", &ipvs);
        for line in ["sluice-ipvs0 with 2 addresses", "servers: 3, destinations: 9, of which 1 get no new"] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert_eq!(value["draining"], 1);
    }
}
