//! Where QEMU, a kernel and busybox come from: Debian packages, unpacked into the cache.

use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

/// Packages that name the kernel; their dependency is the package with it.
const KERNEL: &str = "linux-image-cloud-amd64";
const QEMU: &str = "usr/bin/qemu-system-x86_64";
/// Only there so that a system is complete; nothing of them is needed to run QEMU from a folder.
const NOT_NEEDED: &[&str] =
    &["systemd", "udev", "libpam", "libnss", "initramfs", "linux-base", "klibc", "libklibc", "kmod"];

/// What a machine is made of.
pub(crate) struct Parts {
    folder: PathBuf,
    pub(crate) kernel: PathBuf,
    pub(crate) modules: PathBuf,
    pub(crate) busybox: PathBuf,
}

/// `$XDG_CACHE_HOME/podium-vm`, made if need be.
pub(crate) fn cache() -> Result<PathBuf> {
    let base = std::env::var_os("XDG_CACHE_HOME").filter(|path| !path.is_empty()).map(PathBuf::from);
    let home = || std::env::var_os("HOME").map(|home| PathBuf::from(home).join(".cache"));
    let cache = base.or_else(home).context("neither XDG_CACHE_HOME nor HOME is set")?.join("podium-vm");
    std::fs::create_dir_all(&cache).with_context(|| format!("cannot make {}", cache.display()))?;
    Ok(cache)
}

/// The parts from the cache, fetched first if they aren't there; `None` where that is impossible.
///
/// # Errors
/// When packages were fetched but can't be unpacked or lack something.
pub(crate) fn provide(cache: &Path) -> Result<Option<Parts>> {
    let folder = cache.join("root");
    if !folder.join("bin/busybox").exists() && !fetch(cache, &folder)? {
        return Ok(None);
    }
    // The package manager leaves out what the host has installed.
    let own = folder.join(QEMU).exists();
    if !own && !Command::new("qemu-system-x86_64").arg("--version").output().is_ok_and(|o| o.status.success())
    {
        return Ok(None);
    }
    let kernel = newest(&folder.join("boot"), "vmlinuz-")?;
    let modules = newest(&folder.join("lib/modules"), "")?;
    let busybox = folder.join("bin/busybox");
    ensure!(busybox.exists(), "{} is missing: delete {} and try again", busybox.display(), cache.display());
    Ok(Some(Parts { folder, kernel, modules, busybox }))
}

/// False when there is no apt-get or no package source.
fn fetch(cache: &Path, folder: &Path) -> Result<bool> {
    let qemu = ["install", "--simulate", "--no-install-recommends", "qemu-system-x86", "busybox-static"];
    let Some(plan) = output("apt-get", &qemu, cache) else { return Ok(false) };
    let Some(kernel) = output("apt-cache", &["depends", KERNEL], cache) else { return Ok(false) };
    let mut names: Vec<&str> =
        plan.lines().filter_map(|line| line.strip_prefix("Inst ")?.split(' ').next()).collect();
    names.retain(|name| !NOT_NEEDED.iter().any(|prefix| name.starts_with(prefix)));
    let image = kernel
        .lines()
        .filter_map(|line| line.trim().strip_prefix("Depends: "))
        .find(|n| n.starts_with("linux-image"));
    names.push(image.with_context(|| format!("{KERNEL} names no kernel"))?);
    let packages = cache.join("debs");
    std::fs::create_dir_all(&packages).with_context(|| format!("cannot make {}", packages.display()))?;
    println!("== vm: fetching {} packages", names.len());
    if output("apt-get", &[&["download"], names.as_slice()].concat(), &packages).is_none() {
        return Ok(false);
    }
    for package in std::fs::read_dir(&packages)? {
        let package = package?.path();
        let status = Command::new("dpkg-deb").arg("-x").arg(&package).arg(folder).status();
        ensure!(status.is_ok_and(|status| status.success()), "cannot unpack {}", package.display());
    }
    Ok(true)
}

/// Standard output of a program that succeeded.
fn output(program: &str, arguments: &[&str], folder: &Path) -> Option<String> {
    let output = Command::new(program).args(arguments).current_dir(folder).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).into_owned())
}

fn newest(folder: &Path, prefix: &str) -> Result<PathBuf> {
    let entries = std::fs::read_dir(folder).with_context(|| format!("cannot read {}", folder.display()))?;
    let entries = entries.flatten().filter(|entry| entry.file_name().to_string_lossy().starts_with(prefix));
    let newest = entries.map(|entry| entry.path()).max();
    newest.with_context(|| format!("nothing in {} begins with {prefix:?}", folder.display()))
}

impl Parts {
    /// QEMU with its own libraries and firmware before those of the host; the host's where it was not fetched.
    pub(crate) fn qemu(&self) -> Command {
        if !self.folder.join(QEMU).exists() {
            return Command::new("qemu-system-x86_64");
        }
        let mut command = Command::new(self.folder.join(QEMU));
        let mut libraries = OsString::new();
        for part in ["usr/lib/x86_64-linux-gnu", "lib/x86_64-linux-gnu"] {
            libraries.push(self.folder.join(part));
            libraries.push(":");
        }
        command.env("LD_LIBRARY_PATH", libraries);
        for firmware in ["usr/share/qemu", "usr/share/seabios", "usr/lib/ipxe/qemu"] {
            command.arg("-L").arg(self.folder.join(firmware));
        }
        command
    }
}
