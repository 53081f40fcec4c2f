//! `cargo xtask sim [--seed N] [--seeds K]`: runs of the simulator, each seed twice.

use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

const USAGE: &str = "usage: cargo xtask sim [--seed N] [--seeds K]";

/// Runs K seeds from N on (default: 20 from 1).
///
/// # Errors
/// At the first seed that breaks a rule or gives two traces; the message says how to run it again.
pub(crate) fn run(root: &Path, arguments: &[String]) -> Result<()> {
    let (first, count) = parse(arguments)?;
    for seed in first..first.saturating_add(count) {
        let attempt = || -> Result<String> {
            let arguments = ["run", "--quiet", "--locked", "-p", "sim", "--", "--seed", &seed.to_string()];
            let output = crate::cargo().args(arguments).current_dir(root).output();
            let output = output.context("cannot run cargo")?;
            let text = String::from_utf8_lossy(&output.stdout).trim().to_owned();
            if !output.status.success() {
                bail!("{text}{}", String::from_utf8_lossy(&output.stderr));
            }
            Ok(text)
        };
        let (one, two) = (attempt()?, attempt()?);
        println!("{one}");
        ensure!(
            one == two,
            "the same seed gave another trace:\n{two}\ncompare two files of: cargo run -p sim -- --seed {seed} --trace FILE"
        );
    }
    Ok(())
}

fn parse(arguments: &[String]) -> Result<(u64, u64)> {
    let (mut first, mut count) = (1, None);
    let mut rest = arguments.iter();
    while let Some(flag) = rest.next() {
        let number = rest.next().and_then(|text| text.parse().ok()).context(USAGE)?;
        match flag.as_str() {
            "--seed" => {
                first = number;
                count = count.or(Some(1));
            }
            "--seeds" => count = Some(number),
            _ => bail!(USAGE),
        }
    }
    Ok((first, count.unwrap_or(20)))
}

#[cfg(test)]
mod tests {
    #[test]
    fn one_seed_or_many() {
        let parse = |text: &str| {
            let arguments: Vec<String> = text.split_whitespace().map(str::to_owned).collect();
            super::parse(&arguments).ok()
        };
        assert_eq!(parse(""), Some((1, 20)));
        assert_eq!(parse("--seed 7"), Some((7, 1)));
        assert_eq!(parse("--seed 7 --seeds 3"), Some((7, 3)));
        assert_eq!(parse("--seeds 3"), Some((1, 3)));
        assert_eq!(parse("--seed x"), None);
    }
}
