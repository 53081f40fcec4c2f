//! Local stand-ins for the suite's test images, under the published names: programs from the Go module `tests/conformance`,
//! tools from Debian packages, both locked. They are not the published images, and every report says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::archive::{self, Image};
use super::lock::Lock;
use super::packages;
use super::programs::Cache;

const SHELL: &[(&str, &str)] = &[("bin/bash", "bin/bash")];
/// Programs of the Debian packages and where the images have them.
const TOOLS: &[(&str, &str)] = &[
    ("usr/bin/curl", "usr/bin/curl"),
    ("usr/bin/dig", "usr/bin/dig"),
    ("bin/nc.openbsd", "usr/bin/nc"),
    ("bin/ss", "usr/bin/ss"),
    ("bin/ip", "usr/sbin/ip"),
    ("usr/bin/iperf", "usr/bin/iperf"),
    ("usr/bin/getent", "usr/bin/getent"),
];

/// Makes the archives of all images that the suite names and that have a stand-in; returns them. With `update` what
/// comes out is locked, else it must be what is locked.
pub(super) fn make(cache: &Cache, module: &Path, update: bool) -> Result<Vec<PathBuf>> {
    let architecture = archive::architecture();
    let mut lock = Lock::read(module)?;
    let folder = folder(cache);
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if let (false, Some(archives)) = (update, made(cache, module)?) {
        return Ok(archives);
    }
    let root = packages::root(cache, &mut lock, architecture, update)?;
    let mut archives = Vec::new();
    for name in names(cache)? {
        let Some(image) = stand_in(cache, &root, &name)? else { continue };
        println!("conformance: making a stand-in for {name}");
        let partial = folder.join("partial");
        let id = image.write(&partial, &name)?;
        if update {
            lock.lock_image(&name, architecture, &id);
        } else if lock.image(&name, architecture) != Some(&id) {
            bail!(
                "the stand-in for {name} is not the locked one: another recipe, or another Go than the one it was \
                 locked with; `cargo xtask conformance --update-images` locks it"
            );
        }
        let path = path(cache, &name, &id);
        fs::rename(&partial, &path).with_context(|| format!("cannot keep {}", path.display()))?;
        archives.push(path);
    }
    if update {
        lock.write()?;
    }
    Ok(archives)
}

/// The archives of all locked images, if they are made.
pub(super) fn made(cache: &Cache, module: &Path) -> Result<Option<Vec<PathBuf>>> {
    let lock = Lock::read(module)?;
    let paths: Vec<PathBuf> =
        lock.images(archive::architecture()).map(|(name, id)| path(cache, name, id)).collect();
    Ok((!paths.is_empty() && paths.iter().all(|path| path.exists())).then_some(paths))
}

fn folder(cache: &Cache) -> PathBuf {
    cache.dir.join("images")
}

fn path(cache: &Cache, name: &str, id: &str) -> PathBuf {
    folder(cache).join(format!("{}-{}.tar", name.replace(['/', ':'], "_"), &id[..12]))
}

/// The suite's own list.
fn names(cache: &Cache) -> Result<Vec<String>> {
    let output = Command::new(cache.program("e2e.test")).arg("--list-images").output();
    let output = output.context("cannot run e2e.test --list-images")?;
    let text = String::from_utf8(output.stdout).context("the list of images is no text")?;
    let mut names: Vec<String> = text
        .lines()
        .map(str::trim)
        .filter(|line| line.contains('/') && !line.contains(' '))
        .map(str::to_owned)
        .collect();
    names.sort();
    names.dedup();
    if names.is_empty() {
        bail!("e2e.test --list-images names no image: {}", String::from_utf8_lossy(&output.stderr).trim());
    }
    Ok(names)
}

/// The stand-in for a published image; `None` when there is none.
fn stand_in(cache: &Cache, root: &Path, name: &str) -> Result<Option<Image>> {
    let path = name.rsplit_once(':').map_or(name, |(path, _)| path);
    // the other registries are for tests of images that can't be had
    if !path.starts_with("registry.k8s.io/") {
        return Ok(None);
    }
    let mut image = match path.rsplit('/').next().unwrap_or_default() {
        "agnhost" => agnhost(cache, root)?,
        "nginx" => {
            let mut image = agnhost(cache, root)?;
            image.cmd = vec!["test-webserver".into()];
            image
        }
        "kitten" | "nautilus" => picture(cache, root, path)?,
        "busybox" => busybox(root)?,
        "pause" => {
            let mut image =
                Image { entrypoint: vec!["/pause".into()], user: "65535:65535".into(), ..Image::default() };
            image.program("pause", &cache.program("pause"));
            image
        }
        "nonewprivs" => {
            let mut image = busybox(root)?;
            // set-uid root: what the test is about
            image.copy("usr/local/bin/nnp", &cache.program("nnp"), 0o6755);
            image.cmd = vec!["nnp".into()];
            image
        }
        "nonroot" => {
            let mut image = busybox(root)?;
            image.user = "1234".into();
            image
        }
        "glibc-dns-testing" => tools(root)?,
        "sample-apiserver" => {
            let mut image = busybox(root)?;
            image.program("sample-apiserver", &cache.program("sample-apiserver"));
            image.entrypoint = vec!["/sample-apiserver".into()];
            image
        }
        "etcd" => {
            let mut image = busybox(root)?;
            image.program("usr/local/bin/etcd", &cache.program("etcd"));
            image.cmd = vec!["etcd".into()];
            image
        }
        _ => return Ok(None),
    };
    // also keeps two tags of one recipe two images
    image.text("etc/stand-in", &format!("local stand-in for {name}\n"));
    Ok(Some(image))
}

fn agnhost(cache: &Cache, root: &Path) -> Result<Image> {
    let mut image = tools(root)?;
    image.program("agnhost", &cache.program("agnhost"));
    image.link("agnhost-2", "agnhost");
    image.folder("uploads", 0o755);
    // what upstream's image has of its source tree: a certificate and its key, which some tests fetch
    for file in ["localhost.crt", "localhost.key"] {
        image.copy(file, &cache.suite_source()?.join("test/images/agnhost/porter").join(file), 0o644);
    }
    // a user in a group of its own: one test looks at supplementary groups that the image defines
    image.text("etc/passwd", &format!("{PASSWD}user-defined-in-image:x:1000:1000::/home:/bin/sh\n"));
    image.text(
        "etc/group",
        &format!(
            "{GROUP}user-defined-in-image:x:1000:\ngroup-defined-in-image:x:50000:user-defined-in-image\n"
        ),
    );
    image.entrypoint = vec!["/agnhost".into()];
    image.cmd = vec!["pause".into()];
    Ok(image)
}

/// A web server with one document that names its picture.
fn picture(cache: &Cache, root: &Path, path: &str) -> Result<Image> {
    let name = path.rsplit('/').next().unwrap_or_default();
    let mut image = agnhost(cache, root)?;
    image.text("data.json", &format!("{{\n  \"image\": \"{name}.jpg\"\n}}\n"));
    image.text(&format!("{name}.jpg"), name);
    image.cmd = vec!["test-webserver".into()];
    Ok(image)
}

const PASSWD: &str = "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n";
const GROUP: &str = "root:x:0:\ntty:x:5:\nnogroup:x:65534:\n";

fn busybox(root: &Path) -> Result<Image> {
    let program = root.join("bin/busybox");
    let output = Command::new(&program).arg("--list-full").output();
    let output = output.with_context(|| format!("cannot run {}", program.display()))?;
    let mut image = Image {
        cmd: vec!["sh".into()],
        env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
        ..Image::default()
    };
    for path in String::from_utf8_lossy(&output.stdout).lines() {
        image.link(path, "/bin/busybox");
        // the published image has all of them there
        let name = path.rsplit('/').next().unwrap_or_default();
        image.link(&format!("bin/{name}"), "/bin/busybox");
    }
    image.program("bin/busybox", &program);
    // The published shell keeps variables whose names aren't a shell's; busybox' of this version drops them, but it has the
    // published one's messages. So `sh` in PATH is another than /bin/sh.
    image.link("usr/bin/sh", "/bin/bash");
    add(&mut image, root, SHELL)?;
    image.text("etc/passwd", PASSWD);
    image.text("etc/group", GROUP);
    image.text(
        "etc/os-release",
        "PRETTY_NAME=\"stand-in for Alpine Linux, made of Debian packages\"\nID=debian\n",
    );
    for (folder, mode) in
        [("tmp", 0o1777), ("root", 0o700), ("home", 0o755), ("var/tmp", 0o1777), ("mnt", 0o755)]
    {
        image.folder(folder, mode);
    }
    Ok(image)
}

/// Busybox and the network tools with their libraries.
fn tools(root: &Path) -> Result<Image> {
    let mut image = busybox(root)?;
    // the shell of busybox prefers its own applets to the programs in PATH, such as nc
    image.link("bin/sh", "bash");
    add(&mut image, root, TOOLS)?;
    Ok(image)
}

/// Adds programs and what the loader maps for them, all from the packages.
fn add(image: &mut Image, root: &Path, programs: &[(&str, &str)]) -> Result<()> {
    let (at, loader) = match std::env::consts::ARCH {
        "aarch64" => ("lib/ld-linux-aarch64.so.1", "lib/aarch64-linux-gnu/ld-linux-aarch64.so.1"),
        _ => ("lib64/ld-linux-x86-64.so.2", "lib/x86_64-linux-gnu/ld-linux-x86-64.so.2"),
    };
    image.program(at, &root.join(loader));
    for (from, to) in programs {
        let program = root.join(from);
        image.program(to, &program);
        for library in libraries(root, &root.join(loader), &program)? {
            let place = library.strip_prefix(root).with_context(|| {
                format!("{} of {} is in no package of the list", library.display(), program.display())
            })?;
            image.copy(&place.to_string_lossy(), &library, archive::mode(&library)?);
        }
    }
    Ok(())
}

/// The libraries of a program, as the packages' own loader finds them.
fn libraries(root: &Path, loader: &Path, program: &Path) -> Result<Vec<PathBuf>> {
    let paths =
        format!("{0}/usr/lib/{1}-linux-gnu:{0}/lib/{1}-linux-gnu", root.display(), std::env::consts::ARCH);
    let mut list = Command::new(loader);
    list.args(["--inhibit-cache", "--library-path", &paths, "--list"]).arg(program);
    let text = super::output(&mut list)?;
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", program.display(), missing.trim());
    }
    // the loader itself and the kernel's page have no arrow
    let found = text.lines().filter_map(|line| line.split_once(" => ")?.1.split_whitespace().next());
    Ok(found
        .map(PathBuf::from)
        .filter(|path| !path.ends_with(loader.file_name().unwrap_or_default()))
        .collect())
}
