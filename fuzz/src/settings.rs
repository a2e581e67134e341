//! What the environment says of a run.

use std::path::PathBuf;
use std::time::Duration;

use proptest::test_runner::Config;

/// How many inputs.
const INPUTS: &str = "SLUICE_FUZZ_INPUTS";
/// From which seed they are made; a new one each time where nothing is said.
const SEED: &str = "SLUICE_FUZZ_SEED";
/// A file with one input, which alone is given to the reader.
const INPUT: &str = "SLUICE_FUZZ_INPUT";
/// Where inputs are written that a reader fails on.
const FILES: &str = "SLUICE_FUZZ_FILES";
/// Of property tests, where it is known by this name.
const CASES: &str = "PROPTEST_CASES";

/// Inputs in a plain `cargo test`, which must not take long.
const FEW: u64 = 1_000;
/// What one input may take, on a machine that others keep busy.
const LIMIT: Duration = Duration::from_secs(20);

/// A run's settings.
#[derive(Debug, Clone)]
pub(crate) struct Settings {
    pub(crate) inputs: u64,
    pub(crate) seed: u64,
    pub(crate) limit: Duration,
    pub(crate) only: Option<PathBuf>,
    pub(crate) files: PathBuf,
}

impl Settings {
    pub(crate) fn of_environment() -> Self {
        Settings {
            inputs: number(INPUTS).unwrap_or(FEW),
            seed: number(SEED).unwrap_or_else(|| fastrand::u64(..)),
            limit: LIMIT,
            only: std::env::var_os(INPUT).map(PathBuf::from),
            files: std::env::var_os(FILES).map_or_else(std::env::temp_dir, PathBuf::from),
        }
    }
}

/// A number of the environment. One that cannot be read must not pass for none.
#[expect(clippy::panic, reason = "it fails the test that it is called by")]
fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// Settings of a property test that is a target too: so many cases, unless the environment asks for
/// more or fewer.
pub fn cases(usual: u32) -> Config {
    let asked = number(CASES).map(|cases| u32::try_from(cases).unwrap_or(u32::MAX));
    Config { cases: asked.unwrap_or(usual), failure_persistence: None, ..Config::default() }
}
