//! `cargo xtask bench footprint`: builds the release and measures it.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};

/// Runs the measurement in network and mount namespaces of its own.
///
/// # Errors
/// When the build or the measurement fails.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    const USAGE: &str = "usage: cargo xtask bench footprint [--podium FILE]";
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let podium = match words[..] {
        ["footprint"] => build(root)?,
        ["footprint", "--podium", file] => PathBuf::from(file),
        _ => bail!(USAGE),
    };
    let runner = "target.'cfg(unix)'.runner = 'unshare --net --mount --propagation private'";
    let status = crate::cargo()
        .args(["run", "--quiet", "--locked", "--release", "-p", "bench"])
        .args(["--config", runner])
        .args(["--", "--podium"])
        .arg(podium)
        .current_dir(root)
        .status()
        .context("cannot run cargo")?;
    ensure!(status.success(), "the measurement failed");
    Ok(())
}

fn build(root: &Path) -> Result<PathBuf> {
    let begun = std::time::Instant::now();
    let arguments = ["build", "--release", "--locked", "-p", "podium"];
    let status = crate::cargo().args(arguments).current_dir(root).status().context("cannot run cargo")?;
    ensure!(status.success(), "the build failed");
    println!("release build (not cold unless target was empty): {} s", begun.elapsed().as_secs());
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    Ok(target.join("release/podium"))
}
