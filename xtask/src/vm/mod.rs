//! `cargo xtask vm`: the end-to-end test on a machine with pure cgroup v2: a Debian kernel under QEMU.
//!
//! The machine has no disk and no network: kernel and initial file system are all. The latter is made here of a static
//! busybox, the kernel's modules, the release build of `podium`, the end-to-end test and the libraries that they need.
//! QEMU, kernel and busybox are Debian packages, unpacked into a cache outside of the repository and installed nowhere.

mod cpio;
mod image;
mod packages;

use std::io::{BufRead as _, BufReader};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

/// What the machine prints last, with the test's exit code.
const EXIT_MARK: &str = "podium-vm-exit:";
/// How long the machine may take: software emulation is 10 to 30 times slower than the host.
const PATIENCE: Duration = Duration::from_secs(3600);

/// Runs the test, or says why it is skipped.
///
/// # Errors
/// When something can't be made, or the test fails.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let options = Options::parse(arguments)?;
    let cache = packages::cache()?;
    let Some(parts) = packages::provide(&cache)? else {
        println!("skipped: 1 (the QEMU machine: no QEMU, and no apt-get that could fetch it)");
        return Ok(());
    };
    let programs = match &options.programs {
        Some(programs) => programs.clone(),
        None => build(root)?,
    };
    let begun = Instant::now();
    let initrd = cache.join("initrd");
    let test = format!("{} --nocapture", programs.test.display());
    let mut inside = vec![programs.podium.clone(), programs.test.clone()];
    inside.extend(options.more.iter().cloned());
    let command = options.command.as_deref().unwrap_or(&test);
    image::make(options.source.as_deref().unwrap_or(root), &parts, &inside, command, &initrd)?;
    println!("== vm: image of {} MB after {} s", megabytes(&initrd)?, begun.elapsed().as_secs());
    let code = boot(&parts, &initrd)?;
    println!("== vm: {} s", begun.elapsed().as_secs());
    ensure!(code == 0, "the end-to-end test failed on cgroup v2 with exit code {code}");
    Ok(())
}

struct Options {
    programs: Option<Programs>,
    /// Workspace that the programs were built in, if it is another.
    source: Option<PathBuf>,
    /// Shell commands to run instead of the test, to look into a failure.
    command: Option<String>,
    /// Further programs of the host that these need.
    more: Vec<PathBuf>,
}

/// What runs in the machine, by its path on the host, which it also has in the machine.
#[derive(Clone)]
pub(crate) struct Programs {
    pub(crate) podium: PathBuf,
    pub(crate) test: PathBuf,
}

impl Options {
    fn parse(arguments: &[String]) -> Result<Self> {
        const USAGE: &str =
            "usage: cargo xtask vm [--podium FILE --test FILE [--source DIR]] [--run COMMANDS [--add FILE]…]";
        let (mut podium, mut test, mut source, mut command) = (None, None, None, None);
        let mut more = Vec::new();
        let mut rest = arguments.iter();
        while let Some(flag) = rest.next() {
            match flag.as_str() {
                "--podium" => podium = Some(PathBuf::from(rest.next().context(USAGE)?)),
                "--source" => source = Some(PathBuf::from(rest.next().context(USAGE)?)),
                "--run" => command = Some(rest.next().context(USAGE)?.clone()),
                "--add" => more.push(PathBuf::from(rest.next().context(USAGE)?)),
                "--test" => test = Some(PathBuf::from(rest.next().context(USAGE)?)),
                _ => bail!(USAGE),
            }
        }
        let programs = match (podium, test) {
            (Some(podium), Some(test)) => Some(Programs { podium, test }),
            (None, None) => None,
            _ => bail!(USAGE),
        };
        Ok(Self { programs, source, command, more })
    }
}

/// Builds program and test with optimisation: the machine is slow enough.
fn build(root: &Path) -> Result<Programs> {
    let arguments = ["test", "--release", "--locked", "-p", "podium", "--test", "e2e", "--no-run"];
    let output = crate::cargo()
        .args(arguments)
        .arg("--message-format=json-render-diagnostics")
        .current_dir(root)
        .stderr(Stdio::inherit())
        .output()
        .context("cannot run cargo")?;
    ensure!(output.status.success(), "the build failed");
    let text = String::from_utf8_lossy(&output.stdout);
    let messages = text.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let mut programs = (None, None);
    for message in messages {
        let Some(file) = message["executable"].as_str().map(PathBuf::from) else { continue };
        match message["target"]["name"].as_str() {
            Some("podium") => programs.0 = Some(file),
            Some("e2e") => programs.1 = Some(file),
            _ => {}
        }
    }
    let (podium, test) = programs;
    Ok(Programs { podium: podium.context("no podium was built")?, test: test.context("no test was built")? })
}

/// Runs the machine and passes its console on; gives the test's exit code.
fn boot(parts: &packages::Parts, initrd: &Path) -> Result<i32> {
    let mut command = parts.qemu();
    command.args(["-machine", "q35,accel=tcg", "-cpu", "max", "-smp", "2", "-m", "4096"]);
    command.args(["-no-reboot", "-no-user-config", "-nodefaults"]);
    command.args(["-display", "none", "-serial", "stdio", "-kernel"]).arg(&parts.kernel);
    command.arg("-initrd").arg(initrd);
    command.args(["-append", "console=ttyS0 panic=-1 quiet cgroup_no_v1=all"]);
    let mut child = command.stdin(Stdio::null()).stdout(Stdio::piped()).spawn().context("cannot run QEMU")?;
    let output = child.stdout.take().context("QEMU has no output")?;
    let (sender, lines) = mpsc::channel();
    let reader = std::thread::spawn(move || {
        let mut input = BufReader::new(output);
        let mut line = Vec::new();
        while input.read_until(b'\n', &mut line).is_ok_and(|length| length > 0) {
            let text = String::from_utf8_lossy(&line).trim_end().to_owned();
            line.clear();
            if sender.send(text).is_err() {
                return;
            }
        }
    });
    let deadline = Instant::now() + PATIENCE;
    let mut code = None;
    while let Ok(line) = lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
        println!("   vm| {line}");
        if let Some(number) = line.strip_prefix(EXIT_MARK) {
            code = number.trim().parse().ok();
        }
    }
    if child.try_wait().context("cannot wait for QEMU")?.is_none() && Instant::now() >= deadline {
        child.kill().context("cannot stop QEMU")?;
    }
    child.wait().context("cannot wait for QEMU")?;
    ensure!(reader.join().is_ok(), "reading the machine's console failed");
    code.with_context(|| {
        format!("the machine ended, or was ended after {} s, without a result", PATIENCE.as_secs())
    })
}

fn megabytes(path: &Path) -> Result<u64> {
    Ok(std::fs::metadata(path).with_context(|| format!("cannot read {}", path.display()))?.len() >> 20)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_come_in_pairs() {
        let parse = |text: &str| {
            let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            Options::parse(&arguments)
        };
        assert!(parse("").unwrap().programs.is_none());
        assert_eq!(parse("--podium a --test b").unwrap().programs.unwrap().test, PathBuf::from("b"));
        for wrong in ["--podium a", "--test", "x"] {
            assert!(parse(wrong).is_err(), "{wrong}");
        }
    }
}
