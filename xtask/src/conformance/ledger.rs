//! What is known of each test: results per commit in the cache, and the two files in the repository.
//!
//! A test is known green after it passed twice in a row on one commit; the list only grows. The newest result counts,
//! which may be of an older commit than the one that is looked at; the report says so.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::report;
use super::suite::{Outcome, State};

pub(super) struct Ledger {
    /// One file a commit, one JSON object a line.
    folder: PathBuf,
    known_green: PathBuf,
    report: PathBuf,
    /// The commits whose results count, newest first. New results are of the first.
    commits: Vec<String>,
}

/// Results by test, in the order in which they came.
pub(super) type History = BTreeMap<String, Vec<Outcome>>;

/// The newest that is known of a test.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Standing {
    pub(super) state: State,
    pub(super) seconds: u64,
    pub(super) cause: String,
    pub(super) commit: String,
}

impl Ledger {
    /// `commits`: what new results are for, then the commits before it, newest first.
    pub(super) fn open(cache: &Path, module: &Path, commits: Vec<String>) -> Result<Self> {
        let folder = cache.join("results");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        let (known_green, report) = (module.join("known-green.txt"), module.join("RESULTS.md"));
        Ok(Self { folder, known_green, report, commits })
    }

    pub(super) fn add(&self, outcome: &Outcome) -> Result<()> {
        self.append(&json!({"test": outcome.test, "state": outcome.state.name(), "seconds": outcome.seconds, "cause": outcome.cause}))
    }

    /// Notes how long a run took; one that goes over all tests may be made of several.
    pub(super) fn add_run(&self, seconds: u64) -> Result<()> {
        self.append(&json!({"run_seconds": seconds}))
    }

    fn append(&self, line: &Value) -> Result<()> {
        let path = self.folder.join(format!("{}.jsonl", self.commits[0]));
        let mut file =
            OpenOptions::new().create(true).append(true).open(path).context("cannot keep a result")?;
        // one write: other runs may append at the same time
        file.write_all(format!("{line}\n").as_bytes()).context("cannot keep a result")
    }

    fn lines(&self, commit: &str) -> Result<Vec<Value>> {
        let text = match fs::read_to_string(self.folder.join(format!("{commit}.jsonl"))) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.context("cannot read the results")?,
        };
        // a line that was cut off when the tool was killed is no result
        Ok(text.lines().filter_map(|line| serde_json::from_str(line).ok()).collect())
    }

    fn history_of(&self, commit: &str) -> Result<History> {
        let mut history = History::new();
        for line in self.lines(commit)?.iter().filter(|line| line["test"].is_string()) {
            let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let seconds = line["seconds"].as_u64().unwrap_or_default();
            let state = State::parse(&word("state"));
            let outcome =
                Outcome { test: word("test"), state, seconds, cause: word("cause"), log: PathBuf::new() };
            history.entry(outcome.test.clone()).or_default().push(outcome);
        }
        Ok(history)
    }

    /// All results of this commit.
    pub(super) fn history(&self) -> Result<History> {
        self.history_of(&self.commits[0])
    }

    pub(super) fn known_green(&self) -> Result<BTreeSet<String>> {
        match fs::read_to_string(&self.known_green) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(BTreeSet::new()),
            text => {
                Ok(text.context("cannot read the known green tests")?.lines().map(str::to_owned).collect())
            }
        }
    }

    /// Writes both files; returns how many tests are newly known green.
    pub(super) fn publish(&self, all: &[String], date: &str) -> Result<usize> {
        let before = self.known_green()?;
        let mut green = before.clone();
        // what the report had is the oldest: the cache may be of another machine
        let mut standings = match fs::read_to_string(&self.report) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => BTreeMap::new(),
            text => report::parse(&text.context("cannot read the report")?),
        };
        for commit in self.commits.iter().rev() {
            let history = self.history_of(commit)?;
            green.extend(twice_green(&history));
            for (test, results) in history {
                standings.insert(test, standing(&results, commit));
            }
        }
        standings.retain(|test, _| all.contains(test));
        let text: String = green.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        fs::write(&self.known_green, text).context("cannot write the known green tests")?;
        let runs: Vec<u64> =
            self.lines(&self.commits[0])?.iter().filter_map(|line| line["run_seconds"].as_u64()).collect();
        let head = report::Head { commit: &self.commits[0], date, runs: &runs, green: green.len() };
        fs::write(&self.report, report::render(&head, all, &standings)).context("cannot write the report")?;
        Ok(green.len() - before.len())
    }
}

/// What several results on one commit come to.
fn standing(results: &[Outcome], commit: &str) -> Standing {
    let last = results.last().expect("a test in a history has a result");
    let failure = results.iter().rev().find(|outcome| outcome.state == State::Failed);
    let passed = results.iter().any(|outcome| outcome.state == State::Passed);
    let (state, told) = match failure {
        Some(failure) if passed => (State::Flaky, failure),
        _ => (last.state, last),
    };
    Standing { state, seconds: last.seconds, cause: told.cause.clone(), commit: commit.to_owned() }
}

/// Tests whose last two results on a commit are passes.
fn twice_green(history: &History) -> impl Iterator<Item = String> {
    history.iter().filter_map(|(test, results)| match results.as_slice() {
        [.., a, b] if a.state == State::Passed && b.state == State::Passed => Some(test.clone()),
        _ => None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(test: &str, state: State) -> Outcome {
        let cause = if state == State::Passed { String::new() } else { format!("{state:?}") };
        Outcome { test: test.into(), state, seconds: 7, cause, log: PathBuf::new() }
    }

    fn publish(dir: &Path, commits: &[&str], results: &[(&str, State)], all: &[String]) -> (usize, String) {
        let commits = commits.iter().map(|commit| (*commit).to_owned()).collect();
        let ledger = Ledger::open(dir, dir, commits).unwrap();
        results.iter().for_each(|(test, state)| ledger.add(&outcome(test, *state)).unwrap());
        ledger.add_run(60).unwrap();
        let grown = ledger.publish(all, "today").unwrap();
        (grown, fs::read_to_string(dir.join("RESULTS.md")).unwrap())
    }

    #[test]
    fn the_list_of_green_tests_grows_and_the_newest_results_are_reported() {
        use State::{Failed, Passed, Skipped};
        let dir = std::env::temp_dir().join(format!("podium-ledger-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let (twice, flaky, mended) = ("[sig-a] twice", "[sig-a] flaky", "[sig-b] mended");
        let (skipped, never) = ("[sig-b] skipped", "[sig-b] never");
        let all = [twice, flaky, mended, skipped, never].map(str::to_owned);
        let results = [
            (twice, Passed),
            (flaky, Passed),
            (skipped, Skipped),
            (mended, Failed),
            (twice, Passed),
            (flaky, Failed),
            (skipped, Skipped),
        ];
        let (grown, report) = publish(&dir, &["c0"], &results, &all);
        assert_eq!(grown, 1);
        assert!(report.contains("| sig-a | 2 | 1 | 0 | 1 | 0 | 0 | 0 |"), "{report}");
        assert!(report.contains("| sig-b | 3 | 0 | 1 | 0 | 1 | 1 | 0 |"), "{report}");

        // a later commit, of which only two tests are known: the rest stays, marked as older
        let (grown, report) = publish(&dir, &["c1", "c0"], &[(twice, Failed), (mended, Passed)], &all);
        assert_eq!(grown, 0, "one pass is not enough, and the list never shrinks");
        assert_eq!(fs::read_to_string(dir.join("known-green.txt")).unwrap(), format!("{twice}\n"));
        assert!(report.contains("| sig-a | 2 | 0 | 1 | 1 | 0 | 0 | 1 |"), "{report}");
        assert!(report.contains("| sig-b | 3 | 1 | 0 | 0 | 1 | 1 | 1 |"), "{report}");
        assert!(report.contains(&format!("| {mended} | passed | 7 s | c1 | |")), "{report}");
        assert!(report.contains(&format!("| {flaky} | flaky | 7 s | c0 (older) | Failed |")), "{report}");

        // on a machine that knows none of it
        fs::remove_dir_all(dir.join("results")).unwrap();
        let (_, report) = publish(&dir, &["c2", "c1", "c0"], &[(mended, Passed)], &all);
        assert!(report.contains(&format!("| {flaky} | flaky | 7 s | c0 (older) | Failed |")), "{report}");
        assert!(report.contains(&format!("| {twice} | failed | 7 s | c1 (older) | Failed |")), "{report}");
        fs::remove_dir_all(&dir).unwrap();
    }
}
