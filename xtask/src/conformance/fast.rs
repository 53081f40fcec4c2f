//! A fixed fast subset of the suite for `cargo xtask ci`: only where the suite is built already, within five minutes.

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::keeper::Kept;
use super::programs::Cache;
use super::suite::{self, Limits, State};
use super::{images, target};

/// The tests, one a line: quick, stable, known green.
const LIST: &str = include_str!("../../../tests/conformance/fast.txt");
/// No test is begun after it. With the time of one test and the cluster's start and end this stays within five minutes.
const BUDGET: Duration = Duration::from_secs(180);
const TEST_SECONDS: u64 = 45;
const PARALLEL: usize = 4;

/// Runs the subset with the podium that the workspace's build has made; without the suite says so in a line.
///
/// # Errors
/// When one of the tests doesn't pass: there is no second try.
pub(crate) fn run(root: &Path) -> Result<()> {
    let tests: Vec<String> = LIST.lines().map(str::to_owned).collect();
    let Some((cache, archives)) = ready(&root.join("tests/conformance"))? else {
        println!("skipped: {} conformance tests: the suite is not built here, or no root", tests.len());
        return Ok(());
    };
    let begun = Instant::now();
    let mut cluster = Kept::start(&target(root).join("debug/podium"), &archives)?;
    cluster.wait_until_ready()?;
    let limits = Limits { parallel: PARALLEL, test_seconds: TEST_SECONDS, deadline: Some(begun + BUDGET) };
    let (mut bad, mut ended) = (Vec::new(), 0);
    let logs = cache.dir.join("logs/ci");
    suite::run(&cache, &cluster, &tests, &limits, &logs, |outcome| {
        ended += 1;
        if outcome.state != State::Passed {
            let cause = format!("{}\n    {}\n    {}", outcome.test, outcome.cause, outcome.log.display());
            bad.push(cause);
        }
        Ok(())
    })?;
    cluster.keep_logs(&logs)?;
    drop(cluster);
    println!("conformance: {} of {ended} tests passed in {} s", ended - bad.len(), begun.elapsed().as_secs());
    if ended < tests.len() {
        println!("skipped: {} conformance tests: no time left", tests.len() - ended);
    }
    if !bad.is_empty() {
        bail!("conformance tests that must pass did not:\n  {}", bad.join("\n  "));
    }
    Ok(())
}

/// The suite and the images, if all is built and this is root.
fn ready(module: &Path) -> Result<Option<(Cache, Vec<PathBuf>)>> {
    if !crate::is_root()? {
        return Ok(None);
    }
    let Some(cache) = Cache::built(module)? else { return Ok(None) };
    let archives = images::made(&cache, module)?;
    Ok(archives.map(|archives| (cache, archives)))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    #[test]
    fn the_subset_is_known_green_sorted_and_spread_over_areas() {
        let known: BTreeSet<&str> =
            include_str!("../../../tests/conformance/known-green.txt").lines().collect();
        let tests: Vec<&str> = super::LIST.lines().collect();
        assert!(tests.is_sorted() && (30..=45).contains(&tests.len()), "{}", tests.len());
        let strangers: Vec<_> = tests.iter().filter(|test| !known.contains(*test)).collect();
        assert!(strangers.is_empty(), "not known green: {strangers:#?}");
        assert!(!tests.iter().any(|test| test.contains("[Serial]") || test.contains("[Slow]")));
        let areas: BTreeSet<&str> = tests.iter().map(|test| super::super::report::area(test)).collect();
        assert!(areas.len() >= 7, "{areas:?}");
    }
}
