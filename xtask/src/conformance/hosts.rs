//! Machines of a throw-away cluster: network, mount and UTS namespaces, joined by a wire.
//!
//! ```text
//!   node-1  192.168.77.1 ──── veth ──── 192.168.77.2  node-2
//! ```
//!
//! Both have their own `/run` and `/tmp`; the rest of the file system is this machine's.

use std::ffi::OsStr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::checked;

const NETWORK: &str = "192.168.77";
/// The interface at each end of the wire.
const WIRE: &str = "wire0";

/// A machine: its namespaces and the process that holds them. Dropped: the holder ends, and the kernel removes what
/// no other process uses.
pub(super) struct Host {
    pub(super) name: String,
    pub(super) address: String,
    holder: Child,
}

impl Host {
    /// A machine that is alone so far. `folder` is where it may keep files.
    pub(super) fn start(number: usize, folder: &Path) -> Result<Self> {
        let (name, address) = (format!("node-{number}"), format!("{NETWORK}.{number}"));
        let mut unshare = Command::new("setpriv");
        // ends with this process, however that ends
        unshare.args(["--pdeathsig", "KILL", "unshare", "--net", "--mount", "--uts"]);
        unshare.args(["--propagation", "private", "sleep", "infinity"]);
        let holder = unshare.stdin(Stdio::null()).spawn().context("cannot run unshare")?;
        let host = Self { name, address, holder };
        host.wait_for_namespaces()?;
        host.run(&["hostname", &host.name])?;
        host.run(&["ip", "link", "set", "lo", "up"])?;
        host.run(&["mount", "-t", "tmpfs", "tmpfs", "/run"])?;
        // what lies in /tmp of this machine would be in the way, unless the cluster itself lies there
        if !folder.starts_with("/tmp") {
            host.run(&["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", "/tmp"])?;
        }
        Ok(host)
    }

    /// Lays a wire between two machines, as if both were on one switch.
    pub(super) fn connect(&self, other: &Self) -> Result<()> {
        let pid = other.pid();
        self.run(&["ip", "link", "add", WIRE, "type", "veth", "peer", "name", WIRE, "netns", &pid])?;
        for host in [self, other] {
            host.run(&["ip", "address", "add", &format!("{}/24", host.address), "dev", WIRE])?;
            host.run(&["ip", "link", "set", WIRE, "up"])?;
            // as machines in a network have one; nobody is there
            host.run(&["ip", "route", "add", "default", "via", &format!("{NETWORK}.254")])?;
        }
        Ok(())
    }

    /// Process that is in the namespaces.
    pub(super) fn pid(&self) -> String {
        self.holder.id().to_string()
    }

    /// A program on this machine; it is asked to end when the thread that starts it ends.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        inside(&self.pid(), program)
    }

    fn run(&self, command: &[&str]) -> Result<()> {
        checked(self.command(command[0]).args(&command[1..]))
    }

    /// Waits until the holder has left this process's namespaces.
    fn wait_for_namespaces(&self) -> Result<()> {
        let ours = std::fs::read_link("/proc/self/ns/uts").context("cannot read a namespace")?;
        let theirs = format!("/proc/{}/exe", self.holder.id());
        let place = format!("/proc/{}/ns/uts", self.holder.id());
        for _ in 0..500 {
            let moved = std::fs::read_link(&place).is_ok_and(|found| found != ours);
            // unshare has become the sleeper: nothing is left to be set up
            if moved && std::fs::read_link(&theirs).is_ok_and(|exe| exe.ends_with("sleep")) {
                return Ok(());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        bail!("no namespaces for {}: root is needed", self.name)
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        if let Err(error) = self.holder.kill().and_then(|()| self.holder.wait()) {
            eprintln!("xtask: cannot end the holder of {}: {error}", self.name);
        }
    }
}

/// A program in the namespaces of a process.
pub(super) fn inside(pid: &str, program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "TERM", "nsenter", "-t", pid, "-n", "-m", "-u", "--"]).arg(program);
    command
}
