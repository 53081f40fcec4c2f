//! `cargo xtask conformance`: Kubernetes' own conformance suite, unmodified, against a throw-away cluster.
//!
//! ```text
//! programs ──▶ suite, kubectl, image programs from the Go module tests/conformance, in a cache outside the checkout
//! images   ──▶ local stand-ins for the test images
//! cluster  ──▶ two nodes with those images, each in namespaces of its own, kept by a process of its own (keeper)
//! suite    ──▶ one process per test, each with a time limit
//! ledger   ──▶ results per commit; known-green.txt and RESULTS.md
//! ```
//!
//! Several runs may go on at a time: each has a [`slot::Slot`] of its own.
//!
//! Needs root, Go, and Debian's apt-get and dpkg-deb for the tools in the images.

mod archive;
mod cluster;
mod fast;
mod hosts;
mod images;
mod keeper;
mod ledger;
mod lock;
mod options;
mod packages;
mod programs;
mod report;
mod slot;
mod suite;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

pub(crate) use fast::run as run_fast;
use keeper::Kept;
use ledger::Ledger;
use options::{Options, USAGE};
use programs::Cache;
use suite::{Limits, State};

/// What is tested, and under which name its results are kept.
struct Subject {
    label: String,
    /// Whether it is a commit, of which results may be published.
    commit: bool,
}

/// Runs the sub-command.
///
/// # Errors
/// When something can't be built or started, or a test that must be green is not.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let module = root.join("tests/conformance");
    if arguments.first().is_some_and(|flag| flag == keeper::FLAG) {
        return keeper::keep(&Cache::open(&module)?.dir, &arguments[1..]);
    }
    let options = options::parse(arguments)?;
    if options.help {
        println!("{USAGE}");
        return Ok(());
    }
    if options.fast {
        return run_fast(root);
    }
    let cache = Cache::open(&module)?;
    let (all, archives) = {
        // one at a time builds, the others find it built
        let _lock = slot::lock(&cache.dir.join("build.lock"))?;
        cache.build(&module)?;
        let all = suite::tests(&cache)?;
        (all, if options.list { Vec::new() } else { images::make(&cache, &module, options.update_images)? })
    };
    if options.list {
        let chosen = choose(&all, &options, &Ledger::open(&cache.dir, &module, commits(root)?)?)?;
        chosen.iter().for_each(|test| println!("{test}"));
        println!("{} tests of {}", chosen.len(), cache.version);
        return Ok(());
    }
    if options.report {
        let grown = Ledger::open(&cache.dir, &module, commits(root)?)?.publish(&all, &date()?)?;
        println!("{grown} newly known green");
        return Ok(());
    }
    if options.build_only || options.update_images {
        return Ok(());
    }
    let begun = Instant::now();
    let (mut cluster, subject) = start(root, &options, &archives)?;
    let known = if subject.commit { commits(root)? } else { vec![subject.label.clone()] };
    let ledger = Ledger::open(&cache.dir, &module, known)?;
    let chosen = choose(&all, &options, &ledger)?;
    let limits = Limits {
        parallel: options.parallel,
        test_seconds: options.test_timeout.as_secs(),
        deadline: options.budget.map(|budget| begun + budget),
    };
    println!(
        "conformance: {} tests of {}, {}, two nodes, local stand-in images; cluster in {}",
        chosen.len(),
        cache.version,
        subject.label,
        cluster.folder.display()
    );
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    cluster.wait_until_ready()?;
    let logs = cache.dir.join("logs").join(&subject.label);
    let mut ran = Ok(());
    for _ in 0..options.repeat.max(1) {
        ran = suite::run(&cache, &cluster, &chosen, &limits, &logs, |outcome| {
            *counts.entry(outcome.state.name()).or_default() += 1;
            println!("{:>7} {:>5} s  {}", outcome.state.name(), outcome.seconds, outcome.test);
            if !outcome.cause.is_empty() {
                println!("                 {}", outcome.cause);
            }
            println!("                 {}", outcome.log.display());
            ledger.add(outcome)
        });
        if ran.is_err() {
            break;
        }
    }
    cluster.keep_logs(&logs)?;
    drop(cluster);
    let seconds = begun.elapsed().as_secs();
    print!("conformance: {counts:?} in {seconds} s; logs in {}", logs.display());
    if subject.commit {
        ledger.add_run(seconds)?;
        println!("; {} newly known green", ledger.publish(&all, &date()?)?);
    } else {
        println!("; not a commit's sources: nothing is published");
    }
    ran?;
    judge(&ledger, &options, &chosen)
}

/// A known green test that isn't green any more fails the run.
fn judge(ledger: &Ledger, options: &Options, chosen: &[String]) -> Result<()> {
    let (history, known) = (ledger.history()?, ledger.known_green()?);
    let last =
        |test: &String| history.get(test).and_then(|results| results.last()).map(|outcome| outcome.state);
    let broken: Vec<&String> = chosen
        .iter()
        .filter(|test| known.contains(*test))
        .filter(|test| last(test).map_or(options.verify, |state| state != State::Passed))
        .collect();
    if broken.is_empty() {
        return Ok(());
    }
    let names: Vec<&str> = broken.iter().map(|name| name.as_str()).collect();
    bail!("{} known green tests are not green:\n  {}", broken.len(), names.join("\n  "))
}

fn choose(all: &[String], options: &Options, ledger: &Ledger) -> Result<Vec<String>> {
    let known = ledger.known_green()?;
    let history = ledger.history()?;
    let last =
        |test: &String| history.get(test).and_then(|results| results.last()).map(|outcome| outcome.state);
    let mut chosen: Vec<String> = all.to_vec();
    chosen.retain(|test| {
        options.area.as_deref().is_none_or(|wanted| report::area(test) == wanted)
            && (!options.verify || known.contains(test))
            && (!options.unknown || !known.contains(test))
            && (!options.confirm || (last(test) == Some(State::Passed) && !known.contains(test)))
            && (!options.resume || last(test).is_none())
    });
    if let Some(focus) = &options.focus {
        let focus = regex::Regex::new(focus).context("--focus is no regular expression")?;
        chosen.retain(|test| focus.is_match(test));
    }
    if let Some(skip) = &options.skip {
        let skip = regex::Regex::new(skip).context("--skip is no regular expression")?;
        chosen.retain(|test| !skip.is_match(test));
    }
    Ok(chosen)
}

/// Starts a cluster with the podium to be tested.
fn start(root: &Path, options: &Options, images: &[PathBuf]) -> Result<(Kept, Subject)> {
    let before = commit(root)?;
    let binary = match &options.binary {
        Some(binary) => binary.clone(),
        None => build_podium(root)?,
    };
    let cluster = Kept::start(&binary, images)?;
    let (head, changed) = commit(root)?;
    // sources that changed while they were built belong to no commit
    if options.binary.is_none() && !changed && before == (head.clone(), false) {
        return Ok((cluster, Subject { label: head, commit: true }));
    }
    let copy = cluster.folder.join("podium");
    let content = std::fs::read(&copy).with_context(|| format!("cannot read {}", copy.display()))?;
    let label = format!("binary-{}", &archive::sha256(&content)[..12]);
    Ok((cluster, Subject { label, commit: false }))
}

fn build_podium(root: &Path) -> Result<PathBuf> {
    checked(crate::cargo().args(["build", "--locked", "-p", "podium"]).current_dir(root))?;
    Ok(target(root).join("debug/podium"))
}

fn target(root: &Path) -> PathBuf {
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from)
}

/// The commit, and whether sources differ from it.
fn commit(root: &Path) -> Result<(String, bool)> {
    let head = output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(root))?;
    let mut status = Command::new("git");
    status.args(["status", "--porcelain", "--", "crates", "Cargo.lock", "Cargo.toml"]);
    let changed = !output(status.current_dir(root))?.is_empty();
    Ok((head, changed))
}

/// This commit and those before it, newest first.
fn commits(root: &Path) -> Result<Vec<String>> {
    let list = output(Command::new("git").args(["log", "--format=%h", "--abbrev=12"]).current_dir(root))?;
    Ok(list.lines().map(str::to_owned).collect())
}

fn date() -> Result<String> {
    output(Command::new("date").args(["-u", "+%Y-%m-%d %H:%M UTC"]))
}

fn output(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// Runs a program that must succeed.
fn checked(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {:?}", command.get_program()))?;
    if !status.success() {
        bail!("{command:?}: {status}");
    }
    Ok(())
}
