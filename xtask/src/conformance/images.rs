//! Local stand-ins for the suite's test images, under the published names: programs from the Go module `tests/conformance`,
//! tools from Debian packages. They are not the published images, and every report says so.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::archive::{self, Image};
use super::programs::Cache;

/// Debian packages whose files the images need; they are unpacked into the cache, not installed.
const PACKAGES: &[&str] = &[
    "busybox-static",
    "netcat-openbsd",
    "iperf",
    "curl",
    "iproute2",
    "bash",
    // dig, and the libraries that a plain Debian hasn't got
    "bind9-dnsutils",
    "bind9-libs",
    "libfstrm0",
    "libjemalloc2",
    "liblmdb0",
    "libmaxminddb0",
    "libprotobuf-c1",
];
/// Programs of those packages and where the images have them.
const TOOLS: &[(&str, &str)] = &[
    ("usr/bin/curl", "usr/bin/curl"),
    ("usr/bin/dig", "usr/bin/dig"),
    ("bin/nc.openbsd", "usr/bin/nc"),
    ("bin/ss", "usr/bin/ss"),
    ("bin/ip", "usr/sbin/ip"),
    ("bin/bash", "bin/bash"),
    ("usr/bin/iperf", "usr/bin/iperf"),
];

/// Makes the archives of all images that the suite names and that have a stand-in; returns them.
pub(super) fn make(cache: &Cache) -> Result<Vec<PathBuf>> {
    let folder = cache.dir.join("images");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let root = tools_root(cache)?;
    let mut archives = Vec::new();
    for name in names(cache)? {
        let archive = folder.join(format!("{}.tar", name.replace(['/', ':'], "_")));
        if !archive.exists() {
            let Some(image) = stand_in(cache, &root, &name)? else { continue };
            println!("conformance: making a stand-in for {name}");
            image.write(&archive, &name)?;
        }
        archives.push(archive);
    }
    Ok(archives)
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
    }
    image.program("bin/busybox", &program);
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
    // Debian's busybox shell prefers its own applets to the programs in PATH, such as nc
    image.link("bin/sh", "bash");
    for (from, to) in TOOLS {
        let program = root.join(from);
        image.program(to, &program);
        for library in libraries(root, &program)? {
            // a library that a package of ours brought goes where the loader looks
            let place = library.strip_prefix(root).or_else(|_| library.strip_prefix("/"));
            let place = place.context("a library without a place")?.to_string_lossy().into_owned();
            image.copy(&place, &library, archive::mode(&library)?);
        }
    }
    Ok(image)
}

/// What the loader maps for a program, the loader included.
fn libraries(root: &Path, program: &Path) -> Result<Vec<PathBuf>> {
    let paths =
        format!("{0}/usr/lib/{1}-linux-gnu:{0}/lib/{1}-linux-gnu", root.display(), std::env::consts::ARCH);
    let output =
        Command::new("ldd").arg(program).env("LD_LIBRARY_PATH", paths).output().context("cannot run ldd")?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if let Some(missing) = text.lines().find(|line| line.contains("not found")) {
        bail!("{}: {}", program.display(), missing.trim());
    }
    let paths = text.lines().filter_map(|line| line.split_whitespace().find(|word| word.starts_with('/')));
    Ok(paths.map(PathBuf::from).collect())
}

/// Unpacks the Debian packages once.
fn tools_root(cache: &Cache) -> Result<PathBuf> {
    let root = cache.dir.join("tools");
    if root.exists() {
        return Ok(root);
    }
    let folder = cache.dir.join("packages");
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    println!("conformance: fetching {}", PACKAGES.join(", "));
    let mut fetch = Command::new("apt-get");
    fetch.args(["-qq", "-o", "APT::Sandbox::User=root", "download"]).args(PACKAGES).current_dir(&folder);
    super::checked(&mut fetch)?;
    let partial = cache.dir.join("tools.partial");
    for entry in fs::read_dir(&folder)? {
        super::checked(Command::new("dpkg-deb").arg("-x").arg(entry?.path()).arg(&partial))?;
    }
    fs::rename(&partial, &root).with_context(|| format!("cannot keep {}", root.display()))?;
    Ok(root)
}
