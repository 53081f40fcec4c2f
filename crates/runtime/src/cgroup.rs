//! Control groups, v1, v2 and both at once (hybrid).
//!
//! Invariants: only groups that this crate made are written to or removed, but for the root of v2, where controllers that
//! nobody has switched on for the groups below are switched on, and stay so; no controller is moved between versions.

mod devices;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use std::os::fd::AsFd as _;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use crate::error::{During as _, RuntimeError};
use crate::spec::{ContainerUsage, Resources};
use crate::sys;

/// v1 controllers a container joins where they are mounted.
const V1_CONTROLLERS: [&str; 6] = ["cpu", "cpuacct", "memory", "pids", "devices", "freezer"];
/// v2 controllers that carry the limits.
const V2_CONTROLLERS: [&str; 3] = ["cpu", "memory", "pids"];

/// One mounted hierarchy.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Hierarchy {
    mount: PathBuf,
    /// v1 controllers; empty for v2.
    controllers: Vec<String>,
}

/// The hierarchies of this machine.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Hierarchies(Vec<Hierarchy>);

/// A group of the same path in all hierarchies.
#[derive(Clone, Debug)]
pub(crate) struct Group {
    hierarchies: Hierarchies,
    path: String,
}

impl Hierarchies {
    /// Reads them from the mount table of this process.
    pub(crate) fn detect() -> io::Result<Self> {
        Ok(Self::parse(&fs::read_to_string("/proc/self/mountinfo")?))
    }

    fn parse(mountinfo: &str) -> Self {
        let mut found: Vec<Hierarchy> = Vec::new();
        for line in mountinfo.lines() {
            let Some((left, right)) = line.split_once(" - ") else { continue };
            let (Some(mount), mut right) = (left.split(' ').nth(4), right.split(' ')) else { continue };
            let (kind, options) = (right.next(), right.nth(1).unwrap_or_default());
            let controllers: Vec<String> = match kind {
                Some("cgroup2") => Vec::new(),
                Some("cgroup") => {
                    let known = |name: &&str| V1_CONTROLLERS.contains(name);
                    let found: Vec<String> = options.split(',').filter(known).map(str::to_owned).collect();
                    if found.is_empty() {
                        continue;
                    }
                    found
                }
                _ => continue,
            };
            if !found.iter().any(|h| h.controllers == controllers) {
                found.push(Hierarchy { mount: PathBuf::from(mount.replace("\\040", " ")), controllers });
            }
        }
        Self(found)
    }

    pub(crate) fn is_v2_only(&self) -> bool {
        self.0.iter().all(|h| h.controllers.is_empty())
    }

    /// Lets groups right below the root of v2 use its controllers.
    pub(crate) fn offer_controllers(&self) {
        self.0.iter().filter(|h| h.controllers.is_empty()).for_each(|h| offer_controllers(&h.mount));
    }

    pub(crate) fn group(&self, path: &str) -> Group {
        Group { hierarchies: self.clone(), path: path.trim_matches('/').to_owned() }
    }

    /// Name of each v1 hierarchy's folder as containers expect it, and where its group is.
    pub(crate) fn v1_folders(&self, group: &str) -> Vec<(String, PathBuf)> {
        let v1 = self.0.iter().filter(|h| !h.controllers.is_empty());
        v1.map(|h| (h.controllers.join(","), h.mount.join(group))).collect()
    }

    pub(crate) fn v2_folder(&self, group: &str) -> Option<PathBuf> {
        self.0.iter().find(|h| h.controllers.is_empty()).map(|h| h.mount.join(group))
    }
}

fn enter(hierarchy: &Hierarchy, folder: &Path) -> Result<(), RuntimeError> {
    // In v1 a thread that moves itself waits for nobody, unlike a process.
    let file = if hierarchy.controllers.is_empty() { "cgroup.procs" } else { "tasks" };
    let file = folder.join(file);
    fs::write(&file, "0").during(|| format!("cannot enter {}", file.display()))
}

/// Lets the groups below the root use its controllers. systemd does so by itself; on a machine without it nobody has.
fn offer_controllers(root: &Path) {
    let read = |file: &str| fs::read_to_string(root.join(file)).unwrap_or_default();
    let (available, on) = (read("cgroup.controllers"), read("cgroup.subtree_control"));
    for name in V2_CONTROLLERS {
        let has = |list: &str| list.split_whitespace().any(|word| word == name);
        if has(&available)
            && !has(&on)
            && let Err(error) = fs::write(root.join("cgroup.subtree_control"), format!("+{name}"))
        {
            // inside a container the root is not the real one and has processes of its own
            tracing::debug!(%error, name, "cannot switch a controller on");
        }
    }
}

impl Group {
    pub(crate) fn path(&self) -> &str {
        &self.path
    }

    pub(crate) fn exists(&self) -> bool {
        self.folders().any(|(_, folder)| folder.exists())
    }

    fn folders(&self) -> impl Iterator<Item = (&Hierarchy, PathBuf)> {
        self.hierarchies.0.iter().map(|h| (h, h.mount.join(&self.path)))
    }

    fn v1(&self, controller: &str) -> Option<PathBuf> {
        self.folders().find(|(h, _)| h.controllers.iter().any(|c| c == controller)).map(|(_, folder)| folder)
    }

    fn v2(&self) -> Option<PathBuf> {
        self.folders().find(|(h, _)| h.controllers.is_empty()).map(|(_, folder)| folder)
    }

    /// Makes the group in every hierarchy; its parents too.
    pub(crate) fn create(&self) -> Result<(), RuntimeError> {
        for (_, folder) in self.folders() {
            fs::create_dir_all(&folder)
                .during(|| format!("cannot make control group {}", folder.display()))?;
        }
        Ok(())
    }

    /// Lets child groups use the v2 controllers this group has. What isn't delegated stays off.
    pub(crate) fn delegate(&self) {
        let Some(folder) = self.v2() else { return };
        let available = fs::read_to_string(folder.join("cgroup.controllers")).unwrap_or_default();
        for name in available.split_whitespace().filter(|name| V2_CONTROLLERS.contains(name)) {
            let written = fs::write(folder.join("cgroup.subtree_control"), format!("+{name}"));
            crate::error::log_failure(written, "cannot delegate a controller");
        }
    }

    /// Moves the calling process in, which must have one thread.
    pub(crate) fn enter(&self) -> Result<(), RuntimeError> {
        self.folders().try_for_each(|(hierarchy, folder)| enter(hierarchy, &folder))
    }

    /// Forks a child that goes on in this group; it gets the outcome of its entering. As for [`sys::fork`].
    pub(crate) fn fork(&self, child: impl FnOnce(Result<(), RuntimeError>)) -> io::Result<Pid> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let v2 = self.v2().and_then(|folder| rustix::fs::open(folder, flags, Mode::empty()).ok());
        // Born inside, a child need not move there, for which the kernel would wait for all forks and exits.
        let born_inside = v2.as_ref().map(|folder| sys::fork_into(Some(folder.as_fd())));
        let (forked, inside) = match born_inside {
            Some(Ok(forked)) => (forked, true),
            // kernels before 5.7, and what else keeps a child from being born there: entering tells
            Some(Err(_)) | None => (sys::fork()?, false),
        };
        if let Some(pid) = forked {
            return Ok(pid);
        }
        let mut left = self.folders().filter(|(hierarchy, _)| !(inside && hierarchy.controllers.is_empty()));
        child(left.try_for_each(|(hierarchy, folder)| enter(hierarchy, &folder)));
        std::process::exit(128)
    }

    /// Applies limits; returns what the machine has no controller for.
    pub(crate) fn limit(&self, resources: &Resources) -> Result<Vec<String>, RuntimeError> {
        let mut notes = Vec::new();
        let mut set = |wanted: Vec<(&str, &str, &str, String)>| -> Result<(), RuntimeError> {
            for (controller, v1_file, v2_file, value) in wanted {
                let v1 = self.v1(controller).map(|folder| folder.join(v1_file));
                let v2 = self.v2().map(|folder| folder.join(v2_file)).filter(|file| file.exists());
                match v1.or(v2) {
                    Some(file) => {
                        fs::write(&file, &value).during(|| format!("cannot set {}", file.display()))?
                    }
                    None => notes.push(format!("no {controller} controller: {v2_file} not set")),
                }
            }
            Ok(())
        };
        set(cpu_files(resources, self.v1("cpu").is_some()))?;
        if let Some(bytes) = resources.memory_limit_bytes.filter(|bytes| *bytes != 0) {
            let none = self.v1("memory").map_or("max", |_| "-1");
            let value = if bytes < 0 { none.to_owned() } else { bytes.to_string() };
            set(vec![("memory", "memory.limit_in_bytes", "memory.max", value)])?;
        }
        if let Some(count) = resources.pids_limit.filter(|count| *count > 0) {
            set(vec![("pids", "pids.max", "pids.max", count.to_string())])?;
        }
        Ok(notes)
    }

    /// Denies all devices but the standard ones.
    ///
    /// # Errors
    /// When the machine has no means to, besides what the kernel says.
    pub(crate) fn restrict_devices(&self) -> Result<(), RuntimeError> {
        match (self.v1("devices"), self.v2()) {
            (Some(folder), _) => devices::restrict_v1(&folder),
            (None, Some(folder)) => devices::restrict_v2(&folder).during(|| "cannot restrict devices".into()),
            (None, None) => Err(RuntimeError::Other("no control group restricts devices".into())),
        }
    }

    /// Memory in use, without file pages that have not been touched lately. 0 without a controller.
    pub(crate) fn memory_used(&self) -> u64 {
        let number = |path: PathBuf| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
        let (used, stat, key) = match (self.v1("memory"), self.v2()) {
            (Some(v1), _) => {
                (v1.join("memory.usage_in_bytes"), v1.join("memory.stat"), "total_inactive_file ")
            }
            (None, Some(v2)) => (v2.join("memory.current"), v2.join("memory.stat"), "inactive_file "),
            (None, None) => return 0,
        };
        let text = fs::read_to_string(stat).unwrap_or_default();
        let idle = text.lines().find_map(|line| line.strip_prefix(key)?.parse::<u64>().ok());
        number(used).unwrap_or(0).saturating_sub(idle.unwrap_or(0))
    }

    /// How often the kernel killed a process of the group for lack of memory.
    pub(crate) fn oom_kills(&self) -> u64 {
        let v1 = self.v1("memory").map(|folder| folder.join("memory.oom_control"));
        let file = v1.or_else(|| self.v2().map(|folder| folder.join("memory.events")));
        let text = file.and_then(|file| fs::read_to_string(file).ok()).unwrap_or_default();
        let count = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        count.and_then(|count| count.trim().parse().ok()).unwrap_or(0)
    }

    /// What the group has used; what no controller counts is 0.
    pub(crate) fn usage(&self) -> ContainerUsage {
        let read = |folder: Option<PathBuf>, file: &str| {
            folder.and_then(|folder| fs::read_to_string(folder.join(file)).ok()).unwrap_or_default()
        };
        let number = |text: String| text.trim().parse::<u64>().unwrap_or(0);
        let cpu_nanos = match self.v1("cpuacct") {
            Some(folder) => number(read(Some(folder), "cpuacct.usage")),
            None => stat(&read(self.v2(), "cpu.stat"), "usage_usec").saturating_mul(1000),
        };
        let (used, stats, inactive, anonymous) = match self.v1("memory") {
            Some(folder) => (
                number(read(Some(folder.clone()), "memory.usage_in_bytes")),
                read(Some(folder), "memory.stat"),
                "total_inactive_file",
                "total_rss",
            ),
            None => (
                number(read(self.v2(), "memory.current")),
                read(self.v2(), "memory.stat"),
                "inactive_file",
                "anon",
            ),
        };
        ContainerUsage {
            cpu_nanos,
            memory_bytes: used,
            // What the kernel can take back at once is not needed by anybody.
            working_set_bytes: used.saturating_sub(stat(&stats, inactive)),
            rss_bytes: stat(&stats, anonymous),
        }
    }

    /// Processes of the group and its descendants.
    pub(crate) fn processes(&self) -> Vec<i32> {
        let mut found: Vec<i32> = Vec::new();
        for (_, folder) in self.folders() {
            collect_processes(&folder, &mut found);
        }
        found.sort_unstable();
        found.dedup();
        found
    }

    /// Kills every process of the group and below.
    pub(crate) fn kill(&self) {
        if let Some(file) = self.v2().map(|folder| folder.join("cgroup.kill")).filter(|file| file.exists()) {
            crate::error::log_failure(fs::write(file, "1"), "cannot kill by the control group");
        }
        // A process that forks meanwhile shows up in the next round.
        for _ in 0..16 {
            let pids = self.processes();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                crate::error::log_failure(crate::sys::kill(pid, libc::SIGKILL), "cannot kill a process");
            }
            std::thread::yield_now();
        }
    }

    /// Waits until no process is left, at most `limit`. Killed processes leave their group only once they are dead.
    pub(crate) fn wait_empty(&self, limit: std::time::Duration) -> bool {
        let deadline = std::time::Instant::now() + limit;
        loop {
            let Some(&pid) = self.processes().first() else { return true };
            let left = deadline.saturating_duration_since(std::time::Instant::now());
            if left.is_zero() {
                return false;
            }
            wait_for_exit(pid, left);
        }
    }

    /// Removes the group and everything below it, in every hierarchy. Returns how many folders went.
    pub(crate) fn remove(&self) -> Result<usize, RuntimeError> {
        let mut removed = 0;
        for (_, folder) in self.folders() {
            removed += remove_tree(&folder)
                .during(|| format!("cannot remove control group {}", folder.display()))?;
        }
        Ok(removed)
    }

    /// Names of the child groups.
    pub(crate) fn children(&self) -> Vec<String> {
        let mut names: Vec<String> = self.folders().flat_map(|(_, folder)| subfolders(&folder)).collect();
        names.sort();
        names.dedup();
        names
    }

    pub(crate) fn child(&self, name: &str) -> Self {
        self.hierarchies.group(&format!("{}/{name}", self.path))
    }
}

/// The number behind a name in a file of `name number` lines.
fn stat(text: &str, name: &str) -> u64 {
    let mut lines = text.lines().filter_map(|line| line.split_once(' '));
    lines.find(|(key, _)| *key == name).and_then(|(_, value)| value.trim().parse().ok()).unwrap_or(0)
}

/// (controller, v1 file, v2 file, value) of the processor limits.
fn cpu_files(resources: &Resources, v1: bool) -> Vec<(&'static str, &'static str, &'static str, String)> {
    let mut files = Vec::new();
    if let Some(shares) = resources.cpu_shares.filter(|shares| *shares > 0) {
        let value = if v1 { shares.clamp(2, 262_144) } else { shares_to_weight(shares) };
        files.push(("cpu", "cpu.shares", "cpu.weight", value.to_string()));
    }
    if let Some(quota) = resources.cpu_quota_us {
        let period = resources.cpu_period_us.unwrap_or(100_000);
        if v1 {
            files.push(("cpu", "cpu.cfs_period_us", "", period.to_string()));
            files.push(("cpu", "cpu.cfs_quota_us", "", quota.to_string()));
        } else {
            let quota = if quota < 0 { "max".to_owned() } else { quota.to_string() };
            files.push(("cpu", "", "cpu.max", format!("{quota} {period}")));
        }
    }
    files
}

/// v2 weight of v1 shares: 2..=262144 onto 1..=10000, linear (KEP-2254).
fn shares_to_weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142
}

fn wait_for_exit(pid: i32, left: std::time::Duration) {
    let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
    let Ok(fd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) else { return };
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let timeout = rustix::event::Timespec {
        tv_sec: left.as_secs().try_into().unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    crate::error::log_failure(rustix::event::poll(&mut fds, Some(&timeout)), "cannot wait for a process");
    // A zombie is listed until its parent reaps it.
    std::thread::yield_now();
}

fn subfolders(folder: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(folder) else { return Vec::new() };
    let folders = entries.flatten().filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()));
    folders.map(|entry| entry.file_name().to_string_lossy().into_owned()).collect()
}

fn collect_processes(folder: &Path, found: &mut Vec<i32>) {
    let text = fs::read_to_string(folder.join("cgroup.procs")).unwrap_or_default();
    found.extend(text.lines().filter_map(|line| line.parse::<i32>().ok()).filter(|pid| *pid > 0));
    for name in subfolders(folder) {
        collect_processes(&folder.join(name), found);
    }
}

fn remove_tree(folder: &Path) -> io::Result<usize> {
    if !folder.exists() {
        return Ok(0);
    }
    let mut removed = 0;
    for name in subfolders(folder) {
        removed += remove_tree(&folder.join(name))?;
    }
    // The last process may be dead but not yet gone from the group.
    for attempt in 0.. {
        match fs::remove_dir(folder) {
            Ok(()) => break,
            Err(error) if error.kind() == io::ErrorKind::NotFound => break,
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) && attempt < 20 => {
                let mut pids = Vec::new();
                collect_processes(folder, &mut pids);
                match pids.first() {
                    Some(&pid) => wait_for_exit(pid, std::time::Duration::from_millis(100)),
                    None => std::thread::sleep(std::time::Duration::from_millis(1 << attempt.min(6))),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(removed + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hybrid_machines_have_v1_controllers_and_the_unified_group() {
        let table = "31 23 0:28 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
            32 31 0:29 / /sys/fs/cgroup/cpu,cpuacct rw shared:1 - cgroup cgroup rw,cpu,cpuacct\n\
            35 31 0:32 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
            40 31 0:37 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
            41 31 0:38 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
        let found = Hierarchies::parse(table);
        assert!(!found.is_v2_only());
        let group = found.group("p/s");
        assert_eq!(group.v1("cpuacct").unwrap(), Path::new("/sys/fs/cgroup/cpu,cpuacct/p/s"));
        assert_eq!(group.v2().unwrap(), Path::new("/sys/fs/cgroup/unified/p/s"));
        assert_eq!(group.v1("pids"), None);
        assert_eq!(found.0.len(), 3);
    }

    #[test]
    fn shares_become_weights() {
        for (shares, weight) in [(0, 1), (2, 1), (1024, 39), (262_144, 10_000)] {
            assert_eq!(shares_to_weight(shares), weight, "{shares}");
        }
        let quota = Resources { cpu_quota_us: Some(-1), ..Resources::default() };
        assert_eq!(cpu_files(&quota, false)[0].3, "max 100000");
        assert_eq!(cpu_files(&quota, true).len(), 2);
    }
}
