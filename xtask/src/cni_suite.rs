//! The integration tests of github.com/containernetworking/plugins with our plugin in the place of
//! their `ptp` and `bridge`, before their own `bandwidth` and `host-local`, called by `cnitool`.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, ensure};

use crate::cluster_tools::{self, Kubernetes};
use crate::machine::{self, Programs, root, target_directory};

/// Runs them; fails unless all pass.
pub(crate) fn run(programs: &Programs) -> Result<()> {
    let tools = cluster_tools::build(Kubernetes::default())?;
    let directory = target_directory().join("cni-suite");
    if directory.exists() {
        fs::remove_dir_all(&directory).with_context(|| format!("removing {}", directory.display()))?;
    }
    // The tests look for plugins beside themselves, and Go's own copy is read-only.
    copy(&source()?, &directory)?;
    let bin = directory.join("bin");
    fs::create_dir_all(&bin)?;
    let ours = programs.sluice.with_file_name("sluice-cni");
    for (from, name) in [(&ours, "ptp"), (&ours, "bridge")] {
        fs::copy(from, bin.join(name)).with_context(|| format!("copying {}", from.display()))?;
    }
    for name in ["host-local", "bandwidth"] {
        fs::copy(tools.join(name), bin.join(name)).with_context(|| format!("copying {name}"))?;
    }
    let path = std::env::var("PATH").unwrap_or_default();
    let mut command = Command::new("go");
    command.args(["test", "-count=1", "./integration/"]).current_dir(&directory);
    command.env("PATH", format!("{}:{path}", tools.display()));
    machine::run(&mut command)
}

/// Where Go keeps the module that tests/cni-tools pins.
fn source() -> Result<PathBuf> {
    let mut command = Command::new("go");
    command.args(["list", "-mod=readonly", "-m", "-f", "{{.Dir}}", "github.com/containernetworking/plugins"]);
    let output = command.current_dir(root().join("tests/cni-tools")).stderr(Stdio::inherit()).output()?;
    let path = String::from_utf8(output.stdout)?.trim().to_owned();
    ensure!(output.status.success() && !path.is_empty(), "go does not say where the plugins' source is");
    Ok(path.into())
}

fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to).with_context(|| format!("making {}", to.display()))?;
    for entry in fs::read_dir(from).with_context(|| format!("reading {}", from.display()))? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            // By content: the original's mode would not let it be removed.
            fs::write(&target, fs::read(entry.path())?)
                .with_context(|| format!("writing {}", target.display()))?;
        }
    }
    Ok(())
}
