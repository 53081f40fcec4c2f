//! A throw-away cluster: each node in network, mount and UTS namespaces of its own.
//!
//! One node for now: a second host can't join yet. What is per node is in [`Host`], so that a second one is one more.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::checked;

/// A machine of the cluster: the namespaces, and the process that holds them.
struct Host {
    name: String,
    holder: Child,
}

impl Host {
    /// A host with a name, a loopback interface and an empty `/run`.
    fn start(name: &str) -> Result<Self> {
        // ends with this tool, however that ends
        let mut unshare = Command::new("setpriv");
        unshare.args([
            "--pdeathsig",
            "KILL",
            "unshare",
            "--net",
            "--mount",
            "--uts",
            "--propagation",
            "private",
            "sleep",
            "infinity",
        ]);
        let holder = unshare.stdin(Stdio::null()).spawn().context("cannot run unshare")?;
        let host = Self { name: name.to_owned(), holder };
        host.wait_for_namespaces()?;
        for line in [
            format!("hostname {name}"),
            "ip link set lo up".into(),
            "mount -t tmpfs tmpfs /run".into(),
            // a default route, as a machine in a network has one: its source address is the node's
            "ip link add outside type bridge && ip address add 172.30.0.2/24 dev outside && ip link set outside up".into(),
            "ip route add default via 172.30.0.1".into(),
        ] {
            checked(host.command("sh").arg("-c").arg(line))?;
        }
        Ok(host)
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

    /// A program on this host.
    fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = Command::new("setpriv");
        command
            .args(["--pdeathsig", "TERM", "nsenter", "-t"])
            .arg(self.holder.id().to_string())
            .args(["-n", "-m", "-u", "--"])
            .arg(program);
        command
    }
}

/// A running cluster. Dropped: everything is removed.
pub(super) struct Cluster {
    binary: PathBuf,
    data: PathBuf,
    host: Host,
    podium: Option<Child>,
}

impl Cluster {
    /// Starts a cluster that has the images; `folder` is for its data and its log, made anew.
    pub(super) fn start(binary: &Path, folder: &Path, images: &[PathBuf]) -> Result<Self> {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let data = folder.join("data");
        let mut cluster =
            Self { binary: binary.to_owned(), data, host: Host::start("node-1")?, podium: None };
        if cluster.data.exists() {
            // left by a run that was killed
            cluster.down()?;
        }
        let mut import = cluster.host.command(binary);
        import.args(["image", "import", "--data-dir"]).arg(&cluster.data).args(images);
        checked(import.stdout(Stdio::null()))?;
        let log = std::fs::File::create(folder.join("podium.log")).context("cannot make the log")?;
        let mut up = cluster.host.command(binary);
        up.args(["up", "--node-name", &cluster.host.name, "--data-dir"]).arg(&cluster.data);
        let mut podium = up.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(log).spawn()?;
        let output = podium.stdout.take().context("no output of podium")?;
        cluster.podium = Some(podium);
        let mut lines = BufReader::new(output).lines();
        for line in lines.by_ref() {
            if line.context("cannot read podium's output")?.starts_with("cluster ready") {
                // what it prints later must not fill the pipe
                std::thread::spawn(move || lines.for_each(drop));
                return Ok(cluster);
            }
        }
        bail!("podium did not start: see {}", folder.join("podium.log").display())
    }

    pub(super) fn kubeconfig(&self) -> PathBuf {
        self.data.join("admin.kubeconfig")
    }

    /// A program on the control plane's host.
    pub(super) fn command(&self, program: &Path) -> Command {
        self.host.command(program)
    }

    /// Whether the process still runs.
    pub(super) fn alive(&mut self) -> bool {
        self.podium.as_mut().is_some_and(|podium| matches!(podium.try_wait(), Ok(None)))
    }

    fn down(&self) -> Result<()> {
        let mut down = self.host.command(&self.binary);
        down.args(["down", "--purge", "--data-dir"]).arg(&self.data);
        checked(down.stdout(Stdio::null()))
    }

    fn stop(&mut self) -> Result<()> {
        if let Some(mut podium) = self.podium.take() {
            checked(Command::new("kill").arg(podium.id().to_string()))?;
            podium.wait().context("cannot wait for podium")?;
        }
        self.down()
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("xtask: something of the cluster is left: {error:#}");
        }
        let ended = self.host.holder.kill().and_then(|()| self.host.holder.wait());
        if let Err(error) = ended {
            eprintln!("xtask: cannot end the holder of the namespaces: {error}");
        }
    }
}
