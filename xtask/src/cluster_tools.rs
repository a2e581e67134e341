//! `cargo xtask cluster-tools`: builds kube-apiserver, kube-controller-manager, kube-proxy and etcd from the Go module in
//! `tests/cluster-tools`, and cnitool and CNI plugins from that in `tests/cni-tools`, once for each version of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::machine::{has, root, run, target_directory};

/// Packages of Kubernetes to build, each with the name of its program.
const KUBERNETES: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-proxy"];

/// What calls CNI plugins, and plugins that are called beside ours.
const CNI: [&str; 3] = [
    "github.com/containernetworking/cni/cnitool",
    "github.com/containernetworking/plugins/plugins/ipam/host-local",
    "github.com/containernetworking/plugins/plugins/meta/bandwidth",
];

/// Builds the programs unless they are there already, and tells their directory.
pub(crate) fn build() -> Result<PathBuf> {
    let module = root().join("tests/cluster-tools");
    let directory = target_directory().join("cluster-tools/bin");
    let stamp = directory.join("go.mod+go.sum");
    let of_cni = root().join("tests/cni-tools");
    let read = |module: &Path, name: &str| {
        let path = module.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let pins = read(&module, "go.mod")?;
    let wanted = [pins.clone(), read(&module, "go.sum")?, read(&of_cni, "go.mod")?, read(&of_cni, "go.sum")?]
        .join("\n");
    if std::fs::read_to_string(&stamp).is_ok_and(|built| built == wanted) {
        return Ok(directory);
    }
    if !has_go() {
        bail!(
            "Go is missing: the API server and kube-proxy that the tests run are built from source. Install Go 1.26 or \
             later and put it into PATH"
        );
    }
    std::fs::create_dir_all(&directory).with_context(|| format!("creating {}", directory.display()))?;
    let version = version(&pins)?;
    println!(
        "building Kubernetes {version}, etcd and cnitool from tests/cluster-tools and tests/cni-tools (some minutes, once)"
    );
    let number = version.trim_start_matches('v');
    let (major, minor) = number.split_once('.').context("a version without a dot")?;
    let minor = minor.split('.').next().unwrap_or_default();
    // What the official builds stamp into their programs.
    let stamped = [("gitVersion", version), ("gitMajor", major), ("gitMinor", minor)]
        .map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}"))
        .join(" ");
    let packages = KUBERNETES.map(|name| format!("k8s.io/kubernetes/cmd/{name}"));
    run(go(&module, &format!("-s -w {stamped}")).arg("-o").arg(&directory).args(packages))?;
    run(go(&module, "-s -w").arg("-o").arg(directory.join("etcd")).arg("go.etcd.io/etcd/server/v3"))?;
    run(go(&of_cni, "-s -w").arg("-o").arg(&directory).args(CNI))?;
    std::fs::write(&stamp, wanted)?;
    Ok(directory)
}

/// Whether there is a Go to build with.
pub(crate) fn has_go() -> bool {
    has("go")
}

fn go(module: &Path, ldflags: &str) -> Command {
    let mut command = Command::new("go");
    command.current_dir(module).env("CGO_ENABLED", "0");
    command.args(["build", "-mod=readonly", "-trimpath", "-buildvcs=false", "-ldflags", ldflags]);
    command
}

/// The version of Kubernetes that go.mod pins.
fn version(pins: &str) -> Result<&str> {
    let line = pins.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes "));
    Ok(line.context("tests/cluster-tools/go.mod pins no k8s.io/kubernetes")?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_version_is_that_of_the_module() {
        assert_eq!(version("require (\n\tk8s.io/kubernetes v1.36.3\n)\n").unwrap(), "v1.36.3");
        assert!(version("require (\n\tk8s.io/api v0.36.3\n)\n").is_err());
    }
}
