//! `cargo xtask conformance`: Kubernetes' own conformance suite, unmodified, against a throw-away cluster.
//!
//! ```text
//! programs ──▶ suite, kubectl, image programs from the Go module tests/conformance, in a cache outside the checkout
//! images   ──▶ local stand-ins for the test images
//! cluster  ──▶ podium in namespaces of its own, with those images
//! suite    ──▶ one process per test, each with a time limit
//! ledger   ──▶ results per commit; known-green.txt and RESULTS.md
//! ```
//!
//! Needs root, Go, and Debian's apt-get and dpkg-deb for the tools in the images.

mod archive;
mod cluster;
mod images;
mod ledger;
mod programs;
mod suite;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use cluster::Cluster;
use ledger::{Ledger, area};
use programs::Cache;
use suite::{Limits, State};

const USAGE: &str = "usage: cargo xtask conformance [--area sig-node] [--focus REGEX] [--skip REGEX] [--list] [--parallel N] [--budget 60m] \
[--test-timeout 10m] [--repeat N] [--resume] [--confirm] [--verify-ledger] [--build-only]";

#[derive(Default)]
struct Options {
    area: Option<String>,
    focus: Option<String>,
    skip: Option<String>,
    list: bool,
    parallel: usize,
    budget: Option<Duration>,
    test_timeout: Duration,
    repeat: usize,
    resume: bool,
    /// Only what passed last on this commit and isn't known green.
    confirm: bool,
    verify: bool,
    build_only: bool,
}

/// Runs the sub-command.
///
/// # Errors
/// When something can't be built or started, or a test that must be green is not.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let options = parse(arguments)?;
    let module = root.join("tests/conformance");
    let cache = Cache::open(&module)?;
    cache.build(&module)?;
    let all = suite::tests(&cache)?;
    let commit = commit(root)?;
    let ledger = Ledger::open(&cache.dir, &module, &commit)?;
    let chosen = choose(&all, &options, &ledger)?;
    if options.list {
        chosen.iter().for_each(|test| println!("{test}"));
        println!("{} tests of {}", chosen.len(), cache.version);
        return Ok(());
    }
    let archives = images::make(&cache)?;
    if options.build_only {
        return Ok(());
    }
    let begun = Instant::now();
    let binary = build_podium(root, &cache)?;
    let folder = cache.dir.join("cluster");
    let limits = Limits {
        parallel: options.parallel,
        test_seconds: options.test_timeout.as_secs(),
        deadline: options.budget.map(|budget| begun + budget),
    };
    println!(
        "conformance: {} tests of {}, commit {commit}, one node, local stand-in images",
        chosen.len(),
        cache.version
    );
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut cluster = Cluster::start(&binary, &folder, &archives)?;
    let logs = cache.dir.join("logs").join(&commit);
    let mut ran = Ok(());
    for _ in 0..options.repeat.max(1) {
        ran = suite::run(&cache, &mut cluster, &chosen, &limits, &logs, |outcome| {
            *counts.entry(outcome.state.name()).or_default() += 1;
            println!("{:>7} {:>5} s  {}", outcome.state.name(), outcome.seconds, outcome.test);
            if !outcome.cause.is_empty() {
                println!("                 {}", outcome.cause);
            }
            ledger.add(outcome)
        });
        if ran.is_err() {
            break;
        }
    }
    drop(cluster);
    let seconds = begun.elapsed().as_secs();
    let grown = ledger.publish(&all, seconds, &date()?)?;
    println!("conformance: {counts:?} in {seconds} s; {grown} newly known green; logs in {}", logs.display());
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
        options.area.as_deref().is_none_or(|wanted| area(test) == wanted)
            && (!options.verify || known.contains(test))
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

fn parse(arguments: &[String]) -> Result<Options> {
    let mut options =
        Options { parallel: 1, test_timeout: Duration::from_secs(600), repeat: 1, ..Options::default() };
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let mut value = || rest.next().cloned().with_context(|| format!("{flag} needs a value\n{USAGE}"));
        match flag.as_str() {
            "--area" => options.area = Some(value()?),
            "--focus" => options.focus = Some(value()?),
            "--skip" => options.skip = Some(value()?),
            "--parallel" => options.parallel = value()?.parse().context("--parallel needs a number")?,
            "--repeat" => options.repeat = value()?.parse().context("--repeat needs a number")?,
            "--budget" => options.budget = Some(suite::duration(&value()?)?),
            "--test-timeout" => options.test_timeout = suite::duration(&value()?)?,
            "--list" => options.list = true,
            "--resume" => options.resume = true,
            "--confirm" => options.confirm = true,
            "--verify-ledger" => options.verify = true,
            "--build-only" => options.build_only = true,
            other => bail!("unknown flag {other}\n{USAGE}"),
        }
    }
    Ok(options)
}

/// Builds podium and copies it away: a later build doesn't change what runs.
fn build_podium(root: &Path, cache: &Cache) -> Result<PathBuf> {
    let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    checked(Command::new(cargo).args(["build", "--locked", "-p", "podium"]).current_dir(root))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), PathBuf::from);
    let binary = cache.program("podium");
    let built = target.join("debug/podium");
    let partial = binary.with_extension("partial");
    std::fs::copy(&built, &partial).with_context(|| format!("cannot copy {}", built.display()))?;
    std::fs::rename(&partial, &binary).with_context(|| format!("cannot keep {}", binary.display()))?;
    Ok(binary)
}

/// The commit, with `-changed` when sources differ from it.
fn commit(root: &Path) -> Result<String> {
    let head = output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]).current_dir(root))?;
    let mut status = Command::new("git");
    status.args([
        "status",
        "--porcelain",
        "--untracked-files=no",
        "--",
        "crates",
        "Cargo.lock",
        "Cargo.toml",
    ]);
    let changed = !output(status.current_dir(root))?.is_empty();
    Ok(if changed { format!("{head}-changed") } else { head })
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
