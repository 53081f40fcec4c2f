//! `RESULTS.md`: what is known of every test, as Markdown that is read again by the next run.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use super::ledger::Standing;
use super::suite::{self, State};

/// What the report is about.
pub(super) struct Head<'a> {
    pub(super) commit: &'a str,
    pub(super) date: &'a str,
    /// Seconds of each run on this commit.
    pub(super) runs: &'a [u64],
    /// How many tests are known green.
    pub(super) green: usize,
}

const COLUMNS: &str = "| test | result | time | commit | cause |\n|---|---|---|---|---|";

/// `sig-node` of `[sig-node] Pods should …`.
pub(super) fn area(test: &str) -> &str {
    test.strip_prefix('[').and_then(|rest| rest.split_once(']')).map_or("other", |(area, _)| area)
}

/// The whole report.
pub(super) fn render(head: &Head<'_>, all: &[String], standings: &BTreeMap<String, Standing>) -> String {
    let mut text = String::from("# Conformance results\n\n");
    let mut line = |parts: std::fmt::Arguments<'_>| {
        writeln!(text, "{parts}").expect("a String takes every text");
    };
    let (total, older) =
        (count(standings.values(), |_| true), count(standings.values(), |s| is_older(s, head)));
    let of = |state: State| count(standings.values(), |standing| standing.state == state);
    line(format_args!("Written by `cargo xtask conformance`; not edited by hand.\n"));
    line(format_args!(
        "- Commit {}, {}; wall time {} s in {} runs.",
        head.commit,
        head.date,
        head.runs.iter().sum::<u64>(),
        head.runs.len()
    ));
    line(format_args!(
        "- {total} of {} tests have a result: {} passed, {} failed, {} flaky (both on one commit), {} skipped. \
         {older} of the results are of an older commit, and marked.",
        all.len(),
        of(State::Passed),
        of(State::Failed),
        of(State::Flaky),
        of(State::Skipped)
    ));
    line(format_args!("- {} tests are known green (two passes in a row on one commit).", head.green));
    line(format_args!(
        "- The images are local stand-ins for the published ones. Two nodes. Requests are {}.",
        suite::CONTENT_TYPE
    ));
    line(format_args!("\n| area | tests | passed | failed | flaky | skipped | not run | older |"));
    line(format_args!("|---|---|---|---|---|---|---|---|"));
    for (area, row) in areas(head, all, standings) {
        let cells: Vec<String> = row.iter().map(usize::to_string).collect();
        line(format_args!("| {area} | {} |", cells.join(" | ")));
    }
    for (title, green) in [("Not green", false), ("Green", true)] {
        line(format_args!("\n## {title}\n\n{COLUMNS}"));
        let wanted = |standing: &&Standing| (standing.state == State::Passed) == green;
        for (test, standing) in standings.iter().filter(|(_, standing)| wanted(standing)) {
            let mark = if is_older(standing, head) { " (older)" } else { "" };
            let cause = standing.cause.replace('|', "\\|");
            let cause = if cause.is_empty() { cause } else { format!(" {cause}") };
            let Standing { state, seconds, commit, .. } = standing;
            line(format_args!("| {test} | {} | {seconds} s | {commit}{mark} |{cause} |", state.name()));
        }
    }
    text
}

/// The standings in an earlier report.
pub(super) fn parse(report: &str) -> BTreeMap<String, Standing> {
    report.lines().filter_map(row).collect()
}

fn row(line: &str) -> Option<(String, Standing)> {
    let mut cells = line.strip_prefix("| [")?.splitn(5, " |");
    let test = format!("[{}", cells.next()?);
    let state = State::parse(cells.next()?.trim());
    let seconds = cells.next()?.trim().strip_suffix(" s")?.parse().ok()?;
    let commit = cells.next()?.split_whitespace().next()?.to_owned();
    let cause = cells.next()?.strip_suffix('|')?.trim().replace("\\|", "|");
    Some((test, Standing { state, seconds, cause, commit }))
}

/// By area: tests, passed, failed, flaky, skipped, not run, and how many results are older.
fn areas<'a>(
    head: &Head<'_>,
    all: &'a [String],
    standings: &BTreeMap<String, Standing>,
) -> BTreeMap<&'a str, [usize; 7]> {
    let mut areas: BTreeMap<&str, [usize; 7]> = BTreeMap::new();
    for test in all {
        let row = areas.entry(area(test)).or_default();
        let standing = standings.get(test);
        row[0] += 1;
        row[match standing.map(|standing| standing.state) {
            Some(State::Passed) => 1,
            Some(State::Failed) => 2,
            Some(State::Flaky) => 3,
            Some(State::Skipped) => 4,
            None => 5,
        }] += 1;
        row[6] += usize::from(standing.is_some_and(|standing| is_older(standing, head)));
    }
    areas
}

fn is_older(standing: &Standing, head: &Head<'_>) -> bool {
    standing.commit != head.commit
}

fn count<'a>(standings: impl Iterator<Item = &'a Standing>, wanted: impl Fn(&Standing) -> bool) -> usize {
    standings.filter(|standing| wanted(standing)).count()
}
