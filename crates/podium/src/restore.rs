//! `podium restore`: a data directory from a backup. Nothing is written before the whole backup was checked.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::backup::{KEYS, load};
use crate::bootstrap::pki::write_secret;
use crate::cli::outln;
use crate::config::{Paths, UNFINISHED};

#[derive(Args)]
pub(crate) struct RestoreArgs {
    /// A file that `podium backup` wrote
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where the cluster's data is to live; must be empty or not exist
    #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
    pub(crate) data_dir: PathBuf,
}

/// # Errors
/// When the backup is damaged or newer, the directory holds something, or it can't be written.
pub(crate) fn run(args: &RestoreArgs) -> Result<()> {
    let state = load(&args.file)?;
    let data = &args.data_dir;
    if let Ok(mut entries) = fs::read_dir(data)
        && entries.next().is_some()
    {
        bail!(
            "{} is not empty: restore into a new directory, or remove what is there with `podium down --purge`",
            data.display()
        );
    }
    let Some(keys) = keys(&state.files) else {
        bail!("{} holds a file that this release does not know", args.file.display())
    };
    ensure!(keys.iter().any(|(name, _)| *name == "ca.key"), "{} holds no authority", args.file.display());
    let paths = Paths::create(data)?;
    let (revision, count) = (state.revision(), state.keys());
    // Until the directory has its name, `up` refuses to start here.
    let unfinished = paths.data.join(UNFINISHED);
    for (name, contents) in &keys {
        make_folder(&unfinished.join("pki"))?;
        write_secret(&unfinished.join("pki").join(name), contents)?;
    }
    state.install(&unfinished.join("store"))?;
    for part in ["pki", "store"] {
        let (from, to) = (unfinished.join(part), paths.data.join(part));
        fs::rename(&from, &to).with_context(|| format!("cannot name {}", to.display()))?;
    }
    sync(&paths.data)?;
    fs::remove_dir(&unfinished).with_context(|| format!("cannot remove {}", unfinished.display()))?;
    sync(&paths.data)?;
    outln(&format!(
        "restored {count} objects and allocations as of revision {revision} into {}",
        paths.data.display()
    ));
    outln(&format!("start it with: podium up --data-dir {}", paths.data.display()));
    Ok(())
}

/// Names below the key directory, and texts; `None` when anything else is among them.
fn keys(files: &std::collections::BTreeMap<String, Vec<u8>>) -> Option<Vec<(&str, &str)>> {
    let parts = files.iter().map(|(name, bytes)| {
        let name = name.strip_prefix(KEYS)?;
        let plain = !name.is_empty() && !name.contains('/') && name != "." && name != "..";
        Some((name, std::str::from_utf8(bytes).ok()?)).filter(|_| plain)
    });
    parts.collect()
}

fn make_folder(path: &Path) -> Result<()> {
    use std::os::unix::fs::DirBuilderExt as _;
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot make {}", path.display()))
}

fn sync(folder: &Path) -> Result<()> {
    let synced = fs::File::open(folder).and_then(|file| file.sync_all());
    synced.with_context(|| format!("cannot sync {}", folder.display()))
}
