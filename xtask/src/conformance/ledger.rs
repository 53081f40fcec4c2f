//! What is known of each test: results per commit in the cache, and the two files in the repository.
//!
//! A test is known green after it passed twice in a row on one commit; the list only grows.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write as _;
use std::fs::{self, OpenOptions};
use std::io::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::suite::{self, Outcome, State};

pub(super) struct Ledger {
    /// Of this commit, one JSON object a line.
    results: PathBuf,
    known_green: PathBuf,
    report: PathBuf,
    commit: String,
}

impl Ledger {
    /// `commit`: what the results are for. Results of a changed tree are kept apart from its commit's.
    pub(super) fn open(cache: &Path, module: &Path, commit: &str) -> Result<Self> {
        let folder = cache.join("results");
        fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
        Ok(Self {
            results: folder.join(format!("{commit}.jsonl")),
            known_green: module.join("known-green.txt"),
            report: module.join("RESULTS.md"),
            commit: commit.to_owned(),
        })
    }

    pub(super) fn add(&self, outcome: &Outcome) -> Result<()> {
        let line = json!({"test": outcome.test, "state": outcome.state.name(), "seconds": outcome.seconds, "cause": outcome.cause});
        let mut file = OpenOptions::new()
            .create(true)
            .append(true)
            .open(&self.results)
            .context("cannot keep a result")?;
        writeln!(file, "{line}").context("cannot keep a result")
    }

    /// All results of this commit in the order in which they came, by test.
    pub(super) fn history(&self) -> Result<BTreeMap<String, Vec<Outcome>>> {
        let text = match fs::read_to_string(&self.results) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => String::new(),
            text => text.context("cannot read the results")?,
        };
        let mut history: BTreeMap<String, Vec<Outcome>> = BTreeMap::new();
        // a line that was cut off when the tool was killed is no result
        for line in text.lines().filter_map(|line| serde_json::from_str::<Value>(line).ok()) {
            let word = |key: &str| line[key].as_str().unwrap_or_default().to_owned();
            let seconds = line["seconds"].as_u64().unwrap_or_default();
            let state = State::parse(&word("state"));
            let outcome =
                Outcome { test: word("test"), state, seconds, cause: word("cause"), log: PathBuf::new() };
            history.entry(outcome.test.clone()).or_default().push(outcome);
        }
        Ok(history)
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
    pub(super) fn publish(&self, all: &[String], wall_seconds: u64, date: &str) -> Result<usize> {
        let history = self.history()?;
        let before = self.known_green()?;
        let green: BTreeSet<String> = before.iter().cloned().chain(twice_green(&history)).collect();
        let text: String = green.iter().flat_map(|name| [name.as_str(), "\n"]).collect();
        fs::write(&self.known_green, text).context("cannot write the known green tests")?;
        let report = render(&self.commit, date, all, &history, green.len(), wall_seconds);
        fs::write(&self.report, report).context("cannot write the report")?;
        Ok(green.len() - before.len())
    }
}

/// Tests whose last two results on this commit are passes.
fn twice_green(history: &BTreeMap<String, Vec<Outcome>>) -> impl Iterator<Item = String> {
    history.iter().filter_map(|(test, results)| match results.as_slice() {
        [.., a, b] if a.state == State::Passed && b.state == State::Passed => Some(test.clone()),
        _ => None,
    })
}

/// `sig-node` of `[sig-node] Pods should …`.
pub(super) fn area(test: &str) -> &str {
    test.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or("other", |(area, _)| area)
}

fn render(
    commit: &str,
    date: &str,
    all: &[String],
    history: &BTreeMap<String, Vec<Outcome>>,
    green: usize,
    wall_seconds: u64,
) -> String {
    let last: Vec<&Outcome> = history.values().filter_map(|results| results.last()).collect();
    let mut areas: BTreeMap<&str, [usize; 5]> = BTreeMap::new();
    for test in all {
        let row = areas.entry(area(test)).or_default();
        row[0] += 1;
        match history.get(test).and_then(|results| results.last()).map(|outcome| outcome.state) {
            Some(State::Passed) => row[1] += 1,
            Some(State::Failed) => row[2] += 1,
            Some(State::Skipped) => row[3] += 1,
            None => row[4] += 1,
        }
    }
    let count = |state: State| last.iter().filter(|outcome| outcome.state == state).count();
    let mut text = String::from("# Conformance results\n\n");
    let mut line = |parts: std::fmt::Arguments<'_>| {
        writeln!(text, "{parts}").expect("a String takes every text");
    };
    line(format_args!("Written by `cargo xtask conformance`; not edited by hand.\n"));
    line(format_args!("- Commit {commit}, {date}, wall time of the last run {wall_seconds} s."));
    line(format_args!(
        "- {} of {} tests have a result: {} passed, {} failed, {} skipped. {green} are known green (two passes in a row on one commit).",
        last.len(),
        all.len(),
        count(State::Passed),
        count(State::Failed),
        count(State::Skipped)
    ));
    line(format_args!(
        "- The images are local stand-ins for the published ones. One node. Requests are {}.",
        suite::CONTENT_TYPE
    ));
    line(format_args!("\n| area | tests | passed | failed | skipped | not run |\n|---|---|---|---|---|---|"));
    for (area, [tests, passed, failed, skipped, rest]) in &areas {
        line(format_args!("| {area} | {tests} | {passed} | {failed} | {skipped} | {rest} |"));
    }
    line(format_args!("\n## Not green\n\n| test | cause |\n|---|---|"));
    for outcome in last.iter().filter(|outcome| outcome.state != State::Passed) {
        line(format_args!("| {} | {} |", outcome.test, outcome.cause.replace('|', "\\|")));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(test: &str, state: State) -> Outcome {
        Outcome { test: test.into(), state, seconds: 1, cause: String::new(), log: PathBuf::new() }
    }

    #[test]
    fn two_passes_in_a_row_make_a_test_known_green_for_good() {
        use State::{Failed, Passed, Skipped};
        let dir = std::env::temp_dir().join(format!("podium-ledger-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        let ledger = Ledger::open(&dir, &dir, "c0").unwrap();
        let runs = [
            ("[sig-a] twice", [Passed, Passed]),
            ("[sig-a] flaky", [Passed, Failed]),
            ("[sig-b] mended", [Failed, Passed]),
            ("[sig-b] skipped", [Skipped, Skipped]),
        ];
        for (test, states) in runs {
            states.iter().for_each(|state| ledger.add(&outcome(test, *state)).unwrap());
        }
        let all: Vec<String> = runs.iter().map(|(test, _)| (*test).to_owned()).collect();
        assert_eq!(ledger.publish(&all, 9, "today").unwrap(), 1);
        let report = fs::read_to_string(dir.join("RESULTS.md")).unwrap();
        assert!(report.contains("| sig-a | 2 | 1 | 1 | 0 | 0 |"), "{report}");
        // on another commit it fails: the list keeps it
        let next = Ledger::open(&dir, &dir, "c1").unwrap();
        next.add(&outcome("[sig-a] twice", Failed)).unwrap();
        assert_eq!(next.publish(&all, 9, "today").unwrap(), 0);
        assert_eq!(next.known_green().unwrap().into_iter().collect::<Vec<_>>(), ["[sig-a] twice"]);
        fs::remove_dir_all(&dir).unwrap();
    }
}
