//! What the machine must offer before a node can run on it; each lack is one clear line.

use std::path::Path;

use anyhow::{Result, bail, ensure};

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

fn has_filesystem(listing: &str, name: &str) -> bool {
    listing.lines().any(|line| line.split_whitespace().last() == Some(name))
}

#[cfg(test)]
mod tests {
    #[test]
    fn file_systems_are_found_by_whole_name() {
        let listing = "nodev\tsysfs\nnodev\toverlay\n\text4\n";
        assert!(super::has_filesystem(listing, "overlay"));
        assert!(super::has_filesystem(listing, "ext4"));
        assert!(!super::has_filesystem(listing, "over"));
    }
}
