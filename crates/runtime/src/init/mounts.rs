//! A container's view of the file system.
//!
//! Everything is mounted in the container's own mount namespace, so that nothing is left on the host when its last
//! process ends. Sources are opened on the host's side as detached trees; the root is entered; only then targets are
//! looked up, below the new root and without magic links, so that no link in an image leads a mount elsewhere.

use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;

use rustix::fs::{AtFlags, CWD, Mode, OFlags, ResolveFlags};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountPropagationFlags, MoveMountFlags, OpenTreeFlags,
    UnmountFlags,
};

use super::ContainerStart;
use crate::error::{During as _, RuntimeError};
use crate::spec::{ContainerPlan, Mount, Propagation};
use crate::sys;

const HIDDEN: [&str; 11] = [
    "/proc/acpi",
    "/proc/asound",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
const READ_ONLY: [&str; 5] = ["/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"];
/// Name, major and minor number.
const DEVICES: [(&str, u32, u32); 6] =
    [("null", 1, 3), ("zero", 1, 5), ("full", 1, 7), ("random", 1, 8), ("urandom", 1, 9), ("tty", 5, 0)];
const LINKS: [(&str, &str); 5] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
];

/// A tree to be placed at a path inside.
struct Source {
    tree: OwnedFd,
    target: String,
    is_dir: bool,
}

/// Mounts the root and everything in it, and makes it this process's root.
pub(super) fn enter_root(start: &ContainerStart<'_>) -> Result<(), RuntimeError> {
    let plan = start.plan;
    let mut binds = Vec::new();
    let (images, paths): (Vec<_>, Vec<_>) = plan.spec.mounts.iter().partition(|mount| mount.image.is_some());
    for mount in paths {
        binds.push(open_source(mount)?);
    }
    // Mounts made later on the host still arrive, none made here goes back.
    rustix::mount::mount_change("/", MountPropagationFlags::DOWNSTREAM | MountPropagationFlags::REC)
        .during(|| "cannot detach the mount tree".into())?;
    let host_devices = if plan.spec.privileged { host_devices()? } else { Vec::new() };
    let groups = group_sources(start)?;
    let shm = clone_tree(&start.sandbox.dir.join("shm"), false)?;
    for (number, mount) in images.into_iter().enumerate() {
        binds.push(image_source(plan, number, mount)?);
    }
    mount_overlay(plan)?;
    rustix::process::chdir(plan.dir.join("rootfs"))?;
    rustix::process::pivot_root(".", ".").during(|| "cannot enter the root".into())?;
    rustix::mount::unmount(".", UnmountFlags::DETACH).during(|| "cannot leave the host's root".into())?;
    rustix::process::chdir("/")?;

    let sys_attrs =
        if plan.spec.privileged { MountAttrFlags::empty() } else { MountAttrFlags::MOUNT_ATTR_RDONLY };
    let guarded = MountAttrFlags::MOUNT_ATTR_NOSUID
        | MountAttrFlags::MOUNT_ATTR_NOEXEC
        | MountAttrFlags::MOUNT_ATTR_NODEV;
    place_new("proc", &[], guarded, "/proc")?;
    place_new("sysfs", &[], guarded | sys_attrs, "/sys")?;
    place_groups(groups, guarded | sys_attrs)?;
    let strict = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_STRICTATIME;
    place_new("tmpfs", &[("mode", "755"), ("size", "64m")], strict, "/dev")?;
    let pts = [("newinstance", ""), ("ptmxmode", "0666"), ("mode", "0620"), ("gid", "5")];
    let quiet = MountAttrFlags::MOUNT_ATTR_NOSUID | MountAttrFlags::MOUNT_ATTR_NOEXEC;
    place_new("devpts", &pts, quiet, "/dev/pts")?;
    place_new("mqueue", &[], guarded, "/dev/mqueue")?;
    place(&Source { tree: shm, target: "/dev/shm".into(), is_dir: true })?;
    make_devices(&host_devices)?;
    // Outer targets first, whatever the order given.
    binds.sort_by_key(|source| source.target.split('/').filter(|part| !part.is_empty()).count());
    binds.iter().try_for_each(place)
}

/// Hides and write-protects what the container must not touch; after this nothing is mounted any more.
pub(super) fn finish_root(plan: &ContainerPlan) -> Result<(), RuntimeError> {
    if !plan.spec.privileged {
        READ_ONLY.iter().try_for_each(|path| protect(path))?;
        let mut empty = None;
        HIDDEN.iter().try_for_each(|path| hide(path, &mut empty))?;
    }
    if !plan.cwd.is_empty() {
        make_dirs(&plan.cwd)?;
    }
    if plan.spec.readonly_rootfs {
        let root = rustix::fs::open("/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        sys::mount_setattr(root.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, false)
            .during(|| "cannot make the root read-only".into())?;
    }
    Ok(())
}

/// Makes the terminal appear as /dev/console.
pub(super) fn bind_console(terminal: &std::ffi::CStr) -> Result<(), RuntimeError> {
    let path = terminal.to_string_lossy().into_owned();
    let tree = clone_tree(Path::new(&path), false)?;
    place(&Source { tree, target: "/dev/console".into(), is_dir: false })
}

fn clone_tree(path: &Path, recursive: bool) -> Result<OwnedFd, RuntimeError> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    rustix::mount::open_tree(CWD, path, flags).during(|| format!("cannot mount {}", path.display()))
}

fn open_source(mount: &Mount) -> Result<Source, RuntimeError> {
    let path = &mount.host_path;
    if !path.exists() {
        std::fs::create_dir_all(path).during(|| format!("cannot make {}", path.display()))?;
    }
    let is_dir = path.is_dir();
    let tree = clone_tree(path, true)?;
    let propagation = match mount.propagation {
        Propagation::Private => libc::MS_PRIVATE,
        Propagation::HostToContainer => libc::MS_SLAVE,
        Propagation::Bidirectional => libc::MS_SHARED,
    };
    let readonly = if mount.readonly { libc::MOUNT_ATTR_RDONLY } else { 0 };
    sys::mount_setattr(tree.as_fd(), readonly, propagation, true)
        .during(|| format!("cannot set up the mount of {}", path.display()))?;
    Ok(Source { tree, target: mount.container_path.clone(), is_dir })
}

/// The files of an image. They are mounted beside the root, from where nothing reaches the host; the path below is looked
/// up inside, so that no link of the image leads out.
fn image_source(plan: &ContainerPlan, number: usize, mount: &Mount) -> Result<Source, RuntimeError> {
    let name = mount.image.as_deref().unwrap_or_default();
    let what = || format!("cannot mount image {name}");
    let layers = plan.mounted.get(name).ok_or_else(|| RuntimeError::NotFound(format!("image {name}")))?;
    let place = plan.dir.join(format!("image-{number}"));
    std::fs::create_dir_all(&place).during(what)?;
    let tree = match layers.as_slice() {
        [] => new_mount("tmpfs", &[("size", "4k")], MountAttrFlags::empty()).during(what)?,
        // An overlay needs two layers.
        [only] => clone_tree(only, false)?,
        layers => overlay_tree(layers, None).during(what)?,
    };
    rustix::mount::move_mount(tree.as_fd(), "", CWD, &place, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
        .during(what)?;
    let root = rustix::fs::open(&place, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let below = if mount.sub_path.is_empty() { "." } else { &mount.sub_path };
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let found = rustix::fs::openat2(&root, below, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
        .map_err(|e| RuntimeError::Invalid(format!("no {below:?} in image {name}: {e}")))?;
    let kind = rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&found)?.st_mode);
    let flags =
        OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    let tree = rustix::mount::open_tree(&found, "", flags).during(what)?;
    let guarded = libc::MOUNT_ATTR_RDONLY | libc::MOUNT_ATTR_NOEXEC | libc::MOUNT_ATTR_NOSUID;
    sys::mount_setattr(tree.as_fd(), guarded, libc::MS_PRIVATE, false).during(what)?;
    let is_dir = kind == rustix::fs::FileType::Directory;
    Ok(Source { tree, target: mount.container_path.clone(), is_dir })
}

/// The container's own groups as they appear below /sys/fs/cgroup: (name, tree), "" for a pure v2 machine.
fn group_sources(start: &ContainerStart<'_>) -> Result<Vec<(String, OwnedFd)>, RuntimeError> {
    let mut sources = Vec::new();
    for (name, folder) in start.hierarchies.v1_folders(start.group.path()) {
        sources.push((name, clone_tree(&folder, false)?));
    }
    // Programs that find a v2 hierarchy believe that it is the only one: where v1 has the controllers it isn't shown.
    let folder = start.hierarchies.v2_folder(start.group.path());
    if let Some(folder) = folder.filter(|_| start.hierarchies.is_v2_only()) {
        sources.push((String::new(), clone_tree(&folder, false)?));
    }
    Ok(sources)
}

fn place_groups(sources: Vec<(String, OwnedFd)>, attrs: MountAttrFlags) -> Result<(), RuntimeError> {
    let base = "/sys/fs/cgroup";
    if !sources.iter().any(|(name, _)| name.is_empty()) && !sources.is_empty() {
        place_new("tmpfs", &[("mode", "755")], attrs & !MountAttrFlags::MOUNT_ATTR_RDONLY, base)?;
    }
    for (name, tree) in sources {
        sys::mount_setattr(tree.as_fd(), u64::from(attrs.bits()), libc::MS_PRIVATE, false)
            .during(|| "cannot set up control groups".into())?;
        let target = format!("{base}/{name}");
        place(&Source { tree, target: target.trim_end_matches('/').to_owned(), is_dir: true })?;
        for alias in name.split(',').filter(|alias| *alias != name) {
            rustix::fs::symlink(&name, format!("{base}/{alias}"))
                .during(|| "cannot link control groups".into())?;
        }
    }
    Ok(())
}

fn mount_overlay(plan: &ContainerPlan) -> Result<(), RuntimeError> {
    let (upper, work, root) = (plan.dir.join("upper"), plan.dir.join("work"), plan.dir.join("rootfs"));
    let tree = overlay_tree(&plan.layers, Some((&upper, &work)));
    match tree {
        Ok(tree) => {
            rustix::mount::move_mount(tree.as_fd(), "", CWD, &root, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH)
                .during(|| "cannot mount the root".into())
        }
        // Kernels before 6.8 take the layers only as one string.
        Err(rustix::io::Errno::INVAL) => {
            let lower: Vec<String> =
                plan.layers.iter().rev().map(|layer| layer.display().to_string()).collect();
            let options = format!(
                "lowerdir={},upperdir={},workdir={}",
                lower.join(":"),
                upper.display(),
                work.display()
            );
            let options = std::ffi::CString::new(options).during(|| "null in a path".into())?;
            rustix::mount::mount(
                "overlay",
                &root,
                "overlay",
                rustix::mount::MountFlags::empty(),
                options.as_c_str(),
            )
            .during(|| "cannot mount the root".into())
        }
        Err(error) => Err(RuntimeError::Other(format!("cannot mount the root: {error}"))),
    }
}

/// An overlay as a detached tree; without upper and work folders it cannot be written to.
fn overlay_tree(layers: &[std::path::PathBuf], own: Option<(&Path, &Path)>) -> rustix::io::Result<OwnedFd> {
    use rustix::mount::fsconfig_set_string as set;
    let context = rustix::mount::fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    // The option's order is top to bottom.
    for layer in layers.iter().rev() {
        set(context.as_fd(), "lowerdir+", layer)?;
    }
    if let Some((upper, work)) = own {
        set(context.as_fd(), "upperdir", upper)?;
        set(context.as_fd(), "workdir", work)?;
    }
    set(context.as_fd(), "source", "overlay")?;
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty())
}

fn place_new(
    kind: &str,
    options: &[(&str, &str)],
    attrs: MountAttrFlags,
    target: &str,
) -> Result<(), RuntimeError> {
    let tree = new_mount(kind, options, attrs).during(|| format!("cannot mount {target}"))?;
    place(&Source { tree, target: target.to_owned(), is_dir: true })
}

/// A new file system as a detached tree. An option without a value is a flag.
pub(crate) fn new_mount(
    kind: &str,
    options: &[(&str, &str)],
    attrs: MountAttrFlags,
) -> rustix::io::Result<OwnedFd> {
    let context = rustix::mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        if value.is_empty() {
            rustix::mount::fsconfig_set_flag(context.as_fd(), *name)?;
        } else {
            rustix::mount::fsconfig_set_string(context.as_fd(), *name, *value)?;
        }
    }
    rustix::mount::fsconfig_create(context.as_fd())?;
    rustix::mount::fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, attrs)
}

fn place(source: &Source) -> Result<(), RuntimeError> {
    let target = if source.is_dir { make_dirs(&source.target)? } else { make_file(&source.target)? };
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(source.tree.as_fd(), "", target.as_fd(), "", flags)
        .during(|| format!("cannot mount on {}", source.target))
}

/// Looks a path up below the root; links are followed inside it, magic links are refused.
fn look_up(path: &str) -> rustix::io::Result<OwnedFd> {
    let root = rustix::fs::open("/", OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let path = if path.is_empty() { "." } else { path };
    rustix::fs::openat2(&root, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve)
}

/// Looks a folder up, making what is missing.
fn make_dirs(path: &str) -> Result<OwnedFd, RuntimeError> {
    let mut so_far = String::new();
    let mut folder = look_up("/").during(|| "cannot open the root".into())?;
    for part in path.split('/').filter(|part| !part.is_empty() && *part != ".") {
        if part == ".." {
            return Err(RuntimeError::Invalid(format!("path {path:?} holds \"..\"")));
        }
        so_far = format!("{so_far}/{part}");
        folder = match look_up(&so_far) {
            Ok(found) => found,
            Err(rustix::io::Errno::NOENT) => {
                rustix::fs::mkdirat(&folder, part, Mode::from_raw_mode(0o755))
                    .during(|| format!("cannot make {so_far} in the container"))?;
                look_up(&so_far).during(|| format!("cannot open {so_far} in the container"))?
            }
            Err(error) => {
                return Err(RuntimeError::Invalid(format!("cannot open {so_far} in the container: {error}")));
            }
        };
    }
    Ok(folder)
}

/// Looks a file up, making it when it is missing.
fn make_file(path: &str) -> Result<OwnedFd, RuntimeError> {
    let (parent, name) = path.trim_end_matches('/').rsplit_once('/').unwrap_or(("", path));
    let folder = make_dirs(parent)?;
    match look_up(path) {
        Ok(found) => Ok(found),
        Err(rustix::io::Errno::NOENT) => {
            let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            let made = rustix::fs::openat(&folder, name, flags, Mode::from_raw_mode(0o644));
            drop(made.during(|| format!("cannot make {path} in the container"))?);
            look_up(path).during(|| format!("cannot open {path} in the container"))
        }
        Err(error) => Err(RuntimeError::Invalid(format!("cannot open {path} in the container: {error}"))),
    }
}

/// A device of the machine: name, kind, rights, number.
type HostDevice = (std::ffi::OsString, rustix::fs::FileType, Mode, u64);

/// The devices right in the machine's /dev but those every container has; terminals belong to the host.
fn host_devices() -> Result<Vec<HostDevice>, RuntimeError> {
    let mut devices = Vec::new();
    for entry in std::fs::read_dir("/dev").during(|| "cannot list devices".into())? {
        let name = entry?.file_name();
        let text = name.to_string_lossy();
        let known = DEVICES.iter().any(|(known, ..)| *known == text) || ["ptmx", "console"].contains(&&*text);
        if known || text.starts_with("tty") || text.starts_with("vcs") {
            continue;
        }
        // A device may go while the folder is read.
        let Ok(stat) = rustix::fs::lstat(Path::new("/dev").join(&name)) else { continue };
        let kind = rustix::fs::FileType::from_raw_mode(stat.st_mode);
        if kind.is_char_device() || kind.is_block_device() {
            devices.push((name, kind, Mode::from_raw_mode(stat.st_mode & 0o777), stat.st_rdev));
        }
    }
    Ok(devices)
}

fn make_devices(host: &[HostDevice]) -> Result<(), RuntimeError> {
    let dev = make_dirs("/dev")?;
    for (name, kind, mode, number) in host {
        rustix::fs::mknodat(&dev, name, *kind, *mode, *number)
            .during(|| format!("cannot make /dev/{}", name.to_string_lossy()))?;
    }
    for (name, major, minor) in DEVICES {
        let kind = rustix::fs::FileType::CharacterDevice;
        let device = rustix::fs::makedev(major, minor);
        rustix::fs::mknodat(&dev, name, kind, Mode::from_raw_mode(0o666), device)
            .during(|| format!("cannot make /dev/{name}"))?;
        rustix::fs::chmodat(&dev, name, Mode::from_raw_mode(0o666), AtFlags::empty())
            .during(|| format!("cannot open up /dev/{name}"))?;
    }
    for (target, link) in LINKS {
        rustix::fs::symlink(target, link).during(|| format!("cannot make {link}"))?;
    }
    Ok(())
}

fn protect(path: &str) -> Result<(), RuntimeError> {
    if look_up(path).is_err() {
        return Ok(());
    }
    let tree = clone_tree(Path::new(path), true)?;
    sys::mount_setattr(tree.as_fd(), libc::MOUNT_ATTR_RDONLY, 0, true)
        .during(|| format!("cannot write-protect {path}"))?;
    cover(tree, path)
}

/// Covers a file by /dev/null, a folder by an empty one, which is the same everywhere: `empty` is where it is already.
fn hide(path: &'static str, empty: &mut Option<&'static str>) -> Result<(), RuntimeError> {
    let Ok(found) = look_up(path) else { return Ok(()) };
    let stat = rustix::fs::fstat(&found)?;
    let is_dir = rustix::fs::FileType::from_raw_mode(stat.st_mode) == rustix::fs::FileType::Directory;
    let tree = match *empty {
        _ if !is_dir => clone_tree(Path::new("/dev/null"), false)?,
        Some(made) => clone_tree(Path::new(made), false)?,
        None => new_mount("tmpfs", &[("size", "4k")], MountAttrFlags::MOUNT_ATTR_RDONLY)
            .during(|| format!("cannot hide {path}"))?,
    };
    if is_dir {
        empty.get_or_insert(path);
    }
    cover(tree, path)
}

fn cover(tree: OwnedFd, path: &str) -> Result<(), RuntimeError> {
    let target = look_up(path).during(|| format!("cannot open {path}"))?;
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    rustix::mount::move_mount(tree.as_fd(), "", target.as_fd(), "", flags)
        .during(|| format!("cannot cover {path}"))
}
