//! The programs of a cluster, as `cargo xtask cluster-tools` builds them.

use std::path::{Path, PathBuf};

use anyhow::{Context, Result, ensure};

/// Where the programs are.
#[derive(Debug, Clone)]
pub struct Tools {
    /// etcd
    pub etcd: PathBuf,
    /// kube-apiserver
    pub apiserver: PathBuf,
    /// kube-controller-manager
    pub controller_manager: PathBuf,
    /// kube-proxy
    pub kube_proxy: PathBuf,
    /// cnitool, which calls CNI plugins as container runtimes do, by the same library
    pub cnitool: PathBuf,
    /// gocni, which calls them by the library of containerd, nerdctl and Nomad
    pub gocni: PathBuf,
}

impl Tools {
    /// The programs of a directory; all must be there.
    pub fn of(dir: &Path) -> Result<Self> {
        // Its programs run in directories of their own.
        let dir = dir.canonicalize().with_context(|| format!("no directory {}", dir.display()))?;
        let program = |name: &str| {
            let path = dir.join(name);
            ensure!(
                path.is_file(),
                "no {name} in {}: build it with cargo xtask cluster-tools",
                dir.display()
            );
            Ok(path)
        };
        Ok(Self {
            etcd: program("etcd")?,
            apiserver: program("kube-apiserver")?,
            controller_manager: program("kube-controller-manager")?,
            kube_proxy: program("kube-proxy")?,
            cnitool: program("cnitool")?,
            gocni: program("gocni")?,
        })
    }
}
