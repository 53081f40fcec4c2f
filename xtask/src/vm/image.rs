//! The machine's file system.

use std::collections::BTreeSet;
use std::fs;
use std::io::BufWriter;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::EXIT_MARK;
use super::cpio::Archive;
use super::packages::Parts;

/// Kernel modules that Podium makes the kernel load, by folder.
const MODULES: &[&str] =
    &["kernel/net", "kernel/fs/overlayfs", "kernel/drivers/net", "kernel/lib", "kernel/crypto"];

/// Writes the file system. Programs, of which `podium` is the first, have the same paths as here.
///
/// # Errors
/// When a part can't be read, or the file can't be written.
pub(crate) fn make(root: &Path, parts: &Parts, programs: &[PathBuf], command: &str, to: &Path) -> Result<()> {
    let file = fs::File::create(to).with_context(|| format!("cannot write {}", to.display()))?;
    let mut archive = Archive::new(BufWriter::with_capacity(1 << 20, file));
    for folder in ["/proc", "/sys", "/dev", "/tmp", "/run", "/root", "/machine", "/var/lib", "/etc"] {
        archive.folder(folder)?;
    }
    add(&mut archive, &parts.busybox, "/bin/busybox")?;
    archive.link("/bin/sh", "busybox")?;
    archive.file("/init", 0o755, INIT.as_bytes())?;
    archive.file("/main", 0o755, main_script(root, programs, command).as_bytes())?;
    archive.file("/etc/passwd", 0o644, b"root:x:0:0:root:/root:/bin/sh\n")?;
    archive.file("/etc/resolv.conf", 0o644, b"")?;
    let mut libraries = BTreeSet::new();
    for program in programs {
        add(&mut archive, program, &program.to_string_lossy())?;
        libraries.extend(libraries_of(program)?);
    }
    for library in libraries {
        add(&mut archive, Path::new(&library), &library)?;
    }
    let manifests = root.join("examples");
    for entry in fs::read_dir(&manifests).with_context(|| format!("cannot read {}", manifests.display()))? {
        let path = entry?.path();
        add(&mut archive, &path, &path.to_string_lossy())?;
    }
    archive.folder(&root.join("crates/podium").to_string_lossy())?;
    let version = parts.modules.file_name().unwrap_or_default().to_string_lossy().into_owned();
    for part in MODULES {
        tree(&mut archive, &parts.modules.join(part), &format!("/lib/modules/{version}/{part}"))?;
    }
    for list in ["modules.order", "modules.builtin", "modules.builtin.modinfo"] {
        add(&mut archive, &parts.modules.join(list), &format!("/lib/modules/{version}/{list}"))?;
    }
    Ok(archive.finish()?)
}

fn add<W: std::io::Write>(archive: &mut Archive<W>, from: &Path, to: &str) -> Result<()> {
    let contents = fs::read(from).with_context(|| format!("cannot read {}", from.display()))?;
    Ok(archive.file(to, 0o755, &contents)?)
}

fn tree<W: std::io::Write>(archive: &mut Archive<W>, from: &Path, to: &str) -> Result<()> {
    for entry in fs::read_dir(from).with_context(|| format!("cannot read {}", from.display()))? {
        let entry = entry?;
        let name = format!("{to}/{}", entry.file_name().to_string_lossy());
        if entry.file_type()?.is_dir() {
            tree(archive, &entry.path(), &name)?;
        } else {
            add(archive, &entry.path(), &name)?;
        }
    }
    Ok(())
}

/// Paths of the shared libraries of a program, its loader among them (ldd(1)).
fn libraries_of(program: &Path) -> Result<Vec<String>> {
    let output = Command::new("ldd").arg(program).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(!text.contains("not found"), "{} lacks libraries:\n{text}", program.display());
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(str::to_owned).collect())
}

/// The first process moves everything into a file system that containers can leave: the initial one can't be pivoted away.
const INIT: &str = "#!/bin/sh
/bin/busybox mkdir -p /sbin /usr/bin /usr/sbin
/bin/busybox --install -s
mount -t proc proc /proc
mount -t tmpfs -o mode=755,size=3g machine /machine
for part in /*; do
    case $part in /machine|/proc|/sys|/dev) ;; *) cp -a $part /machine/ ;; esac
done
mkdir -p /machine/proc /machine/sys /machine/dev
umount /proc
exec switch_root /machine /main
";

fn main_script(root: &Path, programs: &[PathBuf], command: &str) -> String {
    let (root, podium) = (root.display(), programs[0].display());
    format!(
        "#!/bin/sh
export PATH=/bin:/sbin:/usr/bin:/usr/sbin HOME=/root PODIUM_TEST_REQUIRE=root RUST_BACKTRACE=1
mount -t proc proc /proc
mount -t sysfs sys /sys
mount -t devtmpfs dev /dev
mkdir -p /dev/pts /dev/shm
mount -t devpts devpts /dev/pts
mount -t tmpfs shm /dev/shm
mount -t tmpfs run /run
mount -t cgroup2 cgroup2 /sys/fs/cgroup
hostname machine
ip link set lo up
depmod
# busybox' modprobe does not wait for a module that another one is loading
modprobe -a overlay veth nft_chain_nat nft_numgen nft_fib_ipv4 nft_masq nft_reject_ipv4 nft_ct
echo \"machine: $(uname -r), $(stat -f -c %T /sys/fs/cgroup), $(cat /sys/fs/cgroup/cgroup.controllers)\"
{podium} version
cd {root}
{command}
echo {EXIT_MARK} $?
sync
poweroff -f
"
    )
}
