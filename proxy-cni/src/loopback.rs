//! The plugin `loopback`, which containerd calls before the network's own: it sets `lo` up.
//!
//! It answers as that of containernetworking/plugins does, for nodes that do not have that one.

use std::io;
use std::net::IpAddr;

use ipnet::IpNet;
use serde_json::Value;

use crate::net::{Loopback, Namespace, NetError};
use crate::plugin::{Answer, Call, namespace, serve};
use crate::spec::{
    CniError, Code, Command, Document, Environment, Interface, Ip, Outcome, Version, previous_result,
};

/// The name that it is called by.
pub const NAME: &str = "loopback";

/// Does what the runtime asks for.
pub fn run(variable: impl Fn(&str) -> Option<String>, input: io::Result<Vec<u8>>) -> Answer {
    serve(variable, input, obey)
}

fn obey(call: &mut Call) -> Result<Option<Value>, CniError> {
    // Whatever is said: a pod can go.
    if call.environment.command == Command::Del {
        return delete(&call.environment).map(|()| None);
    }
    let document = call.document()?;
    match call.environment.command {
        Command::Add => add(&call.environment, &document, call.version).map(Some),
        Command::Check => check(&call.environment).map(|()| None),
        // It keeps nothing, and can always serve.
        _ => Ok(None),
    }
}

/// What plugins before have answered is passed on.
fn add(environment: &Environment, document: &Document, version: Version) -> Result<Value, CniError> {
    let previous = previous_result(document, version)?;
    let loopback = Loopback::set(&namespace(environment)?, true)?;
    if let Some(wrong) = loopback.addresses.iter().find(|address| !address.addr().is_loopback()) {
        let text = format!("lo has the address {wrong}, which is not a loopback address");
        return Err(CniError::new(Code::InvalidConfig, text));
    }
    let sandbox = environment.netns.as_ref().map(|path| path.display().to_string()).unwrap_or_default();
    previous.unwrap_or_else(|| outcome(&loopback.addresses, sandbox)).object(version)
}

fn outcome(addresses: &[IpNet], sandbox: String) -> Outcome {
    let first = |is_family: fn(&IpAddr) -> bool| addresses.iter().find(|address| is_family(&address.addr()));
    let ips = [first(IpAddr::is_ipv4), first(IpAddr::is_ipv6)].into_iter().flatten();
    let ip = |address: &IpNet| Ip {
        address: *address,
        gateway: None,
        interface: Some(0),
        others: serde_json::Map::new(),
    };
    let mac = "00:00:00:00:00:00".to_owned();
    let link = Interface { name: "lo".to_owned(), mac, sandbox, ..Interface::default() };
    Outcome { interfaces: vec![link], ips: ips.map(ip).collect(), ..Outcome::default() }
}

fn check(environment: &Environment) -> Result<(), CniError> {
    if Loopback::read(&namespace(environment)?)?.is_up {
        return Ok(());
    }
    Err(CniError::new(Code::Differs, "interface lo is down"))
}

/// Without a namespace there is nothing to do.
fn delete(environment: &Environment) -> Result<(), CniError> {
    let Some(path) = &environment.netns else { return Ok(()) };
    match Namespace::open(path) {
        Ok(namespace) => Ok(Loopback::set(&namespace, false).map(drop)?),
        Err(NetError::Namespace { .. }) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
