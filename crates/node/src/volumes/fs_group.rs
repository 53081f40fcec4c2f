//! Ownership of volumes by a pod's group (`fsGroup`, `fsGroupChangePolicy`).

use std::io;
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;

use k8s_openapi::api::core::v1 as core;
use rustix::fs::{AtFlags, Dir, FileType, Gid, Mode, OFlags, chownat, fstat, open, openat};

use crate::observed::spec;

/// Whether everything is changed whatever the top folder looks like.
pub(super) fn changes_always(pod: &core::Pod) -> bool {
    let context = spec(pod).security_context.as_ref();
    context.and_then(|c| c.fs_group_change_policy.as_deref()) != Some("OnRootMismatch")
}

/// Gives everything below to the group, to read and write; new files inherit it. No link is followed, whatever a container
/// puts in the place of what was looked at: everything goes through open descriptors.
pub(super) fn apply(dir: &Path, group: u32, always: bool) -> io::Result<()> {
    let top = open(dir, OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let stat = fstat(&top)?;
    if !always && stat.st_gid == group && stat.st_mode & 0o2070 == 0o2070 {
        return Ok(());
    }
    below(&top, group)
}

fn below(folder: &OwnedFd, group: u32) -> io::Result<()> {
    for entry in Dir::read_from(folder)? {
        let entry = entry?;
        if [c".", c".."].contains(&entry.file_name()) {
            continue;
        }
        let found = openat(
            folder,
            entry.file_name(),
            OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC,
            Mode::empty(),
        );
        // It may go meanwhile.
        let Ok(found) = found else { continue };
        match FileType::from_raw_mode(fstat(&found)?.st_mode) {
            FileType::Directory => {
                let flags = OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                below(&openat(&found, ".", flags, Mode::empty())?, group)?;
            }
            _ => own(&found, group, 0o060)?,
        }
    }
    // The top folder last: it says that all is done.
    own(folder, group, 0o2070)
}

fn own(file: &OwnedFd, group: u32, rights: u32) -> io::Result<()> {
    chownat(file, c"", None, Some(Gid::from_raw(group)), AtFlags::EMPTY_PATH)?;
    let mode = fstat(file)?.st_mode;
    if FileType::from_raw_mode(mode) == FileType::Symlink {
        return Ok(());
    }
    // Changing the group clears the set-group-id bit, so the mode comes after.
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode & 0o7777 | rights))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;

    use super::*;

    #[test]
    fn a_group_gets_a_volume_unless_it_has_it() {
        let dir = tempfile::tempdir().unwrap();
        let group = std::fs::metadata(dir.path()).unwrap().gid();
        let volume = dir.path().join("v");
        std::fs::create_dir_all(volume.join("sub")).unwrap();
        let file = volume.join("sub/file");
        std::fs::write(&file, "1").unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("secret"), "1").unwrap();
        std::fs::set_permissions(outside.join("secret"), std::fs::Permissions::from_mode(0o600)).unwrap();
        std::os::unix::fs::symlink(&outside, volume.join("link")).unwrap();
        std::os::unix::fs::symlink(outside.join("secret"), volume.join("sub/link")).unwrap();
        let close = || std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let mode = || std::fs::metadata(&file).unwrap().mode() & 0o777;
        close();
        apply(&volume, group, false).unwrap();
        assert_eq!(mode(), 0o660);
        assert_eq!(std::fs::metadata(&volume).unwrap().mode() & 0o2070, 0o2070);
        close();
        apply(&volume, group, false).unwrap();
        assert_eq!(mode(), 0o600, "the top folder is right: nothing was looked at");
        apply(&volume, group, true).unwrap();
        assert_eq!(mode(), 0o660);
        let secret = std::fs::metadata(outside.join("secret")).unwrap().mode() & 0o777;
        assert_eq!(secret, 0o600, "links lead nowhere");
    }
}
