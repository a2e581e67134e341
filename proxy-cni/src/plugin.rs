//! The commands.

mod addresses;

use std::collections::BTreeSet;
use std::io;
use std::net::IpAddr;
use std::path::Path;

use ipnet::IpNet;
use serde_json::Value;
use sluice_link::Mac;

use crate::delegate::Delegate;
use crate::ipam::Lease;
use crate::net::{self, Namespace, NetError, PodState};
use crate::spec::{
    Attachment, CniError, Code, Command, Dns, Document, Environment, Ipam, Mode, NetConf, Outcome, Route,
    Version,
};
use crate::store::StoreError;
use crate::wiring::{self, Wiring};
use addresses::Addresses;

/// What the runtime is told: nothing, an object, or an error object.
pub type Answer = Result<Option<Value>, Value>;

impl From<StoreError> for CniError {
    fn from(error: StoreError) -> Self {
        let code = match &error {
            StoreError::Busy(_) => Code::TryAgainLater,
            StoreError::Io { .. } | StoreError::Damaged { .. } => Code::Io,
        };
        CniError::new(code, error.to_string())
    }
}

impl From<NetError> for CniError {
    fn from(error: NetError) -> Self {
        let code = match &error {
            NetError::Namespace { .. } => Code::UnknownContainer,
            NetError::OwnNamespace(_) => Code::InvalidEnvironment,
            NetError::NoBridge(_) => Code::InvalidConfig,
            NetError::Sysctl { .. } => Code::Io,
            _ => Code::Kernel,
        };
        CniError::new(code, error.to_string())
    }
}

/// What the runtime asks of a plugin.
pub(crate) struct Call {
    pub(crate) environment: Environment,
    input: io::Result<Vec<u8>>,
    /// In which the answer is written: the newest until another is asked for.
    pub(crate) version: Version,
}

impl Call {
    /// What stands on stdin; it is read once.
    fn parse(&mut self) -> Result<Document, CniError> {
        let input = std::mem::replace(&mut self.input, Ok(Vec::new()));
        Document::parse(input.map_err(|error| CniError::new(Code::Io, format!("stdin: {error}")))?)
    }

    /// The same, of a version that has the command.
    pub(crate) fn document(&mut self) -> Result<Document, CniError> {
        let document = self.parse()?;
        self.version = document.version()?;
        supports(self.version, self.environment.command)?;
        Ok(document)
    }
}

/// Answers the runtime, whatever plugin it calls.
pub(crate) fn serve(
    variable: impl Fn(&str) -> Option<String>,
    input: io::Result<Vec<u8>>,
    obey: impl FnOnce(&mut Call) -> Result<Option<Value>, CniError>,
) -> Answer {
    let environment = Environment::read(variable).map_err(|error| error.object(Version::NEWEST))?;
    let mut call = Call { environment, input, version: Version::NEWEST };
    let obeyed = if call.environment.command == Command::Version {
        // It is answered even if nothing, or nonsense, is on stdin.
        let asked = call.parse().and_then(|document| document.version()).ok();
        Ok(Some(Version::answer(asked)))
    } else {
        obey(&mut call)
    };
    obeyed.map_err(|error| error.object(call.version))
}

/// Does what the runtime asks for.
pub fn run(variable: impl Fn(&str) -> Option<String>, input: io::Result<Vec<u8>>) -> Answer {
    serve(variable, input, obey)
}

fn obey(call: &mut Call) -> Result<Option<Value>, CniError> {
    let document = call.document()?;
    let environment = &call.environment;
    let config = match environment.command {
        Command::Del => NetConf::read_for_del(document)?,
        _ => NetConf::read(document)?,
    };
    let attachment = || {
        let missing =
            || CniError::new(Code::InvalidEnvironment, "CNI_CONTAINERID and CNI_IFNAME are not set");
        environment.attachment.as_ref().ok_or_else(missing)
    };
    match environment.command {
        Command::Add => add(environment, &config, attachment()?).map(Some),
        Command::Del => delete(environment, &config, attachment()?).map(|()| None),
        Command::Check => check(environment, &config, attachment()?).map(|()| None),
        Command::Gc => collect(environment, &config).map(|()| None),
        Command::Status => status(environment, &config).map(|()| None),
        Command::Version => Ok(None),
    }
}

/// CHECK came with 0.4.0, GC and STATUS with 1.1.0.
fn supports(version: Version, command: Command) -> Result<(), CniError> {
    let since = match command {
        Command::Check => Version::V0_4_0,
        Command::Gc | Command::Status => Version::V1_1_0,
        _ => Version::V0_3_0,
    };
    if version < since {
        let text = format!("this command does not exist in version {version}; it was added in {since}");
        return Err(CniError::new(Code::IncompatibleVersion, text));
    }
    Ok(())
}

pub(crate) fn namespace(environment: &Environment) -> Result<Namespace, CniError> {
    let missing = || CniError::new(Code::InvalidEnvironment, "CNI_NETNS is not set");
    Ok(Namespace::open(environment.netns.as_deref().ok_or_else(missing)?)?)
}

fn add(environment: &Environment, config: &NetConf, whose: &Attachment) -> Result<Value, CniError> {
    if config.previous.is_some() {
        let text = "prevResult: this plugin creates the pod's interface, so it must be the first plugin of the chain";
        return Err(CniError::new(Code::InvalidConfig, text));
    }
    let namespace = namespace(environment)?;
    let mac = asked_mac(environment, config)?;
    let on_bridge =
        (config.mode == Mode::Bridge).then(|| mac.unwrap_or_else(|| wiring::pod_mac(&config.name, whose)));
    let given = give(environment, config, whose, on_bridge)?;
    let wiring = Wiring::new(&config.name, whose, config.mode, &config.bridge, given.mtu, mac);
    let (leases, routes, in_use) = (given.leases, given.routes, given.in_use);
    let mut wiring = Wiring { leases, routes, in_use, ..wiring };
    let sysctls: Vec<(String, String)> =
        config.sysctls.iter().map(|(name, value)| (name.clone(), value.clone())).collect();
    let done = match wiring.wrong_route() {
        Some(wrong) => Err(CniError::new(Code::InvalidConfig, wrong)),
        None => net::connect(&mut wiring, &namespace, &sysctls).map_err(CniError::from),
    };
    if let Err(error) = done {
        // What cannot be taken back now is taken back by DEL or GC.
        drop(take_back(environment, config, whose));
        return Err(error);
    }
    let netns = environment.netns.as_deref().unwrap_or(Path::new("")).display().to_string();
    let dns = if config.dns.is_empty() { given.dns } else { config.dns.clone() };
    Outcome { dns, ..wiring.outcome(&netns) }.object(config.version)
}

/// Addresses for a pod, and what goes with them. Others may have theirs while links are made:
/// nothing stays locked.
fn give(
    environment: &Environment,
    config: &NetConf,
    whose: &Attachment,
    mac: Option<Mac>,
) -> Result<Given, CniError> {
    let mappings = &config.capabilities.port_mappings;
    let Ipam::Delegated(name) = &config.ipam else {
        let mut addresses = Addresses::of(config)?;
        return addresses.give(whose, &addresses::requested(environment, config)?, mappings, mac);
    };
    let plugin = delegate(name, environment);
    let (leases, outcome) = plugin.add(config)?;
    let addresses: Vec<IpAddr> = leases.iter().map(|lease| lease.address.addr()).collect();
    if let Some(ports) = addresses::host_ports(whose, &addresses, mappings) {
        let noted = addresses::store(config).and_then(|mut store| store.give(whose, &[], Some(ports), None));
        if let Err(error) = noted {
            drop(plugin.tell("DEL", config));
            return Err(error.into());
        }
    }
    let mtu = config.mtu.unwrap_or_else(|| addresses::node_mtu(config));
    Ok(Given { leases, routes: outcome.routes, mtu, dns: outcome.dns, in_use: None })
}

fn take_back(environment: &Environment, config: &NetConf, whose: &Attachment) -> Result<(), CniError> {
    match &config.ipam {
        Ipam::Delegated(name) => {
            forget(config, whose)?;
            delegate(name, environment).tell("DEL", config)
        }
        Ipam::Own { .. } => forget(config, whose),
    }
}

/// Writes down that somebody has nothing any more. Where nothing can be read, nobody has anything
/// that could be taken back, and a disk that takes nothing may be full until pods are gone: the pod
/// has to go all the same. The daemon collects addresses without a link. Other trouble is an error,
/// because the runtime tries again.
fn forget(config: &NetConf, whose: &Attachment) -> Result<(), CniError> {
    match addresses::store(config).map(|mut store| store.take_back(whose)) {
        Ok(Err(error)) if error.is_of_the_disk() => Ok(()),
        Ok(taken) => Ok(taken.map(drop)?),
        Err(error @ StoreError::Busy(_)) => Err(error.into()),
        Err(StoreError::Io { .. } | StoreError::Damaged { .. }) => Ok(()),
    }
}

fn delegate<'a>(name: &'a str, environment: &'a Environment) -> Delegate<'a> {
    Delegate {
        name,
        path: &environment.path,
        whose: environment.attachment.as_ref(),
        netns: environment.netns.as_deref(),
        arguments: &environment.arguments_text,
    }
}

/// A hardware address that is asked for, by capability or, as before there were any, by `CNI_ARGS`.
fn asked_mac(environment: &Environment, config: &NetConf) -> Result<Option<Mac>, CniError> {
    let asked = config.capabilities.mac.as_ref().or_else(|| environment.arguments.get("MAC"));
    let Some(text) = asked.filter(|text| !text.is_empty()) else { return Ok(None) };
    let wrong =
        || CniError::new(Code::InvalidConfig, format!("mac: {text:?} is not a unicast hardware address"));
    wiring::parse_mac(text).map(Some).ok_or_else(wrong)
}

/// Without a namespace, without a result of ADD, and any number of times.
fn delete(environment: &Environment, config: &NetConf, whose: &Attachment) -> Result<(), CniError> {
    net::disconnect(&wiring::host_name(&config.name, whose))?;
    take_back(environment, config, whose)
}

fn status(environment: &Environment, config: &NetConf) -> Result<(), CniError> {
    match &config.ipam {
        Ipam::Delegated(name) => delegate(name, environment).tell("STATUS", config),
        // What ADD would try again is, for STATUS, that there can be no ADD.
        Ipam::Own { .. } => Addresses::of(config)
            .and_then(|addresses| addresses.can_give())
            .map_err(|error| CniError::new(Code::NotAvailable, error.to_string())),
    }
}

fn check(environment: &Environment, config: &NetConf, whose: &Attachment) -> Result<(), CniError> {
    let missing = || CniError::new(Code::InvalidConfig, "prevResult: CHECK needs the result of ADD");
    let previous = config.previous.as_ref().ok_or_else(missing)?;
    let namespace = namespace(environment)?;
    let mut wrong = Vec::new();
    let host = wiring::host_name(&config.name, whose);
    let routed = if config.mode == Mode::Routed { pod_ips(previous, whose) } else { Vec::new() };
    wrong.extend(net::host_differences(&host, &routed)?);
    match PodState::read(&namespace, &whose.interface)? {
        None => wrong.push(format!("interface {} does not exist", whose.interface)),
        Some(state) => wrong.extend(differences(&state, previous, whose)),
    }
    if let Ipam::Delegated(name) = &config.ipam {
        wrong.extend(delegate(name, environment).tell("CHECK", config).err().map(|error| error.to_string()));
    } else {
        let held = Addresses::without_ranges(config)?.held(whose);
        for ip in pod_ips(previous, whose).iter().filter(|ip| !held.contains(&ip.addr())) {
            wrong.push(format!("address {} is not recorded as an address of this pod", ip.addr()));
        }
    }
    if wrong.is_empty() { Ok(()) } else { Err(CniError::new(Code::Differs, wrong.join("; "))) }
}

/// The addresses of the pod's own interface: plugins behind us may have added others.
fn pod_ips(previous: &Outcome, whose: &Attachment) -> Vec<IpNet> {
    let is_own = |place: usize| {
        previous
            .interfaces
            .get(place)
            .is_some_and(|link| link.name == whose.interface && !link.sandbox.is_empty())
    };
    previous.ips.iter().filter(|ip| ip.interface.is_none_or(is_own)).map(|ip| ip.address).collect()
}

fn differences(state: &PodState, previous: &Outcome, whose: &Attachment) -> Vec<String> {
    let mut wrong = Vec::new();
    for address in pod_ips(previous, whose).iter().filter(|address| !state.addresses.contains(address)) {
        wrong.push(format!("{} has no address {address}", whose.interface));
    }
    for route in previous.routes.iter().filter(|route| !state.routes.contains(&route.dst)) {
        wrong.push(format!("there is no route to {}", route.dst));
    }
    let link =
        previous.interfaces.iter().find(|link| link.name == whose.interface && !link.sandbox.is_empty());
    if let Some(link) = link {
        let mac = wiring::parse_mac(&link.mac);
        if mac.is_some_and(|mac| mac.as_slice() != state.mac) {
            wrong.push(format!("{} does not have the hardware address {}", whose.interface, link.mac));
        }
        if link.mtu.is_some() && link.mtu != state.mtu {
            wrong.push(format!("{} does not have the MTU {}", whose.interface, link.mtu.unwrap_or_default()));
        }
    }
    wrong
}

/// Removes what belongs to no valid attachment: links, then addresses.
fn collect(environment: &Environment, config: &NetConf) -> Result<(), CniError> {
    // Without a word about it (cnitool) nobody is known to be invalid.
    let Some(valid) = &config.valid else { return Ok(()) };
    let name = |whose: &Attachment| wiring::host_name(&config.name, whose);
    let kept: BTreeSet<String> = valid.iter().map(name).collect();
    let mut store = addresses::store(config)?;
    // Links that somebody has written down, and links that nobody has.
    let mut links: BTreeSet<String> = store.contents().holders().iter().map(name).collect();
    links.extend(net::host_links(&config.name)?);
    let mut errors = Vec::new();
    let mut stuck = BTreeSet::new();
    for link in links.difference(&kept) {
        if let Err(error) = net::disconnect(link) {
            errors.push(format!("{link}: {error}"));
            stuck.insert(link.clone());
        }
    }
    store.keep(|holder| valid.contains(holder) || stuck.contains(&name(holder)))?;
    if !errors.is_empty() {
        return Err(CniError::new(Code::Io, errors.join("; ")));
    }
    match &config.ipam {
        Ipam::Delegated(plugin) => delegate(plugin, environment).tell("GC", config),
        Ipam::Own { .. } => Ok(()),
    }
}

/// What a pod is given.
struct Given {
    leases: Vec<Lease>,
    routes: Vec<Route>,
    mtu: u32,
    dns: Dns,
    /// As [`Wiring::in_use`].
    in_use: Option<BTreeSet<IpAddr>>,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::loopback;

    /// Both plugins answer alike what is not for the network.
    #[test]
    fn the_version_is_answered_whatever_stdin_is_and_other_commands_say_what_is_wrong_with_it() {
        let variable = |command: &str, name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_NETNS" => Some("/proc/self/ns/net".to_owned()),
            "CNI_CONTAINERID" | "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_PATH" => Some("/".to_owned()),
            _ => None,
        };
        let broken = || Err(io::Error::other("no stdin"));
        type Plugin = Box<dyn Fn(&str, io::Result<Vec<u8>>) -> Answer>;
        let plugins: [Plugin; 2] = [
            Box::new(move |command, input| run(|name| variable(command, name), input)),
            Box::new(move |command, input| loopback::run(|name| variable(command, name), input)),
        ];
        for plugin in plugins {
            let version = plugin("VERSION", broken()).unwrap().unwrap();
            assert_eq!(version["cniVersion"], Version::NEWEST.to_string());
            let wrong = plugin("CHECK", broken()).unwrap_err();
            assert_eq!(wrong["code"], 5, "{wrong}");
            let old = br#"{"cniVersion": "0.3.1", "name": "pods", "type": "sluice-cni"}"#.to_vec();
            let wrong = plugin("CHECK", Ok(old)).unwrap_err();
            assert_eq!(wrong["code"], 1, "{wrong}");
        }
    }
}
