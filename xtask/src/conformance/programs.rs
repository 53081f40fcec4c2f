//! Builds the suite, its tools and the programs of the test images from the Go module `tests/conformance`, once per
//! version, into a cache outside the checkout.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// Programs and their packages. The suite is the test binary of upstream's own package, byte for byte its source.
const PROGRAMS: &[(&str, &str)] = &[
    ("kubectl", "k8s.io/kubernetes/cmd/kubectl"),
    ("ginkgo", "github.com/onsi/ginkgo/v2/ginkgo"),
    ("agnhost", "k8s.io/kubernetes/test/images/agnhost"),
    ("nnp", "k8s.io/kubernetes/test/images/nonewprivs"),
    ("e2e.test", "k8s.io/kubernetes/test/e2e"),
    ("sample-apiserver", "k8s.io/sample-apiserver"),
    ("etcd", "go.etcd.io/etcd/server/v3"),
    ("pause", "./pause"),
];

/// Where everything that is built or fetched lies: `$XDG_CACHE_HOME` or `~/.cache`, then `podium-conformance/VERSION`.
pub(super) struct Cache {
    pub(super) dir: PathBuf,
    /// Version of the suite, from `go.mod`.
    pub(super) version: String,
}

impl Cache {
    /// Of this version of the suite; made if need be.
    pub(super) fn open(module: &Path) -> Result<Self> {
        let cache = Self::locate(module)?;
        let bin = cache.dir.join("bin");
        fs::create_dir_all(&bin).with_context(|| format!("cannot make {}", bin.display()))?;
        Ok(cache)
    }

    /// Of this version of the suite, if everything is built.
    pub(super) fn built(module: &Path) -> Result<Option<Self>> {
        if home().is_none() {
            return Ok(None);
        }
        let cache = Self::locate(module)?;
        Ok(PROGRAMS.iter().all(|(name, _)| cache.program(name).exists()).then_some(cache))
    }

    fn locate(module: &Path) -> Result<Self> {
        let file = module.join("go.mod");
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        let version = suite_version(&text).context("go.mod does not require k8s.io/kubernetes")?.to_owned();
        let dir = home()
            .context("neither XDG_CACHE_HOME nor HOME is set")?
            .join("podium-conformance")
            .join(&version);
        Ok(Self { dir, version })
    }

    pub(super) fn program(&self, name: &str) -> PathBuf {
        self.dir.join("bin").join(name)
    }

    /// The suite's source in Go's module cache.
    pub(super) fn suite_source(&self) -> Result<PathBuf> {
        let module = format!("k8s.io/kubernetes@{}", self.version);
        let modules = super::output(Command::new("go").args(["env", "GOMODCACHE"]))?;
        Ok(Path::new(&modules).join(module))
    }

    /// Builds what is missing. The first time this takes tens of minutes.
    pub(super) fn build(&self, module: &Path) -> Result<()> {
        for (name, package) in PROGRAMS {
            let output = self.program(name);
            if output.exists() {
                continue;
            }
            println!("conformance: building {name} ({package})");
            let mut go = Command::new("go");
            let verb: &[&str] = if *name == "e2e.test" { &["test", "-c", "-vet=off"] } else { &["build"] };
            // a build that is stopped half way leaves nothing under the final name
            let partial = output.with_extension("partial");
            go.args(verb).args([
                "-trimpath",
                "-buildvcs=false",
                "-mod=readonly",
                "-ldflags",
                &self.link_flags(),
                "-o",
            ]);
            go.arg(&partial).arg(package).current_dir(module).env("CGO_ENABLED", "0");
            let status = go
                .status()
                .context("cannot run go: the conformance suite needs Go (the product does not)")?;
            if !status.success() {
                bail!("go could not build {package}");
            }
            fs::rename(&partial, &output).with_context(|| format!("cannot keep {}", output.display()))?;
        }
        Ok(())
    }

    /// The versions that upstream's own build stamps in, which the programs print and compare.
    fn link_flags(&self) -> String {
        let mut numbers = self.version.trim_start_matches('v').split('.');
        let (major, minor) = (numbers.next().unwrap_or_default(), numbers.next().unwrap_or_default());
        let stamps = ["k8s.io/component-base/version", "k8s.io/client-go/pkg/version"].map(|package| {
            format!(
                "-X {package}.gitVersion={} -X {package}.gitMajor={major} -X {package}.gitMinor={minor}",
                self.version
            )
        });
        format!("-s -w {}", stamps.join(" "))
    }
}

/// The user's folder for what can be made again; an empty variable is an unset one.
fn home() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    set("XDG_CACHE_HOME").or_else(|| Some(set("HOME")?.join(".cache")))
}

fn suite_version(go_mod: &str) -> Option<&str> {
    go_mod
        .lines()
        .find_map(|line| line.trim().trim_start_matches("require ").strip_prefix("k8s.io/kubernetes "))
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_suites_version_comes_from_the_module() {
        let module = include_str!("../../../tests/conformance/go.mod");
        assert!(super::suite_version(module).unwrap().starts_with("v1."));
        assert_eq!(super::suite_version("require (\n\tk8s.io/kubernetes v1.2.3\n)"), Some("v1.2.3"));
        assert_eq!(super::suite_version("module x"), None);
    }
}
