//! `cargo xtask docs`: pictures from their texts, and a site of all pages.

mod pictures;
mod site;

use std::path::Path;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::machine::{install, root, run as run_command, target_directory};
use crate::tidy::Tree;
use crate::tool::Tool;

const MDBOOK: Tool = Tool { name: "mdbook", version: "0.5.4", features: &["search"] };

/// Draws pictures whose text has changed, and builds the site.
pub(crate) fn run() -> Result<()> {
    install(&[("dot", "graphviz")])?;
    let tree = Tree::read()?;
    for (path, text) in tree.ending(pictures::TEXT) {
        draw(&tree, path, text)?;
    }
    // Pictures may be new.
    let tree = Tree::read()?;
    let place = target_directory().join("docs");
    let pages = place.join("src");
    if pages.exists() {
        std::fs::remove_dir_all(&pages).with_context(|| format!("removing {}", pages.display()))?;
    }
    for (path, content) in site::files(&tree)? {
        write(&pages.join(path), &content)?;
    }
    write(&place.join("book.toml"), site::CONFIGURATION.as_bytes())?;
    run_command(Command::new(MDBOOK.installed()?).arg("build").arg(&place))?;
    let book = place.join("book");
    let broken = site::broken(&book)?;
    ensure!(broken.is_empty(), "links of the site are broken:\n{}", broken.join("\n"));
    println!("{}", book.join("index.html").display());
    Ok(())
}

/// Draws a picture, unless it is of this text already.
fn draw(tree: &Tree, path: &str, text: &str) -> Result<()> {
    let picture = pictures::of(path);
    if tree.text(&picture).is_some_and(|svg| pictures::is_of(svg, text)) {
        return Ok(());
    }
    println!("drawing {picture}");
    let output = Command::new("dot").arg("-Tsvg").arg(root().join(path)).output().context("starting dot")?;
    ensure!(output.status.success(), "dot {path}: {}", String::from_utf8_lossy(&output.stderr));
    let svg = pictures::signed(&String::from_utf8(output.stdout)?, text);
    write(&root().join(&picture), svg.as_bytes())
}

fn write(path: &Path, content: &[u8]) -> Result<()> {
    let directory = path.parent().unwrap_or(path);
    std::fs::create_dir_all(directory).with_context(|| format!("making {}", directory.display()))?;
    std::fs::write(path, content).with_context(|| format!("writing {}", path.display()))
}

pub(crate) use pictures::check as check_pictures;
pub(crate) use site::check as check_site;
