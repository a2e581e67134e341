//! The real kube-proxy, with which some tests compare.

use std::path::{Path, PathBuf};

/// The program that SLUICE_KUBE_PROXY names, which must be there, or the one that `cargo xtask
/// cluster-tools` builds. Without it: a skip that says so.
pub(crate) fn kube_proxy() -> Option<PathBuf> {
    if let Some(named) = std::env::var_os("SLUICE_KUBE_PROXY").map(PathBuf::from) {
        assert!(named.is_file(), "SLUICE_KUBE_PROXY: there is no program {}", named.display());
        return Some(named);
    }
    let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("../target/cluster-tools/bin/kube-proxy");
    if built.is_file() {
        return Some(built);
    }
    sluice_skips::skip("kube-proxy", "cargo xtask cluster-tools builds one, SLUICE_KUBE_PROXY names another");
    None
}
