//! Everything of sluice in the kernel, for whoever works on it: maps, programs and links together.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use sluice_common::maps::MapName;
use sluice_common::programs::{END_FLOW, ETHERNET, RAW, SOCKET};

use super::directory::{Directory, Lock, list};
use super::ender::Ender;
use super::layout::{OtherSize, Sizes, specs};
use super::links::{self, Done, Target};
use super::load::{self, Programs};
use super::map::Map;
use super::maps::Maps;
use super::{BpfError, Cgroup, clsact};

/// The verifier takes half a second, so that refused programs are not tried for every interface.
const RAW_RETRY: Duration = Duration::from_secs(60);

/// What an instance is made of.
pub struct Options {
    /// The object file with the programs.
    pub object: &'static [u8],
    /// Where it is in the bpf filesystem.
    pub directory: Directory,
    /// Whose sockets are served.
    pub cgroup: Cgroup,
    /// Sizes of maps that do not grow.
    pub sizes: Sizes,
    /// Whether interfaces get TCX links where the kernel knows them; else filters of the qdisc
    /// clsact.
    pub tcx: bool,
    /// Whether somebody will read the messages of the programs.
    pub messages: bool,
}

/// What a packet of an interface begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Layer {
    /// An Ethernet header.
    Ethernet,
    /// The IP header.
    Raw,
}

impl Layer {
    fn programs(self) -> [&'static str; 2] {
        match self {
            Layer::Ethernet => ETHERNET,
            Layer::Raw => RAW,
        }
    }
}

/// An interface that has to have programs.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Device {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// What its packets begin with.
    pub layer: Layer,
}

/// An interface to which the programs could not be attached.
#[derive(Debug)]
pub struct Failure {
    /// Which one.
    pub device: Device,
    /// Why.
    pub error: BpfError,
}

/// What had to be done for the links.
#[derive(Debug, Default)]
pub struct Links {
    /// Made, because there was none.
    pub attached: usize,
    /// Given another program.
    pub updated: usize,
    /// Removed, because the interface is gone.
    pub removed: usize,
    /// Maps that had lost their names.
    pub pinned: usize,
    /// Interfaces that remain without.
    pub failures: Vec<Failure>,
}

impl Links {
    fn count(&mut self, done: Done) {
        match done {
            Done::Kept => {}
            Done::Updated => self.updated += 1,
            Done::Attached => self.attached += 1,
        }
    }
}

/// A map that got another size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Resized {
    /// Which one.
    pub map: MapName,
    /// Entries that it had room for.
    pub from: u32,
    /// Entries that it has room for now.
    pub to: u32,
}

/// The maps, programs and links of a directory. Only one process has it; others may read
/// ([`super::View`]).
pub struct Instance {
    options: Options,
    maps: Maps,
    programs: Programs,
    /// The interfaces that have programs; `None` before the first time.
    devices: Option<Vec<Device>>,
    tcx: bool,
    lock: Lock,
    /// When and why the programs for packets without an Ethernet header could not be loaded.
    raw_refused: Option<(Instant, String)>,
}

/// Maps on their way to the names that they shall have.
#[derive(Default)]
struct Staged(Vec<Map>);

impl Instance {
    /// Makes the maps that are missing, takes over those that are there with what is in them, and
    /// loads the programs. No packet sees them before [`Instance::attach`]; those of a predecessor
    /// go on.
    pub fn open(options: Options) -> Result<Self, BpfError> {
        super::lift_memory_limit();
        load::check(options.object)?;
        let lock = options.directory.prepare()?;
        let maps = Maps::default();
        let mut staged = Staged::default();
        for spec in specs(options.sizes) {
            let found = Map::open(spec, &options.directory.map(spec.map))?;
            let becomes = found.as_ref().map(|map| spec.of_another_size(map.max_entries()));
            match (found, becomes) {
                (Some(map), Some(OtherSize::Kept)) => maps.insert(map),
                (Some(map), Some(OtherSize::Copied)) => {
                    let resized = Map::create(spec, spec.entries)?;
                    copy(&map, &resized)?;
                    staged.0.push(resized);
                }
                _ => staged.0.push(Map::create(spec, spec.entries)?),
            }
        }
        let mut instance = Instance {
            options,
            maps,
            programs: Programs::default(),
            devices: None,
            tcx: false,
            lock,
            raw_refused: None,
        };
        instance.stage_flows(&mut staged)?;
        instance.put_in_place(staged)?;
        instance.tcx = instance.options.tcx && links::has_tcx(instance.programs.get(ETHERNET[0])?);
        Ok(instance)
    }

    /// The maps.
    pub fn maps(&self) -> &Maps {
        &self.maps
    }

    /// What ends flows.
    pub fn ender(&self) -> Result<Ender, BpfError> {
        Ender::new(self.programs.get(END_FLOW)?)
    }

    /// The directory.
    pub fn directory(&self) -> &Directory {
        &self.options.directory
    }

    /// Whether interfaces have TCX links, and not filters.
    pub fn has_tcx(&self) -> bool {
        self.tcx
    }

    /// What reads the programs' messages (aya-log), once after each time that programs were loaded.
    pub fn take_messages(&mut self) -> Option<aya::Ebpf> {
        self.programs.object.take()
    }

    /// Sees to it that maps have room for so many entries: those that would be full beyond 80 % are
    /// replaced by ones of at least double size with the same content, and the programs by ones
    /// that use them, while packets pass.
    pub fn make_room(
        &mut self,
        needs: impl IntoIterator<Item = (MapName, usize)>,
    ) -> Result<Vec<Resized>, BpfError> {
        let (mut staged, mut resized) = (Staged::default(), Vec::new());
        for (name, need) in needs {
            let map = self.maps.get(name)?;
            let from = map.max_entries();
            if !map.spec().grows() || need as u64 * 5 <= u64::from(from) * 4 {
                continue;
            }
            let to = u32::try_from(need.saturating_mul(2).next_power_of_two()).unwrap_or(u32::MAX / 2 + 1);
            let larger = Map::create(*map.spec(), to.max(from.saturating_mul(2)))?;
            copy(&map, &larger)?;
            resized.push(Resized { map: name, from, to: larger.max_entries() });
            staged.0.push(larger);
        }
        if !staged.0.is_empty() {
            self.keep_pins()?;
            self.put_in_place(staged)?;
        }
        Ok(resized)
    }

    /// Gives maps their names again that somebody has taken away, with the directory or without.
    /// Their content is in the maps that this process has open. Returns how many there were.
    pub fn keep_pins(&mut self) -> Result<usize, BpfError> {
        let is_another = self.options.directory.keep(&mut self.lock)?;
        let mut pinned = 0;
        for map in self.maps.all() {
            let path = self.options.directory.map(map.spec().map);
            if is_another {
                // Whoever made it has other maps.
                let _ = fs::remove_file(&path);
            } else if path.exists() {
                continue;
            }
            map.pin(&path)?;
            pinned += 1;
        }
        Ok(pinned)
    }

    /// Gives the flow table the size that it shall have. Flows of the old one are found there as
    /// before (`OLD_FLOWS`).
    fn stage_flows(&mut self, staged: &mut Staged) -> Result<(), BpfError> {
        let (Ok(flows), Ok(old)) = (self.maps.get(MapName::Flows), self.maps.get(MapName::OldFlows)) else {
            return Ok(());
        };
        let (spec, old_spec) = (*flows.spec(), *old.spec());
        let old_is_large = old.max_entries() > old_spec.entries;
        if flows.max_entries() != spec.entries {
            let new = Map::create(spec, spec.entries)?;
            copy(&old, &new)?;
            staged.0.push(new);
            staged.0.push(flows.with_spec(old_spec)?);
        } else if old_is_large && old.usage()?.entries == 0 {
            staged.0.push(Map::create(old_spec, old_spec.entries)?);
        }
        Ok(())
    }

    /// Loads the programs with these maps and those that stay, and gives both their places.
    fn put_in_place(&mut self, staged: Staged) -> Result<(), BpfError> {
        let directory = &self.options.directory;
        let programs = self.load_with(&staged);
        for map in &staged.0 {
            let (next, path) = (directory.next_map(map.spec().map), directory.map(map.spec().map));
            if programs.is_err() {
                let _ = fs::remove_file(next);
            } else {
                fs::rename(&next, &path).map_err(|source| {
                    BpfError::system(format!("move map {} to its path", path.display()), source)
                })?;
            }
        }
        self.programs = programs?;
        staged.0.into_iter().for_each(|map| self.maps.insert(map));
        if self.devices.is_some() {
            self.check_links()?;
        }
        Ok(())
    }

    fn load_with(&self, staged: &Staged) -> Result<Programs, BpfError> {
        let directory = &self.options.directory;
        for map in &staged.0 {
            map.pin(&directory.next_map(map.spec().map))?;
        }
        let is_staged = |name| staged.0.iter().any(|map| map.spec().map == name);
        let path = |name| if is_staged(name) { directory.next_map(name) } else { directory.map(name) };
        let pins = |name| Some(path(name));
        // One reader follows the messages of programs that were loaded together.
        if self.options.messages || self.programs.has(RAW[0]) {
            load::load(self.options.object, load::names(), pins, self.options.messages)
        } else {
            load::load(self.options.object, load::names_of_every_node(), pins, false)
        }
    }

    /// Loads the programs for packets without an Ethernet header, unless they are loaded. Few nodes
    /// have interfaces with such packets, and the verifier takes as long for these programs as for
    /// those of Ethernet.
    fn load_raw(&mut self) -> Result<(), BpfError> {
        if self.programs.has(RAW[0]) {
            return Ok(());
        }
        if let Some((at, why)) = &self.raw_refused
            && at.elapsed() < RAW_RETRY
        {
            return Err(BpfError::Object(why.clone()));
        }
        // A map without its name would be made anew.
        self.keep_pins()?;
        let directory = &self.options.directory;
        match load::load(self.options.object, RAW, |name| Some(directory.map(name)), false) {
            Ok(programs) => {
                self.programs.add(programs);
                Ok(())
            }
            Err(error) => {
                self.raw_refused = Some((Instant::now(), error.to_string()));
                Err(error)
            }
        }
    }

    /// Attaches the programs to the cgroup and to exactly these interfaces, or puts them in the
    /// place of a predecessor's. Interfaces that cannot have them are told; the others have them.
    /// After the first time only interfaces that come or go are looked at.
    pub fn attach(&mut self, devices: Vec<Device>) -> Result<Links, BpfError> {
        let Some(before) = self.devices.take() else {
            self.devices = Some(devices);
            let mut done = self.check_links()?;
            done.removed += self.options.directory.remove_others()?;
            return Ok(done);
        };
        let indices: BTreeSet<u32> = devices.iter().map(|device| device.index).collect();
        let known: BTreeSet<&Device> = before.iter().collect();
        let mut done = Links::default();
        for gone in before.iter().filter(|device| !indices.contains(&device.index)) {
            done.removed += self.detach_device(gone);
        }
        // One with another name may be another one.
        for new in devices.iter().filter(|device| !known.contains(device)) {
            self.attach_device(new, &mut done);
        }
        self.devices = Some(devices);
        Ok(done)
    }

    /// Looks whether all maps have their names and all links are there with our programs, and
    /// repairs what is not so. It is cheap: three system calls for each link, one for each map.
    pub fn check_links(&mut self) -> Result<Links, BpfError> {
        let mut done = Links { pinned: self.keep_pins()?, ..Links::default() };
        let Some(devices) = self.devices.clone() else { return Ok(done) };
        let directory = self.options.directory.links();
        for (name, attach_type) in SOCKET.into_iter().zip(links::SOCKET) {
            let target = Target::Cgroup(&self.options.cgroup);
            done.count(links::ensure(&directory.join(name), self.programs.get(name)?, attach_type, target)?);
        }
        let mut names: BTreeSet<String> = SOCKET.into_iter().map(str::to_owned).collect();
        for device in &devices {
            names.extend(ETHERNET.map(|direction| link_name(direction, device.index)));
            self.attach_device(device, &mut done);
        }
        let is_known = |path: &Path| {
            path.file_name().and_then(|name| name.to_str()).is_some_and(|name| names.contains(name))
        };
        for path in list(&directory)?.filter(|path| !is_known(path)) {
            done.removed += usize::from(fs::remove_file(path).is_ok());
        }
        Ok(done)
    }

    /// Attaches the programs to an interface.
    fn attach_device(&mut self, device: &Device, done: &mut Links) {
        match self.try_attach(device, done) {
            // It went while we were at it.
            Err(error) if error.errno() == Some(libc::ENODEV) => {}
            Err(error) => done.failures.push(Failure { device: device.clone(), error }),
            Ok(()) => {}
        }
    }

    /// Takes the programs from an interface, which may be gone. Returns how many there were.
    fn detach_device(&self, device: &Device) -> usize {
        let directory = self.options.directory.links();
        let links = ETHERNET.map(|direction| directory.join(link_name(direction, device.index)));
        let removed = links.iter().filter(|path| fs::remove_file(path).is_ok()).count();
        if !self.tcx && clsact::remove(device.index).unwrap_or(false) { removed + 2 } else { removed }
    }

    fn try_attach(&mut self, device: &Device, done: &mut Links) -> Result<(), BpfError> {
        if device.layer == Layer::Raw {
            self.load_raw()?;
        }
        let directory = self.options.directory.links();
        for (at, name) in device.layer.programs().into_iter().enumerate() {
            let program = self.programs.get(name)?;
            done.count(if self.tcx {
                let path = directory.join(link_name(ETHERNET[at], device.index));
                links::ensure(&path, program, links::TCX[at], Target::Interface(device.index))?
            } else {
                clsact::ensure(device.index, at, program)?
            });
        }
        Ok(())
    }

    /// Removes everything from the kernel.
    pub fn remove(self) -> Result<(), BpfError> {
        self.options.directory.remove()?;
        Ok(())
    }
}

/// The name of an interface's link.
fn link_name(direction: &str, index: u32) -> String {
    format!("{direction}-{index}")
}

/// Copies what is in a map.
fn copy(from: &Map, to: &Map) -> Result<(), BpfError> {
    let (mut keys, mut values) = (Vec::new(), Vec::new());
    from.each(|key, value| {
        keys.extend_from_slice(key);
        values.extend_from_slice(value);
    })?;
    to.put_all(&keys, &values)
}
