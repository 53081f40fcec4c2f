//! What /proc says.

#![allow(unsafe_code)]

use std::fs;
use std::os::fd::AsRawFd as _;

use anyhow::{Context as _, Result, ensure};

/// Brings up the loopback interface of the new network namespace (netdevice(7)). Refuses the host's own namespace.
pub(crate) fn prepare() -> Result<()> {
    let routes = fs::read_to_string("/proc/thread-self/net/route").context("cannot read the routes")?;
    ensure!(
        routes.lines().count() <= 1,
        "run it in a network namespace of its own: cargo xtask bench footprint"
    );
    let socket = std::net::UdpSocket::bind(("0.0.0.0", 0)).context("no socket")?;
    // SAFETY: an ifreq is plain data, for which zeros are valid; the descriptor is open and the pointer is to a live local.
    let outcome = unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
            *to = libc::c_char::try_from(*from).unwrap_or(0);
        }
        request.ifr_ifru.ifru_flags = libc::c_short::try_from(libc::IFF_UP | libc::IFF_RUNNING).unwrap_or(0);
        libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &raw const request)
    };
    ensure!(outcome == 0, "the loopback interface does not come up");
    Ok(())
}

/// A number of a `Name:  123 kB` file, in kB.
fn kilobytes(file: &str, name: &str) -> Result<u64> {
    let text = fs::read_to_string(file).with_context(|| format!("cannot read {file}"))?;
    let line =
        text.lines().find(|line| line.starts_with(name)).with_context(|| format!("no {name} in {file}"))?;
    line.split_whitespace().nth(1).and_then(|number| number.parse().ok()).context("not a number")
}

pub(crate) fn resident_kb(pid: u32) -> Result<u64> {
    kilobytes(&format!("/proc/{pid}/status"), "VmRSS:")
}

/// Proportional share of memory (proc(5), smaps_rollup).
pub(crate) fn pss_kb(pid: u32) -> Result<u64> {
    kilobytes(&format!("/proc/{pid}/smaps_rollup"), "Pss:")
}

/// Processor time used so far in seconds, of all threads.
pub(crate) fn processor_seconds(pid: u32) -> Result<f64> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let fields: Vec<&str> = text.rsplit_once(')').context("no command")?.1.split_whitespace().collect();
    let ticks: u64 = fields.get(11..13).context("short")?.iter().filter_map(|n| n.parse::<u64>().ok()).sum();
    Ok(ticks as f64 / rustix::param::clock_ticks_per_second() as f64)
}

/// Bytes that a process caused to be written to disk.
pub(crate) fn written_bytes(pid: u32) -> Result<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/io"))?;
    let line = text.lines().find_map(|line| line.strip_prefix("write_bytes: ")).context("no write_bytes")?;
    Ok(line.parse()?)
}

/// Shims: the spawner, a child of the agent, forks one per pod, which keeps its command line.
pub(crate) fn shims(agent: u32) -> Vec<u32> {
    let parents = spawned();
    let spawners: Vec<u32> =
        parents.iter().filter(|(_, parent)| *parent == agent).map(|(pid, _)| *pid).collect();
    parents.into_iter().filter(|(_, parent)| spawners.contains(parent)).map(|(pid, _)| pid).collect()
}

/// Processes that are a spawner or were forked from one, with their parents.
fn spawned() -> Vec<(u32, u32)> {
    let mut found = Vec::new();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if !String::from_utf8_lossy(&command).contains("spawner") {
            continue;
        }
        let stat = fs::read_to_string(entry.path().join("stat")).unwrap_or_default();
        let parent = stat.rsplit_once(')').and_then(|(_, rest)| rest.split_whitespace().nth(1)?.parse().ok());
        found.extend(parent.map(|parent| (pid, parent)));
    }
    found
}
