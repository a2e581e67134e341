//! The table `inet sluice`.

use std::fmt::{self, Display, Formatter};

use serde::Serialize;
use sluice_core::lang::nftables::Observed;
use sluice_core::nft::{SetKind, TABLE};
use sluice_sys::nft::{Nft, observe};

use crate::feature::{NotRemoved, Owned, Reason, Removal, Section, Seen, Turn, has_table};

pub(super) struct Ruleset;

impl Owned for Ruleset {
    fn name(&self) -> String {
        format!("table {TABLE}")
    }

    fn turn(&self) -> Turn {
        Turn::Kernel
    }

    fn observe(&self) -> Seen {
        let section = |table: Table| Section { altered: table.altered, ..Section::new("nftables", &table) };
        Seen::of("nftables", table().map(|table| table.map(section)))
    }

    fn remove(&self, _force: bool) -> Result<Removal, NotRemoved> {
        match Nft::open().and_then(|mut nft| nft.delete(&TABLE)) {
            Ok(true) => Ok(Removal::Gone(vec![self.name()])),
            Ok(false) => Ok(Removal::Nothing(format!("there is no {}", self.name()))),
            Err(error) if error.errno() == Some(libc::EPERM) => Err(NotRemoved::Right),
            Err(error) => Err(error.into()),
        }
    }
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

fn table() -> Result<Option<Table>, Reason> {
    if !has_table(&TABLE)? {
        return Ok(None);
    }
    let observed = observe(&mut Nft::open()?, &TABLE)?;
    // One that is empty is nobody's work.
    Ok(Some(observed.map_or(Table { altered: true, ..Table::default() }, |observed| counted(&observed))))
}

fn counted(observed: &Observed) -> Table {
    let of = |kind: SetKind| observed.elements.keys().filter(|id| kind.is(id.set)).count();
    Table {
        frontends: of(SetKind::Services),
        node_ports: of(SetKind::NodePorts),
        without_endpoints: of(SetKind::NoEndpoints) + of(SetKind::NodePortNoEndpoints),
        altered: observed.altered,
    }
}

impl Display for Table {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        let Table { frontends, node_ports, without_endpoints, altered } = self;
        writeln!(f, "nftables: table {TABLE} (nft list table {TABLE})")?;
        writeln!(
            f,
            "  served: {frontends} addresses with ports, {node_ports} node ports; refused, without endpoints: {without_endpoints}"
        )?;
        if *altered {
            writeln!(f, "    altered: another program changed or disabled it; a daemon repairs it")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_and_json_say_the_same() {
        let table = Table { frontends: 5, node_ports: 6, without_endpoints: 1, altered: false };
        let Section { value, text, .. } = Section::new("nftables", &table);
        for line in [
            "nftables: table inet sluice",
            "served: 5 addresses with ports, 6 node ports; refused, without endpoints: 1",
        ] {
            assert!(text.contains(line), "{line} in {text}");
        }
        assert!(
            !text.contains("altered") && Table { altered: true, ..table }.to_string().contains("altered")
        );
        assert_eq!((&value["withoutEndpoints"], &value["altered"]), (&1.into(), &false.into()));
    }
}
