//! Another plugin that manages addresses, run as the runtime would run it (specification 1.1.0,
//! section 4).

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Command as Process, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::ipam::Lease;
use crate::spec::go_json::{self, Json, Shape};
use crate::spec::{Attachment, CniError, Code, NetConf, Outcome};

/// How long it may take. Runtimes give up after some minutes; a plugin that waits for DHCP takes
/// seconds.
const LIMIT: Duration = Duration::from_secs(60);
const PAUSE: Duration = Duration::from_millis(2);
/// What it may answer.
const ANSWER: u64 = 1 << 20;
/// What is wanted of its errors.
const ERROR: Shape = Shape::Struct(&[("msg", Shape::Scalar)]);

/// Where to find it, and what it is told.
pub struct Delegate<'a> {
    /// Its name: `ipam.type`.
    pub name: &'a str,
    /// Directories: `CNI_PATH`.
    pub path: &'a [PathBuf],
    /// For whom.
    pub whose: Option<&'a Attachment>,
    /// Where the pod is.
    pub netns: Option<&'a Path>,
    /// `CNI_ARGS`, as it came.
    pub arguments: &'a str,
}

impl Delegate<'_> {
    fn program(&self) -> Result<PathBuf, CniError> {
        let mut places = self.path.iter().map(|directory| directory.join(self.name));
        places.find(|place| place.is_file()).ok_or_else(|| {
            let list =
                self.path.iter().map(|place| place.display().to_string()).collect::<Vec<_>>().join(":");
            CniError::new(
                Code::InvalidConfig,
                format!("ipam.type: there is no plugin {:?} in CNI_PATH ({list})", self.name),
            )
        })
    }

    /// Asks for addresses.
    pub fn add(&self, config: &NetConf) -> Result<(Vec<Lease>, Outcome), CniError> {
        let answer = self.run("ADD", config)?;
        let outcome = Outcome::parse(&answer, config.version)?;
        let leases = outcome.ips.iter().map(|ip| {
            let gateway = ip.gateway.unwrap_or_else(|| first(ip.address));
            Lease { address: ip.address, gateway }
        });
        let leases: Vec<Lease> = leases.collect();
        if leases.is_empty() {
            let text = format!("plugin {} returned no address", self.name);
            return Err(CniError::new(Code::NoAddress, text));
        }
        Ok((leases, outcome))
    }

    /// Gives addresses back, asks whether they are still there, or whether there are any.
    pub fn tell(&self, command: &str, config: &NetConf) -> Result<(), CniError> {
        self.run(command, config).map(drop)
    }

    fn run(&self, command: &str, config: &NetConf) -> Result<Json, CniError> {
        let program = self.program()?;
        let (status, text) = self
            .talk(&program, command, &config.whole)
            .map_err(|error| CniError::new(Code::Io, format!("plugin {}: {error}", program.display())))?;
        let answer = go_json::parse(&text).unwrap_or(Json::Null);
        if status {
            return Ok(answer);
        }
        let told = go_json::shaped(&answer, &ERROR);
        let told = told.get("msg").and_then(Value::as_str);
        let told = told.map_or_else(|| String::from_utf8_lossy(&text).trim().to_owned(), str::to_owned);
        Err(CniError::new(Code::Io, format!("plugin {}, {command}: {told}", self.name)))
    }

    fn talk(&self, program: &Path, command: &str, config: &[u8]) -> io::Result<(bool, Vec<u8>)> {
        let path = std::env::join_paths(self.path).map_err(io::Error::other)?;
        let mut process = Process::new(program);
        process.env("CNI_COMMAND", command).env("CNI_PATH", path).env("CNI_ARGS", self.arguments);
        if let Some(whose) = self.whose {
            process.env("CNI_CONTAINERID", &whose.container).env("CNI_IFNAME", &whose.interface);
        }
        process.env("CNI_NETNS", self.netns.unwrap_or(Path::new("")));
        let mut child =
            process.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::inherit()).spawn()?;
        if let Some(mut input) = child.stdin.take() {
            // One that does not read has its reasons, and tells them.
            drop(input.write_all(config));
        }
        let output = child.stdout.take();
        let reader = std::thread::spawn(move || {
            let mut text = Vec::new();
            output.map_or(Ok(0), |output| output.take(ANSWER).read_to_end(&mut text)).map(|_| text)
        });
        let end = Instant::now() + LIMIT;
        let status = loop {
            if let Some(status) = child.try_wait()? {
                break status;
            }
            if Instant::now() > end {
                child.kill()?;
                child.wait()?;
                return Err(io::Error::other(format!("it did not finish within {} s", LIMIT.as_secs())));
            }
            std::thread::sleep(PAUSE);
        };
        let text = reader.join().map_err(|_| io::Error::other("its output could not be read"))??;
        Ok((status.success(), text))
    }
}

/// The first address of a network, which is the node's where nobody says another.
fn first(address: ipnet::IpNet) -> std::net::IpAddr {
    crate::spec::Range::of(address.trunc()).gateway()
}
