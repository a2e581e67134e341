//! `cargo xtask image`: the container image as an OCI archive, made without a container engine.

mod archive;
pub(crate) mod binary;
mod check;

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, Result, bail};

use crate::machine;
use archive::Image;

/// Arguments of `image`.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Archive to write [default: target/sluice-VERSION-ARCHITECTURE.oci.tar]
    #[arg(long)]
    out: Option<PathBuf>,
    /// Name and tag of the image [default: sluice:VERSION]
    #[arg(long, value_name = "NAME[:TAG]")]
    tag: Option<String>,
    /// Unpack the written archive, verify its digests, and run the image with nothing else in its
    /// root (needs root)
    #[arg(long)]
    check: bool,
}

/// All packages of the workspace have the same version.
const VERSION: &str = env!("CARGO_PKG_VERSION");

/// Builds, writes and, if wanted, checks.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let name = full_name(arguments.tag.as_deref().unwrap_or("sluice"))?;
    let architecture = architecture()?;
    let binaries = binary::build()?;
    let read = |path: &Path| std::fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    let (bytes, plugin) = (read(&binaries.sluice)?, read(&binaries.plugin)?);
    let (created, revision) = (created(), revision());
    let image = Image {
        binary: &bytes,
        plugin: &plugin,
        architecture,
        name: &name,
        version: VERSION,
        created: &created,
        revision: revision.as_deref(),
    };
    let archive = image.archive()?;
    let default = || machine::target_directory().join(format!("sluice-{VERSION}-{architecture}.oci.tar"));
    let out = arguments.out.clone().unwrap_or_else(default);
    std::fs::write(&out, &archive.bytes).with_context(|| format!("cannot write {}", out.display()))?;
    println!("{name} for linux/{architecture}: {} bytes in {}", archive.bytes.len(), out.display());
    println!("manifest {}", archive.manifest_digest);
    if arguments.check { check::run(&out) } else { Ok(()) }
}

/// The name with its tag, in the form that container engines agree on.
fn full_name(name: &str) -> Result<String> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-/:".contains(c);
    let (repository, tag) = match name.rsplit_once(':') {
        // A colon before a slash belongs to a port.
        Some((repository, tag)) if !tag.contains('/') => (repository, tag),
        _ => (name, VERSION),
    };
    if repository.is_empty() || tag.is_empty() || !repository.chars().all(allowed) {
        bail!(
            "--tag {name:?} is not an image name such as sluice:{VERSION} or \
             registry.example/sluice:{VERSION}"
        );
    }
    let first = repository.split_once('/').map_or("", |(first, _)| first);
    let prefix = match (repository.contains('/'), first.contains(['.', ':']) || first == "localhost") {
        (false, _) => "docker.io/library/",
        (true, false) => "docker.io/",
        (true, true) => "",
    };
    Ok(format!("{prefix}{repository}:{tag}"))
}

/// What OCI calls this machine's architecture.
fn architecture() -> Result<&'static str> {
    match std::env::consts::ARCH {
        "x86_64" => Ok("amd64"),
        "aarch64" => Ok("arm64"),
        other => bail!("images are built for x86_64 and aarch64, on such a machine; this is {other}"),
    }
}

/// The time of the commit, so that the same commit makes the same image.
fn created() -> String {
    let format = "--date=format-local:%Y-%m-%dT%H:%M:%SZ";
    git(&["log", "-1", format, "--format=%cd"]).unwrap_or_else(|| "1970-01-01T00:00:00Z".into())
}

/// The commit, marked when files differ from it.
fn revision() -> Option<String> {
    git(&["describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"])
}

/// What git says; `None` outside of a repository.
fn git(arguments: &[&str]) -> Option<String> {
    let output =
        Command::new("git").args(arguments).env("TZ", "UTC").current_dir(machine::root()).output().ok()?;
    let text = String::from_utf8(output.stdout).ok()?;
    (output.status.success() && !text.trim().is_empty()).then(|| text.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::full_name;

    #[test]
    fn names_are_completed_as_container_engines_do() {
        let version = super::VERSION;
        for (name, full) in [
            ("sluice", format!("docker.io/library/sluice:{version}")),
            ("sluice:x1", "docker.io/library/sluice:x1".into()),
            ("team/sluice:x1", "docker.io/team/sluice:x1".into()),
            ("localhost/sluice:x1", "localhost/sluice:x1".into()),
            ("registry.example:5000/a/sluice", format!("registry.example:5000/a/sluice:{version}")),
        ] {
            assert_eq!(full_name(name).unwrap(), full);
        }
        for wrong in ["", ":x", "sluice:", "Sluice", "slu ice"] {
            assert!(full_name(wrong).is_err(), "{wrong:?}");
        }
    }
}
