//! What the machine must offer before a node can run on it; each lack is one clear line.

pub(crate) mod notes;

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use crate::config::{self, Paths};
use crate::progress::Progress;

/// Checks that the node part can work here.
///
/// # Errors
/// Names the first thing that is missing.
pub(crate) fn check_node() -> Result<()> {
    ensure!(
        rustix::process::geteuid().is_root(),
        "the node part makes containers and networks and needs root: run `podium up` as root, \
         or start the control plane alone with `podium server`"
    );
    for namespace in ["net", "mnt", "pid", "ipc", "uts"] {
        ensure!(
            Path::new("/proc/self/ns").join(namespace).exists(),
            "this kernel has no {namespace} namespaces, which containers need"
        );
    }
    if !Path::new("/sys/fs/cgroup").is_dir() {
        bail!("no cgroup file system is mounted on /sys/fs/cgroup");
    }
    let filesystems = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    ensure!(
        has_filesystem(&filesystems, "overlay") || Path::new("/sys/module/overlay").exists(),
        "this kernel has no overlay file system loaded, which images need: try `modprobe overlay`"
    );
    Ok(())
}

/// Says what the machine's owner should know.
pub(crate) fn tell(paths: &Paths, progress: &Progress) {
    for line in notes::judge(&notes::look(&[&paths.data])) {
        progress.warn("machine", &line);
    }
}

/// The name that the node of this data directory had when it was first ready.
///
/// # Errors
/// When it can't be read.
pub(crate) fn kept_name(paths: &Paths) -> Result<Option<String>> {
    let file = paths.data.join("node-name");
    match std::fs::read_to_string(&file) {
        Ok(kept) => Ok(Some(kept.trim().to_owned())),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", file.display())),
    }
}

/// # Errors
/// When it can't be written.
pub(crate) fn keep_name(paths: &Paths, name: &str) -> Result<()> {
    let file = paths.data.join("node-name");
    std::fs::write(&file, name).with_context(|| format!("cannot write {}", file.display()))
}

/// The node's name: the one that was asked for, or the one that it had before, or the host's.
///
/// # Errors
/// When another one is asked for than before, and when the host's makes no name.
pub(crate) fn node_name(asked: Option<String>, kept: Option<String>, progress: &Progress) -> Result<String> {
    let asked = asked.map(config::node_name).transpose()?;
    let (name, note) = choose_name(asked, kept, config::default_node_name)?;
    if let Some(note) = note {
        progress.warn("node", &note);
    }
    Ok(name)
}

/// A node's name doesn't change with its host's: it would be another node, without the pods and the addresses of this one.
fn choose_name(
    asked: Option<String>,
    kept: Option<String>,
    host: impl FnOnce() -> Result<String>,
) -> Result<(String, Option<String>)> {
    match (asked, kept) {
        (Some(asked), Some(kept)) if asked != kept => {
            bail!("this machine is node {kept}: start with --node-name {kept}, or with another --data-dir")
        }
        (Some(asked), _) => Ok((asked, None)),
        (None, None) => Ok((host()?, None)),
        (None, Some(kept)) => {
            let host = host().unwrap_or_else(|_| kept.clone());
            let note = format!("the host is called {host} now; the node keeps its name {kept}");
            Ok((kept.clone(), (host != kept).then_some(note)))
        }
    }
}

fn has_filesystem(listing: &str, name: &str) -> bool {
    listing.lines().any(|line| line.split_whitespace().last() == Some(name))
}

#[cfg(test)]
mod tests {
    use super::choose_name;

    #[test]
    fn a_node_keeps_its_name() {
        let some = |name: &str| Some(name.to_owned());
        let choose = |asked, kept, host: &str| choose_name(asked, kept, || Ok(host.to_owned()));
        assert_eq!(choose(None, None, "h").unwrap(), ("h".to_owned(), None));
        assert_eq!(choose(some("a"), None, "h").unwrap(), ("a".to_owned(), None));
        assert_eq!(choose(some("a"), some("a"), "h").unwrap(), ("a".to_owned(), None));
        assert_eq!(choose(None, some("h"), "h").unwrap(), ("h".to_owned(), None));
        let (name, note) = choose(None, some("a"), "h").unwrap();
        assert_eq!(
            (name.as_str(), note.unwrap().as_str()),
            ("a", "the host is called h now; the node keeps its name a")
        );
        assert!(
            choose(some("b"), some("a"), "h").unwrap_err().to_string().starts_with("this machine is node a")
        );
    }

    #[test]
    fn file_systems_are_found_by_whole_name() {
        let listing = "nodev\tsysfs\nnodev\toverlay\n\text4\n";
        assert!(super::has_filesystem(listing, "overlay"));
        assert!(super::has_filesystem(listing, "ext4"));
        assert!(!super::has_filesystem(listing, "over"));
    }
}
