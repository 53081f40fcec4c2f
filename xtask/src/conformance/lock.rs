//! `tests/conformance/images.lock`: what the stand-in images are made of, and what must come out.
//!
//! ```text
//! package NAME VERSION ARCHITECTURE SHA256     a Debian package
//! image NAME ARCHITECTURE SHA256               an image's id: the digest of its configuration, which names its layer
//! ```

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

const HEAD: &str = "# Written by `cargo xtask conformance --update-images`; not edited by hand.\n";

/// A Debian package, exactly.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Package {
    pub(super) name: String,
    pub(super) version: String,
    pub(super) architecture: String,
    pub(super) sha256: String,
}

/// The file's content.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Lock {
    file: PathBuf,
    packages: Vec<Package>,
    /// By name and architecture.
    images: BTreeMap<(String, String), String>,
}

impl Lock {
    pub(super) fn read(module: &Path) -> Result<Self> {
        let file = module.join("images.lock");
        match std::fs::read_to_string(&file) {
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                Ok(Self { file, ..Self::default() })
            }
            text => Self::parse(&text.with_context(|| format!("cannot read {}", file.display()))?, file),
        }
    }

    fn parse(text: &str, file: PathBuf) -> Result<Self> {
        let mut lock = Self { file, ..Self::default() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let words: Vec<&str> = line.split(' ').collect();
            match words[..] {
                ["package", name, version, architecture, sha256] => lock.packages.push(Package {
                    name: name.to_owned(),
                    version: version.to_owned(),
                    architecture: architecture.to_owned(),
                    sha256: sha256.to_owned(),
                }),
                ["image", name, architecture, id] => lock.lock_image(name, architecture, id),
                _ => bail!("{}: cannot read {line:?}", lock.file.display()),
            }
        }
        Ok(lock)
    }

    fn render(&self) -> String {
        let mut text = HEAD.to_owned();
        for Package { name, version, architecture, sha256 } in &self.packages {
            writeln!(text, "package {name} {version} {architecture} {sha256}")
                .expect("a String takes every text");
        }
        for ((name, architecture), sha256) in &self.images {
            writeln!(text, "image {name} {architecture} {sha256}").expect("a String takes every text");
        }
        text
    }

    pub(super) fn write(&self) -> Result<()> {
        std::fs::write(&self.file, self.render())
            .with_context(|| format!("cannot write {}", self.file.display()))
    }

    /// Packages of an architecture.
    pub(super) fn packages(&self, architecture: &str) -> Vec<Package> {
        self.packages.iter().filter(|package| package.architecture == architecture).cloned().collect()
    }

    /// Forgets what is locked for an architecture and locks these packages.
    pub(super) fn relock(&mut self, architecture: &str, mut packages: Vec<Package>) {
        self.packages.retain(|package| package.architecture != architecture);
        self.images.retain(|(_, of), _| of != architecture);
        self.packages.append(&mut packages);
        self.packages.sort();
    }

    /// Names and ids of an architecture's images.
    pub(super) fn images(&self, architecture: &str) -> impl Iterator<Item = (&str, &str)> {
        let mine = self.images.iter().filter(move |((_, of), _)| of == architecture);
        mine.map(|((name, _), id)| (name.as_str(), id.as_str()))
    }

    pub(super) fn image(&self, name: &str, architecture: &str) -> Option<&str> {
        self.images.get(&(name.to_owned(), architecture.to_owned())).map(String::as_str)
    }

    pub(super) fn lock_image(&mut self, name: &str, architecture: &str, id: &str) {
        self.images.insert((name.to_owned(), architecture.to_owned()), id.to_owned());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lock_is_read_as_it_was_written_and_relocked_by_architecture() {
        let package = |name: &str, architecture: &str| Package {
            name: name.into(),
            version: "1:2.0-3".into(),
            architecture: architecture.into(),
            sha256: "ab".into(),
        };
        let mut lock = Lock::default();
        lock.relock("amd64", vec![package("b", "amd64"), package("a", "amd64")]);
        lock.relock("arm64", vec![package("a", "arm64")]);
        lock.lock_image("r.io/x:1", "amd64", "cd");
        lock.lock_image("r.io/x:1", "arm64", "ef");
        assert_eq!(Lock::parse(&lock.render(), PathBuf::new()).unwrap(), lock);
        assert_eq!(lock.packages("amd64"), [package("a", "amd64"), package("b", "amd64")]);
        lock.relock("amd64", vec![package("c", "amd64")]);
        assert_eq!(lock.packages("amd64"), [package("c", "amd64")]);
        assert_eq!((lock.image("r.io/x:1", "amd64"), lock.image("r.io/x:1", "arm64")), (None, Some("ef")));
        assert!(Lock::parse("package a 1\n", PathBuf::new()).is_err());
    }
}
