//! `bench --podium FILE`: what a Podium costs on this machine, beside its budgets.
//!
//! It starts the program that it is given, speaks to its API as anybody would, and reads /proc; beside crun and runc it drives
//! the container engine by itself. Run it as
//! root inside network and mount namespaces of its own (`cargo xtask bench footprint` does); it removes what it made.

mod cluster;
mod host;
mod measure;
mod peers;

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result};

/// One line of the table.
pub(crate) struct Row {
    pub(crate) what: &'static str,
    pub(crate) value: f64,
    pub(crate) unit: &'static str,
    /// The most it may be; for ratios the least.
    pub(crate) budget: Option<f64>,
    pub(crate) at_least: bool,
}

impl Row {
    pub(crate) fn most(what: &'static str, value: f64, unit: &'static str, budget: f64) -> Self {
        Self { what, value, unit, budget: Some(budget), at_least: false }
    }

    pub(crate) fn plain(what: &'static str, value: f64, unit: &'static str) -> Self {
        Self { what, value, unit, budget: None, at_least: false }
    }

    fn line(&self) -> String {
        let verdict = match self.budget {
            None => String::new(),
            Some(budget) => {
                let met = if self.at_least { self.value >= budget } else { self.value <= budget };
                let sign = if self.at_least { "≥" } else { "≤" };
                format!("{sign} {budget:<7} {}", if met { "met" } else { "MISSED" })
            }
        };
        format!("{:<52} {:>9.1} {:<10} {verdict}", self.what, self.value, self.unit)
    }
}

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            say(&format!("bench: {error:#}"));
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let mut arguments = std::env::args().skip(1);
    let (flag, file, part) = (arguments.next(), arguments.next(), arguments.next());
    let (podium, peers_alone) = match (flag.as_deref(), file, part.as_deref()) {
        (Some("--podium"), Some(file), None) => (PathBuf::from(file), false),
        (Some("--podium"), Some(file), Some("peers")) => (PathBuf::from(file), true),
        _ => anyhow::bail!("usage: bench --podium FILE [peers]"),
    };
    host::prepare()?;
    let pool = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("no threads")?;
    if peers_alone {
        return pool.block_on(peers::compare(&podium));
    }
    pool.block_on(measure::all(&podium))
}

/// A line for people.
pub(crate) fn say(line: &str) {
    if writeln!(std::io::stdout().lock(), "{line}").is_err() {
        std::process::exit(1);
    }
}

pub(crate) fn show(row: &Row) {
    say(&row.line());
}
