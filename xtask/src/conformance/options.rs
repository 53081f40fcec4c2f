//! The flags of `cargo xtask conformance`.

use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};

use super::suite;

pub(super) const USAGE: &str = "usage: cargo xtask conformance [FLAGS]

which tests (default: all)
  --area sig-node      one area
  --focus REGEX        names that match
  --skip REGEX         names that don't match
  --resume             only what has no result on this commit yet
  --confirm            only what passed last on this commit and isn't known green yet
  --not-known-green    only what isn't known green yet
  --verify-ledger      only what is known green; it must all pass
how
  --parallel N         tests at a time (default 1); [Serial] and [Disruptive] ones run alone at the end
  --repeat N           each test N times (default 1)
  --test-timeout 10m   per test (default 10m)
  --budget 60m         begin no test after that time
  --binary PATH        use this podium instead of building one; results are kept apart
instead of a run
  --list               print the tests' names
  --report             write RESULTS.md and known-green.txt from what is known
  --fast               the fixed fast subset of `cargo xtask ci` (tests/conformance/fast.txt), with the podium built last
  --build-only         build the suite and the images
  --update-images      make the images of the newest Debian packages and lock both (tests/conformance/images.lock)

Several runs may go on at a time. Only results of podium built from unchanged sources of a commit get into
known-green.txt and RESULTS.md.";

#[derive(Default)]
pub(super) struct Options {
    pub(super) area: Option<String>,
    pub(super) focus: Option<String>,
    pub(super) skip: Option<String>,
    pub(super) list: bool,
    pub(super) parallel: usize,
    pub(super) budget: Option<Duration>,
    pub(super) test_timeout: Duration,
    pub(super) repeat: usize,
    pub(super) resume: bool,
    /// Only what passed last on this commit and isn't known green.
    pub(super) confirm: bool,
    pub(super) verify: bool,
    /// Only what isn't known green.
    pub(super) unknown: bool,
    pub(super) build_only: bool,
    /// What `cargo xtask ci` does.
    pub(super) fast: bool,
    pub(super) update_images: bool,
    /// A podium that is built already.
    pub(super) binary: Option<PathBuf>,
    /// Only writes the two files.
    pub(super) report: bool,
    pub(super) help: bool,
}

/// Reads the flags.
///
/// # Errors
/// When one is unknown or has no sensible value.
pub(super) fn parse(arguments: &[String]) -> Result<Options> {
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
            "--not-known-green" => options.unknown = true,
            "--verify-ledger" => options.verify = true,
            "--report" => options.report = true,
            "--update-images" => options.update_images = true,
            "--fast" => options.fast = true,
            "--build-only" => options.build_only = true,
            "--binary" => options.binary = Some(PathBuf::from(value()?)),
            "--help" | "-h" => options.help = true,
            other => bail!("unknown flag {other}\n{USAGE}"),
        }
    }
    Ok(options)
}
