use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};

use super::*;

/// A tar entry; names are written raw, so that hostile ones get in.
fn add(archive: &mut tar::Builder<Vec<u8>>, kind: EntryType, path: &str, content: &str, mode: u32) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.as_gnu_mut().unwrap().name[..path.len()].copy_from_slice(path.as_bytes());
    header.set_mode(mode);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(1_000_000);
    let data = if matches!(kind, EntryType::Symlink | EntryType::Link) {
        header.as_gnu_mut().unwrap().linkname[..content.len()].copy_from_slice(content.as_bytes());
        ""
    } else {
        content
    };
    header.set_size(data.len() as u64);
    header.set_cksum();
    archive.append(&header, data.as_bytes()).unwrap();
}

fn archive(entries: &[(EntryType, &str, &str, u32)]) -> Vec<u8> {
    let mut archive = tar::Builder::new(Vec::new());
    for (kind, path, content, mode) in entries {
        add(&mut archive, *kind, path, content, *mode);
    }
    archive.into_inner().unwrap()
}

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    assert!(root || std::env::var("PODIUM_TEST_REQUIRE").as_deref() != Ok("root"), "root is required");
    root
}

#[test]
fn rights_links_and_times_are_kept() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes = archive(&[
        (EntryType::Directory, "./bin/", "", 0o755),
        (EntryType::Regular, "bin/su", "x", 0o4755),
        (EntryType::Symlink, "lib", "/bin", 0o777),
        (EntryType::Regular, "lib/through-link", "y", 0o644),
        (EntryType::Link, "bin/other", "bin/su", 0),
    ]);
    let (digest, size) = unpack(&bytes[..], dir.path()).unwrap();
    assert_eq!(size, bytes.len() as u64);
    assert!(super::super::reference::is_digest(&digest));
    let su = std::fs::metadata(dir.path().join("bin/su")).unwrap();
    assert_eq!((su.mode() & 0o7777, su.mtime(), su.nlink()), (0o4755, 1_000_000, 2));
    assert_eq!(std::fs::metadata(dir.path().join("bin")).unwrap().mtime(), 1_000_000);
    assert_eq!(std::fs::read_to_string(dir.path().join("bin/through-link")).unwrap(), "y");
}

#[test]
fn gzip_is_read_and_gives_the_digest_of_the_plain_tar() {
    if !root() {
        return;
    }
    let bytes = archive(&[(EntryType::Regular, "a", "hello", 0o644)]);
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&bytes).unwrap();
    let (a, b) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let plain = unpack(&bytes[..], a.path()).unwrap();
    assert_eq!(unpack(&gzip.finish().unwrap()[..], b.path()).unwrap(), plain);
    assert!(unpack(&[0x28, 0xb5, 0x2f, 0xfd, 0][..], b.path()).is_err());
}

#[test]
fn whiteouts_take_overlay_form() {
    if !root() {
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let bytes = archive(&[
        (EntryType::Regular, "etc/.wh.gone", "", 0o644),
        (EntryType::Regular, "opt/.wh..wh..opq", "", 0o644),
        (EntryType::Regular, "opt/.wh..wh.plnk", "", 0o644),
        (EntryType::Regular, "opt/new", "n", 0o644),
    ]);
    unpack(&bytes[..], dir.path()).unwrap();
    let gone = std::fs::symlink_metadata(dir.path().join("etc/gone")).unwrap();
    assert!(gone.file_type().is_char_device() && gone.rdev() == 0);
    let mut value = [0u8; 4];
    let length = rustix::fs::getxattr(dir.path().join("opt"), "trusted.overlay.opaque", &mut value).unwrap();
    assert_eq!(&value[..length], b"y");
    assert_eq!(std::fs::read_dir(dir.path().join("opt")).unwrap().count(), 1);
}

#[test]
fn hostile_archives_write_nothing_outside() {
    if !root() {
        return;
    }
    let refused: [&[(EntryType, &str, &str, u32)]; 6] = [
        &[(EntryType::Regular, "../evil", "x", 0o644)],
        &[(EntryType::Regular, "a/../../evil", "x", 0o644)],
        &[(EntryType::Link, "a", "../outside", 0)],
        &[(EntryType::Link, "a", "/etc/passwd", 0)],
        &[(EntryType::Regular, "etc/.wh...", "", 0o644)],
        &[(EntryType::Symlink, "d", "/nowhere", 0), (EntryType::Regular, "d/x", "x", 0o644)],
    ];
    for entries in refused {
        let dir = tempfile::tempdir().unwrap();
        let inner = dir.path().join("root");
        std::fs::create_dir(&inner).unwrap();
        std::fs::write(dir.path().join("outside"), "").unwrap();
        let result = unpack(&archive(entries)[..], &inner);
        assert!(matches!(result, Err(RuntimeError::Invalid(_))), "{entries:?}: {result:?}");
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2, "{entries:?}");
    }
    let outside = tempfile::tempdir().unwrap();
    let dir = tempfile::tempdir().unwrap();
    let target = outside.path().to_str().unwrap();
    let bytes = archive(&[
        (EntryType::Directory, &target[1..], "", 0o755),
        (EntryType::Symlink, "link", target, 0),
        (EntryType::Regular, "link/evil", "x", 0o644),
        (EntryType::Symlink, "up", "../../../../../..", 0),
        (EntryType::Regular, "up/evil", "x", 0o644),
    ]);
    unpack(&bytes[..], dir.path()).unwrap();
    assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(dir.path().join("evil").exists());
    assert!(!Path::new("/evil").exists());
}

#[test]
fn truncated_archives_are_refused() {
    let bytes = archive(&[(EntryType::Regular, "a", &"x".repeat(5000), 0o644)]);
    let dir = tempfile::tempdir().unwrap();
    assert!(root().then(|| unpack(&bytes[..1500], dir.path())).is_none_or(|result| result.is_err()));
}
