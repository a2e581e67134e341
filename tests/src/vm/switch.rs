//! A switch between VMs: it learns where addresses are, and can write down every frame that it
//! passes on.
//!
//! Each port is a pair of datagram sockets of the file system, one of the VM's emulator and one
//! here; a datagram is a frame. No network of this machine has a part in it.

use std::collections::HashMap;
use std::fmt;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::UnixDatagram;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result};

/// How long a frame may wait for a VM that is slow to take it.
const PATIENCE: Duration = Duration::from_millis(50);
/// How often the thread looks whether it is to end.
const IDLE: Duration = Duration::from_millis(100);
/// More than any frame has.
const LARGEST: usize = 65_600;

/// The address of an interface.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Mac([u8; 6]);

impl Mac {
    /// Whether it is that of several: multicast, broadcast.
    fn is_group(self) -> bool {
        self.0[0] & 1 == 1
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// A plug of a switch, for one interface of one VM.
#[derive(Debug, Clone)]
pub struct Port {
    local: PathBuf,
    remote: PathBuf,
    mac: Mac,
}

impl Port {
    /// The address of the interface.
    #[must_use]
    pub fn mac(&self) -> Mac {
        self.mac
    }

    /// The emulator's socket.
    pub(super) fn local(&self) -> &Path {
        &self.local
    }

    /// The switch's.
    pub(super) fn remote(&self) -> &Path {
        &self.remote
    }
}

/// A switch. It ends when it is dropped.
#[derive(Debug)]
pub struct Switch {
    directory: PathBuf,
    number: u8,
    ports: Vec<Port>,
    ended: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Switch {
    /// A switch with as many ports. With `capture`, every frame is written to that file, in
    /// tcpdump's format.
    pub fn start(ports: u8, capture: Option<&Path>) -> Result<Self> {
        static NEXT: AtomicU8 = AtomicU8::new(0);
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        // A name by which `lab::prune` removes it should this process be killed.
        let name = format!("sluice-lab-{}-switch{number}", std::process::id());
        let directory = std::env::temp_dir().join(name);
        fs::create_dir(&directory).with_context(|| format!("creating {}", directory.display()))?;
        let ended = Arc::new(AtomicBool::new(false));
        let mut switch = Self { directory, number, ports: Vec::new(), ended, thread: None };
        switch.ports = (1..=ports).map(|port| switch.make_port(port)).collect();
        let capture = capture.map(Capture::create).transpose()?;
        let forwarder = Forwarder::bind(&switch.ports, capture)?;
        let ended = Arc::clone(&switch.ended);
        let run = move || forwarder.run(&ended);
        switch.thread = Some(std::thread::Builder::new().name("switch".to_owned()).spawn(run)?);
        Ok(switch)
    }

    fn make_port(&self, port: u8) -> Port {
        Port {
            local: self.directory.join(format!("vm{port}")),
            remote: self.directory.join("switch"),
            // 52:54:00 is what emulated interfaces have.
            mac: Mac([0x52, 0x54, 0, self.number, 0, port]),
        }
    }

    /// Its ports.
    #[must_use]
    pub fn ports(&self) -> &[Port] {
        &self.ports
    }
}

impl Drop for Switch {
    fn drop(&mut self) {
        self.ended.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic of it has been printed.
            drop(thread.join());
        }
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// What the switch's thread has.
struct Forwarder {
    socket: UnixDatagram,
    ports: Vec<PathBuf>,
    learned: HashMap<Mac, usize>,
    capture: Option<Capture>,
}

impl Forwarder {
    fn bind(ports: &[Port], capture: Option<Capture>) -> Result<Self> {
        let path = ports.first().context("a switch without ports")?.remote();
        let socket = UnixDatagram::bind(path).with_context(|| format!("binding {}", path.display()))?;
        socket.set_read_timeout(Some(IDLE))?;
        socket.set_write_timeout(Some(PATIENCE))?;
        let ports = ports.iter().map(|port| port.local.clone()).collect();
        Ok(Self { socket, ports, learned: HashMap::new(), capture })
    }

    fn run(mut self, ended: &AtomicBool) {
        let mut frame = vec![0; LARGEST];
        while !ended.load(Ordering::Relaxed) {
            let Ok((size, sender)) = self.socket.recv_from(&mut frame) else { continue };
            let port = sender.as_pathname().and_then(|path| self.ports.iter().position(|port| port == path));
            if let (Some(port), Some(frame)) = (port, frame.get(..size)) {
                self.forward(port, frame);
            }
        }
    }

    fn forward(&mut self, from: usize, frame: &[u8]) {
        let Some((destination, source)) = addresses(frame) else { return };
        if let Some(capture) = &mut self.capture {
            capture.add(frame);
        }
        if !source.is_group() {
            self.learned.insert(source, from);
        }
        let known = self.learned.get(&destination).copied().filter(|_| !destination.is_group());
        for (port, path) in self.ports.iter().enumerate() {
            if port != from && known.is_none_or(|known| known == port) {
                // To a VM that is not there, or too busy, frames get lost, as on any wire.
                drop(self.socket.send_to(frame, path));
            }
        }
    }
}

/// Destination and source of a frame.
fn addresses(frame: &[u8]) -> Option<(Mac, Mac)> {
    let (destination, rest) = frame.split_first_chunk()?;
    Some((Mac(*destination), Mac(*rest.first_chunk()?)))
}

/// A file of frames.
struct Capture(File);

impl Capture {
    fn create(path: &Path) -> Result<Self> {
        let mut file = File::create(path).with_context(|| format!("creating {}", path.display()))?;
        // Magic number, version 2.4, no time zone, no accuracy, the largest frame, Ethernet.
        let header: [u32; 6] = [0xa1b2_c3d4, 0x0004_0002, 0, 0, 0x0004_0000, 1];
        file.write_all(&words(&header))?;
        Ok(Self(file))
    }

    fn add(&mut self, frame: &[u8]) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let size = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        // The format has 32 bits for the seconds.
        let seconds = u32::try_from(now.as_secs()).unwrap_or(u32::MAX);
        let mut record = words(&[seconds, now.subsec_micros(), size, size]);
        record.extend(frame);
        // A full disk must not end the switch; whoever reads the file sees what is missing.
        drop(self.0.write_all(&record));
    }
}

fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_ne_bytes()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn frame(to: Mac, from: Mac) -> Vec<u8> {
        [to.0.as_slice(), &from.0, b"\x08\x00data"].concat()
    }

    #[test]
    fn frames_go_where_they_should_and_are_written_down() {
        let capture = std::env::temp_dir().join(format!("sluice-vm-capture-{}", std::process::id()));
        let switch = Switch::start(3, Some(&capture)).unwrap();
        let plugs: Vec<UnixDatagram> = switch
            .ports()
            .iter()
            .map(|port| {
                let plug = UnixDatagram::bind(port.local()).unwrap();
                plug.set_read_timeout(Some(Duration::from_millis(300))).unwrap();
                plug
            })
            .collect();
        let [a, b, c] = [0, 1, 2].map(|port: usize| switch.ports()[port].mac());
        let send = |plug: usize, frame: &[u8]| {
            plugs[plug].send_to(frame, switch.ports()[plug].remote()).unwrap();
        };
        let received = |plug: usize| {
            let mut frame = vec![0; 100];
            plugs[plug].recv(&mut frame).ok().map(|size| frame[..size].to_vec())
        };
        let broadcast = frame(Mac([0xff; 6]), a);
        send(0, &broadcast);
        assert_eq!([received(1), received(2)], [Some(broadcast.clone()), Some(broadcast)]);
        let answer = frame(a, b);
        send(1, &answer);
        assert_eq!([received(0), received(2)], [Some(answer), None]);
        let unknown = frame(c, a);
        send(0, &unknown);
        assert_eq!([received(1), received(2)], [Some(unknown.clone()), Some(unknown)]);
        send(0, b"short");
        assert_eq!(received(1), None);
        let directory = switch.directory.clone();
        drop(switch);
        assert!(!directory.exists());
        assert_eq!(fs::read(&capture).unwrap().len(), 24 + 3 * (16 + 18));
        fs::remove_file(capture).unwrap();
    }

    #[test]
    fn addresses_are_written_as_usual() {
        assert_eq!(Mac([0x52, 0x54, 0, 0, 0, 10]).to_string(), "52:54:00:00:00:0a");
        assert!(Mac([0xff; 6]).is_group());
    }
}
