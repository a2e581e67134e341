//! Is the written image good? Verifies its digests, then runs it in namespaces of its own, on a
//! root file system that holds only the image, with the capabilities that deploy/daemonset.yaml
//! gives it.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use sluice_tests::agent::http;
use sluice_tests::process;

use super::archive::{blob_path, digest};
use crate::machine;

const LIMIT: Duration = Duration::from_secs(20);

/// An image whose digests are right.
#[derive(Debug)]
pub(super) struct Unpacked {
    /// The image's configuration.
    pub(super) config: Value,
    /// Its only layer, a tar file.
    pub(super) layer: Vec<u8>,
}

/// Checks an archive.
pub(super) fn run(archive: &Path) -> Result<()> {
    machine::prepare()?;
    let bytes = std::fs::read(archive).with_context(|| format!("cannot read {}", archive.display()))?;
    let unpacked = verify(&bytes)?;
    println!("check: digests and sizes are right");
    let root = std::env::temp_dir().join(format!("sluice-image-{}", std::process::id()));
    std::fs::create_dir(&root).with_context(|| format!("cannot create {}", root.display()))?;
    // Namespaces belong to a thread; this one's end with it, and what is mounted in them too.
    let running = std::thread::scope(|scope| scope.spawn(|| run_in(&root, &unpacked)).join());
    std::fs::remove_dir(&root).with_context(|| format!("cannot remove {}", root.display()))?;
    running.map_err(|_| anyhow::anyhow!("the check panicked"))?
}

/// Follows the layout from its index, comparing every size and digest.
pub(super) fn verify(archive: &[u8]) -> Result<Unpacked> {
    let files = files(archive)?;
    let file = |path: &str| files.get(Path::new(path)).with_context(|| format!("the archive has no {path}"));
    let layout: Value = serde_json::from_slice(file("oci-layout")?)?;
    ensure!(layout["imageLayoutVersion"] == "1.0.0", "oci-layout says {layout}");
    let blob = |descriptor: &Value| -> Result<&Vec<u8>> {
        let wanted = descriptor["digest"].as_str().context("a descriptor without a digest")?;
        let bytes = file(&blob_path(wanted))?;
        let found = digest(bytes);
        ensure!(found == wanted, "the blob {wanted} has the digest {found}");
        ensure!(descriptor["size"] == bytes.len(), "the blob {wanted} has {} bytes", bytes.len());
        Ok(bytes)
    };
    let index: Value = serde_json::from_slice(file("index.json")?)?;
    let manifest: Value = serde_json::from_slice(blob(&index["manifests"][0])?)?;
    let config: Value = serde_json::from_slice(blob(&manifest["config"])?)?;
    let mut layer = Vec::new();
    flate2::read::GzDecoder::new(&blob(&manifest["layers"][0])?[..]).read_to_end(&mut layer)?;
    let found = digest(&layer);
    ensure!(config["rootfs"]["diff_ids"][0] == found.as_str(), "the unpacked layer has the digest {found}");
    Ok(Unpacked { config, layer })
}

fn files(archive: &[u8]) -> Result<BTreeMap<PathBuf, Vec<u8>>> {
    let mut files = BTreeMap::new();
    for entry in tar::Archive::new(archive).entries()? {
        let mut entry = entry?;
        let mut bytes = Vec::new();
        entry.read_to_end(&mut bytes)?;
        files.insert(entry.path()?.into_owned(), bytes);
    }
    Ok(files)
}

/// In a thread of its own, which this leaves in other namespaces.
fn run_in(root: &Path, image: &Unpacked) -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNS | CloneFlags::CLONE_NEWNET).context("cannot create namespaces")?;
    machine::run(Command::new("ip").args(["link", "set", "lo", "up"]))?;
    let nothing = None::<&str>;
    mount(nothing, "/", nothing, MsFlags::MS_REC | MsFlags::MS_PRIVATE, nothing)?;
    mount(Some("tmpfs"), root, Some("tmpfs"), MsFlags::empty(), nothing)?;
    tar::Archive::new(&image.layer[..]).unpack(root)?;
    for directory in ["proc", "manifests"] {
        std::fs::create_dir(root.join(directory))?;
    }
    mount(Some("tmpfs"), root, nothing, MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY, nothing)?;
    mount(Some("proc"), &root.join("proc"), Some("proc"), MsFlags::empty(), nothing)?;
    let entrypoint = image.config["config"]["Entrypoint"][0].as_str().context("no entrypoint")?;
    for program in [entrypoint, "/usr/local/bin/kube-proxy"] {
        machine::run(contained(root, program).arg("--version"))?;
    }
    machine::run(contained(root, "/usr/local/bin/sluice-cni").env("CNI_COMMAND", "VERSION"))?;
    let daemon = ["run", "--manifests", "/manifests", "--hostname-override", "image-check"];
    let mut child = contained(root, entrypoint).args(daemon).spawn()?;
    let outcome = serves_and_ends(&mut child);
    process::kill(&mut child);
    outcome
}

/// A program of the image as a container's: nothing but the image, no new privileges, two
/// capabilities.
fn contained(root: &Path, program: &str) -> Command {
    let mut command = Command::new("setpriv");
    // The pod has NET_ADMIN only; chroot needs the other.
    command.args(["--no-new-privs", "--bounding-set", "-all,+net_admin,+sys_chroot", "chroot"]);
    command.arg(root).arg(program).env_clear().env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin");
    command
}

fn serves_and_ends(daemon: &mut Child) -> Result<()> {
    let end = Instant::now() + LIMIT;
    let has = |url: &str, text: &str| {
        http::get(url).is_ok_and(|answer| answer.status == 200 && answer.body.contains(text))
    };
    // The pass says that the rules are in the kernel.
    while !(has("http://127.0.0.1:10256/livez", "") && has("http://127.0.0.1:10249/debug/syncs", "\"full\""))
    {
        if let Some(status) = daemon.try_wait()? {
            bail!("the image's daemon ended: {status}");
        }
        ensure!(Instant::now() < end, "the image's daemon does not answer and synchronize within {LIMIT:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
    println!("check: the image runs alone, with NET_ADMIN, and programs its rules");
    kill(Pid::from_raw(i32::try_from(daemon.id())?), Signal::SIGTERM)?;
    match process::wait(daemon, LIMIT)? {
        Some(status) if status.success() => println!("check: it ends at SIGTERM"),
        Some(status) => bail!("the image's daemon ends at SIGTERM with {status}"),
        None => bail!("the image's daemon does not end at SIGTERM within {LIMIT:?}"),
    }
    Ok(())
}
