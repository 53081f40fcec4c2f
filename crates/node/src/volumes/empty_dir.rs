//! emptyDir volumes: a folder, or a tmpfs for medium Memory.

use std::ffi::CString;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::Path;

use k8s_openapi::api::core::v1 as core;
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount as umount};

pub(super) fn prepare(
    path: &Path,
    source: &core::EmptyDirVolumeSource,
    fs_group: Option<u32>,
) -> Result<(), String> {
    let failed = |e: std::io::Error| format!("{}: {e}", path.display());
    std::fs::create_dir_all(path).map_err(failed)?;
    let medium = source.medium.as_deref().unwrap_or_default();
    if medium == "Memory" && !is_mount_point(path) {
        let size =
            source.size_limit.as_ref().and_then(|q| crate::resources::milli(&q.0)).map(|m| (m + 999) / 1000);
        let options =
            size.filter(|s| *s > 0).map_or_else(|| "mode=0777".into(), |s| format!("mode=0777,size={s}"));
        let options = CString::new(options).map_err(|e| e.to_string())?;
        let flags = MountFlags::NOSUID | MountFlags::NODEV;
        mount("tmpfs", path, "tmpfs", flags, options.as_c_str()).map_err(|e| failed(e.into()))?;
    } else if medium.starts_with("HugePages") {
        return Err("emptyDir medium HugePages is not supported by the node".into());
    }
    let mode = super::mode(source.mode, 0o777) | if fs_group.is_some() { 0o2000 } else { 0 };
    let permissions = std::fs::Permissions::from_mode(mode);
    if let Some(group) = fs_group {
        chown(path, None, Some(group)).map_err(failed)?;
    }
    // chown clears the set-group-id bit, so the mode comes last.
    std::fs::set_permissions(path, permissions).map_err(failed)
}

/// Whether something is mounted exactly here.
fn is_mount_point(path: &Path) -> bool {
    let Some(parent) = path.parent() else { return false };
    match (std::fs::metadata(path), std::fs::metadata(parent)) {
        (Ok(own), Ok(above)) => own.dev() != above.dev(),
        _ => false,
    }
}

/// Takes a tmpfs away; nothing happens when there is none.
pub(super) fn unmount(path: &Path) -> std::io::Result<()> {
    if is_mount_point(path) {
        umount(path, UnmountFlags::DETACH)?;
    }
    Ok(())
}
