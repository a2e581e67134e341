//! Processes in a namespace: entering it, its cgroup, ending with the runner, running with a time
//! limit.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;
use nix::unistd::{Pid, getppid};

use crate::interrupt;

/// Where `ip netns` keeps the names.
pub const NETNS_DIR: &str = "/run/netns";

/// A named network namespace, and the cgroup of the processes in it.
#[derive(Debug, Clone)]
pub struct Namespace {
    name: String,
    cgroup: Option<PathBuf>,
}

impl Namespace {
    /// The namespace called `name`; processes in it live in `cgroup`.
    #[must_use]
    pub fn new(name: String, cgroup: Option<PathBuf>) -> Self {
        Self { name, cgroup }
    }

    /// Its name for `ip netns`.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// A command that runs in the namespace and in its cgroup, in its own process group, and is
    /// killed when the thread that spawns it ends.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Result<Command> {
        let path = Path::new(NETNS_DIR).join(&self.name);
        let netns = File::open(&path).with_context(|| format!("opening {}", path.display()))?;
        let open = |dir: &PathBuf| {
            let path = dir.join("cgroup.procs");
            File::options().write(true).open(&path).with_context(|| format!("opening {}", path.display()))
        };
        let cgroup = self.cgroup.as_ref().map(open).transpose()?;
        let mut command = Command::new(program);
        command.process_group(0);
        let runner = Pid::this();
        let enter = move || -> io::Result<()> {
            set_pdeathsig(Signal::SIGKILL)?;
            if getppid() != runner {
                return Err(io::Error::other("the runner has ended"));
            }
            if let Some(mut cgroup) = cgroup.as_ref() {
                cgroup.write_all(b"0")?;
            }
            setns(netns.as_fd(), CloneFlags::CLONE_NEWNET)?;
            Ok(())
        };
        // SAFETY: the closure makes only system calls (prctl, getppid, write, setns) on descriptors
        // opened before the fork; on success it neither allocates nor locks.
        unsafe { command.pre_exec(enter) };
        Ok(command)
    }
}

/// What a finished program left.
#[derive(Debug, Clone)]
pub struct Finished {
    /// Its status
    pub status: ExitStatus,
    /// What it wrote to stdout
    pub stdout: String,
    /// What it wrote to stderr
    pub stderr: String,
}

/// Runs a command to its end; kills it after `limit` or when the runner is interrupted.
pub fn run(mut command: Command, input: Option<&str>, limit: Duration) -> Result<Finished> {
    let what = format!("{:?}", command.get_program());
    let stdin = if input.is_some() { Stdio::piped() } else { Stdio::null() };
    command.stdin(stdin).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().with_context(|| format!("starting {what}"))?;
    let stdout = child.stdout.take().map(|pipe| thread::spawn(|| read_all(pipe)));
    let stderr = child.stderr.take().map(|pipe| thread::spawn(|| read_all(pipe)));
    if let (Some(mut stdin), Some(input)) = (child.stdin.take(), input) {
        // A program that ends without reading says why on stderr.
        drop(stdin.write_all(input.as_bytes()));
    }
    let status = wait(&mut child, limit)?;
    let Some(status) = status else {
        kill(&mut child);
        bail!("{what} did not end within {limit:?}");
    };
    let text = |reader: Option<thread::JoinHandle<String>>| reader.and_then(|reader| reader.join().ok());
    Ok(Finished {
        status,
        stdout: text(stdout).unwrap_or_default(),
        stderr: text(stderr).unwrap_or_default(),
    })
}

fn read_all(mut pipe: impl Read) -> String {
    let mut bytes = Vec::new();
    // What was read before an error is still worth showing.
    drop(pipe.read_to_end(&mut bytes));
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Waits for a child; `None` when the limit passed or the runner was interrupted.
pub fn wait(child: &mut Child, limit: Duration) -> Result<Option<ExitStatus>> {
    let end = Instant::now() + limit;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() > end || interrupt::requested() {
            return Ok(None);
        }
        thread::sleep(Duration::from_millis(5));
    }
}

/// Kills a child and waits for it.
pub fn kill(child: &mut Child) {
    // Both fail only when it is gone already.
    drop(child.kill());
    drop(child.wait());
}

/// Feeds lines to `ip -batch`, in a namespace or in the runner's own.
pub fn ip_batch(netns: Option<&str>, lines: &str) -> Result<()> {
    let mut command = Command::new("ip");
    if let Some(netns) = netns {
        command.args(["-n", netns]);
    }
    command.args(["-batch", "-"]);
    let finished = run(command, Some(lines), Duration::from_secs(30))?;
    if !finished.status.success() {
        bail!("ip -batch in {}: {}\n{lines}", netns.unwrap_or("the root namespace"), finished.stderr.trim());
    }
    Ok(())
}

/// The last lines of a file, for reports.
#[must_use]
pub fn tail(path: &Path, lines: usize) -> String {
    let text =
        std::fs::read(path).map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).unwrap_or_default();
    let all: Vec<&str> = text.lines().collect();
    all.get(all.len().saturating_sub(lines)..).unwrap_or_default().join("\n")
}
