//! Files for container runtimes: the plugin, its configuration, and what the daemon tells it.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde_json::{Value, json};
use sluice_cni::loopback;
use sluice_cni::node_file::NodeFile;
use sluice_cni::spec::Mode;
use tracing::info;

use crate::config::PodNetworkSettings;

/// The plugin's name, which is its type in configurations.
pub(super) const PLUGIN: &str = "sluice-cni";
/// Runtimes take the first configuration by name.
pub(super) const CONFLIST: &str = "10-sluice.conflist";
/// How much of the plugin is compared at once, in bytes.
const CHUNK: usize = 1 << 16;
/// A file that has changed less than this ago may change again without a sign.
const UNCERTAIN: Duration = Duration::from_secs(3);

/// A file could not be written.
#[derive(Debug, thiserror::Error)]
#[error("cannot {operation} {}: {source}", .path.display())]
pub struct InstallError {
    operation: &'static str,
    path: PathBuf,
    source: io::Error,
}

pub(super) fn failed(operation: &'static str, path: &Path) -> impl FnOnce(io::Error) -> InstallError {
    let path = path.to_owned();
    move |source| InstallError { operation, path, source }
}

/// Where the plugin is that is to be installed.
pub(super) fn plugin(settings: &PodNetworkSettings) -> Result<PathBuf, InstallError> {
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

/// The configuration for runtimes. Old ones read `cniVersion`, newer ones choose from
/// `cniVersions`.
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

/// Writes everything; the configuration comes last, because runtimes start pods as soon as it is
/// there. Returns whether anything changed. `now`: when this begins.
pub(super) fn install(
    settings: &PodNetworkSettings,
    plugin: &Path,
    node: &NodeFile,
    known: &mut Known,
    now: SystemTime,
) -> Result<bool, InstallError> {
    let cni = &settings.cni;
    let mut changed = install_plugin(plugin, &cni.bin_dir.join(PLUGIN), known, now)?;
    // Pods can start without it, by runtimes that bring one or need none.
    let lent = lend_loopback(plugin, &cni.bin_dir);
    changed |= replace(&NodeFile::path(&cni.run_dir), &json_bytes(node)?, 0o644)?;
    changed |= replace(&cni.conf_dir.join(CONFLIST), &json_bytes(&conflist(settings))?, 0o644)?;
    Ok(lent? || changed)
}

/// The plugin and its copy, as they were when they held the same: they are not read again before
/// one of them changes.
#[derive(Debug, Default)]
pub(super) struct Known(Option<(Stamp, Stamp)>);

/// What changes with a file's content, or when another file takes its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Stamp {
    file: (u64, u64),
    size: u64,
    mode: u32,
    modified: (i64, i64),
    /// Cannot be set by anybody.
    changed: (i64, i64),
}

impl Stamp {
    fn of(path: &Path) -> io::Result<Self> {
        let of = fs::metadata(path)?;
        Ok(Stamp {
            file: (of.dev(), of.ino()),
            size: of.size(),
            mode: of.mode() & 0o777,
            modified: (of.mtime(), of.mtime_nsec()),
            changed: (of.ctime(), of.ctime_nsec()),
        })
    }

    /// Whether a change from `now` on would show: the kernel's time for files goes by ticks, and
    /// some file systems' by seconds.
    fn is_settled(&self, now: SystemTime) -> bool {
        let changed = u64::try_from(self.changed.0).unwrap_or(0);
        now > SystemTime::UNIX_EPOCH + Duration::from_secs(changed) + UNCERTAIN
    }
}

/// Installs the plugin unless it is there. Neither file is ever in memory as a whole.
fn install_plugin(
    source: &Path,
    target: &Path,
    known: &mut Known,
    now: SystemTime,
) -> Result<bool, InstallError> {
    let stamps =
        || -> io::Result<(Stamp, Option<Stamp>)> { Ok((Stamp::of(source)?, Stamp::of(target).ok())) };
    let (of_source, of_target) = stamps().map_err(failed("read the CNI plugin", source))?;
    if known.0.is_some_and(|(source, target)| source == of_source && Some(target) == of_target) {
        return Ok(false);
    }
    known.0 = None;
    if let Some(of_target) = of_target.filter(|target| target.mode == 0o755 && target.size == of_source.size)
        && is_same(source, target).map_err(failed("read the CNI plugin", source))?
    {
        known.0 = Some((of_source, of_target)).filter(|(a, b)| a.is_settled(now) && b.is_settled(now));
        return Ok(false);
    }
    let copy = |file: &mut File| io::copy(&mut File::open(source)?, file).map(drop);
    write_whole(target, 0o755, copy)?;
    Ok(true)
}

/// Whether two files hold the same bytes.
pub(super) fn is_same(one: &Path, other: &Path) -> io::Result<bool> {
    let mut files = (
        BufReader::with_capacity(CHUNK, File::open(one)?),
        BufReader::with_capacity(CHUNK, File::open(other)?),
    );
    loop {
        let (a, b) = (files.0.fill_buf()?, files.1.fill_buf()?);
        let length = a.len().min(b.len());
        if length == 0 {
            return Ok(a.len() == b.len());
        }
        if a[..length] != b[..length] {
            return Ok(false);
        }
        files.0.consume(length);
        files.1.consume(length);
    }
}

/// containerd calls a plugin `loopback` for each pod. Where nobody has brought one, a copy of ours
/// is it, by that name: a link would lead whoever copies another one there to ours. Whatever is
/// there is left alone.
fn lend_loopback(plugin: &Path, bin_dir: &Path) -> Result<bool, InstallError> {
    let path = bin_dir.join(loopback::NAME);
    match fs::symlink_metadata(&path) {
        Ok(_) => return Ok(false),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(failed("inspect", &path)(error)),
    }
    write_whole(&path, 0o755, |file| io::copy(&mut File::open(plugin)?, file).map(drop))?;
    info!("installed sluice-cni as {}, because no such CNI plugin existed", path.display());
    Ok(true)
}

fn json_bytes(value: &impl serde::Serialize) -> Result<Vec<u8>, InstallError> {
    let text = serde_json::to_vec_pretty(value).map_err(io::Error::other);
    text.map_err(failed("write", Path::new(CONFLIST)))
}

/// Replaces a file as a whole, unless it is as it should be. A reader, or a kernel that runs it,
/// never sees a part.
fn replace(path: &Path, content: &[u8], mode: u32) -> Result<bool, InstallError> {
    let has_mode = |file: &fs::Metadata| file.permissions().mode() & 0o777 == mode;
    if fs::read(path).is_ok_and(|now| now == content) && fs::metadata(path).is_ok_and(|file| has_mode(&file))
    {
        return Ok(false);
    }
    write_whole(path, mode, |file| file.write_all(content))?;
    Ok(true)
}

/// Writes a file beside the old one, and renames it over that.
fn write_whole(
    path: &Path,
    mode: u32,
    content: impl FnOnce(&mut File) -> io::Result<()>,
) -> Result<(), InstallError> {
    let directory = path.parent().unwrap_or(Path::new("/"));
    fs::create_dir_all(directory).map_err(failed("create directory", directory))?;
    // Runtimes read files by their endings: not this one.
    let mut name = path.file_name().unwrap_or_default().to_owned();
    name.push(".new");
    let new = path.with_file_name(name);
    let write = || {
        let mut file = File::create(&new)?;
        content(&mut file)?;
        file.set_permissions(fs::Permissions::from_mode(mode))?;
        file.sync_all()?;
        fs::rename(&new, path)?;
        File::open(directory)?.sync_all()
    };
    let written = write();
    if written.is_err() {
        let _ = fs::remove_file(&new);
    }
    written.map_err(failed("write", path))
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

    /// A node's directories, with a plugin to be installed.
    struct Place {
        directory: PathBuf,
        settings: PodNetworkSettings,
        known: Known,
    }

    impl Drop for Place {
        fn drop(&mut self) {
            drop(fs::remove_dir_all(&self.directory));
        }
    }

    impl Place {
        fn new(name: &str, mode: &str) -> Self {
            let directory = scratch(name);
            fs::write(directory.join("plugin"), "program").unwrap();
            Place { settings: settings(&directory, mode), directory, known: Known::default() }
        }

        /// Some seconds after the last change of a file.
        fn install(&mut self) -> bool {
            let node = NodeFile { pod_cidrs: vec!["10.0.0.0/24".parse().unwrap()], mtu: 1450 };
            let later = SystemTime::now() + Duration::from_secs(10);
            install(&self.settings, &self.directory.join("plugin"), &node, &mut self.known, later).unwrap()
        }

        fn installed(&self) -> PathBuf {
            self.directory.join("bin/sluice-cni")
        }

        fn content(&self) -> String {
            fs::read_to_string(self.installed()).unwrap()
        }
    }

    #[test]
    fn everything_is_written_once_and_mended_when_it_differs() {
        let mut place = Place::new("mend", "bridge");
        assert!(!was_ready(&place.settings));
        assert!(place.install());
        assert!(!place.install());
        assert!(was_ready(&place.settings));
        let installed = place.installed();
        assert_eq!(fs::metadata(&installed).unwrap().permissions().mode() & 0o777, 0o755);
        fs::write(&installed, "x").unwrap();
        assert!(place.install());
        assert_eq!(place.content(), "program");
        let conf = place.directory.join("conf");
        let list: Value = serde_json::from_slice(&fs::read(conf.join(CONFLIST)).unwrap()).unwrap();
        assert_eq!(list["plugins"][0]["bridge"], "sluice0");
        assert_eq!(list["plugins"][1]["type"], "bandwidth");
        assert_eq!(fs::read_dir(conf).unwrap().count(), 1);
        withdraw(&place.settings).unwrap();
        withdraw(&place.settings).unwrap();
        assert!(place.install());
    }

    #[test]
    fn the_plugin_is_not_read_again_before_it_changes() {
        let mut place = Place::new("read", "routed");
        assert!(place.install());
        assert!(!place.install());
        let mut inotify = inotify::Inotify::init().unwrap();
        let opened = inotify::WatchMask::OPEN | inotify::WatchMask::ACCESS;
        for path in [place.directory.join("plugin"), place.installed()] {
            inotify.watches().add(path, opened).unwrap();
        }
        for _ in 0..100 {
            assert!(!place.install());
        }
        let mut buffer = [0; 4096];
        let read = inotify.read_events(&mut buffer).map(Iterator::count);
        assert_eq!(read.unwrap_err().kind(), io::ErrorKind::WouldBlock, "the plugin was read");
        // A pass that cannot know reads both.
        place.known = Known::default();
        assert!(!place.install());
        assert!(inotify.read_events(&mut buffer).unwrap().count() >= 2);
    }

    /// 16 MB, looked at as often as in a day; every 96th look has to read it.
    #[test]
    fn a_day_of_passes_keeps_no_memory() {
        let mut place = Place::new("day", "routed");
        fs::write(place.directory.join("plugin"), vec![7; 16 << 20]).unwrap();
        assert!(place.install());
        let resident = || sluice_sys::proc::resident_bytes().unwrap() >> 20;
        let before = resident();
        for pass in 0..2880 {
            if pass % 96 == 0 {
                place.known = Known::default();
            }
            assert!(!place.install());
        }
        let after = resident();
        assert!(after <= before + 4, "{before} MiB before, {after} MiB after");
    }

    #[test]
    fn a_plugin_that_was_exchanged_or_damaged_is_mended_whatever_its_times_say() {
        let mut place = Place::new("exchange", "routed");
        place.install();
        place.install();
        let (installed, source) = (place.installed(), place.directory.join("plugin"));
        let written = fs::metadata(&installed).unwrap().modified().unwrap();
        let set_back =
            |path: &Path| File::options().write(true).open(path).unwrap().set_modified(written).unwrap();
        // Of the same size, written over with its times set back.
        fs::write(&installed, "PROGRAM").unwrap();
        set_back(&installed);
        assert!(place.install());
        assert_eq!(place.content(), "program");
        place.install();
        // Another file in its place.
        fs::write(place.directory.join("other"), "PROGRAM").unwrap();
        set_back(&place.directory.join("other"));
        fs::rename(place.directory.join("other"), &installed).unwrap();
        assert!(place.install());
        assert_eq!(place.content(), "program");
        place.install();
        fs::set_permissions(&installed, fs::Permissions::from_mode(0o644)).unwrap();
        assert!(place.install());
        place.install();
        // A newer one to be installed.
        fs::write(&source, "program2").unwrap();
        assert!(place.install());
        assert_eq!(place.content(), "program2");
        place.install();
        fs::remove_file(&installed).unwrap();
        assert!(place.install());
    }

    #[test]
    fn a_file_that_has_just_changed_is_not_trusted() {
        let place = Place::new("racy", "routed");
        let stamp = Stamp::of(&place.directory.join("plugin")).unwrap();
        assert!(!stamp.is_settled(SystemTime::now()));
        assert!(stamp.is_settled(SystemTime::now() + Duration::from_secs(10)));
    }

    #[test]
    fn loopback_is_brought_where_there_is_none() {
        let mut place = Place::new("loopback", "routed");
        place.install();
        let path = place.directory.join("bin/loopback");
        assert!(
            !fs::symlink_metadata(&path).unwrap().is_symlink(),
            "who copies to it must not write to the plugin"
        );
        assert_eq!(fs::read_to_string(&path).unwrap(), "program");
        assert!(!place.install());
        fs::remove_file(&path).unwrap();
        fs::write(&path, "somebody else's").unwrap();
        assert!(!place.install());
        assert_eq!(fs::read_to_string(&path).unwrap(), "somebody else's");
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
