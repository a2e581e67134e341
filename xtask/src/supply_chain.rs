//! `cargo xtask supply-chain`: where code comes from, and whether what is built of it is what it
//! should be.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use clap::ValueEnum;
use sluice_skips::Why;
use sluice_tests::process;

use crate::build_ebpf;
use crate::machine::{cargo, root, run as run_command, target_directory};
use crate::suites::Suites;
use crate::tool::Tool;

/// Arguments of the command.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// Parts to check [default: all]
    #[arg(long, value_enum, num_args = 1..)]
    only: Vec<Part>,
}

/// What can be checked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Licences, banned crates and sources of all dependencies: deny.toml
    Dependencies,
    /// Known vulnerabilities of dependencies in the RustSec database, if it can be reached
    Advisories,
    /// Digest of the eBPF programs
    Programs,
    /// Build the image again from a clone in another directory; it must be identical
    Image,
    /// Write the bills of materials of daemon, plugin and eBPF programs, as CycloneDX
    Sbom,
}

const DENY: Tool = Tool { name: "cargo-deny", version: "0.20.2", features: &[] };
const CYCLONEDX: Tool = Tool { name: "cargo-cyclonedx", version: "0.5.9", features: &[] };
/// All workspaces: the second has dependencies of its own.
const MANIFESTS: [&str; 2] = ["Cargo.toml", "proxy-ebpf/Cargo.toml"];
/// What is installed on a node: where its sources are, and its name.
const PRODUCTS: [(&str, &str); 3] =
    [("proxy-userspace", "sluice"), ("proxy-cni", "sluice-cni"), ("proxy-ebpf", "sluice-ebpf")];
/// How a bill of materials is called while it is beside its sources.
const SBOM: &str = "sluice-sbom";
/// How long it may take to fetch the database of advisories.
const FETCH_LIMIT: Duration = Duration::from_secs(120);

/// Runs all parts, or some; fails if one fails.
pub(crate) fn run(arguments: &Arguments) -> Result<()> {
    let mut suites = Suites::default();
    for part in Part::value_variants() {
        if arguments.only.is_empty() || arguments.only.contains(part) {
            let name = part.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
            match part.obstacle()? {
                Some(why) => suites.skip(&name, why),
                None => suites.run(&name, || part.check()),
            }
        }
    }
    ensure!(suites.finish() == std::process::ExitCode::SUCCESS, "see above");
    Ok(())
}

impl Part {
    /// Why it cannot be checked here.
    fn obstacle(self) -> Result<Option<Why>> {
        if self == Self::Advisories { fetch_advisories() } else { Ok(None) }
    }

    fn check(self) -> Result<()> {
        match self {
            Self::Dependencies => dependencies(),
            Self::Advisories => advisories(),
            Self::Programs => build_ebpf::check(),
            Self::Image => same_image(),
            Self::Sbom => sbom(),
        }
    }
}

/// Checks licences, bans and sources. It asks nobody. Either workspace has duplicates that the
/// other has not.
pub(crate) fn dependencies() -> Result<()> {
    let program = DENY.installed()?;
    for manifest in MANIFESTS {
        println!("{manifest}");
        run_command(deny(&program, manifest).args([
            "check",
            "--allow",
            "unmatched-skip",
            "licenses",
            "bans",
            "sources",
        ]))?;
    }
    Ok(())
}

/// Checks advisories, by the database that was fetched.
fn advisories() -> Result<()> {
    let program = DENY.installed()?;
    for manifest in MANIFESTS {
        println!("{manifest}");
        run_command(deny(&program, manifest).args(["--offline", "check", "advisories"]))?;
    }
    Ok(())
}

/// Fetches the database of advisories; why that cannot be done here, which is a matter of the
/// machine, not of the code.
fn fetch_advisories() -> Result<Option<Why>> {
    let mut fetch = deny(&DENY.installed()?, MANIFESTS[0]);
    fetch.args(["fetch", "db"]);
    let told = match process::run(fetch, None, FETCH_LIMIT) {
        Ok(finished) if finished.status.success() => return Ok(None),
        Ok(finished) => finished.stderr.trim().lines().last().unwrap_or_default().to_owned(),
        Err(error) => format!("{error:#}"),
    };
    Ok(Some(Why::lack("rustsec", format_args!("NOT CHECKED, the database cannot be fetched here: {told}"))))
}

fn deny(program: &Path, manifest: &str) -> Command {
    let mut command = Command::new(program);
    command.current_dir(root()).args(["--manifest-path", manifest, "--locked", "--config"]);
    command.arg(root().join("deny.toml"));
    command
}

/// Builds the image here and in a clone elsewhere, with nothing in common but the tools: the
/// archives have to be equal.
fn same_image() -> Result<()> {
    ensure!(
        git(&["status", "--porcelain"])?.is_empty(),
        "a clone contains only committed changes: commit first"
    );
    let place = target_directory().join("again");
    std::fs::create_dir_all(&place).with_context(|| format!("making {}", place.display()))?;
    // Below this workspace it would be a part of it.
    let source = std::env::temp_dir().join(format!("sluice-again-{}", std::process::id()));
    let same = same_as_of_a_clone(&place, &source);
    drop(std::fs::remove_dir_all(&source));
    same?;
    std::fs::remove_dir_all(&place).with_context(|| format!("removing {}", place.display()))
}

fn same_as_of_a_clone(place: &Path, source: &Path) -> Result<()> {
    let (here, there) = (place.join("here.tar"), place.join("there.tar"));
    run_command(Command::new("git").args(["clone", "--quiet", "--shared"]).arg(root()).arg(source))?;
    run_command(cargo(&["xtask", "image", "--out"]).arg(&here))?;
    let mut second = cargo(&["xtask", "image", "--out"]);
    second.arg(&there).current_dir(source).env("CARGO_TARGET_DIR", place.join("target"));
    run_command(second.env("PATH", with_linker()?))?;
    let read = |file: &PathBuf| std::fs::read(file).with_context(|| format!("reading {}", file.display()));
    let (one, other) = (read(&here)?, read(&there)?);
    if one != other {
        bail!("{} and {} differ", here.display(), there.display());
    }
    println!("both builds are identical ({} bytes)", one.len());
    Ok(())
}

/// The path with the linker of the eBPF programs, which is no part of what is compared.
fn with_linker() -> Result<std::ffi::OsString> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain([target_directory().join("tools/bin")]);
    std::env::join_paths(places).context("PATH")
}

fn git(arguments: &[&str]) -> Result<String> {
    let output = Command::new("git").args(arguments).current_dir(root()).output().context("starting git")?;
    ensure!(output.status.success(), "git: {}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().to_owned())
}

/// Writes what daemon, plugin and eBPF programs are made of.
fn sbom() -> Result<()> {
    let program = CYCLONEDX.installed()?;
    let directory = target_directory().join("sbom");
    std::fs::create_dir_all(&directory).with_context(|| format!("making {}", directory.display()))?;
    for manifest in MANIFESTS {
        let mut command = Command::new(&program);
        command.current_dir(root()).args([
            "cyclonedx",
            "--format",
            "json",
            "--spec-version",
            "1.5",
            "--quiet",
        ]);
        command.args(["--target", &format!("{}-unknown-linux-musl", std::env::consts::ARCH)]);
        run_command(command.args(["--override-filename", SBOM, "--manifest-path", manifest]))?;
    }
    collect_sboms(&directory)
}

/// The tool writes one beside the manifest of each member; those of what is shipped are kept.
fn collect_sboms(directory: &Path) -> Result<()> {
    for entry in std::fs::read_dir(root())?.flatten() {
        let written = entry.path().join(format!("{SBOM}.json"));
        let name = entry.file_name();
        let product = PRODUCTS.iter().find(|(place, _)| name == *place);
        if let Some((_, name)) = product {
            let to = directory.join(format!("{name}.cdx.json"));
            std::fs::rename(&written, &to).with_context(|| format!("moving {}", written.display()))?;
            println!("{}", to.display());
        } else if written.exists() {
            std::fs::remove_file(&written).with_context(|| format!("removing {}", written.display()))?;
        }
    }
    Ok(())
}
