//! Taking everything off the machine, with or without an agent.

use std::fmt;

use rustix::mount::UnmountFlags;

use crate::cgroup::Hierarchies;
use crate::engine::EngineConfig;
use crate::error::{During as _, RuntimeError, log_failure};

/// What was removed.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Report {
    pub sandboxes: usize,
    pub processes: usize,
    pub mounts: usize,
    pub cgroups: usize,
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { sandboxes, processes, mounts, cgroups } = self;
        write!(f, "{sandboxes} sandboxes, {processes} processes, {mounts} mounts, {cgroups} control groups")
    }
}

/// Kills every shim and container of an engine, unmounts, and removes its groups, sockets and containers' files.
/// Images stay. No agent may run on the same directories.
///
/// # Errors
/// When processes don't die or something can't be removed.
pub fn down(config: &EngineConfig) -> Result<Report, RuntimeError> {
    let mut report = Report::default();
    let parent = Hierarchies::detect()?.group(&config.cgroup_parent);
    report.processes = parent.processes().len();
    // Shims first: otherwise they'd write records of the containers that are about to be killed.
    for name in parent.children().iter().filter(|name| name.starts_with("shim-")) {
        parent.child(name).kill();
    }
    parent.kill();
    if !parent.wait_empty(std::time::Duration::from_secs(30)) {
        return Err(RuntimeError::Other(format!("processes do not die: {:?}", parent.processes())));
    }
    let table = std::fs::read_to_string("/proc/self/mountinfo")?;
    for point in mounts_below(&table, &config.run_dir.to_string_lossy()) {
        rustix::mount::unmount(&point, UnmountFlags::DETACH).during(|| format!("cannot unmount {point}"))?;
        report.mounts += 1;
    }
    report.cgroups = parent.remove()?;
    report.sandboxes = std::fs::read_dir(config.sandboxes()).map_or(0, Iterator::count);
    for dir in [&config.run_dir, &config.containers()] {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).during(|| format!("cannot delete {}", dir.display()));
            }
            Ok(()) | Err(_) => {}
        }
    }
    Ok(report)
}

impl crate::Engine {
    /// Stops all sandboxes and removes everything this engine has on the machine but images.
    ///
    /// # Errors
    /// As [`down`].
    pub async fn purge(&self) -> Result<Report, RuntimeError> {
        for sandbox in self.list_sandboxes() {
            log_failure(self.remove_sandbox(&sandbox.id).await, "cannot remove a sandbox");
        }
        let config = self.config().clone();
        let done = tokio::task::spawn_blocking(move || down(&config)).await;
        done.unwrap_or_else(|error| Err(RuntimeError::Other(error.to_string())))
    }
}

/// Mount points at or below a folder, the last mounted first.
fn mounts_below(table: &str, folder: &str) -> Vec<String> {
    let points =
        table.lines().filter_map(|line| line.split(' ').nth(4)).map(|point| point.replace("\\040", " "));
    let below = format!("{}/", folder.trim_end_matches('/'));
    let mut points: Vec<String> =
        points.filter(|point| point.starts_with(&below) || *point == folder).collect();
    points.reverse();
    points
}

#[cfg(test)]
mod tests {
    #[test]
    fn mounts_come_off_in_reverse() {
        let table = "1 1 0:1 / / rw - ext4 a rw\n2 1 0:1 / /run/p/s/shm rw - tmpfs t rw\n3 1 0:1 / /run/px rw - tmpfs t rw\n4 2 0:1 / /run/p/s\\0402 rw - tmpfs t rw\n";
        assert_eq!(super::mounts_below(table, "/run/p"), ["/run/p/s 2", "/run/p/s/shm"]);
    }
}
