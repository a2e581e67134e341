//! Virtual machines with stock kernels, whose root is this machine's own: for what this machine's
//! kernel lacks, and for clusters of real nodes.
//!
//! A [`Vm`] boots a [`Kernel`] under QEMU and then runs commands, several at a time where that is
//! wanted. Its root is this machine's file system, read-only, below an overlay in its memory: every
//! program here is there, and nothing that it writes comes back but what is in the shared directory
//! `/out`. A [`switch::Switch`] links several.
//!
//! Nothing of it touches this machine's network. A VM and its files go with its [`Vm`].

mod control;
mod cpio;
mod initramfs;
mod kernel;
pub mod modules;
mod qemu;
mod script;
pub mod switch;

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

use crate::interrupt;
use control::Control;
pub use control::{Output, Running};
pub use kernel::Kernel;
use qemu::{Files, Qemu};
pub use script::Command;
use switch::Port;

/// Between two looks at what the VM has written.
const POLL: Duration = Duration::from_millis(20);

/// How a VM is made.
#[derive(Debug, Clone)]
pub struct VmOptions {
    /// Its host name
    pub name: String,
    /// Memory, in MiB: what it writes to its root and to /tmp is in there too
    pub memory: u32,
    /// CPUs
    pub cpus: u32,
    /// The directory of this machine that it finds as /out
    pub output: Option<PathBuf>,
    /// Directories of this machine that it sees although they are below /tmp or /run, which are its
    /// own
    pub keep: Vec<PathBuf>,
    /// Its network interfaces, eth0 and so on
    pub ports: Vec<Port>,
    /// How long it may take until it runs commands
    pub boot_limit: Duration,
}

impl Default for VmOptions {
    fn default() -> Self {
        Self {
            name: "vm".to_owned(),
            memory: 2048,
            cpus: 2,
            output: None,
            keep: Vec::new(),
            ports: Vec::new(),
            boot_limit: Duration::from_secs(180),
        }
    }
}

/// What a finished command left.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finished {
    /// Its exit status; 128 and the number of the signal that ended it
    pub status: i32,
    /// What it wrote to stdout
    pub stdout: String,
    /// What it wrote to stderr
    pub stderr: String,
}

/// A running VM. It is killed when this is dropped, and when the thread that started it ends.
#[derive(Debug)]
pub struct Vm {
    name: String,
    qemu: Qemu,
    control: Control,
    // Last, so that nothing uses the files any more when they are removed.
    _files: Files,
}

impl Vm {
    /// Boots a VM, and waits until it runs commands.
    pub fn start(kernel: &Kernel, options: &VmOptions) -> Result<Self> {
        let mut vm = Self::power_on(kernel, options)?;
        vm.await_boot(options.boot_limit)?;
        Ok(vm)
    }

    /// Boots several at the same time.
    pub fn start_all(kernel: &Kernel, options: &[VmOptions]) -> Result<Vec<Self>> {
        let vms: Result<Vec<Self>> = options.iter().map(|options| Self::power_on(kernel, options)).collect();
        let mut vms = vms?;
        for (vm, options) in vms.iter_mut().zip(options) {
            vm.await_boot(options.boot_limit)?;
        }
        Ok(vms)
    }

    fn power_on(kernel: &Kernel, options: &VmOptions) -> Result<Self> {
        let files = Files::create(kernel, options, None)?;
        let qemu = Qemu::start(kernel, options, &files, false)?;
        let control = Control::new(files.control());
        Ok(Self { name: options.name.clone(), qemu, control, _files: files })
    }

    fn await_boot(&mut self, limit: Duration) -> Result<()> {
        let end = Instant::now() + limit;
        while !self.control.is_ready() {
            self.check()?;
            if Instant::now() > end {
                bail!(
                    "the VM {} did not boot within {limit:?}; its console:\n{}",
                    self.name,
                    self.qemu.console()
                );
            }
            interrupt::sleep(POLL)?;
        }
        Ok(())
    }

    /// Fails if it ended by itself, as it does when its kernel panics.
    pub fn check(&mut self) -> Result<()> {
        self.qemu.check().with_context(|| format!("the VM {}", self.name))
    }

    /// Runs a command to its end; one that does not end within `limit` is killed, and an error.
    pub fn run(&mut self, command: &Command, limit: Duration) -> Result<Finished> {
        let mut running = self.spawn(command)?;
        match self.wait(&mut running, limit, |_, _| {})? {
            Some(status) => Ok(Finished {
                status,
                stdout: running.everything(Output::Stdout),
                stderr: running.everything(Output::Stderr),
            }),
            None => {
                let (stdout, stderr) =
                    (running.everything(Output::Stdout), running.everything(Output::Stderr));
                bail!("{command} did not end within {limit:?} in the VM {}:\n{stdout}{stderr}", self.name)
            }
        }
    }

    /// The same, and any status but 0 is an error. Returns what it wrote to stdout.
    pub fn run_ok(&mut self, command: &Command, limit: Duration) -> Result<String> {
        let Finished { status, stdout, stderr } = self.run(command, limit)?;
        if status != 0 {
            bail!("{command} ended with status {status} in the VM {}:\n{stdout}{stderr}", self.name);
        }
        Ok(stdout)
    }

    /// Loads modules, with those that they need.
    pub fn load(&mut self, modules: &[&str]) -> Result<()> {
        let argv = ["modprobe", "-a"].iter().chain(modules).copied();
        self.run_ok(&Command::new(argv), Duration::from_secs(120)).map(drop)
    }

    /// Starts a command, and does not wait for its end: others may run beside it.
    pub fn spawn(&mut self, command: &Command) -> Result<Running> {
        self.check()?;
        self.control.start(&command.script())
    }

    /// Waits for the end of a command, and hands over what it writes meanwhile; `None` when the
    /// limit passed, or when this process is asked to end: then it is killed.
    pub fn wait(
        &mut self,
        running: &mut Running,
        limit: Duration,
        mut written: impl FnMut(Output, &[u8]),
    ) -> Result<Option<i32>> {
        let end = Instant::now() + limit;
        loop {
            // In this order: what was written before the status is read after it.
            let status = running.status()?;
            for output in [Output::Stdout, Output::Stderr] {
                let bytes = running.news(output);
                if !bytes.is_empty() {
                    written(output, &bytes);
                }
            }
            if status.is_some() {
                return Ok(status);
            }
            self.check()?;
            if Instant::now() > end || interrupt::requested() {
                running.kill()?;
                return Ok(None);
            }
            std::thread::sleep(POLL);
        }
    }
}

/// A VM for a person: a shell on this process's terminal, until it ends.
pub fn shell(kernel: &Kernel, options: &VmOptions, directory: &Path) -> Result<()> {
    let files = Files::create(kernel, options, Some(directory))?;
    Qemu::start(kernel, options, &files, true)?.wait()
}
