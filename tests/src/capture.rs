//! Packet captures by tcpdump: around steps of a case, and of one attempt after a failed probe.

use std::io::{BufRead, BufReader};
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::process::{self, Namespace};

/// Bytes of a packet that are kept. All headers, and the packet that an ICMP error quotes, are
/// within.
const KEPT: &str = "2048";
/// The kernel's buffer, in KiB: some 8,000 packets. Where packets are kept whole, one on a link
/// with offloads takes 64 KiB of the usual 2 MiB, so 32 packets fill it: that is a moment in which
/// tcpdump does not get a processor.
const BUFFER: &str = "16384";

/// A running capture to a file.
#[derive(Debug)]
pub struct Capture {
    child: Child,
    namespace: Namespace,
    file: PathBuf,
    /// What tcpdump says
    said: mpsc::Receiver<String>,
}

impl Capture {
    /// Starts tcpdump and waits until it listens.
    pub fn start(namespace: &Namespace, dev: &str, filter: &str, file: PathBuf) -> Result<Self> {
        let mut command = namespace.command("tcpdump")?;
        command.args(["-U", "-n", "--immediate-mode", "-Z", "root", "-s", KEPT, "-B", BUFFER]);
        command.args(["-i", dev, "-w"]).arg(&file);
        command.args(filter.split_whitespace());
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().context("starting tcpdump")?;
        let stderr = child.stderr.take().ok_or_else(|| anyhow!("tcpdump without stderr"))?;
        let (sender, said) = mpsc::channel();
        let capture = Self { child, namespace: namespace.clone(), file, said };
        std::thread::spawn(move || {
            // Read on to the end: tcpdump must not block on a full pipe.
            for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                // The receiver is gone when the capture was given up.
                drop(sender.send(line));
            }
        });
        let mut said = Vec::new();
        loop {
            match capture.said.recv_timeout(Duration::from_secs(10)) {
                Ok(line) if line.contains("listening on") => return Ok(capture),
                Ok(line) => said.push(line),
                Err(_) => bail!("tcpdump on {dev} does not listen: {}", said.join("; ")),
            }
        }
    }

    /// tcpdump's process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.child.id().cast_signed())
    }

    /// Ends the capture and returns its packets as text, one line of a packet's own for each at
    /// least.
    pub fn finish(mut self) -> Result<Packets> {
        self.settle()?;
        kill(self.pid(), Signal::SIGINT)?;
        if process::wait(&mut self.child, Duration::from_secs(5))?.is_none() {
            bail!("tcpdump did not end");
        }
        // It has closed its end: what it said is complete.
        let last: Vec<String> = self.said.iter().collect();
        ensure!(dropped(&last) == Some(0), "the capture is not complete: {}", last.join("; "));
        let brief = self.read(&[])?;
        let verbose = self.read(&["-v"])?;
        Ok(Packets { count: brief.lines().filter(|line| !line.trim().is_empty()).count(), brief, verbose })
    }

    /// What was sent a moment ago may still be on its way to the file. A packet wakes tcpdump at
    /// once, though on a busy machine it may have to wait for a processor: it sleeps only when it
    /// has written everything.
    fn settle(&self) -> Result<()> {
        let end = Instant::now() + Duration::from_secs(30);
        std::thread::sleep(Duration::from_millis(300));
        let stat = format!("/proc/{}/stat", self.child.id());
        let mut quiet = 0;
        while quiet < 3 {
            let stat = std::fs::read_to_string(&stat).context("tcpdump has ended by itself")?;
            // proc_pid_stat(5): the state comes behind the name, which is in parentheses.
            let is_asleep = stat.rsplit_once(") ").is_some_and(|(_, rest)| rest.starts_with('S'));
            quiet = if is_asleep { quiet + 1 } else { 0 };
            ensure!(Instant::now() < end, "tcpdump has been busy for 30 s");
            std::thread::sleep(Duration::from_millis(10));
        }
        Ok(())
    }

    fn read(&self, options: &[&str]) -> Result<String> {
        // Read where it was captured, or interface numbers become names of the runner's own
        // interfaces.
        let mut command = self.namespace.command("tcpdump")?;
        command.args(["-n", "-Z", "root"]).args(options).arg("-r").arg(&self.file);
        let finished = process::run(command, None, Duration::from_secs(20))?;
        if !finished.status.success() {
            bail!("reading a capture: {}", finished.stderr.trim());
        }
        Ok(finished.stdout)
    }
}

/// How many packets the kernel had no room for, by tcpdump's last words.
fn dropped(said: &[String]) -> Option<u64> {
    let count = said.iter().find_map(|line| {
        line.split_once(" packets dropped by kernel").or_else(|| line.split_once(" packet dropped by kernel"))
    })?;
    count.0.trim().parse().ok()
}

impl Drop for Capture {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

/// What a capture saw.
#[derive(Debug, Clone)]
pub struct Packets {
    /// How many packets
    pub count: usize,
    /// `tcpdump -n -r`: a line each
    pub brief: String,
    /// `tcpdump -n -v -r`
    pub verbose: String,
}

impl Packets {
    /// The first packets, a line each.
    #[must_use]
    pub fn first(&self, number: usize) -> String {
        self.brief.lines().take(number).collect::<Vec<_>>().join("\n")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_packets_are_read_off_the_last_words() {
        let words =
            |count: &str| vec!["40 packets captured".to_owned(), format!("{count} dropped by kernel")];
        assert_eq!(dropped(&words("0 packets")), Some(0));
        assert_eq!(dropped(&words("1 packet")), Some(1));
        assert_eq!(dropped(&words("7 packets")), Some(7));
        assert_eq!(dropped(&["tcpdump: no such device".to_owned()]), None);
    }
}
