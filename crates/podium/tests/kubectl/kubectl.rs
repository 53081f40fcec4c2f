//! Running kubectl: to its end, with input, beside the test, and on a terminal.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;

/// How long anything may take on a busy machine.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);

fn program() -> PathBuf {
    std::env::var_os("PODIUM_TEST_KUBECTL").map_or_else(|| "kubectl".into(), PathBuf::from)
}

pub(crate) fn is_there() -> bool {
    Command::new(program()).args(["version", "--client"]).output().is_ok_and(|o| o.status.success())
}

/// kubectl in one namespace.
pub(crate) struct Kubectl {
    kubeconfig: PathBuf,
    namespace: String,
}

impl Kubectl {
    pub(crate) fn new(kubeconfig: &Path, namespace: &str) -> Self {
        Self { kubeconfig: kubeconfig.to_owned(), namespace: namespace.to_owned() }
    }

    /// Where Podium keeps its data.
    pub(crate) fn data_dir(&self) -> &Path {
        self.kubeconfig.parent().unwrap()
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.namespace
    }

    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(program());
        command.env("KUBECONFIG", &self.kubeconfig).args(["--namespace", &self.namespace]).args(arguments);
        command
    }

    /// The same, killed when it takes too long (coreutils' timeout).
    fn limited(&self, arguments: &[&str]) -> Command {
        let kubectl = self.command(arguments);
        let mut command = Command::new("timeout");
        command.args(["--kill-after=5", &PATIENCE.as_secs().to_string()]).arg(kubectl.get_program());
        command
            .args(kubectl.get_args())
            .envs(kubectl.get_envs().filter_map(|(name, value)| Some((name, value?))));
        command
    }

    pub(crate) fn output(&self, arguments: &[&str]) -> Output {
        self.limited(arguments).stdin(Stdio::null()).output().unwrap()
    }

    /// Standard output of a command that must succeed.
    pub(crate) fn run(&self, arguments: &[&str]) -> String {
        checked(arguments, self.output(arguments))
    }

    /// Standard output and exit code, whatever it is.
    pub(crate) fn code(&self, arguments: &[&str]) -> (String, i32) {
        let output = self.output(arguments);
        (String::from_utf8(output.stdout).unwrap(), output.status.code().unwrap())
    }

    /// The same with standard input.
    pub(crate) fn feed(&self, arguments: &[&str], input: &[u8]) -> Vec<u8> {
        let mut child = self.command(arguments).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let (mut stdin, input) = (child.stdin.take().unwrap(), input.to_owned());
        let writer = std::thread::spawn(move || stdin.write_all(&input));
        let output = child.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success(), "{arguments:?}: {}", output.status);
        output.stdout
    }

    pub(crate) fn apply(&self, manifest: &str) {
        self.feed(&["apply", "-f", "-"], manifest.as_bytes());
    }

    /// Runs a command again and again until its output holds a text: conditions of a cluster come about by themselves.
    pub(crate) fn until(&self, arguments: &[&str], want: &str) -> String {
        let begun = Instant::now();
        loop {
            let output = self.output(arguments);
            let text = String::from_utf8(output.stdout).unwrap();
            if text.contains(want) {
                return text;
            }
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(begun.elapsed() < PATIENCE, "{arguments:?}: no {want:?} in\n{text}\n{error}");
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// The same until it says nothing.
    pub(crate) fn until_nothing(&self, arguments: &[&str]) {
        let begun = Instant::now();
        while !self.run(arguments).is_empty() {
            assert!(begun.elapsed() < PATIENCE, "{arguments:?} still says {:?}", self.run(arguments));
            std::thread::sleep(Duration::from_millis(200));
        }
    }

    /// Starts kubectl and waits for a line that begins so; returns the line.
    pub(crate) fn beside(&self, arguments: &[&str], begins: &str) -> (Beside, String) {
        let mut child = self.command(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let line = lines.find_map(|line| line.ok().filter(|line| line.starts_with(begins)));
        let line = line.unwrap_or_else(|| panic!("{arguments:?}: no line begins with {begins:?}"));
        std::thread::spawn(move || lines.for_each(drop));
        (Beside(child), line)
    }

    /// Starts kubectl on a terminal of 24 rows and 80 columns.
    pub(crate) fn terminal(&self, arguments: &[&str]) -> Terminal {
        let master =
            rustix::pty::openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        rustix::pty::grantpt(&master).unwrap();
        rustix::pty::unlockpt(&master).unwrap();
        let name = rustix::pty::ptsname(&master, Vec::new()).unwrap();
        let slave = std::fs::File::options().read(true).write(true).open(name.to_str().unwrap()).unwrap();
        let copy = || Stdio::from(slave.try_clone().unwrap());
        let mut command = self.command(arguments);
        rustix::termios::tcsetwinsize(&master, size(24, 80)).unwrap();
        let child = command.stdin(copy()).stdout(copy()).stderr(copy()).spawn().unwrap();
        Terminal { child, master, seen: String::new() }
    }
}

fn checked(arguments: &[&str], output: Output) -> String {
    let error = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "kubectl {arguments:?}: {}\n{error}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 }
}

/// A kubectl that runs until this is dropped.
pub(crate) struct Beside(Child);

impl Drop for Beside {
    fn drop(&mut self) {
        drop(self.0.kill());
        drop(self.0.wait());
    }
}

/// A kubectl whose standard streams are a terminal.
pub(crate) struct Terminal {
    child: Child,
    master: OwnedFd,
    seen: String,
}

impl Terminal {
    pub(crate) fn send(&mut self, text: &str) {
        let mut rest = text.as_bytes();
        while !rest.is_empty() {
            rest = &rest[rustix::io::write(&self.master, rest).unwrap()..];
        }
    }

    pub(crate) fn resize(&mut self, rows: u16, columns: u16) {
        rustix::termios::tcsetwinsize(&self.master, size(rows, columns)).unwrap();
        let pid = rustix::process::Pid::from_child(&self.child);
        rustix::process::kill_process(pid, rustix::process::Signal::WINCH).unwrap();
    }

    /// Reads until a text has come since the last call.
    pub(crate) fn expect(&mut self, want: &str) {
        let begun = Instant::now();
        while !self.seen.contains(want) {
            assert!(begun.elapsed() < PATIENCE && self.read(), "no {want:?} in {:?}", self.seen);
        }
        self.seen.clear();
    }

    /// False at the end.
    fn read(&mut self) -> bool {
        let mut fds = [PollFd::new(&self.master, PollFlags::IN)];
        let second = Timespec { tv_sec: 1, tv_nsec: 0 };
        if rustix::event::poll(&mut fds, Some(&second)).unwrap() == 0 {
            return true;
        }
        let mut buffer = [0; 4096];
        match rustix::io::read(&self.master, &mut buffer) {
            Ok(count) if count > 0 => {
                self.seen.push_str(&String::from_utf8_lossy(&buffer[..count]));
                true
            }
            Ok(_) | Err(_) => false,
        }
    }

    /// Reads to the end; returns the exit code.
    pub(crate) fn end(mut self) -> i32 {
        let begun = Instant::now();
        loop {
            if let Some(status) = self.child.try_wait().unwrap() {
                return status.code().unwrap();
            }
            if begun.elapsed() > PATIENCE {
                drop(self.child.kill());
                panic!("kubectl does not end: {:?}", self.seen);
            }
            self.read();
        }
    }
}

/// Body of a GET without TLS.
pub(crate) fn get(address: &str) -> String {
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    write!(stream, "GET / HTTP/1.1\r\nHost: {address}\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer.split_once("\r\n\r\n").unwrap().1.to_owned()
}
