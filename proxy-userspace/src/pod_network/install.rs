//! Files for container runtimes: the plugin, its configuration, and what the daemon tells it.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use sluice_cni::node_file::NodeFile;
use sluice_cni::spec::Mode;

use crate::config::PodNetworkSettings;

/// The plugin's name, which is its type in configurations.
const PLUGIN: &str = "sluice-cni";
/// Runtimes take the first configuration by name.
const CONFLIST: &str = "10-sluice.conflist";

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}", .path.display())]
pub struct InstallError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError { operation, path, source }
}

/// Where the plugin is that is to be installed.
pub fn plugin(settings: &PodNetworkSettings) -> Result<PathBuf, InstallError> {
    let path = match &settings.cni.plugin {
        Some(path) => path.clone(),
        None => {
            let own = std::env::current_exe().map_err(failed("find", Path::new("/proc/self/exe")))?;
            own.with_file_name(PLUGIN)
        }
    };
    File::open(&path).map_err(failed("read the CNI plugin", &path))?;
    Ok(path)
}

/// The configuration for runtimes. Old ones read `cniVersion`, newer ones choose from `cniVersions`.
pub(super) fn conflist(settings: &PodNetworkSettings) -> Value {
    let cni = &settings.cni;
    let mut own = json!({
        "type": PLUGIN,
        "mode": match settings.mode { Mode::Routed => "routed", Mode::Bridge => "bridge" },
        "dataDir": cni.data_dir,
        "runDir": cni.run_dir,
        "capabilities": {"ips": true, "mac": true, "portMappings": true},
    });
    if settings.mode == Mode::Bridge {
        own["bridge"] = json!(settings.bridge);
    }
    let mut plugins = vec![own];
    plugins.extend(cni.chain.iter().cloned());
    json!({
        "cniVersion": "1.0.0",
        "cniVersions": ["0.3.1", "0.4.0", "1.0.0", "1.1.0"],
        "name": cni.name,
        "plugins": plugins,
    })
}

/// Whether the plugin has been told of the node since the last boot.
pub(super) fn was_ready(settings: &PodNetworkSettings) -> bool {
    NodeFile::path(&settings.cni.run_dir).exists()
}

/// Takes the configuration away that was written before the last boot: pods cannot start yet.
pub(super) fn withdraw(settings: &PodNetworkSettings) -> Result<(), InstallError> {
    let path = settings.cni.conf_dir.join(CONFLIST);
    match fs::remove_file(&path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed("remove", &path)(error)),
        _ => Ok(()),
    }
}

/// Writes everything; the configuration comes last, because runtimes start pods as soon as it is there. Returns whether
/// anything changed.
pub(super) fn install(
    settings: &PodNetworkSettings,
    plugin: &Path,
    node: &NodeFile,
) -> Result<bool, InstallError> {
    let cni = &settings.cni;
    let binary = fs::read(plugin).map_err(failed("read the CNI plugin", plugin))?;
    let mut changed = replace(&cni.bin_dir.join(PLUGIN), &binary, 0o755)?;
    changed |= replace(&NodeFile::path(&cni.run_dir), &json_bytes(node)?, 0o644)?;
    changed |= replace(&cni.conf_dir.join(CONFLIST), &json_bytes(&conflist(settings))?, 0o644)?;
    Ok(changed)
}

fn json_bytes(value: &impl serde::Serialize) -> Result<Vec<u8>, InstallError> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    text.map_err(failed("write", Path::new(CONFLIST)))
}

/// Replaces a file as a whole, unless it is as it should be. A reader, or a kernel that runs it, never sees a part.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, InstallError> {
    let has_mode = |file: &fs::Metadata| file.permissions().mode() & 0o777 == mode;
    if fs::read(path).is_ok_and(|now| now == content) && fs::metadata(path).is_ok_and(|file| has_mode(&file))
    {
        return Ok(false);
    }
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(failed("make directory", directory))?;
    // Runtimes read files by their endings: not this one.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(content)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(directory)?.sync_all()
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.map_err(failed("write", path))?;
    Ok(true)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Flags, raw::KubeProxyConfiguration, resolve};

    fn settings(directory: &Path, mode: &str) -> PodNetworkSettings {
        let mut config = KubeProxyConfiguration::default();
        let section = &mut config.sluice.pod_network;
        (section.backend, section.mode) = ("vxlan".into(), mode.into());
        let path = |name: &str| directory.join(name).display().to_string();
        section.cni.bin_dir = path("bin");
        section.cni.conf_dir = path("conf");
        section.cni.run_dir = path("run");
        section.cni.chain = Some(vec![json!({"type": "bandwidth", "capabilities": {"bandwidth": true}})]);
        resolve(config, &Flags::default(), "n1").unwrap().pod_network.unwrap()
    }

    fn scratch(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("sluice-install-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir_all(&path).unwrap();
        path
    }

    #[test]
    fn everything_is_written_once_and_mended_when_it_differs() {
        let directory = scratch("mend");
        let settings = settings(&directory, "bridge");
        let plugin = directory.join("plugin");
        fs::write(&plugin, "program").unwrap();
        let node = NodeFile { pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()], mtu: 1450 };
        assert!(!was_ready(&settings));
        assert!(install(&settings, &plugin, &node).unwrap());
        assert!(!install(&settings, &plugin, &node).unwrap());
        assert!(was_ready(&settings));
        let installed = directory.join("bin/sluice-cni");
        assert_eq!(fs::metadata(&installed).unwrap().permissions().mode() & 0o777, 0o755);
        fs::write(&installed, "x").unwrap();
        assert!(install(&settings, &plugin, &node).unwrap());
        assert_eq!(fs::read_to_string(&installed).unwrap(), "program");
        let list: Value =
            serde_json::from_slice(&fs::read(directory.join("conf").join(CONFLIST)).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["bridge"], "sluice0");
        assert_eq!(list["plugins"][1]["type"], "bandwidth");
        assert_eq!(fs::read_dir(directory.join("conf")).unwrap().count(), 1);
        withdraw(&settings).unwrap();
        withdraw(&settings).unwrap();
        assert!(install(&settings, &plugin, &node).unwrap());
        fs::remove_dir_all(directory).unwrap();
    }

    #[test]
    fn what_cannot_be_written_leaves_the_old_file_and_no_part() {
        let directory = scratch("full");
        let path = directory.join("file");
        fs::write(&path, "old").unwrap();
        // Its place is taken by a directory.
        fs::create_dir(directory.join("file.new")).unwrap();
        let error = replace(&path, b"new", 0o644).unwrap_err().to_string();
        assert!(error.contains("cannot write") && error.contains("file"), "{error}");
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        fs::remove_dir_all(directory).unwrap();
    }
}
