//! The demo.
use anyhow::Result;
/// Arguments of the demo.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {}
/// Runs it.
pub(crate) fn run(_: &Arguments) -> Result<()> {
    Ok(())
}
