//! A running `podium server`, seen from outside.

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use base64::Engine as _;
use client::{Client, HttpTransport, Identity};

/// How long a condition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

pub(crate) struct Server {
    pub(crate) data: PathBuf,
    child: Child,
}

impl Server {
    /// Starts and waits until it is ready.
    pub(crate) fn start(data: &Path) -> Self {
        Self::start_by(Command::new(env!("CARGO_BIN_EXE_podium")), data)
    }

    /// The same by a command that runs the program with the arguments that are added to it.
    pub(crate) fn start_by(mut command: Command, data: &Path) -> Self {
        command.args(["server", "--listen", "127.0.0.1:0", "--data-dir"]).arg(data);
        let mut child = command.stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        while !lines.next().expect("podium ended early").unwrap().starts_with("cluster ready") {}
        std::thread::spawn(move || lines.for_each(drop));
        Self { data: data.to_owned(), child }
    }

    /// Stops it as a service manager does.
    pub(crate) fn stop(mut self) {
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        assert!(self.child.wait().unwrap().success(), "SIGTERM is a clean stop");
    }

    /// Waits until it ends by itself.
    pub(crate) fn ended(mut self) -> std::process::ExitStatus {
        self.child.wait().unwrap()
    }

    pub(crate) fn access(&self) -> Access {
        Access::read(&self.data)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

/// What the administrator's kubeconfig says.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct Access {
    pub(crate) url: String,
    pub(crate) ca_pem: String,
    pub(crate) cert_pem: String,
    pub(crate) key_pem: String,
}

impl Access {
    pub(crate) fn read(data: &Path) -> Self {
        let text = std::fs::read_to_string(data.join("admin.kubeconfig")).unwrap();
        let value = |field: &str| {
            let mut found = text.lines().filter_map(|line| line.trim().strip_prefix(&format!("{field}: ")));
            found.next().unwrap().to_owned()
        };
        let decoded = |field: &str| {
            let bytes = base64::engine::general_purpose::STANDARD.decode(value(field)).unwrap();
            String::from_utf8(bytes).unwrap()
        };
        Self {
            url: value("server"),
            ca_pem: decoded("certificate-authority-data"),
            cert_pem: decoded("client-certificate-data"),
            key_pem: decoded("client-key-data"),
        }
    }

    pub(crate) fn admin(&self) -> Client {
        let (cert_pem, key_pem) = (self.cert_pem.clone(), self.key_pem.clone());
        self.client(Identity::ClientCert { cert_pem, key_pem })
    }

    pub(crate) fn client(&self, identity: Identity) -> Client {
        let transport = HttpTransport::new(&self.url, &self.ca_pem, identity).unwrap();
        Client::new(Arc::new(transport), "alive")
    }
}

/// Asks again and again until a condition holds.
pub(crate) async fn eventually(what: &str, condition: impl AsyncFn() -> bool) {
    let begun = Instant::now();
    while !condition().await {
        assert!(begun.elapsed() < PATIENCE, "not within {} s: {what}", PATIENCE.as_secs());
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}
