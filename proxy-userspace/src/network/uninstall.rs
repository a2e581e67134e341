//! What `sluice cleanup` does with the files for container runtimes.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde_json::Value;
use sluice_cni::loopback;
use sluice_cni::node_file::NodeFile;
use sluice_cni::spec::DATA;

use super::install::{CONFLIST, InstallError, PLUGIN, failed, is_same};
use crate::config::{BIN_DIR, CONF_DIR};

/// Tells the plugin that no pod can start, by removing what it knows of the node: from `run_dir`,
/// and from where the configuration for runtimes says. Returns the files that were there.
pub(super) fn withdraw_node(run_dir: &Path) -> Result<Vec<PathBuf>, InstallError> {
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

/// Files that stay, because pods may still be deleted with them: configuration, plugin, its copy
/// for the name `loopback`, and who has which address.
pub(super) fn left() -> Vec<PathBuf> {
    left_in(Path::new(CONF_DIR), Path::new(BIN_DIR), Path::new(DATA))
}

fn left_in(conf_dir: &Path, bin_dir: &Path, data: &Path) -> Vec<PathBuf> {
    let (plugin, lent) = (bin_dir.join(PLUGIN), bin_dir.join(loopback::NAME));
    let is_ours = is_same(&plugin, &lent).unwrap_or(false);
    let present = [conf_dir.join(CONFLIST), plugin, data.to_owned()].into_iter().filter(|path| path.exists());
    present.chain(is_ours.then_some(lent)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_loopback_plugin_is_listed_if_it_is_a_copy_of_ours() {
        let directory = std::env::temp_dir().join(format!("sluice-left-{}", std::process::id()));
        let (bin, data) = (directory.join("bin"), directory.join("data"));
        fs::create_dir_all(&bin).unwrap();
        let left = || left_in(&directory, &bin, &data);
        assert!(left().is_empty());
        fs::write(bin.join(PLUGIN), "ours").unwrap();
        fs::write(bin.join(loopback::NAME), "theirs").unwrap();
        assert_eq!(left(), [bin.join(PLUGIN)]);
        fs::write(bin.join(loopback::NAME), "ours").unwrap();
        assert_eq!(left(), [bin.join(PLUGIN), bin.join(loopback::NAME)]);
        fs::remove_dir_all(&directory).unwrap();
    }
}
