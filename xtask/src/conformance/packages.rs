//! Debian packages whose files the images need: fetched in the locked versions and unpacked into the cache, not installed.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::archive::sha256;
use super::lock::{Lock, Package};
use super::programs::Cache;

/// Tools.
const TOOLS: &[&str] =
    &["bash", "bind9-dnsutils", "busybox-static", "curl", "iperf", "iproute2", "libc-bin", "netcat-openbsd"];
/// The libraries that they load.
const LIBRARIES: &str = "bind9-libs libbpf1 libbrotli1 libbsd0 libc6 libcap2 libcom-err2 libcurl4 libelf1 libffi8 \
libfstrm0 libgcc-s1 libgmp10 libgnutls30 libgssapi-krb5-2 libhogweed6 libicu72 libidn2-0 libjemalloc2 libjson-c5 \
libk5crypto3 libkeyutils1 libkrb5-3 libkrb5support0 libldap-2.5-0 liblmdb0 liblzma5 libmaxminddb0 libmd0 libmnl0 \
libnettle8 libnghttp2-14 libp11-kit0 libpcre2-8-0 libprotobuf-c1 libpsl5 librtmp1 libsasl2-2 libselinux1 libssh2-1 \
libssl3 libstdc++6 libtasn1-6 libtinfo6 libtirpc3 libunistring2 libuv1 libxml2 libzstd1 zlib1g";

/// A folder with the packages' files. With `update` the newest versions are fetched and locked, else the locked ones.
///
/// # Errors
/// When a package isn't what the lock says, or can't be had.
pub(super) fn root(cache: &Cache, lock: &mut Lock, architecture: &str, update: bool) -> Result<PathBuf> {
    let folder = cache.dir.join("packages");
    if update {
        if folder.exists() {
            fs::remove_dir_all(&folder).context("cannot remove the old packages")?;
        }
        let names: Vec<String> =
            TOOLS.iter().copied().chain(LIBRARIES.split(' ')).map(str::to_owned).collect();
        fetch(&folder, &names)?;
        let files = fs::read_dir(&folder)?.map(|entry| Ok(entry?.path())).collect::<Result<Vec<_>>>()?;
        lock.relock(architecture, files.iter().map(|file| identify(file)).collect::<Result<_>>()?);
    }
    let packages = lock.packages(architecture);
    if packages.is_empty() {
        bail!(
            "no packages are locked for {architecture}: `cargo xtask conformance --update-images` locks them"
        );
    }
    let all: String = packages.iter().map(|package| format!("{} ", package.sha256)).collect();
    let root = cache.dir.join(format!("tools-{}", &sha256(all.as_bytes())[..12]));
    if root.exists() {
        return Ok(root);
    }
    let missing: Vec<&Package> =
        packages.iter().filter(|package| !folder.join(file(package)).exists()).collect();
    if !missing.is_empty() {
        let exact: Vec<String> = missing.iter().map(|p| format!("{}={}", p.name, p.version)).collect();
        fetch(&folder, &exact).context("a locked version may be gone: `--update-images` locks the newest")?;
    }
    let partial = root.with_extension("partial");
    for package in &packages {
        let path = folder.join(file(package));
        check(package, &path)?;
        super::checked(Command::new("dpkg-deb").arg("-x").arg(&path).arg(&partial))?;
    }
    fs::rename(&partial, &root).with_context(|| format!("cannot keep {}", root.display()))?;
    Ok(root)
}

fn fetch(folder: &Path, packages: &[String]) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    println!("conformance: fetching {} Debian packages", packages.len());
    let mut fetch = Command::new("apt-get");
    fetch.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]).args(packages).current_dir(folder);
    super::checked(&mut fetch)
}

/// What a package's file says of itself.
fn identify(path: &Path) -> Result<Package> {
    let field = |name: &str| super::output(Command::new("dpkg-deb").arg("-f").arg(path).arg(name));
    let sha256 = digest(path)?;
    Ok(Package {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture")?,
        sha256,
    })
}

/// apt-get's name for a package's file: an epoch's colon is escaped.
fn file(package: &Package) -> String {
    format!("{}_{}_{}.deb", package.name, package.version.replace(':', "%3a"), package.architecture)
}

fn check(package: &Package, path: &Path) -> Result<()> {
    let found = digest(path)?;
    if found != package.sha256 {
        bail!(
            "{} is not what is locked (sha256 {found}, not {}): look why, or lock it with `--update-images`",
            path.display(),
            package.sha256
        );
    }
    Ok(())
}

fn digest(path: &Path) -> Result<String> {
    Ok(sha256(&fs::read(path).with_context(|| format!("cannot read {}", path.display()))?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_content_than_the_locked_one_is_an_error() {
        let path = std::env::temp_dir().join(format!("podium-package-{}", std::process::id()));
        fs::write(&path, "content").unwrap();
        let mut package = Package {
            name: "x".into(),
            version: "1:2".into(),
            architecture: "amd64".into(),
            sha256: sha256(b"content"),
        };
        assert_eq!(file(&package), "x_1%3a2_amd64.deb");
        check(&package, &path).unwrap();
        package.sha256 = sha256(b"other");
        assert!(check(&package, &path).unwrap_err().to_string().contains("not what is locked"));
        fs::remove_file(&path).unwrap();
    }
}
