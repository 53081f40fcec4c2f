//! Rules about the sources that no compiler checks: dependency edges, banned words; and gauges, which only inform.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

/// Which crate may use which of the project's crates. Arrows only go down (ARCHITECTURE.md).
const EDGES: &[(&str, &[&str])] = &[
    ("api", &[]),
    ("schema", &["api"]),
    ("cel", &["api"]),
    ("store", &[]),
    ("runtime", &[]),
    ("client", &["api"]),
    ("apiserver", &["api", "cel", "schema", "store"]),
    ("controllers", &["api", "client"]),
    ("scheduler", &["api", "client"]),
    ("node", &["api", "client"]),
    ("net", &["api", "client"]),
    (
        "podium",
        &[
            "api",
            "schema",
            "store",
            "apiserver",
            "client",
            "controllers",
            "scheduler",
            "node",
            "runtime",
            "net",
        ],
    ),
    ("bench", &["api", "client", "runtime"]),
    ("sim", &["api", "store", "apiserver", "client", "controllers", "scheduler"]),
    ("xtask", &[]),
];

/// Words that have no place outside tests, with what to do instead.
const BANNED: &[(&str, &str)] = &[
    ("todo!(", "finish it or leave it out"),
    ("unimplemented!(", "finish it or leave it out"),
    ("dbg!(", "use tracing"),
    ("std::env::set_var", "pass the value"),
];

/// Checks the rules and prints the gauges.
///
/// # Errors
/// Lists every broken rule.
pub(crate) fn run(root: &Path) -> Result<()> {
    let mut broken = edges(root)?;
    let files = rust_files(root)?;
    let (mut lines, mut functions) = (Vec::new(), Vec::new());
    for file in &files {
        let text = fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
        let name = file.strip_prefix(root).unwrap_or(file).display().to_string();
        lines.push(text.lines().count());
        functions.extend(function_lengths(&text));
        broken.extend(banned(&name, &text));
    }
    println!("tidy: {} files, {} lines", files.len(), lines.iter().sum::<usize>());
    gauge("file length", &mut lines);
    gauge("function length", &mut functions);
    if broken.is_empty() {
        return Ok(());
    }
    bail!("tidy:\n  {}", broken.join("\n  "))
}

fn gauge(name: &str, values: &mut [usize]) {
    values.sort_unstable();
    let at =
        |percent: usize| values.get((values.len().saturating_sub(1)) * percent / 100).copied().unwrap_or(0);
    println!("tidy: {name}: median {}, p90 {}, p99 {}, max {}", at(50), at(90), at(99), at(100));
}

/// Forbidden dependencies, in the crates' manifests.
fn edges(root: &Path) -> Result<Vec<String>> {
    let allowed: BTreeMap<_, _> = EDGES.iter().copied().collect();
    let mut manifests = vec![root.join("xtask/Cargo.toml")];
    let crates = root.join("crates");
    for entry in fs::read_dir(&crates).with_context(|| format!("cannot read {}", crates.display()))? {
        manifests.push(entry?.path().join("Cargo.toml"));
    }
    let mut broken = Vec::new();
    for manifest in manifests {
        let text =
            fs::read_to_string(&manifest).with_context(|| format!("cannot read {}", manifest.display()))?;
        let name =
            manifest.parent().and_then(Path::file_name).unwrap_or_default().to_string_lossy().into_owned();
        let Some(may_use) = allowed.get(name.as_str()) else {
            broken.push(format!("crate {name} has no row in EDGES (xtask/src/tidy.rs)"));
            continue;
        };
        for used in dependencies(&text).filter(|used| allowed.contains_key(used)) {
            if !may_use.contains(&used) {
                broken.push(format!("crate {name} must not use {used}"));
            }
        }
    }
    Ok(broken)
}

/// Names in the `[dependencies]` section; tests may use more.
fn dependencies(manifest: &str) -> impl Iterator<Item = &str> {
    let section = manifest.lines().skip_while(|line| line.trim() != "[dependencies]").skip(1);
    let section = section.take_while(|line| !line.starts_with('['));
    section.filter_map(|line| line.split(['.', ' ', '=']).next()).filter(|name| !name.is_empty())
}

fn rust_files(root: &Path) -> Result<Vec<PathBuf>> {
    let mut files = Vec::new();
    let mut folders = vec![root.join("crates"), root.join("xtask")];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).with_context(|| format!("cannot read {}", folder.display()))? {
            let path = entry?.path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    files.sort();
    Ok(files)
}

fn banned(file: &str, text: &str) -> Vec<String> {
    if file.ends_with("tidy.rs") || file.contains("/tests") {
        return Vec::new();
    }
    let code = text.split("#[cfg(test)]").next().unwrap_or_default();
    let found = code.lines().enumerate().flat_map(|(number, line)| {
        let hits = BANNED.iter().filter(move |(word, _)| line.contains(word));
        hits.map(move |(word, instead)| format!("{file}:{}: {word}…): {instead}", number + 1))
    });
    found.collect()
}

/// Lines of each function, by the indentation that rustfmt gives: from `fn` to the closing brace below it.
fn function_lengths(text: &str) -> Vec<usize> {
    let mut lengths = Vec::new();
    let mut open: Vec<(usize, usize)> = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let code = line.trim_start();
        let indent = line.len() - code.len();
        let words: Vec<&str> =
            code.split(' ').take(5).take_while(|word| *word != "//" && *word != "///").collect();
        if words.contains(&"fn") && !code.ends_with(';') {
            open.push((indent, number));
        }
        if code.starts_with('}')
            && let Some((start, begun)) = open.last().copied()
            && start == indent
        {
            lengths.push(number - begun + 1);
            open.pop();
        }
    }
    lengths
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_sources_keep_the_rules() {
        run(&crate::root()).unwrap();
    }

    #[test]
    fn functions_are_measured_by_their_braces() {
        let text = "fn a() {\n    x();\n}\n\nimpl B {\n    pub fn c(\n        d: u8,\n    ) {\n        y();\n    }\n}\n";
        assert_eq!(function_lengths(text), [3, 5]);
    }

    #[test]
    fn only_the_dependencies_section_counts() {
        let manifest = "[package]\nname = \"x\"\n\n[dependencies]\napi.workspace = true\nserde = \"1\"\n\n[dev-dependencies]\nstore.workspace = true\n";
        assert_eq!(dependencies(manifest).collect::<Vec<_>>(), ["api", "serde"]);
    }

    #[test]
    fn banned_words_are_found_outside_tests() {
        assert_eq!(banned("a.rs", "fn f() { todo!() }\n#[cfg(test)]\nmod t { fn g() { todo!() } }").len(), 1);
    }
}
