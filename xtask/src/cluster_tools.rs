//! `cargo xtask cluster-tools`: builds kube-apiserver, kube-controller-manager, kube-proxy and etcd
//! from the Go module in `tests/cluster-tools/VERSION`, and cnitool, gocni and CNI plugins from
//! that in `tests/cni-tools`, once for each version of them.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::machine::{has, root, run, target_directory};

/// Packages of Kubernetes to build, each with the name of its program.
const KUBERNETES: [&str; 3] = ["kube-apiserver", "kube-controller-manager", "kube-proxy"];

/// The module of these.
const CNI_MODULE: &str = "tests/cni-tools";

/// What calls CNI plugins, and plugins that are called beside ours.
const CNI: [&str; 4] = [
    "./gocni",
    "github.com/containernetworking/cni/cnitool",
    "github.com/containernetworking/plugins/plugins/ipam/host-local",
    "github.com/containernetworking/plugins/plugins/meta/bandwidth",
];

/// A version of Kubernetes that the tests can run as a cluster.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Kubernetes {
    /// Default release for comparisons
    #[default]
    #[value(name = "1.36.3")]
    V1_36,
    #[value(name = "1.37.2")]
    V1_37,
}

impl Kubernetes {
    /// The number.
    pub(crate) fn number(self) -> &'static str {
        match self {
            Self::V1_36 => "1.36.3",
            Self::V1_37 => "1.37.2",
        }
    }

    /// The Go module that pins it.
    fn module(self) -> PathBuf {
        root().join("tests/cluster-tools").join(self.number())
    }

    /// Where its programs are built.
    fn directory(self) -> PathBuf {
        let all = target_directory().join("cluster-tools");
        // Tests of other crates look for the usual version without asking xtask.
        if self == Self::default() { all.join("bin") } else { all.join(self.number()) }
    }
}

/// Arguments of the command, and of others that need a cluster.
#[derive(Debug, Clone, Copy, Default, clap::Args)]
// Those of other commands are a group of this name, too.
#[group(skip)]
pub(crate) struct Arguments {
    /// Kubernetes version whose API server and kube-proxy are built and run
    #[arg(long, value_name = "VERSION", value_enum, default_value_t)]
    pub(crate) kubernetes: Kubernetes,
}

/// Builds the programs of a version unless they are there already, and tells their directory.
pub(crate) fn build(kubernetes: Kubernetes) -> Result<PathBuf> {
    let module = kubernetes.module();
    let directory = kubernetes.directory();
    let stamp = directory.join("go.mod+go.sum");
    let of_cni = root().join(CNI_MODULE);
    let read = |module: &Path, name: &str| {
        let path = module.join(name);
        std::fs::read_to_string(&path).with_context(|| format!("reading {}", path.display()))
    };
    let of_cni = ["go.mod", "go.sum", "gocni/main.go"].map(|name| read(&of_cni, name));
    let mut wanted = vec![read(&module, "go.mod")?, read(&module, "go.sum")?];
    wanted.extend(of_cni.into_iter().collect::<Result<Vec<_>>>()?);
    let wanted = wanted.join("\n");
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
    let number = kubernetes.number();
    println!(
        "building Kubernetes {number}, etcd and cnitool from tests/cluster-tools/{number} and tests/cni-tools (some \
         minutes, once)"
    );
    let packages = KUBERNETES.map(|name| format!("k8s.io/kubernetes/cmd/{name}"));
    run(go(&module, &format!("-s -w {}", stamped(number)?)).arg("-o").arg(&directory).args(packages))?;
    run(go(&module, "-s -w").arg("-o").arg(directory.join("etcd")).arg("go.etcd.io/etcd/server/v3"))?;
    run(go(&root().join(CNI_MODULE), "-s -w").arg("-o").arg(&directory).args(CNI))?;
    std::fs::write(&stamp, wanted)?;
    Ok(directory)
}

/// What the official builds stamp into their programs, as flags of the linker.
fn stamped(number: &str) -> Result<String> {
    let (major, rest) = number.split_once('.').context("a version without a dot")?;
    let minor = rest.split('.').next().unwrap_or_default();
    let version = format!("v{number}");
    let values = [("gitVersion", version.as_str()), ("gitMajor", major), ("gitMinor", minor)];
    Ok(values.map(|(name, value)| format!("-X k8s.io/component-base/version.{name}={value}")).join(" "))
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

#[cfg(test)]
mod tests {
    use clap::ValueEnum;

    use super::*;

    #[test]
    fn each_version_has_a_module_that_pins_it_and_a_directory_of_its_own() {
        let mut directories = Vec::new();
        for version in Kubernetes::value_variants() {
            let pins = std::fs::read_to_string(version.module().join("go.mod")).unwrap();
            let pinned = pins.lines().find_map(|line| line.trim().strip_prefix("k8s.io/kubernetes v"));
            assert_eq!(pinned, Some(version.number()));
            let name = version.to_possible_value().unwrap().get_name().to_owned();
            assert_eq!(name, version.number());
            directories.push(version.directory());
        }
        directories.dedup();
        assert_eq!(directories.len(), Kubernetes::value_variants().len());
    }

    #[test]
    fn programs_are_stamped_as_official_ones_are() {
        let flags = stamped("1.37.2").unwrap();
        for part in ["version.gitVersion=v1.37.2", "version.gitMajor=1 ", "version.gitMinor=37"] {
            assert!(flags.contains(part), "{flags}");
        }
    }
}
