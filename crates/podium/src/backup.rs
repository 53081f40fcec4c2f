//! `podium backup`: everything that a cluster can't derive again, in one file.
//!
//! In it: the store (all API objects and private allocation keys at one revision) and the key directory (authority,
//! service-account key, certificates). Not in it: images, container logs, volumes' contents, a joined node's own
//! certificate. Whoever can read the file can act as the cluster's administrator: its mode is 0600.

use std::fs;
use std::io::{BufWriter, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, ensure};
use clap::Args;
use store::backup::State;

use crate::cli::outln;
use crate::config::Paths;

/// Where the files of the key directory are in a backup.
pub(crate) const KEYS: &str = "pki/";

#[derive(Args)]
pub(crate) struct BackupArgs {
    /// The backup to write; one of the same name is replaced
    #[arg(value_name = "FILE")]
    pub(crate) file: PathBuf,
    /// Where the cluster's data lives
    #[arg(long, value_name = "DIR", default_value = "/var/lib/podium")]
    pub(crate) data_dir: PathBuf,
}

/// Works while podium runs, and while it doesn't.
///
/// # Errors
/// When there is no control plane's data, it can't be read, or the file can't be written.
pub(crate) fn run(args: &BackupArgs) -> Result<()> {
    let paths = Paths::existing(&args.data_dir)?;
    ensure!(
        paths.store().is_dir() && paths.pki().join("ca.key").exists(),
        "{} holds no control plane: there is nothing to back up",
        paths.data.display()
    );
    let mut state =
        State::read(&paths.store()).with_context(|| format!("cannot read {}", paths.store().display()))?;
    for entry in
        fs::read_dir(paths.pki()).with_context(|| format!("cannot read {}", paths.pki().display()))?
    {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        // a file that is being written
        if entry.file_type()?.is_file() && !name.ends_with(".new") {
            let bytes = fs::read(entry.path()).with_context(|| format!("cannot read {name}"))?;
            state.files.insert(format!("{KEYS}{name}"), bytes);
        }
    }
    write(&args.file, &state)?;
    let written = load(&args.file)?;
    ensure!(written.keys() == state.keys(), "{} can't be read back", args.file.display());
    outln(&format!(
        "backed up {} objects and allocations as of revision {} and {} key files to {}",
        state.keys(),
        state.revision(),
        state.files.len(),
        args.file.display()
    ));
    outln("the file holds the cluster's keys and secrets in the clear: keep it safe");
    Ok(())
}

/// Reads and checks a whole backup.
///
/// # Errors
/// When it is damaged, newer than this release, or can't be read.
pub(crate) fn load(path: &Path) -> Result<State> {
    let file = fs::File::open(path).with_context(|| format!("cannot read {}", path.display()))?;
    let input = Box::new(std::io::BufReader::with_capacity(1 << 18, file));
    Ok(State::load(&path.display().to_string(), input)?)
}

/// Under another name first: a backup is there whole or not at all.
fn write(path: &Path, state: &State) -> Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let attempt = || -> std::io::Result<()> {
        match fs::remove_file(&temporary) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error),
            Ok(()) | Err(_) => {}
        }
        let file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        state.write(&mut out)?;
        out.flush()?;
        out.get_ref().sync_all()?;
        fs::rename(&temporary, path)?;
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        fs::File::open(folder.unwrap_or(Path::new(".")))?.sync_all()
    };
    let outcome = attempt();
    if outcome.is_err() && temporary.exists() {
        fs::remove_file(&temporary).with_context(|| format!("cannot remove {}", temporary.display()))?;
    }
    outcome.with_context(|| format!("cannot write {}", path.display()))
}
