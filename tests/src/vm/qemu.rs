//! The process that is a VM, and its files.

use std::ffi::OsString;
use std::fs;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};

use anyhow::{Context, Result, bail};
use nix::sys::prctl::set_pdeathsig;
use nix::sys::signal::Signal;

use super::VmOptions;
use super::control::assignments;
use super::initramfs;
use super::kernel::Kernel;
use crate::process;

/// The emulator.
const PROGRAM: &str = "qemu-system-x86_64";
/// A panic, or what should be one, ends the VM. Nobody attacks it.
const KERNEL_ARGUMENTS: &str = "console=ttyS0 quiet panic=-1 oops=panic mitigations=off";

/// A VM's temporary files; they go with it.
#[derive(Debug)]
pub(super) struct Files {
    directory: PathBuf,
}

impl Files {
    /// Writes what a VM begins with. With `shell` it is for a person, whose shell begins in that
    /// directory.
    pub(super) fn create(kernel: &Kernel, options: &VmOptions, shell: Option<&Path>) -> Result<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        // A name by which `lab::prune` removes it should this process be killed.
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("sluice-lab-{}-vm{number}", std::process::id());
        let files = Self { directory: std::env::temp_dir().join(name) };
        fs::create_dir(&files.directory)
            .and_then(|()| fs::create_dir(files.control()))
            .with_context(|| format!("creating {}", files.directory.display()))?;
        initramfs::write(kernel, &files.initramfs())?;
        let text = boot_settings(kernel, options, shell);
        fs::write(files.control().join("boot"), text).context("writing the VM's settings")?;
        Ok(files)
    }

    pub(super) fn control(&self) -> PathBuf {
        self.directory.join("control")
    }

    fn initramfs(&self) -> PathBuf {
        self.directory.join("initramfs")
    }

    fn console(&self) -> PathBuf {
        self.directory.join("console")
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // Nothing can be done about files that do not go; the next prune tries again.
        drop(fs::remove_dir_all(&self.directory));
    }
}

/// What `init.sh` is told.
fn boot_settings(kernel: &Kernel, options: &VmOptions, shell: Option<&Path>) -> String {
    let modules = kernel.modules();
    let keep: Vec<String> = hidden(&options.keep).iter().map(|path| path.display().to_string()).collect();
    let mut settings = vec![
        ("name", options.name.clone()),
        ("modules", modules.display().to_string()),
        ("keep", keep.join("\n")),
        ("out", options.output.as_ref().map_or("", |_| "yes").to_owned()),
    ];
    if let Some(directory) = shell {
        let (rows, columns) = terminal_size();
        let program = if Path::new("/bin/bash").exists() { "/bin/bash" } else { "/bin/sh" };
        settings.extend([
            ("shell", program.to_owned()),
            ("directory_of_shell", directory.display().to_string()),
            ("rows", rows.to_string()),
            ("columns", columns.to_string()),
        ]);
    }
    let settings: Vec<(&str, &str)> = settings.iter().map(|(name, value)| (*name, value.as_str())).collect();
    assignments(&settings)
}

/// Those of the directories that the VM's own /tmp and /run would hide, without those below another
/// one.
fn hidden(directories: &[PathBuf]) -> Vec<&Path> {
    let mut sorted: Vec<&Path> = directories.iter().map(PathBuf::as_path).collect();
    sorted.sort();
    let mut hidden: Vec<&Path> = Vec::new();
    for path in sorted {
        let is_there = hidden.last().is_some_and(|above| path.starts_with(above));
        if !is_there && ["/tmp", "/run"].iter().any(|own| path.starts_with(own)) {
            hidden.push(path);
        }
    }
    hidden
}

/// Rows and columns of the terminal, or of the usual one.
fn terminal_size() -> (u16, u16) {
    let mut size = libc::winsize { ws_row: 0, ws_col: 0, ws_xpixel: 0, ws_ypixel: 0 };
    // SAFETY: TIOCGWINSZ writes a winsize, which `size` is.
    let failed = unsafe { libc::ioctl(libc::STDOUT_FILENO, libc::TIOCGWINSZ, &raw mut size) } != 0;
    if failed || size.ws_row == 0 { (24, 80) } else { (size.ws_row, size.ws_col) }
}

/// The arguments of the emulator. For a shell, the console is on the terminal.
fn arguments(kernel: &Kernel, options: &VmOptions, files: &Files, shell: bool) -> Vec<OsString> {
    let mut arguments: Vec<OsString> = Vec::new();
    let mut add = |option: &str, value: OsString| arguments.extend([option.into(), value]);
    add("-machine", "q35".into());
    // Where /dev/kvm is, it need not work, and then hangs: emulation is the same everywhere.
    add("-accel", "tcg".into());
    add("-cpu", "max".into());
    add("-smp", options.cpus.to_string().into());
    add("-m", options.memory.to_string().into());
    add("-kernel", kernel.image().into());
    add("-initrd", files.initramfs().into());
    add("-append", KERNEL_ARGUMENTS.into());
    add("-display", "none".into());
    let mut shares = vec![("root", PathBuf::from("/"), ",readonly=on"), ("control", files.control(), "")];
    shares.extend(options.output.clone().map(|output| ("out", output, "")));
    for (name, path, extra) in shares {
        let path = escaped(&path);
        add(
            "-fsdev",
            with("local,id=", &[name, ",security_model=none,multidevs=remap", extra, ",path="], path),
        );
        add("-device", format!("virtio-9p-pci,fsdev={name},mount_tag={name}").into());
    }
    for (index, port) in options.ports.iter().enumerate() {
        let (local, remote) = (escaped(port.local()), escaped(port.remote()));
        let mut value = with("dgram,id=eth", &[&index.to_string(), ",local.type=unix,local.path="], local);
        value.push(",remote.type=unix,remote.path=");
        value.push(remote);
        add("-netdev", value);
        let mac = port.mac();
        add("-device", format!("virtio-net-pci,netdev=eth{index},mac={mac},romfile=").into());
    }
    if shell {
        add("-serial", "mon:stdio".into());
    } else {
        add("-serial", with("file:", &[], escaped(&files.console())));
        add("-monitor", "none".into());
    }
    arguments.extend(["-nodefaults", "-no-user-config", "-no-reboot"].map(OsString::from));
    arguments
}

fn with(first: &str, more: &[&str], last: OsString) -> OsString {
    let mut text = OsString::from(first);
    for part in more {
        text.push(part);
    }
    text.push(last);
    text
}

/// A path as a part of an option, where a comma would end it.
fn escaped(path: &Path) -> OsString {
    path.to_string_lossy().replace(',', ",,").into()
}

/// A running emulator. It is killed when this is dropped.
#[derive(Debug)]
pub(super) struct Qemu {
    child: Child,
    console: PathBuf,
    errors: PathBuf,
}

impl Qemu {
    pub(super) fn start(kernel: &Kernel, options: &VmOptions, files: &Files, shell: bool) -> Result<Self> {
        let errors = files.directory.join("errors");
        let mut command = Command::new(PROGRAM);
        command.args(arguments(kernel, options, files, shell));
        if !shell {
            let file = fs::File::create(&errors).with_context(|| format!("creating {}", errors.display()))?;
            command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(file);
            // A key that interrupts this process is no matter of the VM: `Drop` ends it.
            command.process_group(0);
        }
        // SAFETY: the closure makes only a system call.
        unsafe { command.pre_exec(|| Ok(set_pdeathsig(Signal::SIGKILL)?)) };
        let child = command
            .spawn()
            .with_context(|| format!("starting {PROGRAM} (Debian's package qemu-system-x86)"))?;
        Ok(Self { child, console: files.console(), errors })
    }

    /// Fails if it ended.
    pub(super) fn check(&mut self) -> Result<()> {
        let Some(status) = self.child.try_wait()? else { return Ok(()) };
        let console = fs::read(&self.console).unwrap_or_default();
        let (why, console) = cause(&String::from_utf8_lossy(&console));
        bail!("{why} ({status}):\n{}{console}", process::tail(&self.errors, 20))
    }

    /// The end of what it wrote to its console.
    pub(super) fn console(&self) -> String {
        process::tail(&self.console, 40)
    }

    /// Waits for its end.
    pub(super) fn wait(mut self) -> Result<()> {
        let status = self.child.wait()?;
        if !status.success() {
            bail!("{PROGRAM}: {status}");
        }
        Ok(())
    }
}

/// Why a VM ended, and the lines of its console that say more.
fn cause(console: &str) -> (&'static str, String) {
    let lines: Vec<&str> = console.lines().collect();
    let panicked = lines.iter().position(|line| line.contains("Kernel panic"));
    let (why, first, count) = match panicked {
        // The line before often says what the panic is about.
        Some(line) => ("its kernel panicked", line.saturating_sub(5), 30),
        None => ("it ended by itself", lines.len().saturating_sub(30), 30),
    };
    let shown: Vec<&str> = lines.into_iter().skip(first).take(count).collect();
    (why, shown.join("\n"))
}

impl Drop for Qemu {
    fn drop(&mut self) {
        process::kill(&mut self.child);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_hidden_directories_are_kept_and_each_once() {
        let given = ["/tmp/w/target", "/work", "/tmp/w", "/tmpfs", "/tmp/w", "/run/x"].map(PathBuf::from);
        assert_eq!(hidden(&given), [Path::new("/run/x"), Path::new("/tmp/w")]);
    }

    #[test]
    fn a_panic_is_told_from_another_end() {
        let (why, shown) =
            cause(&format!("{}Kernel panic - x\n{}", "before\n".repeat(50), "after\n".repeat(50)));
        assert_eq!(why, "its kernel panicked");
        assert!(shown.starts_with("before\n") && shown.contains("Kernel panic - x\nafter"), "{shown}");
        assert_eq!(
            cause("sluice-vm: no share root\n"),
            ("it ended by itself", "sluice-vm: no share root".to_owned())
        );
    }

    #[test]
    fn commas_in_paths_do_not_end_them() {
        assert_eq!(escaped(Path::new("/a,b/c")), "/a,,b/c");
        assert_eq!(with("file:", &["x", "y"], "z".into()), "file:xyz");
    }
}
