//! A throw-away cluster of two nodes: `podium up` on one machine, `podium agent` on the other, joined with a token.

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};

use super::checked;
use super::hosts::Host;

/// Process ids of the podiums that run, for whoever must end them from another thread.
pub(super) type Running = Arc<Mutex<Vec<u32>>>;

/// A running cluster. Dropped: everything is removed.
pub(super) struct Cluster {
    binary: PathBuf,
    nodes: Vec<Node>,
    running: Running,
    ended: Arc<dyn Fn(&str) + Send + Sync>,
}

struct Node {
    host: Host,
    data: PathBuf,
    podium: Option<Child>,
}

impl Cluster {
    /// Starts a cluster that has the images. `folder` is for its data and its logs; `ended` is told the name of a
    /// node whose podium ends.
    pub(super) fn start(
        binary: &Path,
        folder: &Path,
        images: &[PathBuf],
        running: Running,
        ended: impl Fn(&str) + Send + Sync + 'static,
    ) -> Result<Self> {
        let mut cluster =
            Self { binary: binary.to_owned(), nodes: Vec::new(), running, ended: Arc::new(ended) };
        for (number, data) in (1..).zip(data_folders(folder)) {
            cluster.nodes.push(Node { host: Host::start(number, folder)?, data, podium: None });
        }
        cluster.nodes[0].host.connect(&cluster.nodes[1].host)?;
        cluster.import(images)?;
        let server = format!("https://{}:6443", cluster.nodes[0].host.address);
        cluster.run(0, folder, &["up"], "cluster ready")?;
        let token = cluster.token()?;
        cluster.run(1, folder, &["agent", "--server", &server, "--token", &token], "node node-2 is part")?;
        Ok(cluster)
    }

    /// Removes what a run left that was killed.
    pub(super) fn sweep(binary: &Path, folder: &Path) -> Result<()> {
        for data in data_folders(folder).iter().filter(|data| data.exists()) {
            let host = Host::start(1, folder)?;
            // a podium that was told to end takes its time
            let attempts = (0..20).map(|_| {
                let outcome = down(&host, binary, data);
                outcome.inspect_err(|_| std::thread::sleep(Duration::from_secs(1)))
            });
            let last = attempts.reduce(|last, next| if last.is_ok() { last } else { next });
            last.unwrap_or(Ok(()))?;
        }
        Ok(())
    }

    /// Process in the namespaces of the machine with the control plane.
    pub(super) fn first(&self) -> String {
        self.nodes[0].host.pid()
    }

    /// Both nodes at a time.
    fn import(&self, images: &[PathBuf]) -> Result<()> {
        std::thread::scope(|scope| {
            let imports = self.nodes.iter().map(|node| {
                let mut import = node.host.command(&self.binary);
                import.args(["image", "import", "--data-dir"]).arg(&node.data).args(images);
                import.stdin(Stdio::null()).stdout(Stdio::null());
                scope.spawn(move || checked(&mut import))
            });
            let imports: Vec<_> = imports.collect();
            imports.into_iter().try_for_each(|import| {
                import.join().unwrap_or_else(|_| Err(anyhow!("importing images panicked")))
            })
        })
    }

    fn token(&self) -> Result<String> {
        let node = &self.nodes[0];
        let mut create = node.host.command(&self.binary);
        let line = super::output(create.args(["token", "create", "--data-dir"]).arg(&node.data))?;
        line.split_whitespace().last().map(str::to_owned).context("`podium token create` printed no token")
    }

    /// Starts podium on a node and waits for a line of it.
    fn run(&mut self, node: usize, folder: &Path, command: &[&str], ready: &str) -> Result<()> {
        let node = &mut self.nodes[node];
        let name = node.host.name.clone();
        let log = folder.join(format!("{name}.log"));
        let errors = File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
        let mut podium = node.host.command(&self.binary);
        podium.args(command).args(["--node-name", &name, "--node-ip", &node.host.address, "--data-dir"]);
        podium.arg(&node.data).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut podium = podium.spawn().context("cannot run podium")?;
        let output = podium.stdout.take().context("no output of podium")?;
        self.running.lock().map_err(|_| anyhow!("another thread failed"))?.push(podium.id());
        node.podium = Some(podium);
        let mut lines = BufReader::new(output).lines();
        for line in lines.by_ref() {
            if line.context("cannot read podium's output")?.starts_with(ready) {
                let ended = Arc::clone(&self.ended);
                // what it prints later must not fill the pipe
                std::thread::spawn(move || {
                    lines.for_each(drop);
                    ended(&name);
                });
                return Ok(());
            }
        }
        bail!("{name} did not start: see {}", log.display())
    }

    fn stop(&mut self) -> Result<()> {
        // agents first: their goodbyes need a server
        for node in self.nodes.iter_mut().rev() {
            let Some(mut podium) = node.podium.take() else { continue };
            if podium.try_wait()?.is_none() {
                checked(Command::new("kill").arg(podium.id().to_string()))?;
            }
            podium.wait().context("cannot wait for podium")?;
        }
        for node in self.nodes.iter().filter(|node| node.data.exists()) {
            down(&node.host, &self.binary, &node.data)?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        if let Err(error) = self.stop() {
            eprintln!("xtask: something of the cluster is left, the next run removes it: {error:#}");
        }
    }
}

/// The administrator's access to the cluster in a folder.
pub(super) fn kubeconfig(folder: &Path) -> PathBuf {
    data_folders(folder)[0].join("admin.kubeconfig")
}

fn data_folders(folder: &Path) -> [PathBuf; 2] {
    [folder.join("data-1"), folder.join("data-2")]
}

fn down(host: &Host, binary: &Path, data: &Path) -> Result<()> {
    checked(host.command(binary).args(["down", "--purge", "--data-dir"]).arg(data).stdout(Stdio::null()))
}
