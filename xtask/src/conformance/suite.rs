//! Runs the suite: one process per test, so that each has a time limit and a result of its own.

use std::collections::VecDeque;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Mutex;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::Value;

use super::keeper::Kept;
use super::programs::Cache;

/// Media type of the requests of the suite: what it uses by itself.
pub(super) const CONTENT_TYPE: &str = "application/vnd.kubernetes.protobuf";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    Passed,
    Failed,
    Skipped,
    /// Passed and failed on one commit; no single run comes to this.
    Flaky,
}

impl State {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Passed => "passed",
            Self::Failed => "failed",
            Self::Skipped => "skipped",
            Self::Flaky => "flaky",
        }
    }

    pub(super) fn parse(name: &str) -> Self {
        match name {
            "passed" => Self::Passed,
            "skipped" => Self::Skipped,
            "flaky" => Self::Flaky,
            _ => Self::Failed,
        }
    }
}

/// What became of a test.
#[derive(Clone, Debug)]
pub(super) struct Outcome {
    pub(super) test: String,
    pub(super) state: State,
    pub(super) seconds: u64,
    /// One line; empty when it passed.
    pub(super) cause: String,
    /// What the suite said; empty when it isn't known any more.
    pub(super) log: PathBuf,
}

/// How to run.
pub(super) struct Limits {
    pub(super) parallel: usize,
    /// Per test, in seconds.
    pub(super) test_seconds: u64,
    /// No test is begun after it.
    pub(super) deadline: Option<Instant>,
}

/// Names of the suite's conformance tests, by its own dry run; kept in the cache.
pub(super) fn tests(cache: &Cache) -> Result<Vec<String>> {
    let list = cache.dir.join("tests.txt");
    if !list.exists() {
        let report = cache.dir.join("tests.json");
        let mut command = Command::new(cache.program("e2e.test"));
        command.args(["--ginkgo.dry-run", "--ginkgo.focus=\\[Conformance\\]", "--provider=skeleton"]);
        command.arg(format!("--ginkgo.json-report={}", report.display()));
        super::checked(command.stdout(Stdio::null()).stderr(Stdio::null()))?;
        let mut names: Vec<String> =
            specs(&report)?.into_iter().filter(|spec| spec.1 != State::Skipped).map(|spec| spec.0).collect();
        names.sort();
        fs::write(&list, names.join("\n") + "\n")
            .with_context(|| format!("cannot write {}", list.display()))?;
    }
    let text = fs::read_to_string(&list).with_context(|| format!("cannot read {}", list.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// Runs tests, those marked `[Serial]` or `[Disruptive]` alone at the end; reports each when it ends.
pub(super) fn run(
    cache: &Cache,
    cluster: &Kept,
    tests: &[String],
    limits: &Limits,
    logs: &Path,
    mut report: impl FnMut(&Outcome) -> Result<()> + Send,
) -> Result<()> {
    fs::create_dir_all(logs).with_context(|| format!("cannot make {}", logs.display()))?;
    let (serial, parallel): (Vec<_>, Vec<_>) =
        tests.iter().cloned().partition(|test| test.contains("[Serial]") || test.contains("[Disruptive]"));
    for (group, workers) in [(parallel, limits.parallel.max(1)), (serial, 1)] {
        let queue = Mutex::new(VecDeque::from(group));
        let report = Mutex::new(&mut report);
        let work = || -> Result<()> {
            loop {
                let late = limits.deadline.is_some_and(|deadline| Instant::now() >= deadline);
                let next = queue.lock().map_err(|_| anyhow::anyhow!("another worker failed"))?.pop_front();
                let Some(test) = next.filter(|_| !late) else { return Ok(()) };
                let outcome = run_one(cache, cluster, &test, limits.test_seconds, logs)?;
                (report.lock().map_err(|_| anyhow::anyhow!("another worker failed"))?)(&outcome)?;
            }
        };
        std::thread::scope(|scope| {
            let workers: Vec<_> = (0..workers).map(|_| scope.spawn(work)).collect();
            workers.into_iter().try_for_each(|worker| match worker.join() {
                Ok(outcome) => outcome,
                Err(_) => bail!("a worker panicked"),
            })
        })?;
        if !cluster.alive() {
            bail!("podium ended while the tests ran: see its log");
        }
    }
    Ok(())
}

fn run_one(cache: &Cache, cluster: &Kept, test: &str, seconds: u64, logs: &Path) -> Result<Outcome> {
    let stem = super::archive::sha256(test.as_bytes())[..16].to_owned();
    let (log, report) = (logs.join(format!("{stem}.log")), logs.join(format!("{stem}.json")));
    if report.exists() {
        fs::remove_file(&report)?;
    }
    let output = fs::File::create(&log).with_context(|| format!("cannot make {}", log.display()))?;
    let mut command = cluster.command("timeout");
    // the suite cleans up after its own time limit; this one is for a suite that hangs
    command.args(["--kill-after=10", &(seconds + 60).to_string()]).arg(cache.program("e2e.test"));
    command.arg(format!("--kubeconfig={}", cluster.kubeconfig().display()));
    command.arg(format!("--kubectl-path={}", cache.program("kubectl").display()));
    command.arg(format!("--kube-api-content-type={CONTENT_TYPE}"));
    command.args(["--provider=skeleton", "--dns-domain=cluster.local", "--disable-log-dump"]);
    command.args(["--node-schedulable-timeout=30s", "--system-pods-startup-timeout=30s"]);
    command.args(["--ginkgo.v", "--ginkgo.no-color", &format!("--ginkgo.timeout={seconds}s")]);
    command.arg(format!("--ginkgo.focus={}$", escaped(test)));
    command.arg(format!("--ginkgo.json-report={}", report.display()));
    command.stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
    let begun = Instant::now();
    let status = command.status().context("cannot run the suite")?;
    let seconds = begun.elapsed().as_secs();
    let found = if report.exists() {
        let specs = specs(&report)?;
        // it lists all tests of the suite: too much to be kept for each
        fs::remove_file(&report)?;
        specs.into_iter().find(|spec| spec.0 == test)
    } else {
        None
    };
    let (state, cause) = match found {
        Some((_, state, cause)) => (state, cause),
        None => (State::Failed, format!("no result from the suite ({status}): {}", set_up_failure(&log)?)),
    };
    Ok(Outcome { test: test.to_owned(), state, seconds, cause, log })
}

/// Why nothing ran: the suite's set-up says so in its log.
fn set_up_failure(log: &Path) -> Result<String> {
    let text = String::from_utf8_lossy(&fs::read(log)?).into_owned();
    let line = text.lines().rev().find(|line| line.contains("[FAIL") || line.contains("rror"));
    Ok(line.unwrap_or_default().trim().to_owned())
}

/// Name, state and cause of each test of a Ginkgo JSON report.
fn specs(report: &Path) -> Result<Vec<(String, State, String)>> {
    let text = fs::read(report).with_context(|| format!("cannot read {}", report.display()))?;
    let suites: Vec<Value> = serde_json::from_slice(&text).context("unreadable report")?;
    Ok(suites.iter().flat_map(|suite| suite["SpecReports"].as_array()).flatten().filter_map(spec).collect())
}

fn spec(report: &Value) -> Option<(String, State, String)> {
    if report["LeafNodeType"] != "It" {
        return None;
    }
    let outer = report["ContainerHierarchyTexts"].as_array().into_iter().flatten().filter_map(Value::as_str);
    let words: Vec<&str> = outer.chain(report["LeafNodeText"].as_str()).collect();
    let state = match report["State"].as_str() {
        Some("passed") => State::Passed,
        Some("skipped" | "pending") => State::Skipped,
        _ => State::Failed,
    };
    let failure = &report["Failure"];
    let mut cause = cause(failure["Message"].as_str().unwrap_or_default());
    if report["State"] == "timedout" {
        let step = failure["ProgressReport"]["CurrentStepText"].as_str();
        cause = format!("out of time at: {}", step.unwrap_or("an unnamed step"));
    }
    Some((words.join(" "), state, cause))
}

/// The first telling lines of a failure, as one line of bounded length.
fn cause(message: &str) -> String {
    let words: Vec<&str> = message.split_whitespace().collect();
    words.join(" ").chars().take(300).collect()
}

/// A text as a regular expression that matches it.
fn escaped(text: &str) -> String {
    let special = |c: char| r"\.+*?()|[]{}^$".contains(c);
    text.chars().flat_map(|c| special(c).then_some('\\').into_iter().chain([c])).collect()
}

/// `90s`, `60m`, `2h` or seconds.
pub(super) fn duration(text: &str) -> Result<Duration> {
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let factor = match unit {
        "" | "s" => 1,
        "m" => 60,
        "h" => 3600,
        _ => bail!("{text:?} is no duration: write 90s, 60m or 2h"),
    };
    let number: u64 = number.parse().with_context(|| format!("{text:?} is no duration"))?;
    Ok(Duration::from_secs(number * factor))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_report_gives_names_states_and_causes() {
        let report = json!({"ContainerHierarchyTexts": ["[sig-x] A", "b"], "LeafNodeType": "It",
            "LeafNodeText": "should [Conformance]", "State": "failed", "Failure": {"Message": "one\n  two"}});
        let (name, state, cause) = spec(&report).unwrap();
        assert_eq!(
            (name.as_str(), state, cause.as_str()),
            ("[sig-x] A b should [Conformance]", State::Failed, "one two")
        );
        assert!(spec(&json!({"LeafNodeType": "BeforeSuite"})).is_none());
        let late = json!({"LeafNodeType": "It", "LeafNodeText": "x", "State": "timedout",
            "Failure": {"Message": "A suite timeout occurred", "ProgressReport": {"CurrentStepText": "waiting"}}});
        let (_, state, cause) = spec(&late).unwrap();
        assert_eq!((state, cause.as_str()), (State::Failed, "out of time at: waiting"));
    }

    #[test]
    fn names_are_escaped_and_durations_are_read() {
        assert_eq!(escaped("[a] b.c (d)"), r"\[a\] b\.c \(d\)");
        assert_eq!(duration("60m").unwrap(), Duration::from_secs(3600));
        assert_eq!(duration("5").unwrap(), Duration::from_secs(5));
        assert!(duration("5x").is_err() && duration("m").is_err());
    }
}
