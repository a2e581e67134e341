//! The eBPF backend's driver: writes what the ledger says into maps, and keeps programs where they
//! belong.
//!
//! Order of a first pass: maps of services, then those of the node, then links. So no packet meets
//! programs that do not know the services yet. After that the order of operations is the ledger's.

mod devices;
mod encode;
mod messages;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use sluice_common::maps::MapName;
use sluice_common::node::{Config, Interface};
use sluice_core::ebpf::{Apart, Entry, Ledger, MapKind, NodeView, Op, leaves_ports};
use sluice_core::nft::quarantine::{self, Failure, Outcome};
use sluice_core::plan::{PlanChange, ServicePlan};
use sluice_sys::bpf::{
    BpfError, Cgroup, Directory, Ender, Instance, Links, Map, Maps, Missing, Options, Resized, Sizes, Usage,
    View, netns_cookie, probe,
};
use sluice_sys::{lo, proc};
use tracing::{info, warn};

use super::{Applied, Backend, BackendError, Checked, Checks, Done, Known, Refused};
use crate::config::Settings;
use crate::http::health::Progress;
use crate::service::facts::{self, MachineFacts, NodeFacts};
use messages::Messages;

/// The backend.
pub struct EbpfBackend {
    instance: Instance,
    ledger: Ledger,
    machine: MachineFacts,
    /// What the maps of the node were made from last.
    view: NodeView,
    /// Entries of each map of the node.
    of_node: [usize; MapKind::ALL.len()],
    interfaces: BTreeMap<u32, Interface>,
    /// Interfaces whose programs could not be attached, to tell each once.
    failed: BTreeSet<(u32, String)>,
    /// The settings of `lo` could not be changed, which is told once.
    lo_failed: bool,
    /// A map that is nearly full could not be enlarged, which is told once.
    lacks_room: bool,
    messages: Messages,
    /// All maps had their names, and all programs were attached that can be, when this was looked
    /// at last.
    is_attached: bool,
    progress: Progress,
}

/// The object file with the programs.
#[cfg(feature = "ebpf")]
pub(crate) fn object() -> Result<&'static [u8], BackendError> {
    Ok(crate::service::ebpf_object::OBJECT)
}

/// There is none.
#[cfg(not(feature = "ebpf"))]
pub(crate) fn object() -> Result<&'static [u8], BackendError> {
    Err(BackendError::NotBuilt)
}

/// What the machine lacks for this backend.
pub fn missing(settings: &Settings) -> Result<Vec<Missing>, BackendError> {
    Ok(probe(object()?, &Directory::new(&settings.ebpf.bpffs), &cgroup_root(settings)))
}

fn cgroup_root(settings: &Settings) -> std::path::PathBuf {
    settings.ebpf.cgroup_root.clone().unwrap_or_else(Cgroup::root)
}

impl Backend for EbpfBackend {
    fn report_to(&mut self, progress: Progress) {
        self.progress = progress;
    }

    /// The programs are where they belong afterwards, too.
    fn full(
        &mut self,
        settings: &Settings,
        facts: &NodeFacts,
        plans: &[Arc<ServicePlan>],
        known: &Known,
    ) -> Result<Done, BackendError> {
        self.look(Instance::keep_pins)?;
        let (of_services, of_node): (Vec<MapKind>, Vec<MapKind>) =
            MapKind::ALL.into_iter().partition(|map| map.is_of_services());
        let Done { mut applied, refused } = self.services(&of_services, plans, known)?;
        let view = facts::ebpf_view(settings, facts, &self.machine);
        let observed = self.observe(&of_node)?;
        self.of_node = counts(&observed);
        let ops = view.change(observed);
        applied += self.apply(&ops)?;
        self.of_node = counts(&view.entries());
        self.view = view;
        self.interfaces = self.instance.maps().get(MapName::Interfaces)?.values()?.into_iter().collect();
        applied += self.set_interfaces(settings, facts)?;
        let links = self.instance.attach(devices::attachable(&facts.devices))?;
        applied += self.told(links);
        let links = self.look(Instance::check_links)?;
        applied += self.told(links);
        Ok(Done { applied, refused })
    }

    fn change(&mut self, changes: &[PlanChange]) -> Result<Applied, BackendError> {
        let ops = self.ledger.change(changes);
        Ok(self.apply(&ops)?)
    }

    fn set_node(&mut self, settings: &Settings, facts: &NodeFacts) -> Result<Option<Applied>, BackendError> {
        let view = facts::ebpf_view(settings, facts, &self.machine);
        let mut applied = Applied::default();
        if view != self.view {
            applied += self.apply(&view.change(self.view.entries()))?;
            self.of_node = counts(&view.entries());
            self.view = view;
        }
        applied += self.set_interfaces(settings, facts)?;
        let links = self.instance.attach(devices::attachable(&facts.devices))?;
        applied += self.told(links);
        Ok(Some(applied))
    }

    fn checks(&self) -> Checks {
        Checks::Foundations
    }

    /// Whether all links and settings are there.
    fn check(&mut self) -> Result<Checked, BackendError> {
        let links = self.look(Instance::check_links)?;
        let links = self.told(links).operations;
        Ok(Checked::Repaired(links + self.keep_lo_open()?))
    }

    /// What is not so was told as an error.
    fn is_attached(&self) -> bool {
        self.is_attached
    }

    fn usage(&self) -> Vec<(&'static str, Usage)> {
        let mut entries = self.of_node;
        for (kind, count) in self.ledger.counts() {
            entries[kind as usize] = count;
        }
        let of_kinds = MapKind::ALL.into_iter().map(|kind| (kind.map(), entries[kind as usize]));
        let all = of_kinds
            .chain([(MapName::Interfaces, self.interfaces.len())])
            .filter(|(map, _)| *map != MapName::Config);
        let capacity = |map| self.instance.maps().get(map).map_or(0, |map| map.max_entries() as usize);
        all.map(|(map, entries)| (map.name(), Usage { entries, capacity: capacity(map) })).collect()
    }
}

impl EbpfBackend {
    /// A backend that has written no map yet. Programs of a predecessor go on as they are.
    pub fn open(settings: &Settings, facts: &NodeFacts) -> Result<Self, BackendError> {
        let mut machine = MachineFacts {
            netns: netns_cookie()?,
            local_ports: proc::local_port_range(),
            lo_before: lo::Before::default(),
            newest: 0,
        };
        if !leaves_ports(&machine.local_ports) {
            warn!(
                range = ?machine.local_ports,
                "sysctl net.ipv4.ip_local_port_range leaves too few ports for masquerading, so ports of \
                 that range are used too, and masqueraded connections may collide with those of this \
                 node's own processes; make the range smaller"
            );
        }
        let cgroup = Cgroup::open(&cgroup_root(settings))?;
        if !cgroup.is_root() {
            info!(cgroup = %cgroup.path().display(), "sockets outside this cgroup use the packet path");
        }
        let instance = Instance::open(Options {
            object: object()?,
            directory: Directory::new(&settings.ebpf.bpffs),
            cgroup,
            sizes: Sizes { flows: settings.ebpf.flows },
            tcx: true,
            messages: settings.ebpf.debug,
        })?;
        // One element is no slot.
        machine.newest = instance.maps().get(MapName::Newest)?.max_entries().saturating_sub(1);
        info!(
            bpffs = %settings.ebpf.bpffs.display(),
            interfaces_by = if instance.has_tcx() { "tcx" } else { "clsact" },
            "eBPF programs loaded"
        );
        let mut backend = EbpfBackend {
            instance,
            ledger: Ledger::new(facts::ebpf_scheduler(settings)),
            view: facts::ebpf_view(settings, facts, &machine),
            machine,
            of_node: [0; MapKind::ALL.len()],
            interfaces: BTreeMap::new(),
            failed: BTreeSet::new(),
            lo_failed: false,
            lacks_room: false,
            messages: Messages::default(),
            is_attached: true,
            progress: Progress::default(),
        };
        backend.keep_lo_open()?;
        backend.messages.follow(backend.instance.take_messages());
        Ok(backend)
    }

    /// The maps.
    pub fn maps(&self) -> Maps {
        self.instance.maps().clone()
    }

    /// What ends flows.
    pub fn ender(&self) -> Result<Ender, BpfError> {
        self.instance.ender()
    }

    /// Makes the maps of Services hold what the plans say.
    fn services(
        &mut self,
        of_services: &[MapKind],
        plans: &[Arc<ServicePlan>],
        known: &Known,
    ) -> Result<Done, BpfError> {
        if known.suspects.is_empty() {
            let ops = self.ledger.reconcile(plans, self.observe(of_services)?);
            match self.apply(&ops) {
                Err(error) if is_refusal(&error) => {}
                other => return Ok(other?.into()),
            }
        }
        // Some of it may have been done.
        let observed = self.observe(of_services)?;
        let apart = Apart::new(plans, &known.before, &observed);
        let ops = self.ledger.reconcile(plans, observed);
        let lacks_room = self.lacks_room(&ops)?;
        let mut applied = Applied::default();
        let outcome = apart.commit(&ops, |ops| {
            applied += self.write(ops).map_err(|error| {
                if is_refusal(&error) { Failure::Refused(error) } else { Failure::Unknown(error) }
            })?;
            Ok(())
        })?;
        let told = |refused: quarantine::Refused<BpfError>| Refused {
            services: refused.services,
            why: lacks_room.as_ref().unwrap_or(&refused.why).to_string(),
        };
        match outcome {
            Outcome::Done(refused) => Ok(Done { applied, refused: refused.into_iter().map(told).collect() }),
            Outcome::GaveUp(error) => Err(error),
        }
    }

    fn look<T>(&mut self, how: impl FnOnce(&mut Instance) -> Result<T, BpfError>) -> Result<T, BpfError> {
        let result = how(&mut self.instance);
        self.is_attached = result.is_ok();
        result
    }

    /// Lets the stack take packets by `lo`; returns how many settings were changed. Without, large
    /// datagrams are lost, which is no reason to serve nobody.
    fn keep_lo_open(&mut self) -> Result<usize, BackendError> {
        match open_lo(self.instance.maps()) {
            Ok(change) => {
                self.lo_failed = false;
                self.machine.lo_before = change.before;
                // The map says so by now.
                self.view.lo_before = change.before.0;
                Ok(change.len())
            }
            Err(BackendError::Lo(error)) => {
                if !std::mem::replace(&mut self.lo_failed, true) {
                    warn!(%error, "IPv4 datagrams larger than the path MTU are lost: set net.ipv4.conf.lo.accept_local");
                }
                Ok(0)
            }
            Err(error) => Err(error),
        }
    }

    /// Counts what was done for links, and tells once of those that cannot be.
    fn told(&mut self, links: Links) -> Applied {
        for failure in links.failures {
            if self.failed.insert((failure.device.index, failure.device.name.clone())) {
                let (interface, error) = (failure.device.name, failure.error);
                warn!(interface, %error, "cannot attach programs to an interface: its packets are not translated");
            }
        }
        let operations = links.attached + links.updated + links.removed + links.pinned;
        Applied { operations, transactions: operations }
    }

    fn observe(&self, kinds: &[MapKind]) -> Result<Vec<Entry>, BpfError> {
        let mut entries = Vec::new();
        for kind in kinds {
            let map = self.instance.maps().get(kind.map())?;
            map.each(|key, value| entries.extend(encode::read(*kind, key, value)))?;
            self.progress.made();
        }
        Ok(entries)
    }

    /// Writes. Before that, maps that could become too full are made larger; where that is not
    /// possible, there may still be room, and who gets none says why.
    fn apply(&mut self, ops: &[Op]) -> Result<Applied, BpfError> {
        let lacks_room = self.lacks_room(ops)?;
        self.write(ops).map_err(|error| lacks_room.filter(|_| is_refusal(&error)).unwrap_or(error))
    }

    fn write(&mut self, ops: &[Op]) -> Result<Applied, BpfError> {
        let mut applied = Applied { operations: ops.len(), transactions: 0 };
        for run in encode::runs(ops) {
            let map = self.instance.maps().get(run.map.map())?;
            match run.values {
                Some(values) => map.put_all(&run.keys, &values)?,
                None => map.delete_all(&run.keys).map(drop)?,
            }
            applied.transactions += 1;
            self.progress.made();
        }
        Ok(applied)
    }

    /// Makes maps larger, as `make_room` does; the kernel's answer, if it has no memory
    /// for that.
    fn lacks_room(&mut self, ops: &[Op]) -> Result<Option<BpfError>, BpfError> {
        match self.make_room(ops) {
            Ok(()) => {
                self.lacks_room = false;
                Ok(None)
            }
            Err(error) if is_refusal(&error) => {
                if !std::mem::replace(&mut self.lacks_room, true) {
                    warn!(%error, "a map is more than 80 % full and cannot be enlarged");
                }
                Ok(Some(error))
            }
            Err(error) => Err(error),
        }
    }

    fn make_room(&mut self, ops: &[Op]) -> Result<(), BpfError> {
        let mut needs = [0; MapKind::ALL.len()];
        // What is wanted, and what is there until it is deleted.
        for (kind, count) in self.ledger.counts() {
            needs[kind as usize] = count;
        }
        for op in ops {
            match op {
                Op::Put(entry) if entry.map().is_of_services() => {}
                Op::Put(entry) => needs[entry.map() as usize] += 1,
                Op::Delete(id) => needs[id.map() as usize] += 1,
            }
        }
        for (need, held) in needs.iter_mut().zip(self.of_node) {
            *need += held;
        }
        let resized = self.instance.make_room(MapKind::ALL.map(|kind| (kind.map(), needs[kind as usize])))?;
        self.grown(&resized);
        Ok(())
    }

    fn make_room_for(&mut self, needs: &[(MapName, usize)]) -> Result<(), BpfError> {
        match self.instance.make_room(needs.iter().copied()) {
            Ok(resized) => self.grown(&resized),
            Err(error) => {
                let maps = self.instance.maps();
                let fits = |(map, need): &(MapName, usize)| {
                    maps.get(*map).is_ok_and(|map| *need <= map.max_entries() as usize)
                };
                if !needs.iter().all(fits) {
                    return Err(error);
                }
                warn!(%error, "a map is more than 80 % full and cannot be enlarged yet");
            }
        }
        Ok(())
    }

    fn grown(&mut self, resized: &[Resized]) {
        for Resized { map, from, to } in resized {
            info!(map = map.name(), from, to, "map enlarged");
        }
        if !resized.is_empty() {
            self.messages.follow(self.instance.take_messages());
        }
    }

    /// Writes the map `INTERFACES`. An entry is there before its interface gets programs.
    fn set_interfaces(&mut self, settings: &Settings, facts: &NodeFacts) -> Result<Applied, BpfError> {
        let checks_pods = settings.pod_network.as_ref().is_some_and(|ours| ours.checks_sources);
        let wanted = devices::interfaces(&facts.devices, &self.view.detectors, checks_pods);
        if wanted == self.interfaces {
            return Ok(Applied::default());
        }
        self.make_room_for(&[(MapName::Interfaces, wanted.len() + self.interfaces.len())])?;
        let names: BTreeSet<(u32, &str)> =
            facts.devices.iter().map(|device| (device.index, device.name.as_str())).collect();
        self.failed.retain(|(index, name)| names.contains(&(*index, name.as_str())));
        let map: Arc<Map> = self.instance.maps().get(MapName::Interfaces)?;
        let mut operations = 0;
        for (index, interface) in &wanted {
            if self.interfaces.get(index) != Some(interface) {
                map.put_value(index, interface)?;
                operations += 1;
            }
        }
        for index in self.interfaces.keys().filter(|index| !wanted.contains_key(index)) {
            map.delete(sluice_sys::bpf::Plain::bytes(index))?;
            operations += 1;
        }
        self.interfaces = wanted;
        Ok(Applied { operations, transactions: operations })
    }
}

/// Whether the kernel refuses what was asked for: there is no room, no memory, or it is nothing
/// that the map takes.
fn is_refusal(error: &BpfError) -> bool {
    matches!(error, BpfError::System { .. })
        && matches!(error.errno(), Some(libc::E2BIG | libc::ENOSPC | libc::ENOMEM | libc::EINVAL))
}

/// Lets the stack take packets by `lo`, as long as programs have flows. What was there before is in
/// the maps first, or nobody could give it back.
pub fn open_lo(maps: &Maps) -> Result<lo::Change, BackendError> {
    let map = maps.get(MapName::Config)?;
    let mut config: Config = map.get_value(&0u32)?.unwrap_or_default();
    let change = lo::opening(lo::Before(config.lo_before))?;
    if config.lo_before != change.before.0 {
        config.lo_before = change.before.0;
        map.put_value(&0u32, &config)?;
    }
    change.make()?;
    Ok(change)
}

/// Gives `lo` its settings back, and removes the programs and their maps; in this order, because
/// the maps say what the settings were, and whoever is interrupted begins again. `false`: there are
/// none.
pub fn remove(directory: &Directory) -> Result<bool, BackendError> {
    let closed = close_lo(directory);
    let removed = directory.remove()?;
    closed.map(|()| removed)
}

fn close_lo(directory: &Directory) -> Result<(), BackendError> {
    Ok(lo::closing(lo_before(directory)?)?.make()?)
}

fn lo_before(directory: &Directory) -> Result<lo::Before, BpfError> {
    let config = View::open(directory).and_then(|view| view.maps.get(MapName::Config)?.get_value(&0u32));
    match config {
        Ok(config) => Ok(lo::Before(config.map_or(0, |config: Config| config.lo_before))),
        // Another layout, or what is left of a removal.
        Err(BpfError::Absent(_)) => Ok(lo::Before::default()),
        Err(error) => Err(error),
    }
}

fn counts(entries: &[Entry]) -> [usize; MapKind::ALL.len()] {
    let mut counts = [0; MapKind::ALL.len()];
    for entry in entries {
        counts[entry.map() as usize] += 1;
    }
    counts
}
