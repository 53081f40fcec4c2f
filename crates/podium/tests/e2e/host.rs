//! What Podium makes on a host, and whether it is still there.

#![allow(unsafe_code)]

use std::fs;
use std::os::fd::AsRawFd as _;
use std::path::Path;
use std::sync::OnceLock;

/// Interfaces that a new network namespace has by itself.
static LINKS_BEFORE: OnceLock<Vec<String>> = OnceLock::new();

/// Brings up the loopback interface of the new network namespace (netdevice(7)).
pub(crate) fn prepare() {
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).unwrap();
    // SAFETY: an ifreq is plain data, for which zeros are valid; the descriptor is open and the pointer is to a live local.
    let outcome = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = libc::c_char::try_from(*from).unwrap();
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap();
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    assert_eq!(outcome, 0, "loopback comes up");
    LINKS_BEFORE.get_or_init(links);
}

fn links() -> Vec<String> {
    // /sys shows the namespace it was mounted in; this file shows the reader's
    let table = fs::read_to_string("/proc/thread-self/net/dev").unwrap();
    table
        .lines()
        .skip(2)
        .filter_map(|line| line.split(':').next())
        .map(|name| name.trim().to_owned())
        .collect()
}

/// Interfaces that were made since [`prepare`].
fn made_links() -> Vec<String> {
    let before = LINKS_BEFORE.get().expect("prepare came first");
    let mut links = links();
    links.retain(|link| !before.contains(link));
    links
}

/// Interfaces of pods: the node's own gateway interface is the other kind.
pub(crate) fn pod_links() -> Vec<String> {
    let mut links = made_links();
    links.retain(|link| !link.ends_with("-gw"));
    links
}

/// Number of pods' cgroup folders of this instance in the hierarchy that has most of them; the folders of their quality
/// of service classes stay.
pub(crate) fn pod_cgroups(instance: &str) -> usize {
    cgroup_roots(instance).iter().map(|root| count_pods(Path::new(root))).max().unwrap_or(0)
}

fn cgroup_roots(instance: &str) -> Vec<String> {
    let name = format!("podium-{instance}");
    let mut roots = vec![format!("/sys/fs/cgroup/{name}")];
    for entry in fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten() {
        roots.push(entry.path().join(&name).display().to_string());
    }
    roots.retain(|root| Path::new(root).is_dir());
    roots
}

fn count_pods(folder: &Path) -> usize {
    let children = fs::read_dir(folder).into_iter().flatten().flatten().filter(|e| e.path().is_dir());
    let is_pod = |name: &str| ["pod", "shim-"].iter().any(|prefix| name.starts_with(prefix));
    children
        .map(|child| usize::from(is_pod(&child.file_name().to_string_lossy())) + count_pods(&child.path()))
        .sum()
}

/// Everything of an instance that is still on the host.
pub(crate) fn leftovers(instance: &str, data_dir: &Path) -> Vec<String> {
    let mut left = cgroup_roots(instance);
    left.extend(made_links());
    let run = format!("/run/podium/{instance}");
    if Path::new(&run).exists() {
        left.push(run.clone());
    }
    if data_dir.exists() {
        left.push(data_dir.display().to_string());
    }
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    let data = data_dir.display().to_string();
    left.extend(mounts.lines().filter(|line| line.contains(&run) || line.contains(&data)).map(str::to_owned));
    left.extend(processes(&run));
    left
}

/// Command lines of processes that name the instance's run directory.
fn processes(run: &str) -> Vec<String> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").unwrap().flatten() {
        let Ok(command) = fs::read(entry.path().join("cmdline")) else { continue };
        let command = String::from_utf8_lossy(&command).replace('\0', " ");
        if command.contains(run) {
            found.push(format!("process {}: {command}", entry.file_name().display()));
        }
    }
    found
}
