//! What `sluice cleanup` does with the files for container runtimes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_cni::node_file::NodeFile;
use sluice_cni::spec::DATA;

use super::install::{CONFLIST, InstallError, PLUGIN, failed};
use crate::config::{BIN_DIR, CONF_DIR};

/// Tells the plugin that no pod can start, by removing what it knows of the node: from `run_dir`,
/// and from where the configuration for runtimes says. Returns the files that were there.
pub fn withdraw_node(run_dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
    let mut directories = vec![run_dir.to_owned()];
    directories.extend(told(Path::new(CONF_DIR)).filter(|told| told != run_dir));
    let mut removed = Vec::new();
    for path in directories.iter().map(|directory| NodeFile::path(directory)) {
        match fs::remove_file(&path) {
            Ok(()) => removed.push(path),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed("remove", &path)(error)),
        }
    }
    Ok(removed)
}

/// The directory that runtimes are told of.
fn told(conf_dir: &Path) -> Option<PathBuf> {
    let text = fs::read(conf_dir.join(CONFLIST)).ok()?;
    let list: Value = serde_json::from_slice(&text).ok()?;
    list["plugins"][0]["runDir"].as_str().map(PathBuf::from)
}

/// Files that stay, because pods may still be deleted with them: configuration, plugin, and who has
/// which address.
pub fn left() -> Vec<PathBuf> {
    let all = [Path::new(CONF_DIR).join(CONFLIST), Path::new(BIN_DIR).join(PLUGIN), PathBuf::from(DATA)];
    all.into_iter().filter(|path| path.exists()).collect()
}
