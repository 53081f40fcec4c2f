//! The same seed gives the same trace, and whatever the seed, the cluster keeps its promises.

#![allow(clippy::unwrap_used)]

use std::process::{Child, Command, Stdio};

/// Runs of each of which there are two; more by `cargo xtask sim --seeds K`.
const SEEDS: [u64; 3] = [1, 2, 3];

fn start(seed: u64) -> Child {
    let mut command = Command::new(env!("CARGO_BIN_EXE_podium-sim"));
    command.args(["--seed", &seed.to_string()]).stdout(Stdio::piped()).spawn().unwrap()
}

fn line(run: Child) -> String {
    let output = run.wait_with_output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn the_same_seed_gives_the_same_trace_and_different_seeds_do_not() {
    let mut seen = Vec::new();
    for seed in SEEDS {
        let (one, two) = (start(seed), start(seed));
        let (one, two) = (line(one), line(two));
        assert_eq!(one, two, "seed {seed}: compare the files that --trace writes");
        assert!(one.contains("trace "), "{one}");
        seen.push(one);
    }
    let crashed = seen.iter().any(|line| !line.contains(", 1 starts"));
    assert!(crashed, "no crash in any run: {seen:?}");
    let traces: std::collections::BTreeSet<&str> =
        seen.iter().filter_map(|line| line.split("trace ").nth(1)?.split(',').next()).collect();
    assert_eq!(traces.len(), SEEDS.len(), "{seen:?}");
}
