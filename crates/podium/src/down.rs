//! `podium down`: removes everything that `up` made on this machine.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use rustix::io::Errno;
use store::disk::RealDisk;

use crate::cli::{DownArgs, outln};
use crate::config::Paths;
use crate::host;

/// Removes containers, mounts, namespaces, cgroups, interfaces, rules and changed sysctls; the data with `--purge`.
///
/// # Errors
/// When a podium still runs on the data directory, or something can't be removed.
pub(crate) fn run(args: &DownArgs) -> Result<()> {
    if !args.data_dir.exists() {
        outln(&format!("nothing to remove: no data directory {}", args.data_dir.display()));
        return Ok(());
    }
    ensure!(
        rustix::process::geteuid().is_root(),
        "`podium down` removes containers and networks and needs root"
    );
    host::check_node()?;
    let paths = Paths::existing(&args.data_dir)?;
    // held until the end: no podium can start on what is being removed
    let _lock = match RealDisk::open(&paths.store()) {
        Ok(lock) => lock,
        Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => {
            bail!("podium is running on {}: stop it first", paths.data.display())
        }
        Err(error) => return Err(error).with_context(|| format!("cannot lock {}", paths.store().display())),
    };
    let report = runtime::down(&paths.engine()?).context("cannot remove all containers")?;
    outln(&format!("removed {report}"));
    let pool =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start threads")?;
    pool.block_on(net::down(&paths.network(), &paths.instance)).context("cannot remove the pod network")?;
    outln("removed the pod network");
    remove_volumes(&paths)?;
    remove_empty(paths.run().parent())?;
    if args.purge {
        std::fs::remove_dir_all(&paths.data)
            .with_context(|| format!("cannot delete {}", paths.data.display()))?;
        outln(&format!("deleted {}", paths.data.display()));
    }
    Ok(())
}

/// Unmounts what pods' volumes mounted (in-memory volumes), then deletes the volumes: they belong to the pods.
fn remove_volumes(paths: &Paths) -> Result<()> {
    let pods = paths.pods();
    let table = std::fs::read_to_string("/proc/self/mountinfo").context("cannot read the mount table")?;
    for point in mount_points_below(&table, &pods.to_string_lossy()) {
        rustix::mount::unmount(&point, rustix::mount::UnmountFlags::DETACH)
            .with_context(|| format!("cannot unmount {point}"))?;
    }
    match std::fs::remove_dir_all(&pods) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("cannot delete {}", pods.display()))
        }
        Ok(()) | Err(_) => Ok(()),
    }
}

/// The folder that all instances share goes with the last one.
fn remove_empty(shared: Option<&Path>) -> Result<()> {
    let Some(folder) = shared else { return Ok(()) };
    match rustix::fs::rmdir(folder) {
        Ok(()) | Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOENT) => Ok(()),
        Err(error) => Err(error).with_context(|| format!("cannot remove {}", folder.display())),
    }
}

/// Mount points below a folder, the innermost first (proc(5), mountinfo: the fifth field).
fn mount_points_below(table: &str, folder: &str) -> Vec<String> {
    let below = format!("{}/", folder.trim_end_matches('/'));
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| point.replace("\\040", " "));
    let mut points: Vec<String> = points.filter(|point| point.starts_with(&below)).collect();
    points.sort_by_key(|point| std::cmp::Reverse(point.len()));
    points
}

#[cfg(test)]
mod tests {
    #[test]
    fn only_mounts_below_the_folder_count_and_inner_ones_come_first() {
        let table = "1 2 0:1 / /var/lib/podium/pods rw - ext4 x rw\n\
                     1 2 0:1 / /var/lib/podium/pods/a rw - tmpfs x rw\n\
                     1 2 0:1 / /var/lib/podium/pods/a/b\\040c rw - tmpfs x rw\n\
                     1 2 0:1 / /var/lib/podium/pods2/a rw - tmpfs x rw\n";
        let found = super::mount_points_below(table, "/var/lib/podium/pods");
        assert_eq!(found, ["/var/lib/podium/pods/a/b c", "/var/lib/podium/pods/a"]);
    }
}
