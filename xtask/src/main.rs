//! Automation of the project, in Rust: `cargo xtask ci`, `cargo xtask tidy`, `cargo xtask conformance`.
//!
//! `ci` is what `.ci/run` calls and what a developer runs before a commit: the same steps in the same order.

mod bench;
mod conformance;
mod sim;
mod tidy;
mod vm;

use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match arguments.first().map(String::as_str) {
        Some("ci") => ci(),
        Some("tidy") => tidy::run(&root()),
        Some("conformance") => conformance::run(&root(), &arguments[1..]),
        Some("bench") => bench::run(&root(), &arguments[1..]),
        Some("sim") => sim::run(&root(), &arguments[1..]),
        Some("vm") => vm::run(&root(), &arguments[1..]),
        _ => Err(anyhow::anyhow!("usage: cargo xtask ci | tidy | conformance | sim | bench | vm")),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Folder of the workspace.
fn root() -> PathBuf {
    let here = Path::new(env!("CARGO_MANIFEST_DIR"));
    here.parent().unwrap_or(here).to_owned()
}

/// Format, lints, tidiness, tests; each step's time is printed.
fn ci() -> Result<()> {
    step("fmt", &["fmt", "--all", "--check"])?;
    step("clippy", &["clippy", "--workspace", "--all-targets", "--locked", "--", "-D", "warnings"])?;
    tidy::run(&root())?;
    step("build", &["test", "--workspace", "--locked", "--no-run"])?;
    step("test", &["test", "--workspace", "--locked"])?;
    check_other_processor()?;
    println!("== conformance");
    conformance::run_fast(&root())
}

/// Type-checks for the other processor that Podium supports, where its standard library is installed.
fn check_other_processor() -> Result<()> {
    const TARGET: &str = "aarch64-unknown-linux-gnu";
    let output = Command::new("rustc").args(["--print", "target-libdir", "--target", TARGET]).output();
    let folder = output.ok().map(|output| String::from_utf8_lossy(&output.stdout).trim().to_owned());
    if !folder.is_some_and(|folder| Path::new(&folder).is_dir()) {
        println!("skipped: 1 ({TARGET}: not installed, see rustup target add)");
        return Ok(());
    }
    // ring compiles C for the target even for a check
    if Command::new("aarch64-linux-gnu-gcc").arg("--version").output().is_err() {
        println!("skipped: 1 ({TARGET}: no C compiler for it)");
        return Ok(());
    }
    step("aarch64", &["check", "--locked", "-p", "podium", "--target", TARGET])
}

/// The cargo that runs this, without what it says of this package: some build scripts run again when that differs.
fn cargo() -> Command {
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    for (name, _) in std::env::vars_os() {
        let of_package = ["CARGO_PKG_", "CARGO_MANIFEST_", "CARGO_CRATE_", "CARGO_BIN_"];
        if of_package.iter().any(|prefix| name.to_string_lossy().starts_with(prefix)) {
            command.env_remove(name);
        }
    }
    command
}

fn step(name: &str, arguments: &[&str]) -> Result<()> {
    println!("== {name}");
    let begun = Instant::now();
    let mut command = cargo();
    command.args(arguments).current_dir(root());
    if is_root()? && std::env::var_os("CI").is_some() {
        // a skip for lack of root is a failure where root is there
        command.env("PODIUM_TEST_REQUIRE", "root");
    }
    let status = command.status().with_context(|| format!("cannot run cargo {name}"))?;
    println!("== {name}: {} s", begun.elapsed().as_secs());
    if !status.success() {
        bail!("{name} failed");
    }
    Ok(())
}

/// Whether the process' effective user is root (proc(5), status: the second number of `Uid`).
fn is_root() -> Result<bool> {
    let status = std::fs::read_to_string("/proc/self/status").context("cannot read /proc/self/status")?;
    let uid = status.lines().find_map(|line| line.strip_prefix("Uid:"));
    Ok(uid.and_then(|ids| ids.split_whitespace().nth(1)) == Some("0"))
}
