//! `podium-sim --seed N [--trace FILE]`: one run of the simulator in a process of its own.

use std::io::Write as _;
use std::path::PathBuf;
use std::process::ExitCode;

use tracing_subscriber::EnvFilter;

fn main() -> ExitCode {
    let Some((seed, trace)) = arguments() else {
        return finish("usage: podium-sim --seed N [--trace FILE]", ExitCode::from(2));
    };
    let filter = EnvFilter::try_from_env("PODIUM_LOG").unwrap_or_else(|_| EnvFilter::new("off"));
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    sim::entropy::begin(seed);
    // A thread of its own has hash seeds of its own, which come from the seed.
    let world = std::thread::spawn(move || sim::run(seed, trace.as_deref()));
    match world.join() {
        Ok(Ok(report)) => finish(
            &format!(
                "seed {seed}: trace {}, {} changes, {} starts, {} s",
                report.trace,
                report.events,
                report.lives,
                report.elapsed.as_secs()
            ),
            ExitCode::SUCCESS,
        ),
        Ok(Err(error)) => finish(&format!("seed {seed}: {error:#}"), ExitCode::FAILURE),
        Err(_) => finish(&format!("seed {seed}: panicked"), ExitCode::FAILURE),
    }
}

fn finish(line: &str, code: ExitCode) -> ExitCode {
    match writeln!(std::io::stdout().lock(), "{line}") {
        Ok(()) => code,
        Err(_) => ExitCode::FAILURE,
    }
}

fn arguments() -> Option<(u64, Option<PathBuf>)> {
    let (mut seed, mut trace) = (None, None);
    let mut rest = std::env::args().skip(1);
    while let Some(flag) = rest.next() {
        match flag.as_str() {
            "--seed" => seed = rest.next()?.parse().ok(),
            "--trace" => trace = Some(PathBuf::from(rest.next()?)),
            _ => return None,
        }
    }
    Some((seed?, trace))
}
